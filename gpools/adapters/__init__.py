"""Ready-made pools, one module per client library, each loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpools.adapters.http import HttpPool
    from gpools.adapters.mysql import MySQLPool
    from gpools.adapters.redis import RedisPool

__all__ = ["HttpPool", "MySQLPool", "RedisPool"]

_MODULES = {"HttpPool": "http", "MySQLPool": "mysql", "RedisPool": "redis"}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
