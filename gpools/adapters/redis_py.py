"""`FairConnectionPool`: the connection pool of redis-py's own clients, on our core.

redis-py takes a connection, and gives it back in ``finally``, whatever happened in
between.  So it is on its way back that a connection is judged: one that owes a
reply, or on which something was left, is closed, and its slot comes free.  One
that never comes back is missed when it is collected.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, ClassVar, TypeVar
from weakref import ref

import redis
from redis.connection import to_bool
from redis.sentinel import SentinelConnectionPool

from gpools.adapters._blocking import tell_unpatched
from gpools.adapters._probe import A_MOMENT
from gpools.adapters._redis_connection import (
    NO_NOTICES,
    address,
    checked_url,
    number_in_url,
    observed,
    tracked,
)
from gpools.connection import ConnectionPool, split_settings
from gpools.errors import (
    NotInUse,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolTimeout,
    PoolUnavailable,
)

__all__ = ["FairConnectionPool", "FairSentinelConnectionPool", "SharedConnectionPool"]

try:
    from redis.observability.attributes import ConnectionState, get_pool_name
    from redis.observability.recorder import (
        record_connection_count,
        record_connection_create_time,
        record_connection_wait_time,
    )
except ImportError:  # redis-py before 7.2, and some after it
    _RECORDS = False
else:
    _RECORDS = True


Self = TypeVar("Self", bound="FairConnectionPool")

try:
    from redis import event
except ImportError:  # redis-py before 5.3
    _released: Any = None
else:
    _released = getattr(event, "AfterConnectionReleasedEvent", None)


class FairConnectionPool(redis.ConnectionPool):
    """A pool for ``redis.Redis(connection_pool=...)`` in which greenlets wait in fair order.

    ::

        pool = FairConnectionPool.from_url("redis://127.0.0.1:6379/0", max_connections=10)
        client = redis.Redis(connection_pool=pool)
        client.incr("visits")

    All greenlets may share the client, and its pipelines, locks, pubsubs and
    scripts are redis-py's own.  While *max_connections* are in use, callers wait
    in the order they came, for at most *timeout* seconds (None: for ever), which
    cover connecting too.  Then they get a `redis.exceptions.MaxConnectionsError`
    that tells who holds the connections.

    The other parameters are those of *connection_class* and, by their names, of
    `gpools.ConnectionPool`: *min_size*, *max_waiting*, *max_age*, *max_idle* ...
    In a URL they may stand too.  `connections` is that pool: ask it for its
    `stats` and `holders`, and `recycle` or `resize` it.

    A connection comes back to the pool only as it was when it was made.  One with
    replies that nobody has read, because their reader was killed, or with a MULTI,
    WATCH, SELECT, SUBSCRIBE or the like left on it, is closed.

    `close` and `disconnect` close the connections, and the pool can be used again,
    as redis-py's can; ``connections.close()`` ends it.

    Raises ValueError and TypeError for what makes no sense.
    """

    def __init__(
        self,
        max_connections: int | None = 50,
        timeout: float | None = 20,
        connection_class: type | None = None,
        **options: Any,
    ) -> None:
        settings, connection_options = split_settings(options)
        for taken in ("max_size", "create", "check", "reset", "destroy"):
            if taken in settings:
                raise TypeError(f"{taken} cannot be given: {_INSTEAD[taken]}")
        if connection_options.get("cache") or connection_options.get("cache_config"):
            raise TypeError(
                "client-side caching is not supported: redis-py reads invalidations "
                "from connections that other greenlets are using"
            )
        if NO_NOTICES is not None:
            connection_options.setdefault("maint_notifications_config", NO_NOTICES)
        if connection_class is not None:
            connection_options["connection_class"] = connection_class
        if isinstance(timeout, str):
            timeout = number_in_url("timeout", timeout)
        # How long callers wait, in seconds; None: for ever.
        self.timeout = timeout
        # Who is told of releases; that of redis-py's own making has nobody to tell.
        self._dispatcher: Any = connection_options.get("event_dispatcher")
        self._recorded = (0, 0)  # idle and used connections, as redis-py's metrics know them
        super().__init__(max_connections=max_connections or 50, **connection_options)
        settings.setdefault("name", address(self.connection_kwargs))
        self.make_connection()  # for its complaints; it does not connect
        self.connections: Connections = Connections(
            ref(self), max_size=max_connections or 50, timeout=timeout, **_converted(settings)
        )

    @classmethod
    def from_url(cls: type[Self], url: str, **options: Any) -> Self:
        """Make a pool of what *url* says, and the other *options*.

        Raises ValueError and TypeError for what makes no sense.
        """
        return super().from_url(checked_url(url), **options)

    # Taking and giving back.

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Take a connection, connected; redis-py's clients do.

        Raises `redis.exceptions.MaxConnectionsError` when *timeout* is over, another
        `redis.ConnectionError` if the server cannot be reached, `WrongThread`,
        `HubWouldBlock`.  May switch, unless a connection is idle and nobody waits.
        """
        begun = monotonic()
        try:
            connection = self.connections.get(timeout=self.timeout)
        except (PoolTimeout, PoolFull) as error:
            text = str(error).replace("max_size", "max_connections")
            raise redis.exceptions.MaxConnectionsError(text) from error
        except (PoolClosed, PoolUnavailable) as error:
            raise redis.ConnectionError(str(error)) from error
        finally:
            self._record_counts()
        if _RECORDS and observed():
            record_connection_wait_time(get_pool_name(self), monotonic() - begun)
        return connection

    def release(self, connection: Any) -> None:
        """Give a connection back; it is closed unless it is as it was when it was made.

        One that is not out, or not of this pool, or was the parent's before a fork,
        is ignored, as redis-py's pools do.  Raises `WrongThread`.
        """
        try:
            with suppress(NotInUse):
                self.connections.put(connection)
        finally:
            self._record_counts()

    def make_connection(self) -> Any:
        """Make a connection, not connected; the pool calls this, and counts what it made."""
        return tracked(self.connection_class)(**self.connection_kwargs)

    # Letting go.

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the idle connections and, unless told otherwise, those in use.

        Who uses one gets an error, or connects anew where it was told to retry.
        The pool can be used again.
        """
        connections = getattr(self, "connections", None)
        if connections is not None:
            connections.drop_idle()
            if inuse_connections:
                for connection in self._in_use_connections:
                    connection.hang_up()
            self._record_counts()

    def close(self) -> None:
        """Close all connections; the pool can be used again, as redis-py's can."""
        self.disconnect()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def reset(self) -> None:
        """Let all connections go: idle ones now, those in use when they come back."""
        connections = getattr(self, "connections", None)
        if connections is not None:  # else redis-py's constructor calls
            connections.recycle()
            self._record_counts()

    def re_auth_callback(self, token: Any) -> None:
        """Have the credentials of *token* used from now on, by connections made anew."""
        self.reset()

    # What redis-py asks.

    @property
    def max_connections(self) -> int:
        """The most connections that may exist; to set it is to resize the pool."""
        connections = getattr(self, "connections", None)
        return 0 if connections is None else connections.max_size

    @max_connections.setter
    def max_connections(self, limit: int) -> None:
        connections = getattr(self, "connections", None)
        if connections is not None:
            connections.resize(limit)

    @property
    def pid(self) -> int:
        """This process: in the child of a fork the pool starts empty by itself."""
        return os.getpid()

    @pid.setter
    def pid(self, pid: int) -> None:
        pass

    def _has_moved(self, connection: Any) -> bool:
        """Tell whether *connection* is to a server that is no more the right one."""
        return bool(getattr(connection, "_should_reconnect", False))

    @property
    def _available_connections(self) -> list[Any]:  # type: ignore[override]
        return list(self.connections.free_items)

    @property
    def _in_use_connections(self) -> set[Any]:  # type: ignore[override]
        return {hold.item for hold in self.connections.holders() if hold.item is not None}

    def __repr__(self) -> str:
        if not hasattr(self, "connections"):
            return object.__repr__(self)
        return repr(self.connections).replace("Connections", type(self).__name__, 1)

    def __del__(self) -> None:
        with suppress(Exception):
            self._record(0, 0)

    # redis-py's metrics.

    def _record_counts(self) -> None:
        if _RECORDS and observed():
            self._record(*self.connections.counts())

    def _record(self, idle: int, used: int) -> None:
        """Tell redis-py's metrics what has changed since they were last told.

        So each change counts once, also that of a connection which was collected.
        """
        was_idle, was_used = self._recorded
        self._recorded = idle, used
        name = get_pool_name(self)
        if idle != was_idle:
            record_connection_count(name, ConnectionState.IDLE, idle - was_idle)
        if used != was_used:
            record_connection_count(name, ConnectionState.USED, used - was_used)


class SharedConnectionPool(FairConnectionPool):
    """The same, but `from_url` gives one and the same pool for the same URL and options.

    For programs that ask for a pool again in each greenlet, as Django does in its
    own redis cache: they would have as many connections as greenlets.
    """

    _shared: ClassVar[dict[tuple[object, ...], Any]] = {}

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Any:
        """Return the pool for *url* and these options, made when first asked for."""
        key = (cls, url, *sorted((name, repr(value)) for name, value in options.items()))
        if key not in cls._shared:
            cls._shared.setdefault(key, super().from_url(url, **options))
        return cls._shared[key]


class FairSentinelConnectionPool(FairConnectionPool, SentinelConnectionPool):
    """The same for a master or replicas that a `redis.sentinel.Sentinel` knows::

        sentinel.master_for("orders", connection_pool_class=FairSentinelConnectionPool)

    When the master has changed, connections to the former one are let go as they
    come back, and the idle ones as soon as a new one is made.
    """

    def __init__(self, service_name: str, sentinel_manager: Any, **options: Any) -> None:
        super().__init__(service_name=service_name, sentinel_manager=sentinel_manager, **options)

    def _has_moved(self, connection: Any) -> bool:
        return super()._has_moved(connection) or not self.owns_connection(connection)  # type: ignore[no-untyped-call]


class Connections(ConnectionPool[Any]):
    """redis-py's connections, as the items of a `FairConnectionPool`."""

    def __init__(self, owner: Callable[[], FairConnectionPool | None], **settings: Any) -> None:
        self._owner = owner
        settings.setdefault("check_timeout", None)  # check() does not wait
        settings.setdefault("check_after", A_MOMENT)  # reset() looks too
        super().__init__(**settings)

    def create(self) -> Any:
        """Make a connection, and connect it."""
        owner = self._owner()
        if owner is None:
            raise PoolError("the FairConnectionPool of these connections is gone")
        begun = monotonic()
        tell_unpatched("redis-py", redis.connection)
        connection = owner.make_connection()
        connection.home = ref(self)
        connection.connect()
        if _RECORDS and observed():
            record_connection_create_time(owner, monotonic() - begun)
        return connection

    def check(self, item: Any, /) -> bool:
        """Tell whether the server has neither hung up nor sent anything; never switches."""
        if not item.open:
            return False
        if _notices(item):
            # Nothing is owed on an idle one, so what has come can be only one of those.
            item.can_read(timeout=0)  # raises if the server has hung up
            return True
        return not item.unread()

    def reset(self, item: Any, /) -> None:
        """Refuse a connection that is not as it was when it was made."""
        owner = self._owner()
        if owner is None:
            raise PoolError("the FairConnectionPool of these connections is gone")
        noticed = _notices(item) and self.check(item)
        fault = item.blemish if noticed else item.fault()
        if fault is not None:
            raise PoolError(fault)
        if owner._has_moved(item):
            raise PoolError("the server has moved")
        if owner._dispatcher is not None and _released is not None:
            owner._dispatcher.dispatch(_released(item))

    def destroy(self, item: Any, /) -> None:
        """Close the connection for good."""
        item.retire()

    def _filenos(self, item: Any) -> list[int]:
        filenos: list[int] = item.filenos()
        return filenos

    def drop_idle(self) -> None:
        """Let the idle connections go."""
        self._belong_here()
        self._drop_all_idle("disconnected")

    def counts(self) -> tuple[int, int]:
        """Count the idle connections, and all others that exist."""
        idle = len(self._line.idle)
        return idle, len(self._book.items) - idle


def _notices(connection: Any) -> bool:
    """Tell whether the server may send maintenance notifications on *connection*."""
    config = getattr(connection, "maint_notifications_config", None)
    return config is not None and bool(config.enabled) and connection.get_protocol() in (3, "3")


_INSTEAD = {
    "max_size": "it is max_connections here",
    "create": "override make_connection",
    "check": "the pool looks at its connections itself",
    "reset": "a connection comes back as it was made, or not at all",
    "destroy": "the pool closes its connections itself",
}


def _converted(settings: dict[str, Any]) -> dict[str, Any]:
    """Make numbers and truth values of what stood in a URL."""
    return {
        name: _convert(name, value) if isinstance(value, str) and name != "name" else value
        for name, value in settings.items()
    }


def _convert(name: str, value: str) -> Any:
    if name in ("order_as_stack", "count_holds"):
        return to_bool(value)  # type: ignore[no-untyped-call]
    number = number_in_url(name, value)
    return int(number) if number.is_integer() else number
