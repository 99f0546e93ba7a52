"""urllib3 with greenlets in line: `FairPoolManager` and what is under it.

urllib3's own pools either open a connection for whoever finds none idle, or,
with *block*, have greenlets wait in a queue that knows no order.  They count
connections by putting back None for each that failed, also for one that a
greenlet killed in the queue never had.

Here a connection is an item of a `ConnectionPool`, which knows it by identity.
Few seams are enough: `_get_conn` and `_put_conn` go to our pool, and
`_make_request` and `_prepare_proxy` note which connection they failed with,
since urllib3 gives back None in its place.  A response ends when it gives its
connection back, and gives it back when it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import copy
from functools import cache
from http.client import HTTPConnection as StdlibConnection
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize, ref

from gevent import getcurrent
from greenlet import greenlet

from gpools.adapters._answer import read_quickly
from gpools.adapters._blocking import tell_unpatched
from gpools.adapters._extra import extra
from gpools.adapters._half_open import close_half_open, end_answer
from gpools.adapters._probe import between_requests, may_be_followed, quiet
from gpools.connection import ConnectionPool, split_settings
from gpools.errors import PoolClosed, PoolError, PoolFull, PoolTimeout, WrongThread

with extra("urllib3"):
    from urllib3 import (
        HTTPConnectionPool,
        HTTPResponse,
        HTTPSConnectionPool,
        PoolManager,
        ProxyManager,
    )
    from urllib3.exceptions import ClosedPoolError, EmptyPoolError
    from urllib3.poolmanager import PoolKey
    from urllib3.util import connection as urllib3_connection

__all__ = [
    "FairHTTPConnectionPool",
    "FairHTTPSConnectionPool",
    "FairPoolManager",
    "FairProxyManager",
]

M = TypeVar("M", bound=PoolManager)

# urllib3 makes and connects its connections itself, and has a word of its own for the size.
_NOT_OURS = frozenset(
    {"min_size", "max_size", "create", "check", "reset", "destroy"}
    | {"check_timeout", "max_creating", "create_timeout", "name"}
)


class Connections(ConnectionPool[Any]):
    """The connections of one urllib3 pool, which makes them."""

    def __init__(self, owner: HTTPConnectionPool, max_size: int, settings: dict[str, Any]) -> None:
        self._owner = ref(owner)  # it has this one, and is to go when nobody uses it
        settings = {"order_as_stack": True, **settings}  # as urllib3 does
        # Whatever comes back is looked at before it goes out.
        self._seen_later = settings.get("check_after", 0.0) == 0
        settings["shed"] = copy(settings.get("shed"))  # it judges one line
        name = f"{owner.scheme}://{owner.host}:{owner.port}"
        super().__init__(max_size=max_size, name=name, check_timeout=None, **settings)

    def create(self) -> Any:
        """Make a connection; urllib3 connects it when it is used."""
        owner = self._owner()
        assert owner is not None  # it is asking
        tell_unpatched("urllib3", urllib3_connection)
        connection = owner._new_conn()
        read_quickly(connection)
        return connection

    def check(self, item: Any, /) -> bool:
        """Tell whether the server has neither hung up nor sent anything; never switches."""
        return item.sock is None or quiet(item.sock)

    def reset(self, item: Any, /) -> None:
        """Refuse a connection in the middle of something; never switches."""
        if getattr(item, "unread", False) or not between_requests(item):
            raise PoolError("an answer was not read to its end")
        if not (self._seen_later or self.check(item)):
            raise PoolError("the server has hung up, or sent what nobody had asked for")

    def destroy(self, item: Any, /) -> None:
        """Close the connection."""
        item.close()

    def qsize(self) -> int:
        """Tell how many more could be had at once, as urllib3's own queue does."""
        return self.free()

    def _filenos(self, item: Any) -> Iterable[int]:
        return [] if item.sock is None or item.sock.fileno() < 0 else [item.sock.fileno()]


class Fair:
    """Mixed into urllib3's connection pools: greenlets wait in line for *maxsize* connections."""

    pool: Any  # Connections; None once closed, as urllib3 has it
    _connections: Connections
    _failed: WeakKeyDictionary[greenlet, StdlibConnection]

    def __init__(
        self,
        host: str,
        port: int | None = None,
        *,
        maxsize: int = 10,
        pool_timeout: float | None = None,
        **options: Any,
    ) -> None:
        settings, urllib3_options = split_options(maxsize, pool_timeout, options)
        super().__init__(host, port, maxsize=maxsize, block=True, **urllib3_options)  # type: ignore[call-arg]
        self._wait_in_line(maxsize, settings)

    def _wait_in_line(self, maxsize: int, settings: dict[str, Any]) -> None:
        self.block = True
        self.pool = self._connections = Connections(self, maxsize, settings)  # type: ignore[arg-type]
        # A connection that failed, until urllib3 gives back None in its place.
        self._failed = WeakKeyDictionary()
        finalize(self, _close_idle, self._connections)

    def _get_conn(self, timeout: float | None = None) -> Any:
        if self.pool is None:
            raise ClosedPoolError(self, "Pool is closed.")  # type: ignore[arg-type]
        try:
            return self.pool.get() if timeout is None else self.pool.get(timeout=timeout)
        except PoolClosed as error:
            raise ClosedPoolError(self, "Pool is closed.") from error  # type: ignore[arg-type]
        except (PoolTimeout, PoolFull) as error:
            raise EmptyPoolError(self, str(error)) from error  # type: ignore[arg-type]

    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("preload_content", True):
            # Given back at once it would be closed, and the answer with it.
            kwargs["release_conn"] = False
        return super().urlopen(*args, **kwargs)  # type: ignore[misc]

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            if self._connections._known(conn):
                self._connections.put(conn)
            else:  # the parent's, in a child, or not from here
                conn.close()
            return
        failed = self._failed.pop(getcurrent(), None)
        if failed is not None and self._connections._known(failed):
            self._connections.discard(failed)
        # Else whoever asks had no connection: he was killed or timed out in line.

    def _make_request(self, conn: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            response = super()._make_request(conn, *args, **kwargs)  # type: ignore[misc]
        except BaseException as error:
            # A kill too: urllib3 closes the connection, but forgets which it was.
            self._fail(conn, error)
            raise
        conn.unread = may_be_followed(response.status, response.headers)
        if isinstance(response, HTTPResponse):
            response.__class__ = _released(type(response))
        return response

    def _prepare_proxy(self, conn: Any) -> None:
        try:
            super()._prepare_proxy(conn)  # type: ignore[misc]
        except BaseException as error:
            # As in `_make_request`.
            self._fail(conn, error)
            raise

    def _fail(self, conn: Any, error: BaseException) -> None:
        close_half_open(conn, error)
        self._failed[getcurrent()] = conn

    def close(self) -> None:
        """Close the idle connections, and those in use as they come back; refuse who waits."""
        self.pool = None
        self._connections.close()


class FairHTTPConnectionPool(Fair, HTTPConnectionPool):
    """A `urllib3.HTTPConnectionPool` of *maxsize* connections for which greenlets wait in line.

    *pool_timeout*, in seconds, is how long; then urllib3's EmptyPoolError is
    raised, whose cause is a `PoolTimeout` that tells who holds them.  With None,
    wait for ever.  A request may be given its own.

    `pool` is the `ConnectionPool` of the connections, None once closed.

    The other parameters are those of `urllib3.HTTPConnectionPool`, and of
    `ConnectionPool`: ages, *max_waiting*, *shed*, *leak_after* and *listener*.
    """


class FairHTTPSConnectionPool(Fair, HTTPSConnectionPool):
    """A `urllib3.HTTPSConnectionPool`; all else as in `FairHTTPConnectionPool`."""


class FairManager:
    """Mixed into urllib3's managers: has them make fair pools, at most one for each host."""

    _pool_settings: dict[str, Any]
    _alive: WeakValueDictionary[Any, Fair]  # by key; those urllib3 has dropped while in use too

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> Any:
        context = dict(self.connection_pool_kw if request_context is None else request_context)  # type: ignore[attr-defined]
        maxsize = context.get("maxsize", 1)
        pool = super()._new_pool(scheme, host, port, context)  # type: ignore[misc]
        pool.__class__ = _fair(type(pool))  # type: ignore[arg-type]  # a class is hashable
        pool._wait_in_line(maxsize, self._pool_settings)
        return pool

    def connection_from_pool_key(self, pool_key: Any, request_context: dict[str, Any]) -> Any:
        """Return the pool of *pool_key*; the one in use, if there is, however many hosts there are.

        Never switches.
        """
        pools: Any = self.pools  # type: ignore[attr-defined]
        with pools.lock:
            alive = self._alive.get(pool_key)
            if alive is not None and pool_key not in pools:
                pools[pool_key] = alive
            pool = super().connection_from_pool_key(pool_key, request_context)  # type: ignore[misc]
            self._alive[pool_key] = pool
            return pool

    def clear(self) -> None:
        """Forget all pools: close their idle connections, and those in use as they come back.

        Whoever waits is served with a new one.  Never switches.
        """
        pools = list(self._alive.values())
        self._alive.clear()
        super().clear()  # type: ignore[misc]
        for pool in pools:
            pool._connections.recycle()


class FairPoolManager(FairManager, PoolManager):
    """A `urllib3.PoolManager` of up to *maxsize* connections for each host.

    ::

        http = FairPoolManager(maxsize=10, pool_timeout=5)
        response = http.request("GET", "http://127.0.0.1:8080/")

    Greenlets wait in line for them, *pool_timeout* seconds at most; then
    urllib3's EmptyPoolError is raised, whose cause is a `PoolTimeout` that tells
    who holds them.  With None, wait for ever.  A request may be given its own.

    *num_pools* hosts at most have idle connections.  The other parameters are
    those of `urllib3.PoolManager`, and of `ConnectionPool`: ages, *max_waiting*,
    *shed*, *leak_after*, *listener* and so on, for each host.

    urllib3 repeats requests that failed, three times unless told otherwise;
    give it ``retries=False``, or a Retry, to decide that yourself.

    Raises TypeError and ValueError for parameters that neither would take.
    """

    def __init__(
        self,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        maxsize: int = 10,
        pool_timeout: float | None = None,
        **options: Any,
    ) -> None:
        settings, urllib3_options = split_options(maxsize, pool_timeout, options)
        super().__init__(num_pools, headers, maxsize=maxsize, **urllib3_options)
        make_fair(self, settings)


class FairProxyManager(FairManager, ProxyManager):
    """A `urllib3.ProxyManager`; all else as in `FairPoolManager`."""

    def __init__(
        self,
        proxy_url: str,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        maxsize: int = 10,
        pool_timeout: float | None = None,
        **options: Any,
    ) -> None:
        settings, urllib3_options = split_options(maxsize, pool_timeout, options)
        super().__init__(proxy_url, num_pools, headers, maxsize=maxsize, **urllib3_options)
        make_fair(self, settings)


def split_options(
    maxsize: int, pool_timeout: float | None, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part the keywords that are `ConnectionPool`'s from urllib3's."""
    if not isinstance(maxsize, int) or maxsize < 1:
        raise ValueError(f"maxsize is {maxsize!r} but must be a whole number, at least 1")
    if "block" in options:
        raise TypeError("block cannot be given: a fair pool has greenlets wait in line")
    settings, others = split_settings(options)
    if "timeout" in settings:
        others["timeout"] = settings.pop("timeout")  # that of urllib3, for the exchange
    for name in _NOT_OURS & settings.keys():
        raise TypeError(f"{name} cannot be given: urllib3 makes the connections, maxsize of them")
    return {"timeout": pool_timeout, **settings}, others


def make_fair(manager: PoolManager, settings: dict[str, Any]) -> None:
    """Have *manager*, whatever its class, make fair pools with *settings*."""
    manager.__class__ = _fair_manager(type(manager))  # type: ignore[arg-type]  # as above
    manager._pool_settings = settings  # type: ignore[attr-defined]
    manager._alive = WeakValueDictionary()  # type: ignore[attr-defined]
    # For the complaints, now and not at the first request.
    context = {**manager.connection_pool_kw, "scheme": "http", "host": "localhost", "port": 80}
    try:
        manager.key_fn_by_scheme["http"](context)
    except TypeError as error:  # it speaks of a PoolKey and its 'key_...'
        unknown = [name for name in context if f"key_{name}" not in PoolKey._fields]
        if not unknown:
            raise
        raise TypeError(f"neither urllib3 nor ConnectionPool takes {', '.join(unknown)}") from error
    manager._new_pool("http", "localhost", 80)


class _Released:
    """Mixed into urllib3's responses: one that has given its connection back has none left.

    To close one gives it back.  So it is given back, too, when the program has
    dropped a response unread, since the end of a response closes it.
    """

    _connection: Any
    _original_response: Any

    def release_conn(self) -> None:
        answer = self._original_response
        if self._connection is not None and answer is not None and not answer.isclosed():
            self._connection.unread = True
            end_answer(answer)
        super().release_conn()  # type: ignore[misc]

    def close(self) -> None:
        try:
            self.release_conn()
        finally:
            super().close()  # type: ignore[misc]


@cache
def _fair(pool_class: type) -> type:
    if issubclass(pool_class, Fair):
        return pool_class
    made = {
        HTTPConnectionPool: FairHTTPConnectionPool,
        HTTPSConnectionPool: FairHTTPSConnectionPool,
    }
    return made.get(pool_class) or type(
        f"Fair{pool_class.__name__}", (Fair, pool_class), {"__module__": __name__}
    )


@cache
def _fair_manager(manager_class: type) -> type:
    if issubclass(manager_class, FairManager):
        return manager_class
    return type(
        f"Fair{manager_class.__name__}", (FairManager, manager_class), {"__module__": __name__}
    )


@cache
def _released(response_class: type) -> type:
    if issubclass(response_class, _Released):
        return response_class
    return type(response_class.__name__, (_Released, response_class), {"__module__": __name__})


def _close_idle(connections: Connections) -> None:
    with suppress(WrongThread):  # collected there: the sockets go with their connections
        connections.recycle()
