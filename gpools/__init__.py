"""Connection pools for gevent that stay sound when greenlets are killed and timed out."""

from __future__ import annotations

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
from gpools.stats import Listener, Stats

if TYPE_CHECKING:
    from gpools.adapters import HttpPool, PostgresPool, RedisPool

__all__ = [
    "CoDel",
    "ConnectionPool",
    "Hold",
    "HttpPool",
    "HubWouldBlock",
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
    "PostgresPool",
    "RedisPool",
    "Stats",
    "Token",
    "TokenPool",
    "WrongThread",
]


def __getattr__(name: str) -> object:
    # Adapters load their client library, so they load on first use.
    if name in ("HttpPool", "PostgresPool", "RedisPool"):
        from gpools import adapters

        return getattr(adapters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
