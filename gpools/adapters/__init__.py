"""Ready-made pools, one module per client library, each loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpools.adapters.http import HttpPool
    from gpools.adapters.postgres import PostgresPool
    from gpools.adapters.redis import RedisPool

__all__ = ["HttpPool", "PostgresPool", "RedisPool"]

_MODULES = {"HttpPool": "http", "PostgresPool": "postgres", "RedisPool": "redis"}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
