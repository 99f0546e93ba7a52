"""Ready-made pools, one module per client library, each loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpools.adapters.http import HttpPool
    from gpools.adapters.keyed_http import KeyedHttpPool
    from gpools.adapters.memcached import (
        ClientPool,
        ClientPoolTimeout,
        FairHashClient,
        FairPooledClient,
        MemcachedPool,
    )
    from gpools.adapters.mysql import MySQLPool
    from gpools.adapters.postgres import PostgresPool
    from gpools.adapters.redis import RedisPool
    from gpools.adapters.redis_py import (
        FairConnectionPool,
        FairSentinelConnectionPool,
        SharedConnectionPool,
    )
    from gpools.adapters.requests import FairHTTPAdapter
    from gpools.adapters.socket import SocketPool
    from gpools.adapters.sqlalchemy import FairPool
    from gpools.adapters.urllib3 import (
        FairHTTPConnectionPool,
        FairHTTPSConnectionPool,
        FairPoolManager,
        FairProxyManager,
    )

__all__ = [
    "ClientPool",
    "ClientPoolTimeout",
    "FairConnectionPool",
    "FairHTTPAdapter",
    "FairHTTPConnectionPool",
    "FairHTTPSConnectionPool",
    "FairHashClient",
    "FairPool",
    "FairPoolManager",
    "FairPooledClient",
    "FairProxyManager",
    "FairSentinelConnectionPool",
    "HttpPool",
    "KeyedHttpPool",
    "MemcachedPool",
    "MySQLPool",
    "PostgresPool",
    "RedisPool",
    "SharedConnectionPool",
    "SocketPool",
]

_MODULES = {
    "ClientPool": "memcached",
    "ClientPoolTimeout": "memcached",
    "FairConnectionPool": "redis_py",
    "FairHTTPAdapter": "requests",
    "FairHTTPConnectionPool": "urllib3",
    "FairHTTPSConnectionPool": "urllib3",
    "FairHashClient": "memcached",
    "FairPool": "sqlalchemy",
    "FairPoolManager": "urllib3",
    "FairPooledClient": "memcached",
    "FairProxyManager": "urllib3",
    "FairSentinelConnectionPool": "redis_py",
    "HttpPool": "http",
    "KeyedHttpPool": "keyed_http",
    "MemcachedPool": "memcached",
    "MySQLPool": "mysql",
    "PostgresPool": "postgres",
    "RedisPool": "redis",
    "SharedConnectionPool": "redis_py",
    "SocketPool": "socket",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
