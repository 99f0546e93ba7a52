"""`FairPool`: SQLAlchemy's connections, handed out in the order in which they were asked for.

SQLAlchemy keeps a record for each place in a pool and a fairy, its word, for
each time that it is out.  Of these

- the pool keeps the records, in the line of `gpools._line`.  A slot is a record,
  or a connection that is being closed;
- `_Record` comes back whatever interrupts its way back, and without its
  connection if that was at an unknown byte;
- `_Fairy` comes back reset, or without its connection if the block that used it
  is being left by a Timeout or a kill, or if it was dropped without a close.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from traceback import clear_frames
from typing import Any, TypeVar, cast
from weakref import WeakSet, ref

from gevent import Timeout, get_hub, getcurrent, spawn_raw
from gevent.hub import Hub
from greenlet import greenlet

from gpools import _fork
from gpools._aside import aside, each_aside
from gpools._holders import Hold
from gpools._line import NOTHING, SLOT, Line
from gpools._within import within
from gpools.adapters._blocking import refuse_blocking
from gpools.adapters._extra import extra
from gpools.connection import ConnectionPool, this_thread
from gpools.errors import NotInUse, PoolError, PoolTimeout

with extra("sqlalchemy"):
    from sqlalchemy import exc
    from sqlalchemy.pool import Pool, PoolProxiedConnection
    from sqlalchemy.pool.base import ConnectionPoolEntry, _ConnectionFairy, _ConnectionRecord

__all__ = ["FairPool"]

T = TypeVar("T")

log = logging.getLogger("gpools")

_CLOSE_TIMEOUT = 5.0  # as `ConnectionPool`'s destroy_timeout


class CheckoutTimeout(exc.TimeoutError, PoolTimeout):
    """No connection came free in time; both SQLAlchemy's error and ours."""

    code = "3o7r"  # SQLAlchemy's page about it


class FairPool(Pool):
    """A pool for SQLAlchemy's engines that serves waiters in order and loses nothing.

    ::

        engine = create_engine(url, poolclass=FairPool, pool_size=5, max_overflow=10)

    *pool_size* connections are kept; up to *max_overflow* more are made when
    all are in use, and closed when they come back; -1 sets no limit, nor does a
    *pool_size* of 0.  *timeout* bounds the wait for one, in seconds; with None,
    wait for ever.  With *use_lifo* the last to come back is the first to go out.
    All else is as in `sqlalchemy.pool.QueuePool`; `create_engine` spells these
    *pool_timeout*, *pool_use_lifo*, *pool_recycle* and *pool_pre_ping*.

    A connection that was interrupted by a Timeout or a kill, or dropped without
    a close, is closed for good.

    Raises ValueError for sizes that make no sense.
    """

    _is_asyncio = False

    def __init__(
        self,
        creator: Callable[..., Any],
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = False,
        **kw: Any,
    ) -> None:
        if pool_size < 0:
            raise ValueError(f"pool_size is {pool_size} but must be at least 0")
        if max_overflow < -1:
            raise ValueError(f"max_overflow is {max_overflow} but must be at least -1")
        super().__init__(creator, **kw)
        self._size = pool_size
        self._max_overflow = -1 if pool_size == 0 else max_overflow
        self._timeout = timeout
        self._use_lifo = use_lifo
        self._line = self._new_line()
        self._records: WeakSet[_Record] = WeakSet()
        self._closing: dict[int, Any] = {}  # connections, by id
        self._hub: Hub | None = None  # of the thread that the pool belongs to
        _fork.watch(cast(Any, self))  # it is one of ours to whoever forks

    def connect(self) -> PoolProxiedConnection:
        """Take a connection, connecting or waiting in line if none is idle.

        Raises `sqlalchemy.exc.TimeoutError`, which is a `PoolTimeout` too,
        `HubWouldBlock`, `WrongThread`, or whatever connecting raised.  May switch.
        """
        fairy = _ConnectionFairy._checkout(self)
        fairy.__class__ = _Fairy
        record = fairy._connection_record
        assert isinstance(record, _Record)
        # Called before SQLAlchemy's own, which is older and would do a rollback
        # wherever the collector happens to run.
        record.watch = ref(fairy, record.lose)
        return fairy

    def recreate(self) -> FairPool:
        """Return an empty pool with the same settings."""
        self.logger.info("Pool recreating")
        return self.__class__(
            self._creator,
            pool_size=self._size,
            max_overflow=self._max_overflow,
            timeout=self._timeout,
            use_lifo=self._use_lifo,
            recycle=self._recycle,
            pre_ping=self._pre_ping,
            reset_on_return=self._reset_on_return,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            dialect=self._dialect,
            _dispatch=self.dispatch,
        )

    def dispose(self) -> None:
        """Close the idle connections now, and those in use as they come back.

        Switches only if closing does.
        """
        line, self._line = self._line, self._new_line()
        idle = list(line.idle)
        line.idle.clear()
        aside(partial(each_aside, [partial(self._retire_aside, record) for record in idle]))
        self.logger.info("Pool disposed. %s", self.status())

    def status(self) -> str:
        """Describe the state in words, as QueuePool does, and how many wait."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} "
            f"Current Overflow: {self.overflow()} "
            f"Current Checked out connections: {self.checkedout()} "
            f"Waiting: {self.waiting()}"
        )

    def size(self) -> int:
        """Tell how many connections are kept."""
        return self._size

    def timeout(self) -> float | None:
        """Tell how many seconds a caller waits at most."""
        return self._timeout

    def checkedin(self) -> int:
        """Tell how many connections are idle."""
        return len(self._line.idle)

    def overflow(self) -> int:
        """Tell by how many the connections exceed *pool_size*; negative if they do not."""
        return self._line.size - self._size if self._size else 0

    def checkedout(self) -> int:
        """Tell how many connections are in use, or being made or closed."""
        return self._line.size - len(self._line.idle)

    def waiting(self) -> int:
        """Tell how many greenlets stand in line."""
        return len(self._line.waiters)

    def holders(self) -> list[Hold]:
        """List the connections in use and who took them, longest held first.  Never switches."""
        out = [record for record in self._records if record.out and record.line is self._line]
        return [record.hold() for record in sorted(out, key=lambda record: record.since)]

    def __repr__(self) -> str:
        most = "no max" if self._max_overflow == -1 else f"max {self._line.limit}"
        return (
            f"<{type(self).__name__} {self.checkedin()} idle, {self.checkedout()} in use, "
            f"{self.waiting()} waiting, {most}>"
        )

    # What SQLAlchemy calls.

    def _do_get(self) -> ConnectionPoolEntry:
        self._belong_here()
        while True:
            line, pid = self._line, os.getpid()
            granted = line.take()
            if granted is NOTHING:
                granted = within(self._timeout, line.wait, self._timeout_error)
            if os.getpid() != pid:  # forked while he stood there: that is the parent's
                continue
            record = self._new_record(line) if granted is SLOT else granted
            record.go_out()
            return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        assert isinstance(record, _Record)
        if not record.out:
            return
        record.out = False
        line = record.line
        if self._surplus(record):
            self._retire(record)
            return
        if self._use_lifo:
            line.idle.appendleft(record)
        else:
            line.idle.append(record)
        line.wake()

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        """Close *connection* aside: no kill or Timeout of the caller's reaches that."""
        if id(connection) in self._closing:  # SQLAlchemy before 2.0.50 asks twice if interrupted
            return
        self._closing[id(connection)] = connection
        # Its record may be back before it is gone, and be given to the next.
        self._line.claim()
        close = partial(super()._close_connection, connection, terminate=terminate)
        aside(partial(self._close_aside, self._line, connection, close))

    def _close_aside(self, line: Line, connection: Any, close: Callable[[], None]) -> None:
        try:
            with Timeout(_CLOSE_TIMEOUT):
                close()
        except BaseException as error:
            # Nobody is there to catch it, and the slot must come free.
            log.info("%r: closing a connection failed: %r", self, error)
        finally:
            del self._closing[id(connection)]
            line.vacate()

    # Making and letting go.

    def _new_line(self) -> Line:
        return Line(sys.maxsize if self._max_overflow == -1 else self._size + self._max_overflow)

    def _new_record(self, line: Line) -> _Record:
        """Fill a slot that is already taken; may switch."""
        pid = os.getpid()
        try:
            record = self._connecting(partial(_Record, self, line))
        except BaseException:
            # Whatever ended it, a kill included, the slot must not end with it.
            line.vacate()
            raise
        if os.getpid() != pid:
            self._abandon([record])
            raise _inherited()
        self._records.add(record)
        return record

    def _connecting(self, connect: Callable[[], T]) -> T:
        """Return what *connect* returns; leave nothing open if it is interrupted, or forked."""
        pid = os.getpid()
        try:
            return _fork.making(connect)
        except BaseException as error:
            # Interrupted while connecting, what the driver had is in the frames of the
            # error, and stays open as long as anybody looks at that.
            clear_frames(error.__traceback__)
            if os.getpid() != pid and isinstance(error, Exception):
                raise _inherited() from error
            raise

    def _surplus(self, record: _Record) -> bool:
        line = record.line
        if line is not self._line:  # disposed of, or inherited by a fork
            return True
        if record.dbapi_connection is None and line.size > line.limit:
            return True  # the connection that it had still counts
        return bool(self._size) and len(line.idle) - len(line.waiters) >= self._size

    def _retire(self, record: _Record) -> None:
        try:
            record.close()
        finally:
            record.line.vacate()

    def _retire_aside(self, record: _Record) -> None:
        try:
            self._retire(record)
        except BaseException as error:
            # A listener's, and the next connection must be closed all the same.
            log.warning("%r: closing a connection failed: %r", self, error)

    def _lose(self, record: _Record) -> None:
        """Take back the slot of a connection that was collected without a close; never switches."""
        lost = PoolError("the connection was dropped without close()")
        # By another greenlet, for the collector may run anywhere, in the hub too.
        take_back = partial(spawn_raw, self._take_back, record, lost)
        assert self._hub is not None  # set by whoever took the connection
        self._hub.loop.run_callback_threadsafe(take_back)

    def _take_back(self, record: _Record, lost: PoolError) -> None:
        log.warning("%r: %s after %s", self, lost, record.hold())
        record._checkin_failed(lost, _fairy_was_created=False)

    def _timeout_error(self, timeout: float) -> CheckoutTimeout:
        line, holds = self._line, self.holders()
        between = line.size - len(line.idle) - len(holds)
        others = f", {between} being made or closed" if between else ""
        longest = f"; longest held {holds[0]}" if holds else ""
        late = CheckoutTimeout(
            f"no connection came free within {timeout} s ({len(holds)} of {line.limit} "
            f"in use{others}, {len(line.waiters)} still waiting{longest}); "
            "raise pool_size or max_overflow, or hold connections for less time"
        )
        late.holders = tuple(holds)
        return late

    # Threads and forks.

    def _belong_here(self) -> None:
        """Claim the pool for this thread at its first use; refuse every other thread."""
        this_thread(self, None if self._hub is None else self._hub.thread_ident)
        self._hub = get_hub()

    def _start_anew_after_fork(self) -> None:
        """Be empty, in a child; what is under way here acts on the parent's line."""
        self._line, self._hub = self._new_line(), None
        inherited, self._records = list(self._records), WeakSet()
        self._abandon(inherited)

    def _abandon(self, records: list[_Record]) -> None:
        connections = [record.dbapi_connection for record in records]
        connections.extend(self._closing.values())
        filenos: list[int] = []
        for connection in connections:
            with suppress(Exception):  # one that cannot tell must not spoil it for the others
                filenos.extend(ConnectionPool._filenos(cast(Any, self), connection))
        _fork.abandon([*records, *connections], filenos)


class _Record(_ConnectionRecord):
    """A place in the pool, with its connection or without.

    It comes back to the pool whatever fails or interrupts SQLAlchemy on the way.
    """

    __slots__ = ("fair", "holder", "line", "out", "since", "watch")

    def __init__(self, pool: FairPool, line: Line) -> None:
        self.fair = pool
        self.line = line  # which counts it
        self.out = False
        self.since = 0.0
        self.holder: ref[greenlet] | None = None
        self.watch: object = None  # sees the fairy go
        self.dbapi_connection = None
        try:
            super().__init__(pool)
            refuse_blocking(self.dbapi_connection)
        except BaseException:
            # Connected, but refused, or interrupted in a listener.
            self._drop()
            raise

    def get_connection(self) -> Any:
        return self.fair._connecting(super().get_connection)  # it may have to

    def go_out(self) -> None:
        self.out = True
        self.since = monotonic()
        self.holder = ref(getcurrent())

    def hold(self) -> Hold:
        holder = None if self.holder is None else self.holder()
        return Hold(self.dbapi_connection, holder, monotonic() - self.since)

    def lose(self, _: object) -> None:
        """Note that the fairy was collected; never switches."""
        fairy = self.fairy_ref
        if self.out and fairy is not None and fairy() is None:
            self.fairy_ref = None  # SQLAlchemy has nothing to do then
            self.fair._lose(self)

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        try:
            super().invalidate(e, soft)
        except BaseException:
            # A listener failed, or a kill came: what was to be closed must not go out again.
            if not soft:
                self._drop()
            raise

    def checkin(self, _fairy_was_created: bool = True) -> None:
        self.watch = None
        try:
            super().checkin(_fairy_was_created)
        except BaseException:
            if self.out:  # a listener failed or was interrupted: nobody else will return it
                self._drop()
                self.fair._do_return_conn(self)
            raise

    def _checkin_failed(self, err: BaseException, _fairy_was_created: bool = True) -> None:
        try:
            self.invalidate(e=err)
        finally:
            self.checkin(_fairy_was_created=_fairy_was_created)

    def _drop(self) -> None:
        connection, self.dbapi_connection = self.dbapi_connection, None
        if connection is not None:
            self.fair._close_connection(connection, terminate=True)


class _Fairy(_ConnectionFairy):
    """A connection that is out; comes back whole or not at all."""

    __slots__ = ()

    def rollback(self) -> None:
        error = sys.exc_info()[1]
        try:
            self.dbapi_connection.rollback()
        except BaseException as failure:
            record = self._connection_record
            if isinstance(record, _Record) and _interrupts(error):
                # Amid a streamed result, say.  SQLAlchemy 2.0 does not close a Connection
                # whose rollback on the way out fails; the collector would, some time.
                # Not now, for SQLAlchemy still asks it what the error means.
                get_hub().loop.run_callback(spawn_raw, self._give_up, failure)
            raise

    def _give_up(self, failure: BaseException) -> None:
        if self._connection_record is not None:  # else it is back already
            try:
                self.invalidate(failure)
            except Exception as error:
                log.warning("%r: %r", self._pool, error)  # a listener's

    def _checkin(self, transaction_was_reset: bool = False) -> None:
        record, error = self._connection_record, sys.exc_info()[1]
        try:
            if record is not None and self.dbapi_connection is not None and _interrupts(error):
                self.invalidate(error)  # and comes here again
            else:
                super()._checkin(transaction_was_reset)
        except BaseException as failure:
            # SQLAlchemy before 2.0.50 leaves it to the collector to return the record.
            if isinstance(record, _Record) and record.fairy_ref and record.fairy_ref() is self:
                self.dbapi_connection = cast(Any, None)
                self._connection_record = None
                record._checkin_failed(failure, _fairy_was_created=False)
            raise


def _inherited() -> NotInUse:
    return NotInUse("the connection was being made when this process was forked")


def _interrupts(error: BaseException | None) -> bool:
    """Tell whether *error*, which is being handled, may have left a connection at any byte."""
    # GeneratorExit comes where a generator has yielded, never while one waits.
    return error is not None and not isinstance(error, (Exception, GeneratorExit))
