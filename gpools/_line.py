"""The line in which callers wait, and the only place where they do.

One hub runs everything and only `Line.wait` switches greenlets, so there are
no locks: what stands between two switches is atomic.  What holds at every
switch, cited elsewhere by number:

1. ``size`` counts the items that exist, idle or in use, and those being made
   or destroyed.  A slot is taken before its item is made and comes free after
   its item is gone, so never more than ``limit`` exist (but for a recent
   shrink, a hand edit, or a foreign put, which a plain `Pool` allows).
2. Somebody waits while something is to be had => `_serve` is scheduled.
3. Nobody overtakes the line.
4. Every way in which an item or a slot comes free ends in `wake`.
5. An item has one holder at most (connection pools).

Choosing a waiter and waking it are one act: `_serve`, in the hub, takes the
first in line and an item, and switches to it with the item in hand.  A kill or
a Timeout finds a greenlet either still in line, owning nothing, or running on
with the item.  There is no moment in between, so there is no promise to
withdraw from a greenlet that may be dead by the time it would run.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from typing import Final, Generic, Literal, TypeVar

from gevent import get_hub, getcurrent
from gevent.hub import Hub
from greenlet import greenlet

from gpools.errors import HubWouldBlock

T = TypeVar("T")


class Grant(Enum):
    """What a caller may get instead of an item."""

    SLOT = "the right to make one item, already counted in size"
    NOTHING = "wait for it"


SLOT: Final = Grant.SLOT
NOTHING: Final = Grant.NOTHING


class Line(Generic[T]):
    """Idle items, the count of all, and the greenlets that wait for one."""

    __slots__ = ("_hub", "_scheduled", "idle", "limit", "refusal", "size", "waiters")

    def __init__(self, limit: int) -> None:
        self.idle: deque[T] = deque()  # left end: next to go out
        self.size = 0
        self.limit = limit
        # In order of arrival.  A waiter that dies leaves from anywhere in the
        # line at once; a deque would have to be searched for its dead.
        self.waiters: OrderedDict[greenlet, None] = OrderedDict()
        # Once set, all who wait, or come to wait, get this error instead.
        self.refusal: Callable[[], BaseException] | None = None
        self._scheduled = False  # `_serve` is on its way
        self._hub: Hub | None = None  # of those who wait

    def take(self, first: bool = False) -> T | Literal[Grant.SLOT, Grant.NOTHING]:
        """Take what may be had without waiting; *first* goes before the line.  Never switches."""
        if first or not self.waiters:
            if self.idle:
                return self.idle.popleft()
            if self.size < self.limit:
                self.size += 1
                return SLOT
        return NOTHING

    def wait(self, first: bool = False) -> T | Literal[Grant.SLOT]:
        """Stand in line, at its end or as the *first*, until served; switches."""
        hub, me = get_hub(), getcurrent()
        if me is hub:
            raise HubWouldBlock(
                "no item is idle and the hub's own greenlet cannot wait for one; "
                "spawn a greenlet for what needs an item"
            )
        self._hub = hub
        self.waiters[me] = None
        if first:
            self.waiters.move_to_end(me, last=False)
        self.wake()
        try:
            while True:
                granted: T | Literal[Grant.SLOT] = hub.switch()
                if me not in self.waiters:  # else a stray switch: `_serve` did not choose us
                    return granted
        except BaseException:
            # Killed or timed out in line, owning nothing: only the place is given up.
            self.waiters.pop(me, None)
            raise

    def vacate(self) -> None:
        """Give up a slot.  Never switches."""
        self.size -= 1
        self.wake()

    def wake(self) -> None:
        """Let the first in line in, if something is to be had.  Never switches."""
        if self.waiters and (self.idle or self.size < self.limit or self.refusal is not None):
            self.look()

    def look(self) -> None:
        """Have the hub look soon whether something is to be had.  Never switches."""
        if self.waiters and not self._scheduled:
            assert self._hub is not None  # set by whoever waits
            self._hub.loop.run_callback(self._serve)
            self._scheduled = True

    def _serve(self) -> None:
        # One waiter per callback, so that a crowd which takes and puts without
        # ever blocking leaves the loop its turns for sockets and timers.
        self._scheduled = False
        if not self.waiters:
            return
        if self.refusal is not None:
            first, _ = self.waiters.popitem(last=False)
            self.wake()
            first.throw(self.refusal())
            return
        granted = self.take(first=True)
        if granted is not NOTHING:
            first, _ = self.waiters.popitem(last=False)
            self.wake()  # for the next in line; this one may run for long
            first.switch(granted)
