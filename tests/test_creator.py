"""Creations in the background: started for the line, raced against returns, bounded."""

import gc
import random
import weakref
from contextlib import suppress
from time import monotonic

import gevent
import pytest
from gevent.event import Event

from gpools import (
    ConnectionPool,
    PoolClosed,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    _creator,
)
from tests.hostile import (
    Gate,
    error,
    full_check,
    killed,
    never,
    ok,
    slow,
    slow_error,
    stale,
    timed_out,
)
from tests.waiting import settle, spawn, until


class Running:
    """A behaviour that counts how many are in it: `now` and at most, `peak`."""

    def __init__(self, act=ok):
        self.act = act
        self.now = self.peak = self.begun = 0

    def __call__(self):
        self.begun += 1
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            self.act()
        finally:
            self.now -= 1


def pool_of(gate, max_size=4, max_creating=2, **settings):
    return ConnectionPool(max_size=max_size, max_creating=max_creating, **gate.verbs, **settings)


def adds_up(pool):
    stats = pool.stats()
    parts = stats.idle + stats.in_use + stats.between + stats.creating + stats.destroying
    assert stats.size == parts, stats
    assert stats.created - sum(stats.destroyed.values()) == stats.size - stats.creating, stats
    return stats


@pytest.fixture
def impatient(monkeypatch):
    """Try again after milliseconds."""
    monkeypatch.setattr(_creator, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(_creator, "LONGEST_PAUSE", 0.004)


@pytest.fixture
def no_pause(monkeypatch):
    """Try again at once."""
    monkeypatch.setattr(_creator, "FIRST_PAUSE", 0.0)


# A creation is raced against returns.


def test_a_returned_item_serves_the_waiter_for_whom_one_is_being_made():
    made = Event()
    pool = pool_of(gate := Gate(ok, made.wait))
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    assert pool.stats().creating == 1

    pool.put(item)
    settle()
    assert waiter.get(block=False) is item

    made.set()
    settle()
    assert repr(pool) == "<ConnectionPool 1 idle, 1 in use, 0 waiting, max 4>"
    assert gate.created == 2
    adds_up(pool)


def test_what_comes_first_goes_to_the_first_in_line():
    made = Event()
    pool = pool_of(Gate(ok, made.wait))
    item = pool.get()
    first, second, third = spawn(pool.get), spawn(pool.get), spawn(pool.get)
    settle()

    pool.put(item)
    settle()
    assert (first.ready(), second.ready(), third.ready()) == (True, False, False)
    made.set()
    settle()
    assert {first.get().number, second.get().number, third.get().number} == {1, 2, 3}
    assert second.value.number < third.value.number


def test_create_runs_in_no_caller():
    ran_in = []
    gate = Gate(lambda: ran_in.append(gevent.getcurrent()))
    item = pool_of(gate).get()
    assert item.number == 1
    assert ran_in != [gevent.getcurrent()]


# How many are started.


def test_no_more_creations_run_than_callers_wait():
    making = Running(never)
    pool = pool_of(Gate(making), max_size=10, max_creating=10)
    callers = [spawn(pool.get) for _ in range(3)]
    settle()
    assert making.now == 3

    gevent.killall(callers[:2])
    late = [spawn(pool.get), spawn(pool.get)]
    settle()
    assert pool.waiting() == 3
    assert making.now == 3

    one_too_many = spawn(pool.get)
    settle()
    assert making.now == 4
    gevent.killall([*callers, *late, one_too_many])


def test_a_creation_is_started_only_where_a_slot_is_free():
    made = Event()
    pool = pool_of(gate := Gate(made.wait), max_size=2, max_creating=5)
    callers = [spawn(pool.get) for _ in range(6)]
    settle()
    assert pool.stats().creating == pool.current_size == 2

    made.set()
    settle()
    assert sum(caller.ready() for caller in callers) == 2
    assert gate.calls["create"] == 2
    gevent.killall(callers)


@pytest.mark.parametrize("at_once", [1, 3])
def test_never_more_creations_run_at_once_than_max_creating(at_once):
    making = Running(slow)
    pool = pool_of(Gate(making), max_size=20, max_creating=at_once)
    callers = [spawn(pool.get) for _ in range(20)]
    gevent.joinall(callers, timeout=10)

    assert len({caller.get().number for caller in callers}) == 20
    assert making.peak == at_once


def test_a_creation_that_ends_starts_the_next_one():
    """With one at a time, everybody in line depends on that."""
    pool = pool_of(gate := Gate(slow), max_size=4, max_creating=1)
    callers = [spawn(pool.get) for _ in range(4)]
    gevent.joinall(callers, timeout=10)
    assert all(caller.successful() for caller in callers)
    assert gate.created == 4


def test_a_slot_that_comes_free_starts_a_creation():
    pool = pool_of(gate := Gate(), max_size=1)
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    pool.discard(item)
    settle()
    assert waiter.get(block=False) is not item
    assert gate.created == 2


def test_a_larger_max_size_starts_creations():
    pool = pool_of(gate := Gate(), max_size=1)
    item = pool.get()
    waiters = [spawn(pool.get) for _ in range(3)]
    settle()
    pool.resize(4)
    settle()
    assert len({item.number, *(waiter.get().number for waiter in waiters)}) == 4
    assert gate.created == 4


def test_nobody_waits_so_nothing_is_made():
    pool = pool_of(gate := Gate(), max_size=4)
    settle()
    pool.put(pool.get())
    settle()
    assert gate.calls["create"] == 1


# A creation outlives its caller.


def test_a_creation_outlives_every_caller_that_asked_for_it():
    """Connecting takes twice as long as anybody waits; nobody would ever get an item."""
    made = Event()
    pool = pool_of(gate := Gate(made.wait), max_creating=1)
    for _ in range(2):
        with pytest.raises(PoolTimeout, match="create\\(\\) or destroy\\(\\) is slow"):
            pool.get(timeout=0.005)
    assert pool.stats().creating == 1

    made.set()
    settle()
    assert repr(pool) == "<ConnectionPool 1 idle, 0 in use, 0 waiting, max 4>"
    assert pool.get(timeout=0).number == 1
    assert gate.calls["create"] == 1


def test_a_killed_caller_leaves_its_creation_to_the_next():
    made = Event()
    pool = pool_of(gate := Gate(made.wait))
    victim, heir = spawn(pool.get), spawn(pool.get)
    settle()
    victim.kill()
    made.set()
    settle()
    assert heir.get(block=False).number == 1
    assert repr(pool) == "<ConnectionPool 1 idle, 1 in use, 0 waiting, max 4>"
    pool.put(heir.value)
    full_check(pool, gate)


# How a creation ends otherwise.


def test_a_creation_that_takes_too_long_is_ended_and_the_error_says_so():
    pool = pool_of(gate := Gate(never, ok), create_timeout=0.01)
    with pytest.raises(PoolTimeout, match=r"^create\(\) took longer than 0.01 s$"):
        pool.get()
    assert pool.current_size == 0
    assert gate.creating == 0


def test_create_timeout_leaves_quick_creations_alone():
    """The timer of a creation that has ended must not hit whoever runs then."""
    pool = pool_of(Gate(slow), max_size=3, create_timeout=0.03)
    callers = [spawn(pool.get) for _ in range(3)]
    gevent.joinall(callers, timeout=10)
    gevent.sleep(0.05)
    assert all(caller.successful() for caller in callers)
    assert adds_up(pool).in_use == 3


FAILURES = [
    (error, OSError, "the server said no"),
    (slow_error, OSError, "the server said no"),
    (killed, PoolError, r"create\(\) was ended by GreenletExit"),
    (timed_out, PoolError, r"create\(\) was ended by Timeout"),
]


@pytest.mark.parametrize(("behaviour", "kind", "text"), FAILURES)
def test_the_caller_gets_what_ended_the_creation(behaviour, kind, text, no_pause):
    pool = pool_of(gate := Gate(behaviour, ok), max_size=1, max_creating=1)
    with pytest.raises(kind, match=text) as caught:
        pool.get()
    assert type(caught.value) is kind
    if kind is PoolError:
        assert type(caught.value.__cause__) in (gevent.GreenletExit, gevent.Timeout)
    assert pool.current_size == 0
    pool.put(pool.get())
    full_check(pool, gate)


@pytest.mark.parametrize("behaviour", [error, slow_error, killed, timed_out])
def test_many_failures_lose_no_slot(behaviour, no_pause):
    behaviours = [behaviour] * 30
    pool = pool_of(gate := Gate(*behaviours, ok), max_size=3)
    failed = 0
    while gate.calls["create"] < 30:
        callers = [spawn(pool.get) for _ in range(3)]
        gevent.joinall(callers, timeout=10)
        failed += sum(not caller.successful() for caller in callers)
        for caller in callers:
            if caller.successful():
                pool.put(caller.value)
    assert failed >= 30
    pool.put(pool.get())
    full_check(pool, gate)
    assert adds_up(pool).create_errors == 30


def test_none_is_no_item(no_pause):
    items = iter([None, object.__new__(Running)])
    pool = ConnectionPool(create=lambda: next(items), max_creating=1)
    with pytest.raises(PoolError, match=r"create\(\) returned None"):
        pool.get()
    assert pool.current_size == 0
    assert isinstance(pool.get(), Running)


def test_a_failure_reaches_the_first_in_line_and_no_other(no_pause):
    failing = Event()

    def fail_on_order():
        failing.wait()
        failing.clear()
        error()

    pool = pool_of(Gate(ok, fail_on_order, never), max_size=2, max_creating=1)
    item = pool.get()
    first, second = spawn(pool.get, timeout=60), spawn(pool.get, timeout=60)
    settle()
    failing.set()
    settle()

    assert isinstance(first.exception, OSError)
    assert not isinstance(first.exception, PoolError)
    assert not second.ready()
    pool.put(item)
    settle()
    assert second.get(block=False) is item


def test_one_of_two_creations_fails_and_the_other_serves_the_second_in_line():
    """As long as one is in flight, nobody but the first waits in vain."""
    failing, made = Event(), Event()

    def fail_on_order():
        failing.wait()
        error()

    pool = pool_of(Gate(fail_on_order, made.wait), max_size=2)
    first, second = spawn(pool.get), spawn(pool.get)
    settle()
    failing.set()
    settle()
    assert isinstance(first.exception, OSError)
    assert not second.ready()
    made.set()
    settle()
    assert second.successful()


@pytest.mark.parametrize("at_once", [1, 2, 6])
@pytest.mark.parametrize("behaviour", [error, slow_error])
def test_all_callers_of_a_failing_server_get_the_real_error(behaviour, at_once):
    """psycopg_pool lets them wait for their whole timeout and tells them nothing."""
    pool = pool_of(gate := Gate(behaviour), max_size=3, max_creating=at_once)
    callers = [spawn(pool.get, timeout=60) for _ in range(6)]
    gevent.joinall(callers, timeout=10)

    kinds = {type(caller.exception) for caller in callers}
    assert kinds <= {OSError, PoolUnavailable}
    for caller in callers:
        cause = caller.exception.__cause__ or caller.exception
        assert str(cause) == "the server said no"
    assert isinstance(callers[0].exception, OSError)
    assert gate.calls["create"] <= at_once
    assert pool.waiting() == pool.current_size == 0


def test_an_error_left_over_does_not_hit_who_comes_later(no_pause):
    """The only one in line is killed in the turn in which its error is on its way."""
    doomed = []

    def fail_and_kill():
        doomed[0].kill(block=False)
        error()

    pool = pool_of(Gate(ok, fail_and_kill, ok), max_size=2)
    item = pool.get()
    doomed.append(spawn(pool.get))
    settle()
    assert isinstance(doomed[0].value, gevent.GreenletExit)
    assert pool.get() is not item


# Speed, by counting and by comparing.


def test_n_waiters_have_n_creations_at_once():
    making = Running(never)
    pool = pool_of(Gate(making), max_size=10, max_creating=10)
    callers = [spawn(pool.get) for _ in range(10)]
    settle()
    assert making.now == 10
    gevent.killall(callers)


def test_n_waiters_are_served_in_about_the_time_of_one_creation():
    """psycopg_pool grows one by one and takes ten times as long."""
    gate = Gate(lambda: gevent.sleep(0.05))

    def time_of(size):
        pool = pool_of(gate, max_size=size, max_creating=10)
        begun = monotonic()
        gevent.joinall([spawn(pool.get) for _ in range(size)])
        spent = monotonic() - begun
        assert pool.stats().in_use == size
        return spent

    # Some of the time the machine may have been busy with something else.
    assert any(time_of(10) < 5 * time_of(1) for _ in range(5))


def test_a_spike_is_worked_off_by_the_items_there_are():
    """50 callers, 5 idle items, a slow server: HikariCP's test ends with 5 to 7, not 50."""
    connected = Event()
    making = Running(connected.wait)
    gate = Gate(*[ok] * 5, making)
    pool = pool_of(gate, max_size=50, max_creating=2)
    warm = [pool.get() for _ in range(5)]
    for item in warm:
        pool.put(item)

    def use():
        with pool.item() as item:
            item.use(0.002)

    callers = [spawn(use) for _ in range(50)]
    done = gevent.joinall(callers, timeout=30)
    assert len(done) == 50
    assert all(caller.successful() for caller in callers)
    assert making.peak == making.now == 2  # none has come to its end yet

    connected.set()
    settle()
    assert gate.created <= 7
    assert pool.stats().idle == gate.live <= 7
    assert gate.double_uses == []


# min_size and wait_ready.


def test_the_constructor_does_not_wait_for_min_size():
    making = Running(never)
    pool = pool_of(Gate(making), min_size=3, max_creating=3)
    assert making.begun == 0
    settle()
    assert making.now == 3
    assert pool.stats().idle == 0


def test_wait_ready_waits_until_min_size_items_are_there():
    pool = pool_of(gate := Gate(slow), min_size=3, max_creating=2)
    pool.wait_ready(timeout=10)
    assert repr(pool) == "<ConnectionPool 3 idle, 0 in use, 0 waiting, max 4>"
    assert gate.created == 3
    pool.wait_ready(timeout=0)


def test_wait_ready_waits_again_when_items_were_lost():
    made = Event()
    pool = pool_of(Gate(ok, ok, made.wait), min_size=2)
    pool.wait_ready(timeout=10)
    pool.discard(pool.get())
    again = spawn(pool.wait_ready, timeout=10)
    settle()
    assert not again.ready()
    made.set()
    settle()
    assert again.successful()
    assert pool.stats().idle == 2


def test_several_wait_until_the_pool_is_ready():
    made = Event()
    pool = pool_of(Gate(made.wait), min_size=2)
    waiting = [spawn(pool.wait_ready) for _ in range(3)]
    settle()
    made.set()
    settle()
    assert all(waiter.successful() for waiter in waiting)


def test_wait_ready_gives_up_in_time():
    pool = pool_of(Gate(never), min_size=2)
    with pytest.raises(PoolTimeout) as caught:
        pool.wait_ready(timeout=0.01)
    assert caught.value.__cause__ is None


def test_wait_ready_names_the_error_that_kept_it_waiting(impatient):
    pool = pool_of(Gate(error), min_size=2)
    with pytest.raises(PoolTimeout) as caught:
        pool.wait_ready(timeout=0.02)
    assert isinstance(caught.value.__cause__, OSError)


def test_wait_ready_survives_failures(impatient):
    pool = pool_of(gate := Gate(error, error, ok, error, ok), min_size=2)
    pool.wait_ready(timeout=10)
    assert pool.stats().idle == 2
    assert gate.calls["create"] == 5


def test_close_ends_wait_ready():
    pool = pool_of(Gate(never), min_size=2)
    waiter = spawn(pool.wait_ready)
    settle()
    pool.close()
    settle()
    assert isinstance(waiter.exception, PoolClosed)
    with pytest.raises(PoolClosed):
        pool.wait_ready()


def test_without_max_creating_wait_ready_makes_the_items():
    pool = ConnectionPool(max_size=4, **(gate := Gate()).verbs)
    pool.min_size = 2
    pool.wait_ready()
    assert gate.created == pool.stats().idle == 2
    gate.behaviours["create"] = (error,)
    pool.min_size = 3
    with pytest.raises(OSError, match="said no"):
        pool.wait_ready()


def test_min_size_is_made_again_after_discards_though_nobody_waits():
    pool = pool_of(gate := Gate(), min_size=2, max_creating=1)
    pool.wait_ready(timeout=10)
    for item in [pool.get(), pool.get()]:
        pool.discard(item)
    settle()
    assert repr(pool) == "<ConnectionPool 2 idle, 0 in use, 0 waiting, max 4>"
    assert gate.created == 4


@pytest.mark.parametrize("end", ["check", "reset", "recycle"])
def test_min_size_is_made_again_whatever_ended_the_items(end):
    verdicts = {"check": {"check": (stale, ok)}, "reset": {"reset": (error, ok)}}
    pool = pool_of(gate := Gate(**verdicts.get(end, {})), min_size=2)
    pool.wait_ready(timeout=10)
    if end == "recycle":
        pool.recycle()
    else:
        for _ in range(3):  # the first time they are fresh
            gevent.sleep(0.001)
            pool.put(pool.get())
    until(lambda: pool.stats().idle >= 2)
    assert gate.created > 2
    assert gate.live == pool.current_size <= 3


def test_min_size_is_made_once_the_server_is_back(impatient):
    pool = pool_of(gate := Gate(error, error, error, ok), min_size=2)
    until(lambda: pool.stats().idle == 2)
    settle()
    assert gate.created == 2
    assert gate.calls["create"] == 5


# Close, recycle, resize with creations in flight.


def test_close_refuses_the_line_and_destroys_what_is_being_made():
    made = Event()
    pool = pool_of(gate := Gate(made.wait))
    callers = [spawn(pool.get), spawn(pool.get), spawn(pool.get)]
    settle()
    pool.close()
    settle()
    assert all(isinstance(caller.exception, PoolClosed) for caller in callers)
    assert pool.stats().creating == 2

    closing = spawn(pool.close, timeout=10)
    settle()
    assert not closing.ready()
    made.set()
    settle()
    assert closing.get(block=False) == []
    assert (gate.created, gate.destroyed, pool.current_size) == (2, 2, 0)
    assert gate.calls["create"] == 2
    adds_up(pool)


def test_a_creation_that_fails_after_close_is_not_tried_again(impatient):
    made = Event()

    def fail():
        made.wait()
        error()

    pool = pool_of(gate := Gate(fail), min_size=2)
    settle()
    pool.close()
    made.set()
    gevent.sleep(0.02)
    assert gate.calls["create"] == 2
    assert pool.current_size == 0


def test_a_pool_closed_during_an_outage_makes_no_more_tries(impatient):
    pool = pool_of(gate := Gate(error), min_size=1)
    until(lambda: gate.calls["create"] >= 2)
    pool.close()
    settle()
    tries = gate.calls["create"]
    gevent.sleep(0.02)
    assert gate.calls["create"] == tries


def test_what_was_being_made_at_recycle_is_not_handed_out():
    made = Event()
    pool = pool_of(gate := Gate(made.wait, made.wait, ok))
    callers = [spawn(pool.get), spawn(pool.get)]
    settle()
    pool.recycle()
    made.set()
    settle()
    assert sorted(caller.get(block=False).number for caller in callers) == [3, 4]
    assert gate.destroyed == 2
    assert adds_up(pool).destroyed == {"recycled": 2}


def test_resize_down_lets_go_of_the_surplus_that_was_being_made():
    made = Event()
    pool = pool_of(gate := Gate(made.wait), max_size=2)
    callers = [spawn(pool.get), spawn(pool.get)]
    settle()
    pool.resize(1)
    made.set()
    settle()
    assert [caller.ready() for caller in callers] == [True, False]
    assert gate.live == pool.current_size == 1
    pool.put(callers[0].get())
    settle()
    assert callers[1].successful()


def test_a_dropped_pool_is_collected_in_an_outage():
    pool = pool_of(Gate(error), min_size=1, name="dropped")
    settle()
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    settle()


def test_a_pool_is_collected_when_its_last_creation_ends():
    made = Event()
    pool = pool_of(Gate(made.wait), min_size=1)
    settle()
    gone = weakref.ref(pool)
    del pool
    made.set()
    settle()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("settings", [{"max_creating": 0}, {"max_creating": -1}])
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ValueError, match="max_creating"):
        ConnectionPool(create=Gate(), **settings)
    with pytest.raises(ValueError, match="create_timeout"):
        ConnectionPool(create=Gate(), max_creating=1, create_timeout=0)


def test_who_found_a_dead_item_stays_in_front_while_another_is_made():
    made, dead = Event(), []
    gate = Gate(ok, made.wait)
    pool = ConnectionPool(
        max_size=1, max_creating=1, create=gate, check=lambda item: item not in dead
    )
    dead.append(pool.get())
    pool.put(dead[0])
    first, second = spawn(pool.get), spawn(pool.get)
    settle()
    assert gate.creating == 1
    made.set()
    settle()
    assert first.get(block=False).number == 2
    assert not second.ready()
    second.kill()


def test_a_check_that_always_fails_does_not_make_the_server_busy():
    pool = pool_of(gate := Gate(slow, check=(stale,)))
    pool.put(pool.get(timeout=5))
    pool.put(pool.get(timeout=5))
    assert gate.calls["create"] <= 4


# Storms.


@pytest.mark.parametrize("seed", range(20))
def test_storm(seed, impatient):
    chance = random.Random(seed)
    making = [ok, slow, slow, error, slow_error, killed, timed_out, never]
    running = Running(lambda: chance.choice(making)())
    gate = Gate(
        running,
        check=(ok, ok, slow, stale, error),
        reset=(ok, ok, ok, slow, error),
        destroy=(ok, slow, error),
        seed=seed,
    )
    pool = pool_of(gate, max_size=5, max_creating=3, create_timeout=0.008)

    def user(patience):
        with (
            suppress(PoolError, OSError),
            gevent.Timeout(patience, False),
            pool.item(timeout=chance.choice([None, 0.002, 0.02])) as item,
            item,
        ):
            gevent.sleep(chance.random() * 0.003)

    def crowd():
        while True:
            users = [spawn(user, chance.uniform(0.0005, 0.03)) for _ in range(8)]
            everybody.extend(users)
            gevent.sleep(chance.random() * 0.004)
            chance.choice(users).kill(block=False)

    everybody = []
    crowds = [spawn(crowd) for _ in range(3)]
    for _ in range(15):
        gevent.sleep(0.008)
        pool.resize(chance.choice([3, 5, 8]))
        if chance.random() < 0.3:
            pool.recycle(chance.choice([0, 0.004]))
        stats = adds_up(pool)
        assert stats.creating <= 3
        if stats.waiting and not stats.creating:
            assert not pool._line.idle or pool._line._scheduled
    gevent.killall(crowds)
    gevent.joinall(everybody, timeout=10)
    pool.resize(5)
    odd = [user.exception for user in everybody if not user.successful()]
    assert [e for e in odd if not isinstance(e, gevent.Timeout)] == []  # timed_out in create()

    gate.calm()
    until(lambda: pool.stats().creating == pool.stats().destroying == 0)
    pool.recycle()  # so that one must be made, which ends the pauses
    until(lambda: served(pool))
    assert running.peak <= 3
    assert len(pool._line.waiters) == 0
    full_check(pool, gate)
    stats = adds_up(pool)
    assert stats.created == gate.created
    assert sum(stats.destroyed.values()) == gate.destroyed


def served(pool):
    try:
        pool.put(pool.get(timeout=1))
    except (PoolError, OSError):
        return False
    return True
