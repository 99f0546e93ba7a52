"""`RedisPool`: redis-py clients, each on one connection of its own."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from gpools.adapters._blocking import refuse_blocking, tell_unpatched, wrong_item
from gpools.adapters._probe import A_MOMENT
from gpools.adapters._redis_client import OneConnection, pooled
from gpools.adapters._redis_connection import (
    NO_NOTICES,
    checked_url,
    number_in_url,
)
from gpools.adapters._verbs import join_verbs
from gpools.connection import ConnectionPool, split_settings
from gpools.errors import PoolError

__all__ = ["RedisPool"]

_DEFAULT_RETRY = signature(redis.Redis).parameters["retry"].default


class RedisPool(ConnectionPool["redis.Redis"]):
    """A pool of `redis.Redis` clients, each on exactly one connection of its own.

    ::

        pool = RedisPool("redis://127.0.0.1:6379/0", max_size=10, socket_timeout=5)
        with pool.item() as client:
            client.incr("visits")

    Give a *url* or the keyword arguments of `redis.Redis`; with a *url* they
    are added to it.  The other parameters are those of `ConnectionPool`; in a *url*
    *max_size* is ``max_connections`` and *timeout* has its own name, and both win.
    *check_after* is 10 ms, for the pool looks at a connection when it comes back.

    A client is connected when it is made.  A pipeline that watches, a pubsub or
    a monitor takes its one connection, as long as it lasts; take a second item
    for a second connection.  What a block leaves behind on the connection
    (SELECT, MULTI, WATCH, SUBSCRIBE, CLIENT SETNAME ...) never reaches the next
    user: such a connection is closed.

    No command is sent twice unless you ask for that, with *retry*,
    *retry_on_error* or *retry_on_timeout*.

    Raises ValueError and TypeError for what redis-py would not take.
    """

    _redis: _Clients

    def __init__(
        self,
        url: str | None = None,
        *,
        min_size: int = 0,
        max_size: int = 4,
        order_as_stack: bool = False,
        create: Callable[[], redis.Redis] | None = None,
        **options: Any,
    ) -> None:
        settings, redis_options = split_settings(options)
        self._redis = _Clients(url, redis_options)
        if self._redis.max_connections is not None:
            max_size = self._redis.max_connections
        if self._redis.timeout is not None:
            settings["timeout"] = self._redis.timeout
        join_verbs(self, RedisPool, settings)
        settings.setdefault("check_after", A_MOMENT)  # reset() looks too
        super().__init__(min_size, max_size, order_as_stack, create, **settings)

    def create(self) -> redis.Redis:
        """Make a client; the pool connects it."""
        return redis.Redis(connection_pool=self._redis.connection_pool())

    def check(self, item: redis.Redis, /) -> bool:
        """Tell whether the server has neither hung up nor sent anything; never switches."""
        connection = _only(item).connection
        return connection.open and not connection.unread()

    def reset(self, item: redis.Redis, /) -> None:
        """Refuse a client whose connection is not as it was; never switches."""
        _only(item).restore(item)

    def destroy(self, item: redis.Redis, /) -> None:
        """Close the connection for good, whoever still has a pipeline or pubsub on it."""
        if not isinstance(item, redis.Redis):
            return
        pool = vars(item).get("connection_pool")
        if isinstance(pool, OneConnection):
            pool.retire()
        elif pool is not None:
            pool.disconnect()

    def fit_after(self, item: redis.Redis, error: Exception, /) -> bool:
        """Say no after errors of the network, the protocol or a replica, else yes."""
        return not isinstance(
            error,
            (
                OSError,
                redis.ConnectionError,
                redis.TimeoutError,
                redis.InvalidResponse,
                redis.exceptions.ReadOnlyError,
            ),
        )

    def _filenos(self, item: redis.Redis) -> list[int]:
        filenos: list[int] = _only(item).connection.filenos()
        return filenos

    def _adopt(self, item: redis.Redis) -> None:
        refuse_blocking(item)
        if not isinstance(item, redis.Redis):
            raise wrong_item(item, ", no redis.Redis")
        tell_unpatched("redis-py", redis.connection)
        only = former = item.connection_pool
        if not isinstance(only, OneConnection):
            if item.connection is not None:
                raise PoolError("create() returned a client with single_connection_client set")
            only = OneConnection.like(former, **_without_default_retry(former))
            item.connection_pool = only
            # Where nobody else has the former one, it may have connected.
            if getattr(item, "auto_close_connection_pool", False):  # redis-py from 5.0.1 on
                former.disconnect()
            item.auto_close_connection_pool = False
        item.__class__ = pooled(type(item), only.plain())
        only.remember(item)
        only.connection.connect()


class _Clients:
    """How to make clients."""

    def __init__(self, url: str | None, options: dict[str, Any]) -> None:
        for taken in ("single_connection_client", "connection_pool", "max_connections"):
            if taken in options:
                raise TypeError(
                    f"{taken} cannot be given: each client has one connection of its own"
                )
        if NO_NOTICES is not None:
            options.setdefault("maint_notifications_config", NO_NOTICES)
        if not options.keys() & {"retry", "retry_on_error", "retry_on_timeout"}:
            options["retry"] = Retry(NoBackoff(), 0)
        # What a URL says of redis-py's own pools holds for this one.
        self.max_connections: int | None = None
        self.timeout: float | None = None
        if url is None:
            self.model = redis.Redis(**options).connection_pool
        else:
            self.max_connections = parse_url(checked_url(url)).get("max_connections")  # type: ignore[no-untyped-call]
            self.model = redis.ConnectionPool.from_url(url, **options)
            timeout = self.model.connection_kwargs.pop("timeout", None)
            if timeout is not None:
                self.timeout = number_in_url("timeout", timeout)
        self.connection_pool()  # for its complaints; it does not connect

    def connection_pool(self) -> OneConnection:
        return OneConnection.like(self.model)


def _without_default_retry(pool: redis.ConnectionPool) -> dict[str, Any]:
    """Return no retries, in place of those that redis-py gives a client unasked."""
    settings = pool.connection_kwargs
    asked = settings.get("retry_on_error") or settings.get("retry_on_timeout")
    if asked or settings.get("retry") != _DEFAULT_RETRY:
        return {}
    return {"retry": Retry(NoBackoff(), 0)}


def _only(client: redis.Redis) -> OneConnection:
    pool = vars(client).get("connection_pool")
    if not isinstance(pool, OneConnection):
        raise PoolError("somebody gave a pooled client another connection pool")
    return pool
