"""FairConnectionPool under redis-py's own clients, on a real redis-server."""

import gc
import inspect
import logging
import threading
from contextlib import closing, contextmanager
from functools import partial
from traceback import format_exception

import gevent
import gevent.event
import gevent.os
import pytest
import redis
from gevent import GreenletExit, Timeout
from gevent.queue import LifoQueue

from gpools import ConnectionPool, PoolTimeout, RedisPool, WrongThread
from gpools.adapters import _redis_connection, redis_py
from gpools.adapters._probe import A_MOMENT
from gpools.adapters.redis_py import FairConnectionPool, FairSentinelConnectionPool
from tests.cooperative import cooperative  # noqa: F401
from tests.proxy import REPLY, close, hang
from tests.switching import switches
from tests.test_byte_boundaries import (
    Ordeal,
    at_every_byte,
    blocking,
    both_ways,
    get,
    pipeline,
    subscription,
    transaction,
    watching,
)
from tests.test_fork import Child
from tests.test_redis_pool import LEFT, WORD, clients, state
from tests.test_redis_pool import locked_server as locked_server
from tests.waiting import settle, spawn, until
from tests.watching import looks_at_sockets

pytestmark = pytest.mark.usefixtures("cooperative")


@pytest.fixture
def fair():
    """`fair(server, ...)`: a client on a FairConnectionPool of one connection."""
    made = []

    def make(server, pool_class=FairConnectionPool, **options):
        options = {"max_connections": 1, "decode_responses": True, "timeout": 5} | options
        made.append(pool_class.from_url(f"redis://{server.host}:{server.port}/0", **options))
        return redis.Redis(connection_pool=made[-1])

    yield make
    for pool in made:
        pool.connections.close()


def whole(client, server):
    """Assert that the pool has all its slots, and each a working connection of its own."""
    pool = client.connection_pool
    settle()
    taken = [pool.get_connection() for _ in range(pool.max_connections)]
    assert len(set(taken)) == pool.max_connections
    assert pool.connections.free() == 0
    for connection in taken:
        connection.send_command("ECHO", "mine")
        assert connection.read_response() == "mine"
    until(lambda: len(clients(server)) == pool.max_connections)
    for connection in taken:
        pool.release(connection)
    assert repr(pool).count(f" {pool.max_connections} idle, 0 in use, 0 waiting") == 1


# Making a pool


def test_defaults_are_those_of_the_blocking_pool():
    ours, theirs = FairConnectionPool(), redis.BlockingConnectionPool()
    assert (ours.max_connections, ours.timeout) == (theirs.max_connections, theirs.timeout)
    assert ours.connection_class is theirs.connection_class
    assert FairConnectionPool(max_connections=None).max_connections == 50


def test_from_url_with_settings_of_all_three(redis_server):
    pool = FairConnectionPool.from_url(
        f"{redis_server.url[:-1]}3?client_name=me&max_connections=7&timeout=2.5&max_idle=60"
        "&min_size=1&max_waiting=9&order_as_stack=no&name=main",
        socket_timeout=7,
    )
    client = redis.Redis(connection_pool=pool)
    info = client.client_info()
    assert (info["db"], info["name"]) == (3, "me") or (info["db"], info["name"]) == ("3", "me")
    assert (pool.max_connections, pool.timeout) == (7, 2.5)
    assert pool.connections.min_size == 1
    assert pool.connections._book.max_waiting == 9
    assert pool.connections._book.life.max_idle == 60
    assert pool.connections.order_as_stack is False
    assert pool._available_connections[0].socket_timeout == 7
    assert repr(pool) == "<FairConnectionPool 'main' 1 idle, 0 in use, 0 waiting, max 7>"
    pool.connections.close()


def test_a_unix_socket(locked_server):
    pool = FairConnectionPool.from_url(locked_server.unix_url, db=1)
    client = redis.Redis(connection_pool=pool)
    assert int(client.client_info()["db"]) == 1
    assert WORD not in repr(client)
    assert str(locked_server.unixsocket) in repr(pool)
    pool.connections.close()


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"max_connections": -1}, ValueError, "max_connections"),
        ({"max_connections": "3"}, ValueError, "max_connections"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"max_size": 3}, TypeError, "max_connections"),
        ({"create": object}, TypeError, "make_connection"),
        ({"max_idle": "soon"}, ValueError, "max_idle"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
        ({"queue_class": LifoQueue}, TypeError, "queue_class"),
        ({"cache_config": object(), "protocol": 3}, TypeError, "caching"),
    ],
    ids=str,
)
def test_nonsense_is_refused_at_once(options, error, word):
    with pytest.raises(error, match=word):
        FairConnectionPool(**options)


def test_no_verb_of_the_core_is_overridden():
    for verb in ("get", "put", "item", "discard"):
        assert inspect.getattr_static(redis_py.Connections, verb) is inspect.getattr_static(
            ConnectionPool, verb
        )


def test_min_size_connections_are_made_at_once(redis_server, fair):
    client = fair(redis_server, max_connections=3, min_size=2)
    assert len(clients(redis_server)) == 2
    whole(client, redis_server)


# Clients as they are


@pytest.mark.parametrize("protocol", [2, 3])
def test_clients_run_unchanged(redis_server, fair, protocol):
    client = fair(redis_server, max_connections=2, protocol=protocol)
    assert client.set("k", "v")
    assert client.pipeline(transaction=False).get("k").incr("n").execute() == ["v", 1]
    assert client.pipeline().get("k").incr("n").execute() == ["v", 2]
    assert client.transaction(lambda pipe: pipe.multi() or pipe.incr("n"), "n") == [3]
    with client.lock("lock", timeout=5), pytest.raises(redis.exceptions.LockError):
        client.lock("lock", blocking=False).__enter__()
    assert client.register_script("return {KEYS[1], ARGV[1]}")(["a"], ["b"]) == ["a", "b"]
    client.rpush("list", "x")
    assert client.blpop("list", timeout=1) in (("list", "x"), ["list", "x"])
    assert client.blpop("list", timeout=0.02) is None
    assert sorted(client.scan_iter()) == ["k", "n"]
    with client.pubsub() as pubsub:
        pubsub.subscribe("channel")
        assert pubsub.get_message(timeout=1)["type"] == "subscribe"
        client.publish("channel", "news")
        assert pubsub.get_message(timeout=1)["data"] == "news"
    with client.monitor() as monitor:
        client.get("k")
        until(lambda: monitor.next_command()["command"] == "GET k")
    assert client.connection_pool.connections.holders() == []
    until(lambda: len(clients(redis_server)) <= 2)
    whole(client, redis_server)


def test_a_client_on_a_single_connection_keeps_it_until_it_is_closed(redis_server, fair):
    pool = fair(redis_server).connection_pool
    client = redis.Redis(connection_pool=pool, single_connection_client=True)
    client.ping()
    assert pool.connections.free() == 0
    client.close()
    assert pool.connections.free() == 1
    assert client.ping()


def test_a_connection_is_used_again(redis_server, fair):
    client = fair(redis_server, max_connections=3)
    numbers = {client.client_id() for _ in range(5)}
    with pytest.raises(redis.ResponseError):
        client.execute_command("NONSENSE")
    assert numbers == {client.client_id()}
    assert redis_server.stats()["accepted"] == 1


def test_an_encoder_is_made_from_the_options(fair, redis_server):
    encoder = fair(redis_server, encoding="latin-1").get_encoder()
    assert (encoder.encoding, encoder.decode_responses) == ("latin-1", True)


def test_a_thread_of_greenlets_runs_a_pubsub(redis_server, fair):
    client = fair(redis_server, max_connections=2)
    heard = []
    pubsub = client.pubsub()
    pubsub.subscribe(channel=lambda message: heard.append(message["data"]))

    def listen():
        for _ in pubsub.listen():
            pass

    listener = spawn(listen)
    until(lambda: client.publish("channel", "news") == 1)
    until(lambda: heard == ["news"])
    listener.kill()
    pubsub.close()
    whole(client, redis_server)


# Waiting


def test_greenlets_wait_in_the_order_they_came(redis_server, fair):
    client = fair(redis_server, max_connections=2)
    served = []

    def ask(name):
        client.echo(name)
        served.append(name)

    held = [client.connection_pool.get_connection() for _ in range(2)]
    callers = []
    for n in range(50):
        callers.append(spawn(ask, n))
        gevent.sleep(0)
    client.connection_pool.release(held.pop())
    gevent.joinall(callers, timeout=10, raise_error=True)
    assert served == list(range(50))
    client.connection_pool.release(held.pop())
    assert redis_server.stats()["accepted"] == 2


def test_redis_pys_own_pool_fails_instead(redis_server):
    pool = redis.ConnectionPool.from_url(redis_server.url, max_connections=2)
    client = redis.Redis(connection_pool=pool)
    users = [spawn(client.blpop, "list", timeout=0.05) for _ in range(3)]
    gevent.joinall(users)
    assert [type(user.exception) for user in users].count(type(None)) == 2
    assert [user.exception for user in users if user.exception]
    pool.disconnect()


def greedy(client, waiters):
    """Have one greenlet give back and ask again while others wait; count who is served before."""
    served = []
    held = client.connection_pool.get_connection("PING")  # redis-py before 5.3 wants a word
    others = []
    for n in range(waiters):
        others.append(spawn(lambda n=n: [client.ping(), served.append(n)]))
        gevent.sleep(0)
    client.connection_pool.release(held)
    client.ping()
    count = len(served)
    gevent.killall(others)
    return count


def test_who_asks_again_goes_behind_those_who_wait(redis_server, fair):
    assert greedy(fair(redis_server), waiters=5) == 5


@pytest.mark.filterwarnings("ignore:Call to 'get_connection':DeprecationWarning")
def test_in_redis_pys_blocking_pool_it_goes_before_them(redis_server):
    pool = redis.BlockingConnectionPool.from_url(
        redis_server.url, max_connections=1, queue_class=LifoQueue
    )
    assert greedy(redis.Redis(connection_pool=pool), waiters=5) == 0
    pool.disconnect()


def test_a_wait_that_times_out_tells_who_holds_the_connections(redis_server, fair):
    client = fair(redis_server)
    holder = spawn(client.blpop, "list", timeout=5)
    holder.name = "the-holder"
    until(client.connection_pool.connections.holders)
    client.connection_pool.timeout = 0.02
    with pytest.raises(redis.ConnectionError, match="the-holder") as caught:
        client.ping()
    assert isinstance(caught.value, redis.exceptions.MaxConnectionsError)
    assert isinstance(caught.value.__cause__, PoolTimeout)
    assert "1 of 1 in use" in str(caught.value)
    assert "raise max_connections" in str(caught.value)
    holder.kill()
    whole(client, redis_server)


def test_the_timeout_may_be_changed(redis_server, fair):
    client = fair(redis_server, timeout=None)
    pool = client.connection_pool
    held = pool.get_connection()
    pool.timeout = 0.01
    with pytest.raises(redis.ConnectionError, match=r"0\.01 s"):
        client.ping()
    pool.release(held)


def test_a_full_line_is_a_redis_error_too(redis_server, fair):
    client = fair(redis_server, max_waiting=1)
    held = client.connection_pool.get_connection()
    waiter = spawn(client.ping)
    settle()
    with pytest.raises(redis.exceptions.MaxConnectionsError, match="max_waiting"):
        client.ping()
    client.connection_pool.release(held)
    assert waiter.get(timeout=5)


def test_max_connections_may_be_changed(redis_server, fair):
    client = fair(redis_server)
    held = client.connection_pool.get_connection()
    waiter = spawn(client.ping)
    settle()
    client.connection_pool.max_connections = 2
    assert waiter.get(timeout=5)
    client.connection_pool.release(held)
    whole(client, redis_server)


def test_connections_made_in_the_background_outlive_their_callers(redis_server, proxy_to, fair):
    """A server slower than its callers' patience used to be connected to again and again."""
    proxy = proxy_to(redis_server)
    proxy.script = [hang(5)]
    client = fair(proxy, max_creating=1, timeout=0.05)
    with pytest.raises(redis.ConnectionError, match="0 of 1 in use"):
        client.ping()
    assert proxy.stopped.wait(5)
    proxy.resume()
    until(lambda: client.connection_pool.connections.stats().idle == 1)
    assert client.ping()
    assert proxy.made == 1


# Nothing of one user reaches the next


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("left", sorted(LEFT.keys() - {"a reply that was never to be read"}))
def test_the_next_user_gets_a_clean_connection(redis_server, fair, left, protocol):
    redis_server.call("ACL", "SETUSER", "guest", "on", ">guestword", "~*", "&*", "+@all")
    client = fair(redis_server, protocol=protocol)
    fresh = state(client)
    client.delete("k")
    kept = []
    LEFT[left](client, kept)
    redis_server.call("SET", "k", "touched")
    redis_server.call("PUBLISH", "channel", "foreign")
    kept.clear()  # a pubsub, pipeline or monitor that nobody closes
    gc.collect()
    settle()
    assert state(client) == fresh
    assert client.echo("mine") == "mine"
    assert client.pipeline().set("k", "v").get("k").execute() == [True, "v"]
    assert redis_server.call("GET", "k") == "v"
    whole(client, redis_server)
    redis_server.call("ACL", "DELUSER", "guest")


def test_in_redis_pys_own_pool_the_database_of_one_is_the_next_ones(redis_server):
    pool = redis.ConnectionPool.from_url(redis_server.url)
    client = redis.Redis(connection_pool=pool)
    client.select(5)
    assert int(client.client_info()["db"]) == 5
    pool.disconnect()


def boom(*args, **options):
    raise ValueError("no")


def test_a_callback_that_raises_in_a_pipeline_poisons_nobody(redis_server, fair):
    client = fair(redis_server)
    client.response_callbacks["TIME"] = boom
    with pytest.raises(ValueError, match="no"):
        client.pipeline(transaction=False).time().echo("theirs").echo("theirs").execute()
    assert client.echo("mine") == "mine"
    whole(client, redis_server)


class OneMaster:
    """A sentinel that knows one address."""

    def __init__(self, server):
        self.server = server

    def discover_master(self, name):
        return self.server.address

    def discover_slaves(self, name):
        return [self.server.address]


def test_a_connection_to_the_former_master_is_closed_as_it_comes_back(redis_server, proxy_to):
    sentinel = OneMaster(proxy_to(redis_server))
    pool = FairSentinelConnectionPool("orders", sentinel, max_connections=2)
    former = pool.get_connection()
    sentinel.server = proxy_to(redis_server)
    latter = pool.get_connection()
    for connection in (former, latter):
        pool.release(connection)
    assert not former.open
    assert latter.open
    pool.connections.close()


def killed_in_a_command(client, proxy):
    """Kill a greenlet that waits for its reply; return what the next one gets."""
    client.ping()
    link = proxy.links[-1]
    link.fault = hang(len(link.reply), REPLY)
    victim = spawn(client.echo, "theirs")
    assert proxy.stopped.wait(10)
    victim.kill()
    proxy.resume()
    answer = client.echo("mine")
    client.connection_pool.disconnect()
    return answer


def of_a_sentinel(pool_class, proxy):
    pool = pool_class("orders", OneMaster(proxy), decode_responses=True, max_connections=1)
    return redis.Redis(connection_pool=pool)


def test_killed_in_a_command_of_a_sentinels_client(redis_server, proxy_to):
    proxy = proxy_to(redis_server)
    client = of_a_sentinel(FairSentinelConnectionPool, proxy)
    assert killed_in_a_command(client, proxy) == "mine"


def test_redis_pys_own_sentinel_pool_gives_the_reply_to_the_next(redis_server, proxy_to):
    """So the test above can fail: it keeps a connection whose reader was killed."""
    proxy = proxy_to(redis_server)
    client = of_a_sentinel(redis.sentinel.SentinelConnectionPool, proxy)
    assert killed_in_a_command(client, proxy) == "theirs"


def test_a_reply_after_a_health_check_that_connected_anew_is_owed(redis_server, proxy_to):
    """The check forgot the command that was about to be sent."""
    proxy = proxy_to(redis_server)
    options = {
        "health_check_interval": 0.01,
        "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 1),
    }
    connection = redis_py.tracked(redis.Connection)(host=proxy.host, port=proxy.port, **options)
    connection.connect()
    link = proxy.links[-1]
    link.fault = close(len(link.reply))
    gevent.sleep(0.02)
    connection.send_command("ECHO", "x")
    assert proxy.made == 2
    assert connection.owed == 1
    assert connection.read_response() == b"x"
    assert connection.blemish is None
    connection.disconnect()


class Clients:
    """A FairConnectionPool as `Ordeal` wants to see it."""

    def __init__(self, client):
        self.client = client
        self.max_size = client.connection_pool.max_connections

    @contextmanager
    def item(self):
        yield self.client


@pytest.mark.parametrize("exchange", [get, transaction, pipeline, watching, blocking, subscription])
@both_ways
@pytest.mark.parametrize("ending", ["killed", "timed out", "goes on"])
def test_no_reply_reaches_another_whatever_the_byte(
    redis_server, proxy_to, fair, ending, stream, exchange
):
    proxy = proxy_to(redis_server)
    redis_server.call("SET", "theirs", "theirs")
    redis_server.call("RPUSH", "list", *["x" * 6] * 500)
    client = fair(proxy, protocol=2 if exchange is get else 3)
    ordeal = Ordeal(Clients(client), proxy, exchange, lambda client, tag: client.echo(tag))
    at_every_byte(ordeal, ending, stream)
    assert ordeal.foreign == []
    whole(client, redis_server)


@both_ways
def test_a_sentinels_client_killed_at_every_byte(redis_server, proxy_to, stream):
    proxy = proxy_to(redis_server)
    client = of_a_sentinel(FairSentinelConnectionPool, proxy)
    ordeal = Ordeal(Clients(client), proxy, pipeline, lambda client, tag: client.echo(tag))
    at_every_byte(ordeal, "killed", stream)
    assert ordeal.foreign == []
    client.connection_pool.disconnect()


# What never comes back


# Before that, a refused CLIENT SETINFO left a reference cycle.
NO_CYCLES = pytest.mark.skipif(
    tuple(map(int, redis.__version__.split(".")[:3])) < (5, 0, 2),
    reason="this redis-py leaves cycles, and connections are collected later",
)

LOST = {
    "a connection": lambda client: client.connection_pool.get_connection(),
    "a pubsub": lambda client: client.pubsub().subscribe("channel"),
    "a watching pipeline": lambda client: client.pipeline().watch("k"),
    "a monitor": lambda client: client.monitor().__enter__(),
    "a client on a single connection": lambda client: redis.Redis(
        connection_pool=client.connection_pool, single_connection_client=True
    ),
}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("lost", LOST)
@NO_CYCLES
def test_a_slot_comes_back_when_its_connection_is_collected(redis_server, fair, lost, protocol):
    client = fair(redis_server, protocol=protocol)
    gc.disable()  # counting references is enough
    try:
        for _ in range(3):
            LOST[lost](client)
            settle()
            assert client.echo("mine") == "mine"
    finally:
        gc.enable()
    whole(client, redis_server)


@NO_CYCLES
def test_a_watching_pipeline_that_is_collected_sends_nothing(redis_server, proxy_to, fair):
    """It said UNWATCH and waited for the reply, in a destructor, where a kill is swallowed."""
    proxy = proxy_to(redis_server)
    client = fair(proxy)
    pipe = client.pipeline()
    pipe.watch("k")
    sent = len(proxy.links[-1].request)
    del pipe
    settle()
    assert len(proxy.links[-1].request) == sent
    whole(client, redis_server)


def test_a_watching_pipeline_that_is_killed_does_not_connect_anew(redis_server, proxy_to, fair):
    proxy = proxy_to(redis_server)
    client = fair(proxy)

    def watch():
        with client.pipeline() as pipe:
            pipe.watch("k")
            link = proxy.links[-1]
            link.fault = hang(len(link.reply))
            pipe.get("k")

    victim = spawn(watch)
    assert proxy.stopped.wait(5)
    victim.kill()
    assert proxy.made == 1
    proxy.resume()
    whole(client, redis_server)


def test_killed_between_get_and_release(redis_server, fair):
    client = fair(redis_server)

    def careless():
        connection = client.connection_pool.get_connection()
        connection.send_command("ECHO", "theirs")
        gevent.sleep(60)
        client.connection_pool.release(connection)

    victim = spawn(careless)
    settle()
    until(lambda: client.connection_pool.connections.holders())
    victim.kill()
    del victim
    gc.collect()
    settle()
    assert client.echo("mine") == "mine"
    whole(client, redis_server)


# Giving back what is not out


@pytest.mark.parametrize("whose", ["twice", "another pool's", "redis-py's"])
def test_what_is_not_out_is_ignored(redis_server, fair, whose):
    client, other = fair(redis_server), fair(redis_server)
    pool = client.connection_pool
    connection = pool.get_connection()
    if whose == "twice":
        pool.release(connection)
        pool.release(connection)
    else:
        stranger = redis.Connection(host=redis_server.host, port=redis_server.port)
        if whose == "another pool's":
            stranger = other.connection_pool.get_connection()
        pool.release(stranger)
        other.connection_pool.release(stranger)
        stranger.disconnect()
        pool.release(connection)
    assert repr(pool).endswith("1 idle, 0 in use, 0 waiting, max 1>")
    whole(client, redis_server)


# Idle connections that die


def fill(client):
    pool = client.connection_pool
    taken = [pool.get_connection() for _ in range(pool.max_connections)]
    for connection in taken:
        pool.release(connection)


@pytest.mark.parametrize("how", ["closed", "reset", "killed by the server", "stray bytes"])
def test_a_connection_that_died_idle_is_not_handed_out(redis_server, proxy_to, fair, how):
    proxy = proxy_to(redis_server)
    client = fair(proxy)
    first = client.client_id()
    if how == "closed":
        proxy.close_all()
    elif how == "reset":
        proxy.reset_all()
    elif how == "killed by the server":
        redis_server.call("CLIENT", "KILL", "ID", first)
        until(lambda: proxy.open == 0)
    else:
        proxy.links[0].client.sendall(b"+foreign\r\n")
    gevent.sleep(A_MOMENT)
    assert client.echo("mine") == "mine"
    assert client.client_id() != first
    whole(client, redis_server)


@pytest.mark.parametrize("how", ["closed", "stray bytes"])
def test_a_connection_that_died_in_use_is_not_put_back(redis_server, proxy_to, fair, how):
    """Whatever check_after says: that is about what happens to idle ones."""
    proxy = proxy_to(redis_server)
    client = fair(proxy, check_after=None)
    connection = client.connection_pool.get_connection()
    if how == "closed":
        proxy.close_all()
    else:
        proxy.links[0].client.sendall(b"+foreign\r\n")
    gevent.sleep(A_MOMENT)
    client.connection_pool.release(connection)
    assert not connection.open
    assert client.echo("mine") == "mine"
    whole(client, redis_server)


def test_who_answered_just_now_is_not_looked_at(redis_server, fair, monkeypatch):
    looks = looks_at_sockets(monkeypatch, _redis_connection)
    client = fair(redis_server)
    client.ping()

    def unseen():
        before = len(looks)
        client.ping()
        return len(looks) == before

    until(unseen)  # on a slow machine it may take more than one attempt
    gevent.sleep(A_MOMENT)
    client.ping()
    assert looks


@pytest.mark.parametrize("ending", [GreenletExit, Timeout])
def test_interrupted_while_it_watches_waits_for_no_frozen_server(redis_server, fair, ending):
    """A pipeline's reset would say UNWATCH, and wait for the answer."""
    client = fair(redis_server)
    watching = gevent.event.Event()

    def watch():
        with client.pipeline() as pipe:
            pipe.watch("key")
            watching.set()
            gevent.sleep(30)

    user = spawn(watch)
    assert watching.wait(5)
    redis_server.freeze()
    try:
        user.kill(ending, block=False)
        user.join(timeout=5)
        assert user.dead
    finally:
        redis_server.thaw()
    assert isinstance(user.exception or user.value, ending)
    whole(client, redis_server)


@pytest.mark.parametrize("ending", [GreenletExit, Timeout, "socket_timeout"])
def test_interrupted_in_the_unwatch_of_a_pipeline_that_ends(redis_server, fair, ending):
    """redis-py gives the connection back after a ConnectionError only."""
    options = {"socket_timeout": 0.3} if ending == "socket_timeout" else {}
    client = fair(redis_server, **options)
    caught, frozen = [], gevent.event.Event()

    def watch():
        try:
            with client.pipeline() as pipe:
                pipe.watch("key")
                redis_server.freeze()
                frozen.set()
        except BaseException as error:  # it has the pipeline, which has the connection
            caught.append(error)

    user = spawn(watch)
    try:
        assert frozen.wait(5)
        if ending != "socket_timeout":
            user.kill(ending)
        user.join(timeout=5)
    finally:
        redis_server.thaw()
    assert [type(error) for error in caught] == [ending] * (ending != "socket_timeout")
    client.connection_pool.timeout = 5
    assert client.echo("mine") == "mine"
    whole(client, redis_server)


def test_a_command_packed_by_hand_is_owed_an_answer(redis_server, fair):
    client = fair(redis_server)
    connection = client.connection_pool.get_connection()
    redis_server.freeze()
    try:
        connection.send_packed_command(connection.pack_command("ECHO", "theirs"))
        client.connection_pool.release(connection)
    finally:
        redis_server.thaw()
    assert client.echo("mine") == "mine"
    whole(client, redis_server)


def test_a_get_of_an_idle_connection_does_not_switch(redis_server, fair):
    pool = fair(redis_server).connection_pool
    fill(redis.Redis(connection_pool=pool))
    gevent.sleep(0)
    with switches() as count:
        pool.release(pool.get_connection())
    assert count() == 0


# disconnect, close, reset


def test_disconnect_closes_all_and_the_pool_goes_on(redis_server, fair):
    client = fair(redis_server, max_connections=3)
    held = client.connection_pool.get_connection()
    client.ping()
    assert len(clients(redis_server)) == 2
    client.connection_pool.disconnect()
    until(lambda: clients(redis_server) == [])
    client.connection_pool.release(held)
    assert client.ping()
    whole(client, redis_server)


def test_disconnect_of_the_idle_ones_leaves_the_others(redis_server, fair):
    client = fair(redis_server, max_connections=3)
    held = client.connection_pool.get_connection()
    client.ping()
    client.connection_pool.disconnect(inuse_connections=False)
    until(lambda: len(clients(redis_server)) == 1)
    held.send_command("ECHO", "x")
    assert held.read_response() == "x"
    client.connection_pool.release(held)
    assert client.connection_pool.connections.stats().idle == 1


def test_disconnect_wakes_who_waits_for_a_reply(redis_server, fair):
    client = fair(redis_server)
    waiting = spawn(client.blpop, "list", timeout=0)
    # Not merely connected: a connection that is being made is nobody's yet.
    until(lambda: [other["cmd"] for other in clients(redis_server)] == ["blpop"])
    client.connection_pool.disconnect()
    waiting.join(5)
    assert isinstance(waiting.exception, redis.ConnectionError)
    whole(client, redis_server)


def test_reset_lets_go_of_all_connections_made_before(redis_server, fair):
    client = fair(redis_server, max_connections=2)
    held = client.connection_pool.get_connection()
    client.connection_pool.reset()
    client.connection_pool.release(held)
    assert not held.open
    whole(client, redis_server)


def test_options_changed_before_a_reset_count_after_it(locked_server):
    """django-redis gives the password like this."""
    pool = FairConnectionPool(host=locked_server.host, port=locked_server.port)
    pool.connection_kwargs["password"] = WORD
    pool.reset()
    assert redis.Redis(connection_pool=pool).ping()
    pool.connections.close()


def test_closing_a_client_leaves_the_pool_to_the_others(redis_server, fair):
    client = fair(redis_server)
    client.ping()
    client.close()
    assert len(clients(redis_server)) == 1


@pytest.mark.skipif(not hasattr(redis.Redis, "from_pool"), reason="redis-py before 5.0.1")
def test_a_client_from_pool_closes_the_connections(redis_server, fair):
    pool = fair(redis_server).connection_pool
    with closing(redis.Redis.from_pool(pool)) as client:
        client.ping()
    until(lambda: clients(redis_server) == [])
    assert redis.Redis(connection_pool=pool).ping()


def test_the_pool_as_a_context_manager(redis_server):
    with FairConnectionPool.from_url(redis_server.url) as pool:
        redis.Redis(connection_pool=pool).ping()
    until(lambda: clients(redis_server) == [])


def test_a_pool_closed_for_good_is_a_redis_error(redis_server, fair):
    client = fair(redis_server)
    client.connection_pool.connections.close()
    with pytest.raises(redis.ConnectionError, match="closed"):
        client.ping()


def test_a_released_connection_cannot_be_opened_again(redis_server, fair):
    """A pubsub that listens in another greenlet used to connect it behind the pool's back."""
    client = fair(redis_server)
    pubsub = client.pubsub()
    pubsub.subscribe("channel")
    connection = pubsub.connection
    pubsub.close()
    with pytest.raises(redis.ConnectionError, match="for good"):
        connection.connect()
    whole(client, redis_server)


@NO_CYCLES
def test_a_dropped_pool_is_gone_at_once(redis_server):
    pool = FairConnectionPool.from_url(redis_server.url)
    redis.Redis(connection_pool=pool).ping()
    gc.disable()
    try:
        del pool
        until(lambda: clients(redis_server) == [])
    finally:
        gc.enable()


# Options that redis-py changes later


def test_set_retry_reaches_the_connections_there_are(redis_server, fair):
    client = fair(redis_server)
    client.ping()
    retry = redis.retry.Retry(redis.backoff.NoBackoff(), 3)
    client.set_retry(retry)
    assert client.connection_pool._available_connections[0].retry is retry
    assert client.connection_pool.connection_kwargs["retry"] is retry


def test_new_credentials_are_used_by_new_connections(redis_server, fair):
    client = fair(redis_server, max_connections=2)
    held = client.connection_pool.get_connection()
    client.ping()
    client.connection_pool.re_auth_callback(object())
    client.connection_pool.release(held)
    assert repr(client.connection_pool).count(" 0 idle, 0 in use") == 1


# Forks and threads


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, of threads
def test_three_children_and_their_parent_work_at_once(redis_server, fair):
    client = fair(redis_server, max_connections=3)
    pool = client.connection_pool
    held = pool.get_connection()
    held.send_command("ECHO", "the parent's")
    number = client.client_id()

    def child(name):
        empty = pool.connections.current_size == 0
        pool.release(held)  # the parent's: ignored
        tags = [f"{name}-{n}" for n in range(50)]
        answers = [client.echo(tag) for tag in tags]
        pool.disconnect()
        return empty, answers == tags, client.client_id() != number

    children = [Child(partial(child, name), gevent.os.fork) for name in "abc"]
    for n in range(50):
        assert client.echo(str(n)) == str(n)
    assert [child.result() for child in children] == [(True, True, True)] * 3
    assert held.read_response() == "the parent's"
    pool.release(held)
    assert number in {client.client_id() for _ in range(2)}
    whole(client, redis_server)


def test_another_thread_is_refused_in_words(redis_server, fair):
    client = fair(redis_server)
    client.ping()
    caught = []

    def use():
        with pytest.raises(WrongThread) as error:
            client.ping()
        caught.append(str(error.value))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "thread" in caught[0]
    assert client.ping()
    whole(client, redis_server)


# redis-py's metrics


class Metrics:
    """Adds up what redis-py's recorder is told."""

    def __init__(self, monkeypatch):
        self.counts = {}
        self.created = self.waits = 0
        monkeypatch.setattr(redis_py, "observed", lambda: True)
        monkeypatch.setattr(redis_py, "record_connection_count", self.count)
        monkeypatch.setattr(redis.connection, "record_connection_count", self.count)
        monkeypatch.setattr(redis_py, "record_connection_create_time", self.create)
        monkeypatch.setattr(redis_py, "record_connection_wait_time", self.wait)

    def count(self, pool_name, connection_state, counter=1):
        state = connection_state.value
        self.counts[state] = self.counts.get(state, 0) + counter

    def create(self, connection_pool, duration_seconds):
        assert duration_seconds > 0
        self.created += 1

    def wait(self, pool_name, duration_seconds):
        self.waits += 1


@pytest.mark.skipif(not redis_py._RECORDS, reason="this redis-py has no metrics")
def test_each_connection_counts_once_in_redis_pys_metrics(redis_server, monkeypatch):
    gc.collect()  # the pools of other tests, which would count as they go
    metrics = Metrics(monkeypatch)
    pool = FairConnectionPool.from_url(redis_server.url, max_connections=3)
    client = redis.Redis(connection_pool=pool)
    held = [pool.get_connection() for _ in range(2)]
    assert metrics.counts == {"used": 2}
    assert metrics.created == metrics.waits == 2
    pool.release(held.pop())
    assert metrics.counts == {"used": 1, "idle": 1}
    client.select(3)  # closed
    assert metrics.counts == {"used": 1, "idle": 0}
    held.clear()  # collected
    settle()
    client.ping()
    assert metrics.counts == {"used": 0, "idle": 1}
    assert [count for count, _ in pool.get_connection_count()] == [1, 0]
    pool.disconnect()
    assert metrics.counts == {"used": 0, "idle": 0}
    client.ping()
    del client, pool
    assert metrics.counts == {"used": 0, "idle": 0}


@pytest.mark.skipif(redis.__version__ < "7", reason="listeners cannot be given")
def test_listeners_are_told_of_releases(redis_server, fair):
    from redis.event import AfterConnectionReleasedEvent, EventDispatcher, EventListenerInterface

    class Listener(EventListenerInterface):
        def listen(self, event):
            heard.append(event.connection)

    heard = []
    dispatcher = EventDispatcher()
    dispatcher.register_listeners({AfterConnectionReleasedEvent: [Listener()]})
    client = fair(redis_server, event_dispatcher=dispatcher)
    client.ping()
    assert heard == client.connection_pool._available_connections


@pytest.mark.skipif(redis_py.NO_NOTICES is None, reason="this redis-py has no notifications")
def test_nobody_is_asked_for_notices_unless_told(redis_server, proxy_to, fair):
    proxy = proxy_to(redis_server)
    fair(proxy, protocol=3).ping()
    assert b"MAINT_NOTIFICATIONS" not in proxy.links[-1].request
    config = type(redis_py.NO_NOTICES)(enabled="auto")
    client = fair(proxy, protocol=3, maint_notifications_config=config)
    client.ping()
    assert b"MAINT_NOTIFICATIONS" in proxy.links[-1].request
    assert client.connection_pool.maint_notifications_enabled()
    proxy.links[-1].client.sendall(b">2\r\n+MIGRATING\r\n:1\r\n")
    made = proxy.made
    gevent.sleep(0.05)
    assert client.echo("mine") == "mine"
    assert proxy.made == made  # a notice is not a reason to close it
    connection = client.connection_pool.get_connection()
    proxy.links[-1].client.sendall(b">2\r\n+MIGRATING\r\n:2\r\n")
    gevent.sleep(0.05)
    client.connection_pool.release(connection)
    assert client.connection_pool.get_connection() is connection
    client.connection_pool.update_active_connections_for_reconnect()
    client.connection_pool.release(connection)
    assert not connection.open


# Passwords


@pytest.mark.parametrize(
    "pool_class", [FairConnectionPool, redis_py.SharedConnectionPool, RedisPool]
)
@pytest.mark.parametrize("garbled", ["/word", "#", "?", "\u2100"])
def test_a_garbled_url_shows_no_password(pool_class, garbled):
    """urllib takes what is before the slash for a port, and names it."""
    make = getattr(pool_class, "from_url", pool_class)
    with pytest.raises(ValueError, match="in the URL is not valid") as caught:
        make(f"redis://user:{WORD}{garbled}@127.0.0.1:1/0")
    assert WORD not in "".join(format_exception(caught.value))


def test_nothing_prints_a_password(locked_server, caplog):
    caplog.set_level(logging.DEBUG)
    pool = FairConnectionPool.from_url(locked_server.url, max_connections=1)
    client = redis.Redis(connection_pool=pool)
    client.select(1)
    said = [repr(pool), repr(client)]
    held = pool.get_connection()
    pool.timeout = 0.01
    said += map(str, pool.connections.holders())
    with pytest.raises(redis.ConnectionError) as caught:
        client.ping()
    said += [str(caught.value), str(caught.value.__cause__)]
    pool.release(held)
    pool.connections.close()
    said.append(repr(pool))
    assert "left its mark" in caplog.text
    assert [text for text in (*said, caplog.text) if WORD in text] == []
