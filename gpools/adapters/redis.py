"""`RedisPool`: redis-py clients, each on one connection of its own."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from gpools.adapters._blocking import refuse_blocking
from gpools.adapters._redis_connection import (
    NO_NOTICES,
    address,
    checked_url,
    number_in_url,
    tracked,
)
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
        settings.setdefault("check_timeout", None)  # check() does not wait
        super().__init__(min_size, max_size, order_as_stack, create, **settings)

    def create(self) -> redis.Redis:
        """Make a client; the pool connects it."""
        return redis.Redis(connection_pool=self._redis.connection_pool())

    def check(self, item: redis.Redis) -> bool:
        """Tell whether the server has neither hung up nor sent anything; never switches."""
        connection = _only(item).connection
        return connection.open and not connection.unread()

    def reset(self, item: redis.Redis) -> None:
        """Refuse a client whose connection is not as it was; never switches."""
        only = _only(item)
        only.refuse_if_used_up()
        self._redis.restore(item)
        item.connection_pool = only.pass_on()

    def destroy(self, item: redis.Redis) -> None:
        """Close the connection for good, whoever still has a pipeline or pubsub on it."""
        pool = item.connection_pool
        if isinstance(pool, OneConnection):
            pool.retire()
        else:
            pool.disconnect()

    def fit_after(self, item: redis.Redis, error: Exception) -> bool:
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
        if not isinstance(item.connection_pool, OneConnection):
            if item.connection is not None:
                raise PoolError("create() returned a client with single_connection_client set")
            former = item.connection_pool
            item.connection_pool = OneConnection.like(former, **_without_default_retry(former))
            # Where nobody else has the former one, it may have connected.
            if getattr(item, "auto_close_connection_pool", False):  # redis-py from 5.0.1 on
                former.disconnect()
            item.auto_close_connection_pool = False
        self._redis.remember(item)
        _only(item).connection.connect()


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
        # What each client was like when it was made: its attributes and callbacks.
        self.made: WeakKeyDictionary[redis.Redis, tuple[dict[str, Any], dict[Any, Any]]]
        self.made = WeakKeyDictionary()

    def remember(self, client: redis.Redis) -> None:
        attributes = {k: v for k, v in vars(client).items() if k != "connection_pool"}
        self.made[client] = attributes, dict(client.response_callbacks)

    def restore(self, client: redis.Redis) -> None:
        """Give a client back the attributes and the response callbacks that it was made with."""
        attributes, callbacks = self.made[client]
        for name in vars(client).keys() - attributes.keys() - {"connection_pool"}:
            delattr(client, name)
        vars(client).update(attributes)
        if dict.__ne__(client.response_callbacks, callbacks):
            client.response_callbacks.clear()
            client.response_callbacks.update(callbacks)  # type: ignore[no-untyped-call]

    def connection_pool(self) -> OneConnection:
        return OneConnection.like(self.model)


class OneConnection(redis.ConnectionPool):
    """The connection pool of a pooled client: its one connection, taken or not."""

    @classmethod
    def like(cls, model: redis.ConnectionPool, **changed: Any) -> OneConnection:
        """Make one with the settings of another pool, but for those *changed*."""
        if getattr(model, "cache", None) is not None:
            raise TypeError("client-side caching is not supported: each client would have its own")
        kwargs = {**model.connection_kwargs, **changed}
        if NO_NOTICES is not None:
            kwargs.pop("maint_notifications_pool_handler", None)  # it acts on the model
            asked = kwargs.get("maint_notifications_config")
            if asked is None or asked.enabled == "auto":
                kwargs["maint_notifications_config"] = NO_NOTICES
        return cls(connection_class=tracked(model.connection_class), max_connections=1, **kwargs)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection: Any = self.make_connection()  # a Tracked; None once passed on
        self.taken = False

    def __repr__(self) -> str:  # redis-py's shows the password, before 7.0
        return f"<{type(self).__name__} {address(self.connection_kwargs)}>"

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Take the connection, connected; refuse while somebody has it."""
        if self.connection is None:
            raise redis.ConnectionError(
                "the client of this pipeline, pubsub or monitor is back in its pool; "
                "use it inside the with block"
            )
        if self.taken:
            raise redis.exceptions.MaxConnectionsError(
                "a pooled client has one connection, and a watching pipeline, a pubsub or a "
                "monitor has it; take another item for more"
            )
        self.taken = True
        try:
            if not self.connection.open:
                self.connection.connect()
        except BaseException:
            # Not connected, or killed while connecting: nobody has it.
            self.taken = False
            raise
        return self.connection

    def release(self, connection: Any) -> None:
        """Take the connection back; close it if replies were not read."""
        if connection is self.connection:
            self.taken = False
            if connection.owed:
                # A pipeline gave up half way; the next command would read what is left.
                connection.disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connection; the client would open it again."""
        if self.connection is not None:
            self.connection.disconnect()

    def pass_on(self) -> OneConnection:
        """Give the connection to a successor of this pool.

        What the last user still has of this one, a pipeline or a pubsub, can do
        nothing to the connection of the next.
        """
        successor = copy(self)
        self.connection = None
        return successor

    def retire(self) -> None:
        """Close the connection; nobody can open it again."""
        self.connection.retire()

    def refuse_if_used_up(self) -> None:
        """Raise `PoolError` unless the connection is as it was when it was made."""
        if self.taken:
            raise PoolError("a pipeline, a pubsub or a monitor still has the connection")
        if self.connection.blemish:
            raise PoolError(self.connection.blemish)


def _without_default_retry(pool: redis.ConnectionPool) -> dict[str, Any]:
    """Return no retries, in place of those that redis-py gives a client unasked."""
    settings = pool.connection_kwargs
    asked = settings.get("retry_on_error") or settings.get("retry_on_timeout")
    if asked or settings.get("retry") != _DEFAULT_RETRY:
        return {}
    return {"retry": Retry(NoBackoff(), 0)}


def _only(client: redis.Redis) -> OneConnection:
    pool = client.connection_pool
    if not isinstance(pool, OneConnection):
        raise PoolError("somebody gave a pooled client another connection pool")
    return pool
