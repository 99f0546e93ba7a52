"""Limits: hazards.md, section 6."""

import math
import random

import gevent
import pytest
from gevent.event import Event

from gpools import ConnectionPool, NotInUse, Pool, TokenPool
from tests.hostile import Gate, error, full_check, ok, settle, slow, spawn, stale
from tests.waiting import until
from tests.watching import all_gone, both, invariants_hold, make  # noqa: F401


@both
def test_20_gets_at_once_on_three_with_a_create_that_yields(kind):
    """gsocketpool ends with 20 live, django-db-geventpool with 20 of max 1."""
    gate = Gate(slow)
    pool = make(kind, gate, max_size=3)

    def work():
        with pool.item() as item:
            item.use(0.001)

    workers = [spawn(work) for _ in range(20)]
    gevent.joinall(workers, timeout=5)
    assert all(worker.successful() for worker in workers)
    assert gate.peak == 3
    full_check(pool, gate)


@both
@pytest.mark.parametrize("seed", range(3))
def test_limit_holds_while_creates_fail_and_greenlets_are_killed(kind, seed):
    gate = Gate(slow, error, ok, seed=seed)
    pool = make(kind, gate, max_size=3)
    choose = random.Random(seed)

    def work():
        try:
            with pool.item() as item:
                item.use(0.001)
        except OSError:
            pass

    workers = [spawn(work) for _ in range(60)]
    while not all(worker.ready() for worker in workers):
        choose.choice(workers).kill(block=False)
        gevent.sleep(0.0005)
    assert gate.peak == 3
    until(lambda: all_gone(pool))
    full_check(pool, gate)


def test_item_being_destroyed_counts_until_it_is_gone():
    """The server has not seen it go yet: a new one would be one too many there."""
    going = Event()
    gate = Gate(destroy=(going.wait,))
    pool = make(ConnectionPool, gate, max_size=2)
    for item in (pool.get(), pool.get()):
        pool.discard(item)
    waiters = [spawn(pool.get) for _ in range(2)]
    settle()
    assert pool.current_size == gate.live == 2
    assert pool.free() == 0
    assert gate.creating == 0
    assert not any(waiter.ready() for waiter in waiters)
    going.set()
    settle()
    assert all(waiter.ready() for waiter in waiters)
    assert gate.created == 4
    assert gate.peak == 2


@pytest.mark.parametrize("verb", ["check", "reset"])
def test_limit_holds_while_dead_items_are_replaced(verb):
    bad = stale if verb == "check" else error
    gate = Gate(slow, destroy=(slow,), **{verb: (bad, ok, bad)}, seed=3)
    pool = make(ConnectionPool, gate, max_size=3)

    def work():
        for _ in range(3):
            with pool.item() as item:
                item.use(0.001)

    workers = [spawn(work) for _ in range(20)]
    gevent.joinall(workers, timeout=10)
    assert all(worker.successful() for worker in workers)
    assert gate.peak == 3
    assert gate.destroyed > 5
    until(lambda: all_gone(pool))
    full_check(pool, gate)


def test_foreign_put_does_not_make_a_connection_pool_larger():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=1)
    for _ in range(3):
        with pytest.raises(NotInUse):
            pool.put(gate.create())
    assert pool.free() == 1
    assert pool.current_size == 0


# Nonsense sizes


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"max_size": 0}, "max_size is 0 but must be at least 1"),
        ({"max_size": -1}, "max_size is -1 but must be at least 1"),
        ({"min_size": -1}, "min_size is -1 but must be at least 0"),
        ({"min_size": 8, "max_size": 4}, "min_size is 8 but max_size is 4"),
        ({"min_size": 5}, "min_size is 5 but max_size is 4"),
        ({"timeout": -1}, "timeout is -1 but must be at least 0"),
        ({"timeout": math.nan}, "timeout is nan but must be at least 0"),
        ({"max_waiting": -1}, "max_waiting is -1 but must be at least 0"),
        ({"check_after": -0.1}, "check_after is -0.1 but must be at least 0"),
    ],
)
def test_nonsense_raises_valueerror_at_once(sizes, says):
    gate = Gate()
    with pytest.raises(ValueError, match=says):
        ConnectionPool(create=gate, **sizes)
    assert gate.calls["create"] == 0


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
@pytest.mark.parametrize(
    "name",
    ["max_age", "max_idle", "check_timeout", "destroy_timeout", "create_timeout", "leak_after"],
)
def test_duration_in_which_nothing_could_be_done_raises_valueerror(name, seconds):
    """A check or a destroy given no time would be cut off at its first switch, always."""
    gate = Gate()
    with pytest.raises(ValueError, match=f"{name} is {seconds} but must be above 0, or None"):
        ConnectionPool(create=gate, min_size=1, **{name: seconds})
    assert gate.calls["create"] == 0


@pytest.mark.parametrize("size", ["4", None, 2.5, math.inf, True, [4]])
@pytest.mark.parametrize("name", ["min_size", "max_size"])
def test_size_that_is_no_whole_number_raises_typeerror(name, size):
    with pytest.raises(TypeError, match=f"{name} must be a whole number, not"):
        ConnectionPool(create=Gate(), **{name: size})


@both
@pytest.mark.parametrize("size", ["4", None, [4]])
def test_no_pool_takes_a_size_that_is_no_number(kind, size):
    with pytest.raises(TypeError, match="max_size must be a"):
        kind(create=Gate(), max_size=size)
    with pytest.raises(TypeError, match="max_size must be a"):
        kind(create=Gate()).resize(size)


@both
@pytest.mark.parametrize("create", ["connect", 3, [], Gate().create()])
def test_create_that_is_not_callable_raises_typeerror_at_once(kind, create):
    with pytest.raises(TypeError, match="create must be callable"):
        kind(create=create)


@pytest.mark.parametrize("verb", ["check", "reset", "destroy"])
def test_verb_that_is_not_callable_raises_typeerror_at_once(verb):
    with pytest.raises(TypeError, match=f"{verb} must be callable with one item"):
        ConnectionPool(create=Gate(), **{verb: "no"})


@pytest.mark.parametrize("size", [0, -3, 1, "5", 2.5])
def test_nonsense_resize_is_refused_and_changes_nothing(size):
    gate = Gate()
    pool = make(ConnectionPool, gate, min_size=2, max_size=4)
    with pytest.raises(ValueError if isinstance(size, int) else TypeError):
        pool.resize(size)
    with pytest.raises(ValueError if isinstance(size, int) else TypeError):
        pool.max_size = size
    assert pool.max_size == 4
    assert gate.live == 2
    full_check(pool, gate)


def test_smallest_sizes_that_make_sense():
    gate = Gate()
    pool = make(
        ConnectionPool, gate, min_size=1, max_size=1, timeout=0, max_waiting=0, check_after=0
    )
    with pool.item():
        pass
    full_check(pool, gate)


# Tokens


def test_tokens_limit_how_many_do_something_at_once():
    pool = TokenPool(max_size=3)
    now = peak = 0

    def work():
        nonlocal now, peak
        with pool.item() as token:
            assert token
            now += 1
            peak = max(peak, now)
            gevent.sleep(0)
            now -= 1

    gevent.joinall([spawn(work) for _ in range(20)], timeout=5)
    assert peak == 3
    assert pool.current_size == 3
    assert isinstance(pool, Pool)
