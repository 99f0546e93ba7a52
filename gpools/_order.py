"""Some of many things in the order of a time of theirs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

SLACK = 8  # so many may be void, however few are not


class Order(Generic[T]):
    """Things with a time each; to place one, or to find the first, takes O(log n)."""

    def __init__(self) -> None:
        self._numbers = count()  # of things with one time, who was placed first is first
        # By time and number.  The entry of a thing that was placed anew, or taken
        # out, is void, and has None instead: it is dropped when it is the first,
        # or with all other void ones once they are the majority.
        self._heap: list[list[Any]] = []
        self._entries: dict[T, list[Any]] = {}

    def __contains__(self, thing: T) -> bool:
        return thing in self._entries

    def place(self, thing: T, time: float | None) -> None:
        """Have *thing* stand at *time*, with None nowhere."""
        entry = self._entries.get(thing)
        if (None if entry is None else entry[0]) == time:
            return
        if entry is not None:
            del self._entries[thing]
            entry[2] = None
        if time is not None:
            entry = self._entries[thing] = [time, next(self._numbers), thing]
            heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + SLACK:
            self._heap = list(self._entries.values())
            heapify(self._heap)

    def time(self, thing: T) -> float:
        """Return where *thing* stands."""
        return float(self._entries[thing][0])

    def first(self) -> T | None:
        """Return the thing with the earliest time, None if there is none."""
        while self._heap and self._heap[0][2] is None:
            heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def before(self, time: float) -> Iterator[T]:
        """Go through all things before *time*, in no order; none may be placed meanwhile."""
        heap, places = self._heap, [0]
        while places:
            place = places.pop()
            if place < len(heap) and heap[place][0] < time:  # else none below is earlier
                if heap[place][2] is not None:
                    yield heap[place][2]
                places += (2 * place + 1, 2 * place + 2)
