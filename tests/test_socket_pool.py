"""SocketPool on real sockets: TCP, TLS and Unix."""

import os
import socket as stdlib
import ssl
import struct
import time
from contextlib import suppress
from itertools import count

import gevent
import gevent.ssl
import pytest
from gevent import Timeout, socket
from gevent.pool import Group

from gpools import PoolError, PoolTimeout
from gpools.adapters import SocketPool
from tests.chaos import KillStorm
from tests.databases import MemcachedServer
from tests.proxy import FaultProxy, black_hole, hang
from tests.servers import free_port
from tests.switching import switches
from tests.test_byte_boundaries import NaivePool, Ordeal, at_every_byte, both_ways
from tests.test_fork import Child
from tests.tls import make_certificate
from tests.waiting import settle, spawn, until


class Echo:
    """A server that says each line again; one that begins with "late" at `answer` only.

    `sockets` are its ends of the connections, `owed` the lines not yet answered.
    """

    def __init__(self, listener, context=None):
        self.listener = listener
        self.context = context
        self.sockets = []
        self.owed = []
        self.greenlets = Group()

    def __enter__(self):
        self.greenlets.spawn(self.accept)
        return self

    def __exit__(self, *error):
        self.greenlets.kill()
        for sock in (self.listener, *self.sockets):
            sock.close()

    @property
    def address(self):
        return self.listener.getsockname()[:2]

    def accept(self):
        while True:
            self.sockets.append(self.listener.accept()[0])
            self.greenlets.start(gevent.Greenlet(self.serve, len(self.sockets) - 1))
            gevent.sleep(0)

    def serve(self, number):
        sock = self.sockets[number]
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError, ValueError):  # gevent's for a TLS socket that was shut down
            if self.context:
                sock = self.sockets[number] = self.context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
                sock.do_handshake()
            with sock.makefile("rb") as lines:
                for line in lines:
                    if line.startswith(b"late"):
                        self.owed.append((sock, line))
                    else:
                        sock.sendall(line)
        sock.close()

    def answer(self):
        while self.owed:
            sock, line = self.owed.pop()
            with suppress(OSError):
                sock.sendall(line)

    def open(self):
        return sum(not hung_up(sock) for sock in self.sockets)


def hung_up(sock):
    try:
        return sock.fileno() < 0 or sock._sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def readline(sock):
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1000)
        if not data:
            raise ConnectionResetError("the server hung up")
        line += data
    return line


def ask(sock, tag):
    sock.sendall(f"{tag}\n".encode())
    return readline(sock).decode().strip()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trusting(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate[0])
    return context


KINDS = ["tcp", "tcp6", "unix", "TLSv1_2", "TLSv1_3"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def echo(kind, certificate, tmp_path):
    listener = socket.socket(FAMILIES.get(kind, socket.AF_INET))
    try:
        listener.bind({"unix": str(tmp_path / "socket"), "tcp6": ("::1", 0)}.get(kind, LOOPBACK))
    except OSError:
        listener.close()
        pytest.skip("no IPv6 here")
    listener.listen(50)
    with Echo(listener, tls_server(certificate, kind) if "TLS" in kind else None) as server:
        yield server


LOOPBACK = ("127.0.0.1", 0)
FAMILIES = {"unix": socket.AF_UNIX, "tcp6": socket.AF_INET6}


def tls_server(certificate, version="TLSv1_3"):
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.load_cert_chain(*certificate)
    return context


@pytest.fixture
def socket_pool(echo, kind, trusting, tmp_path):
    """`socket_pool(...)`: a SocketPool of one socket to the echo server, closed after the test."""
    pools = []

    def make(**options):
        address = tmp_path / "socket" if kind == "unix" else echo.address
        tls = {"ssl": trusting, "server_hostname": "localhost"} if "TLS" in kind else {}
        pools.append(SocketPool(address, **{"max_size": 1, "timeout": 7} | tls | options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


tcp = pytest.mark.parametrize("kind", ["tcp"], indirect=True)
tls = pytest.mark.parametrize("kind", ["TLSv1_2", "TLSv1_3"], indirect=True)

tags = (f"tag-{n}" for n in count())


def use(pool):
    """Use the next socket, and return it."""
    with pool.item(timeout=5) as sock:
        tag = next(tags)
        assert ask(sock, tag) == tag
        return sock


def whole(pool, echo):
    items = [pool.get(timeout=5) for _ in range(pool.max_size)]
    for item in items:
        tag = next(tags)
        assert ask(item, tag) == tag
    until(lambda: echo.open() == pool.max_size)
    for item in items:
        pool.put(item)
    assert pool.free() == pool.current_size == pool.max_size


# Making sockets


def test_a_socket_is_used_again(socket_pool, echo, kind):
    pool = socket_pool()
    first = use(pool)
    assert type(first) is (gevent.ssl.SSLSocket if "TLS" in kind else socket.socket)
    assert first.gettimeout() == 7
    for _ in range(5):
        settle()
        assert use(pool) is first
    assert len(echo.sockets) == 1
    whole(pool, echo)


@tcp
def test_a_name_with_several_addresses(echo):
    """The server listens on one of them."""
    with SocketPool(("localhost", echo.address[1])) as pool:
        assert use(pool)


def test_who_means_a_host_and_writes_a_path_sees_it():
    with SocketPool("127.0.0.1:11211") as pool, pytest.raises(FileNotFoundError) as caught:
        pool.get()
    assert "'127.0.0.1:11211'" in str(caught.value)


def test_a_timeout_in_a_handshake_on_a_path_says_so(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        settings = {"ssl": True, "server_hostname": "example", "connect_timeout": 0.05}
        with (
            SocketPool(tmp_path / "socket", **settings) as pool,
            pytest.raises(TimeoutError, match="timed out"),
        ):
            pool.get()


@pytest.mark.parametrize("path", [str, os.fsencode])
@pytest.mark.parametrize("kind", ["unix"], indirect=True)
def test_a_path_in_any_form(echo, tmp_path, path):
    with SocketPool(path(tmp_path / "socket")) as pool:
        assert use(pool)


@pytest.mark.parametrize("kind", ["tcp", "tcp6"], indirect=True)
def test_options_of_the_socket(socket_pool):
    with socket_pool(keepalive=True).item() as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    with socket_pool(nodelay=False, timeout=None).item() as sock:
        assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.gettimeout() is None


def test_a_hundred_greenlets_on_five_sockets(socket_pool, echo):
    pool = socket_pool(max_size=5)

    def user(name):
        for turn in range(3):
            with pool.item() as sock:
                assert ask(sock, f"{name}-{turn}") == f"{name}-{turn}"

    users = [spawn(user, name) for name in range(100)]
    gevent.joinall(users, timeout=30, raise_error=True)
    assert len(echo.sockets) == 5


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"address": 80}, TypeError),
        ({"address": ("host", "80")}, TypeError),
        ({"address": ("host",)}, TypeError),
        ({"server_hostname": "x"}, ValueError),
        ({"ssl": "yes"}, TypeError),
        ({"address": "/path", "ssl": True}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"connect_timeout": -1}, ValueError),
        ({"no_such_option": 1}, TypeError),
        ({"max_size": 0}, ValueError),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(wrong, error):
    with pytest.raises(error):
        SocketPool(**{"address": ("127.0.0.1", 80)} | wrong)


@tcp
def test_sockets_of_ones_own(echo):
    def create():
        sock = socket.create_connection(echo.address)
        sock.sendall(b"hello\n")
        assert readline(sock) == b"hello\n"
        return sock

    with SocketPool(echo.address, max_size=1, create=create, timeout=3) as pool:
        assert use(pool).gettimeout() == 3
        assert use(pool) is use(pool)


@tcp
def test_a_socket_that_blocks_all_greenlets_is_refused(echo, caplog):
    made = []

    def create():
        made.append(stdlib.create_connection(echo.address))
        return made[0]

    with SocketPool(echo.address, create=create) as pool:
        with pytest.raises(PoolError, match=r"takes gevent\.socket\.socket"):
            pool.get()
        assert pool.current_size == 0
    assert made[0].fileno() < 0
    assert caplog.text == ""


# What a user leaves behind


@pytest.mark.parametrize("change", [lambda s: s.settimeout(0.01), lambda s: s.setblocking(False)])
def test_a_changed_timeout_does_not_reach_the_next_user(socket_pool, change):
    pool = socket_pool()
    first = use(pool)
    with pool.item() as sock:
        change(sock)
    assert use(pool) is first
    assert first.gettimeout() == 7


CHANGES = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60)),
    (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
    pytest.param(
        *(socket.IPPROTO_TCP, getattr(socket, "TCP_CORK", None), 1),
        marks=pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="no TCP_CORK here"),
    ),
]


@pytest.mark.parametrize("kind", ["tcp", "TLSv1_3"], indirect=True)
@pytest.mark.parametrize(("level", "option", "value"), CHANGES)
def test_a_changed_option_does_not_reach_the_next_user(socket_pool, level, option, value):
    pool = socket_pool()
    first = use(pool)
    before = first.getsockopt(level, option)
    with pool.item() as sock:
        sock.setsockopt(level, option, value)
        assert sock.getsockopt(level, option) != before
    assert use(pool) is first
    assert first.getsockopt(level, option) == before


@pytest.mark.parametrize("check_after", [0, None])
def test_what_was_not_read_does_not_reach_the_next_user(socket_pool, echo, check_after):
    pool = socket_pool(check_after=check_after)
    first = use(pool)
    with pool.item() as sock:
        sock.sendall(b"foreign\n")
        until(lambda: readable(sock))
    assert use(pool) is not first
    whole(pool, echo)


def test_what_so_rcvlowat_hides_does_not_reach_the_next_user(socket_pool, echo):
    pool = socket_pool()
    first = use(pool)
    with pool.item() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
        sock.sendall(b"foreign\n")
        until(lambda: readable(sock))
    assert use(pool) is not first
    whole(pool, echo)


def readable(sock):
    with suppress(OSError):
        return sock._sock.recv(1, socket.MSG_PEEK)


@pytest.mark.parametrize("kind", ["tcp", "unix"], indirect=True)
def test_a_naive_pool_hands_on_what_was_not_read(socket_pool, echo):
    with socket_pool().item() as sock:
        naive = NaivePool(sock)
        with Timeout(0.02, False), naive.item() as sock:
            ask(sock, "late, theirs")
        echo.answer()
        with naive.item() as sock:
            assert ask(sock, "mine").startswith("late, theirs")


def test_an_answer_read_in_part_does_not_reach_the_next_user(socket_pool, echo):
    """With TLS the rest lies in OpenSSL, where the kernel does not see it."""
    pool = socket_pool()
    first = use(pool)
    with pool.item() as sock:
        sock.sendall(b"foreign\n")
        assert sock.recv(3) == b"for"
    assert use(pool) is not first
    whole(pool, echo)


def test_an_answer_that_comes_when_the_socket_is_idle_does_not_reach_the_next_user(
    socket_pool, echo
):
    pool = socket_pool()
    first = use(pool)
    with pool.item() as sock:
        sock.sendall(b"late\n")
    until(lambda: echo.owed)
    assert pool.free_items
    echo.answer()
    settle()
    assert use(pool) is not first
    whole(pool, echo)


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR])
def test_a_socket_that_its_user_has_shut_down_is_let_go(socket_pool, echo, how):
    """To send on it would be an error, and nothing can be seen of that by reading."""
    pool = socket_pool()
    first = use(pool)
    with pool.item() as sock:
        sock.shutdown(how)
    assert use(pool) is not first
    whole(pool, echo)


def test_a_socket_whose_tls_has_ended_is_let_go(certificate, trusting):
    """It is connected, and what its next user sent would go in the clear."""
    listener = socket.socket()
    listener.bind(LOOPBACK)
    listener.listen()
    peers = []

    def serve():
        while True:
            peers.append(
                tls_server(certificate).wrap_socket(listener.accept()[0], server_side=True)
            )
            assert peers[-1].recv(10) == b""
            peers[-1].unwrap()

    server = spawn(serve)
    address = ("localhost", listener.getsockname()[1])
    with SocketPool(address, ssl=trusting, max_size=1) as pool:
        with pool.item() as sock:
            sock.unwrap()
            sock.sendall(b"in the clear")
            assert until(lambda: readable(peers[0])) == b"i"
        with pool.item() as other:
            assert other is not sock
            until(lambda: len(peers) == 2)
    server.kill()
    for end in (listener, *peers):
        end.close()


def test_a_socket_that_another_greenlet_still_uses_is_let_go(socket_pool, echo):
    """Else that one would read the answer of the next user."""
    pool = socket_pool()
    with pool.item() as sock:
        reader = spawn(sock.recv, 100)
        settle()
    with pool.item() as sock:
        sock.sendall(b"mine\n")
        assert sock.recv(100) == b"mine\n"
    with pytest.raises(OSError, match="another greenlet"):
        reader.get(timeout=5)


@pytest.mark.parametrize("close", [lambda s: s.close(), lambda s: os.close(s.detach())])
def test_a_socket_that_its_user_has_closed_is_let_go(socket_pool, echo, close):
    pool = socket_pool()
    with pool.item() as sock:
        close(sock)
    assert use(pool)
    whole(pool, echo)


@pytest.mark.parametrize("error", [ValueError, ConnectionError, Timeout, gevent.GreenletExit])
def test_a_block_that_ends_with_an_error_costs_the_socket(socket_pool, echo, error):
    """A program that could not make sense of an answer may not have read all of it."""
    pool = socket_pool()
    first = use(pool)
    with pytest.raises(error), pool.item():
        raise error
    assert use(pool) is not first
    whole(pool, echo)


# Idle sockets


@pytest.mark.parametrize("how", ["closed", "half closed", "reset", "stray bytes"])
def test_a_socket_that_died_idle_is_not_handed_out(socket_pool, echo, how):
    pool = socket_pool()
    first = use(pool)
    (peer,) = echo.sockets
    if how == "closed":
        peer.shutdown(socket.SHUT_RDWR)
    elif how == "half closed":
        peer.shutdown(socket.SHUT_WR)
    elif how == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.shutdown(peer, socket.SHUT_RD)
        peer._real_close()
    else:
        peer.sendall(b"foreign\n")
    until(lambda: not pool.check(first))
    assert use(pool) is not first
    assert pool.current_size == 1


@pytest.mark.parametrize("kind", ["TLSv1_3"], indirect=True)
def test_a_healthy_tls_socket_with_tickets_is_kept(socket_pool, echo):
    """It is readable, but nobody is to read what is there."""
    pool = socket_pool()
    first = pool.get()
    until(lambda: readable(first))
    pool.put(first)
    with switches() as count:
        assert pool.get() is first
    assert count() == 0
    pool.put(first)
    assert use(pool) is first
    whole(pool, echo)


def test_return_check_and_destroy_never_switch(socket_pool):
    pool = socket_pool()
    sock = pool.get()
    with switches() as count:
        pool.put(sock)
        assert pool.get() is sock
        pool.destroy(sock)
    assert count() == 0
    pool.discard(sock)


# Letting go


def test_a_socket_with_files_made_of_it_is_closed(socket_pool, echo):
    """Its close() would wait for theirs, and they for the garbage collector."""
    pool = socket_pool()
    kept = []
    with suppress(Timeout), pool.item() as sock:
        kept.append(sock.makefile("rb"))
        fd = sock.fileno()
        raise Timeout(0)
    settle()
    assert sock.fileno() == -1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    until(lambda: echo.open() == 0)
    kept[0].close()


@tcp
def test_to_let_go_does_not_block_where_close_would(echo, caplog):
    """A user has asked close() to wait for a peer that does not read; it would stop the hub."""
    linger = 10
    with FaultProxy(echo.address, black_hole) as proxy, SocketPool(proxy.address) as pool:
        sock = pool.get()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger))
        sock.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                sock.send(b"x" * 100_000)
        begun = time.monotonic()
        pool.discard(sock)
        assert time.monotonic() - begun < linger
    assert caplog.text == ""


def test_close_leaves_no_connection(socket_pool, echo):
    pool = socket_pool(max_size=3)
    held = pool.get()
    pool.put(pool.get())
    pool.close()
    until(lambda: echo.open() == 1)
    pool.put(held)
    until(lambda: echo.open() == 0)


# Connecting


def test_refused_connections_come_out_as_they_are(tmp_path):
    for address, error in (
        (("127.0.0.1", free_port()), ConnectionRefusedError),
        (tmp_path / "nothing", FileNotFoundError),
        (("name.invalid", 80), OSError),
    ):
        with SocketPool(address) as pool:
            with pytest.raises(error):
                pool.get()
            assert pool.current_size == 0


@tls
def test_a_server_that_is_not_trusted_costs_no_slot(echo, certificate):
    with SocketPool(echo.address, ssl=True, server_hostname="localhost") as pool:
        with pytest.raises(ssl.SSLCertVerificationError):
            pool.get()
        assert pool.current_size == 0
    until(lambda: echo.open() == 0)


@tls
def test_a_server_with_another_name_is_refused(echo, trusting):
    pool = SocketPool(echo.address, ssl=trusting, server_hostname="example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        pool.get()


@tls
def test_the_host_is_the_name_unless_another_is_given(echo, trusting):
    with SocketPool(("localhost", echo.address[1]), ssl=trusting) as pool:
        assert use(pool).server_hostname == "localhost"


@tls
@pytest.mark.parametrize("context_class", [ssl.SSLContext, gevent.ssl.SSLContext])
def test_the_handshake_switches_greenlets_whoever_made_the_context(
    echo, certificate, context_class
):
    context = context_class(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate[0])
    with SocketPool(echo.address, ssl=context, server_hostname="localhost") as pool:
        assert use(pool)  # its server is a greenlet of this process


ours = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")


def open_files():
    return len(os.listdir("/proc/self/fd"))


@ours
@tcp
@pytest.mark.parametrize("ending", ["killed", "timed out", "connect_timeout"])
def test_interrupted_while_connecting_leaves_no_socket(echo, ending):
    with FaultProxy(echo.address) as proxy:
        proxy.never_accept()
        before = open_files()
        patience = 0.05 if ending == "connect_timeout" else 20
        with SocketPool(proxy.address, max_size=1, connect_timeout=patience) as pool:
            kept = interrupted(pool, ending)
            assert open_files() == before
            assert kept.dead
            proxy.listen()
            assert use(pool)


def interrupted(pool, ending, half_way=settle):
    """End a get half way; its error, and so its frames, stay alive."""
    getter = spawn(pool.get)
    half_way()
    assert pool.current_size == 1
    if ending != "connect_timeout":
        getter.kill(gevent.GreenletExit if ending == "killed" else Timeout(0))
    getter.join(5)
    assert pool.current_size == 0
    expected = {"killed": type(None), "timed out": Timeout, "connect_timeout": TimeoutError}
    assert isinstance(getter.exception, expected[ending])
    return getter


@ours
@tls
@pytest.mark.parametrize("ending", ["killed", "timed out", "connect_timeout"])
def test_interrupted_in_the_handshake_leaves_no_socket(echo, trusting, ending):
    tls_options = {"ssl": trusting, "server_hostname": "localhost", "max_size": 1}
    with FaultProxy(echo.address) as proxy:
        patience = 0.2 if ending == "connect_timeout" else 20
        with SocketPool(proxy.address, connect_timeout=patience, **tls_options) as pool:
            for k in (0, 1, 5, 100, 400):
                proxy.script = [hang(k)]
                kept = interrupted(pool, ending, proxy.stopped.wait)
                until(lambda: proxy.open == 0)
                proxy.resume()
                assert kept.dead
            pool._socket.connect_timeout = 5
            assert use(pool)
            until(lambda: proxy.open == 1)


@tcp
def test_creation_in_the_background_connects(socket_pool, echo):
    pool = socket_pool(min_size=3, max_size=5, max_creating=2)
    pool.wait_ready(timeout=5)
    until(lambda: len(echo.sockets) == 3)
    assert use(pool)


# Chaos, with memcached behind the socket


@pytest.fixture
def memcached_lines(memcached_server):
    memcached_server.call("set theirs 0 0 6\r\ntheirs")
    return memcached_server


def read_until_end(sock):
    reply = b""
    while not reply.endswith((b"END\r\n", b"STORED\r\n", b"ERROR\r\n")):
        data = sock.recv(4096)
        if not data:
            raise ConnectionResetError("the server hung up")
        reply += data
    return reply


def store(sock, tag):
    sock.sendall(f"set {tag} 0 0 {len(tag)}\r\n{tag}\r\n".encode())
    assert read_until_end(sock) == b"STORED\r\n"


def store_and_get(sock, tag):
    store(sock, tag)
    sock.sendall(f"get {tag}\r\n".encode())
    return read_until_end(sock).split(b"\r\n")[1].decode()


def exchange(sock, tag):
    sock.sendall(b"get theirs\r\n")
    read_until_end(sock)


@both_ways
@pytest.mark.parametrize("ending", ["killed", "timed out"])
def test_no_answer_reaches_another(memcached_lines, proxy_to, ending, stream):
    proxy = proxy_to(memcached_lines)
    with SocketPool(proxy.address, max_size=1) as pool:
        ordeal = Ordeal(pool, proxy, exchange, store_and_get)
        at_every_byte(ordeal, ending, stream)
        assert ordeal.foreign == []
        until(lambda: proxy.open <= 1)


def test_fifty_idle_sockets_and_a_server_that_is_back(start_server):
    server = start_server(MemcachedServer)
    with SocketPool(server.address, max_size=50) as pool:
        for item in [pool.get() for _ in range(50)]:
            pool.put(item)
        server.kill9()
        server.start()

        def user(name):
            with pool.item(timeout=10) as sock:
                return store_and_get(sock, f"tag-{name}")

        users = [spawn(user, name) for name in range(100)]
        gevent.joinall(users, timeout=20)
        assert [user.value for user in users] == [f"tag-{name}" for name in range(100)]
        assert [user.exception for user in users] == [None] * 100


def test_a_frozen_server_costs_no_slot(memcached_lines):
    with SocketPool(memcached_lines.address, max_size=3) as pool:

        def stuck():
            with Timeout(0.05), pool.item() as sock:
                exchange(sock, "tag")

        memcached_lines.freeze()
        users = [spawn(stuck) for _ in range(12)]
        gevent.joinall(users, timeout=10)
        memcached_lines.thaw()
        assert {type(user.exception) for user in users} == {Timeout}
        items = [pool.get(timeout=5) for _ in range(3)]
        assert [store_and_get(sock, "mine") for sock in items] == ["mine"] * 3
        until(lambda: memcached_lines.stats()["open"] == 3)
        for item in items:
            pool.put(item)


def test_a_server_that_never_answers_is_waited_for_no_longer_than_asked(memcached_lines, proxy_to):
    proxy = proxy_to(memcached_lines, black_hole)
    with SocketPool(proxy.address, max_size=1, timeout=0.05) as pool:
        for _ in range(3):
            with pytest.raises(TimeoutError), pool.item() as sock:
                exchange(sock, "tag")
        with pool.item(), pytest.raises(PoolTimeout):
            pool.get(timeout=0.01)
        assert pool.current_size == 1


def test_three_children_at_work(memcached_lines):
    with SocketPool(memcached_lines.address, max_size=3) as pool:
        held = pool.get()
        pool.put(pool.get())

        def work(who):
            wrong = 0
            for n in range(60):
                with pool.item() as sock:
                    wrong += store_and_get(sock, f"{who}-{n}") != f"{who}-{n}"
            return wrong

        def child(who):
            wrong = work(who)
            with suppress(OSError):
                wrong += store_and_get(held, f"{who}-held") != "nothing at all"
            return wrong

        children = [Child(lambda n=n: child(f"child{n}"), gevent.os.fork) for n in range(3)]
        assert work("parent") == 0
        assert store_and_get(held, "mine") == "mine"
        assert [child.result() for child in children] == [0, 0, 0]
        pool.put(held)
        assert not pool.stats().destroyed


def test_a_tls_socket_of_the_parents_stays_the_parents(certificate, trusting):
    """What a child does with it ends there."""
    listener = socket.socket()
    listener.bind(LOOPBACK)
    listener.listen()
    with (
        Echo(listener, tls_server(certificate)) as echo,
        SocketPool(("localhost", echo.address[1]), ssl=trusting, max_size=1) as pool,
    ):
        first = use(pool)

        def child():
            with suppress(OSError):
                first.sendall(b"child\n")
            first.close()
            return pool.current_size

        assert Child(child, gevent.os.fork).result() == 0
        assert use(pool) is first


@pytest.mark.parametrize("kind", ["tcp", "unix", "TLSv1_3"], indirect=True)
def test_storm_of_kills_on_tagged_questions(socket_pool, echo, kind):
    """Thousands of questions, about every third interrupted: no foreign answer, no lost slot."""
    pool = socket_pool(max_size=5)

    def once(storm, tag):
        with suppress(ConnectionError), pool.item() as sock:
            storm.hear(tag, ask(sock, tag))
            if storm.chance.random() < 0.3:
                gevent.sleep(0)

    KillStorm(kind, once).rage(pool, answers=500 if kind == "TLSv1_3" else 1500, kills=300)
    whole(pool, echo)
