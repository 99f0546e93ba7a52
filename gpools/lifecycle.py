"""Pure decisions about age: given what is known of an item and *now*, what is to be done.

Nothing here reads a clock, switches, or touches a pool, so every rule can be
tested with plain numbers.  Times are monotonic seconds: setting the wall clock
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from math import inf
from typing import Any
from weakref import ref

from greenlet import greenlet

__all__ = ["Entry", "Lifecycle", "State"]

JITTER = 0.05  # of max_age, at most, so that items made in a burst do not expire in one
FRESH = 0.1  # seconds for which a new item that nobody has had is not checked


class State(Enum):
    """Where an item is."""

    IDLE = "idle"
    IN_USE = "in use"
    BETWEEN = "being checked or reset"
    GONE = "discarded"


IDLE, IN_USE, BETWEEN, GONE = State  # by these names: to look one up in an Enum is slow


class Entry:
    """What the pool knows of one item."""

    __slots__ = (
        "__weakref__",
        "born",
        "expires",
        "find",
        "holder",
        "key",
        "reported",
        "since",
        "state",
        "trusted_until",
        "uses",
    )

    def __init__(self, item: object, find: Callable[[], Any], born: int) -> None:
        self.key = id(item)
        self.find = find  # the item, or None once it has been collected; keeps none alive
        self.born = born  # the generation it was made in
        self.state: State = BETWEEN
        self.uses = 0  # how often it went out; tells one hold from the next
        self.since = 0.0  # idle or held since
        self.expires = inf
        self.trusted_until = -inf  # while idle: may go out unseen until then
        self.holder: ref[greenlet] | None = None  # who took it last
        self.reported = False  # as held for too long, in this hold


class Lifecycle:
    """The ages of one pool: what is too old, what must be checked, when to look again.

    *max_age* and *max_idle* in seconds, None for ever; *check_after* seconds
    idle an item is checked before it goes out, None never.
    """

    def __init__(
        self,
        max_age: float | None = None,
        max_idle: float | None = None,
        check_after: float | None = None,
    ) -> None:
        self.max_age = inf if max_age is None else max_age
        self.max_idle = inf if max_idle is None else max_idle
        self.check_after = inf if check_after is None else check_after
        self.generation = 0  # raised by recycle()
        self.suspect = -inf  # an item idle since before this is checked, however short

    @property
    def ages(self) -> bool:
        """Whether anything can grow too old."""
        return self.max_age < inf or self.max_idle < inf

    def begin(self, entry: Entry, now: float, chance: float) -> None:
        """Give a new item its time; *chance*, in [0, 1), is what spreads a burst."""
        entry.expires = now + self.max_age * (1 - JITTER * chance)
        if entry.born < self.generation:  # recycled while it was being made
            entry.expires = now

    def shelve(self, entry: Entry, now: float) -> None:
        """Note that *entry* is idle from now on."""
        entry.state = IDLE
        entry.since = now
        until = now + (self.max_idle if self.max_idle < self.check_after else self.check_after)
        entry.trusted_until = until if until < entry.expires else entry.expires

    def verdict(self, entry: Entry, now: float, spare: bool = True) -> str | None:
        """Tell why *entry* must go, or None if it may stay.

        Not being *spare*, one of min_size, protects from idleness only.
        """
        if now >= entry.expires:
            return "recycled" if entry.born < self.generation else "max_age"
        if spare and entry.state is IDLE and now >= entry.since + self.max_idle:
            return "max_idle"
        return None

    def check_due(self, entry: Entry, now: float) -> bool:
        """Tell whether an idle *entry* must be checked before it goes out."""
        if self.check_after == inf or entry.state is not IDLE:
            return False
        if entry.since <= self.suspect:
            return True
        # A check that says no to whatever create() makes in the background
        # would have a caller wait for one new item after the other.
        trusted = self.check_after if entry.uses else max(self.check_after, FRESH)
        return now > entry.since + trusted

    def doubt(self, entries: Iterable[Entry], now: float) -> None:
        """Trust none of the idle *entries* unseen: one of their kind was found dead."""
        self.suspect = now
        for entry in entries:
            entry.trusted_until = -inf

    def recycle(
        self, entries: Iterable[Entry], now: float, spread: float, chance: Callable[[], float]
    ) -> None:
        """Let all *entries* and all that is being made expire, within *spread* seconds."""
        self.generation += 1
        for entry in entries:
            entry.expires = min(entry.expires, now + spread * chance())
            entry.trusted_until = min(entry.trusted_until, entry.expires)

    def next_look(self, entries: Iterable[Entry], now: float) -> float:
        """Tell for how many seconds from *now* nothing more can grow too old."""
        # What comes to be idle or to exist later is due no earlier than these two.
        times = [now + self.max_idle, now + self.max_age * (1 - JITTER)]
        for entry in entries:
            times.append(entry.expires)
            if entry.state is IDLE:
                times.append(entry.since + self.max_idle)
        return min((time for time in times if time > now), default=now) - now
