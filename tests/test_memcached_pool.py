"""MemcachedPool on a real memcached: whatever one user does, the next one finds nothing of it."""

import gc
import logging
import ssl
from contextlib import nullcontext, suppress
from functools import partial

import gevent
import gevent.socket
import gevent.ssl
import pymemcache
import pytest
from gevent import Timeout
from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.client.retrying import RetryingClient
from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheIllegalInputError,
    MemcacheUnexpectedCloseError,
    MemcacheUnknownCommandError,
)

from gpools import NotInUse, PoolClosed, PoolError, PoolTimeout
from gpools.adapters import MemcachedPool
from gpools.adapters.memcached import (
    ClientPool,
    ClientPoolTimeout,
    FairHashClient,
    FairPooledClient,
)
from tests.databases import MemcachedServer
from tests.proxy import REPLY, REQUEST, black_hole, close, hang
from tests.servers import free_port
from tests.slots import assert_slots_are_taken_back, slotted
from tests.switching import switches
from tests.test_byte_boundaries import (
    NaivePool,
    Ordeal,
    at_every_byte,
    both_ways,
    every_ending,
)
from tests.test_fork import Child
from tests.tls import make_certificate
from tests.waiting import settle, spawn, until


@pytest.fixture
def memcached_pool():
    """`memcached_pool(server, ...)`: a MemcachedPool of one client, closed after the test."""
    pools = []

    def make(server, **options):
        options = {"max_size": 1} | options
        pools.append(MemcachedPool((server.host, server.port), **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def naive(server, **options):
    return Client((server.host, server.port), socket_module=gevent.socket, **options)


def ask(client, tag):
    """Have the server say the tag."""
    assert client.set(tag, tag, noreply=False)
    answer = client.get(tag)
    return None if answer is None else answer.decode()


def port(client):
    """Tell which connection this is."""
    return client.sock.getsockname()[1]


def next_port(pool):
    with pool.item() as client:
        assert ask(client, "who") == "who"
        return port(client)


def whole(pool, server):
    """Assert that the pool has all its slots, each item a connection, and the server no more."""
    items = [pool.get(timeout=5) for _ in range(pool.max_size)]
    assert len({port(item) for item in items}) == pool.max_size
    for number, item in enumerate(items):
        assert ask(item, f"whole-{number}") == f"whole-{number}"
    assert pool.free() == 0
    until(lambda: server.stats()["open"] == pool.max_size)
    for item in items:
        pool.put(item)
    assert pool.free() == pool.current_size == pool.max_size


# Making clients


def test_a_client_is_pymemcaches_and_connected(memcached_server, memcached_pool):
    pool = memcached_pool(memcached_server, key_prefix=b"mine:", timeout=7)
    with pool.item() as client:
        assert isinstance(client, pymemcache.Client)
        assert client.sock.gettimeout() == client.timeout == 7
        client.set("a", "b", noreply=False)
    assert memcached_server.call("get mine:a").startswith("VALUE mine:a 0 1")


def test_the_sockets_are_gevents_in_a_program_that_is_not_patched(memcached_server, memcached_pool):
    with memcached_pool(memcached_server).item() as client:
        assert isinstance(client.sock, gevent.socket.socket)


def test_an_address_in_one_string_and_a_unix_socket(memcached_server, start_server):
    with MemcachedPool(f"127.0.0.1:{memcached_server.port}") as pool:
        assert next_port(pool)
    server = start_server(UnixMemcached)
    with MemcachedPool(str(server.path)) as pool, pool.item() as client:
        assert ask(client, "tag") == "tag"


class UnixMemcached(MemcachedServer):
    @property
    def path(self):
        return self.directory / "socket"

    def command(self):
        command = super().command()
        at = command.index("-l")
        return [*command[:at], *command[at + 4 :], "-s", self.path]

    def answers(self):
        with gevent.socket.socket(gevent.socket.AF_UNIX) as client:
            client.connect(str(self.path))
            client.sendall(b"version\r\n")
            return client.recv(100).startswith(b"VERSION")


@pytest.mark.parametrize("context_class", [ssl.SSLContext, gevent.ssl.SSLContext])
def test_tls_switches_greenlets_whoever_made_the_context(
    start_server, tmp_path, memcached_pool, context_class
):
    cert, key = make_certificate(tmp_path)
    server = start_server(TlsMemcached, cert=cert, key=key)
    context = context_class(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cert)
    pool = memcached_pool(server, tls_context=context, timeout=5)
    with pool.item() as client:
        assert isinstance(client.sock, gevent.ssl.SSLSocket)
        first = port(client)
        client.set("key", "value")  # without a reply
    assert next_port(pool) == first
    with pool.item() as client:
        with Timeout(0.05, False):
            server.freeze()
            client.get("key")
        server.thaw()
        assert client.get("key") == b"value"
    assert next_port(pool) != first


def test_a_tls_client_whose_server_reads_nothing_is_not_kept(
    start_server, tmp_path, memcached_pool
):
    """There a send that would block says so in another way."""
    cert, key = make_certificate(tmp_path)
    server = start_server(TlsMemcached, cert=cert, key=key)
    context = ssl.create_default_context(cafile=cert)
    pool = memcached_pool(server, tls_context=context)
    with pool.item() as client:
        server.freeze()
        client.set("key", "value")
        client.sock.settimeout(0)
        while client.sock.send(b"x" * 10_000):
            pass
    server.thaw()
    assert pool.current_size == 0
    assert next_port(pool)


class TlsMemcached(MemcachedServer):
    def __init__(self, cert, key, port=None):
        super().__init__(port)
        self.cert, self.key = cert, key

    def command(self):
        return [*super().command(), "-Z", "-o", f"ssl_chain_cert={self.cert},ssl_key={self.key}"]

    def answers(self):
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.cert)
        with (
            gevent.socket.create_connection(self.address, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"version\r\n")
            return client.recv(100).startswith(b"VERSION")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"no_such_option": 1}, TypeError),
        ({"key_prefix": 3}, TypeError),
        ({"max_size": 0}, ValueError),
        ({"server": 11211}, ValueError),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(wrong, error):
    with pytest.raises(error):
        MemcachedPool(**{"server": "127.0.0.1:11211"} | wrong)


def test_clients_of_ones_own(memcached_server):
    class Shop(Client):
        def visit(self):
            return self.incr("visits", 1)

    def create():
        return Shop((memcached_server.host, memcached_server.port), timeout=3)

    with (
        MemcachedPool(memcached_server.address, max_size=1, create=create) as pool,
        pool.item() as shop,
    ):
        shop.set("visits", 4, noreply=False)
        assert shop.visit() == 5
        assert isinstance(shop, Shop)


@pytest.mark.parametrize("other", ["pooled", "hash", "retrying", "something else"])
def test_what_is_not_one_client_is_refused(memcached_server, other, caplog):
    address = memcached_server.address
    make = {
        "pooled": lambda: PooledClient(address),
        "hash": lambda: HashClient([address]),
        "retrying": lambda: RetryingClient(Client(address)),
        "something else": object,
    }[other]
    with MemcachedPool(address, create=make) as pool:
        with pytest.raises(PoolError, match=r"takes pymemcache\.Client"):
            pool.get()
        assert pool.current_size == 0
    assert caplog.text == ""


def test_creation_in_the_background_connects(memcached_server, proxy_to):
    proxy = proxy_to(memcached_server)
    with MemcachedPool(proxy.address, min_size=3, max_size=5, max_creating=2) as pool:
        pool.wait_ready(timeout=5)
        assert proxy.made == 3
        for item in [pool.get() for _ in range(3)]:
            pool.put(item)
        assert proxy.made == 3
        proxy.refuse()
        proxy.close_all()
        settle()
        with pytest.raises(ConnectionRefusedError):
            pool.get(timeout=5)


# What a user leaves behind


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", 0.001),
        ("connect_timeout", 0.001),
        ("ignore_exc", True),
        ("default_noreply", False),
        ("key_prefix", b"foreign:"),
        ("serde", pymemcache.serde.pickle_serde),
        ("allow_unicode_keys", True),
        ("encoding", "utf-16"),
        ("get", lambda key: b"foreign"),
        ("tenant", "foreign"),
    ],
)
def test_a_changed_attribute_does_not_reach_the_next_user(
    memcached_server, memcached_pool, name, value
):
    pool = memcached_pool(memcached_server, timeout=8)
    with pool.item() as client:
        first = port(client)
        before = getattr(client, name, "missing")
        setattr(client, name, value)
    with pool.item() as client:
        assert port(client) == first
        assert getattr(client, name, "missing") == before
        assert ask(client, "tag") == "tag"


def test_what_a_user_puts_into_a_slot_reaches_nobody(memcached_server, memcached_pool):
    make = partial(slotted(Client), memcached_server.address)
    assert_slots_are_taken_back(memcached_pool(memcached_server, create=make))


def test_a_timeout_set_on_the_socket_does_not_reach_the_next_user(memcached_server, memcached_pool):
    pool = memcached_pool(memcached_server, timeout=8)
    with pool.item() as client:
        first = port(client)
        client.sock.settimeout(0)
    with pool.item() as client:
        assert (port(client), client.sock.gettimeout()) == (first, 8)


def test_a_connection_to_another_server_does_not_reach_the_next_user(
    memcached_server, memcached_pool, start_server
):
    other = start_server(MemcachedServer)
    other.call("set key 0 0 7\r\nforeign")
    pool = memcached_pool(memcached_server)
    with pool.item() as client:
        client.server = other.address
        client.close()
        assert client.get("key") == b"foreign"
    with pool.item() as client:
        assert client.get("key") is None
        own = client.server
        client.server = other.address
        client.close()
        assert client.get("key") == b"foreign"
        client.server = own
    with pool.item() as client:
        assert client.get("key") is None


def test_a_raw_command_costs_the_connection(memcached_server, memcached_pool):
    """It may have turned it into a stream of logs, or have asked for more than it read."""
    pool = memcached_pool(memcached_server)
    memcached_server.call("set a 0 0 1\r\nx")
    with pool.item() as client:
        first = port(client)
        assert client.raw_command("get a").startswith(b"VALUE")
    with pool.item() as client:
        assert port(client) != first
        assert ask(client, "tag") == "tag"
        client.raw_command("watch mutations")
    assert next_port(pool)
    whole(pool, memcached_server)


def test_quit_costs_the_connection_and_no_slot(memcached_server, memcached_pool):
    pool = memcached_pool(memcached_server)
    for _ in range(3):
        with pool.item() as client:
            client.quit()
    whole(pool, memcached_server)


def test_a_command_that_is_under_way_as_the_block_ends(memcached_server, memcached_pool):
    pool = memcached_pool(memcached_server)
    memcached_server.freeze()
    with pool.item() as client:
        helper = spawn(client.get, "key")
        settle()
    assert pool.current_size == 0
    memcached_server.thaw()
    assert next_port(pool)
    assert isinstance(helper.exception, OSError)


def test_a_client_that_is_let_go_does_not_connect_again(memcached_server, memcached_pool):
    pool = memcached_pool(memcached_server)
    client = pool.get()
    pool.discard(client)
    with pytest.raises(ConnectionError, match="for good"):
        client.get("key")


# Errors


def test_errors_of_the_application_keep_the_connection(memcached_server, memcached_pool):
    pool = memcached_pool(memcached_server)
    first = next_port(pool)
    with pytest.raises(ZeroDivisionError), pool.item():
        raise ZeroDivisionError
    with pytest.raises(MemcacheIllegalInputError), pool.item() as client:
        client.get("a key with blanks")
    with pytest.raises(FileNotFoundError), pool.item():
        open("/no such file")  # noqa: SIM115
    assert next_port(pool) == first


def test_an_error_that_the_server_tells_gives_the_next_user_a_new_connection(
    memcached_server, memcached_pool
):
    """pymemcache closes its socket at each."""
    pool = memcached_pool(memcached_server)
    memcached_server.call("set word 0 0 1\r\nx")
    first = next_port(pool)
    with pytest.raises(MemcacheClientError), pool.item() as client:
        client.incr("word", 1)
    second = next_port(pool)
    assert second != first
    with pool.item() as client, suppress(MemcacheClientError):
        client.incr("word", 1)
    assert next_port(pool) != second
    whole(pool, memcached_server)


@pytest.mark.parametrize("how", ["the server hangs up", "too slow", "interrupted"])
def test_errors_that_ignore_exc_swallows_leave_nothing(memcached_server, proxy_to, how):
    proxy = proxy_to(memcached_server, close(3) if how == "the server hangs up" else hang(3))
    memcached_server.call("set key 0 0 7\r\nforeign")
    timeout = 0.05 if how == "too slow" else 5
    with MemcachedPool(proxy.address, max_size=1, ignore_exc=True, timeout=timeout) as pool:
        with pool.item() as client:
            with Timeout(0.05 if how == "interrupted" else 5, False):
                assert client.get("key") is None
            assert client.sock is None
        proxy.fault = close(10**6)
        proxy.resume()
        with pool.item() as client:
            assert client.sock is not None
            assert client.get("other") is None
            assert ask(client, "tag") == "tag"
        until(lambda: proxy.open == 1)
        assert pool.current_size == 1


def test_a_client_that_another_greenlet_still_uses_does_not_come_back(
    memcached_server, memcached_pool
):
    pool = memcached_pool(memcached_server)
    assert next_port(pool)
    memcached_server.freeze()
    with pool.item() as client:
        user = spawn(client.get, "theirs")
        settle()
        client.set("mine", "1")  # has no reply to wait for
    following = spawn(next_port, pool)
    settle()
    memcached_server.thaw()
    assert following.get(timeout=5)
    with pytest.raises(OSError, match="another greenlet"):
        user.get(timeout=5)


# noreply


def malformed(client):
    """Have the server tell an error although no reply was asked for.

    pymemcache lets an empty key through, and the server takes the value for a command.
    """
    client.set("", "x" * 10, noreply=True)


def test_a_naive_pool_hands_on_the_error_of_a_command_without_reply(memcached_server):
    client = naive(memcached_server)
    pool = NaivePool(client)
    with pool.item() as client:
        malformed(client)
    with pytest.raises(MemcacheUnknownCommandError), pool.item() as client:
        client.get("innocent")
    client.close()


def test_the_error_of_a_command_without_reply_is_not_the_next_users(
    memcached_server, memcached_pool
):
    pool = memcached_pool(memcached_server)
    for _ in range(20):  # at once, and when it has come
        with pool.item() as client:
            malformed(client)
        assert next_port(pool)
        with pool.item() as client:
            malformed(client)
            sock = client.sock
        until(lambda sock=sock: sock.fileno() < 0 or not sock_quiet(sock))
        assert next_port(pool)
    whole(pool, memcached_server)


def sock_quiet(sock):
    sock.settimeout(0)
    try:
        return not sock.recv(1000, gevent.socket.MSG_PEEK)
    except BlockingIOError:
        return True


@pytest.mark.parametrize("check_after", [0, None])
def test_nor_is_one_that_is_still_on_its_way(memcached_server, proxy_to, check_after):
    """At every byte of "ERROR, VERSION" the next user comes, and then the rest."""
    proxy = proxy_to(memcached_server)
    with MemcachedPool(proxy.address, max_size=1, check_after=check_after) as pool:
        for k in range(26):
            next_port(pool)
            link = proxy.links[-1]
            link.fault = hang(len(link.reply) + k)
            with pool.item() as client:
                malformed(client)
            assert proxy.stopped.wait(0.2) or k > 20
            settle()
            user = spawn(next_port, pool)
            settle()
            proxy.resume()
            assert user.get(timeout=5)
        assert pool.current_size == 1


@pytest.mark.parametrize("nothing", [{}, []], ids=["set", "delete"])
def test_a_command_about_nothing_is_no_sign(memcached_server, memcached_pool, nothing):
    """pymemcache sends no byte and reads none, but returns as if the server had answered."""
    pool = memcached_pool(memcached_server)
    assert next_port(pool)
    memcached_server.freeze()
    with pool.item() as client:
        malformed(client)
        if nothing == {}:
            client.set_many({}, noreply=False)
        else:
            client.delete_many(iter([]), noreply=False)
    user = spawn(next_port, pool)
    settle()
    memcached_server.thaw()
    assert user.get(timeout=5)


def test_what_comes_behind_the_sign_is_not_the_next_users(memcached_server, proxy_to):
    proxy = proxy_to(memcached_server)
    with MemcachedPool(proxy.address, max_size=1, check_after=None) as pool:
        first = next_port(pool)
        link = proxy.links[0]
        link.fault = hang(len(link.reply))
        with pool.item() as client:
            client.set("key", "value")
        assert proxy.stopped.wait(5)
        link.client.sendall(b"VERSION 1\r\nVALUE foreign\r\n")
        assert next_port(pool) != first


def test_what_is_there_as_a_client_comes_back_is_not_the_next_users(memcached_server, proxy_to):
    proxy = proxy_to(memcached_server)
    with MemcachedPool(proxy.address, max_size=1, check_after=None) as pool:
        with pool.item() as client:
            first = port(client)
            assert ask(client, "tag") == "tag"
            proxy.links[0].client.sendall(b"VALUE foreign\r\n")
            until(lambda: readable(client.sock))
        assert next_port(pool) != first


def readable(sock):
    with suppress(BlockingIOError):
        return sock._sock.recv(1, gevent.socket.MSG_PEEK)


def test_the_sign_waits_for_no_ack(memcached_server, memcached_pool):
    """Else each command after one without reply would take 40 ms."""
    with memcached_pool(memcached_server, no_delay=False).item() as client:
        assert client.sock.getsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY)


def test_a_command_without_reply_and_without_error_keeps_the_connection(
    memcached_server, memcached_pool
):
    pool = memcached_pool(memcached_server)
    first = next_port(pool)
    for turn in range(20):
        with pool.item() as client:
            client.set("key", f"value {turn}")
            client.delete("nothing")
        if turn % 2:
            settle()
        with pool.item() as client:
            assert client.get("key") == f"value {turn}".encode()
            client.touch("key")
    assert next_port(pool) == first
    with pool.item() as client:  # none was ever in doubt here
        client.set("key", "value", noreply=False)
    assert next_port(pool) == first


def test_return_and_check_never_switch(memcached_server, memcached_pool):
    pool = memcached_pool(memcached_server)
    client = pool.get()
    client.set("key", "value")
    with switches() as count:
        pool.put(client)
        assert pool.check(client)
    assert count() == 0
    until(lambda: pool.check(client) and client._heard is None)  # the sign has come
    with switches() as count:
        assert pool.check(client)
        assert pool.get() is client
    assert count() == 0
    pool.put(client)
    assert pool.check(client)
    with switches() as count:
        client.sock.close()
        assert not pool.check(client)
    assert count() == 0


def test_a_sign_that_does_not_come_is_waited_for_no_longer_than_the_timeout(
    memcached_server, memcached_pool
):
    pool = memcached_pool(memcached_server, timeout=0.1)
    ignoring = memcached_pool(memcached_server, timeout=0.1, ignore_exc=True)
    for each in (pool, ignoring):
        next_port(each)
    memcached_server.freeze()
    for each in (pool, ignoring):
        with each.item() as client:
            client.set("key", "value")
    with pytest.raises(TimeoutError), pool.item() as client:
        client.get("key")
    with ignoring.item() as client:
        assert client.get("key") is None
    memcached_server.thaw()
    pool.close()
    whole(ignoring, memcached_server)


@pytest.mark.parametrize("ending", ["killed", "timed out", "goes on"])
def test_interrupted_while_it_waits_for_the_sign(memcached_server, memcached_pool, ending):
    pool = memcached_pool(memcached_server)
    next_port(pool)
    memcached_server.freeze()
    with pool.item() as client:
        client.set("key", "value")

    def victim():
        with pool.item() as client:
            try:
                client.get("key")
            except Timeout:
                if ending != "goes on":
                    raise
                memcached_server.thaw()
                return ask(client, "tag")

    user = spawn(victim)
    settle()
    user.kill(gevent.GreenletExit if ending == "killed" else Timeout(0))
    memcached_server.thaw()
    assert next_port(pool)
    if ending == "goes on":
        assert user.get() == "tag"
    else:
        assert isinstance(user.exception or user.value, (Timeout, gevent.GreenletExit))
    whole(pool, memcached_server)


def test_a_client_whose_server_reads_nothing_is_not_kept(memcached_server, proxy_to):
    """There is no room even for the question whether all is well."""
    proxy = proxy_to(memcached_server, black_hole)
    with MemcachedPool(proxy.address, max_size=1, timeout=0.2) as pool:
        with pool.item() as client:
            with suppress(TimeoutError):
                client.set("key", "x" * 20_000_000)
            assert client.sock is None  # pymemcache's own doing
        with pool.item() as client:
            client.set("key", "value")
            client.sock.settimeout(0)
            with suppress(BlockingIOError):
                while True:
                    client.sock.send(b"x" * 100_000)
        assert pool.current_size == 0


# At every byte


def get(client, tag):
    client.get("theirs")


def get_many(client, tag):
    client.get_many(["theirs", "others", tag])


def store(client, tag):
    client.set(tag, tag, noreply=False)


def cas(client, tag):
    _, token = client.gets("theirs")
    client.cas("theirs", "theirs", token)


def incr(client, tag):
    client.incr("number", 1)


def delete_many(client, tag):
    client.delete_many([tag, "nothing"], noreply=False)


def mute(client, tag):
    client.set(tag, tag)
    client.delete("nothing")
    client.get("theirs")


@pytest.mark.parametrize("exchange", [get, get_many, store, cas, incr, delete_many, mute])
@both_ways
@every_ending
def test_no_reply_reaches_another(memcached_server, proxy_to, ending, stream, exchange):
    proxy = proxy_to(memcached_server)
    for key in ("theirs", "others"):
        memcached_server.call(f"set {key} 0 0 6\r\n{key}")
    memcached_server.call("set number 0 0 6\r\n100000")
    with MemcachedPool(proxy.address, max_size=1) as pool:
        ordeal = Ordeal(pool, proxy, exchange, ask)
        at_every_byte(ordeal, ending, stream)
        assert ordeal.foreign == []
        until(lambda: proxy.open <= 1)
    whole_proxy(proxy, memcached_server)


def whole_proxy(proxy, server):
    with MemcachedPool(proxy.address, max_size=2) as pool:
        until(lambda: proxy.open == 0)
        whole(pool, server)


@pytest.mark.parametrize("ending", ["killed", "timed out", "leaves"])
def test_a_naive_pool_gives_numbers_of_others(memcached_server, proxy_to, ending):
    """So the test above can fail, and this is what the pool is for."""
    proxy = proxy_to(memcached_server)
    for name in ("theirs", "mine"):
        memcached_server.call(f"set {name} 0 0 4\r\n{1000 if name == 'mine' else 5000}")
    client = naive(proxy, timeout=5)
    pool = NaivePool(client)
    ordeal = Ordeal(pool, proxy, lambda client, tag: client.incr("theirs", 1), None)
    with pool.item() as client:
        assert client.incr("mine", 1) == 1001
    link = proxy.links[-1]
    link.fault = hang(len(link.reply), REPLY)
    victim = spawn(ordeal.victim, "waiting", ending, "tag")
    assert proxy.stopped.wait(10)
    victim.kill(gevent.GreenletExit if ending == "killed" else Timeout(0))
    proxy.resume()
    with pool.item() as client:
        assert client.incr("mine", 1) == 5001  # and not 1002
    assert victim.exception is None or isinstance(victim.exception, Timeout)
    client.close()


@pytest.mark.parametrize("ending", ["killed", "timed out", "goes on", "leaves"])
def test_interrupted_while_writing_a_large_value(memcached_server, proxy_to, ending):
    proxy = proxy_to(memcached_server)
    big = "x" * 900_000

    def exchange(client, tag):
        client.set(tag, big, noreply=False)

    with MemcachedPool(proxy.address, max_size=1) as pool:
        ordeal = Ordeal(pool, proxy, exchange, ask)
        for k in (0, 1, 10, 31, 40, 1000, 65536, 500_000, 899_999):
            ordeal.strike(ending, REQUEST, k)
        assert ordeal.foreign == []
        until(lambda: proxy.open <= 1)


def test_a_kill_while_connecting_leaves_no_connection(memcached_server, proxy_to):
    proxy = proxy_to(memcached_server)
    proxy.never_accept()
    with MemcachedPool(proxy.address, max_size=1) as pool:
        for _ in range(5):
            getter = spawn(pool.get)
            settle()
            connecting = [s for s in gc.get_objects() if type(s) is gevent.socket.socket]
            ours = [s for s in connecting if s.fileno() >= 0 and s not in proxy._crowd]
            getter.kill()
            assert pool.current_size == 0
            still = [s for s in ours if s.fileno() >= 0 and s is not proxy._listener]
            assert len(still) < len(ours)
        proxy.listen()
        assert next_port(pool)


# Servers that misbehave


@pytest.mark.parametrize("how", ["closed", "reset", "stray bytes"])
def test_a_connection_that_died_idle_is_not_handed_out(memcached_server, proxy_to, how):
    proxy = proxy_to(memcached_server)
    with MemcachedPool(proxy.address, max_size=1) as pool:
        first = next_port(pool)
        if how == "closed":
            proxy.close_all()
        elif how == "reset":
            proxy.reset_all()
        else:
            proxy.links[0].client.sendall(b"VALUE foreign 0 7\r\n")
        assert next_port(pool) != first
        assert pool.current_size == 1


def test_three_children_at_work(memcached_server):
    """Every connection sees one process only."""
    with MemcachedPool(memcached_server.address, max_size=3) as pool:
        held = pool.get()
        pool.put(pool.get())
        with pool.item() as client:
            client.set("key", "value")  # its sign is on its way as the children are made

        def work(who):
            wrong = 0
            for n in range(60):
                with pool.item() as client:
                    tag = f"{who}-{n}"
                    wrong += ask(client, tag) != tag
                    client.set(tag, "x")
            return wrong

        def child(who):
            wrong = work(who)
            with suppress(OSError, MemcacheUnexpectedCloseError):
                wrong += ask(held, f"{who}-held") != f"{who}-held"
            return wrong

        children = [Child(lambda n=n: child(f"child{n}"), gevent.os.fork) for n in range(3)]
        assert work("parent") == 0
        assert ask(held, "mine") == "mine"
        assert [child.result() for child in children] == [0, 0, 0]
        pool.put(held)
        assert not pool.stats().destroyed


def test_close_leaves_no_connection(memcached_server, memcached_pool):
    pool = memcached_pool(memcached_server, max_size=3)
    held = pool.get()
    pool.put(pool.get())
    pool.close()
    until(lambda: memcached_server.stats()["open"] == 1)
    pool.put(held)
    until(lambda: memcached_server.stats()["open"] == 0)
    with pytest.raises(PoolClosed):
        pool.get()


# PooledClient


def pooled(server, **options):
    return PooledClient(server.address, socket_module=gevent.socket, **options)


def drain(client, times, seconds=0.02):
    """Have commands end by a Timeout."""
    for _ in range(times):
        with pytest.raises(Timeout), Timeout(seconds):
            client.get("key")


def test_pymemcaches_own_pool_is_exhausted_for_ever(memcached_server):
    """After as many Timeouts as it has places; so the next test can fail."""
    client = pooled(memcached_server, max_pool_size=3)
    memcached_server.freeze()
    drain(client, 3)
    memcached_server.thaw()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="Too many objects"):
            client.get("key")
    client.close()


@pytest.fixture(params=["client_pool", "FairPooledClient"])
def fair(request):
    """`fair(server, max_pool_size=3)`: a PooledClient on our pool, made either way."""
    made = []

    def make(server, timeout=None, get_timeout=None, **options):
        options["timeout"] = timeout
        if request.param == "client_pool":
            client = pooled(server, **options)
            client.client_pool = ClientPool(client, timeout=get_timeout)
        else:
            client = FairPooledClient(server.address, get_timeout=get_timeout, **options)
        made.append(client)
        return client

    yield make
    for client in made:
        client.client_pool.pool.close()


def test_ours_is_not(memcached_server, fair):
    client = fair(memcached_server, max_pool_size=3)
    memcached_server.freeze()
    drain(client, 10)
    memcached_server.thaw()
    assert client.client_pool.used == ()
    for tag in "abcdef":
        assert ask(client, tag) == tag
    until(lambda: memcached_server.stats()["open"] == 1)


def test_the_whole_interface_of_a_pooled_client(memcached_server, fair):
    client = fair(memcached_server, max_pool_size=2)
    assert client.set("a", "1", noreply=False)
    assert client.get("a") == b"1"
    assert client.incr("a", 2) == 3
    assert client.decr("a", 1) == 2
    assert client.set_many({"b": "2", "c": "3"}, noreply=False) == []
    assert client.get_many(["b", "c"]) == {"b": b"2", "c": b"3"}
    _, token = client.gets("b")
    assert client.cas("b", "4", token) is True
    assert list(client.gets_many(["b"])) == ["b"]
    assert client.add("b", "x", noreply=False) is False
    assert client.append("b", "5", noreply=False)
    assert client.prepend("b", "3", noreply=False)
    assert client.replace("b", "6", noreply=False)
    assert client.touch("b", 100, noreply=False)
    assert client.delete("b", noreply=False)
    assert client.delete_many(["c"], noreply=False)
    assert client.version()
    assert client.stats()[b"pid"] == memcached_server.pid
    assert client.raw_command("mn") == b"MN"
    client["d"] = "7"
    assert client["d"] == b"7"
    del client["d"]
    client.quit()
    assert client.flush_all(noreply=False)
    with pytest.raises(MemcacheIllegalInputError):
        client.get("a key with blanks")
    client.close()
    until(lambda: memcached_server.stats()["open"] == 0)
    assert client.get("a") is None  # and goes on, as pymemcache's does
    assert client.client_pool.used == ()
    assert len(client.client_pool.free) == 1


def test_a_hundred_greenlets_on_three_clients(memcached_server, fair):
    before = memcached_server.stats()["accepted"]
    client = fair(memcached_server, max_pool_size=3)

    def user(name):
        for turn in range(3):
            tag = f"{name}-{turn}"
            assert ask(client, tag) == tag
            client.set(tag, "x")

    users = [spawn(user, name) for name in range(100)]
    gevent.joinall(users, timeout=30, raise_error=True)
    # And two that asked for the numbers.
    assert memcached_server.stats()["accepted"] - before <= 3 + 1


def test_who_waits_is_served_in_order(memcached_server, fair):
    client = fair(memcached_server, max_pool_size=1)
    served = []
    held = client.client_pool.get()

    def user(name):
        client.get("key")
        served.append(name)

    users = [spawn(user, name) for name in range(20)]
    settle()
    client.client_pool.release(held)
    gevent.joinall(users, timeout=10, raise_error=True)
    assert served == list(range(20))


def test_a_wait_that_is_too_long_is_the_error_pymemcache_raises(memcached_server, fair):
    client = fair(memcached_server, max_pool_size=1, get_timeout=0.01)
    with client.client_pool.get_and_release():
        for wait in (client.client_pool.get, lambda: client.get("key")):
            with pytest.raises(RuntimeError, match="1 of 1 in use") as caught:
                wait()
            assert isinstance(caught.value, ClientPoolTimeout)
            assert isinstance(caught.value, PoolError)
            assert not isinstance(caught.value, OSError)
            assert isinstance(caught.value.__cause__, PoolTimeout)
    assert client.get("key") is None


def test_the_interface_of_an_object_pool(memcached_server, fair):
    client = fair(memcached_server, max_pool_size=2, pool_idle_timeout=60)
    pool = client.client_pool
    assert (pool.max_size, pool.idle_timeout, pool.used, pool.free) == (2, 60, (), ())
    one, two = pool.get(), pool.get()
    assert set(pool.used) == {one, two}
    pool.release(one)
    assert (pool.used, pool.free) == ((two,), (one,))
    pool.destroy(two)
    assert (pool.used, pool.free) == ((), (one,))
    pool.release(two)
    pool.destroy(two)
    for give_back in (pool.release, pool.destroy):
        with pytest.raises(NotInUse):
            give_back(two, silent=False)
    with pytest.raises(KeyError), pool.get_and_release(destroy_on_fail=True):
        raise KeyError
    with pytest.raises(Timeout), pool.get_and_release():
        raise Timeout(0)
    assert (pool.used, pool.free) == ((), ())
    assert repr(pool) == repr(pool.pool) == "<ClientPool 0 idle, 0 in use, 0 waiting, max 2>"
    assert fair(memcached_server).client_pool.idle_timeout == 0


def test_clear_spares_those_in_use_until_they_come_back(memcached_server, fair):
    """pymemcache's closes them under their users."""
    client = fair(memcached_server, max_pool_size=2)
    held = client.client_pool.get()
    assert ask(held, "a") == "a"
    client.get("key")
    client.close()
    assert client.client_pool.free == ()
    assert ask(held, "b") == "b"
    client.client_pool.release(held)
    assert client.client_pool.free == ()


def test_ignore_exc_makes_a_server_that_is_down_a_miss(fair):
    class Nowhere:
        address = ("127.0.0.1", free_port())

    client = fair(Nowhere, max_pool_size=1, ignore_exc=True)
    assert client.get("key", "default") == "default"
    assert client.get_many(["key"]) == {}
    with pytest.raises(ConnectionRefusedError):
        client.set("key", "value")
    assert client.client_pool.used == ()


@both_ways
@pytest.mark.parametrize("ending", ["killed", "timed out"])
def test_a_pooled_client_at_every_byte(memcached_server, proxy_to, fair, ending, stream):
    proxy = proxy_to(memcached_server)
    memcached_server.call("set theirs 0 0 6\r\ntheirs")
    client = fair(proxy, max_pool_size=1)
    pool = Unpooled(client)
    ordeal = Ordeal(pool, proxy, lambda client, tag: client.get("theirs"), ask)
    at_every_byte(ordeal, ending, stream)
    assert ordeal.foreign == []
    assert client.client_pool.used == ()


class Unpooled:
    """A client that many share, in the place of a pool of clients."""

    max_size = 1

    def __init__(self, client):
        self.client = client

    def item(self, timeout=None):
        return nullcontext(self.client)


def test_a_dropped_fair_client_leaves_no_connection(memcached_server):
    client = FairPooledClient(memcached_server.address, max_pool_size=3)
    client.get("key")
    client.client_pool.pool.close()
    until(lambda: memcached_server.stats()["open"] == 0)


# HashClient


def test_a_hash_client_of_fair_pools(memcached_server, start_server):
    other = start_server(MemcachedServer)
    servers = [memcached_server.address, other.address]
    client = FairHashClient(servers, max_pool_size=2, timeout=0.5, get_timeout=5)
    keys = [f"key-{n}" for n in range(40)]

    def user(name):
        for key in keys:
            assert client.set(f"{name}{key}", f"{name}{key}", noreply=False)
            assert client.get(f"{name}{key}") == f"{name}{key}".encode()

    users = [spawn(user, name) for name in range(10)]
    gevent.joinall(users, timeout=30, raise_error=True)
    assert client.get_many([f"0{key}" for key in keys]).keys() == {f"0{key}" for key in keys}
    assert memcached_server.stats()["open"] == other.stats()["open"] == 2
    for each in client.clients.values():
        each.client_pool.pool.close()


def test_a_pool_that_is_empty_is_no_server_that_is_down(memcached_server):
    """HashClient gives up a server after a few errors of the network."""
    client = FairHashClient([memcached_server.address], max_pool_size=1, get_timeout=0.01)
    (pool,) = (each.client_pool for each in client.clients.values())
    with pool.get_and_release():
        for _ in range(5):
            with pytest.raises(
                RuntimeError, match=f"no item of '127.0.0.1:{memcached_server.port}'"
            ):
                client.get("key")
    assert client.get("key") is None
    assert client._failed_clients == {}
    pool.pool.close()


def test_a_server_that_was_taken_back_has_a_fair_pool_again(memcached_server):
    client = FairHashClient([memcached_server.address], max_pool_size=1)
    client.get("key")
    (before,) = client.clients.values()
    client.add_server(memcached_server.address)
    (after,) = client.clients.values()
    assert after is not before
    assert isinstance(after.client_pool, ClientPool)
    assert after.client_pool.max_size == 1
    until(lambda: memcached_server.stats()["open"] == 0)  # the one before has none left
    assert client.get("key") is None
    after.client_pool.pool.close()


# Passwords


def test_nothing_prints_a_value(memcached_server, memcached_pool, caplog):
    caplog.set_level(logging.DEBUG)
    word = "xyzzy-secret"
    pool = memcached_pool(memcached_server, key_prefix=word.encode())
    with pool.item() as client:
        client.set("key", word)
        client.raw_command("mn")
    with pool.item() as client, pytest.raises(PoolTimeout) as caught:
        pool.get(timeout=0)
    with pytest.raises(NotInUse) as refused:
        pool.put(client)
    assert "reset of" in caplog.text
    for text in (caplog.text, repr(pool), str(caught.value), str(refused.value)):
        assert word not in text
