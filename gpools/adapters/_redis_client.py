"""The clients of a `RedisPool`: redis-py's own, on one connection."""

from __future__ import annotations

from copy import copy
from functools import cache
from operator import attrgetter
from typing import Any

import redis
from redis.client import EMPTY_RESPONSE, NEVER_DECODE

from gpools.adapters._redis_connection import (
    NO_NOTICES,
    address,
    leaves_nothing,
    observed,
    tracked,
)
from gpools.adapters._slots import Kept, give_back, kept_in_slots
from gpools.errors import PoolError


class OneConnection(redis.ConnectionPool):
    """The connection pool of a pooled client: its one connection, taken or not."""

    @classmethod
    def like(cls, model: redis.ConnectionPool, **changed: Any) -> OneConnection:
        """Make one with the settings of another pool, but for those *changed*."""
        if getattr(model, "cache", None) is not None:
            raise TypeError("client-side caching is not supported: each client would have its own")
        kwargs = {**model.connection_kwargs, **changed}
        if "retry" in kwargs:
            kwargs["retry"] = copy(kwargs["retry"])  # a user may change his
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
        # Somebody may have this pool or the callbacks of its client, a pipeline or a pubsub.
        self.lent = False
        config = getattr(self.connection, "maint_notifications_config", None)
        self.noticed = config is not None and bool(config.enabled)
        # What these, and the client, were like when they were made.
        self.made_with = dict(self.connection_kwargs)
        self.terms = {k: v for k, v in vars(self.connection).items() if k in _TERMS}
        self.encoding = _encoding(self.terms["encoder"])
        self.attributes: dict[str, Any] = {}
        self.slots: Kept = ()
        self.callbacks: dict[str, Any] = {}

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
            if self.connection._sock is None:
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

    def set_retry(self, retry: Any) -> None:
        """Have commands retried as *retry* says, until the client is back in its pool."""
        self.connection_kwargs["retry"] = retry
        if self.connection is not None:
            self.connection.retry = retry
            self.__class__ = _Retrying  # for a client sends by its class what is sent once

    def plain(self) -> bool:
        """Tell whether a command is sent once, and no notices are asked for."""
        return getattr(self.connection.retry, "_retries", None) == 0 and not self.noticed

    def remember(self, client: redis.Redis) -> None:
        """Keep what *client* is like: its attributes, slots and response callbacks."""
        self.attributes = {k: v for k, v in vars(client).items() if k != "connection_pool"}
        self.slots = kept_in_slots(client)
        self.lent = bool(self.slots)  # only then is all looked at
        self.callbacks = dict(vars(client)["response_callbacks"])

    def restore(self, client: redis.Redis) -> None:
        """Make *client* as it was when it was made, or raise `PoolError`.

        What its user still has of this pool and the callbacks, by a pipeline or a pubsub,
        can do nothing to the connection and the replies of the next one.
        """
        if self.taken:
            raise PoolError("a pipeline, a pubsub or a monitor still has the connection")
        fault = self.connection.fault()
        if fault is not None:
            raise PoolError(fault)
        found, made = vars(client), self.attributes
        if len(found) != len(made) + 1 or not made.items() <= found.items():
            for name in found.keys() - made.keys() - {"connection_pool"}:
                delattr(client, name)
            found.update(made)
        if self.lent:
            if self.changed():
                raise PoolError("the settings of the connection were changed")
            give_back(client, self.slots)
            callbacks = type(made["response_callbacks"])({})
            dict.update(callbacks, self.callbacks)  # its own takes ten times as long
            made["response_callbacks"] = found["response_callbacks"] = callbacks
            successor = object.__new__(OneConnection)  # copy() takes twice as long
            vars(successor).update(vars(self))
            successor.lent = bool(self.slots)
            successor.connection_kwargs = dict(self.made_with)
            found["connection_pool"] = successor
            self.connection = None

    def changed(self) -> bool:
        """Tell whether a user has changed what all commands on the connection depend on."""
        if self.noticed:
            return False  # redis-py itself may have
        connection = self.connection
        return (
            not self.terms.items() <= vars(connection).items()
            or _encoding(connection.encoder) != self.encoding
            or connection._sock.gettimeout() != connection.socket_timeout
        )

    def retire(self) -> None:
        """Close the connection; nobody can open it again."""
        self.connection.retire()


class _Retrying(OneConnection):
    """One whose user has set retries of his own."""


_encoding = attrgetter("encoding", "encoding_errors", "decode_responses")
_TERMS = frozenset(
    """retry encoder health_check_interval socket_timeout socket_connect_timeout
    _socket_timeout _socket_connect_timeout""".split()  # noqa: SIM905
)

_GONE = object()
_OWN_WAY = (
    *("execute_command", "_execute_command"),
    *("_send_command_parse_response", "parse_response"),
)


@cache
def pooled(client_class: type[Any], plain: bool) -> type[Any]:
    """Make the class of those of *client_class* that are in a pool, *plain* or not."""
    for name in ("connection_pool", "response_callbacks"):
        if isinstance(getattr(client_class, name, None), property):
            raise TypeError(f"{client_class.__name__}.{name} is a property, but the pool needs one")

    class Pooled(client_class):  # type: ignore[misc]
        """Notes that others may have its pool or its callbacks."""

        __slots__ = ()  # else the class of a client could not be changed

        @property
        def connection_pool(self) -> Any:
            pool = self.__dict__["connection_pool"]
            if isinstance(pool, OneConnection):
                pool.lent = True
            return pool

        @connection_pool.setter
        def connection_pool(self, pool: Any) -> None:
            self.__dict__["connection_pool"] = pool

        @property
        def response_callbacks(self) -> Any:
            self.connection_pool  # noqa: B018  # whoever takes these takes that too, or may
            return self.__dict__["response_callbacks"]

        @response_callbacks.setter
        def response_callbacks(self, callbacks: Any) -> None:
            self.__dict__["response_callbacks"] = callbacks

        def __reduce_ex__(self, protocol: Any) -> Any:
            self.connection_pool  # noqa: B018  # a copy has that, too
            return super().__reduce_ex__(protocol)

    class Direct(Pooled):
        """Spares redis-py's detours for retries, metrics and notices where they come to nothing."""

        __slots__ = ()

        def _execute_command(self, *args: Any, **options: Any) -> Any:
            only = self.__dict__["connection_pool"]
            if (
                type(only) is not OneConnection
                or self.connection is not None  # as what client() makes has
                or not leaves_nothing(args[0])  # HIMPORT is the client's affair
                or NEVER_DECODE in options
                or EMPTY_RESPONSE in options
                or observed()
            ):
                return super()._execute_command(*args, **options)
            connection = only.get_connection()
            try:
                connection.send_command(*args)
                reply = connection.read_response()
            finally:
                only.release(connection)
            callback = self.__dict__["response_callbacks"].get(args[0])
            if callback is None:
                return reply
            options.pop("keys", None)  # those are for redis-py's cache
            return callback(reply, **options)

    direct = plain and all(
        getattr(client_class, name, None) is getattr(redis.Redis, name, _GONE) for name in _OWN_WAY
    )
    made = Direct if direct else Pooled
    made.__name__ = made.__qualname__ = f"Pooled{client_class.__name__}"
    made.__module__ = client_class.__module__
    return made
