"""Fairness and stalls: hazards.md, section 3."""

import gc
from time import perf_counter

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.exceptions import LoopExit

from gpools import ConnectionPool, Pool, PoolTimeout
from tests.hostile import Gate, full_check, never, ok, settle, slow, spawn
from tests.waiting import until
from tests.watching import both, counting_switches, invariants_hold, make  # noqa: F401


def take(pool, size=None):
    return [pool.get() for _ in range(pool.max_size if size is None else size)]


# Order


class Trusting(ConnectionPool):
    """Its items go out unchecked, by the shortest way."""

    def __init__(self, **settings):
        super().__init__(check_after=60, **settings)


each = pytest.mark.parametrize("kind", [Pool, ConnectionPool, Trusting])


@each
def test_1000_waiters_are_served_in_the_order_they_came(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=3)
    items = take(pool)
    served = []

    def wait(number):
        with pool.item() as item:
            served.append(number)
            item.use()

    waiters = [spawn(wait, number) for number in range(1000)]
    settle()
    assert pool.waiting() == 1000
    for item in items:
        pool.put(item)
    gevent.joinall(waiters, timeout=20)
    assert served == list(range(1000))
    assert gate.created == 3
    full_check(pool, gate)


@each
@pytest.mark.parametrize("stack", [False, True])
def test_waiters_are_served_in_the_order_they_came_whatever_the_order_of_items(kind, stack):
    gate = Gate()
    pool = make(kind, gate, max_size=3, order_as_stack=stack)
    items = take(pool)
    served = []
    waiters = [spawn(lambda n=n: (pool.get(), served.append(n))) for n in range(3)]
    settle()
    for item in items:
        pool.put(item)
    gevent.joinall(waiters, timeout=5)
    assert served == [0, 1, 2]


@each
def test_releaser_that_gets_again_at_once_goes_behind_the_waiters(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    order = []

    def wait(name):
        with pool.item():
            order.append(name)

    waiters = [spawn(wait, name) for name in "ab"]
    settle()
    pool.put(item)
    with pool.item():
        order.append("releaser")
    gevent.joinall(waiters)
    assert order == ["a", "b", "releaser"]


@each
def test_newcomer_in_the_turn_of_a_put_goes_behind_the_waiters(kind):
    """The item lies on the shelf for a moment, and it is not the newcomer's."""
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    newcomer = spawn(pool.get)
    pool.put(item)
    settle()
    assert waiter.ready()
    assert not newcomer.ready()
    pool.put(waiter.get())
    settle()
    assert newcomer.get(block=False) is item


@each
def test_newcomer_does_not_take_the_slot_of_a_failed_create_before_the_waiters(kind):
    failing = Event()

    def fail():
        failing.wait()
        raise OSError

    gate = Gate(fail, ok)
    pool = make(kind, gate, max_size=1)
    first, second = spawn(pool.get), spawn(pool.get)
    settle()
    failing.set()
    third = spawn(pool.get)
    settle()
    assert isinstance(first.exception, OSError)
    assert second.ready()
    assert not third.ready()
    pool.put(second.get())
    settle()
    assert third.ready()


@each
def test_greedy_loop_lets_each_of_five_waiters_have_its_turn(kind):
    """Six of the pools measured serve them 0 times in 2 s."""
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    served = []

    def loop(name, pause):
        while len(served) < 120:
            with pool.item() as item:
                served.append(name)
                item.use()
            if pause:
                gevent.sleep(0)

    loops = [spawn(loop, "greedy", pause=False)]
    loops += [spawn(loop, name, pause=False) for name in "abcde"]
    gevent.joinall(loops, timeout=20)
    rounds = [served[i : i + 6] for i in range(0, 120, 6)]
    assert rounds == [["greedy", *"abcde"]] * 20


def test_greenlet_whose_idle_item_was_dead_keeps_its_turn():
    """The others wait no longer for it than they would have for a sound one."""
    gate = Gate(check=(lambda: False, ok), destroy=(slow,))
    pool = make(ConnectionPool, gate, max_size=1)
    pool.put(pool.get())
    gevent.sleep(0.001)
    order = []

    def wait(name):
        with pool.item():
            order.append(name)

    waiters = [spawn(wait, name) for name in "abc"]
    gevent.joinall(waiters, timeout=5)
    assert order == ["a", "b", "c"]
    full_check(pool, gate)


def test_two_greenlets_whose_idle_items_were_dead_keep_their_order():
    """The first is back in line before the second one's check says no."""
    ends = [Event(), Event()]
    gate = Gate(check=(lambda: False, lambda: False, ok))
    gate.behaviours["destroy"] = (ends[0].wait, ends[1].wait, ok)
    pool = make(ConnectionPool, gate, max_size=2)
    for item in take(pool):
        pool.put(item)
    gevent.sleep(0.001)
    served = []
    waiters = [spawn(lambda n=n: (pool.get(), served.append(n))) for n in "ab"]
    settle()
    assert gate.calls["check"] == 2
    assert pool.waiting() == 2
    ends[0].set()
    settle()
    assert served == ["a"]
    ends[1].set()
    gevent.joinall(waiters, timeout=5)
    assert served == ["a", "b"]


def test_newcomer_takes_nothing_while_one_whose_item_was_dead_lets_it_go():
    """That takes a turn of the hub, in which the newcomer finds a sound item idle."""
    gate = Gate(check=(lambda: False, ok), destroy=(slow,))
    pool = make(ConnectionPool, gate, max_size=2)
    for item in take(pool):
        pool.put(item)
    del item
    gevent.sleep(0.001)
    served = []

    def wait(name):
        item = pool.get()
        served.append((name, item.number))
        return item

    waiters = [spawn(wait, name) for name in "ab"]
    gevent.joinall(waiters, timeout=5)
    assert served == [("a", 2), ("b", 3)]
    assert pool.stats().waits == 1, "a took it without standing in line"


@pytest.mark.parametrize("killed", [False, True])
def test_place_that_is_given_up_lets_the_next_in_line_in(killed):
    """Two items come back while a lets his dead one go; b once slept beside the second."""
    go = Event()
    gate = Gate(check=(lambda: go.wait() and False, ok), destroy=(never,))
    pool = make(ConnectionPool, gate, max_size=3)
    *held, idle = take(pool)
    pool.put(idle)
    gevent.sleep(0.001)
    a, b = spawn(pool.get), spawn(pool.get)
    settle()
    assert pool.waiting() == 1
    go.set()  # a's check says no, and b's turn would come in the same turn of the hub
    for item in held:
        pool.put(item)
    if killed:
        a.kill(block=False)
    settle()
    assert a.ready()
    assert b.get(block=False) is held[0 if killed else 1]
    assert killed or a.get(block=False) is held[0]


def test_one_whose_item_was_dead_goes_before_those_who_came_during_its_check():
    gate = Gate(check=(lambda: slow() or False, ok), destroy=(never,))
    pool = make(ConnectionPool, gate, max_size=2)
    held, idle = take(pool)
    pool.put(idle)
    gevent.sleep(0.001)
    served = []

    def wait(name):
        item = pool.get()
        served.append((name, item))

    waiters = [spawn(wait, name) for name in "abc"]
    gevent.sleep(0)
    assert pool.waiting() == 2, "b and c came while the item was checked"
    until(lambda: pool.waiting() == 3)
    pool.put(held)
    settle()
    assert served == [("a", held)]
    gevent.killall(waiters)


# Cost


@each
def test_one_put_wakes_exactly_one_waiter(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=2)
    items = take(pool)
    waiters = [spawn(pool.get) for _ in range(100)]
    settle()
    with counting_switches() as counts:
        pool.put(items[0])
        settle()
    woken = [waiter for waiter in waiters if counts.get(waiter)]
    assert woken == waiters[:1]
    assert counts[waiters[0]] == 1
    assert pool.waiting() == 99


@each
def test_put_with_nobody_in_line_schedules_nothing_and_switches_nowhere(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    with counting_switches() as counts:
        for _ in range(100):
            pool.put(item)
            assert not pool._line._scheduled
            with pool.item() as item:
                pass
            item = pool.get()
    assert counts == {}


@each
@pytest.mark.parametrize("waiters", [0, 3])
def test_put_never_switches(kind, waiters):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    waiting = [spawn(pool.get) for _ in range(waiters)]
    settle()
    with counting_switches() as counts:
        pool.put(item)
    assert counts == {}
    gevent.killall(waiting)


@both
def test_25000_waiters_are_served_at_a_cost_that_grows_as_their_number(kind):
    def serve(count):
        """Return the switches and the seconds that it takes to serve so many."""
        gate = Gate()
        pool = make(kind, gate, max_size=3)
        items = take(pool)
        served = []

        def wait(number):
            with pool.item():
                served.append(number)

        waiters = [gevent.spawn(wait, number) for number in range(count)]
        settle()
        assert pool.waiting() == count
        start = perf_counter()
        with counting_switches() as counts:
            for item in items:
                pool.put(item)
            settle()
        seconds = perf_counter() - start
        assert served == list(range(count))
        assert pool.free() == 3
        return sum(counts[waiter] for waiter in waiters), sum(counts.values()), seconds

    few_woken, few_switches, few_seconds = serve(2_500)
    many_woken, many_switches, many_seconds = serve(25_000)
    assert few_woken == 2_500
    assert many_woken == 25_000
    assert many_switches < 10.5 * few_switches
    assert many_seconds < 10 * few_seconds * 5, "a line searched for each waiter costs 100 times"


@both
def test_killing_one_of_10000_waiters_costs_no_more_than_one_of_100(kind):
    def kill_from_the_middle(count):
        pool = kind(max_size=1, create=object)
        item = pool.get()
        waiters = [gevent.spawn(pool.get) for _ in range(count)]
        settle()
        middle = waiters[count // 2 - 20 : count // 2 + 20]
        gc.disable()  # it would look at all the others
        start = perf_counter()
        gevent.killall(middle)
        seconds = perf_counter() - start
        gc.enable()
        assert pool.waiting() == count - 40
        gevent.killall(waiters)
        assert pool.waiting() == 0
        pool.put(item)
        return seconds

    few = min(kill_from_the_middle(100) for _ in range(3))
    many = min(kill_from_the_middle(10_000) for _ in range(2))
    assert many < 15 * few, "a line that is searched costs 100 times as much"


@each
def test_crowd_that_never_blocks_leaves_timers_and_sockets_their_turns(kind):
    """Each takes and gives back without another wait than the line's."""
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    here, there = socket.socketpair()
    turns = {"timer": 0, "socket": 0, "crowd": 0}
    over = []

    def greedy():
        while not over:
            with pool.item():
                turns["crowd"] += 1
                give_up()

    def ticks():
        for _ in range(10):
            gevent.sleep(0.001)
            turns["timer"] += 1
            there.send(b"x")

    def reads():
        for _ in range(10):
            assert here.recv(1) == b"x"
            turns["socket"] += 1

    # The first of the crowd would never come to wait, were it alone with an idle item.
    item = pool.get()
    crowd = [spawn(greedy) for _ in range(20)]
    others = [spawn(ticks), spawn(reads)]
    settle()
    pool.put(item)

    def rescue():
        over.append("starved")

    # No timer gets us out of a hub that is starved: the crowd itself must give up.
    limit = perf_counter() + 20

    def give_up():
        if perf_counter() > limit:
            over.append("starved")

    try:
        gevent.joinall(others, timeout=20)
    finally:
        starved = list(over)
        over.append("done")
        gevent.joinall(crowd, timeout=5)
        here.close()
        there.close()
    assert starved == []
    assert turns["timer"] == turns["socket"] == 10
    assert turns["crowd"] > 100
    assert all(one.successful() for one in crowd + others)
    full_check(pool, gate)


# Slow verbs


def test_discard_with_waiters_has_the_first_of_them_make_a_replacement_at_once():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=1)
    item = pool.get()
    waiters = [spawn(pool.get) for _ in range(3)]
    settle()
    pool.discard(item)
    settle()
    assert [waiter.ready() for waiter in waiters] == [True, False, False]
    assert waiters[0].get() is not item
    assert gate.created == 2
    assert gate.destroyed == 1
    gevent.killall(waiters)


@each
def test_slow_create_delays_no_put_and_no_other_get(kind):
    creating = Event()
    gate = Gate(ok, creating.wait, ok)
    pool = make(kind, gate, max_size=3)
    item = pool.get()
    slow_one = spawn(pool.get)
    settle()
    assert gate.creating == 1

    with counting_switches() as counts:
        pool.put(item)
        assert pool.get() is item
        pool.put(item)
        with pool.item():
            third = pool.get()
    assert counts == {}
    pool.put(third)
    assert not slow_one.ready()
    creating.set()
    settle()
    pool.put(slow_one.get(block=False))
    full_check(pool, gate)


def test_slow_create_does_not_stop_those_in_line_behind_it():
    creating = Event()
    gate = Gate(ok, creating.wait, ok)
    pool = make(ConnectionPool, gate, max_size=2)
    item = pool.get()
    slow_one = spawn(pool.get)
    settle()
    waiters = [spawn(pool.get) for _ in range(2)]
    settle()
    pool.put(item)
    settle()
    assert waiters[0].get(block=False) is item
    pool.put(item)
    settle()
    assert waiters[1].get(block=False) is item
    assert not slow_one.ready()
    creating.set()
    settle()
    assert slow_one.ready()


def test_slow_destroy_delays_no_put_and_no_other_get():
    destroying = Event()
    gate = Gate(destroy=(destroying.wait, ok))
    pool = make(ConnectionPool, gate, max_size=3)
    first, second, third = take(pool)
    discarder = spawn(pool.discard, first)
    settle()
    assert discarder.ready(), "nor the one who discards"
    assert pool.current_size == 3

    pool.put(second)
    assert pool.get() is second
    waiter = spawn(pool.get)
    settle()
    pool.put(third)
    settle()
    assert waiter.get(block=False) is third

    waiter = spawn(pool.get)
    settle()
    assert not waiter.ready(), "its slot is not free yet"
    destroying.set()
    settle()
    assert waiter.ready()


@pytest.mark.parametrize("how", ["discard", "reset fails", "resize", "close"])
def test_slow_destroys_run_side_by_side(how):
    destroying = Event()
    gate = Gate(destroy=(destroying.wait,))
    pool = make(ConnectionPool, gate, max_size=5)
    items = take(pool)
    if how == "reset fails":
        gate.behaviours["reset"] = (lambda: 1 / 0,)
    for item in items:
        (pool.discard if how == "discard" else pool.put)(item)
    if how == "resize":
        pool.resize(1)
    if how == "close":
        pool.close()
    settle()
    assert gate.calls["destroy"] == (4 if how == "resize" else 5)
    assert gate.live == 5
    destroying.set()
    settle()
    assert gate.live == pool.current_size == (1 if how == "resize" else 0)


# Deadlocks


def test_greenlet_that_needs_two_of_one_is_told_that_it_holds_it_itself():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=1)

    def greedy():
        with pool.item(), pool.item(timeout=0.005):
            pass

    greenlet = spawn(greedy)
    greenlet.name = "the-greedy"
    greenlet.join(5)
    message = str(greenlet.exception)
    assert isinstance(greenlet.exception, PoolTimeout)
    assert "1 of 1 in use" in message
    assert "'the-greedy'" in message
    assert "at test_hazards_3_fairness.py:" in message
    full_check(pool, gate)


def test_n_greenlets_that_need_two_of_n_each_are_told_who_holds_them():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=4)
    greenlets = []
    told = []

    def greedy():
        with pool.item():
            gevent.sleep(0)
            try:
                pool.get(timeout=0.01)
            except PoolTimeout as error:
                told.append(str(error))
                gevent.sleep(0.01)

    for number in range(4):
        greenlets.append(spawn(greedy))
        greenlets[-1].name = f"greedy-{number}"
    gevent.joinall(greenlets, timeout=5)
    assert len(told) == 4
    assert all("4 of 4 in use" in message and "'greedy-0'" in message for message in told)
    full_check(pool, gate)


@each
def test_plain_deadlock_ends_in_a_timeout(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    with pool.item(), pytest.raises(PoolTimeout, match="1 of 1 in use, 0 still waiting"):
        pool.get(timeout=0.005)
    full_check(pool, gate)


@pytest.mark.hub_errors
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Pool, {}),
        (ConnectionPool, {}),
        (ConnectionPool, {"max_creating": 1}),
        (ConnectionPool, {"max_idle": 60, "max_age": 60}),
        (ConnectionPool, {"leak_after": 60}),
    ],
)
def test_wait_with_no_other_greenlet_alive_ends_in_loopexit_with_state_intact(kind, settings):
    """In a thread of its own, whose hub has nothing else to do but to sweep the pool."""

    def alone():
        gate = Gate()
        pool = kind(max_size=1, create=gate.create, **settings)
        item = pool.get()
        for _ in range(2):
            with pytest.raises(LoopExit):
                pool.get()
        assert pool.waiting() == 0
        pool.put(item)
        assert pool.get() is item
        waiter = gevent.spawn(pool.get)
        gevent.sleep(0)
        pool.put(item)
        assert waiter.get(timeout=1) is item
        gevent.get_hub().destroy(destroy_loop=True)
        return repr(pool)

    shown = gevent.get_hub().threadpool.apply(alone)
    assert shown == f"<{kind.__name__} 0 idle, 1 in use, 0 waiting, max 1>"
