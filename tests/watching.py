"""Watch the invariants of `gpools._line` at every switch of greenlets.

A test module that says ::

    from tests.watching import invariants_hold  # noqa: F401  (autouse)

has every pool made by its tests watched, and a test fails if, at any switch,
one of the numbered invariants did not hold.
"""

import weakref
from contextlib import contextmanager
from itertools import islice
from math import inf

import greenlet
import pytest
from gevent.hub import Hub

from gpools import ConnectionPool, Pool
from gpools._order import SLACK
from gpools.lifecycle import State
from tests.hostile import Gate
from tests.waiting import settle

__all__ = [
    "all_gone",
    "both",
    "counting_switches",
    "invariants_hold",
    "looks_at_sockets",
    "make",
    "tracing",
    "wrong_in_keys",
]

both = pytest.mark.parametrize("kind", [Pool, ConnectionPool])


def make(kind, gate, **settings):
    """Make a pool of *kind* over *gate*; a connection pool gets all four verbs."""
    if issubclass(kind, ConnectionPool):
        return kind(**gate.verbs, **settings)
    return kind(create=gate.create, **settings)


def all_gone(pool):
    """Tell whether no item of *pool* is being destroyed any more."""
    return not (isinstance(pool, ConnectionPool) and pool.stats().destroying)


@contextmanager
def tracing(seen):
    """Call ``seen(event, origin, target)`` at every switch, after who traces already."""
    before = greenlet.gettrace()

    def trace(event, args):
        if before is not None:
            before(event, args)
        seen(event, *args)

    greenlet.settrace(trace)
    try:
        yield
    finally:
        greenlet.settrace(before)


@contextmanager
def counting_switches():
    """Count, by greenlet, how often each is switched to."""
    counts = {}

    def seen(event, origin, target):
        counts[target] = counts.get(target, 0) + 1

    with tracing(seen):
        yield counts


def wrong_in_keys(pools):
    """Return what a walk over all keys finds and the structures of the KeyedPool do not tell."""
    budget = pools._budget
    all_keyed = set(pools._pools.values())
    wrong = []

    def claim(holds, what, keyed=None):
        if not holds:
            wrong.append(f"invariant 6: {what}: {pools!r} {keyed and (keyed.keys, keyed.pool)}")

    for keyed in all_keyed:
        line, creator = keyed.pool._line, keyed.pool._book.creator
        wants = min(len(line.waiters) - len(line.idle), line.limit - line.size)
        if wants > 0 and creator is not None:
            wants = min(wants, creator._missing(keyed.pool) if creator._pause() <= 0 else 0)
        wants = max(wants, 0)
        about_to_look = creator is not None and creator._alarm is not None and not keyed.wants
        claim(keyed.wants == wants or about_to_look, f"wants {wants}, not {keyed.wants}", keyed)
        for order, stands in (
            (budget._wanting, keyed.wants),
            (budget._poor, keyed.wants and not line.size),
        ):
            first = next(iter(line.waiters.values())) if stands else None
            place = order.time(keyed) if keyed in order else None
            claim(place == first, f"stands at {place}, not {first}", keyed)
        if line.idle and not line.waiters:
            since = min(keyed.pool._book.items[id(item)].since for item in line.idle)
            claim(keyed in budget._spare and budget._spare.time(keyed) <= since, "spare", keyed)
        claim((keyed in budget._having) == (line.size > 0), "having", keyed)
        claim(keyed in budget._leaving or keyed.users or line.size or line.waiters, "kept", keyed)
        claim(budget._of.get(line) is keyed, "its line", keyed)
    claim(budget._wanted == sum(keyed.wants for keyed in all_keyed), "wanted")
    claim(budget.going == sum(len(keyed.pool._book.going) for keyed in all_keyed), "going")
    claim(budget.used == sum(keyed.pool._line.size for keyed in all_keyed), "used")
    claim(set(budget._of.values()) == all_keyed, "forgotten keys")
    claim(all_keyed.issuperset(budget._having), "having, and forgotten")
    for order in (budget._wanting, budget._poor, budget._spare, budget._leaving):
        claim(all_keyed.issuperset(order._entries), "in order, and forgotten")
        claim(len(order._heap) <= 2 * len(order._entries) + SLACK, "void entries")
    return wrong


class Watch:
    """What must hold of one pool at every switch."""

    def __init__(self, pool):
        self.pool = weakref.ref(pool)
        self.violations = []
        self.held = None  # of a plain Pool: the items in use, if somebody keeps count
        self.limit, self.size = inf, 0  # as seen at the switch before
        self.arrival = {}  # waiter: its number in the order of arrival, its time in the line
        self.last = 0

    def look(self, event, origin, target):
        pool = self.pool()
        if pool is None or len(self.violations) > 20:
            return
        line = pool._line

        # 2. Somebody waits while something is to be had => _serve is scheduled.
        # (A greenlet that is not alive keeps the place of one who will be back.)
        to_be_had = line.idle or line.room() or line.refusal is not None
        served_next = next(iter(line.waiters), None)
        self.claim(2, not (served_next and to_be_had) or line._scheduled)

        # 3. Nobody overtakes the line: who leaves it served stood before the rest.
        if event == "throw":
            self.arrival.pop(target, None)
        if origin not in line.waiters:
            self.arrival.pop(origin, None)
        elif origin not in self.arrival:
            self.arrive(origin, line)
        number, time = self.arrival.get(target, (None, None))
        if number is not None and target not in line.waiters:
            del self.arrival[target]
            if line.waiters:
                # Not even a place that is kept for somebody may be passed by.
                self.claim("3 (time)", time <= next(iter(line.waiters.values())))
            standing = next((waiter for waiter in line.waiters if waiter), None)
            if standing is not None:
                self.claim(3, number < self.arrival[standing][0])

        # 1. While the hub has something in its hands it is in transit; else all is counted.
        if isinstance(target, Hub) and hasattr(pool, "min_size"):
            self.count(pool, line)

    def arrive(self, waiter, line):
        """Give *waiter* its number: the next, or one between others if it is back in its place."""
        time, before, after = line.waiters[waiter], None, None
        if next(reversed(line.waiters)) is waiter:
            before = next(islice(reversed(line.waiters), 1, None), None)
            self.last += 1
            number = self.last
        else:
            standing = list(line.waiters)
            place = standing.index(waiter)
            before, after = standing[place - 1] if place else None, standing[place + 1]
            numbers = [self.arrival[other][0] for other in standing if other in self.arrival]
            low = [self.arrival[other][0] for other in standing[:place] if other in self.arrival]
            high = min(numbers[len(low) :], default=self.last + 1)
            number = (max(low, default=high - 2) + high) / 2
        self.arrival[waiter] = (number, time)
        self.claim("3 (order)", before is None or line.waiters[before] <= time)
        self.claim("3 (order)", after is None or time <= line.waiters[after])

    def count(self, pool, line):
        # After a shrink there may be too many; they must not become more.
        if line.limit >= self.limit:
            self.claim("1 (limit)", line.size <= max(line.limit, self.size))
        self.limit, self.size = line.limit, line.size
        self.claim("1 (idle)", len(line.idle) <= line.size)
        gate = getattr(pool.create, "__self__", None)
        gate = gate if isinstance(gate, Gate) else None
        known = None
        if isinstance(pool, ConnectionPool):
            book = pool._book
            idle = sum(e.state is State.IDLE for e in book.items.values())
            self.claim("1 (shelf)", idle == len(line.idle))
            known = len(book.items) + len(book.going)
        elif self.held is not None:
            known = len(line.idle) + len(self.held)
        if known is not None and gate is not None:
            self.claim("1 (size)", line.size == known + gate.creating)
            if isinstance(pool, ConnectionPool):
                self.claim("1 (live)", gate.live + gate.creating <= line.size)
        if gate is not None:
            # 5. An item has one holder at most.
            self.claim(5, not gate.double_uses and not gate.double_destroys)

    def claim(self, number, holds):
        if not holds:
            self.violations.append(f"invariant {number}: {self.pool()!r}")


@pytest.fixture(autouse=True)
def invariants_hold(monkeypatch):
    """Yield a function that returns the `Watch` of a pool; all are asserted on at the end."""
    watches = {}

    def new(cls, *args, **kwargs):
        pool = original(cls, *args, **kwargs)
        watches[id(pool)] = Watch(pool)
        return pool

    def seen(event, origin, target):
        for watch in list(watches.values()):
            try:
                watch.look(event, origin, target)
            except Exception as error:  # a trace function must not raise
                watch.violations.append(repr(error))

    original = Pool.__new__
    monkeypatch.setattr(Pool, "__new__", new)
    with tracing(seen):
        yield lambda pool: watches[id(pool)]
        settle()  # the test's last items are collected, which is logged; not in the next test
    violations = [v for watch in watches.values() for v in watch.violations]
    if violations:
        pytest.fail("\n".join(violations[:20]))


def looks_at_sockets(monkeypatch, module):
    """Return the list of all sockets that *module* looks at from now on, by `quiet`."""
    looks, quiet = [], module.quiet
    monkeypatch.setattr(module, "quiet", lambda sock: bool(looks.append(sock) or quiet(sock)))
    return looks
