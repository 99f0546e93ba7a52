"""Creations in the background: in greenlets of the pool, not of its callers.

A creation is started for a line, not for a caller: whatever comes first, a
returned item or a finished creation, goes to the first in line, and a creation
outlives the caller that asked for it.

While creations fail, one is tried at a time, at intervals that grow and are
jittered; one success ends that.  An error of `create` goes to the first in
line.  Where no item is left that could come back, nobody in line can be served,
so all of them get it, and newcomers are refused at once until the next try is
due: the newcomer of that moment is the one who tries.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from gevent import Timeout, get_hub, spawn_raw
from gevent.hub import Hub

from gpools.errors import PoolError, PoolTimeout, PoolUnavailable

if TYPE_CHECKING:
    from gpools._book import Book
    from gpools._line import Line
    from gpools.connection import ConnectionPool

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between tries while creations fail


class Creator:
    """Starts creations for one pool, which it holds weakly."""

    def __init__(self, pool: ConnectionPool[Any], at_once: int, create_timeout: float) -> None:
        self._pool = ref(pool)
        self._at_once = at_once
        self._create_timeout = create_timeout
        self.in_flight = 0
        self.failures = 0  # in a row
        self.last_error: BaseException | None = None  # while there are failures
        self._next_try = 0.0  # monotonic; while there are failures
        self._alarm: Any = None  # a timer of the loop for that time

    def look(self) -> None:
        """Start as many creations as are wanted and allowed.  Never switches."""
        pool = self._pool()
        if pool is None or pool.closed or pool._book.creator is not self:
            return
        while pool._line.open() and self.missing() > 0:
            self.in_flight += 1
            pool._line.claim()
            spawn_raw(self._create, pool, pool._line, pool._book)

    def missing(self) -> int:
        """Return how many creations would be started now if there were slots.  Never switches.

        In a pause it is none, and the pool's line is woken when that is over.
        """
        pool = self._pool()
        missing = 0 if pool is None else self._missing(pool)
        pause = self._pause() if missing else 0.0
        if pause > 0:
            self._look_again_in(pause)
            return 0
        return missing

    def _missing(self, pool: ConnectionPool[Any]) -> int:
        line = pool._line
        # An item or an error that came free for the first in line is on its way.
        unserved = len(line.waiters) - len(line.idle) - len(line.errors)
        wanted = max(unserved, pool.min_size - len(pool._book.items))
        return max(0, min(wanted, 1 if self.failures else self._at_once) - self.in_flight)

    def _pause(self) -> float:
        """Return the seconds until the next try, while creations fail."""
        return self._next_try - monotonic() if self.failures else 0.0

    def refuse_newcomers(self) -> None:
        """Raise `PoolUnavailable` while to wait would be in vain.  Never switches."""
        pool = self._pool()
        if self.failures and pool is not None and not pool._book.items:
            pause = self._pause()
            if pause > 0 or self.in_flight:
                when = "now" if self.in_flight else f"in {pause:.2f} s"
                raise PoolUnavailable(
                    f"no item is left, create() has failed {self.failures} times in a row "
                    f"and is tried again {when}; last: {type(self.last_error).__name__}"
                ) from self.last_error

    def holds_back_until(self) -> float:
        """Return until when it matters that creations have failed, and when the next may begin."""
        return self._next_try + LONGEST_PAUSE if self.failures else -inf

    def anew(self, pool: ConnectionPool[Any]) -> Creator:
        """Return one with the same settings, nothing in flight and no failures."""
        return Creator(pool, self._at_once, self._create_timeout)

    def _create(self, pool: ConnectionPool[Any], line: Line, book: Book) -> None:
        if pool._book is not book:  # forked before this began: the slot is the parent's
            return
        timer = Timeout.start_new(self._create_timeout)
        with suppress(BaseException):  # whatever it was: `_failed` has seen to it
            item = pool._new(lambda error: self._failed(pool, line, self._as_seen(error, timer)))
            timer.close()
            self.in_flight -= 1
            self.failures, self.last_error = 0, None
            pool._shelve(book.items[id(item)], item)
        timer.close()
        # The one that ended may have kept others from starting.
        self.look()

    def _as_seen(self, error: BaseException, timer: Timeout) -> Exception:
        if isinstance(error, Exception):
            return error
        if error is timer:
            seen: Exception = PoolTimeout(f"create() took longer than {self._create_timeout} s")
        else:
            seen = PoolError(f"create() was ended by {type(error).__name__}")
        seen.__cause__ = error
        return seen

    def _failed(self, pool: ConnectionPool[Any], line: Line, error: Exception) -> None:
        self.in_flight -= 1
        self.failures += 1
        self.last_error = error
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures - 1, 16))
        self._next_try = monotonic() + pause * (0.5 + 0.5 * random())
        # With nothing left that could come back, nobody in line can be served.
        in_vain = not pool._book.items and not self.in_flight
        line.fail(error, everybody=in_vain)

    def _look_again_in(self, pause: float) -> None:
        if self._alarm is None:
            hub: Hub = get_hub()
            self._alarm = hub.loop.timer(pause)
            self._alarm.start(_ring, ref(self), self._alarm)


def _ring(creator: ref[Creator], alarm: Any) -> None:
    # Weakly, for the traceback of the last error leads to the pool.
    alarm.close()
    alive = creator()
    if alive is not None:
        alive._alarm = None
        alive.look()
        pool = alive._pool()
        if pool is not None:
            pool._line.wake()  # where slots are scarce, it is one more that wants one
