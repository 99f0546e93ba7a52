"""Shed hopeless waiters under sustained overload, by controlled delay (CoDel).

After K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5),
2012, in the form that Elixir's db_connection gave it for connection pools
(`DBConnection.ConnectionPool`, options queue_target and queue_interval).
"""

from __future__ import annotations

from math import inf

__all__ = ["CoDel"]


class CoDel:
    """When to drop the first in line instead of serving it.

    While the shortest wait of a whole *interval* (seconds) was longer than
    *target* (seconds), the pool is slow: then, in the next interval, those who
    have waited for more than twice *target* are dropped.  A burst that is
    worked off within an interval drops nobody.

    Give one of its own to each pool.  Pure: it is told the time.
    """

    def __init__(self, target: float = 0.05, interval: float = 1.0) -> None:
        if not target > 0 or not interval > 0:
            raise ValueError(f"target and interval must be above 0, not {target!r}, {interval!r}")
        self.target = target
        self.interval = interval
        self.slow = False
        self._shortest = 0.0  # wait seen in this interval
        self._next = -inf  # when this interval ends

    def __repr__(self) -> str:
        return f"CoDel(target={self.target}, interval={self.interval})"

    def hopeless(self, now: float, waited: float) -> bool:
        """Judge the first in line, who has *waited* so long, as something comes free for it."""
        if now >= self._next:
            self._begin(now, waited)
        elif self.slow and waited > 2 * self.target:
            return True
        else:
            self._shortest = min(self._shortest, waited)
        return False

    def idle(self, now: float) -> None:
        """Note that something came free and nobody was in line for it."""
        if now >= self._next:
            self._begin(now, 0.0)
        self._shortest = 0.0

    def stalled(self, now: float, waited: float) -> bool:
        """Judge a line that has not moved for an interval, its first having *waited* so long.

        Tells whether those who waited for more than twice the target are to go.
        """
        if now < self._next:
            return False
        self._begin(now, waited)
        return self.slow

    def _begin(self, now: float, waited: float) -> None:
        self.slow = self._shortest > self.target
        self._shortest = waited
        self._next = now + self.interval
