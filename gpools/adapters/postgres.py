"""`PostgresPool`: psycopg 3 connections."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import cache
from inspect import signature
from math import inf
from socket import SHUT_RDWR
from time import monotonic
from traceback import clear_frames
from types import TracebackType
from typing import Any

from gevent import Timeout
from gevent.monkey import get_original
from gevent.selectors import GeventSelector
from gevent.socket import wait_read, wait_write

from gpools._fast import MISSING, CutOff, Missing, Use
from gpools._within import within
from gpools.adapters._blocking import refuse_blocking
from gpools.adapters._extra import extra
from gpools.adapters._probe import A_MOMENT, JUST_NOW, quiet
from gpools.adapters._slots import give_back, kept_in_slots
from gpools.adapters._verbs import join_verbs
from gpools.connection import ConnectionPool, split_settings
from gpools.errors import PoolError

with extra("postgres"):
    import psycopg
from psycopg import waiting
from psycopg._preparing import PrepareManager
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo, PipelineStatus, PollingStatus, TransactionStatus

__all__ = ["PostgresPool"]

_socket = get_original("socket", "socket")

# What psycopg.connect takes beside the options of libpq.
_CONNECT = frozenset(signature(psycopg.Connection.connect).parameters) - {"conninfo", "kwargs"}

# SQLSTATEs that tell of the server or the connection, not of the statement:
# connection lost, out of resources, shut down, system error, broken inside,
# and a server that has become a standby.
_NOT_THE_PROGRAMS = ("08", "53", "57P", "58", "F0", "XX", "25006")

# Those of a statement that psycopg has prepared, but that the server has no more,
# or cannot run since a table was altered.  All who run it there would meet them.
_STALE = ("26000", "0A000")


# Between two statements; all others are in the middle of one, or closed.
_WHOLE = frozenset((TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR))


class PostgresPool(ConnectionPool["psycopg.Connection[Any]"]):
    """A pool of psycopg 3 connections.

    ::

        pool = PostgresPool("postgresql://user@127.0.0.1:5432/shop", max_size=10)
        with pool.connection() as conn:
            conn.execute("UPDATE stock SET left = left - 1")

    Give a *conninfo*, a URL or the ``key=value`` form, or the keyword arguments
    of `psycopg.connect` (*host*, *dbname*, *autocommit*, *row_factory*,
    *prepare_threshold* ...), or both: the keywords win.  *connection_class* is
    what is made, a subclass of `psycopg.Connection`.  The other parameters are
    those of `ConnectionPool`; *check_after* is 10 ms, for the pool looks
    at a connection that comes back, unless the server has just answered on it.

    A connection that comes back is rolled back if a transaction is open,
    destroyed if a query, a COPY or a pipeline is, and gets back all attributes
    that its user has changed.  What lives in the server's session and outlives a
    transaction (SET, LISTEN, temporary tables, advisory locks ...) is undone
    with *discard_all*, at the price of a round trip for each return and of the
    prepared statements.  All this may take *reset_timeout* seconds.

    A connection that is let go while the server runs a query for it has the
    query cancelled; the attempt may take *cancel_timeout* seconds, None: none
    is made.

    Raises ValueError and TypeError for what psycopg would not take, without the
    password that may be in it, and RuntimeError in a program in which psycopg
    would block all greenlets.
    """

    _postgres: _Connections

    def __init__(
        self,
        conninfo: str = "",
        *,
        min_size: int = 0,
        max_size: int = 4,
        order_as_stack: bool = False,
        create: Callable[[], psycopg.Connection[Any]] | None = None,
        connection_class: type[psycopg.Connection[Any]] | None = None,
        discard_all: bool = False,
        reset_timeout: float = 5.0,
        cancel_timeout: float | None = 2.0,
        **options: Any,
    ) -> None:
        _require_cooperative()
        for name, seconds in (("reset_timeout", reset_timeout), ("cancel_timeout", cancel_timeout)):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name} is {seconds!r} but must be above 0")
        settings, psycopg_options = split_settings(options)
        self._postgres = _Connections(
            connection_class or psycopg.Connection, conninfo, psycopg_options
        )
        self._postgres.discard_all = discard_all
        self._postgres.reset_timeout = reset_timeout
        self._postgres.cancel_timeout = cancel_timeout
        join_verbs(self, PostgresPool, settings)
        settings.setdefault("check_after", A_MOMENT)  # reset() looks too
        super().__init__(min_size, max_size, order_as_stack, create, **settings)

    def connection(
        self, timeout: float | Missing | None = MISSING
    ) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Take a connection for the length of a ``with`` block that is a transaction.

        Left without an error the transaction is committed, left by an Exception
        it is rolled back; left by a Timeout, a kill or any other BaseException the
        connection is destroyed.  *timeout* as in `get`.

        Raises what `get` raises, and what the commit raises.  Switches.
        """
        use = _Transaction()
        use._pool = self
        use._timeout = timeout
        use._item = MISSING
        return use

    def create(self) -> psycopg.Connection[Any]:
        """Make a connection."""
        try:
            return self._postgres.connect()
        except BaseException as error:
            # Killed or timed out while connecting, what it had is in the frames of
            # the error, and stays open as long as anybody looks at that.
            clear_frames(error.__traceback__)
            raise

    def check(self, item: psycopg.Connection[Any], /) -> bool:
        """Tell whether the server has neither hung up nor sent anything; never switches."""
        return not item.closed and quiet(item)  # type: ignore[arg-type]

    def reset(self, item: psycopg.Connection[Any], /) -> None:
        """Roll back, discard what the session has, take back changed attributes.

        Switches only if a transaction is open, after a stream, or with *discard_all*.
        """
        _refuse_if_used_up(item)
        settings = vars(item)["_made"]
        streamed = vars(item).pop("_streamed", False)
        settings.apply(item)  # first, for no handler of the user's is to hear of what follows
        if _in_transaction(item) or self._postgres.discard_all or streamed:
            self._clean(item)
            settings.apply(item)
        while item.pgconn.notifies():
            pass  # read along with the last answer, and not the next user's
        if monotonic() > settings.heard + JUST_NOW and not quiet(item):  # type: ignore[arg-type]
            raise PoolError("the server has hung up, or sent what nobody had asked for")

    def _clean(self, item: psycopg.Connection[Any]) -> None:
        seconds = self._postgres.reset_timeout
        with Timeout(seconds, PoolError(f"the server did not answer within {seconds} s")):
            rolled_back = _in_transaction(item)
            if rolled_back:
                item.rollback()
            item.autocommit = True  # DISCARD ALL cannot run in a transaction
            if self._postgres.discard_all:
                psycopg.Cursor(item).execute("DISCARD ALL", prepare=False)
                item._prepared = PrepareManager()  # the server has none of them any more
            elif not rolled_back:
                # After a stream libpq gives the first answer of a pipeline as if
                # that was one too; any other statement in between mends it.
                psycopg.Cursor(item).execute("", prepare=False)

    def destroy(self, item: psycopg.Connection[Any], /) -> None:
        """Close the connection without waiting, then have the server cancel what it runs."""
        if not isinstance(item, psycopg.Connection):
            return
        _hang_up(item)
        cancel = vars(item).pop("_cancel", None)
        if cancel is not None and self._postgres.cancel_timeout is not None:
            with Timeout(self._postgres.cancel_timeout, False):  # type: ignore[arg-type]
                _send(cancel)

    def fit_after(self, item: psycopg.Connection[Any], error: Exception, /) -> bool:
        """Say no after errors of the network or the server, yes after those of a statement."""
        if item.closed or _busy(item):
            return False
        if not isinstance(error, psycopg.Error):
            return True
        if error.sqlstate in _STALE and item._prepared._names:
            return False
        if error.sqlstate is not None:
            return not error.sqlstate.startswith(_NOT_THE_PROGRAMS)
        return not isinstance(
            error, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
        )

    def _checked(self, item: psycopg.Connection[Any]) -> bool | None:
        """Check *item*, and have that leave no transaction open.

        A SELECT opens one, and so a user's ``transaction()`` would be within it, and
        be rolled back with it.
        """
        sound: bool | None = super()._checked(item)
        if sound and _in_transaction(item):
            try:
                within(self._book.check_timeout, item.rollback, CutOff)
            except CutOff:
                return None
        return sound

    def _adopt(self, item: psycopg.Connection[Any]) -> None:
        refuse_blocking(item)
        if not isinstance(item, psycopg.Connection):
            raise PoolError(f"create() returned a {type(item).__name__}, no psycopg.Connection")
        if _in_transaction(item):
            state = item.info.transaction_status.name
            raise PoolError(f"create() returned a connection in state {state}; commit first")
        item.__class__ = _pooled(type(item))  # type: ignore[arg-type]  # a class is hashable
        vars(item)["_waiting"] = 0
        vars(item)["_made"] = _Settings(item)


class _Transaction(Use):
    """A ``with`` block that ends with a commit."""

    __slots__ = ()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        conn = self._item
        # Put back in the block it may be another's by now, and so his transaction.
        if conn is not MISSING and error is None and (self.out() or conn.closed):
            try:
                # Where nothing is to be committed that would do nothing, but take a while.
                if _in_transaction(conn) or conn._pipeline is not None or conn._tpc is not None:
                    conn.commit()
            except BaseException as failed:
                super().__exit__(type(failed), failed, failed.__traceback__)
                raise
        super().__exit__(kind, error, tb)


class _Connections:
    """How to make connections, and how to clean them."""

    discard_all: bool
    reset_timeout: float
    cancel_timeout: float | None

    def __init__(
        self,
        connection_class: type[psycopg.Connection[Any]],
        conninfo: str,
        options: Mapping[str, Any],
    ) -> None:
        if not issubclass(connection_class, psycopg.Connection):
            raise TypeError(f"connection_class is no psycopg.Connection: {connection_class!r}")
        known = _CONNECT | {option.keyword.decode() for option in Conninfo.get_defaults()}
        for name in options.keys() - known:
            raise TypeError(f"neither psycopg.connect nor ConnectionPool takes {name!r}")
        self.connection_class = connection_class
        self.options = {**_parsed(conninfo), **options}
        _require_no_stray_password(self.options)

    def connect(self) -> psycopg.Connection[Any]:
        return self.connection_class.connect(**self.options)


class _Settings:
    """What a user can change on a connection without telling the server."""

    _OTHERS = frozenset(("pgconn", "lock", "_adapters", "_prepared", "_waiting"))

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.heard = -inf  # when the server answered last
        self.attributes = {name: _copied(value) for name, value in vars(conn).items()}
        self.prepare = conn._prepared.prepare_threshold, conn._prepared.prepared_max
        self.adapters = None if conn._adapters is None else AdaptersMap(conn._adapters)
        self.slots = kept_in_slots(conn)

    def apply(self, conn: psycopg.Connection[Any]) -> None:
        # To compare takes less than to set, and few users change anything.
        found = vars(conn)
        del found["_made"]  # this; were it in the attributes too, it would be in a cycle
        prepared, adapters = found["_prepared"], found["_adapters"]
        if (prepared.prepare_threshold, prepared.prepared_max) != self.prepare:
            prepared.prepare_threshold, prepared.prepared_max = self.prepare
        if adapters is not None and not _alike(adapters, self.adapters or psycopg.adapters):
            adapters = None if self.adapters is None else AdaptersMap(self.adapters)
            found["_adapters"] = adapters
        if found != self.attributes:
            for name in found.keys() - self.attributes.keys():
                del found[name]
            for name, value in self.attributes.items():
                if name not in self._OTHERS:
                    found[name] = _copied(value)
            self.attributes.update(_prepared=prepared, _adapters=adapters)
        if self.slots:
            give_back(conn, self.slots)
        found["_made"] = self


def _alike(adapters: AdaptersMap, model: AdaptersMap) -> bool:
    """Tell whether two maps, one of them made of the other, are still the same.

    They share what is in them until something is registered with one, which
    then has a copy.  So this compares addresses.
    """
    try:
        return (
            adapters._dumpers == model._dumpers
            and adapters._loaders == model._loaders
            and adapters._dumpers_by_oid == model._dumpers_by_oid
            and adapters.types._registry is model.types._registry
        )
    except AttributeError:  # of another version of psycopg
        return False


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, (list, dict, set, deque)) else value


@cache
def _pooled(connection_class: type[Any]) -> type[Any]:
    """Make the class of those of *connection_class* that are in a pool."""

    class Pooled(connection_class):  # type: ignore[misc]
        """Interrupted in the middle of a query, it is closed at once.

        psycopg leaves it open, with the query running.  The ends of its blocks
        for pipelines, COPY and streams would wait for the server then, on a
        connection of which nobody knows what comes next, and a kill with them.
        """

        __slots__ = ()  # else the class of a connection could not be changed

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            # By type(conn).connect(): no pool's, and so not of this class.
            return connection_class(*args, **kwargs)

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            mine = self.__dict__
            name = getattr(gen, "__name__", None)
            if name == "_stream_send_gen":
                mine["_streamed"] = True
            # Between statements, a commit() and others ask the server nothing.
            asks = name == "_execute_gen" or _in_transaction(self)
            mine["_waiting"] += 1
            interrupted = False
            try:
                answer = super().wait(gen, *args, **kwargs)
                if asks:
                    mine["_made"].heard = monotonic()
                return answer
            except BaseException as error:
                # An Exception too: that is what a Timeout raises that was given one.
                interrupted = not isinstance(error, psycopg.Error) and _busy(self)
                raise
            finally:
                mine["_waiting"] -= 1
                if interrupted or mine.get("_doomed"):
                    _hang_up(self)
                    with suppress(Exception):
                        gen.close()  # else it complains when it is collected

    Pooled.__name__ = Pooled.__qualname__ = f"Pooled{connection_class.__name__}"
    Pooled.__module__ = connection_class.__module__
    return Pooled


def _in_transaction(conn: psycopg.Connection[Any]) -> bool:
    return conn.pgconn.transaction_status != TransactionStatus.IDLE


def _busy(conn: Any) -> bool:
    """Tell whether there are answers to come, a COPY or a pipeline included."""
    pgconn = conn.pgconn
    active: bool = pgconn.transaction_status == TransactionStatus.ACTIVE
    return active or pgconn.pipeline_status != PipelineStatus.OFF


def _hang_up(conn: psycopg.Connection[Any]) -> None:
    """Close *conn*, and keep with it what can cancel the query that it leaves; never switches."""
    mine = vars(conn)
    if _busy(conn) and "_cancel" not in mine:
        # Older than psycopg 3.2 or libpq 17 they can cancel only in a way that blocks the hub.
        with suppress(AttributeError, psycopg.Error):
            mine["_cancel"] = conn.pgconn.cancel_conn()
    if not mine.get("_waiting"):
        conn.pgconn.finish()
    elif not mine.get("_doomed"):
        # Another greenlet waits in it, and would go on in memory that is no more.
        # Wake him by the end of the connection; as he leaves it is closed.
        mine["_doomed"] = True
        with suppress(OSError), _socket(fileno=os.dup(conn.fileno())) as sock:
            sock.shutdown(SHUT_RDWR)


def _send(cancel: Any) -> None:
    """Send a cancel request; switches."""
    try:
        cancel.start()
        while (status := cancel.poll()) in (PollingStatus.READING, PollingStatus.WRITING):
            (wait_read if status == PollingStatus.READING else wait_write)(cancel.socket)
    except psycopg.Error:
        pass  # the server is gone, and the query with it
    finally:
        cancel.finish()


def _refuse_if_used_up(conn: psycopg.Connection[Any]) -> None:
    """Raise `PoolError` unless the connection can be made as it was."""
    status = conn.pgconn.transaction_status
    if status not in _WHOLE:
        if conn.closed:
            raise PoolError("the connection is closed")
        raise PoolError(f"a query or a COPY is not at its end: {TransactionStatus(status).name}")
    if conn._pipeline is not None or conn.pgconn.pipeline_status != PipelineStatus.OFF:
        raise PoolError("a pipeline is not at its end")
    if conn._num_transactions or conn._tpc is not None:
        raise PoolError("a transaction block or a two-phase transaction is not at its end")
    if conn.lock.locked():
        raise PoolError("somebody still uses it, or has an iterator of notifies() or stream()")


def _require_cooperative() -> None:
    """Raise RuntimeError where psycopg would block the hub while it waits."""
    waits_in_c = waiting.wait is getattr(waiting, "wait_c", None)
    selector: type[Any] = vars(waiting)["DefaultSelector"]
    if waits_in_c or not issubclass(selector, GeventSelector):
        raise RuntimeError(
            "psycopg would block all greenlets while it waits; "
            "call gevent.monkey.patch_all() before psycopg is imported"
        )


def _parsed(conninfo: str) -> dict[str, Any]:
    if not isinstance(conninfo, str):
        raise TypeError(f"conninfo must be a str, not a {type(conninfo).__name__}")
    try:
        return dict(conninfo_to_dict(conninfo))
    except psycopg.Error:
        pass
    # Not from psycopg's error, which may cite the password.
    raise ValueError(
        "conninfo is neither a URL (postgresql://...) nor key=value pairs that libpq understands; "
        "it is not shown, for a password may be in it"
    )


def _require_no_stray_password(options: Mapping[str, Any]) -> None:
    """Refuse a URL whose password was taken for a host or port, before an error shows these."""
    ports = str(options.get("port") or "").split(",")
    if "@" in str(options.get("host") or "")[1:] or not all(map(_is_port, ports)):
        raise ValueError(
            "host has an @ in it or port is no number; in a URL, write "
            "the special characters of a password as %40 (@), %2F (/), %3F (?)"
        )


def _is_port(port: str) -> bool:
    return not port.strip() or port.strip().isdecimal()
