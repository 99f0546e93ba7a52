"""urllib3 with fair pools, on a real HTTP server; for requests see test_requests_pool."""

import gc
import json
import os
import socket
import ssl
import threading
from contextlib import contextmanager, suppress

import gevent
import gevent.queue
import gevent.server
import gevent.socket
import pytest
import urllib3
from gevent import Timeout
from urllib3.exceptions import (
    ClosedPoolError,
    EmptyPoolError,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)
from urllib3.exceptions import ProxyError as Urllib3ProxyError

from gpools import CoDel, NotInUse, PoolClosed, PoolFull, PoolTimeout, WrongThread
from gpools.adapters import FairHTTPConnectionPool, FairPoolManager, FairProxyManager
from gpools.adapters import urllib3 as adapter
from gpools.adapters._answer import Answer
from gpools.adapters._probe import quiet
from tests.chaos import KillStorm
from tests.cooperative import cooperative_urllib3  # noqa: F401
from tests.proxy import REPLY, REQUEST, close, hang
from tests.switching import high_fds, switches  # noqa: F401
from tests.test_byte_boundaries import HEADERS, Ordeal, at_every_byte, whole
from tests.tls import TlsServer, make_certificate
from tests.waiting import settle, spawn, until
from tests.watching import looks_at_sockets

pytestmark = pytest.mark.usefixtures("cooperative_urllib3")


@pytest.fixture
def manager():
    """`manager(...)`: a FairPoolManager of one connection that repeats nothing."""
    made = []

    def make(manager_class=FairPoolManager, *args, **options):
        made.append(manager_class(*args, **({"maxsize": 1, "retries": False} | options)))
        return made[-1]

    yield make
    for one in made:
        one.clear()


def url(server, path="/", **query):
    where = f"http://{server.host}:{server.port}{path}"
    return where + "?" + "&".join(f"{key}={value}" for key, value in query.items())


def ask(http, server, method="GET", **query):
    """Make a request; return what the server says of it."""
    return http.request(method, url(server, **query), headers=dict(HEADERS)).json()


def stream(http, server, method="GET", **query):
    return http.request(method, url(server, **query), preload_content=False)


def core(http, server):
    """Return the `ConnectionPool` behind a manager."""
    return http.connection_from_url(url(server)).pool


def sound(http, server):
    """Assert that all slots are there, and that nobody reads a foreign answer."""
    pool = core(http, server)
    taken = [stream(http, server, tag=n) for n in range(pool.max_size)]
    assert pool.free() == 0
    for n, response in enumerate(taken):
        assert json.loads(response.read())["tag"] == str(n)
    assert pool.free() == pool.max_size
    until(lambda: server.stats()["open"] <= pool.max_size)


# The line


def test_200_greenlets_on_5_connections_open_5(http_server, manager):
    http = manager(maxsize=5)
    users = [spawn(ask, http, http_server, tag=n) for n in range(200)]
    gevent.joinall(users, timeout=30, raise_error=True)
    assert [user.value["tag"] for user in users] == [str(n) for n in range(200)]
    stats = http_server.stats()
    assert (stats["accepted"], stats["peak"], stats["requests"]) == (5, 5, 200)


def test_waiters_are_served_in_the_order_they_came(http_server, manager):
    http = manager()
    users = [spawn(ask, http, http_server, tag=n) for n in range(100)]
    gevent.joinall(users, timeout=30, raise_error=True)
    assert [user.value["request"] for user in users] == list(range(1, 101))


def test_a_wait_too_long_is_urllib3s_error_with_our_diagnosis(http_server, manager):
    http = manager(pool_timeout=0.02)
    held = stream(http, http_server)
    for options in ({}, {"pool_timeout": 0.01}, {"retries": 3}):
        with pytest.raises(EmptyPoolError, match="1 of 1 in use") as caught:
            http.request("GET", url(http_server), **options)
        assert isinstance(caught.value.__cause__, PoolTimeout)
        assert [hold.item for hold in caught.value.__cause__.holders] == [held.connection]
    held.close()
    sound(http, http_server)


def test_max_waiting_turns_away(http_server, manager):
    http = manager(max_waiting=1)
    held = stream(http, http_server)
    waiter = spawn(ask, http, http_server)
    settle()
    with pytest.raises(EmptyPoolError) as caught:
        ask(http, http_server)
    assert isinstance(caught.value.__cause__, PoolFull)
    held.close()
    assert waiter.get(timeout=5)["method"] == "GET"


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_a_waiter_that_is_killed_neither_takes_nor_gives_a_slot(http_server, manager, how):
    """urllib3 gives back None for it, and its own pool lets one more in than it should."""
    http = manager()
    held = stream(http, http_server)
    waiter = spawn(ask, http, http_server)
    settle()
    waiter.kill(gevent.GreenletExit if how == "kill" else Timeout(0))
    assert how == "kill" or isinstance(waiter.exception, Timeout)
    assert core(http, http_server).free() == 0
    next_one = spawn(ask, http, http_server, tag="next")
    settle()
    assert not next_one.ready()
    held.read()
    assert next_one.get(timeout=5)["tag"] == "next"
    assert http_server.stats()["accepted"] == 1


def test_urllib3s_own_pool_counts_a_killed_waiter_as_a_connection(http_server):
    """So the test above can fail; the limit of 1 is broken, and an innocent gets the error."""

    class Queue(gevent.queue.LifoQueue):
        pass

    pool = urllib3.HTTPConnectionPool(http_server.host, http_server.port, block=True, retries=False)
    pool.pool = Queue(1)
    pool.pool.put(None)
    held = pool.request("GET", "/", preload_content=False)
    waiter = spawn(pool.request, "GET", "/")
    settle()
    waiter.kill()
    second = pool.request("GET", "/?size=9", preload_content=False, pool_timeout=0.1)
    assert http_server.stats()["open"] == 2
    second.read()
    with pytest.raises(urllib3.exceptions.FullPoolError):
        held.read()
    pool.close()


# Interrupted


def item_of(http):
    """Make a manager look like a pool of itself, for `Ordeal`."""

    class One:
        max_size = 1

        @contextmanager
        def item(self):
            yield http

    return One()


def asking(proxy, how="preload", **query):
    more = "".join(f"&{name}={value}" for name, value in query.items())

    def exchange(http, tag):
        response = http.request(
            "GET",
            f"http://{proxy.host}:{proxy.port}/?tag={tag}{more}",
            headers=dict(HEADERS),
            preload_content=how == "preload",
        )
        body = b"".join(response.stream(50)) if how == "stream" else response.data
        assert response.headers["x-tag"] == json.loads(body)["tag"]
        return response.headers["x-tag"]

    return exchange


@pytest.mark.parametrize("ending", ["timed out", "goes on"])
@pytest.mark.parametrize("direction", [REQUEST, REPLY])
@pytest.mark.parametrize(("how", "body"), [("preload", "length"), ("stream", "chunked")])
def test_no_answer_reaches_another(http_server, proxy_to, manager, ending, direction, how, body):
    proxy = proxy_to(http_server)
    http = manager()
    ask_one = asking(proxy, how, body=body)
    ordeal = Ordeal(item_of(http), proxy, ask_one, ask_one)
    at_every_byte(ordeal, ending, direction)
    assert ordeal.foreign == []
    whole(core(http, proxy), proxy)


def test_a_half_read_answer_that_is_released_is_read_by_nobody(http_server, proxy_to, manager):
    """The rest of it has not come yet, so the socket is quiet."""
    proxy = proxy_to(http_server)
    http = manager()
    response = stream(http, proxy, drip=0.05)
    response.read(1)
    response.release_conn()
    assert ask(http, proxy, tag="mine")["tag"] == "mine"
    assert http_server.stats()["requests"] == 2
    assert proxy.made == 2


@pytest.mark.parametrize("read", [0, 10])
def test_a_response_dropped_unread_gives_its_slot_back(http_server, manager, read):
    http = manager()
    response = stream(http, http_server, size=100000)
    response.read(read)
    waiter = spawn(ask, http, http_server, tag="mine")
    settle()
    del response
    assert waiter.get(timeout=5)["tag"] == "mine"
    assert http_server.stats()["accepted"] == 2


@pytest.mark.parametrize("end", ["dropped", "closed"])
def test_urllib3s_own_pool_loses_the_slot_of_a_response_unread(http_server, end):
    """So the tests of the same with ours can fail."""
    pool = urllib3.HTTPConnectionPool(http_server.host, http_server.port, block=True, retries=False)
    response = pool.request("GET", "/?size=100000", preload_content=False)
    if end == "closed":
        response.close()
    else:
        del response
        gc.collect()
    with pytest.raises(EmptyPoolError):
        pool.request("GET", "/", pool_timeout=0.01)
    pool.close()


@pytest.mark.parametrize("end", ["release_conn", "close"])
@pytest.mark.parametrize("query", [{}, {"body": "chunked"}, {"close": 1}])
def test_an_answer_given_back_while_another_greenlet_reads_it_ends(
    http_server, manager, query, end
):
    """Its buffered file lets nobody close it meanwhile; each reader would keep a connection."""
    http = manager()
    for turn in range(3):
        response = stream(http, http_server, size=1000, drip=0.05, **query)
        reader = spawn(response.read)
        settle()
        getattr(response, end)()
        with pytest.raises(ProtocolError, match="another greenlet"):
            reader.get(timeout=5)
        until(lambda: http_server.stats()["open"] == 0)
        assert http_server.stats()["accepted"] == turn + 1
    sound(http, http_server)


@pytest.mark.parametrize("query", [{}, {"body": "chunked"}, {"close": 1}])
def test_an_answer_given_back_half_read_has_no_connection_left(http_server, manager, query):
    """The rest of it would come over one more than maxsize."""
    http = manager()
    response = stream(http, http_server, size=1000, drip=0.05, **query)
    response.read(1)
    response.release_conn()
    until(lambda: http_server.stats()["open"] == 0)
    assert response.read() == b""
    sound(http, http_server)


def test_a_stream_that_is_to_be_given_back_at_once_is_whole(http_server, manager):
    http = manager()
    response = http.request(
        "GET", url(http_server, size=1000), preload_content=False, release_conn=True
    )
    assert core(http, http_server).free() == 0
    assert len(response.read()) > 1000
    assert core(http, http_server).free() == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_response_dropped_in_a_cycle_gives_its_slot_back(http_server, manager):
    http = manager()
    response = stream(http, http_server, size=100000)
    response.me = response
    waiter = spawn(ask, http, http_server, tag="mine")
    settle()
    del response
    assert not waiter.ready()
    gc.collect()
    assert waiter.get(timeout=5)["tag"] == "mine"


@pytest.mark.parametrize("end", ["close", "drain_conn", "read", "stream", "with"])
def test_a_streamed_response_gives_its_slot_back(http_server, manager, end):
    http = manager()
    for n in range(3):
        for query in ({"body": "chunked"}, {}, {"close": 1}, {"status": 204}):
            response = stream(http, http_server, size=20000, tag=n, **query)
            if end == "stream":
                for _ in response.stream(100):
                    pass
            elif end == "with":
                with response:
                    response.read(5)
            else:
                getattr(response, end)()
            assert core(http, http_server).free() == 1
            assert ask(http, http_server, tag="mine")["tag"] == "mine"
    sound(http, http_server)


def test_a_stream_left_in_the_middle_gives_its_slot_back(http_server, manager):
    http = manager()
    for query in ({"body": "chunked"}, {}):
        for chunk in stream(http, http_server, size=100000, **query).stream(100):
            assert chunk
            break
        gc.collect()
        assert ask(http, http_server, tag="mine")["tag"] == "mine"


def test_head_and_answers_without_a_body(http_server, manager):
    http = manager()
    for method, status in [("HEAD", 200), ("GET", 204), ("GET", 304), ("GET", 500)] * 2:
        assert http.request(method, url(http_server, status=status)).status == status
    assert http_server.stats()["accepted"] == 1


def test_an_error_in_a_streamed_body_poisons_nobody(http_server, manager):
    http = manager()

    def chunks():
        yield b"x" * 10
        raise ValueError("no more")

    for _ in range(2):
        with pytest.raises(ValueError, match="no more"):
            http.request("POST", url(http_server), body=chunks(), headers={"Content-Length": "30"})
        assert ask(http, http_server, tag="mine")["tag"] == "mine"
    sound(http, http_server)


def test_a_request_that_cannot_be_encoded_poisons_nobody(http_server, manager):
    """http.client keeps its first lines, through close(), and sends them before the next one's."""
    http = manager()
    for _ in range(2):
        ask(http, http_server)
        with pytest.raises(UnicodeEncodeError):
            http.request("GET", url(http_server, tag="x"), headers={"X-Name": "\u20ac"})
        assert ask(http, http_server, tag="mine")["tag"] == "mine"
    sound(http, http_server)


def test_a_body_that_uses_the_same_pool_spoils_neither(http_server, manager):
    """Which of the two connections failed is not mistaken."""
    http = manager(maxsize=2)

    def chunks():
        inner = stream(http, http_server, size=50000, tag="inner")
        yield inner.read(10)
        kept.append(inner)
        raise ValueError("no more")

    kept = []
    with pytest.raises(ValueError, match="no more"):
        http.request("POST", url(http_server), body=chunks(), headers={"Content-Length": "30"})
    pool = core(http, http_server)
    assert [hold.item for hold in pool.holders()] == [kept[0].connection]
    assert b"x" * 50000 in kept[0].read()
    sound(http, http_server)


def test_a_kill_in_connect_leaves_no_socket_behind(http_server, proxy_to, manager, open_fds):
    proxy = proxy_to(http_server)
    proxy.never_accept()
    for scheme in ("http", "https"):
        http = manager()
        before = open_fds()
        with pytest.raises(Timeout) as kept, Timeout(0.1):
            http.request("GET", f"{scheme}://{proxy.host}:{proxy.port}/")
        assert open_fds() == before
        assert kept.value.__traceback__ is not None


@pytest.fixture
def open_fds():
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    return lambda: len(os.listdir("/proc/self/fd"))


def test_storm_of_kills_on_tagged_requests(http_server, manager):
    http = manager(maxsize=5)

    def once(storm, tag):
        chance = storm.chance
        query = {"tag": tag} | chance.choice([{}, {"body": "chunked"}, {"size": 3000}])
        method, how = chance.choice(["GET", "POST"]), chance.random()
        response = stream(http, http_server, method, **query)
        if how < 0.2:
            return  # dropped
        body = response.data if how < 0.6 else b"".join(response.stream(100))
        storm.hear(tag, json.loads(body)["tag"])

    storm = KillStorm(4, once, patience=(0.001, 0.004, 5))
    storm.rage(core(http, http_server), answers=700, kills=200)
    sound(http, http_server)


# Idle connections that die


@pytest.mark.parametrize("how", ["close_idle", "reset_all", "fin"])
def test_a_connection_closed_idle_costs_nothing(http_server, manager, how):
    http = manager(maxsize=2)
    taken = [stream(http, http_server, **({"fin": 1} if how == "fin" else {})) for _ in range(2)]
    for response in taken:
        response.read()
    if how == "fin":
        until(lambda: http_server.stats()["open"] == 0)
    else:
        getattr(http_server, how)()
    for n in range(4):
        assert ask(http, http_server, "POST", tag=n)["tag"] == str(n)
    assert http_server.stats()["requests"] == 6


def test_stray_bytes_are_read_by_nobody(http_server, proxy_to, manager):
    proxy = proxy_to(http_server)
    http = manager()
    ask(http, proxy)
    proxy.links[0].client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert ask(http, proxy, tag="mine")["tag"] == "mine"
    assert proxy.made == 2


@pytest.mark.parametrize("check_after", [0, None])
def test_a_connection_that_is_dirty_as_it_comes_back_is_not_kept(
    http_server, proxy_to, manager, check_after
):
    """Whatever check_after says: that is about what happens to idle ones."""
    proxy = proxy_to(http_server)
    http = manager(check_after=check_after)
    ask(http, proxy)
    pool = http.connection_from_url(url(proxy))
    conn = pool._get_conn()
    proxy.links[0].client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    until(lambda: not quiet(conn.sock))
    pool._put_conn(conn)
    assert ask(http, proxy, tag="mine")["tag"] == "mine"
    assert proxy.made == 2


def test_a_connection_from_hand_to_hand_is_looked_at_once(http_server, manager, monkeypatch):
    looks = looks_at_sockets(monkeypatch, adapter)
    http = manager()
    for n in range(4):
        ask(http, http_server)
        assert len(looks) == n


def test_answers_are_read_in_less_time(http_server, manager):
    http = manager()
    ask(http, http_server)
    (conn,) = core(http, http_server).free_items
    assert conn.response_class is Answer


def test_to_take_an_idle_connection_never_switches(http_server, manager):
    """urllib3 looks at it with poll(), which is gevent's in a patched program."""
    http = manager()
    ask(http, http_server)
    pool = http.connection_from_url(url(http_server))
    gevent.sleep(0)
    with switches() as count:
        pool._put_conn(pool._get_conn())
    assert count() == 0
    assert http_server.stats()["open"] == 1


@pytest.mark.usefixtures("high_fds")
def test_file_descriptors_beyond_1024(http_server, manager):
    http = manager()
    assert ask(http, http_server)["connection"] == ask(http, http_server)["connection"]


def test_idle_connections_are_let_go(http_server, manager):
    http = manager(maxsize=2, max_idle=0.05)
    ask(http, http_server)
    assert http_server.stats()["open"] == 1
    until(lambda: http_server.stats()["open"] == 0)
    assert core(http, http_server).stats().destroyed == {"max_idle": 1}


# Errors of connecting, redirects, retries


def test_errors_of_connecting_come_out_as_they_are(http_server, proxy_to, manager):
    proxy = proxy_to(http_server)
    http = manager()
    proxy.refuse()
    for _ in range(3):
        with pytest.raises(NewConnectionError):
            ask(http, proxy)
        with pytest.raises(MaxRetryError):
            http.request("GET", url(proxy), retries=1)
    proxy.listen()
    proxy.script = [close(), close(10)]
    for _ in range(2):
        with pytest.raises(ProtocolError):
            ask(http, proxy)
    assert ask(http, proxy)["method"] == "GET"
    assert core(http, proxy).current_size == 1


def test_a_read_timeout_costs_no_slot(http_server, manager):
    http = manager(timeout=0.05)
    for how in ({"silent": 1}, {"cut": 5, "then": "hang"}):
        with pytest.raises(ReadTimeoutError):
            ask(http, http_server, **how)
    assert ask(http, http_server, tag="mine")["tag"] == "mine"


def test_retries_are_urllib3s(http_server, proxy_to, manager):
    proxy = proxy_to(http_server)
    http = manager(retries=3)
    proxy.script = [close(), close()]
    assert ask(http, proxy, tag="mine")["tag"] == "mine"
    assert proxy.made == 3
    response = http.request(
        "GET",
        url(proxy, status=503),
        retries=urllib3.Retry(2, status_forcelist=[503], raise_on_status=False),
    )
    assert response.status == 503
    assert http_server.stats()["requests"] == 6
    assert core(http, proxy).free() == 1


def test_a_redirect_gives_its_connection_back_first(http_server, start_server, manager):
    other = start_server(type(http_server))
    http = manager(retries=5)
    there = f"{other.url}/there"
    assert ask(http, http_server, redirect="/here")["path"] == "/here"
    assert ask(http, http_server, redirect=there)["path"] == "/there"
    answer = stream(http, http_server, redirect="/here")
    assert json.loads(answer.read())["path"] == "/here"
    with pytest.raises(MaxRetryError):
        http.request("GET", url(http_server, redirect="/?redirect=/"), retries=0)
    sound(http, http_server)
    sound(http, other)


# Many hosts


def test_a_pool_in_use_is_not_made_twice(http_server, manager):
    """urllib3 forgets the pool of the host used least recently, and makes another."""
    http = manager(num_pools=1)
    held = stream(http, http_server, size=100000)
    for n in range(2, 5):
        http.connection_from_url(f"http://127.0.0.{n}:1/")
    waiter = spawn(ask, http, http_server, tag="mine")
    settle()
    assert not waiter.ready()
    held.close()
    assert waiter.get(timeout=5)["tag"] == "mine"
    assert http_server.stats()["peak"] == 1


def test_urllib3s_own_manager_makes_it_twice(http_server):
    """So the test above can fail."""
    http = urllib3.PoolManager(num_pools=1, maxsize=1, block=True, retries=False)
    held = stream(http, http_server, size=100000)
    http.connection_from_url("http://127.0.0.2:1/")
    assert ask(http, http_server, tag="mine")["tag"] == "mine"
    assert http_server.stats()["peak"] == 2
    held.close()
    http.connection_from_url(url(http_server)).close()


def test_a_forgotten_pool_closes_its_connections(http_server, manager):
    http = manager(num_pools=1)
    ask(http, http_server)
    assert http_server.stats()["open"] == 1
    http.connection_from_url("http://127.0.0.2:1/")
    until(lambda: http_server.stats()["open"] == 0)


def test_clear_closes_what_is_idle_and_what_comes_back(http_server, manager):
    http = manager(maxsize=2)
    held = stream(http, http_server)
    ask(http, http_server)
    http.clear()
    until(lambda: http_server.stats()["open"] == 1)
    held.read()
    until(lambda: http_server.stats()["open"] == 0)
    assert ask(http, http_server, tag="mine")["tag"] == "mine"


def test_close_of_one_pool_refuses(http_server):
    pool = FairHTTPConnectionPool(http_server.host, http_server.port, maxsize=1, retries=False)
    held = pool.request("GET", "/", preload_content=False)
    waiter = spawn(pool.request, "GET", "/")
    settle()
    pool.close()
    settle()
    assert isinstance(waiter.exception, ClosedPoolError)
    assert isinstance(waiter.exception.__cause__, PoolClosed)
    with pytest.raises(ClosedPoolError):
        pool.request("GET", "/")
    held.read()
    until(lambda: http_server.stats()["open"] == 0)
    pool.close()


def test_a_connection_given_back_twice_is_refused(http_server, manager):
    http = manager()
    ask(http, http_server)
    pool = http.connection_from_url(url(http_server))
    conn = pool._get_conn()
    pool._put_conn(conn)
    with pytest.raises(NotInUse):
        pool._put_conn(conn)
    assert pool.pool.free() == 1


def test_another_thread_is_refused(http_server, manager):
    http = manager()
    ask(http, http_server)
    errors = []

    def use():
        try:
            http.request("GET", url(http_server))
        except WrongThread as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    until(lambda: not thread.is_alive())
    assert len(errors) == 1
    sound(http, http_server)


# Settings


def test_a_misspelled_option_is_told_by_the_name_it_was_given():
    with pytest.raises(TypeError, match="neither urllib3 nor ConnectionPool takes max_ages"):
        FairPoolManager(max_ages=3)


@pytest.mark.parametrize(
    "options",
    [
        {"no_such_option": 1},
        {"max_idle": -1},
        {"maxsize": 0},
        {"maxsize": "x"},
        {"block": False},
        {"max_size": 3},
        {"min_size": 1},
        {"create": object},
        {"max_creating": 1},
        {"pool_timeout": -1},
    ],
)
@pytest.mark.parametrize("what", [FairPoolManager, FairProxyManager, FairHTTPConnectionPool])
def test_nonsense_is_refused_at_once(what, options):
    if what is FairHTTPConnectionPool and "no_such_option" in options:
        pytest.skip("urllib3 keeps it for the first connection")
    where = {FairProxyManager: ["http://127.0.0.1:1"], FairHTTPConnectionPool: ["127.0.0.1", 1]}
    with pytest.raises((TypeError, ValueError), match=next(iter(options)) + "|timeout"):
        what(*where.get(what, []), **options)


def test_a_listener_hears_of_pools_that_are_used_only(http_server, manager):
    heard = []

    class Listener:
        def __getattr__(self, event):
            return lambda pool, *about: heard.append((event, pool.name))

    http = manager(listener=Listener())
    ask(http, http_server)
    settle()
    assert heard == [("created", http_server.url)]


def test_each_host_is_judged_by_a_codel_of_its_own(manager):
    http = manager(shed=CoDel(target=0.3))
    one, two = (http.connection_from_url(f"http://127.0.0.{n}:1/").pool for n in (1, 2))
    assert one._line.shed is not two._line.shed
    assert one._line.shed.target == two._line.shed.target == 0.3


# TLS and proxies


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def tls(request, certificate):
    with TlsServer(*certificate, version=ssl.TLSVersion[request.param]) as server:
        yield server


def test_tls(tls, manager, certificate):
    http = manager(ca_certs=certificate[0])
    for n in range(3):
        assert http.request("GET", f"{tls.url}/{n}").data == b"/%d" % n
    assert len(tls.connections) == 1
    with pytest.raises(urllib3.exceptions.SSLError):
        manager().request("GET", tls.url)


def test_an_answer_over_tls_given_back_while_another_greenlet_reads_it_ends(
    tls, manager, certificate, open_fds
):
    tls.withheld = 1
    http = manager(ca_certs=certificate[0])
    before = open_fds()
    for _ in range(3):
        response = http.request("GET", tls.url, preload_content=False)
        reader = spawn(response.read)
        settle()
        response.release_conn()
        with pytest.raises(ProtocolError, match="another greenlet"):
            reader.get(timeout=5)
    until(lambda: open_fds() == before)


def test_a_tls_connection_closed_idle_is_replaced(tls, manager, certificate):
    http = manager(ca_certs=certificate[0])
    http.request("GET", f"{tls.url}/1")
    (conn,) = http.connection_from_url(tls.url).pool.free_items
    tls.connections[0].shutdown(socket.SHUT_RDWR)
    until(lambda: not quiet(conn.sock))
    assert http.request("POST", f"{tls.url}/2").data == b"/2"
    assert len(tls.connections) == 2


def test_a_kill_in_a_tls_handshake_leaves_no_socket_behind(http_server, manager, proxy_to):
    proxy = proxy_to(http_server, hang(0, REQUEST))
    http = manager()
    user = spawn(http.request, "GET", f"https://{proxy.host}:{proxy.port}/")
    assert proxy.stopped.wait(5)
    user.kill()
    until(lambda: proxy.open == 0)
    assert http.connection_from_url(f"https://{proxy.host}:{proxy.port}/").pool.free() == 1


def serve_proxy(sock, address):
    """Be a proxy that answers for every host, and refuses to tunnel."""
    with sock.makefile("rb") as lines:
        while line := lines.readline():
            while lines.readline().strip():
                pass
            if line.startswith(b"CONNECT"):
                sock.sendall(b"HTTP/1.1 403 No\r\n\r\n")
                break
            target = line.split()[1]
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(target) + target)
    sock.close()


@pytest.fixture
def http_proxy():
    server = gevent.server.StreamServer(("127.0.0.1", 0), serve_proxy)
    server.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stop()


def tunnel(port):
    """Return what a proxy does that opens tunnels, all to *port*."""

    def serve(sock, address):
        while b"\r\n\r\n" not in sock.recv(4096):
            pass
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with gevent.socket.create_connection(("127.0.0.1", port)) as other:
            back = spawn(pump, other, sock)
            pump(sock, other)
            back.join()
        sock.close()

    def pump(source, drain):
        with suppress(OSError):
            while data := source.recv(4096):
                drain.sendall(data)
        with suppress(OSError):
            drain.shutdown(socket.SHUT_RDWR)

    return serve


def test_an_answer_over_tls_in_tls_given_back_while_another_greenlet_reads_it_ends(
    tls, manager, certificate
):
    tls.withheld = 1
    proxy = gevent.server.StreamServer(("127.0.0.1", 0), tunnel(tls.port), ssl_context=tls.context)
    proxy.start()
    http = manager(
        FairProxyManager, f"https://localhost:{proxy.server_port}", ca_certs=certificate[0]
    )
    response = http.request("GET", tls.url, preload_content=False)
    assert isinstance(response.connection.sock, urllib3.util.ssltransport.SSLTransport)
    reader = spawn(response.read)
    settle()
    response.release_conn()
    with pytest.raises(ProtocolError, match="another greenlet"):
        reader.get(timeout=5)
    proxy.stop()


def test_a_proxy(manager, http_proxy):
    http = manager(FairProxyManager, http_proxy)
    for n in range(3):
        where = f"http://example{n}.test/"
        assert http.request("GET", where).data == where.encode()
    pool = http.connection_from_url("http://example.test/").pool
    assert (pool.max_size, pool.current_size, pool.free()) == (1, 1, 1)
    for _ in range(3):
        with pytest.raises((Urllib3ProxyError, ProtocolError)):
            http.request("GET", "https://example.test/")
    tunnels = http.connection_from_url("https://example.test/").pool
    assert (tunnels.current_size, tunnels.free()) == (0, 1)
