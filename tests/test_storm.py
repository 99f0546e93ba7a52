"""The kill storm: 50 greenlets on a pool of five, and everything that can go wrong.

Twenty seeds are part of the suite; GPOOLS_STRESS_SECONDS=600 goes on with more
seeds for so long, and prints what was done.
"""

import gc
import os
import random
from collections import Counter
from itertools import count
from time import monotonic
from weakref import WeakSet

import gevent
import pytest
from gevent import Timeout
from gevent.queue import Queue

from gpools import ConnectionPool, Pool, PoolTimeout
from tests.hostile import (
    Gate,
    error,
    full_check,
    killed,
    never,
    ok,
    settle,
    slow,
    slow_error,
    spawn,
    stale,
    timed_out,
)
from tests.waiting import until
from tests.watching import both, invariants_hold, make  # noqa: F401

SIZE = 5
GREENLETS = 50
SEEDS = 20
SECONDS_PER_SEED = 0.08
STRESS_SECONDS = float(os.environ.get("GPOOLS_STRESS_SECONDS", 0))

# About one call in four goes wrong in one way or another.
CREATE = (ok,) * 12 + (slow,) * 4 + (error, slow_error, never, killed, timed_out)
CHECK = (ok,) * 12 + (slow,) * 2 + (stale, error, never, killed, timed_out)
RESET = (ok,) * 14 + (slow,) * 2 + (error, never, killed, timed_out)
DESTROY = (ok,) * 6 + (slow,) * 4 + (error, never, killed, timed_out)


class Storm:
    """One seed's worth of weather over one pool.

    ``done`` counts what happened; ``held`` are the items in use; ``dirty`` are
    those met that a former user had left in the middle of something.
    """

    def __init__(self, pool, gate, seed, resizes=True):
        self.pool = pool
        self.gate = gate
        self.random = random.Random(seed)
        self.resizes = resizes
        self.done = Counter()
        self.held = set()
        self.midway = WeakSet()
        self.dirty = 0
        self.over = False

    def live(self):
        """Take, use and give back, each time within 0.5 to 50 ms, until it is over."""
        while not self.over:
            timer = Timeout.start_new(self.random.choice((0.0005, 0.002, 0.01, 0.05)))
            try:
                with self.pool.item() as item:
                    self.held.add(item)
                    try:
                        self.use(item)
                    finally:
                        self.held.discard(item)
                self.done["puts"] += 1
            except Timeout as fired:
                self.done["timeouts" if fired is timer else "timeouts of verbs"] += 1
            except OSError:
                self.done["errors"] += 1
            except gevent.GreenletExit:
                self.done["kills survived"] += 1
            finally:
                timer.close()
                item = None  # what a plain pool has dropped is to be gone
            if self.random.random() < 0.2:
                gevent.sleep(0)

    def use(self, item):
        self.done["gets"] += 1
        if item in self.midway:
            self.dirty += 1
        self.midway.add(item)
        item.use(self.random.choice((0, 0, 0.0005, 0.002)))
        self.midway.discard(item)
        if self.random.random() < 0.05:
            raise OSError("the application's own")

    def rage(self, seconds):
        crowd = [spawn(self.live) for _ in range(GREENLETS)]
        end = monotonic() + seconds
        while monotonic() < end:
            victim = self.random.randrange(GREENLETS)
            self.done["kills"] += 1
            crowd[victim].kill(block=False)
            if crowd[victim].ready():
                crowd[victim] = spawn(self.live)
            if self.resizes and self.random.random() < 0.1:
                self.done["resizes"] += 1
                self.pool.resize(self.random.randint(1, 8))
            gevent.sleep(0.001)
        self.over = True
        if self.resizes:
            self.pool.resize(SIZE)
        # Half are let go, half are killed in the midst of it.
        self.gate.calm()
        gevent.killall(crowd[::2], timeout=5)
        gevent.joinall(crowd, timeout=5)
        assert all(one.ready() for one in crowd), f"left hanging: {self.pool!r}"
        assert all(one.successful() for one in crowd), [one.exception for one in crowd]

    def survived(self):
        """Assert that nothing was lost."""
        pool, gate = self.pool, self.gate
        # Those that hang in destroy() are cut off in time.
        settle()
        until(lambda: not (isinstance(pool, ConnectionPool) and pool._book.going), timeout=2)
        if not isinstance(pool, ConnectionPool):
            # A plain pool sheds what is above its size one by one, as it is put back.
            for _ in range(max(0, pool.current_size - SIZE)):
                pool.put(pool.get())
            gc.collect()  # the tracebacks of the killed refer to what they held
        assert pool.waiting() == 0
        assert not self.held
        assert pool.current_size == len(pool.free_items) <= SIZE, pool
        assert len(set(map(id, pool.free_items))) == len(pool.free_items)
        full_check(pool, gate)


def storm(kind, seed, watch=None, seconds=SECONDS_PER_SEED):
    """Raise a storm over a new pool; return what was done."""
    gate = Gate(*CREATE, check=CHECK, reset=RESET, destroy=DESTROY, seed=seed)
    settings = {} if kind is Pool else {"destroy_timeout": 0.01, "check_after": 0.0005}
    pool = make(kind, gate, max_size=SIZE, **settings)
    storm = Storm(pool, gate, seed)
    if watch is not None:
        watch(pool).held = storm.held
    storm.rage(seconds)
    if watch is not None:
        watch(pool).held = None  # from here on others take items
    storm.survived()
    if kind is ConnectionPool:
        assert storm.dirty == 0, "an item was lent that its user had left in the middle of it"
    return storm.done


@both
@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_is_lost_in_the_storm(kind, seed, invariants_hold):  # noqa: F811
    done = storm(kind, seed, invariants_hold)
    assert done["gets"] > 20, done
    assert done["kills"] > 5, done


@pytest.mark.skipif(not STRESS_SECONDS, reason="GPOOLS_STRESS_SECONDS is not set")
@pytest.mark.timeout(STRESS_SECONDS * 2 + 120)
def test_nothing_is_lost_in_a_long_storm(capsys):
    """Without the watch at every switch, for speed; the books are checked all the same."""
    done = Counter()
    end = monotonic() + STRESS_SECONDS
    for seed in count(SEEDS):
        if monotonic() > end:
            break
        for kind in (Pool, ConnectionPool):
            done += storm(kind, seed, seconds=random.Random(seed).choice((0.05, 0.1, 0.5)))
        done["seeds"] += 1
    with capsys.disabled():
        print("\nstorm:", ", ".join(f"{number:,} {what}" for what, number in done.items()))


# The storm itself can fail: it sinks the pools that people write.

class Naive:
    """A pool as it is often written: a queue, and a slot counted by hand."""

    min_size = 0

    def __init__(self, gate):
        self.gate = gate
        self.max_size = SIZE
        self.current_size = 0
        self.free_items = Queue()

    def waiting(self):
        return 0  # a gevent queue does not tell

    def free(self):
        return self.free_items.qsize() + self.max_size - self.current_size

    def get(self):
        if self.free_items.empty() and self.current_size < self.max_size:
            self.current_size += 1
            try:
                return self.gate.create()
            except Exception:
                self.current_size -= 1
                raise
        return self.free_items.get()

    def put(self, item):
        self.free_items.put(item)

    def item(self):
        return self.Block(self)

    class Block:
        def __init__(self, pool):
            self.pool = pool

        def __enter__(self):
            self.item = self.pool.get()
            return self.item

        def __exit__(self, kind, error, tb):
            if self.pool.gives_back_after(kind):
                self.pool.put(self.item)


class NaiveFinally(Naive):
    def gives_back_after(self, kind):
        return True


class NaiveException(Naive):
    def gives_back_after(self, kind):
        return kind is None or issubclass(kind, Exception)


def naive_storm(naive, seed, **settings):
    gate = Gate(*CREATE, seed=seed)
    pool = naive(gate, **settings)
    storm = Storm(pool, gate, seed, resizes=False)
    storm.rage(SECONDS_PER_SEED)
    return pool, gate, storm.dirty


@pytest.mark.parametrize("seed", range(3))
def test_naive_pool_that_puts_back_after_an_exception_loses_slots(seed):
    pool, gate, _ = naive_storm(NaiveException, seed)
    with pytest.raises(AssertionError, match="gets succeeded"):
        full_check(pool, gate)


@pytest.mark.parametrize("seed", range(3))
def test_naive_pool_that_puts_back_in_finally_shares_dirty_items(seed):
    _, _, dirty = naive_storm(NaiveFinally, seed)
    assert dirty >= 1


@pytest.mark.parametrize("seed", range(3))
def test_storm_sees_a_plain_pool_share_dirty_items(seed):
    """It says so in bold.  Were it not seen, the storm over the other would show nothing."""
    gate = Gate(seed=seed)
    pool = make(Pool, gate, max_size=SIZE)
    storm = Storm(pool, gate, seed)
    storm.rage(SECONDS_PER_SEED)
    storm.survived()
    assert storm.dirty


def test_waits_in_the_storm_end_in_a_diagnosis():
    """The pool's own timeout works as well as a Timeout around it."""
    gate = Gate(slow, seed=1)
    pool = make(ConnectionPool, gate, max_size=1, timeout=0.005)
    told = Counter()

    def live():
        for _ in range(3):
            try:
                with pool.item() as item:
                    item.use(0.004)
            except PoolTimeout as error:
                told[str(error).partition(" (")[0]] += 1

    crowd = [spawn(live) for _ in range(10)]
    gevent.joinall(crowd, timeout=10)
    assert all(one.successful() for one in crowd)
    assert told["no item came free within 0.005 s"] > 5
    full_check(pool, gate)
