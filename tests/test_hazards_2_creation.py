"""Failed creation: hazards.md, section 2, where the caller itself creates."""

import gevent
import pytest
from gevent import Timeout
from gevent.event import Event

from gpools import ConnectionPool, Pool, PoolClosed, PoolError, PoolTimeout
from tests.hostile import (
    Gate,
    error,
    full_check,
    killed,
    never,
    ok,
    settle,
    slow_error,
    spawn,
    timed_out,
)
from tests.watching import both, invariants_hold, make  # noqa: F401

failures = pytest.mark.parametrize("failure", [error, timed_out, killed])


class Steps:
    """A behaviour that blocks each call until `go`, and then ends as *outcome* does."""

    def __init__(self, outcome=ok):
        self.outcome = outcome
        self.event = Event()
        self.blocked = 0

    def __call__(self):
        self.blocked += 1
        self.event.wait()
        return self.outcome()

    def go(self):
        """Let all go who are blocked now, and nobody else."""
        event, self.event, self.blocked = self.event, Event(), 0
        event.set()
        settle()


@both
def test_failed_create_lets_the_next_waiter_in(kind):
    """The second caller used to sleep until somebody else put."""
    gate = Gate(slow_error, ok)
    pool = make(kind, gate, max_size=1)
    first, second = spawn(pool.get), spawn(pool.get)
    gevent.joinall([first, second], timeout=5)

    assert isinstance(first.exception, OSError)
    assert second.successful()
    assert repr(pool) == f"<{kind.__name__} 0 idle, 1 in use, 0 waiting, max 1>"
    pool.put(second.value)
    full_check(pool, gate)


@both
@failures
def test_failed_create_lets_only_the_next_waiter_in(kind, failure):
    """The slot is one: one of the three in line gets it, the one who came first."""
    fail = Steps(failure)
    succeed = Steps()
    gate = Gate(fail, succeed)
    pool = make(kind, gate, max_size=1)
    getters = [spawn(pool.get) for _ in range(4)]
    settle()
    fail.go()
    assert getters[0].ready()
    assert succeed.blocked == gate.creating == 1
    assert pool.waiting() == 2

    succeed.go()
    assert getters[1].successful()
    assert not getters[2].ready()
    assert isinstance(getters[0].exception or getters[0].value, type_of(failure))
    gevent.killall(getters)
    pool.put(getters[1].value)
    full_check(pool, gate)


@both
@failures
@pytest.mark.parametrize("size", [1, 3])
def test_factory_that_fails_ten_times_each_and_then_works(kind, failure, size):
    gate = Gate(*[failure] * size * 10, ok)
    pool = make(kind, gate, max_size=size)
    failed = []
    for _ in range(size * 10):
        with pytest.raises((OSError, Timeout, gevent.GreenletExit)) as caught:
            pool.get()
        failed.append(type(caught.value))
    assert failed == [type_of(failure)] * size * 10
    assert pool.current_size == 0
    full_check(pool, gate)


def type_of(failure):
    return {error: OSError, timed_out: Timeout, killed: gevent.GreenletExit}[failure]


@both
@failures
def test_factory_that_fails_under_load_and_then_works(kind, failure):
    gate = Gate(*[Steps(failure)] * 30, ok)
    steps = gate.behaviours["create"][0]
    pool = make(kind, gate, max_size=3)
    getters = [spawn(pool.get) for _ in range(30)]
    for _ in range(10):
        settle()
        assert steps.blocked == 3
        steps.go()
    assert all(isinstance(g.exception or g.value, type_of(failure)) for g in getters)
    full_check(pool, gate)


def test_none_is_an_item_of_a_plain_pool():
    made = []
    pool = Pool(max_size=2, create=lambda: made.append(1))
    assert pool.get() is None
    pool.put(None)
    assert pool.free_items[0] is None
    with pool.item() as item:
        assert item is None
    assert len(made) == 1
    assert pool.free() == 2


def test_none_from_the_factory_of_a_connection_pool_is_an_error():
    made = []
    pool = ConnectionPool(max_size=1, create=lambda: made.append(1))
    for _ in range(3):
        with pytest.raises(PoolError, match=r"create\(\) returned None"):
            pool.get()
    assert pool.free() == 1
    assert len(made) == 3


def test_item_that_is_pooled_already_from_the_factory_is_an_error():
    """One connection under two slots would have two holders."""
    item = Gate().create()
    pool = ConnectionPool(max_size=2, create=lambda: item)
    assert pool.get() is item
    with pytest.raises(PoolError, match="pooled already"):
        pool.get()
    assert pool.free() == 1
    pool.put(item)
    assert pool.get() is item


def test_item_that_is_being_destroyed_from_the_factory_is_an_error():
    item = Gate().create()
    ended = Event()
    pool = ConnectionPool(max_size=2, create=lambda: item, destroy=lambda item: ended.wait())
    pool.discard(pool.get())
    with pytest.raises(PoolError, match="pooled already"):
        pool.get()
    ended.set()
    settle()
    assert pool.current_size == 0
    assert pool.get() is item, "it is a new item now"


@both
def test_2n_callers_of_a_factory_that_always_fails_each_get_the_real_error_in_two_rounds(kind):
    """A bare timeout would hide why."""
    steps = Steps(error)
    gate = Gate(steps)
    pool = make(kind, gate, max_size=5)
    callers = [spawn(pool.get, timeout=60) for _ in range(10)]
    settle()
    assert steps.blocked == 5
    steps.go()
    assert steps.blocked == 5, "the second half begins when the first has failed"
    steps.go()
    assert [type(caller.exception) for caller in callers] == [OSError] * 10
    full_check(pool, gate)


@both
def test_error_of_create_reaches_the_caller_untouched(kind):
    mine = OSError("the server said no")

    def fail():
        raise mine

    pool = kind(create=fail, max_size=1)
    with pytest.raises(OSError, match="said no") as caught:
        pool.get(timeout=1)
    assert caught.value is mine
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@both
def test_create_is_called_once_for_a_get_that_it_fails(kind):
    """No retries behind the caller's back."""
    gate = Gate(error)
    pool = make(kind, gate, max_size=4)
    with pytest.raises(OSError, match="said no"):
        pool.get()
    assert gate.calls["create"] == 1


@both
def test_create_that_never_ends_is_cut_off_by_the_callers_timeout(kind):
    gate = Gate(never, ok)
    pool = make(kind, gate, max_size=1)
    getter = spawn(pool.get, timeout=0.005)
    behind = spawn(pool.get)
    gevent.joinall([getter, behind], timeout=5)
    assert isinstance(getter.exception, PoolTimeout)
    pool.put(behind.get(block=False))
    full_check(pool, gate)


@both
def test_n_waiters_of_an_empty_pool_create_at_the_same_time(kind):
    """Growing one by one takes n times as long."""
    steps = Steps()
    gate = Gate(steps)
    pool = make(kind, gate, max_size=10)
    getters = [spawn(pool.get) for _ in range(10)]
    settle()
    assert gate.creating == 10
    steps.go()
    assert all(getter.successful() for getter in getters)
    for getter in getters:
        pool.put(getter.value)
    full_check(pool, gate)


# min_size


@pytest.mark.parametrize("failure", [error, timed_out, killed])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_min_size_fill_that_fails_at_the_kth_item_destroys_the_earlier_ones(failure, k):
    gate = Gate(*[ok] * (k - 1), failure, ok)
    with pytest.raises(type_of(failure)):
        ConnectionPool(min_size=4, max_size=4, **gate.verbs)
    assert gate.created == k - 1
    assert gate.destroyed == k - 1
    assert gate.calls["create"] == k


@pytest.mark.parametrize("second_kill", [False, True])
def test_min_size_fill_killed_at_the_third_item_destroys_the_earlier_ones(second_kill):
    gate = Gate(ok, ok, never, destroy=(gevent.sleep,))
    builder = spawn(ConnectionPool, min_size=4, max_size=4, **gate.verbs)
    settle()
    builder.kill(block=False)
    if second_kill:
        gevent.sleep(0)
        builder.kill(block=False)
    settle()
    assert builder.ready()
    assert gate.created == gate.destroyed == 2


def test_min_size_fill_makes_so_many():
    gate = Gate()
    pool = ConnectionPool(min_size=2, max_size=4, **gate.verbs)
    assert repr(pool) == "<ConnectionPool 2 idle, 0 in use, 0 waiting, max 4>"
    assert gate.created == 2
    full_check(pool, gate)


def test_close_while_the_constructor_fills_ends_it():
    """A subclass that is closed from its own create()."""

    class Shy(ConnectionPool):
        def create(self):
            if self.current_size == 2:
                self.close()
            return gate.create()

    gate = Gate()
    with pytest.raises(PoolClosed):
        Shy(min_size=3)
    assert gate.live == 0
