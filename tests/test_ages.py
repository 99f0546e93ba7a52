"""Ages in a pool: enforced at get, at put, at hand-over and by the sweep."""

import gc
import random
import subprocess
import sys
import textwrap
import weakref
from collections import Counter
from pathlib import Path

import gevent
import pytest
from greenlet import greenlet

import gpools._sweeper
from gpools import ConnectionPool, PoolTimeout
from gpools._sweeper import Sweeper
from tests.hostile import (
    Gate,
    error,
    full_check,
    killed,
    never,
    ok,
    settle,
    slow,
    spawn,
    stale,
    timed_out,
)
from tests.waiting import until


class Clock:
    """The time of all rooms of the package; the sweeper's sleep is not part of it."""

    now = 1000.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for room in ("_fast", "connection", "_sweeper", "_line", "_creator"):
        monkeypatch.setattr(f"gpools.{room}.monotonic", clock)
    # No jitter, so that an age is what it says.
    monkeypatch.setattr("gpools.connection.random", lambda: 0.0)
    return clock


def sweep(pool):
    pool._book.sweeper.wake()
    settle()


def pool_of(gate, idle=0, **settings):
    """Return a pool in which so many items are idle, none of them fresh."""
    pool = ConnectionPool(**{"max_size": 10, **gate.verbs, **settings})
    put_all(pool, take(pool, idle))
    return pool


def take(pool, count):
    return [pool.get() for _ in range(count)]


def put_all(pool, items):
    for item in items:
        pool.put(item)


def gone(pool):
    return dict(pool.stats().destroyed)


def runs(sweeper):
    """Tell whether the greenlet of *sweeper* is still there."""
    frames = (other.gr_frame for other in gc.get_objects() if isinstance(other, greenlet))
    return any(_is_of(sweeper, frame) for frame in frames)


def _is_of(sweeper, frame):
    while frame is not None:
        if frame.f_code is Sweeper._run.__code__ and frame.f_locals["self"] is sweeper:
            return True
        frame = frame.f_back
    return False


# At get.


def test_who_makes_an_item_gets_it_however_short_max_age_is():
    gate = Gate(slow)
    pool = pool_of(gate, max_size=1, max_age=1e-9)
    for _ in range(3):
        pool.put(pool.get(timeout=30))
        settle()

    assert gate.created == 3
    assert pool.stats().destroyed == {"max_age": 3}


def test_get_does_not_hand_out_what_is_too_old(clock):
    gate = Gate()
    pool = pool_of(gate, 1, max_age=100)
    clock.pass_(99.9)
    first = pool.get()
    pool.put(first)
    clock.pass_(0.1)

    assert pool.get() is not first
    assert first.destroyed
    assert gone(pool) == {"max_age": 1}


def test_get_does_not_hand_out_what_was_idle_for_too_long(clock):
    gate = Gate()
    pool = pool_of(gate, 1, max_idle=10)
    clock.pass_(9.9)
    first = pool.get()
    pool.put(first)
    clock.pass_(10)

    assert pool.get() is not first
    assert gone(pool) == {"max_idle": 1}


def test_get_skips_all_that_are_too_old_and_takes_the_next(clock):
    gate = Gate()
    pool = pool_of(gate, max_idle=10)
    *old, young = take(pool, 4)
    put_all(pool, old)
    clock.pass_(5)
    pool.put(young)
    clock.pass_(5)

    assert pool.get() is young
    assert gone(pool) == {"max_idle": 3}


def test_time_in_use_is_not_idle_time(clock):
    pool = pool_of(gate := Gate(), check_after=30)
    item = pool.get()
    clock.pass_(31)
    pool.put(item)
    clock.pass_(30)

    assert pool.get() is item
    assert gate.calls["check"] == 0


def test_get_checks_what_was_idle_for_more_than_check_after(clock):
    gate = Gate()
    pool = pool_of(gate, 1, check_after=30)
    clock.pass_(30)
    pool.put(pool.get())
    assert gate.calls["check"] == 0

    clock.pass_(30.1)
    pool.get()
    assert gate.calls["check"] == 1


def test_get_replaces_what_check_finds_dead(clock):
    gate = Gate(check=(stale,))
    pool = pool_of(gate, 1, check_after=30)
    clock.pass_(31)

    assert pool.get().number == 2
    assert gone(pool) == {"check": 1}


@pytest.mark.parametrize("verb", [error, stale])
def test_a_check_that_raises_means_no(clock, verb):
    gate = Gate(check=(verb,))
    pool = pool_of(gate, 1)
    clock.pass_(1)

    assert pool.get().number == 2
    assert gone(pool) == {"check": 1}


@pytest.mark.parametrize("verb", [killed, timed_out])
def test_an_interrupted_check_ends_the_get_and_the_item(clock, verb):
    gate = Gate(check=(verb,))
    pool = pool_of(gate, 1)
    clock.pass_(1)
    with pytest.raises((gevent.GreenletExit, gevent.Timeout)):
        pool.get()

    assert gone(pool) == {"check": 1}
    full_check(pool, gate)


def test_an_item_is_not_idle_while_it_is_in_use(clock):
    gate = Gate()
    pool = pool_of(gate, max_idle=10)
    item = pool.get()
    clock.pass_(1000)
    sweep(pool)
    pool.put(item)

    assert pool.get() is item


# At put.


def test_put_destroys_what_has_become_too_old(clock):
    gate = Gate()
    pool = pool_of(gate, max_age=100)
    young, old = pool.get(), pool.get()
    clock.pass_(99.9)
    pool.put(young)
    clock.pass_(0.1)
    pool.put(old)

    assert old.destroyed
    assert gone(pool) == {"max_age": 1}
    assert repr(pool) == "<ConnectionPool 1 idle, 0 in use, 0 waiting, max 10>"


def test_put_of_one_too_old_lets_the_waiter_make_a_new_one(clock):
    gate = Gate()
    pool = pool_of(gate, max_size=1, max_age=100)
    old = pool.get()
    waiter = spawn(pool.get)
    settle()
    clock.pass_(100)
    pool.put(old)

    assert waiter.get(timeout=1).number == 2
    assert gate.peak == 1


# At hand-over: between the put and the moment when the waiter is served.


@pytest.mark.parametrize("age", ["max_age", "max_idle"])
def test_what_grows_too_old_before_the_waiter_has_it_is_not_handed_over(clock, age):
    gate = Gate()
    pool = pool_of(gate, max_size=1, **{age: 100})
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    clock.pass_(50)
    pool.put(item)
    clock.pass_(100)  # the hub was busy

    assert waiter.get(timeout=1).number == 2
    assert gone(pool) == {age: 1}


def test_an_item_is_checked_before_a_waiter_gets_it(clock):
    gate = Gate(check=(stale, ok))
    pool = pool_of(gate, max_size=1, check_after=5)
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    pool.put(item)
    clock.pass_(6)

    assert waiter.get(timeout=1).number == 2
    assert gate.calls["check"] == 1


def test_a_waiter_whose_item_was_dead_keeps_its_turn(clock):
    gate = Gate(check=(stale, ok))
    pool = pool_of(gate, max_size=1)
    item = pool.get()
    served = []

    def serve(number):
        with pool.item():
            served.append(number)

    for number in range(4):
        spawn(serve, number)
        settle()
        clock.pass_(0.001)
    pool.put(item)
    clock.pass_(1)
    settle()

    assert served == [0, 1, 2, 3]


# By the sweep.


def test_the_sweep_lets_go_of_what_is_too_old(clock):
    gate = Gate()
    pool = pool_of(gate, 3, max_age=100)
    clock.pass_(99)
    sweep(pool)
    assert pool.free_items.__len__() == 3

    clock.pass_(1)
    sweep(pool)
    assert gone(pool) == {"max_age": 3}
    assert pool.current_size == gate.live == 0


def test_the_sweep_lets_go_of_what_was_idle_for_too_long(clock):
    gate = Gate()
    pool = pool_of(gate, 3, max_idle=10)
    clock.pass_(5)
    pool.put(pool.get())
    clock.pass_(5)
    sweep(pool)

    assert gone(pool) == {"max_idle": 2}
    assert len(pool.free_items) == 1


def test_what_the_sweep_leaves_keeps_its_order(clock):
    gate = Gate()
    pool = pool_of(gate, 5, max_idle=10)
    first, second, third, fourth, fifth = take(pool, 5)
    put_all(pool, [second, first, fifth])
    clock.pass_(5)
    put_all(pool, [fourth, third])
    clock.pass_(5)
    sweep(pool)

    assert list(pool.free_items) == [fourth, third]


def test_the_sweep_is_woken_by_the_time_alone():
    """Here the clock is real: nobody touches the pool, and its items go."""
    gate = Gate()
    pool = pool_of(gate, 3, max_idle=0.01)
    held = pool.get()

    until(lambda: gate.live == 1)
    pool.put(held)
    until(lambda: gate.live == 0)
    # On a slow machine the last part of a max_idle may end first.
    assert {"max_idle"} <= pool.stats().destroyed.keys() <= {"max_idle", "unused"}

    aged = pool_of(gate, 2, max_age=0.01)
    until(lambda: gate.live == 0)
    assert gone(aged) == {"max_age": 2}


def test_a_sweep_does_not_make_an_item_less_idle(clock):
    gate = Gate()
    pool = pool_of(gate, 1, max_idle=10, check_after=100)
    for _ in range(9):
        clock.pass_(1)
        sweep(pool)
    assert gate.live == 1

    clock.pass_(1)
    sweep(pool)
    assert gate.live == 0
    assert gate.calls["check"] == 0


def test_a_slow_destroy_in_the_sweep_delays_nothing_else(clock):
    gate = Gate(destroy=(never,))
    pool = pool_of(gate, 3, max_idle=10, destroy_timeout=1e6)
    clock.pass_(9)
    pool.put(pool.get())  # is not due yet
    clock.pass_(1)
    sweep(pool)

    assert gate.calls["destroy"] == 2  # not one after the other
    switches = []
    gevent.get_hub().loop.run_callback(switches.append, 1)
    young = pool.get()
    assert not switches  # nobody had to wait
    other = pool.get()
    put_all(pool, [young, other])
    clock.pass_(10)
    sweep(pool)
    assert gate.calls["destroy"] == 4
    assert pool.stats().destroying == 4


def test_a_destroy_that_fails_in_the_sweep_stops_nothing(clock):
    gate = Gate(destroy=(error, killed, timed_out, ok))
    pool = pool_of(gate, 3, max_idle=10)
    clock.pass_(10)
    sweep(pool)
    assert gone(pool) == {"max_idle": 3}

    put_all(pool, take(pool, 2))
    clock.pass_(10)
    sweep(pool)
    assert gone(pool) == {"max_idle": 5}
    full_check(pool, gate)


# The jitter.


def test_a_burst_goes_within_five_percent_but_not_in_one(clock, monkeypatch):
    monkeypatch.setattr("gpools.connection.random", random.Random(3).random)
    gate = Gate()
    pool = pool_of(gate, 100, max_size=100, max_age=1000)
    clock.pass_(949.9)
    sweep(pool)
    assert gate.live == 100

    left = []
    for _ in range(10):
        clock.pass_(5)
        sweep(pool)
        left.append(gate.live)
    assert left[-1] > 0 or left[-2] > 0
    clock.pass_(0.1)
    sweep(pool)

    assert gate.live == 0
    steps = [before - after for before, after in zip([100, *left], left, strict=False)]
    assert max(steps) < 30


def test_setting_the_wall_clock_changes_nothing():
    """Back an hour and forth a day, at every look: no item goes, none stays for ever."""
    program = """
        import itertools, time
        wall = itertools.cycle([2e9, 2e9 - 3600, 2e9 + 86400])
        time.time = lambda: next(wall)
        import gevent
        from gpools import ConnectionPool

        made = []
        def create():
            made.append(object())
            return made[-1]

        def use(pool):
            items = [pool.get(timeout=30) for _ in range(3)]
            for item in items:
                pool.put(item)
            return len(made)

        pool = ConnectionPool(create=create, max_age=600, max_idle=300, check=bool, check_after=200)
        print([use(pool) for _ in range(5)])
        pool._book.sweeper.wake()
        gevent.sleep(0)
        print(repr(pool), dict(pool.stats().destroyed))
        short = ConnectionPool(create=create, max_idle=0.01)
        use(short)
        while short.current_size:
            gevent.sleep(0.002)
        print(dict(short.stats().destroyed))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[1],
    )

    assert ran.stdout.splitlines() == [
        "[3, 3, 3, 3, 3]",
        "<ConnectionPool 3 idle, 0 in use, 0 waiting, max 4> {}",
        "{'max_idle': 3}",
    ], ran.stderr


# Dead items.


def test_one_dead_item_makes_all_older_ones_suspect(clock):
    gate = Gate(check=(stale, ok))
    pool = pool_of(gate, 4, check_after=100)
    clock.pass_(101)
    put_all(pool, take(pool, 4))  # checked: the first was dead, so another was made
    assert gate.calls["check"] == 4
    gate.calls["check"] = 0
    gate.behaviours["check"] = (stale, ok)

    early = take(pool, 4)
    pool.put(early.pop())
    clock.pass_(99)
    put_all(pool, early)  # idle for a short while
    clock.pass_(2)
    assert pool.get() is early[0]  # because the oldest is dead
    assert gate.calls["check"] == 2
    pool.put(early[0])

    clock.pass_(1)
    assert take(pool, 2) == early[1:3]
    assert gate.calls["check"] == 4  # each older one once, whatever check_after says
    assert pool.get() is early[0]
    assert gate.calls["check"] == 4  # this one came back after the dead one was found


def test_a_suspect_item_that_is_good_is_trusted_again(clock):
    gate = Gate(check=(stale, ok))
    pool = pool_of(gate, 2, check_after=100)
    clock.pass_(101)
    pool.put(pool.get())
    clock.pass_(1)
    pool.put(pool.get())
    checks = gate.calls["check"]
    clock.pass_(1)
    pool.put(pool.get())

    assert gate.calls["check"] == checks == 2


def test_the_next_get_after_a_restart_of_the_server_succeeds_at_once(clock):
    """Six idle items cost psycopg_pool 29.6 s here."""
    gate = Gate(check=(stale,))
    pool = pool_of(gate, 6, check_after=60)
    clock.pass_(61)
    switches = []
    gevent.get_hub().loop.run_callback(switches.append, 1)

    item = pool.get()
    assert not switches
    assert item.number == 7
    assert gone(pool) == {"check": 6}
    assert gate.live == 1


def test_a_restart_costs_each_item_one_check(clock):
    gate = Gate(check=(stale,) * 6 + (ok,))
    pool = pool_of(gate, 6, max_size=6, check_after=60)
    clock.pass_(61)
    fresh = take(pool, 6)

    assert gate.calls["check"] == 6
    assert gate.created == 12
    assert all(not item.destroyed for item in fresh)


def test_a_check_that_hangs_is_cut():
    gate = Gate(check=(never, ok))
    pool = pool_of(gate, 1, check_timeout=0.01)

    assert pool.get(timeout=10).number == 2
    assert gone(pool) == {"hung": 1}
    full_check(pool, gate)


def test_a_check_that_hangs_counts_in_the_callers_total():
    gate = Gate(check=(never, ok))
    pool = pool_of(gate, 2, check_timeout=1000)
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0.01)

    assert gone(pool) == {"check": 1}
    full_check(pool, gate)


def test_where_one_check_hangs_no_other_idle_item_is_tried():
    """Ten idle items on a frozen server cost one check_timeout, not ten."""
    gate = Gate(check=(never,))
    pool = pool_of(gate, 10, check_timeout=0.02)

    assert pool.get(timeout=10).number == 11
    assert gate.calls["check"] == 1
    assert gone(pool) == {"hung": 10}
    full_check(pool, gate)


def test_without_check_timeout_a_check_may_take_its_time():
    gate = Gate(check=(slow,))
    pool = pool_of(gate, 1, check_timeout=None)

    assert pool.get().number == 1


def test_a_check_that_always_fails_costs_one_creation_for_each_get():
    gate = Gate(check=(stale,))
    pool = pool_of(gate, 5)
    for _ in range(20):
        pool.put(pool.get())

    assert gate.created <= 5 + 20
    full_check(pool, gate)


def test_a_check_that_always_fails_costs_a_creator_one_creation_for_each_get():
    """Its items are shelved before a caller has them: that made 1,600 in 0.3 s."""
    gate = Gate(slow, check=(stale,))
    pool = pool_of(gate, max_creating=2)
    for _ in range(20):
        pool.put(pool.get(timeout=5))

    assert gate.created <= 40


# min_size.


def test_the_sweep_keeps_min_size(clock):
    gate = Gate()
    pool = pool_of(gate, 6, min_size=2, max_idle=10)
    clock.pass_(1000)
    sweep(pool)

    assert gone(pool) == {"max_idle": 4}
    assert len(pool.free_items) == 2
    clock.pass_(1000)
    sweep(pool)
    assert gate.created == 6  # kept, not made anew


def test_the_sweep_counts_those_in_use_for_min_size(clock):
    gate = Gate()
    pool = pool_of(gate, 4, min_size=2, max_idle=10)
    held = take(pool, 2)
    clock.pass_(11)
    sweep(pool)

    assert len(pool.free_items) == 0
    put_all(pool, held)
    assert len(pool.free_items) == 2


def test_get_keeps_min_size(clock):
    gate = Gate()
    pool = pool_of(gate, 3, min_size=2, max_idle=10)
    clock.pass_(11)
    kept = pool.get()

    assert gone(pool) == {"max_idle": 1}
    assert pool.get().number <= 3
    assert not kept.destroyed


def test_one_of_min_size_is_checked_when_it_goes_out(clock):
    gate = Gate(check=(stale, ok))
    pool = pool_of(gate, min_size=1, max_idle=10, check_after=5)
    clock.pass_(11)

    assert pool.get().number == 2


def test_the_sweep_replaces_those_of_min_size_that_are_too_old(clock):
    gate = Gate()
    pool = pool_of(gate, 2, min_size=2, max_age=100)
    clock.pass_(100)
    sweep(pool)

    assert gone(pool) == {"max_age": 2}
    assert repr(pool) == "<ConnectionPool 2 idle, 0 in use, 0 waiting, max 10>"


def test_the_sweep_makes_what_a_discard_left_missing(clock):
    gate = Gate()
    pool = pool_of(gate, 3, min_size=3, max_idle=100)
    pool.discard(pool.get())
    sweep(pool)

    assert len(pool.free_items) == 3


def test_what_is_missing_of_min_size_is_made_where_nothing_ages():
    """It was made at the start only, and a pool without ages stayed short of it."""
    gate = Gate()
    pool = ConnectionPool(min_size=2, **gate.verbs)
    assert pool._book.sweeper is None
    pool.discard(pool.get())
    settle()

    assert repr(pool) == "<ConnectionPool 2 idle, 0 in use, 0 waiting, max 4>"
    assert gate.created == 3
    pool.close()
    settle()
    assert gate.live == pool.current_size == 0


@pytest.fixture
def soon(monkeypatch):
    """Have what failed tried again at once."""
    monkeypatch.setattr(gpools._sweeper, "RETRY", 0.002)


def test_the_sweep_refills_when_create_works_again(clock, soon, caplog):
    gate = Gate(ok, ok, error, killed, timed_out, error, ok)
    pool = pool_of(gate, min_size=2, max_age=100)
    clock.pass_(100)
    sweep(pool)

    until(lambda: len(pool._line.idle) == 2)
    assert gate.calls["create"] == 8
    assert pool.stats().create_errors == 4
    assert caplog.text.count("create failed while refilling") == 4
    assert "the server said no" not in caplog.text  # an error may show a password
    full_check(pool, gate)


def test_the_sweep_refills_though_the_old_items_are_slow_to_go(clock, soon):
    """While they went there was no room, and the sweeper gave up until the next age."""
    gate = Gate(destroy=(slow,))
    pool = pool_of(gate, 2, min_size=2, max_size=2, max_age=100)
    clock.pass_(100)
    sweep(pool)

    until(lambda: len(pool._line.idle) == 2)
    assert gate.peak <= 2


def test_a_create_that_hangs_in_the_refill_does_not_stop_the_sweeps(clock):
    gate = Gate(ok, ok, never, ok)
    pool = pool_of(gate, 2, min_size=2, max_age=100, max_idle=10)
    clock.pass_(100)
    sweep(pool)
    assert pool.stats().creating == 1

    put_all(pool, take(pool, 3))
    clock.pass_(100)
    sweep(pool)
    assert gone(pool)["max_age"] == 5
    assert pool.stats().creating == 1  # no second one for the same want


def test_a_refill_serves_whoever_waits(clock):
    gate = Gate()
    pool = pool_of(gate, 1, min_size=1, max_size=1, max_age=100)
    held = pool.get()
    waiter = spawn(pool.get)
    settle()
    clock.pass_(100)
    pool.put(held)
    sweep(pool)

    assert waiter.get(timeout=1).number == 2
    assert gate.peak == 1


def test_a_closed_pool_is_not_refilled(clock):
    gate = Gate()
    pool = pool_of(gate, 2, min_size=2, max_age=100)
    pool.close()
    sweep(pool)

    assert gate.live == pool.current_size == 0
    assert gate.created == 2


def test_a_refill_that_is_under_way_when_the_pool_is_closed_leaves_nothing(clock):
    gate = Gate(ok, slow)
    pool = pool_of(gate, 1, min_size=1, max_age=100)
    clock.pass_(100)
    sweep(pool)
    assert pool.stats().creating == 1
    pool.close()

    until(lambda: gate.created == 2)
    settle()
    assert gate.live == pool.current_size == 0


# The surplus after a spike.


@pytest.mark.parametrize("order_as_stack", [False, True])
def test_the_surplus_after_a_spike_is_gone_soon(clock, order_as_stack):
    """One greenlet that takes turns through all of them used to keep all ten alive."""
    gate = Gate()
    pool = pool_of(gate, 10, max_idle=10, order_as_stack=order_as_stack)
    settle()
    for _ in range(20):
        clock.pass_(1)
        pool.put(pool.get())
        sweep(pool)
    assert pool.current_size == 1

    for _ in range(50):
        clock.pass_(1)
        pool.put(pool.get())
        sweep(pool)
    assert gate.created == 10  # no churn
    assert pool.current_size == 1


def test_the_surplus_is_gone_one_max_idle_after_a_window_without_the_spike(clock):
    gate = Gate()
    pool = pool_of(gate, 5, max_idle=10)
    settle()  # the first look: a window begins with five idle
    for _ in range(9):
        clock.pass_(1)
        pool.put(pool.get())
        sweep(pool)
    assert pool.current_size == 5
    clock.pass_(1)
    sweep(pool)

    assert pool.current_size == 1
    assert gone(pool) == {"unused": 4}


@pytest.mark.parametrize("spike_at", [0.5, 3, 4.9, 9.5])
def test_the_surplus_is_gone_one_max_idle_and_a_quarter_after_the_spike(clock, spike_at):
    """It took up to two: the one in which the spike was, and the one after that."""
    gate = Gate()
    pool = pool_of(gate, 5, max_idle=10)
    settle()
    clock.pass_(spike_at)
    sweep(pool)
    put_all(pool, take(pool, 5))
    for _ in range(125):
        clock.pass_(0.1)
        pool.put(pool.get())
        sweep(pool)

    assert pool.current_size == 1
    assert gone(pool) == {"unused": 4}


def test_a_sweep_that_comes_late_drops_nothing_that_was_needed_since(clock):
    """The hub was busy for hours: that is one part of a max_idle, not all of them."""
    gate = Gate()
    pool = pool_of(gate, 2, max_idle=10)
    settle()
    held = take(pool, 2)
    clock.pass_(10_000)
    put_all(pool, held)
    for _ in range(4):
        sweep(pool)

    assert gate.live == 2


def test_what_has_gone_by_its_age_is_not_dropped_as_unused_too(clock):
    gate = Gate()
    pool = pool_of(gate, 2, max_age=12, max_idle=10)
    clock.pass_(6)
    put_all(pool, [*take(pool, 2), pool.get()])  # a third, six seconds younger
    for _ in range(6):
        clock.pass_(1)
        pool.put(pool.get())
        sweep(pool)

    assert gone(pool) == {"max_age": 2}
    assert gate.live == 1


def test_what_was_needed_of_late_stays_when_the_surplus_has_gone(clock):
    """What was dropped still counted as idle, and the last item was dropped in its name."""
    gate = Gate()
    pool = pool_of(gate, 5, max_idle=10)
    settle()
    for _ in range(10):
        clock.pass_(1)
        pool.put(pool.get())
        sweep(pool)
    assert gate.live == 1
    for _ in range(9):
        clock.pass_(1)
        sweep(pool)

    assert gate.live == 1


def test_the_surplus_leaves_min_size(clock):
    gate = Gate()
    pool = pool_of(gate, 10, min_size=4, max_idle=10)
    for _ in range(30):
        clock.pass_(1)
        pool.put(pool.get())
        sweep(pool)

    assert pool.current_size == 4
    assert gate.created == 10


def test_what_is_needed_once_in_every_window_stays(clock):
    """No item that is closed now and made again soon."""
    gate = Gate()
    pool = pool_of(gate, 5, max_idle=10)
    for second in range(60):
        clock.pass_(1)
        put_all(pool, take(pool, 5 if second % 7 == 0 else 1))
        sweep(pool)

    assert gate.created == 5
    assert gate.live == 5


def test_what_waiters_get_is_needed_too(clock):
    gate = Gate()
    pool = pool_of(gate, 2, max_size=2, max_idle=10)
    for _ in range(30):
        held = take(pool, 2)
        waiters = [spawn(pool.get) for _ in range(2)]
        settle()
        clock.pass_(1)
        put_all(pool, held)
        put_all(pool, [waiter.get(timeout=1) for waiter in waiters])
        sweep(pool)

    assert gate.created == 2


def test_the_unused_items_are_those_idle_longest(clock):
    gate = Gate()
    pool = pool_of(gate, 3, max_idle=10)
    settle()
    for _ in range(3):
        clock.pass_(2.5)
        sweep(pool)
    clock.pass_(1.5)
    used = pool.get()
    pool.put(used)
    clock.pass_(0.5)
    second = pool.get()
    pool.put(second)
    clock.pass_(0.5)
    sweep(pool)

    assert list(pool.free_items) == [second]


def test_a_pool_without_max_idle_keeps_its_surplus(clock):
    gate = Gate()
    pool = pool_of(gate, 5, max_age=1e6)
    for _ in range(30):
        clock.pass_(100)
        pool.put(pool.get())
        sweep(pool)

    assert gate.live == 5


# The sweeper itself.


@pytest.mark.parametrize("settings", [{}, {"check_after": 1}, {"timeout": 5}, {"max_creating": 1}])
def test_a_pool_in_which_nothing_ages_has_no_sweeper(settings):
    pool = pool_of(Gate(), 2, **settings)
    settle()

    assert pool._book.sweeper is None


@pytest.mark.parametrize("settings", [{"max_age": 9}, {"max_idle": 9}, {"leak_after": 9}])
def test_one_sweeper_comes_with_the_first_item(settings):
    pool = ConnectionPool(create=Gate(), **settings)
    settle()
    assert pool._book.sweeper is None

    pool.put(pool.get())
    sweeper = pool._book.sweeper
    put_all(pool, take(pool, 3))
    settle()
    assert pool._book.sweeper is sweeper
    assert runs(sweeper)


def test_the_sweeper_ends_with_close():
    pool = pool_of(Gate(), 2, max_age=9)
    sweeper = pool._book.sweeper
    settle()
    assert runs(sweeper)
    pool.close()
    settle()

    assert not runs(sweeper)


@pytest.mark.parametrize("settings", [{"max_idle": 9}, {"min_size": 1, "max_age": 9}])
def test_a_pool_dropped_without_close_is_collected_and_its_sweeper_ends(settings):
    gate = Gate()
    pool = pool_of(gate, 2, **settings)
    settle()
    dropped, sweeper = weakref.ref(pool), pool._book.sweeper
    assert runs(sweeper)
    del pool
    gc.collect()
    assert dropped() is None

    settle()
    assert not runs(sweeper)
    assert gate.calls["destroy"] == 0  # no network I/O in finalizers
    gc.collect()
    assert gate.live == 0


def test_a_pool_dropped_after_a_sweep_and_a_refill_is_collected(clock):
    gate = Gate()
    pool = pool_of(gate, 2, min_size=2, max_age=100)
    clock.pass_(100)
    sweep(pool)
    dropped = weakref.ref(pool)
    del pool
    gc.collect()

    assert dropped() is None


def test_the_sweeper_does_not_spin(clock, monkeypatch):
    looks = []
    monkeypatch.setattr(Sweeper, "_report_leaks", lambda *about: looks.append(about) or 1e9)
    pool = pool_of(Gate(), 3, min_size=3, max_idle=10)
    settle()
    clock.pass_(1000)  # all of them are overdue and must stay
    sweep(pool)
    looks.clear()
    gevent.sleep(0.02)

    assert len(looks) == 0


def test_a_sweeper_of_the_shortest_ages_leaves_others_their_turns():
    pool = pool_of(Gate(), 1, max_idle=1e-12)
    settle()
    gevent.sleep(0.01)

    assert runs(pool._book.sweeper)
    pool.close()


# Kills.


def test_a_storm_over_ages_of_milliseconds(soon):
    """Sweeps, checks and refills amid kills and Timeouts: no slot is lost, no item shared."""
    reasons = Counter()
    for seed in range(4):
        reasons.update(storm(seed))

    expected = {"max_age", "max_idle", "check", "reset", "discarded", "recycled"}
    assert not expected - reasons.keys(), reasons


def storm(seed):
    dice = random.Random(seed)
    gate = Gate(
        *(ok, ok, ok, slow, error),
        check=(ok,) * 8 + (slow, stale, error),
        reset=(ok,) * 20 + (slow, error),
        destroy=(ok, slow, error),
        seed=seed,
    )
    pool = ConnectionPool(
        max_size=5,
        max_age=0.02,
        max_idle=0.005,
        check_after=0.001,
        check_timeout=0.01,
        max_creating=2 if seed % 2 else None,
        **gate.verbs,
    )
    pool.min_size = 1

    def work():
        while True:
            try:
                with gevent.Timeout(dice.uniform(0.001, 0.04), False), pool.item() as item:
                    item.use(dice.choice([0, 0, 0.002]))
            except (OSError, PoolTimeout):
                pass
            gevent.sleep(dice.choice([0, 0.001, 0.02]))

    def adds_up():
        stats = pool.stats()
        there = stats.idle + stats.in_use + stats.between + stats.creating + stats.destroying
        assert stats.size == there
        assert stats.size <= 5
        assert stats.created - sum(stats.destroyed.values()) == stats.size - stats.creating

    workers = [spawn(work) for _ in range(8)]
    for _ in range(300):
        gevent.sleep(0.001)
        adds_up()
        if dice.random() < 0.2:
            victim = dice.randrange(len(workers))
            workers[victim].kill(block=False)
            workers[victim] = spawn(work)
        if dice.random() < 0.02:
            pool.recycle(dice.choice([0, 0.01]))
    gevent.killall(workers)
    assert gate.peak <= 5

    reasons = pool.stats().destroyed
    pool._book.life.max_age = pool._book.life.max_idle = 1e6
    pool.recycle()
    gate.calm()
    # With a creator, until it has tried again and recovered.
    until(lambda: pool._book.creator is None or not pool._book.creator.failures)
    until(lambda: pool.stats().destroying == pool.stats().creating == 0)
    full_check(pool, gate)
    pool.close()
    return reasons
