"""Connection pools for gevent that stay sound when greenlets are killed and timed out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gpools._holders import Hold
from gpools._shed import CoDel
from gpools.connection import ConnectionPool
from gpools.errors import (
    HubWouldBlock,
    NotInUse,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolShed,
    PoolTimeout,
    PoolUnavailable,
    WrongThread,
)
from gpools.keyed import KeyedPool
from gpools.pool import Pool, Token, TokenPool
from gpools.queues import FairLifoQueue
from gpools.stats import Listener, Stats

if TYPE_CHECKING:
    from gpools.adapters import (
        FairConnectionPool as FairConnectionPool,
    )
    from gpools.adapters import (
        FairHTTPAdapter as FairHTTPAdapter,
    )
    from gpools.adapters import (
        FairPool as FairPool,
    )
    from gpools.adapters import (
        FairPoolManager as FairPoolManager,
    )
    from gpools.adapters import (
        HttpPool as HttpPool,
    )
    from gpools.adapters import (
        KeyedHttpPool as KeyedHttpPool,
    )
    from gpools.adapters import (
        MemcachedPool as MemcachedPool,
    )
    from gpools.adapters import (
        MySQLPool as MySQLPool,
    )
    from gpools.adapters import (
        PostgresPool as PostgresPool,
    )
    from gpools.adapters import (
        RedisPool as RedisPool,
    )
    from gpools.adapters import (
        SocketPool as SocketPool,
    )

# Those that need an extra are not here, so that an import of * works without it.
__all__ = [
    "CoDel",
    "ConnectionPool",
    "FairLifoQueue",
    "Hold",
    "HttpPool",
    "HubWouldBlock",
    "KeyedHttpPool",
    "KeyedPool",
    "Listener",
    "NotInUse",
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolFull",
    "PoolShed",
    "PoolTimeout",
    "PoolUnavailable",
    "RedisPool",
    "SocketPool",
    "Stats",
    "Token",
    "TokenPool",
    "WrongThread",
]


def __getattr__(name: str) -> object:
    # Adapters load their client library, so they load on first use.
    from gpools.adapters import _MODULES

    if name in _MODULES:
        return getattr(import_module("gpools.adapters"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
