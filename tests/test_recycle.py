"""recycle(): nothing that was made before is handed out after."""

import random

import gevent
import pytest

from gpools import ConnectionPool, PoolClosed, PoolTimeout, WrongThread
from tests.hostile import Gate, full_check, killed, ok, settle, slow, spawn, stale
from tests.test_ages import clock, gone, pool_of, put_all, sweep, take
from tests.waiting import until

__all__ = ["clock"]  # a fixture


def test_idle_items_are_destroyed_at_once():
    gate = Gate()
    pool = pool_of(gate, 3)
    pool.recycle()

    assert gone(pool) == {"recycled": 3}
    assert pool.current_size == gate.live == 0


def test_an_item_in_use_is_destroyed_when_it_is_put_back():
    gate = Gate()
    pool = pool_of(gate)
    held = pool.get()
    pool.recycle()
    assert not held.destroyed

    pool.put(held)
    assert held.destroyed
    assert gone(pool) == {"recycled": 1}
    assert pool.get() is not held


def test_an_item_in_use_can_still_be_discarded():
    gate = Gate()
    pool = pool_of(gate)
    held = pool.get()
    pool.recycle()
    pool.discard(held)

    assert gone(pool) == {"discarded": 1}
    full_check(pool, gate)


def test_what_is_made_afterwards_stays():
    gate = Gate()
    pool = pool_of(gate, 1)
    pool.recycle()
    item = pool.get()
    pool.put(item)

    assert pool.get() is item


class Opening:
    """A behaviour that waits until it is opened."""

    def __init__(self):
        self.event = gevent.event.Event()
        self.open = self.event.set

    def __call__(self):
        self.event.wait()


def test_an_item_that_was_being_made_is_not_handed_out():
    """The caller gets one that was made after it, in the same get."""
    opening = Opening()
    gate = Gate(opening, ok)
    pool = pool_of(gate)
    getter = spawn(pool.get)
    settle()
    pool.recycle()
    opening.open()

    assert getter.get(timeout=1).number == 2
    assert gone(pool) == {"recycled": 1}
    assert gate.live == 1


def test_an_item_that_was_being_made_in_the_background_is_not_handed_out():
    opening = Opening()
    gate = Gate(opening, ok)
    pool = pool_of(gate, max_creating=1)
    getter = spawn(pool.get)
    settle()
    pool.recycle()
    opening.open()

    assert getter.get(timeout=1).number == 2
    assert gone(pool) == {"recycled": 1}


def test_an_item_that_was_being_checked_is_not_handed_out(clock):
    opening = Opening()
    gate = Gate(check=(opening, ok))
    pool = pool_of(gate, 1)
    clock.pass_(1)
    getter = spawn(pool.get)
    settle()
    pool.recycle()
    opening.open()

    assert getter.get(timeout=1).number == 2
    assert gone(pool) == {"recycled": 1}


def test_an_item_that_was_being_reset_is_destroyed():
    opening = Opening()
    gate = Gate(reset=(opening, ok))
    pool = pool_of(gate)
    item = pool.get()
    putter = spawn(pool.put, item)
    settle()
    pool.recycle()
    opening.open()
    putter.get(timeout=1)

    assert item.destroyed
    assert gone(pool) == {"recycled": 1}


def test_a_waiter_does_not_get_what_came_back_before_the_recycle():
    """The item was put and not yet handed over when recycle() was called."""
    gate = Gate()
    pool = pool_of(gate, max_size=1)
    old = pool.get()
    waiter = spawn(pool.get)
    settle()
    pool.put(old)
    pool.recycle()

    assert waiter.get(timeout=1) is not old
    assert gate.peak == 1


def test_waiters_are_served_in_turn_by_new_items():
    gate = Gate(slow)
    pool = pool_of(gate, max_size=2)
    held = take(pool, 2)
    served = []

    def serve(number):
        with pool.item() as item:
            served.append(number)
            assert item not in held

    waiters = [spawn(serve, number) for number in range(6)]
    settle()
    pool.recycle()
    put_all(pool, held)
    gevent.joinall(waiters, timeout=5)

    assert all(waiter.successful() for waiter in waiters)
    assert served == sorted(served)
    assert gate.created == 4


def test_two_in_a_row_retire_each_item_once():
    gate = Gate()
    pool = pool_of(gate, 2)
    held = pool.get()
    pool.recycle()
    pool.recycle()
    pool.put(held)
    between = pool.get()
    pool.recycle()
    pool.put(between)

    assert gone(pool) == {"recycled": 3}
    assert gate.double_destroys == []
    full_check(pool, gate)


def test_two_during_one_creation_cost_one_item():
    opening = Opening()
    gate = Gate(opening, ok)
    pool = pool_of(gate)
    getter = spawn(pool.get)
    settle()
    pool.recycle()
    pool.recycle()
    opening.open()

    assert getter.get(timeout=1).number == 2


def test_recycle_of_an_empty_pool_is_fine():
    pool = pool_of(Gate())
    pool.recycle()
    pool.recycle(5)

    assert repr(pool) == "<ConnectionPool 0 idle, 0 in use, 0 waiting, max 10>"
    pool.close()


def test_a_spread_that_is_none_is_refused_and_retires_nothing():
    pool = ConnectionPool(create=Gate().create)
    item = pool.get()
    with pytest.raises(TypeError, match="spread must be a number, not None"):
        pool.recycle(None)
    pool.put(item)
    assert pool.get() is item


def test_a_negative_spread_is_refused():
    with pytest.raises(ValueError, match="spread is -1"):
        pool_of(Gate()).recycle(-1)


@pytest.mark.hub_errors
def test_another_thread_cannot_recycle():
    pool = pool_of(Gate(), 1)
    with pytest.raises(WrongThread):
        gevent.get_hub().threadpool.apply(pool.recycle)

    assert gone(pool) == {}


# Closing.


def test_recycle_during_close_changes_nothing():
    gate = Gate()
    pool = pool_of(gate, 2)
    held = pool.get()
    closer = spawn(pool.close, 10)
    settle()
    pool.recycle()
    pool.put(held)

    assert closer.get(timeout=1) == []
    assert gate.live == 0
    with pytest.raises(PoolClosed):
        pool.get()


def test_close_during_recycle_finds_all_items_gone_or_going():
    gate = Gate(destroy=(slow,))
    pool = pool_of(gate, 3)
    recycler = spawn(pool.recycle)
    settle()
    assert pool.close(5) == []

    assert recycler.ready()
    assert gate.live == 0
    assert gone(pool) == {"recycled": 3}


def test_recycle_of_a_closed_pool_makes_nothing():
    gate = Gate()
    pool = pool_of(gate, min_size=2)
    pool.close()
    pool.recycle()
    settle()

    assert gate.created == 2
    assert gate.live == 0


# min_size.


def test_min_size_is_made_anew():
    gate = Gate()
    pool = pool_of(gate, min_size=3)
    pool.recycle()
    settle()

    assert gone(pool) == {"recycled": 3}
    assert repr(pool) == "<ConnectionPool 3 idle, 0 in use, 0 waiting, max 10>"
    assert gate.created == 6
    pool.close()


def test_min_size_is_made_anew_in_the_background():
    gate = Gate()
    pool = pool_of(gate, min_size=3, max_creating=2)
    pool.wait_ready(1)
    pool.recycle()

    until(lambda: pool.stats().idle == 3)
    assert gate.created == 6


def test_min_size_is_made_anew_when_items_in_use_have_come_back():
    gate = Gate()
    pool = pool_of(gate, min_size=2)
    held = take(pool, 2)
    pool.recycle()
    settle()
    put_all(pool, held)
    settle()

    assert pool.stats().idle == 2


# A spread.


def test_with_a_spread_they_go_one_by_one_and_all_in_time(clock, monkeypatch):
    monkeypatch.setattr("gpools.connection.random", random.Random(5).random)
    gate = Gate()
    pool = pool_of(gate, 50, max_size=50)
    held = take(pool, 10)
    pool.recycle(spread=10)
    left = []
    for _ in range(9):
        clock.pass_(1)
        sweep(pool)
        left.append(gate.live)

    steps = [before - after for before, after in zip([50, *left], left, strict=False)]
    assert all(left)
    assert max(steps) < 25
    assert min(steps) >= 0
    assert left[4] < 45
    clock.pass_(1)
    sweep(pool)
    assert gate.live == 10  # those in use
    put_all(pool, held)
    assert gone(pool) == {"recycled": 50}
    pool.close()


def test_with_a_spread_an_item_goes_out_as_before_until_its_moment(clock, monkeypatch):
    monkeypatch.setattr("gpools.connection.random", lambda: 0.5)
    gate = Gate()
    pool = pool_of(gate, 1)
    pool.recycle(spread=10)
    clock.pass_(4.9)
    old = pool.get()
    assert old.number == 1
    pool.put(old)
    clock.pass_(0.1)

    assert pool.get().number == 2
    pool.close()


def test_with_a_spread_an_item_in_use_goes_at_its_first_put_after_its_moment(clock, monkeypatch):
    monkeypatch.setattr("gpools.connection.random", lambda: 0.5)
    gate = Gate()
    pool = pool_of(gate)
    item = pool.get()
    pool.recycle(spread=10)
    clock.pass_(4.9)
    pool.put(item)
    assert pool.get() is item
    clock.pass_(0.1)
    pool.put(item)

    assert item.destroyed
    pool.close()


def test_a_spread_needs_no_other_age_for_its_sweeps():
    """Here the clock is real, nobody touches the pool, and all of them go."""
    gate = Gate()
    pool = pool_of(gate, 5)
    pool.recycle(spread=0.01)

    until(lambda: gate.live == 0)
    assert gone(pool) == {"recycled": 5}
    pool.close()


def test_a_spread_does_not_delay_an_earlier_end(clock):
    gate = Gate()
    pool = pool_of(gate, 1, max_age=100)
    clock.pass_(99)
    pool.recycle(spread=1000)
    clock.pass_(1)
    sweep(pool)

    assert gate.live == 0


def test_recycle_without_a_spread_overrides_one_with(clock, monkeypatch):
    monkeypatch.setattr("gpools.connection.random", lambda: 0.9)
    gate = Gate()
    pool = pool_of(gate, 3)
    pool.recycle(spread=1000)
    assert gate.live == 3
    pool.recycle()

    assert gate.live == 0
    pool.close()


def test_min_size_follows_the_spread(clock, monkeypatch):
    monkeypatch.setattr("gpools.connection.random", lambda: 0.5)
    gate = Gate()
    pool = pool_of(gate, min_size=2)
    pool.recycle(spread=10)
    settle()
    clock.pass_(5)
    sweep(pool)

    assert gone(pool) == {"recycled": 2}
    assert pool.stats().idle == 2
    pool.close()


# Kills and traffic.


def test_a_recycle_that_is_killed_has_let_all_items_go(clock, monkeypatch):
    """A kill between two kinds of idle items used to lose the slots of the second."""
    monkeypatch.setattr("gpools.connection.random", lambda: 0.5)
    gate = Gate(destroy=(slow,))
    pool = pool_of(gate, max_size=3, max_age=100, max_idle=50)
    aged = pool.get()
    clock.pass_(80)
    idle = take(pool, 2)
    pool.put(aged)
    clock.pass_(1)
    put_all(pool, idle)
    settle()
    clock.pass_(60)

    def recycle():
        gevent.getcurrent().kill(block=False)  # arrives while destroy waits
        pool.recycle(1000)

    recycler = spawn(recycle)
    recycler.join()
    until(lambda: pool.stats().destroying == 0)
    assert gate.live == pool.current_size == 0
    assert set(gone(pool)) == {"recycled", "max_idle"}
    full_check(pool, gate)
    pool.close()


def test_a_killed_destroy_gives_its_slot_back():
    gate = Gate(destroy=(killed, ok))
    pool = pool_of(gate, 2)
    pool.recycle()
    settle()

    full_check(pool, gate)


@pytest.mark.parametrize("max_creating", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_made_before_is_handed_out_after_under_traffic(seed, max_creating):
    """Amid kills, dead items and slow creates: at each get the item is of the last recycle."""
    dice = random.Random(seed)
    gate = Gate(ok, slow, check=(ok, ok, slow, stale), destroy=(ok, slow), seed=seed)
    age = 0
    made = {}
    wrong = []

    def create():
        began = age
        item = gate.create()
        made[item] = began
        return item

    pool = ConnectionPool(max_size=4, max_creating=max_creating, **{**gate.verbs, "create": create})

    def work():
        while True:
            try:
                began = age
                with gevent.Timeout(dice.uniform(0.001, 0.03), False), pool.item() as item:
                    if made[item] < began:  # older than a recycle before this get
                        wrong.append((item, began))
                    item.use(dice.choice([0, 0.001, 0.003]))
            except (OSError, PoolTimeout):
                pass
            gevent.sleep(dice.choice([0, 0.001]))

    workers = [spawn(work) for _ in range(8)]
    for _ in range(120):
        gevent.sleep(0.001)
        if dice.random() < 0.2:
            age += 1
            pool.recycle()
        if dice.random() < 0.2:
            victim = dice.randrange(len(workers))
            workers[victim].kill(block=False)
            workers[victim] = spawn(work)
    gevent.killall(workers)

    assert not wrong
    assert gate.peak <= 4
    assert age > 5
    assert gone(pool)["recycled"] > 0
    until(lambda: pool.stats().destroying == pool.stats().creating == 0)
    full_check(pool, gate)
