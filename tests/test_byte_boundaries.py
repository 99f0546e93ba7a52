"""Greenlets killed and timed out at every byte of an exchange, in both directions.

Each exchange goes through a proxy that stops it after the k-th byte, for every
k there is.  The victim ends there, what was held back goes on its way, and
then the item, or its successor, is used again.  Every request is tagged, so
that an answer which belongs to somebody else is recognised.
"""

import json
from contextlib import contextmanager
from itertools import count
from queue import SimpleQueue

import gevent
import httplib2
import pytest
from gevent import Timeout

from gpools import HttpPool, RedisPool
from tests.cooperative import cooperative  # noqa: F401
from tests.proxy import REPLY, REQUEST, hang, hung_up
from tests.servers import RedisServer
from tests.waiting import settle, spawn, until

pytestmark = pytest.mark.usefixtures("cooperative")

# How the victim ends: the last two catch the Timeout inside the with block, and
# go on with the item, or leave as if nothing had happened.
ENDINGS = ["killed", "timed out", "goes on", "leaves"]

every_ending = pytest.mark.parametrize("ending", ENDINGS)
both_ways = pytest.mark.parametrize("stream", [REQUEST, REPLY])


def live(proxy):
    """List the connections that no client has closed, the newest last."""
    recent = proxy.links[-10:]
    return [link for link in recent if link.client.fileno() >= 0 and not hung_up(link.client)]


class Ordeal:
    """Interrupts one exchange at one byte after the other, and looks at who comes next."""

    def __init__(self, pool, proxy, exchange, ask):
        self.pool = pool
        self.proxy = proxy
        self.exchange = exchange  # called with an item and a tag
        self.ask = ask  # the same; returns the tag of the answer
        self.tags = (f"{n:06}" for n in count(1))
        self.foreign = []  # (where, tag asked for, tag of the answer)

    def next_user(self, where):
        with Timeout(5, AssertionError(where)), self.pool.item() as client:
            self.check(where, client)

    def check(self, where, client):
        tag = next(self.tags)
        answer = self.ask(client, tag)
        if answer != tag:
            self.foreign.append((where, tag, answer))

    def link(self):
        """Find the connection that the next user will use."""
        return live(self.proxy)[-1]

    def length(self, stream):
        self.next_user("measuring")
        seen = getattr(self.link(), stream)
        before = len(seen)
        with self.pool.item() as client:
            self.exchange(client, next(self.tags))
        return len(seen) - before

    def strike(self, ending, stream, k):
        where = f"{ending} at byte {k} of the {stream}"
        self.next_user(where)  # connects, if there is no connection
        link = self.link()
        link.fault = hang(len(getattr(link, stream)) + k, stream)
        self.interrupt(where, ending)

    def interrupt(self, where, ending):
        victim = spawn(self.victim, where, ending, next(self.tags))
        assert self.proxy.stopped.wait(10), where
        settle()  # the victim has read all there is
        if victim.ready():  # and that was all: its connection is idle, and stopped
            self.proxy.resume()
        victim.kill(gevent.GreenletExit if ending == "killed" else Timeout(0), block=False)
        settle()
        if ending != "goes on":  # else the item is still in use, for ever if it must be
            until(victim.ready)  # redis-py may say UNWATCH on a new connection before
            self.next_user(where)  # while the rest is still on its way
        self.proxy.resume()
        settle()
        self.next_user(where)  # when it has come
        victim.join(5)
        assert victim.ready(), where
        error = victim.exception
        assert error is None or isinstance(error, Timeout), (where, error)
        assert len(live(self.proxy)) <= self.pool.max_size, where

    def victim(self, where, ending, tag):
        with self.pool.item() as client:
            try:
                self.exchange(client, tag)
            except Timeout:
                if ending == "timed out":
                    raise
                settle()
            if ending == "goes on":
                self.check(where, client)
                self.check(where, client)


def at_every_byte(ordeal, ending, stream):
    length = ordeal.length(stream)
    assert length > 5  # else this tests nothing
    for k in range(length + 1):
        ordeal.strike(ending, stream, k)
    return length


def whole(pool, proxy):
    """Assert that the pool has all its slots and the server no connection more."""
    items = [pool.get(timeout=0) for _ in range(pool.max_size)]
    assert pool.free() == 0
    for item in items:
        pool.put(item)
    assert pool.free() == pool.current_size == len(pool.free_items) == pool.max_size
    until(lambda: proxy.open <= pool.max_size)


# Redis


def get(client, tag):
    client.get("theirs")


def transaction(client, tag):
    with client.pipeline() as pipe:
        pipe.echo(tag).get(tag).execute()


def pipeline(client, tag):
    with client.pipeline(transaction=False) as pipe:
        pipe.echo(tag).get(tag).execute()


def watching(client, tag):
    with client.pipeline() as pipe:
        pipe.watch(tag)
        pipe.get(tag)
        pipe.multi()
        pipe.set(tag, tag).execute()


def blocking(client, tag):
    client.blpop("list")


def subscription(client, tag):
    with client.pubsub() as pubsub:
        pubsub.subscribe(tag)
        pubsub.parse_response()


def redis_ask(client, tag):
    return client.echo(tag)


def redis_pool(proxy, **options):
    return RedisPool(host=proxy.host, port=proxy.port, max_size=1, decode_responses=True, **options)


@pytest.mark.parametrize(
    ("exchange", "protocol"),
    [(get, 2), (get, 3), (subscription, 2), (subscription, 3)]
    + [(exchange, 3) for exchange in (transaction, pipeline, watching, blocking)],
)
@both_ways
@every_ending
def test_no_redis_reply_reaches_another(redis_server, proxy_to, ending, stream, exchange, protocol):
    proxy = proxy_to(redis_server)
    redis_server.call("SET", "theirs", "theirs")
    redis_server.call("RPUSH", "list", *["x" * 6] * 500)
    with redis_pool(proxy, protocol=protocol) as pool:
        ordeal = Ordeal(pool, proxy, exchange, redis_ask)
        at_every_byte(ordeal, ending, stream)
        assert ordeal.foreign == []
        whole(pool, proxy)


@pytest.mark.parametrize("protocol", [2, 3])
@both_ways
@pytest.mark.parametrize("ending", ["killed", "timed out"])
def test_a_redis_handshake_interrupted_costs_no_slot(
    start_server, proxy_to, ending, stream, protocol
):
    server = start_server(RedisServer, password="secret")
    proxy = proxy_to(server)
    with redis_pool(
        proxy, protocol=protocol, password="secret", db=1, client_name="handshake"
    ) as pool:
        ordeal = Ordeal(pool, proxy, lambda client, tag: None, redis_ask)
        pool.put(pool.get())
        length = len(getattr(proxy.links[0], stream))
        assert length > 50
        for k in range(length + 1):
            pool.discard(pool.get())
            proxy.script = [hang(k, stream)]
            ordeal.interrupt(f"{ending} at byte {k} of the {stream} of the handshake", ending)
        assert ordeal.foreign == []
        whole(pool, proxy)


@both_ways
@pytest.mark.parametrize("ending", ["goes on", "leaves"])
def test_no_half_made_redis_connection_is_used(start_server, proxy_to, ending, stream):
    """Interrupted as it connected anew inside a block, it must not go on without its database."""
    server = start_server(RedisServer, password="secret")
    proxy = proxy_to(server)
    with redis_pool(proxy, password="secret", db=1) as pool:

        def reconnect(client, tag):
            client.connection_pool.disconnect()
            client.get("theirs")

        def ask(client, tag):
            assert int(client.client_info()["db"]) == 1
            return redis_ask(client, tag)

        ordeal = Ordeal(pool, proxy, reconnect, ask)
        pool.put(pool.get())
        length = len(getattr(proxy.links[0], stream))
        for k in range(length + 1):
            proxy.script = []
            pool.put(pool.get())
            proxy.script = [hang(k, stream)]
            ordeal.interrupt(f"{ending} at byte {k} of the {stream} of the handshake", ending)
        assert ordeal.foreign == []
        whole(pool, proxy)


# HTTP

HEADERS = {"user-agent": "t", "accept-encoding": "identity"}  # short, to have fewer bytes


def http_ask(proxy, **query):
    more = "".join(f"&{name}={value}" for name, value in query.items())

    def ask(http, tag):
        url = f"http://{proxy.host}:{proxy.port}/?tag={tag}{more}"
        response, body = http.request(url, headers=dict(HEADERS))
        assert response["x-tag"] == json.loads(body)["tag"]
        return response["x-tag"]

    return ask


bodies = pytest.mark.parametrize("body", ["length", "chunked"])


@bodies
@both_ways
@every_ending
def test_no_http_answer_reaches_another(http_server, proxy_to, ending, stream, body):
    proxy = proxy_to(http_server)
    with HttpPool(max_size=1) as pool:
        ask = http_ask(proxy, body=body)
        ordeal = Ordeal(pool, proxy, ask, ask)
        at_every_byte(ordeal, ending, stream)
        assert ordeal.foreign == []
        whole(pool, proxy)


class NaivePool:
    """What people write: a queue of clients, put back in `finally`."""

    def __init__(self, *clients):
        self.max_size = len(clients)
        self.clients = SimpleQueue()
        for client in clients:
            self.clients.put(client)

    @contextmanager
    def item(self, timeout=None):
        client = self.clients.get_nowait()
        try:
            yield client
        finally:
            self.clients.put(client)


@bodies
@pytest.mark.parametrize("ending", ["killed", "timed out", "leaves"])
def test_a_naive_pool_gives_answers_of_others(http_server, proxy_to, ending, body):
    """So the tests above can fail, and this is what the pool is for."""
    proxy = proxy_to(http_server)
    http = httplib2.Http(timeout=5)
    ask = http_ask(proxy, body=body)
    ordeal = Ordeal(NaivePool(http), proxy, ask, ask)
    ordeal.next_user("first")
    link = ordeal.link()
    link.fault = hang(len(link.reply), REPLY)
    victim = spawn(ordeal.victim, "waiting", ending, next(ordeal.tags))
    assert proxy.stopped.wait(10)
    victim.kill(gevent.GreenletExit if ending == "killed" else Timeout(0))
    proxy.resume()
    ordeal.next_user("next")
    assert victim.exception is None or isinstance(victim.exception, Timeout)
    for connection in http.connections.values():
        connection.close()

    assert ordeal.foreign == [("next", "000003", "000002")]
