"""KeyedHttpPool on real sockets: many hosts, few connections, each its own answers."""

import gc
import inspect
import json
import random
import socket
from traceback import format_exception

import gevent
import gevent.server
import gevent.socket
import httplib2
import pytest
from gevent import Timeout

from gpools import CoDel, NotInUse, PoolClosed, PoolTimeout
from gpools.adapters import HttpPool, KeyedHttpPool
from tests.cooperative import cooperative  # noqa: F401
from tests.waiting import settle, spawn, until

pytestmark = pytest.mark.usefixtures("cooperative")


@pytest.fixture
def keyed():
    """`keyed(...)`: a KeyedHttpPool, closed after the test."""
    pools = []

    def make(**options):
        pools.append(KeyedHttpPool(**options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


class Hosts:
    """A server on all loopback addresses: each is a host, and echoes its own address."""

    def __init__(self):
        self.open = self.peak = self.accepted = 0
        self.server = gevent.server.StreamServer(("0.0.0.0", 0), self.serve, backlog=1024)
        self.server.start()

    def url(self, n, path="/"):
        return f"http://127.1.{n // 250}.{n % 250 + 1}:{self.server.server_port}{path}"

    def serve(self, sock, address):
        self.open += 1
        self.accepted += 1
        self.peak = max(self.peak, self.open)
        here = sock.getsockname()[0]
        try:
            with sock.makefile("rb") as lines:
                while line := lines.readline():
                    while lines.readline().strip():
                        pass
                    path = line.split()[1].decode()
                    gevent.sleep(0.5 if path == "/slow" else 0)
                    body = f"{here}{path}".encode()
                    status = b"200 OK"
                    if path.startswith("/to/"):
                        status = b"302 Found\r\nLocation: " + self.url(int(path[4:])).encode()
                    head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
                    sock.sendall(head + body)
        except OSError:
            pass  # the client has gone, which is its right
        finally:
            self.open -= 1
            sock.close()


@pytest.fixture
def hosts():
    hosts = Hosts()
    yield hosts
    hosts.server.stop()


def ask(pool, hosts, n):
    """Ask one host; return whether the answer is its own."""
    _, body = pool.request(hosts.url(n))
    return hosts.url(n) == f"http://{body.decode()[:-1]}:{hosts.server.server_port}/"


def test_thousands_of_hosts_leave_bounded_memory_and_sockets(hosts, keyed, monkeypatch):
    # The addresses are numbers: a thread for each would take most of the time.
    monkeypatch.setattr(gevent.socket, "getaddrinfo", socket.getaddrinfo)
    pool = keyed(max_size=20, max_per_host=2)
    most_pools, wrong = 0, []

    def user(numbers):
        nonlocal most_pools
        for n in numbers:
            if not ask(pool, hosts, n):
                wrong.append(n)
            most_pools = max(most_pools, len(pool.pools()))

    def crowd(first, last):
        users = [spawn(user, range(first + k, last, 30)) for k in range(30)]
        gevent.joinall(users, raise_error=True)
        until(lambda: hosts.open <= 20)
        del users
        settle()
        gc.collect()
        return len(gc.get_objects())

    before = crowd(0, 500)  # with 10,000 it takes half a minute, and ends the same
    after = crowd(500, 2500)
    assert wrong == []
    assert hosts.accepted >= 2500
    assert pool.size == len(pool.pools()) == 20
    assert most_pools <= 20 + 30  # those with an item, and those with somebody in line
    assert hosts.peak <= 20 + 30  # the server may see a close late
    assert after < before + 2000


def test_limits_per_host_and_in_all(hosts, keyed):
    pool = keyed(max_size=3, max_per_host=2)
    users = [spawn(pool.request, hosts.url(n % 2, "/slow")) for n in range(8)]
    settle()
    assert pool.size == 3
    assert {p.current_size for p in pool.pools().values()} == {1, 2}
    gevent.joinall(users, timeout=10, raise_error=True)
    assert hosts.peak == 3


def test_what_a_user_reads_names_the_public_class_and_the_host(hosts, keyed):
    pool = keyed(max_per_host=1)
    assert ask(pool, hosts, 0)
    (of_host,) = pool.pools().values()
    name = hosts.url(0).rstrip("/")
    assert repr(of_host) == f"<HttpPool '{name}' 1 idle, 0 in use, 0 waiting, max 1>"
    with pytest.raises(NotInUse, match="this HttpPool got back"):
        of_host.put(httplib2.Http())


def test_an_idle_host_is_dropped(hosts, keyed):
    pool = keyed(max_idle=1)
    for n in range(5):
        assert ask(pool, hosts, n)
    assert len(pool.pools()) == hosts.open == 5
    until(lambda: hosts.open == 0)
    until(lambda: pool.pools() == {})
    assert repr(pool) == "<KeyedHttpPool 0 keys, 0 idle, 0 in use, 0 waiting, max 100>"


def test_the_key_is_scheme_host_and_port(http_server, keyed):
    pool = keyed()
    where = f"127.0.0.1:{http_server.port}"
    for url in (f"http://{where}/a", f"HTTP://{where}/b?c#d", f"http://{where}"):
        with pool.item(url) as http:
            http.request(url)
    assert list(pool.pools()) == [f"http://{where}"]
    assert http_server.stats()["accepted"] == 1
    http = pool.get(f"http://{where}/any")
    with pytest.raises(NotInUse):
        pool.put("http://other.test/", http)
    pool.put(f"http://{where}/path", http)
    http = pool.get(f"http://{where}/any")
    pool.discard(f"http://{where}/path", http)
    assert pool.size == 0


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://Example.test/x", "http://example.test:80"),
        ("https://example.test", "https://example.test:443"),
        ("http://[::1]:81/", "http://[::1]:81"),
        ("http://user:word@example.test/", "http://example.test:80"),
        ("http://b\u00fccher.test/", "http://xn--bcher-kva.test:80"),
    ],
)
def test_keys_of_urls(keyed, url, key):
    pool = keyed()
    with pool.item(url):
        assert list(pool.pools()) == [key]


@pytest.mark.parametrize(
    "url", ["http://user:secret/word@example.test/", "http://user:secret\u2100@example.test/"]
)
def test_a_garbled_key_shows_no_password(keyed, url):
    with pytest.raises(ValueError, match="key must be a URL") as caught:
        keyed().request(url)
    assert "secret" not in "".join(format_exception(caught.value))


@pytest.mark.parametrize("url", ["example.test", "/path", "ftp://example.test/", "http://", ""])
def test_what_is_no_url_is_refused(keyed, url):
    with pytest.raises(ValueError, match="key must be a URL"):
        keyed().request(url)


def test_a_redirect_leaves_no_connection_to_the_other_host(hosts, keyed):
    pool = keyed()
    for n in range(1, 6):
        _, body = pool.request(hosts.url(0, f"/to/{n}"))
        assert hosts.url(n).startswith(f"http://{body.decode()[:-1]}")
    until(lambda: hosts.open == 1)
    assert len(pool.pools()) == 1
    assert hosts.accepted == 6
    assert ask(pool, hosts, 0)
    assert hosts.accepted == 6


def test_interrupted_it_gives_nobody_a_foreign_answer(hosts, keyed):
    pool = keyed(max_size=4, max_per_host=2)
    chance = random.Random(5)
    wrong, answers = [], 0

    def user():
        nonlocal answers
        while True:
            n = chance.randrange(6)
            with Timeout(chance.choice([0.001, 0.003, 5]), False):
                wrong.extend([] if ask(pool, hosts, n) else [n])
                answers += 1

    users = [spawn(user) for _ in range(12)]
    while answers < 400:
        gevent.sleep(0.002)
        victim = chance.randrange(12)
        users[victim].kill()
        users[victim] = spawn(user)
        assert pool.size <= 4
    gevent.killall(users)
    settle()
    assert wrong == []
    for n in range(4):
        assert ask(pool, hosts, n)
    assert pool.size <= 4


def test_get_timeout_and_close(hosts, keyed):
    pool = keyed(max_size=1, get_timeout=0.01)
    with pool.item(hosts.url(1)), pytest.raises(PoolTimeout):
        pool.request(hosts.url(2))
    pool.close()
    with pytest.raises(PoolClosed):
        pool.request(hosts.url(1))


@pytest.mark.parametrize(
    "options",
    [{"max_size": 0}, {"max_per_host": 0}, {"min_size": 1}, {"no_such": 1}, {"max_idle": -1}],
)
def test_nonsense_is_refused_at_once(options):
    with pytest.raises((TypeError, ValueError), match=next(iter(options)).replace("per_host", "")):
        KeyedHttpPool(**options)


def test_each_host_is_judged_by_a_codel_of_its_own(keyed):
    pool = keyed(shed=CoDel(target=0.3))
    with pool.item("http://127.0.0.1:1/"), pool.item("http://127.0.0.2:1/"):
        one, two = (each._line.shed for each in pool.pools().values())
    assert one is not two
    assert one.target == two.target == 0.3


def test_request_has_httplib2s_signature(http_server, keyed):
    ours = inspect.signature(KeyedHttpPool.request).parameters.values()
    theirs = inspect.signature(HttpPool.request).parameters.values()
    assert [str(p) for p in ours] == [str(p) for p in theirs]
    _, content = keyed().request(f"{http_server.url}/", "PUT", b"body", {"X-Tag": "t"}, 3)
    echo = json.loads(content)
    assert (echo["method"], echo["body"], echo["tag"]) == ("PUT", "body", "t")


def test_clients_of_ones_own(http_server, keyed):
    class Client(httplib2.Http):
        pass

    pool = keyed(create=lambda: Client(timeout=3))
    with pool.item(http_server.url) as http:
        assert isinstance(http, Client)
        assert http.request(f"{http_server.url}/")[0].status == 200
