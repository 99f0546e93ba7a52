"""KeyedPool: a pool for each key, under one limit."""

import gc
import os
import random
import sys
import weakref

import gevent
import gevent.os
import pytest
from gevent.event import Event

from gpools import (
    ConnectionPool,
    NotInUse,
    PoolClosed,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    WrongThread,
)
from gpools.keyed import KeyedPool
from tests.hostile import Gate, error, killed, never, ok, settle, slow, spawn, timed_out
from tests.waiting import until
from tests.watching import wrong_in_keys


class Keyed(KeyedPool):
    """A KeyedPool whose items all come from one *gate*, each knowing its key."""

    def __init__(self, gate, max_size=10, *, per_key=4, keys=None, **settings):
        def make_pool(key):
            def create():
                (keys or {}).get(key, ok)()
                item = gate.create()
                item.key = key
                return item

            self.made.append(key)
            return ConnectionPool(
                **{"max_size": per_key, **gate.verbs, "create": create, **settings}
            )

        self.made = []
        self.crowd = []  # greenlets to be killed in the end
        super().__init__(make_pool, max_size)


def holding(pools, *keys):
    return [(key, pools.get(key)) for key in keys]


def put_all(pools, held):
    for key, item in held:
        pools.put(key, item)


def calm(pools, gate):
    """Assert that nothing is in use, nobody waits, and the books balance."""
    until(lambda: not any(pool.stats().destroying for pool in pools.pools().values()))
    settle()
    idle = sum(len(pool.free_items) for pool in pools.pools().values())
    assert pools.size == idle == gate.live, (pools, gate)
    assert gate.peak <= pools.max_size
    assert gate.double_uses == gate.double_destroys == []


# One key.


def test_each_key_has_items_of_its_own():
    gate = Gate()
    pools = Keyed(gate)
    with pools.item("a") as a, pools.item("b") as b:
        assert (a.key, b.key) == ("a", "b")
    with pools.item("a") as again:
        assert again is a

    assert pools.made == ["a", "b"]
    calm(pools, gate)


def test_get_and_put():
    gate = Gate()
    pools = Keyed(gate)
    item = pools.get("a")
    assert repr(pools) == "<Keyed 1 keys, 0 idle, 1 in use, 0 waiting, max 10>"
    pools.put("a", item)

    assert pools.get("a", timeout=0) is item
    pools.put("a", item)
    calm(pools, gate)


def test_discard():
    gate = Gate()
    pools = Keyed(gate)
    pools.discard("a", pools.get("a"))

    assert gate.live == pools.size == 0
    assert pools.pools() == {}


def test_an_item_left_by_an_error_is_discarded():
    gate = Gate()
    pools = Keyed(gate)
    with pytest.raises(KeyError), pools.item("a"):
        raise KeyError
    with gevent.Timeout(0.001, False), pools.item("a"):
        gevent.sleep(1)

    assert gate.destroyed == 2
    assert pools.pools() == {}


def test_an_item_serves_one_block():
    pools = Keyed(Gate())
    block = pools.item("a")
    with block, pytest.raises(RuntimeError, match="one with block"), block:
        pass


def test_a_block_that_is_left_without_an_item_says_so():
    pools = Keyed(Gate())
    block = pools.item("a")
    with pytest.raises(RuntimeError, match="was not entered"):
        block.__exit__(None, None, None)
    with block:
        pass
    with pytest.raises(RuntimeError, match="left before"):
        block.__exit__(None, None, None)
    assert pools.size == 1


def test_a_put_to_another_key_is_refused():
    gate = Gate()
    pools = Keyed(gate)
    item = pools.get("a")
    with pytest.raises(NotInUse):
        pools.put("b", item)
    with pytest.raises(NotInUse):
        pools.discard("b", item)
    pools.put("a", item)
    with pytest.raises(NotInUse):
        pools.put("a", item)

    assert list(pools.pools()) == ["a"]
    calm(pools, gate)


def test_the_timeout_of_a_key_and_that_of_a_get():
    pools = Keyed(Gate(), 1, timeout=0.001)
    held = holding(pools, "a")
    for wait in (
        lambda: pools.get("a"),
        lambda: pools.get("b", timeout=0.002),
        lambda: pools.item("b", timeout=0).__enter__(),
    ):
        with pytest.raises(PoolTimeout):
            wait()
    waiter = spawn(pools.get, "b", timeout=None)
    gevent.sleep(0.005)
    assert not waiter.ready()

    put_all(pools, held)
    assert waiter.get(timeout=1).key == "b"


def test_a_timeout_under_the_limit_in_all_names_the_holders_of_other_keys():
    """It said that create() must be slow, where another key had everything."""
    pools = Keyed(Gate(), 3)
    held = holding(pools, "a", "b", "a")
    with pytest.raises(PoolTimeout) as late:
        pools.get("b", timeout=0.001)

    told = str(late.value)
    assert "(1 of 4 in use, and 3 of 3 of all keys, 0 still waiting; longest held " in told
    assert told.endswith("raise the max_size of all keys, or hold items for less time")
    assert [hold.item for hold in late.value.holders] == [item for _, item in held]
    put_all(pools, held)


def test_a_timeout_under_the_limit_of_a_key_names_the_holders_of_that_key():
    pools = Keyed(Gate(), 3, per_key=1)
    held = holding(pools, "a", "b")
    with pytest.raises(PoolTimeout, match=r"\(1 of 1 in use, 0 still.* raise max_size") as late:
        pools.get("b", timeout=0.001)

    assert [hold.item for hold in late.value.holders] == [held[1][1]]
    put_all(pools, held)


@pytest.mark.parametrize("max_size", [0, -1, 1.5, None, "3", True])
def test_a_limit_that_is_none_is_refused(max_size):
    with pytest.raises(ValueError, match="max_size is"):
        KeyedPool(ConnectionPool, max_size)


def test_make_pool_must_be_callable():
    with pytest.raises(TypeError, match="make_pool must be callable"):
        KeyedPool({"a": 1})


def test_repr_tells_the_name():
    pools = KeyedPool(lambda key: ConnectionPool(create=object), 3, name="api")
    item = pools.get("secret-key")

    assert repr(pools) == "<KeyedPool 'api' 1 keys, 0 idle, 1 in use, 0 waiting, max 3>"
    assert (pools.size, pools.max_size) == (1, 3)
    pools.put("secret-key", item)
    assert repr(pools) == "<KeyedPool 'api' 1 keys, 1 idle, 0 in use, 0 waiting, max 3>"


# The limits.


def test_the_limit_of_a_key_holds():
    gate = Gate()
    pools = Keyed(gate, 10, per_key=2)
    other = holding(pools, "b")
    held = holding(pools, "a", "a")
    with pytest.raises(PoolTimeout):
        pools.get("a", timeout=0.001)

    put_all(pools, held + other)
    assert gate.peak == 3


def test_the_limit_in_all_holds():
    gate = Gate()
    pools = Keyed(gate, 3)
    held = holding(pools, "a", "b", "c")
    with pytest.raises(PoolTimeout):
        pools.get("d", timeout=0.001)

    put_all(pools, held)
    assert gate.peak == 3


def test_many_at_once_with_a_create_that_switches_keep_the_limit():
    gate = Gate(slow)
    pools = Keyed(gate, 3)
    getters = [spawn(lambda key: pools.item(key).__enter__(), n) for n in range(20)]
    gevent.sleep(0.01)

    assert gate.peak == 3
    gevent.killall(getters)


def test_an_item_that_is_slow_to_go_still_counts():
    gate = Gate(destroy=(slow,))
    pools = Keyed(gate, 1)
    pools.discard("a", pools.get("a"))
    assert pools.size == 1
    item = pools.get("b", timeout=1)

    assert gate.peak == 1
    pools.put("b", item)


# Freed capacity.


def served_in_turn(pools, *keys):
    """Start a waiter for each key; return the list of keys as they are served."""
    served = []

    def serve(key):
        item = pools.get(key)
        served.append(key)
        return item

    waiters = []
    for key in keys:
        waiters.append(spawn(serve, key))
        settle()
    return served, waiters


def test_a_freed_slot_goes_to_the_key_that_has_waited_longest():
    pools = Keyed(Gate(), 2)
    held = holding(pools, "a", "b")
    served, waiters = served_in_turn(pools, "c", "d", "e")
    for n, (key, item) in enumerate(held):
        pools.discard(key, item)
        settle()
        assert served == ["c", "d", "e"][: n + 1]
    pools.discard("c", waiters[0].get())
    settle()

    assert served == ["c", "d", "e"]


def test_two_slots_freed_in_one_turn_go_to_two_keys():
    """The second key used to wait for ever, with a slot free."""
    gate = Gate()
    pools = Keyed(gate, 2)
    held = holding(pools, "a", "b")
    served, _waiters = served_in_turn(pools, "c", "d")
    for key, item in held:
        pools.discard(key, item)
    settle()

    assert served == ["c", "d"]
    assert gate.peak == 2


def test_a_slot_is_passed_on_by_whoever_got_an_item_instead():
    """A stood before B for the slot, took an item of its own, and B was forgotten."""
    pools = Keyed(Gate(), 2)
    (_, a), (_, b) = holding(pools, "a", "b")
    served, _waiters = served_in_turn(pools, "a", "b")
    pools.discard("b", b)
    pools.put("a", a)
    settle()

    assert served == ["a", "b"]


def test_a_slot_is_passed_on_by_whoever_died_before_it_came():
    pools = Keyed(Gate(), 1)
    held = pools.get("a")
    served, waiters = served_in_turn(pools, "b", "c")
    waiters[0].kill(block=False)  # it dies in line, in the next turn of the hub
    pools.discard("a", held)
    settle()

    assert served == ["c"]


def test_a_newcomer_does_not_overtake_the_key_that_waits():
    pools = Keyed(Gate(), 1)
    held = pools.get("a")
    served, waiters = served_in_turn(pools, "b")
    pools.discard("a", held)  # b will be served in the next turn of the hub
    late = spawn(pools.get, "c")
    with pytest.raises(PoolTimeout):
        pools.get("c", timeout=0)
    settle()

    assert served == ["b"]
    pools.discard("b", waiters[0].get())
    assert late.get(timeout=1).key == "c"


def test_a_slot_that_the_longest_cannot_use_goes_to_the_next():
    """The first in line of a is a's own limit's to serve."""
    pools = Keyed(Gate(), 3, per_key=1)
    held = holding(pools, "a", "b", "c")
    served, _waiters = served_in_turn(pools, "a", "d")
    pools.discard(*held[1])
    settle()

    assert served == ["d"]


def test_raising_the_limit_of_a_key_lets_its_waiters_in():
    pools = Keyed(Gate(), 3, per_key=1)
    holding_a = holding(pools, "a")
    served, _waiters = served_in_turn(pools, "a", "a", "a")
    pools.pools()["a"].resize(4)
    settle()

    assert served == ["a", "a"]
    put_all(pools, holding_a)


# Items that make way.


def test_an_idle_item_of_another_key_makes_way():
    gate = Gate()
    pools = Keyed(gate, 2)
    put_all(pools, holding(pools, "a", "b"))
    item = pools.get("c", timeout=1)

    assert item.key == "c"
    assert gate.peak == 2
    assert set(pools.pools()) == {"b", "c"}  # a was idle for longest


def test_the_item_idle_for_longest_makes_way():
    gate = Gate()
    for order_as_stack in (False, True):
        pools = Keyed(gate, 3, order_as_stack=order_as_stack)
        old, young = holding(pools, "a", "a")
        other = holding(pools, "b")
        put_all(pools, [old, *other, young])
        pools.put("c", pools.get("c", timeout=1))

        assert old[1].destroyed
        assert not young[1].destroyed
        pools.put("c", pools.get("c", timeout=1))
        assert not other[0][1].destroyed


def test_an_item_that_comes_back_makes_way_for_another_key():
    gate = Gate()
    pools = Keyed(gate, 1)
    held = pools.get("a")
    waiter = spawn(pools.get, "b")
    settle()
    pools.put("a", held)

    assert held.destroyed
    assert waiter.get(timeout=1).key == "b"
    assert gate.peak == 1


def test_no_more_items_make_way_than_are_waited_for():
    """Three came back while the first was slow to go: one waiter needs one of them."""
    gate = Gate(destroy=(slow,))
    pools = Keyed(gate, 4)
    held = holding(pools, *"aaab")
    waiter = spawn(pools.get, "c")
    settle()
    put_all(pools, held)

    assert waiter.get(timeout=1).key == "c"
    assert gate.destroyed == 1


def test_no_more_idle_items_make_way_than_are_waited_for():
    gate = Gate(destroy=(slow,))
    pools = Keyed(gate, 4)
    put_all(pools, holding(pools, *"aabb"))
    waiters = [spawn(pools.get, key) for key in "cd"]
    gevent.joinall(waiters, timeout=1)

    assert gate.destroyed == 2
    assert gate.peak == 4


def test_what_is_on_its_way_out_counts_for_the_next_who_waits():
    gate = Gate(destroy=(slow,))
    pools = Keyed(gate, 4)
    put_all(pools, holding(pools, *"aabb"))
    waiters = []
    for key in "cd":
        waiters.append(spawn(pools.get, key))
        gevent.sleep(0)
        gevent.sleep(0)
    gevent.joinall(waiters, timeout=1)

    assert gate.destroyed == 2


def test_an_item_stays_when_another_key_has_what_it_waits_for_already():
    """Both came back in one turn of the hub, each for a line of its own or none."""
    gate = Gate()
    pools = Keyed(gate, 2)
    held = holding(pools, "a", "b")
    served, _waiters = served_in_turn(pools, "a")
    put_all(pools, held)
    settle()

    assert served == ["a"]
    assert gate.destroyed == 0


def test_an_item_that_its_own_key_does_not_need_after_all_makes_way():
    """Two came back for one who waited; the other stayed idle and another key waited on."""
    gate = Gate()
    pools = Keyed(gate, 2)
    held = holding(pools, "a", "a")
    served, _waiters = served_in_turn(pools, "a", "b")
    put_all(pools, held)
    settle()

    assert served == ["a", "b"]
    assert gate.destroyed == 1


def test_an_item_stays_with_its_line_when_the_other_key_has_one_too():
    """Only who has nothing at all may take from a line; else two busy keys take turns."""
    gate = Gate()
    pools = Keyed(gate, 2)
    held = holding(pools, "a", "b")
    served, _waiters = served_in_turn(pools, "b", "a")
    pools.put(*held[0])
    settle()

    assert served == ["a"]
    assert gate.destroyed == 0


def test_a_pool_with_a_min_size_is_refused_and_closed():
    """It would keep slots of the common limit for a key that nobody asks for."""
    gate = Gate()
    pools = KeyedPool(lambda key: ConnectionPool(min_size=3, max_size=3, **gate.verbs), 2)
    with pytest.raises(ValueError, match="min_size is 3 but must be 0 under a common limit"):
        pools.get("a")

    assert pools.pools() == {}
    assert pools.size == gate.live == 0


@pytest.mark.parametrize("made", [None, object()])
def test_a_make_pool_that_makes_no_pool_is_told_so_and_spoils_no_other_key(made):
    gate = Gate()
    pools = KeyedPool(lambda key: made if key == "bad" else ConnectionPool(**gate.verbs), 2)
    with pytest.raises(TypeError, match="make_pool must return a ConnectionPool"):
        pools.get("bad")

    assert pools.get("good")
    assert list(pools.pools()) == ["good"]


def test_a_misspelt_key_makes_no_pool():
    made = []
    pools = KeyedPool(lambda key: made.append(key) or ConnectionPool(create=object), 2)
    item = pools.get("a")
    for give_back in (pools.put, pools.discard):
        with pytest.raises(NotInUse, match="has nothing out of that key"):
            give_back("b", item)

    assert made == ["a"]


def test_tries_stay_bounded_while_a_server_is_down():
    """A forgotten pool used to take its pause with it, so that each caller tried anew."""
    gate = Gate(error)
    pools = KeyedPool(lambda key: ConnectionPool(max_creating=1, **gate.verbs), 2)
    refused = 0
    for _ in range(50):
        try:
            pools.get("a", timeout=5)
        except PoolUnavailable:
            refused += 1
        except OSError:
            pass

    assert gate.calls["create"] + refused == 50
    assert gate.calls["create"] < 10
    assert isinstance(pools.pools()["a"], ConnectionPool)


@pytest.mark.hub_errors  # a threadpool prints what its tasks raise
def test_another_thread_is_refused():
    pools = Keyed(Gate(), 2)
    pools.put("a", pools.get("a"))
    for act in (lambda: pools.get("b"), pools.recycle, pools.close):
        with pytest.raises(WrongThread, match="this Keyed belongs to thread"):
            gevent.get_hub().threadpool.apply(act)

    assert pools.size == 1


def test_idle_items_stay_while_the_limit_is_not_reached():
    gate = Gate()
    pools = Keyed(gate, 4)
    put_all(pools, holding(pools, "a", "b"))
    put_all(pools, holding(pools, "c", "d"))

    assert gate.destroyed == 0
    assert pools.size == 4


def test_an_item_stays_when_its_own_key_waits_too():
    gate = Gate()
    pools = Keyed(gate, 2)
    held = holding(pools, "a", "b")
    served, _waiters = served_in_turn(pools, "a", "c")
    pools.put(*held[0])
    settle()

    assert served == ["a"]  # who came first, and needs no new item
    assert gate.created == 2


def test_a_busy_key_does_not_starve_one_that_has_nothing():
    """Its line never ends, so no item of it is ever idle."""
    gate = Gate()
    pools = Keyed(gate, 2)
    stop = []

    def use():
        while not stop:
            with pools.item("busy") as item:
                item.use(0)

    users = [spawn(use) for _ in range(6)]
    settle_a_while()
    item = pools.get("poor", timeout=5)
    stop.append(1)

    assert item.key == "poor"
    pools.put("poor", item)
    gevent.joinall(users, timeout=5)
    calm(pools, gate)


def test_a_busy_key_does_not_starve_one_that_has_nothing_behind_one_that_has():
    """The longest waiting has an item, and could not claim another: all behind it starved."""
    gate = Gate()
    pools = Keyed(gate, 3)
    stop = []

    def use():
        while not stop:
            with pools.item("busy") as item:
                item.use(0)

    rich = pools.get("rich")  # for good
    users = [spawn(use) for _ in range(6)]
    settle_a_while()
    second = spawn(pools.get, "rich")
    settle_a_while()
    poor = spawn(pools.get, "poor")
    item = poor.get(timeout=5)
    stop.append(1)

    pools.put("poor", item)
    pools.put("rich", second.get(timeout=5))
    pools.put("rich", rich)
    gevent.joinall(users, timeout=5)
    calm(pools, gate)


def settle_a_while():
    gevent.sleep(0.005)


# Many keys.


def test_ten_thousand_keys_leave_little_behind():
    gate = Gate()
    pools = Keyed(gate, 20)
    for key in range(10_000):
        with pools.item(key):
            pass
        assert len(pools.pools()) <= 20

    assert pools.size == gate.live == 20
    assert gate.peak == 20
    assert gate.created == 10_000


def test_forgotten_pools_are_collected():
    pools = Keyed(Gate(), 2, max_idle=60, max_age=60)
    refs = []
    for key in range(10):
        with pools.item(key):
            refs.append(weakref.ref(pools.pools()[key]))
        settle()
    gc.collect()

    assert sum(ref() is not None for ref in refs) == 2


def test_the_sweeper_of_a_forgotten_pool_ends():
    """It used to go on for as long as a traceback somewhere led to the pool."""
    pools = Keyed(Gate(), max_idle=60)
    pool = pools._make_pool("a")
    pools._make_pool = lambda key: pool
    for _ in range(2):
        held = pools.get("a")
        sweeper = weakref.ref(pool._book.sweeper)
        settle()
        pools.discard("a", held)
        settle()

        assert pools.pools() == {}
        assert sweeper() is None


def test_a_key_whose_items_grew_too_old_is_forgotten():
    pools = Keyed(Gate(), max_idle=0.005)
    with pools.item("a"):
        pass

    until(lambda: not pools.pools())
    assert pools.size == 0


def test_a_key_whose_item_was_dropped_is_forgotten():
    pools = Keyed(Gate())
    pools.get("a")
    gc.collect()
    settle()

    assert pools.pools() == {}
    assert pools.size == 0


def test_a_key_is_not_forgotten_while_somebody_is_in_the_middle_of_a_get():
    """Its pool was empty for a moment, between a dead item and its successor."""
    gate = Gate(ok, error, ok, check=(lambda: False,), destroy=(slow,))
    pools = Keyed(gate)
    with pools.item("a"):
        pool = pools.pools()["a"]
    with pytest.raises(OSError, match="said no"):
        pools.get("a")
    settle()
    getter = spawn(pools.get, "a")
    settle_a_while()

    assert getter.get(timeout=1).key == "a"
    assert len(pools.pools()) == 1
    assert pools.size == sum(pool.current_size for pool in pools.pools().values())
    del pool


def test_two_pools_of_one_key_never_live_at_once():
    """A get in the middle keeps the pool that it will take its item from."""
    gate = Gate()
    pools = Keyed(gate, 2, per_key=1, keys={"a": slow})
    first, second = spawn(pools.get, "a"), spawn(pools.get, "a")
    settle()
    assert pools.made == ["a"]
    item = first.get(timeout=1)
    pools.discard("a", item)
    second.get(timeout=1)

    assert pools.made == ["a"]
    assert gate.peak == 1


def test_with_users_of_no_item_a_key_is_forgotten():
    pools = Keyed(Gate(error), 2)
    for _ in range(3):
        with pytest.raises(OSError, match="said no"):
            pools.get("a")

    assert pools.pools() == {}
    assert pools.size == 0


def test_an_item_discarded_in_its_block_costs_no_second_pool():
    """Leaving the block used to make a pool of the key that had just been forgotten."""
    gate = Gate()
    pools = Keyed(gate)
    with pools.item("a") as item:
        pools.discard("a", item)
        assert pools.pools() == {}
    assert pools.made == ["a"]

    with pools.item("b") as item:
        pools.discard("b", item)
        pools.close()


# What it costs: as much with thousands of keys as with a hundred.


def calls(act):
    """Count the calls of functions, in all greenlets, until *act* has led to rest."""
    seen = 0

    def count(frame, event, arg):
        nonlocal seen
        seen += event in ("call", "c_call")

    gc.collect()
    settle()
    gc.disable()  # what others have left is not to be counted
    sys.setprofile(count)
    try:
        act()
        settle()
    finally:
        sys.setprofile(None)
        gc.enable()
    return seen


def idle_path(keys):
    pools = Keyed(Gate(), keys)
    put_all(pools, holding(pools, *range(keys)))
    for key in range(30):
        with pools.item(key):
            pass
    yield pools
    for key in range(30):
        with pools.item(key):
            pass
    yield pools


def new_keys(keys):
    pools = Keyed(Gate(), keys + 30)
    held = holding(pools, *range(keys))
    yield pools
    held += holding(pools, *range(keys, keys + 30))
    yield pools


def new_keys_among_many_whose_server_is_down(keys):
    gate = Gate()
    down = dict.fromkeys(range(keys), error)
    pools = Keyed(gate, 100, keys=down, max_creating=1)
    for key in range(keys):
        with pytest.raises(OSError, match="said no"):
            pools.get(key)
    yield pools
    holding(pools, *range(keys, keys + 30))
    yield pools


def displacing_gets(keys):
    pools = Keyed(Gate(), keys)
    put_all(pools, holding(pools, *range(keys)))
    yield pools
    for key in range(keys, keys + 30):
        with pools.item(key):
            pass
    yield pools


def waiting(keys, gate, **settings):
    pools = Keyed(gate, 30, **settings)
    held = holding(pools, *["first"] * 4, *range(26))
    pools.crowd = [spawn(pools.get, key) for key in range(100, 100 + keys)]
    settle()
    assert sum(pool.waiting() for pool in pools.pools().values()) == keys
    return pools, held


def handing_over_what_is_discarded(keys):
    pools, held = waiting(keys, Gate())
    yield pools
    for key, item in held:
        pools.discard(key, item)
        settle()
    assert pools.size == 30
    yield pools


def handing_over_what_is_put(keys):
    pools, held = waiting(keys, Gate())
    yield pools
    for key, item in held:
        pools.put(key, item)
        settle()
    assert pools.size == 30
    yield pools


def handing_over_what_is_made_aside(keys):
    pools, held = waiting(keys, Gate(), max_creating=2)
    yield pools
    put_all(pools, held)
    yield pools


def handing_over_what_is_slow_to_go(keys):
    may_go = Event()
    pools, held = waiting(keys, Gate(destroy=(may_go.wait,)))
    yield pools
    put_all(pools, held)
    settle()
    may_go.set()
    yield pools


def handing_over_what_another_waits_for_in_its_own_key(keys):
    pools, held = waiting(keys, Gate())
    pools.crowd += [spawn(pools.get, "first") for _ in range(10)]
    yield pools
    put_all(pools, held)
    yield pools


def giving_up(keys):
    pools, held = waiting(keys, Gate())
    yield pools
    for greenlet in pools.crowd[:20]:
        greenlet.kill()
    for key in range(100 + keys // 2, 110 + keys // 2):
        with pytest.raises(PoolTimeout):
            pools.get(key, timeout=0)
    for greenlet in pools.crowd[-20:]:
        greenlet.kill()
    yield held


@pytest.mark.parametrize(
    "scene",
    [
        idle_path,
        new_keys,
        new_keys_among_many_whose_server_is_down,
        displacing_gets,
        handing_over_what_is_discarded,
        handing_over_what_is_put,
        handing_over_what_is_made_aside,
        handing_over_what_is_slow_to_go,
        handing_over_what_another_waits_for_in_its_own_key,
        giving_up,
    ],
)
def test_the_cost_does_not_depend_on_the_number_of_keys(scene, monkeypatch):
    """Each walked over all keys, which took milliseconds with a thousand of them."""
    monkeypatch.setattr("gpools._creator.LONGEST_PAUSE", 1000.0)
    costs = []
    for keys in (100, 5000):
        steps = scene(keys)
        pools = next(steps)
        costs.append(calls(lambda steps=steps: next(steps)))
        assert wrong_in_keys(pools) == []
        gevent.killall(pools.crowd)
    few, many = costs
    print(f"{few} and {many} calls")

    assert many < 1.2 * few


def test_a_hundred_thousand_operations_on_ten_keys_leave_nothing_behind():
    pools = KeyedPool(lambda key: ConnectionPool(create=Gate().create), 8)
    for n in range(100_000):
        with pools.item(n % 8 if n % 100 else 8 + n % 2):
            pass

    assert wrong_in_keys(pools) == []  # it knows how much may be left
    assert len(pools.pools()) <= 8


def test_keys_may_have_one_pool():
    gate = Gate()
    one = ConnectionPool(max_size=2, **gate.verbs)
    pools = KeyedPool(lambda key: one, 2)
    item = pools.get("db1")
    with pools.item("db1.example"):
        assert sorted(pools.pools()) == ["db1", "db1.example"]
        assert pools.size == 2
    assert wrong_in_keys(pools) == []
    pools.discard("db1.example", pools.get("db1"))
    pools.discard("db1", item)

    assert pools.pools() == {}
    assert pools.size == 0
    assert pools.get("db1")
    assert pools.size == 1


# Failures.


@pytest.mark.parametrize("failure", [error, killed, timed_out])
def test_a_create_that_fails_for_one_key_lets_another_in(failure):
    gate = Gate()
    pools = Keyed(gate, 1, keys={"bad": lambda: (slow(), failure())})
    bad = spawn(pools.get, "bad")
    settle()
    good = spawn(pools.get, "good")

    assert good.get(timeout=1).key == "good"
    assert isinstance(bad.exception or bad.value, BaseException)
    assert pools.size == 1


def test_no_more_make_way_than_creations_may_start():
    """Three wait, one creation at a time: all three idle items of another key went."""
    gate = Gate()
    pools = Keyed(gate, 3, keys={"b": slow}, max_creating=1)
    held = holding(pools, "a", "a", "a")
    put_all(pools, held)
    waiters = [spawn(pools.get, "b") for _ in range(3)]
    settle()

    assert gate.destroyed == 1
    item = waiters[0].get(timeout=1)
    pools.put("b", item)
    assert waiters[1].get(timeout=1) is item
    gevent.killall(waiters)


def test_a_pause_that_ends_has_idle_items_make_way(monkeypatch):
    """Nothing else happened, and whoever waited for the next try waited for ever."""
    monkeypatch.setattr("gpools._creator.FIRST_PAUSE", 0.02)
    failures = []
    keys = {"down": lambda: failures and error()}
    gate = Gate()
    pools = Keyed(gate, 3, keys=keys, max_creating=1)
    held = pools.get("down", timeout=1)
    failures.append(1)
    with pytest.raises(OSError, match="said no"):
        pools.get("down", timeout=1)
    failures.clear()  # before the next try, however late it is here
    put_all(pools, holding(pools, "a", "b"))
    waiter = spawn(pools.get, "down")

    assert waiter.get(timeout=5).key == "down"
    assert gate.destroyed == 1
    pools.put("down", held)


@pytest.mark.parametrize("max_creating", [None, 1])
def test_one_key_whose_server_is_down_blocks_no_other(max_creating):
    gate = Gate()
    pools = Keyed(gate, 2, keys={"down": error}, max_creating=max_creating)
    served = {"a": 0, "b": 0, "c": 0}
    stop = []

    def use(key):
        while not stop:
            with pools.item(key, timeout=5) as item:
                item.use(0.001)
                served[key] += 1

    def fail():
        while not stop:
            try:
                pools.get("down", timeout=0.05)
            except (OSError, PoolError):
                gevent.sleep(0.001)

    users = [spawn(use, key) for key in served] + [spawn(fail) for _ in range(4)]
    until(lambda: min(served.values()) >= 10)
    stop.append(1)
    gevent.joinall(users, timeout=5)

    assert all(user.successful() for user in users)
    assert gate.peak <= 2
    until(lambda: pools.size == gate.live)


def test_a_key_that_waits_for_its_next_try_blocks_no_other(monkeypatch):
    """Its first in line has waited longest and is next for a slot, but cannot use one."""
    monkeypatch.setattr("gpools._creator.FIRST_PAUSE", 1000.0)
    monkeypatch.setattr("gpools._creator.LONGEST_PAUSE", 1000.0)
    failures = []
    keys = {"down": lambda: failures and error()}
    gate = Gate()
    pools = Keyed(gate, 3, keys=keys, max_creating=1)
    held = pools.get("down", timeout=1)
    failures.append(1)
    with pytest.raises(OSError, match="said no"):
        pools.get("down", timeout=1)
    waiter = spawn(pools.get, "down")
    settle()

    put_all(pools, holding(pools, "a", "b"))
    assert gate.created == 3
    pools.get("a")
    assert gate.destroyed == 0
    pools.put("down", held)
    assert waiter.get(timeout=1) is held


def test_a_create_that_hangs_in_the_background_takes_one_slot_only():
    gate = Gate()
    pools = Keyed(gate, 2, keys={"hangs": never}, max_creating=5, create_timeout=0.05)
    hanging = [spawn(pools.get, "hangs", timeout=0.01) for _ in range(1)]
    settle()
    items = [pools.get("good", timeout=1)]
    pools.put("good", items[0])
    with pools.item("other", timeout=1):
        pass

    gevent.joinall(hanging)
    assert isinstance(hanging[0].exception, PoolTimeout)
    until(lambda: pools.size == gate.live)


# make_pool.


def test_a_make_pool_that_raises_leaves_nothing():
    fail = [OSError("no such host")]

    def make_pool(key):
        if fail:
            raise fail.pop()
        return ConnectionPool(create=object)

    pools = KeyedPool(make_pool, 2)
    with pytest.raises(OSError, match="no such host"):
        pools.get("a")
    assert pools.pools() == {}

    assert pools.get("a")


def test_a_make_pool_that_switches_makes_one_pool_for_all():
    """The pools of those who were slower are closed, and their items with them."""
    gate = Gate(destroy=(slow,))
    made = []

    def make_pool(key):
        gevent.sleep(random.choice([0, 0.001]))
        made.append(ConnectionPool(max_size=5, **gate.verbs))
        return made[-1]

    pools = KeyedPool(make_pool, 5)
    getters = [spawn(pools.get, "a") for _ in range(5)]
    items = [getter.get(timeout=1) for getter in getters]

    assert len(set(items)) == 5
    assert len(made) > 1
    assert sum(not pool.closed for pool in made) == 1
    for item in items:
        pools.put("a", item)
    until(lambda: gate.live == pools.size == 5)


def test_a_make_pool_that_is_killed_leaves_nothing():
    def make_pool(key):
        gevent.sleep(1)

    pools = KeyedPool(make_pool, 2)
    getter = spawn(pools.get, "a")
    settle()
    getter.kill()

    assert pools.pools() == {}


# close and recycle.


def test_close_refuses_all_and_destroys_what_is_idle():
    gate = Gate()
    pools = Keyed(gate, 2)
    idle, held = holding(pools, "a", "b")
    pools.put(*idle)
    (hold,) = pools.close()

    assert idle[1].destroyed
    assert hold.item is held[1]
    for key in ("a", "b", "new"):
        with pytest.raises(PoolClosed):
            pools.get(key)
    assert "new" not in pools.made
    pools.put(*held)
    assert held[1].destroyed
    assert pools.pools() == {}


def test_close_waits_for_items_and_names_the_holders():
    gate = Gate()
    pools = Keyed(gate, 3)
    held = holding(pools, "a", "b")
    (hold_a, hold_b) = pools.close(timeout=0.001)
    assert {hold_a.item, hold_b.item} == {item for _, item in held}
    assert hold_a.greenlet is gevent.getcurrent()

    closer = spawn(pools.close, 10)
    settle()
    assert not closer.ready()
    put_all(pools, held)
    assert closer.get(timeout=1) == []
    assert gate.live == pools.size == 0


def test_all_keys_refuse_before_any_is_waited_for():
    pools = Keyed(Gate(), 2)
    held = holding(pools, "a", "b")
    waiters = [spawn(pools.get, key) for key in "abc"]
    settle()
    closer = spawn(pools.close, 10)
    settle()

    assert not closer.ready()
    for waiter in waiters:
        assert isinstance(waiter.exception, PoolClosed)
    put_all(pools, held)
    closer.get(timeout=1)


def test_no_key_hands_out_an_idle_item_while_close_destroys_that_of_another():
    """The second key was closed, yet its item lay there for one turn of the hub."""
    pools = Keyed(Gate(destroy=(slow,)), check_after=None)
    put_all(pools, holding(pools, "a", "b"))
    closer = spawn(pools.close)
    getter = spawn(pools.get, "b")
    settle()

    closer.get(timeout=1)
    assert isinstance(getter.exception, PoolClosed)
    until(lambda: pools.size == 0)


def test_leaving_its_with_block_closes_it():
    gate = Gate()
    with Keyed(gate) as pools:
        put_all(pools, holding(pools, "a", "b"))
    pools.close()

    assert gate.live == 0
    assert pools.pools() == {}


def test_a_pool_that_is_being_made_during_close_is_closed_too():
    """It used to be let in after the close, for ever open."""
    gate = Gate()
    made = []

    def make_pool(key):
        gevent.sleep(0)
        made.append(ConnectionPool(**gate.verbs))
        return made[-1]

    pools = KeyedPool(make_pool)
    getter = spawn(pools.get, "a")
    gevent.sleep(0)
    pools.close()

    with pytest.raises(PoolClosed):
        getter.get(timeout=1)
    assert made[0].closed
    assert pools.pools() == {}
    assert gate.live == 0


def test_recycle_retires_the_items_of_all_keys():
    gate = Gate()
    pools = Keyed(gate)
    held = holding(pools, "a", "b")
    put_all(pools, holding(pools, "a", "b"))
    pools.recycle()
    assert gate.live == 2
    put_all(pools, held)

    assert gate.live == pools.size == 0
    assert pools.pools() == {}


def test_recycle_with_a_spread_reaches_all_keys():
    gate = Gate()
    pools = Keyed(gate)
    put_all(pools, holding(pools, "a", "b"))
    pools.recycle(0.005)

    until(lambda: not pools.pools())
    assert gate.live == 0


# Kills and forks.


@pytest.mark.parametrize("max_creating", [None, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_storm_over_thirty_keys_with_five_items(seed, max_creating):
    """Kills at every step: never more than five, nobody is forgotten, no slot is lost."""
    dice = random.Random(seed)
    gate = Gate(
        *(ok, ok, ok, slow, error, killed),
        check=(ok, ok, ok, slow, error),
        reset=(ok,) * 8 + (slow, error),
        destroy=(ok, slow, error),
        seed=seed,
    )
    pools = Keyed(gate, 5, per_key=2, max_idle=0.01, max_age=0.05, max_creating=max_creating)
    peak = 0

    def work():
        while True:
            try:
                limit = gevent.Timeout(dice.uniform(0.001, 0.05), False)
                with limit, pools.item(dice.randrange(30)) as item:
                    item.use(dice.choice([0, 0.001]))
            except (OSError, PoolError):
                gevent.sleep(0)

    workers = [spawn(work) for _ in range(15)]
    for _ in range(200):
        gevent.sleep(0.001)
        peak = max(peak, len(pools.pools()))
        assert pools.size == sum(pool.current_size for pool in pools.pools().values())
        assert all(pool.current_size <= 2 for pool in pools.pools().values())
        assert wrong_in_keys(pools) == []
        if dice.random() < 0.3:
            victim = dice.randrange(len(workers))
            workers[victim].kill(block=False)
            workers[victim] = spawn(work)
        if dice.random() < 0.03:
            pools.recycle(dice.choice([0, 0.005]))
    gevent.killall(workers)
    workers.clear()
    assert gate.peak <= 5
    if max_creating is None:  # else the pools whose creations fail stay for a while
        assert peak <= 5 + 15

    gate.calm()
    gc.collect()
    settle()
    served = [spawn(use_once, pools, key) for key in range(30)]
    gevent.joinall(served, timeout=10)
    assert all(greenlet.successful() for greenlet in served)
    calm(pools, gate)
    pools.close()
    until(lambda: pools.size == gate.live == 0)


def use_once(pools, key):
    for _ in range(1000):
        try:
            with pools.item(key, timeout=10) as item:
                return item.use(0)
        except PoolError:
            gevent.sleep(0.005)  # its creations had failed, and it says so
    raise AssertionError(f"{key} was never served")


def in_child(act):
    """Return what *act* returns in a child of this process, as text."""
    reader, writer = os.pipe()
    pid = gevent.os.fork()
    if pid == 0:
        try:
            answer = repr(act())
        except BaseException as failed:
            answer = f"failed: {failed!r}"
        finally:
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        answer = answers.read()
    os.waitpid(pid, 0)
    return answer


def test_a_child_starts_empty_and_leaves_the_parent_alone():
    gate = Gate()
    pools = Keyed(gate, 2)
    held = holding(pools, "a", "b")
    pools.put(*held[0])
    parents = held[0][1]

    def act():
        with gevent.Timeout(5):
            before = pools.size
            items = [pools.get("a"), pools.get("c")]
            return before, items[0] is parents, pools.size, sorted(pools.pools())

    assert in_child(act) == "(0, False, 2, ['a', 'c'])"
    assert repr(pools) == "<Keyed 2 keys, 1 idle, 1 in use, 0 waiting, max 2>"
    assert pools.get("a") is parents


@pytest.mark.parametrize("max_creating", [None, 1])
def test_who_waits_or_is_idle_at_the_fork_is_not_the_childs(max_creating):
    """What the parent's waiters want is nothing that the child has to make room for."""
    pools = Keyed(Gate(destroy=(never,)), 3, max_creating=max_creating)
    held = holding(pools, "a", "b", "c")
    pools.discard(*held[0])  # and it never goes
    waiters = [spawn(pools.get, key) for key in "abde"]
    settle()

    def act():
        gevent.killall(waiters)
        with gevent.Timeout(5):
            put_all(pools, holding(pools, "a", "x", "y"))
            settle()
            return wrong_in_keys(pools), pools.size, sorted(pools.pools())

    assert in_child(act) == "([], 3, ['a', 'x', 'y'])"
    assert wrong_in_keys(pools) == []
    gevent.killall(waiters)


def test_a_block_that_is_open_at_the_fork_ends_well_in_the_child():
    pools = Keyed(Gate(), 2)
    block = pools.item("a")
    block.__enter__()

    def act():
        block.__exit__(None, None, None)
        return pools.size

    assert in_child(act) == "0"
    block.__exit__(None, None, None)
    assert pools.size == 1


def test_a_creation_that_is_under_way_at_the_fork_costs_the_child_no_limit():
    pools = Keyed(Gate(slow), 2)
    getter = spawn(pools.get, "a")
    settle()

    def act():
        gevent.sleep(0.02)
        return pools.size

    assert in_child(act) == "0"
    getter.get(timeout=1)
