"""Close and resize, and the timeout of a get: hazards.md, sections 7 and 8 (first line)."""

import gc
import random
import weakref

import gevent
import pytest
from gevent.event import Event

from gpools import ConnectionPool, HubWouldBlock, Pool, PoolClosed, PoolTimeout
from tests.hostile import Gate, error, full_check, never, ok, settle, slow, spawn, stale
from tests.waiting import until
from tests.watching import all_gone, both, invariants_hold, make  # noqa: F401


def take(pool, size=None):
    return [pool.get() for _ in range(pool.max_size if size is None else size)]


def in_the_hub(act, *args):
    """Do *act* in the hub's own greenlet; return a list of what it returned or raised."""
    result = []

    def run():
        try:
            result.append(act(*args))
        except BaseException as error:
            result.append(error)

    gevent.get_hub().loop.run_callback(run)
    settle()
    return result


# Close


@pytest.mark.parametrize("timeout", [None, 0, 0.005])
def test_close_gives_poolclosed_to_each_waiter_at_once(timeout):
    """Five pools leave them hanging."""
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=2)
    items = take(pool)
    waiters = [spawn(pool.get) for _ in range(20)]
    settle()
    pool.close(timeout=timeout)
    settle()
    assert [type(waiter.exception) for waiter in waiters] == [PoolClosed] * 20
    assert "<ConnectionPool 0 idle, 2 in use" in str(waiters[0].exception)
    assert "is closed" in str(waiters[0].exception)
    assert pool.waiting() == 0
    for item in items:
        pool.put(item)
    assert gate.live == 0


def test_waiters_of_a_closed_pool_have_errors_of_their_own():
    """One exception raised in two greenlets would mix up their tracebacks."""
    pool = make(ConnectionPool, Gate(), max_size=1)
    item = pool.get()
    waiters = [spawn(pool.get) for _ in range(2)]
    settle()
    pool.close()
    settle()
    assert [type(waiter.exception) for waiter in waiters] == [PoolClosed] * 2
    assert waiters[0].exception is not waiters[1].exception
    pool.put(item)


def test_waiter_that_would_have_been_served_in_this_turn_gets_poolclosed():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=1)
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    pool.put(item)
    pool.close()
    settle()
    assert isinstance(waiter.exception, PoolClosed)
    assert gate.live == 0


def test_close_destroys_the_idle_items_now():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=3)
    items = take(pool)
    pool.put(items.pop())
    pool.put(items.pop())
    remaining = pool.close()
    assert gate.destroyed == 2
    assert not pool.free_items
    assert [hold.item for hold in remaining] == items
    assert pool.current_size == 1


def test_close_of_an_unused_pool_has_nothing_to_do():
    gate = Gate()
    pool = make(ConnectionPool, gate)
    assert not pool.closed
    assert pool.close(timeout=60) == []
    assert pool.closed
    assert not any(gate.calls.values())


def test_close_with_a_timeout_returns_the_holder_of_an_item_that_never_comes_back(caplog):
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=2, name="lost")

    def lose():
        item = pool.get()
        gevent.sleep(3600)
        pool.put(item)

    loser = spawn(lose)
    loser.name = "the-loser"
    settle()
    with gevent.Timeout(5):
        remaining = pool.close(timeout=0.005)
    assert len(remaining) == 1
    assert remaining[0].greenlet is loser
    assert remaining[0].seconds >= 0.005
    [record] = [r for r in caplog.records if r.levelname == "WARNING"]
    assert record.name == "gpools"
    assert "'lost'" in record.getMessage()
    assert "by <Watched 'the-loser'> at test_hazards_7_close.py:" in record.getMessage()


def test_close_with_a_timeout_returns_as_soon_as_the_last_item_is_gone():
    gate = Gate(destroy=(slow,))
    pool = make(ConnectionPool, gate, max_size=3)
    items = take(pool)
    pool.put(items.pop())
    closer = spawn(pool.close, timeout=3600)
    settle()
    assert not closer.ready()
    pool.discard(items.pop())
    pool.put(items.pop())
    closer.join(5)
    assert closer.ready()
    assert closer.get() == []
    assert gate.live == pool.current_size == 0


@pytest.mark.parametrize("last", ["create", "check", "reset"])
def test_close_with_a_timeout_waits_for_verbs_that_are_under_way(last):
    go = Event()
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=1)
    if last == "check":
        pool.put(pool.get())
        gevent.sleep(0.001)
    gate.behaviours[last] = (go.wait,)
    worker = spawn(pool.put, pool.get()) if last == "reset" else spawn(pool.get)
    settle()
    closer = spawn(pool.close, timeout=3600)
    settle()
    assert not closer.ready()
    go.set()
    settle()
    assert closer.get(block=False) == []
    assert worker.ready()
    assert isinstance(worker.exception, PoolClosed if last != "reset" else type(None))
    assert gate.live == pool.current_size == 0


@pytest.mark.parametrize("destroy", [ok, slow, error])
def test_creation_in_flight_at_close_has_its_item_destroyed(destroy):
    go = Event()
    gate = Gate(go.wait, destroy=(destroy,))
    pool = make(ConnectionPool, gate, max_size=1)
    getter = spawn(pool.get)
    settle()
    pool.close()
    go.set()
    getter.join(5)
    assert isinstance(getter.exception, PoolClosed)
    until(lambda: all_gone(pool))
    assert gate.created == gate.destroyed == 1
    assert pool.current_size == 0


def test_creation_that_fails_after_close_gives_its_own_error():
    go = Event()

    def fail():
        go.wait()
        error()

    gate = Gate(fail)
    pool = make(ConnectionPool, gate, max_size=1)
    getter = spawn(pool.get)
    settle()
    closer = spawn(pool.close, timeout=3600)
    settle()
    go.set()
    settle()
    assert isinstance(getter.exception, OSError)
    assert closer.get(block=False) == []


@pytest.mark.parametrize("check", [ok, stale, error])
def test_check_in_flight_at_close_has_its_item_destroyed(check):
    go = Event()

    def checked():
        go.wait()
        return check()

    gate = Gate(check=(checked,))
    pool = make(ConnectionPool, gate, max_size=1)
    pool.put(pool.get())
    gevent.sleep(0.001)
    getter = spawn(pool.get)
    settle()
    pool.close()
    go.set()
    settle()
    assert isinstance(getter.exception, PoolClosed)
    assert gate.created == gate.destroyed == 1
    assert pool.current_size == 0


def test_put_after_close_destroys():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=2)
    first, second = take(pool)
    pool.close()
    pool.put(first)
    assert first.destroyed
    pool.discard(second)
    assert second.destroyed
    assert pool.current_size == gate.live == 0


def test_with_block_in_use_at_close_destroys_its_item_as_it_is_left():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=1)
    with pool.item() as item:
        pool.close()
        assert not item.destroyed
    assert item.destroyed


def test_get_after_close_raises():
    gate = Gate()
    pool = make(ConnectionPool, gate, name="api")
    pool.close()
    for get in (pool.get, lambda: pool.get(timeout=0), lambda: pool.item().__enter__()):
        with pytest.raises(PoolClosed, match=r"<ConnectionPool 'api' 0 idle, .*> is closed"):
            get()
    assert gate.calls["create"] == 0
    assert pool.current_size == 0


def test_get_after_close_raises_when_an_item_is_idle_and_need_not_be_checked():
    pool = ConnectionPool(create=object)
    pool.put(pool.get())
    pool.close()
    with pytest.raises(PoolClosed):
        pool.get()


def test_close_twice_is_fine():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=2)
    items = take(pool)
    pool.put(items.pop())
    pool.close()
    assert [hold.item for hold in pool.close()] == items
    pool.put(items.pop())
    assert pool.close() == pool.close(timeout=5) == []
    assert gate.calls["destroy"] == 2


def test_two_greenlets_close_at_once():
    gate = Gate(destroy=(slow,))
    pool = make(ConnectionPool, gate, max_size=3)
    items = take(pool)
    for item in items:
        pool.put(item)
    closers = [spawn(pool.close, timeout=60) for _ in range(2)]
    gevent.joinall(closers, timeout=5)
    assert all(closer.ready() for closer in closers)
    assert [closer.get() for closer in closers] == [[], []]
    assert gate.calls["destroy"] == 3
    assert gate.live == 0


@pytest.mark.parametrize("verb", ["create", "check", "reset", "destroy"])
@pytest.mark.parametrize("timeout", [None, 0.005])
def test_close_from_a_hook(verb, timeout):
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=2)
    spare, item = take(pool)
    pool.put(spare)
    if verb == "check":
        gevent.sleep(0.001)
    gate.behaviours[verb] = (lambda: pool.close(timeout),)

    def life():
        for _ in range(4):
            pool.discard(pool.get())

    pool.put(item)
    if not pool.closed:
        liver = spawn(life)
        liver.join(5)
        assert isinstance(liver.exception, PoolClosed)
    until(lambda: pool.current_size == 0)
    assert pool.closed
    assert gate.live == 0
    assert gate.double_destroys == []


@pytest.mark.parametrize("destroy", [ok, slow, never, error])
@pytest.mark.parametrize("waiters", [0, 3])
def test_close_from_the_hub(destroy, waiters):
    gate = Gate(destroy=(destroy,))
    pool = make(ConnectionPool, gate, max_size=2, destroy_timeout=0.01)
    items = take(pool)
    waiting = [spawn(pool.get) for _ in range(waiters)]
    settle()
    if not waiters:
        pool.put(items.pop())
    [remaining] = in_the_hub(pool.close)
    assert [hold.item for hold in remaining] == items
    assert all(isinstance(waiter.exception, PoolClosed) for waiter in waiting)
    for item in items:
        pool.put(item)
    until(lambda: gate.live == pool.current_size == 0)


def test_close_from_the_hub_that_would_have_to_wait_says_so_and_closes():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=2)
    item, idle = take(pool)
    pool.put(idle)
    [raised] = in_the_hub(lambda: pool.close(timeout=5))
    assert isinstance(raised, HubWouldBlock)
    assert pool.closed
    assert idle.destroyed
    pool.put(item)
    assert gate.live == 0


def test_close_from_the_hub_with_nothing_to_wait_for_is_fine():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=2)
    pool.put(pool.get())
    assert in_the_hub(lambda: pool.close(timeout=5)) == [[]]
    assert gate.live == 0


def test_get_in_the_hub_that_would_have_to_wait_says_so():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=1)
    item = pool.get()
    [raised] = in_the_hub(pool.get)
    assert isinstance(raised, HubWouldBlock)
    assert pool.waiting() == 0
    pool.put(item)
    assert in_the_hub(pool.get) == [item]
    pool.put(item)
    full_check(pool, gate)


def test_pool_closes_at_the_end_of_its_with_block():
    gate = Gate()
    with make(ConnectionPool, gate) as pool:
        assert isinstance(pool, ConnectionPool)
        with pool.item():
            pass
        assert gate.live == 1
    assert pool.closed
    assert gate.live == 0


@pytest.mark.parametrize("way_out", [OSError, gevent.GreenletExit, gevent.Timeout, SystemExit])
def test_pool_closes_when_its_with_block_is_left_by_an_error(way_out):
    gate = Gate()
    pool = make(ConnectionPool, gate)
    pool.put(pool.get())
    with pytest.raises(way_out), pool:
        raise way_out
    assert pool.closed
    assert gate.live == 0


# Resize


@both
@pytest.mark.parametrize("how", ["resize", "max_size"])
def test_resize_up_with_three_waiters_serves_them_all_at_once(kind, how):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    waiters = [spawn(pool.get) for _ in range(4)]
    settle()
    if how == "resize":
        pool.resize(4)
    else:
        pool.max_size = 4
    settle()
    assert [waiter.ready() for waiter in waiters] == [True, True, True, False]
    assert gate.live == 4
    pool.put(item)
    for waiter in waiters[:3]:
        pool.put(waiter.get())
    settle()
    pool.put(waiters[3].get(block=False))
    full_check(pool, gate)


def test_resize_down_destroys_the_idle_surplus_now():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=5)
    items = take(pool)
    for item in items:
        pool.put(item)
    pool.resize(2)
    assert [item.destroyed for item in items] == [True, True, True, False, False]
    assert pool.current_size == gate.live == 2
    full_check(pool, gate)


def test_resize_down_of_a_stack_destroys_the_longest_idle():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=5, order_as_stack=True)
    items = take(pool)
    for item in items:
        pool.put(item)
    pool.resize(2)
    assert [item.destroyed for item in items] == [True, True, True, False, False]
    assert pool.get() is items[-1]


def test_resize_down_destroys_the_surplus_in_use_as_it_comes_back():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=5)
    items = take(pool)
    pool.resize(2)
    assert gate.live == 5
    for item in items:
        pool.put(item)
    assert [item.destroyed for item in items] == [True, True, True, False, False]
    full_check(pool, gate)


def test_resize_down_sheds_idle_items_before_those_in_use():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=5)
    items = take(pool)
    pool.put(items[0])
    pool.put(items[1])
    pool.resize(4)
    assert [item.destroyed for item in items] == [True, False, False, False, False]
    pool.resize(1)
    assert [item.destroyed for item in items] == [True, True, False, False, False]
    for item in items[2:]:
        pool.put(item)
    assert [item.destroyed for item in items] == [True, True, True, True, False]
    full_check(pool, gate)


def test_resize_down_while_items_are_destroyed_already_does_not_destroy_too_many():
    gate = Gate(destroy=(never,))
    pool = make(ConnectionPool, gate, max_size=5, destroy_timeout=None)
    items = take(pool)
    for item in items[:3]:
        pool.put(item)
    pool.discard(items[3])
    pool.discard(items[4])
    pool.resize(3)
    settle()
    assert gate.calls["destroy"] == 2
    assert len(pool.free_items) == 3
    pool.resize(2)
    settle()
    assert gate.calls["destroy"] == 3


def test_put_while_items_are_destroyed_already_does_not_destroy_too_many():
    gate = Gate(destroy=(never,))
    pool = make(ConnectionPool, gate, max_size=3, destroy_timeout=None)
    items = take(pool)
    pool.resize(2)
    for item in items:
        pool.put(item)
    settle()
    assert gate.calls["destroy"] == 1
    assert list(pool.free_items) == items[1:]


def test_plain_pool_drops_the_surplus_as_it_comes_back():
    gate = Gate()
    pool = make(Pool, gate, max_size=5)
    items = take(pool)
    pool.resize(2)
    while items:
        pool.put(items.pop(0))
    assert gate.dropped == 3
    assert pool.current_size == gate.live == 2
    full_check(pool, gate)


@both
def test_resize_down_with_waiters_serves_them_from_what_is_left(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=3)
    items = take(pool)
    served = []

    def work(number):
        with pool.item() as item:
            served.append(number)
            item.use()

    waiters = [spawn(work, number) for number in range(10)]
    settle()
    pool.resize(1)
    while items:
        pool.put(items.pop())
    gevent.joinall(waiters, timeout=5)
    assert served == list(range(10))
    assert pool.current_size == gate.live == 1
    full_check(pool, gate)


@both
@pytest.mark.parametrize("seed", range(3))
def test_grow_and_shrink_1000_times_at_random_is_exact(kind, seed):
    gate = Gate(ok, slow, error, destroy=(ok, slow), seed=seed)
    pool = make(kind, gate, max_size=5)
    choose = random.Random(seed)
    over = False

    def work():
        while not over:
            try:
                with pool.item() as item:
                    item.use()
            except OSError:
                gevent.sleep(0)

    workers = [spawn(work) for _ in range(12)]
    for _ in range(1000):
        if choose.random() < 0.5:
            pool.resize(choose.randint(1, 9))
        else:
            pool.max_size = choose.randint(1, 9)
        if choose.random() < 0.1:
            gevent.sleep(0)
    pool.resize(4)
    over = True
    gevent.joinall(workers, timeout=10)
    assert all(worker.successful() for worker in workers)
    pool.resize(3)
    if kind is ConnectionPool:
        until(lambda: pool.current_size <= 3 and all_gone(pool))
    else:  # its idle surplus goes as it is put back
        for item in take(pool, len(pool.free_items)):
            pool.put(item)
        del item
    full_check(pool, gate)


# Dropped


@both
@pytest.mark.parametrize("used", [False, True])
def test_pool_dropped_without_close_is_collected(kind, used):
    gate = Gate()
    pool = make(kind, gate, max_size=2)
    if used:
        held = take(pool)

        def wait(pool):
            with pytest.raises(gevent.GreenletExit):  # whose traceback refers to the pool
                pool.get()

        waiter = spawn(wait, pool)
        settle()
        waiter.kill()
        pool.put(held.pop())
        gc.collect()
    gone = weakref.ref(pool)
    greenlets = len([thing for thing in gc.get_objects() if isinstance(thing, gevent.Greenlet)])
    del pool
    assert gone() is None, "at once: nothing refers back to it"
    gc.collect()
    after = len([thing for thing in gc.get_objects() if isinstance(thing, gevent.Greenlet)])
    assert after <= greenlets
    if used:
        assert gate.live <= 1


def test_closed_pool_is_collected():
    pool = make(ConnectionPool, Gate(slow, destroy=(slow,)), max_size=2)
    pool.put(pool.get())
    pool.close(timeout=5)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None


# Time: the timeout of a get covers all that it does


def ends_before(reference, act):
    """Run *act* in a greenlet; return what it raised, which must be before *reference* s."""
    watch = spawn(gevent.sleep, reference)
    runner = spawn(act)
    gevent.wait([runner, watch], count=1)
    assert runner.ready(), f"still running when {reference} s were over"
    watch.kill()
    return runner.exception


@both
def test_timeout_covers_waiting(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    raised = ends_before(5, lambda: pool.get(timeout=0.005))
    assert isinstance(raised, PoolTimeout)
    assert isinstance(raised, TimeoutError)
    pool.put(item)
    full_check(pool, gate)


class Ends:
    """In which order a get of 0.1 s and a timer end that begins as its create() does.

    The timer takes longer than what is then left of the 0.1 s, and less than
    another 0.1 s; however busy the machine is, timers go off in their order.
    """

    def __init__(self):
        self.seen = []
        self.created = False

    def create(self):
        self.created = True
        self.seen.clear()
        spawn(self.watch)
        never()

    def watch(self):
        with gevent.Timeout(0.08, False):
            never()
        self.seen.append("timer")

    def get(self, pool):
        try:
            pool.get(timeout=0.1)
        finally:
            self.seen.append("get")


@both
def test_timeout_covers_waiting_and_creating_together(kind):
    """Half of it is spent in line, the other half and more in create(): it ends at the whole."""
    ends = Ends()
    while not ends.created:  # or all of the time went by in line
        failing = Event()

        def fail(failing=failing):
            failing.wait()
            error()

        gate = Gate(fail, ends.create, ok)
        pool = make(kind, gate, max_size=1)
        first = spawn(pool.get)
        second = spawn(ends.get, pool)
        settle()
        gevent.sleep(0.05)
        failing.set()
        gevent.joinall([first, second], timeout=5)
        assert isinstance(first.exception, OSError)
        assert isinstance(second.exception, PoolTimeout)
    assert ends.seen[0] == "get", "commons-pool needs twice the time"
    full_check(pool, gate)


@pytest.mark.parametrize("destroy", [ok, slow])
def test_timeout_covers_checking_and_creating_together(destroy):
    """A check of half the time says no, and the create that follows would last for ever."""

    def slow_no():
        gevent.sleep(0.05)
        return False

    ends = Ends()
    while not ends.created:  # or all of the time went by in check()
        gate = Gate(ok, ends.create, check=(slow_no,), destroy=(destroy,))
        pool = make(ConnectionPool, gate, max_size=1)
        pool.put(pool.get())
        gevent.sleep(0.001)
        getter = spawn(ends.get, pool)
        getter.join(timeout=5)
        assert isinstance(getter.exception, PoolTimeout)
    assert ends.seen[0] == "get"
    full_check(pool, gate)


def test_timeout_cuts_off_a_check_that_hangs():
    gate = Gate(check=(never,))
    pool = make(ConnectionPool, gate, max_size=1)
    item = pool.get()
    pool.put(item)
    gevent.sleep(0.001)
    raised = ends_before(5, lambda: pool.get(timeout=0.005))
    assert isinstance(raised, PoolTimeout)
    assert item.destroyed
    full_check(pool, gate)


@both
def test_timeout_0_with_an_idle_item_succeeds(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    pool.put(item)
    assert pool.get(timeout=0) is item
    pool.put(item)
    gevent.sleep(0.001)
    with pool.item(timeout=0) as again:
        assert again is item


@both
def test_timeout_0_with_a_free_slot_succeeds_if_create_does_not_wait(kind):
    gate = Gate(ok, slow)
    pool = make(kind, gate, max_size=2)
    item = pool.get(timeout=0)
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0)
    assert pool.free() == 1
    pool.put(item)


@both
@pytest.mark.parametrize("timeout", [0, -1])
def test_timeout_0_with_nothing_to_be_had_fails_after_one_look(kind, timeout):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    with pytest.raises(PoolTimeout):
        pool.get(timeout=timeout)
    assert pool.waiting() == 0
    pool.put(item)
    full_check(pool, gate)


@both
def test_timeout_none_waits(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    waiter = spawn(pool.get, timeout=None)
    settle()
    gevent.sleep(0.02)
    assert not waiter.ready()
    pool.put(item)
    settle()
    assert waiter.get(block=False) is item
