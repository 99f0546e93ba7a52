"""What a user's program finds of our types; `make lint` has mypy look at it, nothing runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import httplib2
import psycopg
import redis
from gevent import socket

from gpools import (
    ConnectionPool,
    FairLifoQueue,
    Hold,
    HttpPool,
    KeyedHttpPool,
    KeyedPool,
    MemcachedPool,
    Pool,
    PoolTimeout,
    PostgresPool,
    RedisPool,
    SocketPool,
    Stats,
    Token,
    TokenPool,
)
from gpools.adapters import FairConnectionPool
from gpools.fleet import DistributedTokenPool
from gpools.fleet import Token as FleetToken

if TYPE_CHECKING:
    from typing_extensions import assert_type


class Client:
    def close(self) -> None: ...


class Clients(Pool[Client]):
    def create(self) -> Client:
        return Client()


class Connections(ConnectionPool[Client]):
    def create(self) -> Client:
        return Client()

    def check(self, client: Client) -> bool:
        return True

    def reset(self, client: Client) -> None: ...

    def destroy(self, client: Client) -> None:
        client.close()

    def fit_after(self, client: Client, error: Exception) -> bool:
        return isinstance(error, KeyError)


class Ears:
    def created(self, pool: ConnectionPool[Any]) -> None: ...


def plain() -> None:
    pool = Pool(max_size=2, create=Client)
    assert_type(pool, Pool[Client])
    assert_type(pool.item(timeout=1), AbstractContextManager[Client])
    with pool.item() as client:
        assert_type(client, Client)
    pool.put(pool.get(timeout=1.5))
    pool.put(3)  # type: ignore[arg-type]

    clients = Clients(0, 4, True)
    assert_type(clients, Clients)
    assert_type(Clients.__new__(Clients), Clients)  # pyright goes by that
    assert_type(clients.get(), Client)
    assert_type(TokenPool(max_size=3).get(), Token)


def connections() -> None:
    pool = ConnectionPool(create=Client, check=lambda client: bool(client), listener=Ears())
    assert_type(pool, ConnectionPool[Client])
    with pool, pool.item(timeout=None) as client:
        assert_type(client, Client)
    assert_type(pool.holders(), list[Hold])
    assert_type(pool.stats(), Stats)
    try:
        pool.get()
    except PoolTimeout as error:
        assert_type(error.holders, tuple[Hold, ...])

    with Connections(max_size=3, timeout=1) as subclass:
        assert_type(subclass, Connections)
        assert_type(subclass.get(), Client)
    ConnectionPool(create=Client, limiter=TokenPool(max_size=3))
    ConnectionPool(create=Client, limiter=DistributedTokenPool("redis://h", "n", max_size=3))


def keyed(make_pool: Callable[[str], ConnectionPool[Client]]) -> None:
    pools = KeyedPool(make_pool, max_size=3)
    assert_type(pools, KeyedPool[str, Client])
    with pools.item("db1") as client:
        assert_type(client, Client)
    pools.put("db1", pools.get("db1"))


def ready_made() -> None:
    assert_type(HttpPool(timeout=5).get(), httplib2.Http)
    assert_type(KeyedHttpPool().get("http://h/"), httplib2.Http)
    assert_type(RedisPool("redis://h").get(), redis.Redis)
    assert_type(PostgresPool("dbname=shop").get(), psycopg.Connection[Any])
    with PostgresPool().connection() as connection:
        assert_type(connection, psycopg.Connection[Any])
    MemcachedPool("h").get().incr("visits", 1)
    assert_type(SocketPool(("h", 1)).get(), socket.socket)
    assert_type(FairConnectionPool.from_url("redis://h"), FairConnectionPool)
    with DistributedTokenPool("redis://h", "n", max_size=3).item() as token:
        assert_type(token, FleetToken)
    FairLifoQueue[int](3).put(4)
