"""The line in which callers wait, and the only place where they do.

One hub runs everything and only `Line.wait` switches greenlets, so there are
no locks: what stands between two switches is atomic.  What holds at every
switch, cited elsewhere by number:

1. ``size`` counts the items that exist, idle or in use, and those being made
   or destroyed.  A slot is taken before its item is made and comes free after
   its item is gone, so never more than ``limit`` exist (but for a recent
   shrink, a hand edit, or a foreign put, which a plain `Pool` allows).
2. Somebody waits while something is to be had => `_serve` is scheduled, unless
   the first place is kept for one who will be back within a turn of the hub.
3. Nobody overtakes the line.
4. Every way in which an item or a slot comes free ends in `wake`.
5. An item has one holder at most (connection pools).
6. Under a common limit, whatever changes how many slots a line could use is
   told to the `Budget` by `note`.

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
from itertools import takewhile
from math import inf
from time import monotonic
from typing import Any, Final, Protocol

from gevent import get_hub, getcurrent
from gevent.hub import Hub
from greenlet import greenlet

from gpools._shed import CoDel
from gpools.errors import HubWouldBlock, PoolShed, WrongThread


class Grant(Enum):
    """What a caller may get instead of an item."""

    SLOT = "the right to make one item, already counted in size"
    NOTHING = "wait for it"


SLOT: Final = Grant.SLOT
NOTHING: Final = Grant.NOTHING


class Budget(Protocol):
    """A limit that several lines share; see `gpools.keyed`."""

    limit: int
    used: int  # slots taken in all lines
    going: int  # of these, how many will come free because an item is being destroyed

    def renew(self, line: Line, successor: Line) -> None:
        """Count *line* out and *successor*, which is empty, in."""

    def note(self, line: Line) -> None:
        """Look at *line*, where waiters, items or slots have come or gone.  Never switches."""

    def allows(self, line: Line) -> bool:
        """Tell whether *line* may take a slot now."""

    def freed(self, line: Line) -> None:
        """Note that *line* gave up a slot.  Never switches."""

    def seek(self) -> None:
        """Find slots for those who wait, in whatever line.  Never switches."""

    def displaces(self, line: Line) -> bool:
        """Tell whether an item that comes back to *line* must make way for another line."""

    def holders(self) -> list[Any]:
        """List the items in use in all lines, longest held first.  Never switches."""


class Line:
    """Idle items, the count of all, and the greenlets that wait for one."""

    __slots__ = (
        "_alarm",
        "_hub",
        "_oldest",
        "_scheduled",
        "_too_late",
        "budget",
        "errors",
        "idle",
        "limit",
        "maker",
        "refusal",
        "shed",
        "size",
        "waiters",
    )

    def __init__(self, limit: int) -> None:
        self.idle: deque[Any] = deque()  # left end: next to go out
        self.size = 0
        self.limit = limit
        # In order of arrival, each with its time.  A waiter that dies leaves
        # from anywhere in the line at once; a deque would have to be searched.
        self.waiters: OrderedDict[greenlet, float] = OrderedDict()
        # Once set, all who wait, or come to wait, get this error instead.
        self.refusal: Callable[[], BaseException] | None = None
        # Makes items for the line where callers do not make their own: told
        # that somebody waits, it sees to it that a slot is used.
        self.maker: Callable[[], None] | None = None
        self.errors: deque[BaseException] = deque()  # the maker's, one for each waiter
        self.shed: CoDel | None = None
        self.budget: Budget | None = None  # shared with other lines
        self._scheduled = False  # `_serve` is on its way
        self._hub: Hub | None = None  # of those who wait
        self._alarm: Any = None  # with `shed`, a timer while somebody waits
        self._too_late = -inf  # who came before and gets nothing now is turned away
        self._oldest = 0.0  # when the first in line at the last alarm had come

    def anew(self) -> Line:
        """Return an empty line with the same settings."""
        line: Line = Line(self.limit)
        line.refusal, line.shed = self.refusal, self.shed
        if self.budget is not None:
            # Not this one's any more: who is still busy here must not give it up twice.
            budget, self.budget = self.budget, None
            budget.renew(self, line)
        return line

    def open(self) -> bool:
        """Tell whether a slot is free for this line."""
        return self.size < self.limit and (self.budget is None or self.budget.allows(self))

    def room(self) -> bool:
        """Tell whether a caller may make an item of its own."""
        return self.maker is None and self.open()

    def claim(self) -> None:
        """Take a slot, before an item is made.  Never switches."""
        self.size += 1
        if self.budget is not None:
            self.budget.used += 1
            self.budget.note(self)

    def take(self, arrived: float = inf) -> Any:
        """Take what may be had without waiting.  Never switches.

        Who came before those in line, as told by when he *arrived*, goes before them.
        """
        if not self.waiters or arrived < next(iter(self.waiters.values())):
            if self.idle:
                item = self.idle.popleft()
                if self.budget is not None:
                    self.budget.note(self)
                return item
            if self.room():
                self.claim()
                return SLOT
        return NOTHING

    def wait(self, arrived: float | None = None) -> Any:
        """Stand in line, at its end or where who *arrived* then belongs, until served; switches."""
        hub, me = get_hub(), getcurrent()
        if me is hub:
            raise HubWouldBlock(
                "no item is idle and the hub's own greenlet cannot wait for one; "
                "spawn a greenlet for what needs an item"
            )
        if self.waiters and hub is not self._hub:
            raise WrongThread(f"greenlets of {self._hub!r} wait for this pool; {hub!r} cannot")
        if not self.waiters:
            self.errors.clear()  # meant for those who waited then
        self._hub = hub
        if arrived is None:
            self.waiters[me] = monotonic()
        else:
            self._rejoin(me, arrived)
        try:
            self.wake()
            if self.shed is not None and self._alarm is None:
                self._set_alarm(self.waiters[me])
            while True:
                granted = hub.switch()
                if me not in self.waiters:  # else a stray switch: `_serve` did not choose us
                    return granted
        except BaseException:
            # Killed or timed out in line, owning nothing: only the place is given up.
            self.waiters.pop(me, None)
            if self.budget is not None:
                self.budget.note(self)
            raise

    def keep_place(self, arrived: float) -> greenlet:
        """Let nobody overtake who *arrived* then, while he is busy outside the line."""
        place = greenlet()  # never runs
        self._hub = get_hub()
        self._rejoin(place, arrived)
        return place

    def give_up_place(self, place: greenlet) -> None:
        """End what `keep_place` began."""
        del self.waiters[place]
        self.wake()

    def _rejoin(self, me: greenlet, arrived: float) -> None:
        # Few, if any, came earlier: others like him.
        earlier = list(takewhile(lambda other: self.waiters[other] <= arrived, self.waiters))
        self.waiters[me] = arrived
        for waiter in (me, *reversed(earlier)):
            self.waiters.move_to_end(waiter, last=False)

    def vacate(self) -> None:
        """Give up a slot.  Never switches."""
        self.size -= 1
        self.wake()
        if self.budget is not None:
            self.budget.used -= 1
            self.budget.freed(self)
            self.budget.seek()

    def wake(self) -> None:
        """Let the first in line in, if something is to be had.  Never switches."""
        if self.budget is not None:
            self.budget.note(self)
        if self.waiters:
            if self.idle or self.room() or self.errors or self.refusal is not None:
                self.look()
            elif self.maker is not None and self.open():
                self.maker()
            else:
                self._pass_on()
        elif self.idle:
            self._pass_on()

    def look(self) -> None:
        """Have the hub look soon whether something is to be had.  Never switches."""
        if self.waiters and not self._scheduled:
            assert self._hub is not None  # set by whoever waits
            self._scheduled = True  # first, for the hub of another thread may be quick
            if self._hub is get_hub():
                self._hub.loop.run_callback(self._serve)
            else:  # a put from another thread
                self._hub.loop.run_callback_threadsafe(self._serve)

    def fail(self, error: BaseException, everybody: bool) -> None:
        """Give *error* to the first in line, or to *everybody*, unless an item comes first."""
        self.errors.extend([error] * (len(self.waiters) if everybody else 1))
        self.wake()

    def _serve(self) -> None:
        # One waiter per callback, so that a crowd which takes and puts without
        # ever blocking leaves the loop its turns for sockets and timers.
        self._scheduled = False
        if not self.waiters:
            self._nobody_left()
            self.errors.clear()
            self._pass_on()
            return
        first = next(iter(self.waiters))
        if not first:  # a place that is kept, by somebody who will be back
            return
        error = None
        if self.refusal is not None:
            error = self.refusal()
        elif self.idle or self.room():
            error = None if self.shed is None else self._shed_first()
        elif self.errors:
            error = self.errors.popleft()
        elif self.waiters[first] < self._too_late:
            error = shed_error(monotonic() - self.waiters[first])
        else:
            # What was on its way here was let go, or taken by one who came earlier.
            self.wake()
            return
        if error is None:
            granted = self.take(-inf)
            del self.waiters[first]
            self.wake()  # for the next in line; this one may run for long
            first.switch(granted)
        else:
            del self.waiters[first]
            self._nobody_left()
            self.wake()  # for the next, who may get what this one does not
            if self._too_late > -inf:
                self.look()  # he may have waited for too long as well
            first.throw(error)

    def _nobody_left(self) -> None:
        # All in line died or were turned away: what came free is idle after all.
        if self.shed is not None and self.idle and not self.waiters:
            self.shed.idle(monotonic())

    def _pass_on(self) -> None:
        # What is not for this line may be for another under the same limit.
        if self.budget is not None:
            self.budget.seek()

    def _shed_first(self) -> BaseException | None:
        assert self.shed is not None
        now = monotonic()
        waited = now - next(iter(self.waiters.values()))
        return shed_error(waited) if self.shed.hopeless(now, waited) else None

    def _set_alarm(self, oldest: float) -> None:
        # Where nothing comes free, nothing else would judge those in line.
        assert self.shed is not None
        self._oldest = oldest
        self._alarm = get_hub().loop.timer(self.shed.interval)
        self._alarm.start(self._ring)

    def _ring(self) -> None:
        self._alarm.close()
        self._alarm = None
        if not self.waiters or self.shed is None:
            return
        now, oldest = monotonic(), next(iter(self.waiters.values()))
        if oldest <= self._oldest and self.shed.stalled(now, now - oldest):
            self._too_late = now - 2 * self.shed.target
            self.look()
        self._set_alarm(oldest)


def shed_error(waited: float) -> PoolShed:
    """Tell a caller who *waited* so many seconds why it is turned away."""
    return PoolShed(
        f"turned away after {waited:.2f} s in line: the pool has been overloaded for a while; "
        "raise max_size, hold items for less time, or send less"
    )
