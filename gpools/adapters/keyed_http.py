"""`KeyedHttpPool`: httplib2 clients for many hosts, under one limit."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httplib2
from httplib2.iri2uri import iri2uri

from gpools.adapters.http import HttpPool
from gpools.connection import ConnectionPool
from gpools.keyed import KeyedPool

__all__ = ["KeyedHttpPool"]

_PORTS = {"http": 80, "https": 443}


class KeyedHttpPool(KeyedPool[str, httplib2.Http]):
    """A `KeyedPool` with an `HttpPool` of up to *max_per_host* clients for each host.

    ::

        pool = KeyedHttpPool(max_size=100, max_per_host=4, timeout=5)
        response, body = pool.request("http://127.0.0.1:8080/")

    Up to *max_size* clients exist in all.  Those of a host that is not asked go
    after *max_idle* seconds, or before, when another host needs the room.

    *timeout*, *get_timeout* and what else there is are those of `HttpPool`,
    for each host; a client keeps connections to its own host only.

    A key is a URL: what matters of it is the scheme, the host and the port.

    Raises TypeError and ValueError for settings that make no sense.
    """

    def __init__(
        self,
        max_size: int = 100,
        max_per_host: int = 4,
        *,
        timeout: float | None = 30.0,
        get_timeout: float | None = None,
        max_idle: float | None = 60.0,
        name: str = "",
        **options: Any,
    ) -> None:
        options |= {"timeout": timeout, "get_timeout": get_timeout, "max_idle": max_idle}
        if options.get("min_size"):
            raise ValueError("min_size must be 0: hosts share one limit")

        def make_pool(host: str) -> HttpPool:
            shed = copy(options.get("shed"))  # it judges one line
            return _OneHost(host, max_size=max_per_host, name=host, **{**options, "shed": shed})

        make_pool("http://localhost:80")  # for its complaints
        super().__init__(make_pool, max_size, name=name)

    def request(
        self,
        uri: str,
        method: str = "GET",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        redirections: int = httplib2.DEFAULT_MAX_REDIRECTS,
        connection_type: type[HTTPConnection] | None = None,
    ) -> tuple[httplib2.Response, bytes]:
        """Make one request with a client of the host of *uri*; `HttpPool.request` in all else.

        A redirect to another host is followed on a connection that is closed
        afterwards.  Switches.
        """
        with self.item(uri) as http:
            answer: tuple[httplib2.Response, bytes]
            answer = http.request(uri, method, body, headers, redirections, connection_type)
            return answer

    def _at(self, key: str) -> Any:
        return super()._at(_host(key))

    def _pool_of(self, key: str) -> ConnectionPool[httplib2.Http]:
        return super()._pool_of(_host(key))


class _OneHost(HttpPool):
    """A pool whose clients keep no connections to other hosts, where redirects have led."""

    def __init__(self, host: str, **options: Any) -> None:
        self._host = host
        super().__init__(**options)

    def reset(self, item: httplib2.Http, /) -> None:
        super().reset(item)
        for key, connection in list(item.connections.items()):
            scheme, _, authority = key.partition(":")
            if _host(f"{scheme}://{authority}") != self._host:
                del item.connections[key]
                connection.close()


_OneHost.__name__ = HttpPool.__name__  # as logs and errors have it


def _host(uri: str) -> str:
    """Return scheme, host and port of *uri*, the port always."""
    try:
        parts = urlsplit(iri2uri(uri))
        given = parts.port
    except ValueError:  # which may show half of a password
        raise ValueError("a key must be a URL with a valid host and port") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        # Without the URL, which may have a password.
        raise ValueError("a key must be a URL that begins with http:// or https:// and a host")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = given if given is not None else _PORTS[parts.scheme]
    return f"{parts.scheme}://{host}:{port}"
