"""Chaos on a real memcached, for MemcachedPool, FairPooledClient and FairHashClient."""

from time import time

import gevent
import gevent.socket
import pytest
from gevent import Timeout
from pymemcache.client.hash import HashClient
from pymemcache.exceptions import MemcacheUnexpectedCloseError

from gpools import PoolTimeout
from gpools.adapters import MemcachedPool
from gpools.adapters.memcached import (
    ClientPoolTimeout,
    FairHashClient,
    FairPooledClient,
)
from tests.chaos import (
    KillStorm,
    Subject,
    closed_when_idle,
    cut_in_every_reply,
    frozen,
    in_a_black_hole,
    in_block,
    killed_and_back,
    three_children,
)
from tests.databases import MemcachedServer
from tests.proxy import black_hole, close, reset
from tests.test_byte_boundaries import Ordeal, at_every_byte, both_ways
from tests.test_memcached_pool import ask, malformed
from tests.waiting import spawn, until

GONE = (MemcacheUnexpectedCloseError, ConnectionError)
PATIENT = {"retry_timeout": -1, "retry_attempts": 10**6}  # a HashClient never gives up its server


KINDS = ["MemcachedPool", "FairPooledClient", "FairHashClient"]


@pytest.fixture(params=KINDS)
def memcached_subject(request):
    """`memcached_subject(server, size, through=proxy, ...)`: a Subject of each kind."""
    made = []

    def make(server, size=1, through=None, kind=request.param, get_timeout=5, **options):
        address = (through or server).address
        options |= {"get_timeout": get_timeout}
        if kind == "MemcachedPool":
            made.append(MemcachedPool(address, max_size=size, **options))
            return Subject(made[-1], server, ask)
        options |= {"max_pool_size": size}
        if kind == "FairPooledClient":
            client = one = FairPooledClient(address, **options)
        else:
            client = FairHashClient([address], **options, **PATIENT)
            (one,) = client.clients.values()
        made.append(one.client_pool.pool)
        return Subject(made[-1], server, ask, client)

    yield make
    for pool in made:
        pool.close()


# Killed and timed out


def one_of_many(chance, client, tag):
    """Have the server say a tag, in one of many ways."""
    kind = chance.randrange(6)
    if kind == 0:
        client.set(tag, tag)
        return client.get(tag, tag.encode()).decode()  # it may go by another connection
    elif kind == 1:
        malformed(client)
        client.close()  # else the error would be ours
        client.set(tag, tag, noreply=False)
    elif kind == 2:
        client.set_many({tag: tag, f"{tag}.": "x" * 3000}, noreply=False)
    elif kind == 3:
        client.set(tag, tag, noreply=False)
        return client.get_many([tag, "nothing", f"{tag}."])[tag].decode()
    elif kind == 4:  # a large one
        client.set(tag, f"{tag} " * 30_000, noreply=False)
        return client.get(tag).decode().split()[-1]
    else:
        client.set(tag, "1000", noreply=False)
        return tag if client.incr(tag, 7) == 1007 else "another"
    return client.get(tag).decode()


def test_storm_of_kills_on_tagged_commands(memcached_server, memcached_subject):
    """Thousands of commands, many of them interrupted: no foreign answer, no lost slot."""
    subject = memcached_subject(memcached_server, 5)
    ask_and_leave = in_block(subject, one_of_many, ask)

    def once(storm, tag):
        ask_and_leave(storm, tag)
        if storm.chance.random() < 0.2:
            with subject.item() as client:
                malformed(client)

    KillStorm(1, once).rage(subject.core, answers=1500, kills=300)
    subject.whole()


@both_ways
@pytest.mark.parametrize("ending", ["killed", "timed out"])
@pytest.mark.parametrize("memcached_subject", ["FairHashClient"], indirect=True)
def test_a_hash_client_at_every_byte(memcached_server, proxy_to, memcached_subject, ending, stream):
    """For the others see test_memcached_pool."""
    proxy = proxy_to(memcached_server)
    memcached_server.call("set theirs 0 0 6\r\ntheirs")
    subject = memcached_subject(memcached_server, through=proxy)
    ordeal = Ordeal(subject, proxy, lambda client, tag: client.get("theirs"), ask)
    at_every_byte(ordeal, ending, stream)
    assert ordeal.foreign == []
    subject.whole()


# The server goes


def test_killed_with_50_idle_and_back(start_server, memcached_subject):
    killed_and_back(memcached_subject(start_server(MemcachedServer), 50))


def test_a_server_that_users_saw_fail_is_back_for_all_of_them(start_server, memcached_subject):
    """Of pymemcache's HashClient all but one get a KeyError: they all take it off the sick list."""
    server = start_server(MemcachedServer)
    subject = memcached_subject(server, 5)
    server.kill9()
    with pytest.raises(ConnectionRefusedError):
        subject.user("x")
    server.start()
    users = [spawn(subject.user, str(n)) for n in range(50)]
    gevent.joinall(users, timeout=20, raise_error=True)
    assert all(user.value for user in users)
    subject.whole()


def test_pymemcaches_own_hash_client_raises_keyerror(start_server):
    """So the test above can fail."""
    server = start_server(MemcachedServer)
    client = HashClient([server.address], socket_module=gevent.socket, use_pooling=True, **PATIENT)
    server.kill9()
    with pytest.raises(ConnectionRefusedError):
        ask(client, "x")
    server.start()
    users = [spawn(ask, client, str(n)) for n in range(5)]
    gevent.joinall(users, timeout=20)
    assert [type(user.exception) for user in users].count(KeyError) == 4
    client.close()


@pytest.mark.parametrize("asking", [1, 10])
def test_a_server_given_up_is_taken_back_once_and_stays(start_server, asking):
    """Users who were still asking as it was given up would have it given up again."""
    added = []

    class Counting(FairHashClient):
        def add_server(self, server, port=None):
            added.append(server)
            super().add_server(server, port)

    server, other = start_server(MemcachedServer), start_server(MemcachedServer)
    servers = [server.address, other.address]
    client = Counting(servers, max_pool_size=5, timeout=1, retry_attempts=0, dead_timeout=0.2)
    keys = [f"key-{n}" for n in range(40)]
    crowd(client, 5, keys)
    server.freeze()
    users = [spawn(client.get_many, keys) for _ in range(asking)]
    gevent.joinall(users, timeout=20)
    assert {type(user.exception) for user in users} == {TimeoutError}
    server.thaw()
    assert list(client._dead_clients) == [server.address]
    until(lambda: time() - client._last_dead_check_time > 0.25)
    until(lambda: time() - client._dead_clients[server.address] > 0.25)
    crowd(client, 10, keys)
    assert added == [*servers, server.address]
    assert not client._dead_clients
    assert not client._failed_clients
    for each in client.clients.values():
        each.client_pool.pool.close()


def crowd(client, number, keys):
    users = [spawn(client.get_many, keys) for _ in range(number)]
    gevent.joinall(users, timeout=20, raise_error=True)


class ImpatientMemcached(MemcachedServer):
    def command(self):
        return [*super().command(), "-o", "idle_timeout=1"]


@pytest.mark.parametrize("memcached_subject", [None], indirect=True)  # all, for it takes its time
def test_idle_connections_that_the_server_closes(start_server, memcached_subject):
    server = start_server(ImpatientMemcached)
    closed_when_idle(server, [memcached_subject(server, 3, kind=kind) for kind in KINDS])


def test_refused_connections_come_out_as_they_are(memcached_server, proxy_to, memcached_subject):
    proxy = proxy_to(memcached_server)
    subject = memcached_subject(memcached_server, through=proxy)
    proxy.refuse()
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            subject.user("x")
    assert subject.core.holders() == []
    proxy.listen()
    subject.whole()


# Forks


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, of threads
def test_three_children_at_work(memcached_server, memcached_subject):
    three_children(memcached_subject(memcached_server, 3))


# The server or the network is silent


def test_a_frozen_server_costs_no_slot(memcached_server, memcached_subject):
    subject = memcached_subject(memcached_server, 2, get_timeout=0.3)
    frozen(subject, (PoolTimeout, ClientPoolTimeout))


@pytest.mark.parametrize("bound", ["timeout", "Timeout", "kill"])
def test_a_black_hole_is_waited_for_no_longer_than_asked(
    memcached_server, proxy_to, memcached_subject, bound
):
    proxy = proxy_to(memcached_server, black_hole)
    options = {"timeout": 0.05} if bound == "timeout" else {}
    subject = memcached_subject(memcached_server, 2, through=proxy, **options)
    timeout = Timeout if bound == "Timeout" else TimeoutError
    in_a_black_hole(subject, proxy, timeout, killed=bound == "kill")


@pytest.mark.parametrize("how", [close, reset])
def test_half_a_reply_is_an_error_and_costs_no_slot(
    memcached_server, proxy_to, memcached_subject, how
):
    proxy = proxy_to(memcached_server)
    memcached_server.call("set theirs 0 0 6\r\ntheirs")
    subject = memcached_subject(memcached_server, through=proxy)
    cut_in_every_reply(subject, proxy, lambda client, tag: client.get("theirs"), how, GONE)
