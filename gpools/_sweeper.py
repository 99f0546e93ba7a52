"""The one greenlet of a pool that looks at ages and at long holds.

It holds the pool weakly and sleeps until something can be due, so a pool that
is dropped without close can be collected, which ends the greenlet.
"""

from __future__ import annotations

import logging
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from gevent import spawn_raw
from gevent.event import Event

from gpools.lifecycle import IN_USE

if TYPE_CHECKING:
    from gpools.connection import ConnectionPool

RETRY = 1.0  # seconds until what is missing of min_size is tried again
SHORTEST = 0.001  # seconds between two looks, however short the ages are

log = logging.getLogger("gpools")


class Sweeper:
    """Sweeps one pool whenever something can be due."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self._wake = wake = Event()
        self._pool = ref(pool, lambda _: wake.set())
        # The fewest items that were idle at once since the window began: so
        # many of them nobody has needed in all that time.
        self.fewest_idle = 0
        self._window_ends = inf
        self._filling = False
        spawn_raw(self._run)

    def wake(self) -> None:
        """Look now: what is due next has changed.  Never switches."""
        self._wake.set()

    def _run(self) -> None:
        while True:
            pool = self._pool()
            if pool is None or pool.closed or pool._book.sweeper is not self:
                return
            self._wake.clear()
            pause = self._sweep(pool)
            del pool
            self._wake.wait(None if pause == inf else max(pause, SHORTEST))

    def _sweep(self, pool: ConnectionPool[Any]) -> float:
        """Do all that is due; return the seconds until the next look.  May switch."""
        now, idle = monotonic(), len(pool._line.idle)
        pool._retire_expired(now)
        # What goes by its age needs not be dropped as unused a second time.
        self.fewest_idle -= max(0, idle - len(pool._line.idle))
        pause = self._drop_unused(pool, now)
        pause = min(pause, self._report_leaks(pool, now))
        pause = min(pause, self._refill(pool))
        return min(pause, pool._book.life.next_look(pool._book.items.values(), now))

    def _drop_unused(self, pool: ConnectionPool[Any], now: float) -> float:
        line, max_idle = pool._line, pool._book.life.max_idle
        if now >= self._window_ends:
            unused = min(self.fewest_idle, len(pool._book.items) - pool.min_size)
            pool._drop_longest_idle(unused, "unused")
            self._window_ends = inf
        if self._window_ends == inf:
            self.fewest_idle = len(line.idle)
            self._window_ends = now + max_idle
        return self._window_ends - now

    def _report_leaks(self, pool: ConnectionPool[Any], now: float) -> float:
        after = pool._book.leak_after
        if after is None:
            return inf
        pause = after
        for entry in list(pool._book.items.values()):
            if entry.state is IN_USE and not entry.reported:
                left = entry.since + after - now
                if left <= 0:
                    pool._report_leak(entry)
                else:
                    pause = min(pause, left)
        return pause

    def _refill(self, pool: ConnectionPool[Any]) -> float:
        """See to what is missing of min_size, unless there is a creator, who does that."""
        if pool._book.creator is not None or len(pool._book.items) >= pool.min_size:
            return inf
        if not self._filling:
            self._filling = True
            # By another greenlet, for a create that hangs must not stop the sweeps.
            spawn_raw(self._fill_up, pool)
        return RETRY

    def _fill_up(self, pool: ConnectionPool[Any]) -> None:
        try:
            pool._fill_up()
        except BaseException as error:
            # Whatever it was, it is tried again.
            log.warning("%r: create failed while refilling: %s", pool, type(error).__name__)
        finally:
            self._filling = False
