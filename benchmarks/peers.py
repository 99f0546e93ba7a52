"""The pools that are compared, each around connections that cost nothing."""

import os
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec
from operator import methodcaller
from types import SimpleNamespace
from typing import NamedTuple

from benchmarks import compiled


class Dummy:
    """A connection that costs nothing, with all that pools ask of one."""

    closed = False
    is_connected = True  # urllib3
    transaction_status = 0  # psycopg_pool: idle

    def __init__(self, connect=None):
        self.connect_slowly = connect
        self.pgconn = self
        self.pid = os.getpid()  # redis-py

    def connect(self):
        if self.connect_slowly is not None:
            connect, self.connect_slowly = self.connect_slowly, None
            connect()

    def can_read(self):
        return False

    def should_reconnect(self):
        return False

    def rollback(self):
        pass

    ping = close = disconnect = commit = re_auth = rollback

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Maker:
    """Makes connections, counts them, and is as slow as *connect*, which may be None."""

    def __init__(self, connect=None):
        self.connect = connect
        self.made = 0

    def __call__(self):
        dummy = self.unconnected()
        dummy.connect()
        return dummy

    def unconnected(self, *args, **kwargs):
        self.made += 1
        return Dummy(self.connect)


class Peer(NamedTuple):
    """How to use a pool that is open."""

    get: Callable
    put: Callable
    item: Callable | None = None  # what goes into a with statement, if there is such


class Library(NamedTuple):
    """One kind of pool."""

    open: Callable  # with maker, size, and how many connections are ready; a context of a Peer
    needs: tuple[str, ...] = ()  # modules
    process: str = "gevent"
    ours: bool = False
    waits: bool = True  # where no connection is idle; others raise an error
    creates: bool = True  # before the connection is handed out
    variant: bool = False  # of another, from which it differs only where connections are made

    def missing(self):
        """List what is not installed."""
        found = tuple(name for name in self.needs if find_spec(name) is None)
        return found + (compiled.missing() if self.process == "compiled" else ())


LIBRARIES = {}
LEAST = "the least in Python"


def library(name, *needs, **settings):
    def register(function):
        LIBRARIES[name] = Library(contextmanager(function), needs, **settings)
        return function

    return register


@library("Pool", ours=True)
def plain(make, size, ready):
    from gpools import Pool

    pool = Pool(ready, size, create=make)
    yield Peer(pool.get, pool.put, pool.item)


@library("ConnectionPool", ours=True)
def connections(make, size, ready):
    from gpools import ConnectionPool

    with ConnectionPool(ready, size, create=make) as pool:
        yield Peer(pool.get, pool.put, pool.item)


@library("ConnectionPool, ages and check", ours=True)
def connections_with_ages(make, size, ready):
    from gpools import ConnectionPool

    ages = {"max_age": 3600, "max_idle": 600, "check_after": 30, "timeout": 30}
    pool = ConnectionPool(ready, size, create=make, check=lambda item: True, **ages)
    with pool:
        yield Peer(pool.get, pool.put, pool.item)


@library("ConnectionPool, max_creating=2", ours=True, variant=True)
def connections_in_background(make, size, ready, max_creating=2):
    from gpools import ConnectionPool

    with ConnectionPool(ready, size, create=make, max_creating=max_creating) as pool:
        pool.wait_ready()
        yield Peer(pool.get, pool.put, pool.item)


@library("ConnectionPool, max_creating=max_size", ours=True, variant=True)
def connections_in_background_at_once(make, size, ready):
    yield from connections_in_background(make, size, ready, size)


@library("eventlet.pools", "eventlet", process="eventlet")
def eventlet_pools(make, size, ready):
    from eventlet.pools import Pool

    pool = Pool(ready, size, create=make)
    yield Peer(pool.get, pool.put, pool.item)


@library("gevent.queue recipe")
def gevent_queue(make, size, ready):
    from gevent.queue import LifoQueue

    pool = LifoQueue()
    for number in range(size):
        pool.put(None if number < size - ready else make())
    if ready == size:
        yield Peer(pool.get, pool.put)
    else:
        yield Peer(lambda: pool.get() or make(), pool.put)


@library("psycopg_pool", "psycopg_pool")
def psycopg_pool(make, size, ready):
    from psycopg_pool import ConnectionPool

    kind = SimpleNamespace(connect=lambda conninfo, **options: make())
    with ConnectionPool(connection_class=kind, min_size=ready, max_size=size, open=False) as pool:
        pool.wait()
        yield Peer(pool.getconn, pool.putconn, pool.connection)


@library("SQLAlchemy QueuePool", "sqlalchemy")
def sqlalchemy(make, size, ready):
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(make, pool_size=size, max_overflow=0)
    for connection in [pool.connect() for _ in range(ready)]:
        connection.close()
    yield Peer(pool.connect, methodcaller("close"))
    pool.dispose()


def _redis(pool, ready):
    for connection in [pool.get_connection() for _ in range(ready)]:
        pool.release(connection)
    return Peer(pool.get_connection, pool.release)


@library("redis ConnectionPool", "redis", waits=False)
def redis_pool(make, size, ready):
    import redis

    pool = redis.ConnectionPool(connection_class=make.unconnected, max_connections=size)
    yield _redis(pool, ready)


@library("redis BlockingConnectionPool", "redis")
def redis_blocking_pool(make, size, ready):
    import redis

    pool = redis.BlockingConnectionPool(
        connection_class=make.unconnected, max_connections=size, timeout=30
    )
    yield _redis(pool, ready)


@library("pymemcache ObjectPool", "pymemcache", waits=False)
def pymemcache(make, size, ready):
    from pymemcache.pool import ObjectPool

    pool = ObjectPool(make, max_size=size)
    yield Peer(pool.get, pool.release, pool.get_and_release)


@library("urllib3 HTTPConnectionPool", "urllib3", creates=False)
def urllib3(make, size, ready):
    from urllib3 import HTTPConnectionPool

    pool = HTTPConnectionPool("localhost", maxsize=size, block=True)
    pool.ConnectionCls = make.unconnected
    yield Peer(pool._get_conn, pool._put_conn)


@library("DBUtils PooledDB", "dbutils")
def dbutils(make, size, ready):
    from dbutils.pooled_db import PooledDB

    errors = dict.fromkeys(["OperationalError", "InterfaceError", "InternalError"], OSError)
    module = SimpleNamespace(connect=make, threadsafety=1, **errors)
    pool = PooledDB(module, mincached=ready, maxconnections=size, blocking=True)
    yield Peer(pool.connection, methodcaller("close"), pool.connection)
    pool.close()


@library("kombu Resource", "kombu", creates=False)
def kombu(make, size, ready):
    from kombu.resource import Resource

    class Connections(Resource):
        def setup(self):
            for _ in range(self.limit):
                self._resource.put_nowait(make())

    pool = Connections(limit=size)
    yield Peer(lambda: pool.acquire(block=True), pool.release)


COMPILED = "{}, compiled"
for each in ("Pool", "ConnectionPool", "ConnectionPool, ages and check"):
    LIBRARIES[COMPILED.format(each)] = LIBRARIES[each]._replace(process="compiled")
OURS_FIRST = sorted(LIBRARIES.items(), key=lambda pair: not pair[1].ours)
LIBRARIES.clear()
LIBRARIES.update(OURS_FIRST)


def about(library):
    """Return what a `Contender` needs to know of a library; None is gevent's own."""
    if library is None:
        return {}
    return {"process": library.process, "missing": library.missing()}


@contextmanager
def semaphore(option):
    """Open gevent's semaphore, the floor of them all, as a pool of one item."""
    from gevent.lock import BoundedSemaphore

    one = BoundedSemaphore(1)
    yield Peer(one.acquire, lambda _: one.release(), lambda: one)


class Least:
    """The least that a `with` block written in Python can do: take an item, and put it back."""

    __slots__ = ("item", "items")

    def __init__(self, items):
        self.items = items

    def __enter__(self):
        self.item = self.items.popleft()
        return self.item

    def __exit__(self, *error):
        self.items.append(self.item)


@contextmanager
def bare_line(option):
    """Open the least that a line written in Python can be; it knows no kill and no timeout."""
    from gevent import get_hub, getcurrent

    hub, waiters, idle = get_hub(), deque(), [Dummy()]

    def get():
        if idle:
            return idle.pop()
        waiters.append(getcurrent())
        return hub.switch()

    def put(item):
        if waiters:
            hub.loop.run_callback(waiters.popleft().switch, item)
        else:
            idle.append(item)

    yield Peer(get, put)


def opened(library, option):
    """Open a pool of one item."""
    return library.open(Maker(), 1, 1)
