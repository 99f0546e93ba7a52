"""A factory that fails in every way a factory can, and keeps the books.

    gate = Gate(slow_error, ok)              # the first create fails, all others work
    pool = Pool(max_size=1, create=gate)

    gate = Gate(ok, ok, error, seed=7)       # two of three creates work, at random
    gate = Gate(ok, check=[stale, ok], reset=[error, ok])
    pool = ConnectionPool(max_size=3, **gate.verbs)

A behaviour is any function without arguments; `event.wait` is one too.
"""

import random
import weakref

import gevent
from gevent.event import Event

from tests.waiting import settle, spawn

__all__ = [
    "DoubleUse",
    "Gate",
    "Item",
    "error",
    "full_check",
    "killed",
    "never",
    "ok",
    "settle",
    "slow",
    "slow_error",
    "spawn",
    "stale",
    "timed_out",
    "unending",
]


def ok():
    pass


def error():
    raise OSError("the server said no")


def slow():
    gevent.sleep(0.005)


def slow_error():
    slow()
    error()


unending = weakref.WeakSet()  # what each never() waits for; conftest ends them with the test


def never():
    """Outlast the test.  What is left behind is not to tell the tests after it of a timeout."""
    unending.add(end := Event())
    end.wait()


def killed():
    raise gevent.GreenletExit


def timed_out():
    raise gevent.Timeout(0)


def stale():
    """Have a check say that the item is not fit."""
    return False


class DoubleUse(AssertionError):
    """One item was used by two greenlets at once, or after its destruction."""


class Item:
    """What a Gate creates.  It knows who uses it: `with item:` or `item.use()`."""

    def __init__(self, gate, number):
        self.gate = gate
        self.number = number
        self.holder = None
        self.destroyed = False

    def __repr__(self):
        return f"<Item {self.number}{' destroyed' if self.destroyed else ''}>"

    def __enter__(self):
        if self.holder is not None or self.destroyed:
            wrong = DoubleUse(f"{self} used by {gevent.getcurrent()} and {self.holder}")
            self.gate.double_uses.append(wrong)
            raise wrong
        self.holder = gevent.getcurrent()
        return self

    def __exit__(self, *error):
        self.holder = None

    def use(self, seconds=0):
        """Use the item for a while.  Switches."""
        with self:
            gevent.sleep(seconds)

    def close(self):
        if self.destroyed:
            self.gate.double_destroys.append(self)
        else:
            self.destroyed = True
            self.gate.destroyed += 1

    def __del__(self):
        if not self.destroyed:
            self.gate.dropped += 1


class Gate:
    """Create, check, reset and destroy items, misbehaving on order.

    The n-th call of a verb behaves like the n-th of its behaviours, and the
    last one goes on for ever.  With a *seed* each call picks one at random.

    - `created`, `destroyed`, `dropped` (garbage, never destroyed), `live`
    - `peak`: the most that were live or being created at once
    - `calls`: how often each verb was called
    - `items`: those that are not garbage
    - `double_uses`, `double_destroys`: what must stay empty
    """

    def __init__(self, *create, check=(ok,), reset=(ok,), destroy=(ok,), seed=None):
        self.behaviours = {"create": create or (ok,), "check": check, "reset": reset}
        self.behaviours["destroy"] = destroy
        self.calls = dict.fromkeys(self.behaviours, 0)
        self.random = None if seed is None else random.Random(seed)
        self.items = weakref.WeakSet()
        self.created = self.creating = self.destroyed = self.dropped = self.peak = 0
        self.double_uses = []
        self.double_destroys = []

    def __repr__(self):
        return (
            f"<Gate {self.created} created, {self.destroyed} destroyed, "
            f"{self.dropped} dropped, {self.live} live, peak {self.peak}>"
        )

    @property
    def live(self):
        return self.created - self.destroyed - self.dropped

    @property
    def verbs(self):
        """The four verbs as keyword arguments of a ConnectionPool."""
        return {verb: getattr(self, verb) for verb in self.behaviours}

    def calm(self):
        """Behave well from now on."""
        self.behaviours = dict.fromkeys(self.behaviours, (ok,))

    def __call__(self):
        return self.create()

    def create(self):
        # An item in the making has its slot already.
        self.creating += 1
        self.peak = max(self.peak, self.live + self.creating)
        try:
            self._behave("create")
        finally:
            self.creating -= 1
        self.created += 1
        item = Item(self, self.created)
        self.items.add(item)
        return item

    def check(self, item):
        return self._behave("check") is not False

    def reset(self, item):
        self._behave("reset")

    def destroy(self, item):
        # An item in destruction is live until that is over, however it ends.
        try:
            self._behave("destroy")
        finally:
            item.close()

    def _behave(self, verb):
        behaviours = self.behaviours[verb]
        call = self.calls[verb]
        self.calls[verb] += 1
        if self.random:
            return self.random.choice(behaviours)()
        return behaviours[min(call, len(behaviours) - 1)]()


def full_check(pool, gate):
    """Assert that *pool* has kept all its slots and *gate*'s books balance.

    Nobody may use the pool meanwhile.  As many gets as the pool is large must
    succeed without waiting for anybody, and no more items than that may live;
    then all are put back.  The gate is calm from here on.
    """
    gate.calm()
    settle()
    assert pool.waiting() == 0
    gate.peak = 0
    taken = []

    def take_all():
        while len(taken) < pool.max_size:
            taken.append(pool.get())

    taker = spawn(take_all)
    settle()
    if not taker.ready():
        taker.kill()
        raise AssertionError(f"only {len(taken)} of {pool.max_size} gets succeeded: {pool} {gate}")
    assert taker.successful(), taker.exception

    size = pool.max_size
    assert len(set(map(id, taken))) == size, "an item was handed out twice"
    assert not any(item.destroyed for item in taken), "a destroyed item was handed out"
    assert pool.current_size == size, pool
    assert pool.free() == 0, pool
    assert gate.live == size, f"{size} items taken but {gate}"
    assert gate.peak <= size, gate
    assert gate.double_uses == []
    assert gate.double_destroys == []

    while taken:
        pool.put(taken.pop())
    settle()
    assert pool.free() == size, pool
    assert gate.live == size, gate
