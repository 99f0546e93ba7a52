"""RedisPool on a real redis-server: whatever one user does, the next one finds nothing of it."""

import gc
import inspect
import logging
import os
from array import array
from contextlib import suppress
from copy import copy
from types import SimpleNamespace

import gevent
import pytest
import redis
import redis.asyncio
from gevent import Timeout
from redis.backoff import NoBackoff
from redis.retry import Retry

from gpools import ConnectionPool, NotInUse, PoolError, PoolFull, PoolTimeout, RedisPool
from gpools.adapters import _redis_connection
from gpools.adapters._probe import A_MOMENT
from gpools.adapters._redis_client import OneConnection
from gpools.adapters._short_send import ShortSender
from tests.cooperative import cooperative  # noqa: F401
from tests.proxy import close, hang
from tests.servers import RedisServer
from tests.slots import assert_slots_are_taken_back, slotted
from tests.switching import high_fds, switches  # noqa: F401
from tests.waiting import settle, spawn, until
from tests.watching import looks_at_sockets

pytestmark = pytest.mark.usefixtures("cooperative")

CACHES = hasattr(redis, "cache")  # redis-py from 5.1 on

WORD = "xyzzy-secret"  # a password, to be looked for where it must not be


@pytest.fixture
def redis_pool():
    """`redis_pool(server, ...)`: a RedisPool of one client, closed after the test."""
    pools = []

    def make(server=None, *args, pool_class=RedisPool, **options):
        if server is not None:
            options = {"host": server.host, "port": server.port} | options
        pools.append(pool_class(*args, **({"max_size": 1, "decode_responses": True} | options)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def locked_server(start_server):
    """A redis-server with a password, a unix socket and a second user."""
    server = start_server(RedisServer, password=WORD, unixsocket=True)
    server.call("ACL", "SETUSER", "guest", "on", f">{WORD}2", "~*", "&*", "+@all")
    return server


def clients(server):
    """List the clients that the server sees, but for the control connection."""
    own = str(server.call("CLIENT", "ID"))
    lines = server.call("CLIENT", "LIST").splitlines()
    found = [dict(word.partition("=")[::2] for word in line.split()) for line in lines]
    return [client for client in found if client["id"] != own]


def state(client):
    """Tell what the server knows of a client that a user could have changed."""
    info = client.client_info()
    names = ("name", "db", "sub", "psub", "multi", "flags", "user", "redir")
    return {name: info[name] for name in names} | {"ping": client.ping()}


def number(pool):
    """Tell which connection the next user gets."""
    with pool.item() as client:
        return client.client_id()


def whole(pool, server):
    """Assert that the pool has all its slots, and each item a working connection."""
    items = [pool.get(timeout=5) for _ in range(pool.max_size)]
    assert len({item.client_id() for item in items}) == pool.max_size
    assert pool.free() == 0
    until(lambda: len(clients(server)) == pool.max_size)
    for item in items:
        pool.put(item)
    assert pool.free() == pool.current_size == pool.max_size


# Making clients


def test_from_url(redis_server, redis_pool):
    pool = redis_pool(None, f"{redis_server.url[:-1]}3?client_name=me", socket_timeout=7)
    with pool.item() as client:
        assert isinstance(client, redis.Redis)
        info = client.client_info()
        assert (int(info["db"]), info["name"]) == (3, "me")
        assert client.connection_pool.connection.socket_timeout == 7
        assert client.set("a", "b")
        assert client.get("a") == "b"


def test_from_keywords(locked_server, redis_pool):
    pool = redis_pool(locked_server, password=WORD, db=2, decode_responses=False)
    with pool.item() as client:
        assert int(client.client_info()["db"]) == 2
        client.set("a", "b")
        assert client.get("a") == b"b"


def test_from_keywords_as_another_user(locked_server, redis_pool):
    with redis_pool(locked_server, username="guest", password=f"{WORD}2").item() as client:
        assert client.client_info()["user"] == "guest"


@pytest.mark.parametrize("how", ["url", "keyword"])
def test_unix_socket(locked_server, redis_pool, how):
    pool = (
        redis_pool(None, locked_server.unix_url)
        if how == "url"
        else redis_pool(unix_socket_path=str(locked_server.unixsocket), password=WORD)
    )
    with pool.item() as client:
        client.select(1)
    with pool.item() as client:
        assert state(client)["db"] == 0
        assert client.echo("x") == "x"


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols(redis_server, redis_pool, protocol):
    pool = redis_pool(redis_server, protocol=protocol)
    first = number(pool)
    with pool.item() as client:
        client.hset("h", mapping={"a": "1"})
        assert client.hgetall("h") == {"a": "1"}
        assert client.connection_pool.connection.protocol == protocol
    assert number(pool) == first


def test_each_client_has_exactly_one_connection(redis_server, redis_pool):
    pool = redis_pool(redis_server, max_size=3)
    items = [pool.get() for _ in range(3)]
    for client in items:
        client.incr("n")
        client.pipeline().incr("n").incr("n").execute()
        client.lock("lock").acquire()
        client.delete("lock")
        client.register_script("return 1")()
        with client.pubsub() as pubsub:
            pubsub.subscribe("a")
        client.transaction(lambda pipe: pipe.multi() or pipe.incr("n"), "n")
        assert len(clients(redis_server)) <= 3
    assert len({client.client_id() for client in items}) == 3
    until(lambda: len(clients(redis_server)) == 3)
    for client in items:
        pool.put(client)


def test_a_second_connection_is_refused_in_words(redis_server, redis_pool):
    with redis_pool(redis_server).item() as client, client.pubsub() as pubsub:
        pubsub.subscribe("a")
        with pytest.raises(redis.ConnectionError, match="take another item"):
            client.get("a")


def test_a_new_item_is_connected(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    pool.put(pool.get())
    assert redis_server.stats()["accepted"] == 1


@pytest.mark.parametrize(
    "option",
    [
        {"single_connection_client": True},
        {"connection_pool": object()},
        {"max_connections": 3},
        *([{"cache_config": redis.cache.CacheConfig(), "protocol": 3}] if CACHES else []),
        {"no_such_option": 1},
    ],
    ids=lambda option: next(iter(option)),
)
@pytest.mark.parametrize("url", [None, "redis://127.0.0.1:1/0"])
def test_options_that_make_no_sense_are_refused_at_once(option, url):
    with pytest.raises(TypeError) as caught:
        RedisPool(url, **option)
    word = "caching" if "cache_config" in option else next(iter(option))
    assert word in str(caught.value)


def test_what_the_core_takes_is_passed_on(redis_server, redis_pool):
    pool = redis_pool(
        redis_server,
        min_size=2,
        max_size=2,
        order_as_stack=True,
        name="main",
        timeout=0.01,
        max_waiting=1,
    )
    assert repr(pool) == "<RedisPool 'main' 2 idle, 0 in use, 0 waiting, max 2>"
    one, two = pool.get(), pool.get()
    waiter = spawn(pool.get)
    gevent.sleep(0)
    with pytest.raises(PoolFull):
        pool.get()
    with pytest.raises(PoolTimeout, match=r"0\.01 s"):
        waiter.get(timeout=5)
    pool.put(one)
    pool.put(two)
    with pool.item() as client:
        assert client is two


def test_nobody_is_asked_for_notices(redis_server, redis_pool, proxy_to):
    """One that comes while a client is idle would look like a stray reply."""
    proxy = proxy_to(redis_server)
    number(redis_pool(proxy, protocol=3))
    number(
        redis_pool(
            create=lambda: redis.Redis(host=proxy.host, port=proxy.port, decode_responses=True)
        )
    )
    assert len(proxy.links) == 2
    assert [link for link in proxy.links if b"MAINT_NOTIFICATIONS" in link.request] == []


def test_nonsense_urls_are_refused_at_once():
    with pytest.raises(ValueError, match="scheme"):
        RedisPool("http://127.0.0.1")


class Inherited(RedisPool):
    def create(self):
        client = super().create()
        client.mark = "mine"
        return client


@pytest.mark.parametrize("how", ["subclass", "own subclass", "keyword", "from_url", "used"])
def test_clients_of_ones_own_have_one_connection_too(redis_server, redis_pool, how):
    made = []

    def create():
        client = redis.Redis(host=redis_server.host, port=redis_server.port, decode_responses=True)
        if how == "from_url":
            client = redis.Redis.from_url(redis_server.url, decode_responses=True)
        if how == "used":
            client.ping()
        client.mark = "mine"
        made.append(client)
        return client

    class Own(RedisPool):
        def create(self):
            return create()

    if how == "subclass":
        pool = redis_pool(redis_server, pool_class=Inherited)
    elif how == "own subclass":
        pool = redis_pool(pool_class=Own)
    else:
        pool = redis_pool(create=create)
    with pool.item() as client:
        assert client.mark == "mine"
        client.select(2)
    with pool.item() as client:
        assert state(client)["db"] == 0
        client.pipeline().get("a").get("b").execute()
        until(lambda: len(clients(redis_server)) == 1)
        with client.pubsub() as pubsub:
            pubsub.subscribe("a")
            with pytest.raises(redis.ConnectionError):
                client.get("a")
    whole(pool, redis_server)


@pytest.mark.parametrize("made", [object(), redis.ConnectionPool(), redis.asyncio.Redis()])
def test_what_create_returns_must_be_a_client(redis_pool, made, caplog):
    pool = redis_pool(create=lambda: made)
    with pytest.raises(PoolError, match=rf"returned a {type(made).__module__}.*, no redis\.Redis"):
        pool.get()
    assert pool.free() == 1
    assert not caplog.records


def test_a_client_of_ones_own_on_a_single_connection_is_refused(redis_server, redis_pool):
    made = []

    def create():
        made.append(
            redis.Redis(
                host=redis_server.host, port=redis_server.port, single_connection_client=True
            )
        )
        return made[-1]

    pool = redis_pool(create=create)
    with pytest.raises(PoolError, match="single_connection_client"):
        pool.get()
    assert pool.current_size == 0
    made[0].close()
    until(lambda: clients(redis_server) == [])


def test_no_verb_of_the_core_is_overridden():
    from gpools import HttpPool

    for pool_class in (RedisPool, HttpPool):
        for verb in ("get", "put", "item", "discard"):
            assert inspect.getattr_static(pool_class, verb) is inspect.getattr_static(
                ConnectionPool, verb
            )


# What one user leaves, the next does not find


def left_open(make):
    """Do something with an object of redis-py, and keep that past the block."""

    def leave(client, kept):
        kept.append(make(client))

    return leave


def command(*words):
    return lambda client, kept: client.execute_command(*words)


def unread(*words):
    """Send a command and leave its reply unread."""

    def leave(client, kept):
        connection = client.connection_pool.get_connection()
        connection.send_command(*words)
        client.connection_pool.release(connection)

    return leave


def watching_pipeline(client):
    pipe = client.pipeline()
    pipe.watch("k")
    return pipe


def pubsub(verb):
    def make(client):
        pubsub = client.pubsub()
        getattr(pubsub, verb)("channel")
        pubsub.parse_response()
        return pubsub

    return make


def entered_monitor(client):
    return client.monitor().__enter__()


def unanswered(*words):
    """Send a command, and catch the Timeout while it waits for a reply."""

    def leave(client, kept):
        with Timeout(0.02, False):
            client.execute_command(*words)

    return leave


def refused(*words):
    def leave(client, kept):
        with pytest.raises(redis.ResponseError):
            client.execute_command(*words)

    return leave


def in_a_pipeline(transaction):
    def leave(client, kept):
        client.pipeline(transaction).set("k", 1).execute_command("SELECT", 3).execute()

    return leave


LEFT = {
    "SELECT": lambda client, kept: client.select(5),
    "select": command("select", 5),
    "SELECT in bytes": command(b"SELECT", 5),
    "SELECT in a pipeline": in_a_pipeline(False),
    "SELECT in a transaction": in_a_pipeline(True),
    "SELECT, then back": lambda client, kept: client.select(5) and client.select(0),
    "MULTI": command("MULTI"),
    "MULTI with commands": lambda client, kept: [
        client.execute_command("MULTI"),
        client.execute_command("LPUSH", "k", "v"),
    ],
    "WATCH": command("WATCH", "k"),
    "WATCH, then MULTI": lambda client, kept: [
        client.execute_command("WATCH", "k"),
        client.execute_command("MULTI"),
    ],
    "a watching pipeline": left_open(watching_pipeline),
    "a pubsub": left_open(pubsub("subscribe")),
    "a pubsub by pattern": left_open(pubsub("psubscribe")),
    "SUBSCRIBE": unanswered("SUBSCRIBE", "channel"),
    "PSUBSCRIBE": unanswered("PSUBSCRIBE", "channel*"),
    "a monitor": left_open(entered_monitor),
    "MONITOR": command("MONITOR"),
    "CLIENT SETNAME": lambda client, kept: client.client_setname("dirty"),
    "client setname": command("client", "setname", "dirty"),
    "CLIENT SETNAME, one word": command("CLIENT SETNAME", "dirty"),
    "CLIENT REPLY OFF": unanswered("CLIENT", "REPLY", "OFF"),
    "CLIENT REPLY OFF unread": unread("CLIENT", "REPLY", "OFF"),
    "CLIENT REPLY SKIP unread": unread("CLIENT", "REPLY", "SKIP"),
    "CLIENT TRACKING": command("CLIENT", "TRACKING", "ON"),
    "AUTH": lambda client, kept: client.auth("guestword", "guest"),
    "HELLO": lambda client, kept: client.execute_command(
        *("HELLO", client.get_connection_kwargs()["protocol"]),
        *("AUTH", "guest", "guestword", "SETNAME", "dirty"),
    ),
    "RESET": command("RESET"),
    "READONLY": refused("READONLY"),
    "a monitor that is not entered": left_open(lambda client: client.monitor()),
    "a reply that was never to be read": lambda client, kept: (
        client.connection_pool.connection.send_command("ECHO", "foreign")
    ),
    "an unread reply": unread("ECHO", "foreign"),
    "an unread error": unread("NONSENSE"),
}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("left", LEFT)
def test_the_next_user_gets_a_clean_connection(redis_server, redis_pool, left, protocol):
    redis_server.call("ACL", "SETUSER", "guest", "on", ">guestword", "~*", "&*", "+@all")
    pool = redis_pool(redis_server, protocol=protocol)
    kept = []
    with pool.item() as client:
        fresh = state(client)
        client.delete("k")
    with pool.item() as client:
        LEFT[left](client, kept)
    redis_server.call("SET", "k", "touched")
    redis_server.call("PUBLISH", "channel", "foreign")
    with pool.item() as client:
        assert state(client) == fresh
        assert client.echo("mine") == "mine"
        # An EXEC fails if the WATCH is still there.
        assert client.pipeline().set("k", "v").get("k").execute() == [True, "v"]
        assert redis_server.call("GET", "k") == "v"
    whole(pool, redis_server)
    redis_server.call("ACL", "DELUSER", "guest")


@pytest.mark.parametrize("words", [("SCRIPT", "DEBUG", "YES"), ("script debug", "sync")])
def test_a_debugger_of_scripts_is_not_the_next_users(redis_server, redis_pool, words):
    pool = redis_pool(redis_server)
    with pool.item() as client:
        assert client.execute_command(*words)
    with pool.item() as client:
        assert client.eval("return 1", 0) == 1
        digest = client.script_load("return 2")
        assert client.evalsha(digest, 0) == 2
        first = client.client_id()
    assert number(pool) == first


def test_a_connection_that_is_owed_a_reply_is_not_kept(redis_server, redis_pool):
    """Whatever check_after says: that is about what happens to idle ones."""
    pool = redis_pool(redis_server, check_after=None)
    with pool.item() as client:
        client.connection_pool.connection.send_command("ECHO", "foreign")
    with pool.item() as client:
        assert client.echo("mine") == "mine"


@pytest.mark.parametrize("protocol", [2, 3])
def test_reset_does_not_leave_the_next_user_unknown(locked_server, redis_pool, protocol):
    pool = redis_pool(locked_server, password=WORD, protocol=protocol, db=1)
    with pool.item() as client:
        client.execute_command("RESET")
    with pool.item() as client:
        client.hset("h", "a", "b")
        assert client.hgetall("h") == {"a": "b"}
        assert int(client.client_info()["db"]) == 1


def transaction_by_hand(end):
    def act(client):
        client.execute_command("WATCH", "k")
        client.execute_command("MULTI")
        client.execute_command(end)

    return act


def watch_by_hand(client):
    client.execute_command("WATCH", "k")
    client.execute_command("UNWATCH")


KEPT = {
    "a command": lambda client: client.set("k", "v"),
    "a transaction": lambda client: client.pipeline().set("k", 1).get("k").execute(),
    "a pipeline": lambda client: client.pipeline(False).set("k", 1).get("k").execute(),
    "EXEC": transaction_by_hand("EXEC"),
    "DISCARD": transaction_by_hand("DISCARD"),
    "UNWATCH": watch_by_hand,
    "a pipeline that watched": lambda client: client.transaction(
        lambda pipe: pipe.multi() or pipe.get("k"), "k"
    ),
    "CLIENT reads": lambda client: [client.client_list(), client.client_getname()],
    "an unused pubsub": lambda client: client.pubsub().close(),
    "a script": lambda client: client.register_script("return redis.call('GET', 'k')")(),
}


@pytest.mark.parametrize("what", KEPT)
def test_a_clean_connection_is_kept(redis_server, redis_pool, what):
    pool = redis_pool(redis_server)
    first = number(pool)
    with pool.item() as client:
        KEPT[what](client)
    assert number(pool) == first
    assert redis_server.stats()["accepted"] == 1


def test_a_connection_made_anew_has_nothing_left_on_it(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    with pool.item() as client:
        client.select(5)
        client.connection_pool.disconnect()
        second = client.client_id()
    assert number(pool) == second


def wrong_type(client):
    client.set("k", "v")
    client.lpush("k", "v")


def changed_under_watch(client):
    with client.pipeline() as pipe:
        pipe.watch("k")
        pipe.set("k", "changed")
        pipe.multi()
        pipe.get("k").execute()


def programs_own(client):
    client.get("k")
    raise ValueError("the program's own")


ERRORS = [
    (wrong_type, redis.ResponseError),
    (lambda client: client.pipeline().lpush("k", 1).get("k").execute(), redis.ResponseError),
    (lambda client: client.execute_command("NONSENSE"), redis.ResponseError),
    (changed_under_watch, redis.WatchError),
    (lambda client: client.set("k", object()), redis.DataError),
    (programs_own, ValueError),
]


@pytest.mark.parametrize(("act", "error"), ERRORS)
def test_an_application_error_keeps_the_item(redis_server, redis_pool, act, error):
    pool = redis_pool(redis_server)
    first = number(pool)
    with pool.item() as client:
        client.set("k", "v")
    with pytest.raises(error), pool.item() as client:
        act(client)
    assert number(pool) == first
    assert redis_server.stats()["accepted"] == 1


@pytest.mark.parametrize(
    "error",
    [
        redis.ConnectionError("x"),
        redis.TimeoutError("x"),
        redis.InvalidResponse("x"),
        redis.exceptions.ReadOnlyError("x"),
        OSError("x"),
        Timeout(0),
        gevent.GreenletExit(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_worse_error_does_not(redis_server, redis_pool, error):
    pool = redis_pool(redis_server)
    first = number(pool)
    with pytest.raises(type(error)), pool.item():
        raise error
    assert number(pool) != first
    until(lambda: len(clients(redis_server)) == 1)


class Boom(Exception):
    pass


def boom(*args, **options):
    raise Boom


@pytest.mark.parametrize("caught", [True, False])
def test_a_response_callback_that_raises_poisons_nobody(redis_server, redis_pool, caught):
    """The replies behind it in the pipeline were nobody's, and then the next user's."""
    pool = redis_pool(redis_server)

    def half_way(client):
        client.response_callbacks["TIME"] = boom
        with pytest.raises(Boom):
            client.pipeline(transaction=False).time().echo("theirs").echo("theirs").execute()
        if caught:
            assert client.echo("mine") == "mine"
            return
        raise Boom

    if caught:
        with pool.item() as client:
            half_way(client)
    else:
        with pytest.raises(Boom), pool.item() as client:
            half_way(client)
    with pool.item() as client:
        assert client.echo("mine") == "mine"
        assert client.echo("mine too") == "mine too"
    whole(pool, redis_server)


# What escapes from its block


def use_pipeline(pipe):
    pipe.set("k", "foreign").execute()


def use_watch(pipe):
    pipe.watch("k")


def use_pubsub(pubsub):
    pubsub.subscribe("channel")


def use_monitor(monitor):
    monitor.__enter__()


ESCAPED = {
    "a pipeline": (lambda client: client.pipeline(), use_pipeline),
    "a filled pipeline": (lambda client: client.pipeline().set("k", "foreign"), use_pipeline),
    "a pipeline, to watch": (lambda client: client.pipeline(), use_watch),
    "a watching pipeline": (watching_pipeline, use_pipeline),
    "a pubsub": (lambda client: client.pubsub(), use_pubsub),
    "a subscribed pubsub": (pubsub("subscribe"), use_pubsub),
    "a subscribed pubsub, listening": (pubsub("subscribe"), lambda p: p.get_message(timeout=1)),
    "a monitor": (entered_monitor, use_monitor),
}


@pytest.mark.parametrize("holder", ["idle", "in use"])
@pytest.mark.parametrize("what", ESCAPED)
def test_what_escapes_from_its_block_can_do_nothing(
    redis_server, redis_pool, proxy_to, what, holder
):
    """A pipeline kept past its block used to send on the connection of whoever had it then."""
    make, use = ESCAPED[what]
    proxy = proxy_to(redis_server)
    pool = redis_pool(proxy)
    with pool.item() as client:
        escaped = make(client)
    if holder == "in use":
        client = pool.get()
    else:
        client = pool.get()
        pool.put(client)
    made, sent = proxy.made, len(proxy.links[-1].request)

    with pytest.raises((redis.ConnectionError, redis.WatchError)):
        use(escaped)
    del escaped
    gc.collect()
    settle()

    assert proxy.made == made
    assert len(proxy.links[-1].request) == sent
    if holder == "in use":
        assert client.echo("mine") == "mine"
        pool.put(client)
    with pool.item() as client:
        assert client.get("k") is None
    assert proxy.made == made


@pytest.mark.parametrize("what", ESCAPED)
def test_what_escapes_and_is_collected_does_no_io(redis_server, redis_pool, proxy_to, what):
    make, _ = ESCAPED[what]
    proxy = proxy_to(redis_server)
    pool = redis_pool(proxy)
    with pool.item() as client:
        escaped = make(client)
    pool.put(pool.get())
    made, sent = proxy.made, [len(link.request) for link in proxy.links]
    gc.collect()
    with switches() as count:
        del escaped
        gc.collect()
    assert count() == 0
    settle()
    assert (proxy.made, [len(link.request) for link in proxy.links]) == (made, sent)


# Commands are sent once


@pytest.mark.parametrize("how", ["url", "keywords"])
def test_no_command_is_sent_twice(redis_server, redis_pool, proxy_to, how):
    """redis-py retries by default, and one INCR became eleven."""
    proxy = proxy_to(redis_server)
    if how == "url":
        pool = redis_pool(None, f"redis://{proxy.host}:{proxy.port}/0")
    else:
        pool = redis_pool(proxy)
    pool.put(pool.get())
    link = proxy.links[0]
    link.fault = close(len(link.reply))

    with pytest.raises(redis.ConnectionError), pool.item() as client:
        client.incr("n")

    assert redis_server.call("GET", "n") == "1"
    assert number(pool)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(
            {"retry": Retry(NoBackoff(), 1)},
            marks=pytest.mark.skipif(
                redis.__version__ < "6", reason="this redis-py wants retry_on_error, too"
            ),
        ),
        {"retry_on_error": [redis.ConnectionError]},
    ],
    ids=["retry", "retry_on_error"],
)
def test_a_command_is_sent_twice_for_who_asks_for_that(redis_server, redis_pool, proxy_to, asked):
    proxy = proxy_to(redis_server)
    pool = redis_pool(proxy, **asked)
    pool.put(pool.get())
    link = proxy.links[0]
    link.fault = close(len(link.reply))
    with pool.item() as client:
        assert client.incr("n") == 2
    assert redis_server.call("GET", "n") == "2"


# Idle connections that die


def idle(pool):
    """Fill the pool; return how many items are idle."""
    items = [pool.get() for _ in range(pool.max_size)]
    for item in items:
        pool.put(item)
    return len(items)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("how", ["closed", "reset", "killed by the server", "stray bytes"])
def test_a_connection_that_died_idle_is_not_handed_out(
    redis_server, redis_pool, proxy_to, how, protocol
):
    proxy = proxy_to(redis_server)
    pool = redis_pool(proxy, protocol=protocol)
    first = number(pool)
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
    with pool.item() as client:
        assert client.echo("mine") == "mine"
        assert client.client_id() != first
    whole(pool, redis_server)


@pytest.mark.parametrize("how", ["closed", "stray bytes", "disconnected"])
def test_a_connection_that_died_in_use_is_not_put_back(redis_server, redis_pool, proxy_to, how):
    """Whatever check_after says: that is about what happens to idle ones."""
    proxy = proxy_to(redis_server)
    pool = redis_pool(proxy, check_after=None)
    with pool.item() as client:
        first = client.client_id()
        if how == "closed":
            proxy.close_all()
        elif how == "disconnected":
            client.connection_pool.disconnect()
        else:
            proxy.links[0].client.sendall(b"+foreign\r\n")
        gevent.sleep(A_MOMENT)
    until(lambda: pool.current_size == 0)
    assert number(pool) != first


def test_who_answered_just_now_is_not_looked_at(redis_server, redis_pool, monkeypatch):
    """Each look is a call of the system, and a busy pool has no use for them."""
    looks = looks_at_sockets(monkeypatch, _redis_connection)
    pool = redis_pool(redis_server)
    number(pool)

    def unseen():
        before = len(looks)
        number(pool)
        return len(looks) == before

    until(unseen)  # on a slow machine it may take more than one attempt
    with pool.item():
        gevent.sleep(A_MOMENT)
    assert looks


def test_who_had_itself_killed_is_not_the_next_ones(redis_server, redis_pool):
    """The server answers first, and then hangs up."""
    pool = redis_pool(redis_server)
    with pool.item() as client:
        own = client.client_id()
        client.execute_command("CLIENT", "KILL", "ID", own, "SKIPME", "no")
    assert number(pool) != own


class OwnParser:
    """A parser of the program's own: of what it has read ahead it tells by can_read() only."""

    def __init__(self, socket_read_size):
        self._inner = type(redis.Connection()._parser)(socket_read_size=socket_read_size)
        for name in ("on_connect", "on_disconnect", "can_read", "read_response"):
            setattr(self, name, getattr(self._inner, name))


@pytest.mark.parametrize("parser", [{}, {"parser_class": OwnParser, "protocol": 2}])
def test_what_came_along_with_the_last_reply_is_read_by_nobody(redis_server, redis_pool, parser):
    options = {"host": redis_server.host, "port": redis_server.port, **parser}
    model = redis.ConnectionPool(**options)
    pool = redis_pool(create=lambda: redis.Redis(connection_pool=model))
    with pool.item() as client:
        first = client.client_id()
        redis_server.freeze()
        user = spawn(client.echo, "x")
        settle()
        client.connection_pool.connection._sock.sendall(b"ECHO foreign\r\n")
        redis_server.thaw()
        user.join(timeout=5)
    with pool.item() as client:
        assert client.echo("mine") in ("mine", b"mine")
        assert client.client_id() != first


def test_the_check_is_made_when_it_is_due(redis_server, redis_pool):
    class Counting(RedisPool):
        checks = 0

        def check(self, item):
            self.checks += 1
            return super().check(item)

    never = redis_pool(redis_server, pool_class=Counting, check_after=None)
    late = redis_pool(redis_server, pool_class=Counting, check_after=3600)
    always = redis_pool(redis_server, pool_class=Counting, check_after=0)
    for pool in (never, late, always):
        numbers = {number(pool) for _ in range(4)}
        assert len(numbers) == 1
    assert (never.checks, late.checks, always.checks) == (0, 0, 3)

    usual = redis_pool(redis_server, pool_class=Counting)
    number(usual)
    for _ in range(3):
        gevent.sleep(A_MOMENT)
        number(usual)
    assert usual.checks == 3

    redis_server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(redis.ConnectionError), late.item() as client:
        client.ping()
    assert number(always)


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_check_never_switches(redis_server, redis_pool, protocol):
    pool = redis_pool(redis_server, protocol=protocol)
    client = pool.get()
    # With hiredis, in a patched program, redis-py's own look does.
    client.connection_pool.connection.can_read = None
    pool.put(client)
    gevent.sleep(0)
    with switches() as count:
        gevent.sleep(0)
    assert count() > 0  # else it counts nothing
    with switches() as count:
        assert pool.check(client)
        assert pool.get() is client
        pool.put(client)
    assert count() == 0
    redis_server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with switches() as count:
        assert not pool.check(client)
    assert count() == 0


def test_a_parser_that_is_not_redis_pys_is_asked_itself(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    with pool.item() as client:
        connection = client.connection_pool.connection
        theirs = connection._parser
        for unread in (True, False):
            connection._parser = SimpleNamespace(can_read=lambda timeout, unread=unread: unread)
            assert pool.check(client) is not unread
        connection._parser = theirs


def test_the_check_does_not_reconnect(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    with pool.item() as client:
        client.connection_pool.disconnect()
    with switches() as count:
        assert not pool.check(client)
    assert count() == 0
    assert redis_server.stats()["accepted"] == 1


@pytest.mark.usefixtures("high_fds")
def test_file_descriptors_beyond_1024(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    first = number(pool)
    with pool.item() as client:
        assert client.connection_pool.connection._sock.fileno() > 1023
    assert number(pool) == first
    redis_server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    gevent.sleep(A_MOMENT)
    assert number(pool) != first


# Failing to connect


def test_a_wrong_password_comes_out_as_it_is(locked_server, redis_pool):
    pool = redis_pool(locked_server, password="wrong")
    for _ in range(3):
        with pytest.raises(redis.AuthenticationError):
            pool.get()
    assert pool.current_size == 0
    assert pool.free() == 1
    until(lambda: clients(locked_server) == [])


def test_a_handshake_of_ones_own_that_fails_leaves_no_half_made_connection(
    redis_server, redis_pool
):
    failing = False

    def shake_hands(connection):
        if failing:
            raise ValueError("no")
        connection.on_connect()

    pool = redis_pool(redis_server, db=1, redis_connect_func=shake_hands)
    with pool.item() as client:
        client.connection_pool.disconnect()
        failing = True
        with pytest.raises(ValueError, match="no"):
            client.ping()
        failing = False
        assert int(client.client_info()["db"]) == 1


def test_a_client_that_could_not_reconnect_tries_again(redis_server, redis_pool, proxy_to):
    proxy = proxy_to(redis_server)
    with redis_pool(proxy).item() as client:
        proxy.refuse()
        proxy.close_all()
        for _ in range(3):
            with pytest.raises(redis.ConnectionError) as caught:
                client.ping()
            assert "one connection" not in str(caught.value)
        proxy.listen()
        assert client.ping()


def test_a_database_that_does_not_exist_comes_out_as_it_is(redis_server, redis_pool):
    pool = redis_pool(redis_server, db=99)
    with pytest.raises(redis.ResponseError, match="out of range"):
        pool.get()
    assert pool.current_size == 0
    until(lambda: clients(redis_server) == [])


def test_a_connection_cut_in_the_handshake_costs_no_slot(redis_server, redis_pool, proxy_to):
    proxy = proxy_to(redis_server)
    pool = redis_pool(proxy)
    proxy.script = [close(3), close(30), close()]
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            pool.get()
    assert pool.current_size == 0
    whole(pool, redis_server)


# Sending


def test_what_is_sent_is_counted_in_bytes():
    """Of an array a socket may take as many bytes as it has items, and no more."""

    class Slow(ShortSender):
        def send(self, data, *args, **kwargs):
            return super().send(memoryview(data).cast("B")[: len(data)], *args, **kwargs)

    data = array("I", range(1000))
    ours, theirs = gevent.socket.socketpair()
    with theirs, Slow(fileno=ours.detach()) as slow:
        slow.sendall(data)
        assert theirs.recv(10_000) == data.tobytes()


@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_a_command_larger_than_any_buffer_arrives_whole(redis_server, redis_pool, kind):
    value = bytes(range(256)) * 40_000
    pool = redis_pool(redis_server, decode_responses=False)
    with pool.item() as client:
        redis_server.freeze()
        user = spawn(client.set, "key", kind(value))
        settle()
        redis_server.thaw()
        assert user.get(timeout=10)
        assert client.get("key") == value
    assert number(pool)


def test_a_server_that_takes_no_more_is_given_up(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    with pool.item() as client:
        # Of this one alone: a busy machine may take longer to connect.
        client.connection_pool.connection._sock.settimeout(0.1)
        redis_server.freeze()
        try:
            with pytest.raises(redis.TimeoutError, match="writing"):
                client.set("key", bytes(20_000_000))
        finally:
            redis_server.thaw()
    whole(pool, redis_server)


def test_a_full_buffer_is_waited_for_as_long_as_by_gevents_own():
    """What was sent first had a whole timeout for itself, and the rest had another."""
    waits = {gevent.socket.socket: 0, ShortSender: 0}
    for kind in waits:

        class Slow(kind):
            __slots__ = ()

            def _wait(self, *args):
                waits[kind] += 1  # noqa: B023
                gevent.sleep(2 * self.timeout)
                peer.recv(1_000_000)  # noqa: B023

        ours, peer = gevent.socket.socketpair()
        with ours, peer:
            with suppress(BlockingIOError):
                while True:
                    ours.send(bytes(100_000), 0, 0.0)
            ours.__class__ = Slow
            ours.settimeout(0.01)
            with pytest.raises(TimeoutError):
                ours.sendall(bytes(20_000_000))
    assert waits == {gevent.socket.socket: 1, ShortSender: 1}


def test_the_size_of_the_buffer_is_not_asked_for(redis_server, redis_pool, monkeypatch):
    """gevent's sendall() does so before each command, and that costs as much as to send it."""
    pool = redis_pool(redis_server)
    with pool.item() as client:
        monkeypatch.setattr(gevent.socket.socket, "getsockopt", boom, raising=False)
        assert client.set("key", "value")
        assert client.get("key") == "value"


# Waiting for the server


def test_a_blocking_command_that_outlasts_socket_timeout(redis_server, redis_pool):
    pool = redis_pool(redis_server, socket_timeout=0.05)
    first = number(pool)
    with pytest.raises(redis.TimeoutError), pool.item() as client:
        client.blpop("empty", timeout=0)
    redis_server.call("RPUSH", "empty", "foreign")
    with pool.item() as client:
        assert client.client_id() != first
        assert client.echo("mine") == "mine"


def test_a_blocking_command_caught_in_the_block(redis_server, redis_pool):
    pool = redis_pool(redis_server, socket_timeout=0.05)
    with pool.item() as client:
        with pytest.raises(redis.TimeoutError):
            client.blpop("empty", timeout=0)
        redis_server.call("RPUSH", "empty", "foreign")
        assert client.echo("mine") == "mine"
    with pool.item() as client:
        assert client.echo("mine") == "mine"
    whole(pool, redis_server)


def test_a_blocking_command_that_finds_nothing_in_time_keeps_the_item(redis_server, redis_pool):
    pool = redis_pool(redis_server, socket_timeout=5)
    first = number(pool)
    with pool.item() as client:
        assert client.blpop("empty", timeout=0.02) is None
    assert number(pool) == first


# Passwords


def test_nothing_prints_a_password(locked_server, redis_pool, caplog):
    caplog.set_level(logging.DEBUG)
    said = []
    url = locked_server.url
    assert WORD in url
    pool = redis_pool(None, url, username="default", name="main")
    item = pool.get()
    said += [repr(pool), repr(item), repr(item.connection_pool)]
    with pytest.raises(PoolTimeout) as caught:
        pool.get(timeout=0)
    said.append(str(caught.value))
    said += map(str, pool.holders())
    pool.put(item)
    for wrong in (pool.put, pool.discard):
        with pytest.raises(NotInUse) as caught:
            wrong(item)
        said.append(str(caught.value))
    with pytest.raises(NotInUse) as caught:
        pool.put(redis.Redis.from_url(url))
    said.append(str(caught.value))
    with pool.item() as client:  # a failing reset
        client.select(1)
    with pytest.raises(redis.ResponseError) as caught, pool.item() as client:
        client.execute_command("NONSENSE")
    said.append(str(caught.value))
    item = pool.get()  # a failing destroy
    item.connection_pool.retire = boom
    connection = item.connection_pool.connection
    pool.discard(item)
    connection.disconnect()
    for option in ("max_connections", "no_such_option"):
        with pytest.raises(TypeError) as caught:
            RedisPool(url, **{option: 1})
        said.append(str(caught.value))
    wrong = redis_pool(None, url.replace(WORD, f"{WORD}-wrong"))
    with pytest.raises(redis.AuthenticationError) as caught:
        wrong.get()
    said.append(str(caught.value))
    pool.close()
    said.append(repr(pool))
    with pytest.raises(PoolError) as caught:
        pool.get()
    said.append(str(caught.value))

    assert "reset of" in caplog.text
    assert "destroy of" in caplog.text
    assert [text for text in (*said, caplog.text) if WORD in text] == []
    assert "main" in repr(pool)


# The storm


def test_a_hundred_greenlets_on_five_connections(redis_server, redis_pool):
    pool = redis_pool(redis_server, max_size=5)

    def user(name):
        for turn in range(5):
            with pool.item() as client:
                assert client.echo(f"{name}-{turn}") == f"{name}-{turn}"

    users = [spawn(user, name) for name in range(100)]
    gevent.joinall(users, timeout=30, raise_error=True)
    assert redis_server.stats()["accepted"] == 5


def test_close_leaves_no_connection(redis_server, redis_pool):
    pool = redis_pool(redis_server, max_size=3)
    idle(pool)
    held = pool.get()
    pool.close()
    until(lambda: len(clients(redis_server)) == 1)
    pool.put(held)
    until(lambda: clients(redis_server) == [])
    with pytest.raises(redis.ConnectionError, match="for good"):
        held.ping()


def test_a_kill_while_connecting_leaves_no_connection(redis_server, redis_pool, proxy_to):
    proxy = proxy_to(redis_server)
    pool = redis_pool(proxy)
    proxy.script = [hang(5)]
    getter = spawn(pool.get)
    assert proxy.stopped.wait(5)
    getter.kill()
    assert pool.current_size == 0
    until(lambda: proxy.open == 0)
    whole(pool, redis_server)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")


def open_files():
    return len(os.listdir("/proc/self/fd"))


@needs_proc
def test_a_kill_in_connect_leaves_no_socket_behind(redis_server, redis_pool, proxy_to):
    """redis-py left it to the garbage collector, and so to whoever kept the error."""
    proxy = proxy_to(redis_server)
    proxy.never_accept()
    pool = redis_pool(proxy)
    before = open_files()
    with pytest.raises(Timeout) as kept, Timeout(0.02):
        pool.get()
    assert open_files() == before
    assert kept.value.__traceback__ is not None


@pytest.mark.parametrize(
    "command", ["SELECT 3", b"select 3", " SELECT  3", "MULTI ", "CLIENT SETNAME"]
)
def test_two_words_in_one_argument_leave_their_mark_too(redis_server, command):
    """redis-py splits them, and so the connection was handed on with another database."""
    with RedisPool(redis_server.url, max_size=1) as pool:
        with pool.item() as client:
            first = client.client_id()
            client.execute_command(command, *(["me"] if "SETNAME" in str(command) else []))
        with pool.item() as client:
            assert client.client_id() != first


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_command_in_bytes_of_any_kind_leaves_its_mark(redis_server, redis_pool, kind):
    """redis-py sends it, and then does not know what to make of its reply."""
    pool = redis_pool(redis_server)
    with pool.item() as client, suppress(AttributeError, TypeError, redis.DataError):
        client.execute_command(kind(b"SELECT"), 3)
    with pool.item() as client:
        assert int(client.client_info()["db"]) == 0


def test_exec_that_is_an_error_ends_no_watch(redis_server):
    with RedisPool(redis_server.url, max_size=1) as pool:
        with pool.item() as client:
            first = client.client_id()
            client.execute_command("WATCH", "key")
            with pytest.raises(redis.ResponseError):
                client.execute_command("EXEC")
        with pool.item() as client:
            assert client.client_id() != first


def test_callbacks_and_attributes_left_on_a_client_do_not_reach_the_next_user(redis_server):
    with RedisPool(redis_server.url, max_size=1) as pool:
        with pool.item() as client:
            first = client.client_id()
            client.set_response_callback("GET", lambda reply, **_: "FOREIGN")
            client.tenant = "mine"
        with pool.item() as client:
            client.set("key", "own")
            assert client.get("key") == b"own"
            assert not hasattr(client, "tenant")
            assert client.client_id() == first


@pytest.mark.parametrize("change", ["set", "put in the callbacks", "taken out", "in a pipeline"])
def test_callbacks_that_a_user_changed_are_as_before(redis_server, redis_pool, change):
    pool = redis_pool(redis_server)
    with pool.item() as client:
        client.set("key", "own")
        if change == "set":
            client.response_callbacks = {"GET": lambda reply: "FOREIGN"}
        elif change == "put in the callbacks":
            client.response_callbacks["GET"] = lambda reply: "FOREIGN"
        elif change == "taken out":
            del client.response_callbacks["TIME"]
        else:
            client.pipeline().set_response_callback("GET", lambda reply: "FOREIGN")
        assert client.get("key") == ("own" if change == "taken out" else "FOREIGN")
    with pool.item() as client:
        assert client.get("key") == "own"
        assert isinstance(client.time(), tuple)


def test_the_pool_and_callbacks_that_a_user_kept_are_of_no_use_later(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    with pool.item() as client:
        callbacks = client.response_callbacks
    with pool.item() as client:
        callbacks["ECHO"] = boom
        assert client.echo("mine") == "mine"
    with pool.item() as client:
        kept = client.connection_pool
        assert client.ping()
    with pool.item() as client:
        assert client.connection_pool is not kept
        with pytest.raises(redis.ConnectionError, match="back in its pool"):
            kept.get_connection()
        kept.disconnect()
        assert client.echo("mine") == "mine"
    assert redis_server.stats()["accepted"] == 1


def test_what_a_user_puts_into_a_slot_reaches_nobody(redis_server, redis_pool):
    make = slotted(redis.Redis)
    assert_slots_are_taken_back(redis_pool(create=lambda: make(port=redis_server.port)))


def test_retries_that_a_user_sets_are_his_own(redis_server, redis_pool, monkeypatch):
    """He had none: set_retry() reached the connections that the client would make."""
    pool = redis_pool(redis_server)
    for retries in (0, 2, 0):
        with pool.item() as client:
            only, calls = client.connection_pool, []
            assert type(only) is OneConnection  # of any other a command takes longer
            assert only.connection.retry._retries == 0
            if retries:
                client.set_retry(Retry(NoBackoff(), retries))
            with monkeypatch.context() as patch:
                patch.setattr(redis.connection.Connection, "send_packed_command", refuse(calls))
                with pytest.raises(redis.ConnectionError, match="not sent"):
                    client.ping()
            assert len(calls) == 1 + retries
            assert client.ping()


def test_options_that_a_user_changes_are_his_own(redis_server, redis_pool):
    """Of these redis-py makes what a pubsub, and a script, encode by."""
    pool = redis_pool(redis_server)
    for _ in range(2):
        with pool.item() as client:
            assert client.get_encoder().decode_responses
            client.get_connection_kwargs()["decode_responses"] = False
    assert pool.stats().created == 1


def test_a_retry_that_a_user_changes_is_his_own(redis_server, redis_pool):
    asked = Retry(NoBackoff(), 1)
    pool = redis_pool(redis_server, retry=asked, max_size=2)
    with pool.item() as client:
        client.get_connection_kwargs()["retry"]._retries = 5
        with pool.item() as another:
            assert another.connection_pool.connection.retry._retries == 1
    assert asked._retries == 1


def refuse(calls):
    def send(*args):
        calls.append(args)
        raise redis.ConnectionError("not sent")

    return send


SETTINGS = {
    "decode_responses": lambda connection: setattr(connection.encoder, "decode_responses", False),
    "encoding": lambda connection: setattr(connection.encoder, "encoding", "latin-1"),
    "encoder": lambda connection: setattr(connection, "encoder", copy(connection.encoder)),
    "socket_timeout": lambda connection: setattr(connection, "socket_timeout", 0.01),
    "timeout of the socket": lambda connection: connection._sock.settimeout(0.01),
    "health checks": lambda connection: setattr(connection, "health_check_interval", 1),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_settings_changed_on_the_connection_reach_nobody(redis_server, redis_pool, change):
    pool = redis_pool(redis_server, socket_timeout=7)
    for _ in range(2):
        with pool.item() as client:
            connection = client.connection_pool.get_connection()
            client.connection_pool.release(connection)
            assert connection._sock.gettimeout() == connection.socket_timeout == 7
            assert connection.health_check_interval == 0
            assert client.echo("\xe4") == "\xe4"
            SETTINGS[change](connection)
    assert pool.stats().in_use == 0
    assert pool.stats().created == 2


def test_callbacks_of_another_kind_do_not_stay(redis_server, redis_pool):
    """A plain dict that is equal to redis-py's own knows no small letters."""
    pool = redis_pool(redis_server, protocol=2)
    with pool.item() as client:
        client.hset("h", "a", "b")
        client.response_callbacks = dict(client.response_callbacks)
    with pool.item() as client:
        assert client.execute_command("hgetall", "h") == {"a": "b"}


def test_a_copied_client_that_was_kept_is_of_no_use_later(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    with pool.item() as client:
        kept = copy(client)
        assert kept.ping()
    with pool.item() as client:
        with pytest.raises(redis.ConnectionError, match="back in its pool"):
            kept.ping()
        assert client.echo("mine") == "mine"
    assert redis_server.stats()["accepted"] == 1


@pytest.mark.skipif(
    not hasattr(redis.Redis, "_execute_command"), reason="this redis-py takes the callbacks itself"
)
def test_a_user_who_leaves_nothing_costs_nothing(redis_server, redis_pool):
    pool = redis_pool(redis_server)

    def used(use):
        with pool.item() as client:
            use(client)
        return vars(client)["connection_pool"]

    first = used(lambda client: client.get("k"))
    assert used(lambda client: client.get("k")) is first
    second = used(lambda client: client.pipeline().get("k").execute())
    assert second is not first
    assert used(lambda client: client.get("k")) is second


def test_a_client_that_was_given_another_connection_pool_works_and_goes(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    other = redis.ConnectionPool(host=redis_server.host, port=redis_server.port)
    with pool.item() as client:
        first = client.client_id()
        client.connection_pool = other
        assert client.client_id() != first
    with pool.item() as client:
        assert client.connection_pool is not other
    other.disconnect()
    whole(pool, redis_server)


# Commands that spare redis-py's detours


ANSWERS = {
    "a word": lambda client: client.get("k"),
    "nothing": lambda client: client.get("none"),
    "a number": lambda client: client.incr("n"),
    "a callback": lambda client: client.hgetall("h"),
    "a callback with options": lambda client: client.zrange("z", 0, -1, withscores=True),
    "small letters": lambda client: client.execute_command("hgetall", "h"),
    "bytes": lambda client: client.execute_command(b"GET", "k"),
    "two words": lambda client: client.execute_command("CONFIG GET", "maxclients"),
    "as it is": lambda client: client.dump("k"),
    "empty": lambda client: client.execute_command("NONSENSE", EMPTY_RESPONSE="none"),
    "keys": lambda client: client.mget("k", "none"),
}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("what", ANSWERS)
def test_answers_are_those_of_redis_pys_own_client(redis_server, redis_pool, what, protocol):
    options = {"protocol": protocol, "decode_responses": True}
    own = redis.Redis(host=redis_server.host, port=redis_server.port, **options)
    own.set("k", "v")
    own.hset("h", "a", "b")
    own.zadd("z", {"a": 1.5})
    pool = redis_pool(redis_server, protocol=protocol)
    with pool.item() as client:
        own.delete("n")
        answer = ANSWERS[what](client)
        own.delete("n")
        assert answer == ANSWERS[what](own)
    own.close()


def test_a_client_made_by_client_uses_the_connection_that_it_took(redis_server, redis_pool):
    pool = redis_pool(redis_server)
    with pool.item() as client:
        first = client.client_id()
        with client.client() as single:
            assert single.echo("a") == "a"
            with pytest.raises(redis.exceptions.MaxConnectionsError):
                client.ping()
        assert client.echo("b") == "b"
    assert number(pool) == first


def test_who_watches_the_commands_of_redis_py_sees_them(redis_server, redis_pool, monkeypatch):
    """As Sentry, OpenTelemetry and Datadog do."""
    seen = []
    original = redis.Redis.execute_command

    def watching(self, *args, **options):
        seen.append(args[0])
        return original(self, *args, **options)

    pool = redis_pool(redis_server)
    number(pool)
    monkeypatch.setattr(redis.Redis, "execute_command", watching)
    with pool.item() as client:
        client.get("k")
    assert seen == ["GET"]


@pytest.mark.parametrize("name", ["parse_response", "_send_command_parse_response"])
def test_a_client_class_with_a_way_of_its_own_keeps_it(redis_server, redis_pool, name):
    class Shouting(redis.Redis):
        pass

    def shout(self, *args, **options):
        return getattr(redis.Redis, name)(self, *args, **options).upper()

    setattr(Shouting, name, shout)
    pool = redis_pool(
        create=lambda: Shouting(
            host=redis_server.host, port=redis_server.port, decode_responses=True
        )
    )
    with pool.item() as client:
        assert isinstance(client, Shouting)
        assert client.echo("mine") == "MINE"


@pytest.mark.parametrize("name", ["connection_pool", "response_callbacks"])
def test_a_client_class_with_a_property_that_the_pool_needs_is_refused(
    redis_server, redis_pool, name
):
    kept = property(lambda self: vars(self)["kept"], lambda self, it: vars(self).update(kept=it))
    client_class = type("Own", (redis.Redis,), {name: kept})
    pool = redis_pool(create=lambda: client_class(host=redis_server.host, port=redis_server.port))
    with pytest.raises(TypeError, match=f"Own.{name} is a property"):
        pool.get()
    assert pool.free() == 1
    assert redis_server.stats()["open"] == 0


@pytest.mark.skipif(not hasattr(redis.Redis, "_himport_execute_set"), reason="not in this redis-py")
def test_what_redis_py_does_for_one_command_is_done(redis_server, redis_pool, monkeypatch):
    pool = redis_pool(redis_server)
    monkeypatch.setattr(redis.Redis, "_himport_execute_set", lambda self, conn, *words: words)
    with pool.item() as client:
        answer = client.execute_command("HIMPORT", "SET", "key", "fields", "a", "b")
    assert answer == ("key", "fields", ["a", "b"])


def test_health_checks_are_made_where_they_are_asked_for(redis_server, redis_pool, proxy_to):
    proxy = proxy_to(redis_server)
    pool = redis_pool(proxy, health_check_interval=0.001)
    with pool.item() as client:
        client.echo("a")
        gevent.sleep(0.01)
        client.echo("b")
    assert b"PING" in proxy.links[0].request


@pytest.mark.skipif(redis.__version__ < "7.2", reason="this redis-py has no metrics")
@pytest.mark.parametrize("collecting", [True, False])
def test_commands_are_in_redis_pys_metrics(redis_server, redis_pool, monkeypatch, collecting):
    from redis.observability import recorder

    class Collector:
        def record_operation_duration(self, command_name, **about):
            commands.append(command_name)

    commands = []
    pool = redis_pool(redis_server)
    number(pool)
    if collecting:
        monkeypatch.setattr(recorder, "_metrics_collector", Collector())
    else:  # but somebody is about to
        monkeypatch.setattr(recorder, "_get_or_create_collector", Collector)
        monkeypatch.setattr(recorder, "_metrics_collector", None)
        instance = recorder.get_observability_instance()
        monkeypatch.setattr(instance, "_provider_manager", object())
    with pool.item() as client:
        client.get("k")
    assert commands == ["GET"]
