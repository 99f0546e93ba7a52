"""Ready-made pools, one module per client library, each loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpools.adapters.http import HttpPool
    from gpools.adapters.keyed_http import KeyedHttpPool
    from gpools.adapters.redis import RedisPool
    from gpools.adapters.requests import FairHTTPAdapter
    from gpools.adapters.urllib3 import (
        FairHTTPConnectionPool,
        FairHTTPSConnectionPool,
        FairPoolManager,
        FairProxyManager,
    )

__all__ = [
    "FairHTTPAdapter",
    "FairHTTPConnectionPool",
    "FairHTTPSConnectionPool",
    "FairPoolManager",
    "FairProxyManager",
    "HttpPool",
    "KeyedHttpPool",
    "RedisPool",
]

_MODULES = {
    "FairHTTPAdapter": "requests",
    "FairHTTPConnectionPool": "urllib3",
    "FairHTTPSConnectionPool": "urllib3",
    "FairPoolManager": "urllib3",
    "FairProxyManager": "urllib3",
    "HttpPool": "http",
    "KeyedHttpPool": "keyed_http",
    "RedisPool": "redis",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
