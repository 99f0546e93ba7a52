"""The one greenlet of a pool that looks at ages and at long holds.

It holds the pool weakly and sleeps until something can be due, so a pool that
is dropped without close can be collected, which ends the greenlet.
"""

from __future__ import annotations

import logging
from collections import deque
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from gevent import get_hub, spawn_raw
from gevent.event import Event

from gpools.lifecycle import IN_USE

if TYPE_CHECKING:
    from gpools._book import Book
    from gpools.connection import ConnectionPool

RETRY = 1.0  # seconds until what is missing of min_size is tried again
PARTS = 4  # of max_idle; the surplus after a spike is gone after one more than these
SHORTEST = 0.001  # seconds between two looks, however short the ages are

log = logging.getLogger("gpools")


class Sweeper:
    """Sweeps one pool whenever something can be due."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self._wake = wake = Event()
        self._pool = ref(pool, lambda _: wake.set())
        # In each part of a max_idle before this one, the fewest items that were
        # idle at once: so many nobody has needed.  The book counts in this part.
        self._fewest_before: deque[int] = deque(maxlen=PARTS)
        self._part_ends = inf
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
            pause, matters = self._sweep(pool), pool._book.limiter is not None
            del pool
            self._sleep(pause, matters)

    def _sleep(self, pause: float, matters: bool) -> None:
        """Wait for so many seconds, or until woken.

        Where it *matters* to others what the next sweep lets go, the loop goes on
        for it.  Else it is no reason to: who waits for an item with nobody left
        to give it back gets gevent's LoopExit, and `gevent.wait` comes to an end.
        """
        if pause == inf:
            self._wake.wait()
            return
        timer = get_hub().loop.timer(max(pause, SHORTEST), ref=matters)
        timer.start(self._wake.set, update=True)
        try:
            self._wake.wait()
        finally:
            timer.close()

    def _sweep(self, pool: ConnectionPool[Any]) -> float:
        """Do all that is due; return the seconds until the next look.  May switch."""
        now, idle = monotonic(), len(pool._line.idle)
        pool._retire_expired(now)
        # What goes by its age needs not be dropped as unused a second time.
        self._not_counted(pool._book, idle - len(pool._line.idle))
        pause = self._drop_unused(pool, now)
        pause = min(pause, self._report_leaks(pool, now))
        pause = min(pause, self._refill(pool))
        return min(pause, pool._book.life.next_look(pool._book.items.values(), now))

    def _drop_unused(self, pool: ConnectionPool[Any], now: float) -> float:
        idle, part = len(pool._line.idle), pool._book.life.max_idle / PARTS
        if self._part_ends == inf:
            pool._book.fewest_idle = idle
            self._part_ends = now + part
        elif now >= self._part_ends:
            self._fewest_before.append(pool._book.fewest_idle)
            pool._book.fewest_idle = idle
            self._part_ends += part
            if self._part_ends <= now:
                self._part_ends = now + part  # late: what has passed was one long part
            if len(self._fewest_before) == PARTS:
                spare = len(pool._book.items) - pool.min_size
                unused = max(0, min(spare, *self._fewest_before))
                self._not_counted(pool._book, unused)
                pool._drop_longest_idle(unused, "unused")
        return self._part_ends - now

    def _not_counted(self, book: Book, gone: int) -> None:
        """Note that so many idle items are *gone* by the sweep, not by demand."""
        if gone > 0:
            book.fewest_idle -= gone
            for part in range(len(self._fewest_before)):
                self._fewest_before[part] -= gone

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
