"""The kill storm: 50 greenlets on a pool of five, and everything that can go wrong.

The grand storm, in `tests.storms`, goes further: everything that a connection
pool can do, at once.  Twenty seeds of each are part of the suite;
GPOOLS_STRESS_SECONDS=3600 goes on with more seeds for so long, tells every
minute what was done, and goes on after a seed that fails, which it names.
"""

import gc
import os
import random
import resource
import sys
import traceback
from collections import Counter
from itertools import count
from time import monotonic
from weakref import WeakSet

import gevent
import gevent.os
import pytest
from gevent import GreenletExit, Timeout
from gevent.queue import Queue

from gpools import ConnectionPool, KeyedPool, Pool, PoolClosed, PoolTimeout
from gpools._creator import Creator
from gpools._line import Line
from gpools._sweeper import Sweeper
from gpools.keyed import _Budget
from gpools.stats import Counters
from tests import storms
from tests.hostile import (
    Gate,
    Item,
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
from tests.storms import GrandStorm, KeyedStorm, storm_of, watching, weather, what_is_left
from tests.test_fork import Child
from tests.waiting import until
from tests.watching import Watch, both, make

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
        while monotonic() < end or self.done["kills"] < 40:  # the machine may be busy
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


def storm(kind, seed, watched=True, seconds=SECONDS_PER_SEED):
    """Raise a storm over a new pool, *watched* at every switch or not; return what was done."""
    gate = Gate(*CREATE, check=CHECK, reset=RESET, destroy=DESTROY, seed=seed)
    settings = {} if kind is Pool else {"destroy_timeout": 0.01, "check_after": 0.0005}
    pool = make(kind, gate, max_size=SIZE, **settings)
    storm, watch = Storm(pool, gate, seed), Watch(pool)
    watch.held = storm.held
    with watching([watch] if watched else []):
        storm.rage(seconds)
        watch.held = None  # from here on others take items
        storm.survived()
    if kind is ConnectionPool:
        assert storm.dirty == 0, "an item was lent that its user had left in the middle of it"
    return storm.done


def raised(storm, **least):
    """Raise *storm*(seconds), for longer where the machine is too busy for much to happen."""
    for times in (1, 2, 4, 8, 16):
        done = storm(times * SECONDS_PER_SEED)
        if all(done[what] > number for what, number in least.items()):
            return
    pytest.fail(f"hardly a storm: {done}")


@both
@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_is_lost_in_the_storm(kind, seed):
    raised(lambda seconds: storm(kind, seed, seconds=seconds), gets=20, kills=5)


# 3.12 warns of a fork while there are threads; the hub's, and they are idle.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def fair_weather():
    """Nothing is logged, and what is tried again is so in milliseconds."""
    with weather():
        yield


@forks
@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_is_lost_in_the_grand_storm(seed, fair_weather):
    how = {"forks": seed % 4 == 0}
    raised(lambda seconds: storm_of(GrandStorm, seed, seconds, **how), kills=5, creates=5)


@forks
@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_is_lost_in_the_grand_storm_over_thirty_keys(seed, fair_weather):
    # A watch of 30 pools at every switch is slow, and then little happens.
    how = {"watched": seed % 4 == 1, "forks": seed % 4 == 0}
    raised(lambda seconds: storm_of(KeyedStorm, seed, seconds, **how), kills=5, creates=5)


TOLD = ("gets", "kills", "timeouts", "creates", "recycles", "forks", "leaks", "shed")


class Soak:
    """Storm after storm, and a line to print on what they did."""

    def __init__(self):
        self.done = Counter()
        self.failed = []
        self.begun = monotonic()
        self.rss = peak_mib()

    def storm(self, raise_storm, name, seed, **how):
        try:
            self.done += raise_storm(seed=seed, **how)
        except Exception:
            self.failed.append(f"{name} {seed}")
            self.tell(f"FAILED: {name}, seed {seed}, {how}\n{traceback.format_exc()}")

    def tell(self, what):
        print(f"\n{what}", flush=True)

    def line(self):
        done = ", ".join(f"{self.done[what]:,} {what}" for what in TOLD)
        return (
            f"{monotonic() - self.begun:.0f} s, {self.done['seeds']:,} seeds, {done}, "
            f"max RSS {self.rss:.1f} MiB at the start, {peak_mib():.1f} MiB now, "
            f"{len(self.failed)} failed{': ' if self.failed else ''}{', '.join(self.failed[:20])}"
        )


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@forks
@pytest.mark.skipif(not STRESS_SECONDS, reason="GPOOLS_STRESS_SECONDS is not set")
@pytest.mark.timeout(STRESS_SECONDS * 2 + 120)
def test_nothing_is_lost_in_a_long_storm(capsys, fair_weather):
    """Only some are watched at every switch, for speed; the books are checked in all."""
    soak, told = Soak(), 0
    with capsys.disabled():
        soak.storm(storm_of, "warm-up", SEEDS, kind=GrandStorm, seconds=0.2)
        before, soak.rss = what_is_left(), peak_mib()
        for seed in count(SEEDS + 1):
            now = monotonic() - soak.begun
            if now > STRESS_SECONDS or len(soak.failed) > 50:
                break
            if now > told + 60:
                told = now
                soak.tell(soak.line())
            dice = random.Random(seed)
            for kind in (Pool, ConnectionPool):
                soak.storm(
                    storm,
                    f"Storm of {kind.__name__}",
                    seed,
                    kind=kind,
                    seconds=dice.choice((0.05, 0.1)),
                    watched=not seed % 5,
                )
            for kind in (GrandStorm, KeyedStorm):
                soak.storm(
                    storm_of,
                    kind.__name__,
                    seed,
                    kind=kind,
                    forks=dice.random() < 0.25,
                    seconds=dice.choice((0.05, 0.1, 0.2, 0.5, 1.0)),
                    watched=dice.random() < 0.3,
                )
            soak.done["seeds"] += 1
        soak.tell("soak: " + soak.line())
        until(lambda: not what_is_left() - before)
    assert not soak.failed


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
    dirty = 0
    for turn in range(20):
        storm = Storm(pool, gate, seed + 3 * turn)
        storm.rage(SECONDS_PER_SEED)
        storm.survived()
        dirty += storm.dirty
        if dirty:
            break
    assert dirty


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


# What the grand storm found, one at a time: greenlets that a fork copies midway.


def in_child(act):
    return Child(act, gevent.os.fork).result()


@forks
@pytest.mark.parametrize("max_creating", [None, 1])
def test_who_is_about_to_be_served_at_a_fork_gets_an_item_of_the_childs(max_creating):
    """He got the parent's, of which the child's pool knows nothing: a KeyError."""
    pool = make(ConnectionPool, Gate(), max_size=1, max_creating=max_creating)
    item = pool.get()
    one = spawn(pool.get)
    settle()
    pool.put(item)

    def finish():
        return one.get(timeout=5).number, repr(pool), pool.stats().created

    answer = (2, "<ConnectionPool 0 idle, 1 in use, 0 waiting, max 1>", 1)
    assert in_child(finish) == answer
    assert one.get(timeout=5) is item


@forks
def test_who_is_about_to_make_an_item_at_a_fork_takes_a_slot_of_the_childs():
    """He had one of the parent's, and the child's item was not counted in size."""
    pool = make(ConnectionPool, Gate(), max_size=1)
    item = pool.get()
    one = spawn(pool.get)
    settle()
    pool.discard(item)

    def finish():
        return one.get(timeout=5).number, pool.current_size

    assert in_child(finish) == (2, 1)
    assert one.get(timeout=5).number == 2


@forks
def test_who_checks_at_a_fork_gets_an_item_of_the_childs():
    pool = make(ConnectionPool, Gate(check=[slow]), max_size=1)
    pool.put(pool.get())
    pool._book.life.doubt(pool._book.items.values(), monotonic())
    one = spawn(pool.get)
    gevent.sleep(0)

    def finish():
        return one.get(timeout=5).number, repr(pool)

    assert in_child(finish) == (2, "<ConnectionPool 0 idle, 1 in use, 0 waiting, max 1>")
    assert one.get(timeout=5).number == 1


@forks
def test_who_fills_a_pool_up_at_a_fork_takes_a_slot_for_each_item():
    """He took the second slot of the parent's, and made the second item of the child's."""
    made = []

    def create():
        if not made:
            pool.recycle()  # the first is destroyed as soon as it is made
        made.append(Item(Gate(), len(made)))
        return made[-1]

    pool = ConnectionPool(max_size=2, create=create, destroy=lambda item: slow())
    pool.min_size = 2
    one = spawn(pool.wait_ready)
    gevent.sleep(0)
    assert pool._book.going

    def finish():
        one.get(timeout=5)
        return repr(pool), pool.stats().size, pool.stats().created

    assert in_child(finish) == ("<ConnectionPool 2 idle, 0 in use, 0 waiting, max 2>", 2, 2)
    one.get(timeout=5)


@forks
def test_what_a_child_gives_up_of_the_parents_is_not_free_twice():
    """The common limit of all keys went below zero, and the child exceeded it."""
    gate = Gate(slow_error, ok)
    pools = KeyedPool(lambda key: make(ConnectionPool, gate, max_size=3), max_size=2)
    one = spawn(pools.get, "a")
    gevent.sleep(0)

    def finish():
        one.join(5)
        assert isinstance(one.exception, OSError)
        items = [pools.get("b", timeout=0.1) for _ in range(2)]
        with pytest.raises(PoolTimeout):
            pools.get("b", timeout=0.05)
        return len(items), repr(pools)

    answer = (2, "<KeyedPool 1 keys, 0 idle, 2 in use, 0 waiting, max 2>")
    assert in_child(finish) == answer
    one.join(5)
    assert isinstance(one.exception, OSError)


def test_listener_hears_of_an_item_before_it_hears_of_its_end():
    """An item that was refused at once was never told to have been created."""
    heard = []

    class Ear:
        def created(self, pool):
            heard.append("created")

        def destroyed(self, pool, reason):
            heard.append(reason)

    pool = make(ConnectionPool, Gate(slow), max_size=1, listener=Ear())
    one = spawn(pool.get)
    gevent.sleep(0)
    pool.close()
    one.join(5)
    assert isinstance(one.exception, PoolClosed)
    settle()
    assert heard == ["created", "refused"]


# Nor does the grand storm pass a pool that is wrong in one way.


def loses_a_wake_in_twenty(monkeypatch):
    wake, dice = Line.wake, random.Random(0)
    monkeypatch.setattr(Line, "wake", lambda line: dice.random() < 0.05 or wake(line))


def vacates_without_a_word(monkeypatch):
    def vacate(line):
        line.size -= 1

    monkeypatch.setattr(Line, "vacate", vacate)


def keeps_the_dead_in_line(monkeypatch):
    wait = Line.wait

    def wait_and_stay(line, arrived=None):
        try:
            return wait(line, arrived)
        except GreenletExit:
            line.waiters[gevent.getcurrent()] = monotonic()
            raise

    monkeypatch.setattr(Line, "wait", wait_and_stay)


def forgets_to_count_a_slot(monkeypatch):
    claim, dice = Line.claim, random.Random(0)
    monkeypatch.setattr(Line, "claim", lambda line: dice.random() < 0.05 or claim(line))


def loses_the_slot_of_an_interrupted_create(monkeypatch):
    vacate = ConnectionPool._vacate

    def vacate_if_failed(pool, line):
        if not isinstance(sys.exc_info()[1], (GreenletExit, Timeout)):
            vacate(pool, line)

    monkeypatch.setattr(ConnectionPool, "_vacate", vacate_if_failed)


def loses_the_slot_of_a_dropped_item(monkeypatch):
    monkeypatch.setattr(ConnectionPool, "_lose", lambda pool, key, find: None)


def forgets_to_destroy_after_a_failed_reset(monkeypatch):
    let_go = ConnectionPool._let_go

    def let_some_go(pool, reason, *items):
        if reason != "reset":
            let_go(pool, reason, *items)

    monkeypatch.setattr(ConnectionPool, "_let_go", let_some_go)


def puts_back_whatever_happened(monkeypatch):
    monkeypatch.setattr(ConnectionPool, "_fit", lambda pool, item, error: True)


def puts_an_item_on_the_shelf_twice(monkeypatch):
    put, dice = ConnectionPool.put, random.Random(0)

    def put_twice(pool, item):
        put(pool, item)
        if dice.random() < 0.05 and item in pool._line.idle:
            pool._line.idle.append(item)

    monkeypatch.setattr(ConnectionPool, "put", put_twice)


def miscounts_what_grew_old(monkeypatch):
    gone = Counters.gone
    monkeypatch.setattr(Counters, "gone", lambda self, why: why == "max_age" or gone(self, why))


def miscounts_creations_in_flight(monkeypatch):
    failed = Creator._failed

    def fail_and_forget(creator, *args):
        failed(creator, *args)
        creator.in_flight += 1

    monkeypatch.setattr(Creator, "_failed", fail_and_forget)


def keeps_a_dropped_pool_alive(monkeypatch):
    init = Sweeper.__init__

    def init_and_hold(sweeper, pool):
        init(sweeper, pool)
        sweeper.kept = pool

    monkeypatch.setattr(Sweeper, "__init__", init_and_hold)


def shares_the_parents_items(monkeypatch):
    monkeypatch.setattr(ConnectionPool, "_start_anew_after_fork", lambda pool: None)


def gives_the_child_what_the_parent_gave_up(monkeypatch):
    def anew(line):
        other = Line(line.limit)
        other.refusal, other.shed = line.refusal, line.shed
        if line.budget is not None:
            line.budget.used -= line.size
            line.budget.join(other)
        return other

    monkeypatch.setattr(Line, "anew", anew)


def exceeds_the_common_limit(monkeypatch):
    monkeypatch.setattr(_Budget, "allows", lambda budget, line: budget.used <= budget.limit)


def serves_no_other_key(monkeypatch):
    monkeypatch.setattr(_Budget, "seek", lambda budget: None)


def remembers_every_key(monkeypatch):
    monkeypatch.setattr(_Budget, "freed", lambda budget, line: None)


GRAND = [
    loses_a_wake_in_twenty,
    vacates_without_a_word,
    keeps_the_dead_in_line,
    forgets_to_count_a_slot,
    loses_the_slot_of_an_interrupted_create,
    loses_the_slot_of_a_dropped_item,
    forgets_to_destroy_after_a_failed_reset,
    puts_back_whatever_happened,
    puts_an_item_on_the_shelf_twice,
    miscounts_what_grew_old,
    miscounts_creations_in_flight,
    keeps_a_dropped_pool_alive,
    shares_the_parents_items,
]
KEYED = [
    loses_a_wake_in_twenty,
    gives_the_child_what_the_parent_gave_up,
    exceeds_the_common_limit,
    serves_no_other_key,
    remembers_every_key,
]
SABOTAGE = [
    pytest.param(kind, wrong, id=f"{kind.__name__}-{wrong.__name__}")
    for kind, wrongs in ((GrandStorm, GRAND), (KeyedStorm, KEYED))
    for wrong in wrongs
]


@forks
@pytest.mark.hub_errors
@pytest.mark.parametrize(("kind", "sabotage"), SABOTAGE)
def test_grand_storm_sinks_a_pool_that(kind, sabotage, fair_weather, monkeypatch):
    """Within ten seeds; one is enough for most."""
    monkeypatch.setattr(storms, "PATIENCE", 0.3)
    sabotage(monkeypatch)

    def ten_storms():
        for seed in range(10):
            storm_of(kind, seed, SECONDS_PER_SEED, watched=not seed % 2, forks=not seed % 2)

    with pytest.raises(AssertionError, match="seed"):
        ten_storms()
