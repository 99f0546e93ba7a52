"""Which pools are compared, and how each is used.

Each is set up as its documentation says for a pool of *size* connections in which
callers wait for at most *timeout* seconds.  `ask` sends one command the way users
of that pool do; `hold` takes a connection and keeps it for a block.
"""

import json
import queue
from contextlib import contextmanager
from typing import ClassVar
from urllib.parse import urlencode

from tests.databases import MariadbServer, MemcachedServer, PostgresServer
from tests.servers import HttpServer, RedisServer

QUICK, SLOW, LARGE = "quick", "slow", "large"
PAD = "x" * 200_000  # what a large command carries
PAUSE = 0.003  # seconds that the server takes for a slow one
COUNTERS = 5000  # of memcached's: number n has the value n


class Contender:
    """One pool, *size* connections large, for the server at *address*."""

    name: str
    ours = False
    libraries: tuple[str, ...]  # the distributions that it needs
    how: str  # it was made, for the page
    server_class: type
    settings: ClassVar[dict] = {}  # of the server

    def __init__(self, address, size, timeout):
        self.host, self.port = address
        self.size = size
        self.timeout = timeout
        self.open()

    def open(self):
        raise NotImplementedError

    def ask(self, kind, tag):
        """Send a command of a *kind* by way of the pool; return whether the answer is its own."""
        with self.hold() as item:
            return self.ask_on(item, kind, tag)

    def hold(self):
        """Take a connection for the length of a block."""
        raise NotImplementedError

    def ask_on(self, item, kind, tag):
        """Send a command on a connection that is held."""
        raise NotImplementedError

    def no_room(self, error):
        """Tell whether *error* says no more than that no connection came free."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, server):
        """Put what the commands need on a server that was just started."""


class FinallyPool:
    """A queue of slots, from which everybody takes and to which everybody puts back."""

    def __init__(self, size, timeout, create):
        self.timeout = timeout
        self.create = create
        self.slots = queue.LifoQueue()
        for _ in range(size):
            self.slots.put(None)

    @contextmanager
    def item(self):
        item = self.slots.get(timeout=self.timeout)
        try:
            if item is None:
                item = self.create()
            yield item
        finally:
            self.slots.put(item)


# Redis


class _Redis(Contender):
    server_class = RedisServer
    settings: ClassVar[dict] = {"config": {"hz": "500"}}  # else a BLPOP takes 0.1 s at least
    libraries = ("redis",)

    def ask_on(self, item, kind, tag):
        if kind == SLOW:
            pipeline = item.pipeline(transaction=False)
            pipeline.blpop("nothing", timeout=PAUSE)
            pipeline.echo(tag)
            return pipeline.execute()[-1] == tag.encode()
        text = tag + PAD if kind == LARGE else tag
        return item.echo(text) == text.encode()

    def no_room(self, error):
        import redis

        from gpools import PoolTimeout

        late = (PoolTimeout, redis.exceptions.MaxConnectionsError, queue.Empty)
        return isinstance(error, late) or isinstance(error.__cause__, late)


class _RedisClient(_Redis):
    def open(self):
        import redis

        self.pool = self.make_pool(host=self.host, port=self.port)
        self.client = redis.Redis(connection_pool=self.pool)

    def ask(self, kind, tag):
        return self.ask_on(self.client, kind, tag)

    @contextmanager
    def hold(self):
        import redis

        client = redis.Redis(connection_pool=self.pool, single_connection_client=True)
        try:
            yield client
        finally:
            client.close()


class RedisConnectionPool(_RedisClient):
    name = "ConnectionPool"
    how = "`redis.ConnectionPool(max_connections=5)` under a `redis.Redis`"

    def make_pool(self, **options):
        import redis

        return redis.ConnectionPool(max_connections=self.size, **options)


class RedisBlockingConnectionPool(_RedisClient):
    name = "BlockingConnectionPool"
    how = "`redis.BlockingConnectionPool(max_connections=5, timeout=1)` under a `redis.Redis`"

    def make_pool(self, **options):
        import redis

        return redis.BlockingConnectionPool(
            max_connections=self.size, timeout=self.timeout, **options
        )


class OurConnectionPool(_RedisClient):
    name = "FairConnectionPool"
    ours = True
    how = "`FairConnectionPool(max_connections=5, timeout=1)` under a `redis.Redis`"

    def make_pool(self, **options):
        from gpools.adapters import FairConnectionPool

        return FairConnectionPool(max_connections=self.size, timeout=self.timeout, **options)


class OurRedisPool(_Redis):
    name = "RedisPool"
    ours = True
    how = "`RedisPool(max_size=5, timeout=1)`"

    def open(self):
        from gpools import RedisPool

        self.pool = RedisPool(
            host=self.host, port=self.port, max_size=self.size, timeout=self.timeout
        )

    def hold(self):
        return self.pool.item()


# PostgreSQL


class _Postgres(Contender):
    server_class = PostgresServer
    libraries = ("psycopg", "psycopg-pool")

    @property
    def url(self):
        return f"postgresql://postgres@{self.host}:{self.port}/postgres"

    def hold(self):
        return self.pool.connection()

    def ask_on(self, item, kind, tag):
        if kind == SLOW:
            query, values = "SELECT %s::text, pg_sleep(%s)", [tag, PAUSE]
        elif kind == LARGE:
            query, values = "SELECT %s::text, length(%s::text)", [tag, PAD]
        else:
            query, values = "SELECT %s::text", [tag]
        return item.execute(query, values).fetchone()[0] == tag


class PsycopgPool(_Postgres):
    name = "psycopg_pool"
    how = (
        "`psycopg_pool.ConnectionPool(max_size=5, timeout=1, "
        "check=ConnectionPool.check_connection)`, autocommit"
    )

    def open(self):
        import logging

        from psycopg_pool import ConnectionPool

        logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
        self.pool = ConnectionPool(
            self.url,
            min_size=min(4, self.size),
            max_size=self.size,
            timeout=self.timeout,
            check=ConnectionPool.check_connection,
            kwargs={"autocommit": True},
            open=True,
        )

    def no_room(self, error):
        from psycopg_pool import PoolTimeout

        return isinstance(error, PoolTimeout)


class OurPostgresPool(_Postgres):
    name = "PostgresPool"
    ours = True
    how = "`PostgresPool(max_size=5, timeout=1, autocommit=True)`"

    def open(self):
        from gpools import PostgresPool

        self.pool = PostgresPool(
            self.url, max_size=self.size, timeout=self.timeout, autocommit=True
        )

    def no_room(self, error):
        from gpools import PoolTimeout

        return isinstance(error, PoolTimeout)


class _Alchemy(_Postgres):
    libraries = ("psycopg", "SQLAlchemy")

    def open(self):
        from sqlalchemy import create_engine

        self.engine = create_engine(
            self.url.replace("postgresql", "postgresql+psycopg"),
            poolclass=self.pool_class(),
            pool_size=self.size,
            max_overflow=0,
            pool_timeout=self.timeout,
            pool_pre_ping=True,
        )

    def hold(self):
        return self.engine.connect()

    def ask_on(self, item, kind, tag):
        from sqlalchemy import text

        if kind == SLOW:
            query, values = "SELECT :tag, pg_sleep(:more)", {"tag": tag, "more": PAUSE}
        elif kind == LARGE:
            query = "SELECT :tag, length(cast(:more AS text))"
            values = {"tag": tag, "more": PAD}
        else:
            query, values = "SELECT :tag", {"tag": tag}
        return item.execute(text(query), values).fetchone()[0] == tag

    def no_room(self, error):
        from sqlalchemy.exc import TimeoutError

        return isinstance(error, TimeoutError)


class AlchemyQueuePool(_Alchemy):
    name = "QueuePool"
    how = (
        "`create_engine(poolclass=QueuePool, pool_size=5, max_overflow=0, pool_timeout=1, "
        "pool_pre_ping=True)`"
    )

    def pool_class(self):
        from sqlalchemy import QueuePool

        return QueuePool


class OurAlchemyPool(_Alchemy):
    name = "FairPool"
    ours = True
    how = "the same with `poolclass=FairPool`"

    def pool_class(self):
        from gpools import FairPool

        return FairPool


# MariaDB


class _Mysql(Contender):
    server_class = MariadbServer
    libraries = ("PyMySQL",)

    def hold(self):
        return self.pool.item()

    def ask_on(self, item, kind, tag):
        if kind == SLOW:
            query, values = "SELECT %s, SLEEP(%s)", [tag, PAUSE]
        elif kind == LARGE:
            query, values = "SELECT %s, LENGTH(%s)", [tag, PAD]
        else:
            query, values = "SELECT %s", [tag]
        with item.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchone()[0] == tag


class NaiveMysqlPool(_Mysql):
    name = "naive pool"
    how = "a queue, put back in `finally`, `conn.ping(reconnect=True)` on taking, autocommit"

    def open(self):
        import pymysql

        def create():
            return pymysql.connect(host=self.host, port=self.port, user="root", autocommit=True)

        self.pool = FinallyPool(self.size, self.timeout, create)

    @contextmanager
    def hold(self):
        with self.pool.item() as conn:
            conn.ping(reconnect=True)
            yield conn

    def no_room(self, error):
        return isinstance(error, queue.Empty)


class OurMysqlPool(_Mysql):
    name = "MySQLPool"
    ours = True
    how = "`MySQLPool(max_size=5, timeout=1, autocommit=True)`"

    def open(self):
        from gpools import MySQLPool

        self.pool = MySQLPool(
            host=self.host,
            port=self.port,
            user="root",
            autocommit=True,
            max_size=self.size,
            timeout=self.timeout,
        )

    def no_room(self, error):
        from gpools import PoolTimeout

        return isinstance(error, PoolTimeout)


# memcached


class _Memcached(Contender):
    server_class = MemcachedServer
    libraries = ("pymemcache",)

    @classmethod
    def prepare(cls, server):
        from pymemcache import Client

        client = Client(server.address)
        client.set_many({f"n{n}": str(n) for n in range(COUNTERS)}, noreply=False)
        client.close()

    def ask_on(self, item, kind, tag):
        number = int(tag) % COUNTERS
        if kind == LARGE:
            item.set("large", PAD, noreply=False)
        # What the client cannot tell from the answer to another: a bare number.
        return all(item.incr(f"n{number}", 0) == number for _ in range(3 if kind == SLOW else 1))

    def no_room(self, error):
        from gpools import PoolTimeout
        from gpools.adapters.memcached import ClientPoolTimeout

        late = isinstance(error, (PoolTimeout, ClientPoolTimeout))
        return late or "Too many objects" in str(error)


class _MemcachedClient(_Memcached):
    def ask(self, kind, tag):
        return self.ask_on(self.client, kind, tag)

    @contextmanager
    def hold(self):
        with self.client.client_pool.get_and_release(destroy_on_fail=True) as item:
            item.version()  # it connects when it is used
            yield item


class MemcachedPooledClient(_MemcachedClient):
    name = "PooledClient"
    how = "`pymemcache.PooledClient(max_pool_size=5)`"

    def open(self):
        from pymemcache import PooledClient

        self.client = PooledClient((self.host, self.port), max_pool_size=self.size)


class OurPooledClient(_MemcachedClient):
    name = "FairPooledClient"
    ours = True
    how = "`FairPooledClient(max_pool_size=5, get_timeout=1)`"

    def open(self):
        from gpools.adapters import FairPooledClient

        self.client = FairPooledClient(
            (self.host, self.port), max_pool_size=self.size, get_timeout=self.timeout
        )


class OurMemcachedPool(_Memcached):
    name = "MemcachedPool"
    ours = True
    how = "`MemcachedPool(max_size=5, get_timeout=1)`"

    def open(self):
        from gpools import MemcachedPool

        self.pool = MemcachedPool(
            (self.host, self.port), max_size=self.size, get_timeout=self.timeout
        )

    def hold(self):
        return self.pool.item()


# HTTP


class _Http(Contender):
    server_class = HttpServer

    def request(self, kind, tag):
        """Return method, URL and body."""
        query = {"tag": tag, "delay": PAUSE} if kind == SLOW else {"tag": tag}
        url = f"http://{self.host}:{self.port}/?{urlencode(query)}"
        return ("POST", url, PAD) if kind == LARGE else ("GET", url, None)

    def no_room(self, error):
        from gpools import PoolTimeout

        while error is not None:
            if isinstance(error, (PoolTimeout, queue.Empty)):
                return True
            error = error.__cause__
        return False


class _Httplib2(_Http):
    libraries = ("httplib2",)

    def ask_on(self, item, kind, tag):
        method, url, body = self.request(kind, tag)
        return json.loads(item.request(url, method, body)[1])["tag"] == tag


class NaiveHttpPool(_Httplib2):
    name = "naive pool"
    how = "a queue of `httplib2.Http`, put back in `finally`"

    def open(self):
        import httplib2

        self.pool = FinallyPool(self.size, self.timeout, httplib2.Http)

    @contextmanager
    def hold(self):
        with self.pool.item() as item:
            yield item


class OurHttpPool(_Httplib2):
    name = "HttpPool"
    ours = True
    how = "`HttpPool(max_size=5, get_timeout=1)`"

    def open(self):
        from gpools import HttpPool

        self.pool = HttpPool(max_size=self.size, get_timeout=self.timeout)

    def hold(self):
        return self.pool.item()


class _Requests(_Http):
    libraries = ("requests", "urllib3")
    ask_on = None  # a Session always goes by way of its pool

    def open(self):
        import requests

        self.session = requests.Session()
        self.session.mount("http://", self.adapter())

    def ask(self, kind, tag):
        method, url, body = self.request(kind, tag)
        return self.session.request(method, url, data=body).json()["tag"] == tag

    @contextmanager
    def hold(self):
        _, url, _ = self.request(QUICK, "held")
        with self.session.get(url, stream=True) as response:
            yield response
            assert response.content  # read to its end, it gives its connection back


class RequestsAdapter(_Requests):
    name = "HTTPAdapter"
    how = "`HTTPAdapter(pool_maxsize=5, pool_block=True)`, whose users wait without end"

    def adapter(self):
        from requests.adapters import HTTPAdapter

        return HTTPAdapter(pool_maxsize=self.size, pool_block=True)


class OurRequestsAdapter(_Requests):
    name = "FairHTTPAdapter"
    ours = True
    how = "`FairHTTPAdapter(pool_maxsize=5, pool_timeout=1)`"

    def adapter(self):
        from gpools import FairHTTPAdapter

        return FairHTTPAdapter(pool_maxsize=self.size, pool_timeout=self.timeout)


# The tables of the page, each with its columns.
TABLES = {
    "Redis: redis-py": [
        RedisConnectionPool,
        RedisBlockingConnectionPool,
        OurConnectionPool,
        OurRedisPool,
    ],
    "PostgreSQL: psycopg": [PsycopgPool, OurPostgresPool],
    "PostgreSQL: SQLAlchemy": [AlchemyQueuePool, OurAlchemyPool],
    "MariaDB: PyMySQL": [NaiveMysqlPool, OurMysqlPool],
    "memcached: pymemcache": [MemcachedPooledClient, OurPooledClient, OurMemcachedPool],
    "HTTP: httplib2": [NaiveHttpPool, OurHttpPool],
    "HTTP: requests": [RequestsAdapter, OurRequestsAdapter],
}
CONTENDERS = {cls.__name__: cls for table in TABLES.values() for cls in table}
