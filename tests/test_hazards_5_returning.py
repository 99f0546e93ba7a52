"""Returning: hazards.md, section 5."""

import gevent
import pytest
from gevent import Timeout
from gevent.event import Event

from gpools import ConnectionPool, NotInUse, Pool, PoolError
from tests.hostile import Gate, error, full_check, killed, never, ok, settle, slow, spawn, timed_out
from tests.waiting import until
from tests.watching import all_gone, both, invariants_hold, make  # noqa: F401


def state(pool):
    """All that a refused put must leave as it was."""
    return repr(pool), pool.current_size, list(map(id, pool.free_items)), len(pool.holders())


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def pool(gate):
    return make(ConnectionPool, gate, max_size=2)


# What is not out is refused.  Each function brings one such item.


def put_back_already(pool):
    item = pool.get()
    pool.put(item)
    return item


def put_back_while_others_wait(pool):
    items = [pool.get(), pool.get()]
    waiter = spawn(pool.get)
    settle()
    pool.put(items[0])  # on the shelf, and the waiter's by right
    pool.waiter, pool.other = waiter, items[1]
    return items[0]


def discarded(pool):
    item = pool.get()
    pool.discard(item)
    return item


def being_destroyed(pool):
    item = pool.get()
    pool.destroy = lambda item: never()
    pool.discard(item)
    return item


def being_reset(pool):
    item = pool.get()
    pool.reset = lambda item: never()
    spawn(pool.put, item)
    gevent.sleep(0)
    return item


def being_checked(pool):
    item = put_back_already(pool)
    gevent.sleep(0.001)
    pool.check = lambda item: never()
    spawn(pool.get)
    gevent.sleep(0)
    return item


def foreign(pool):
    return object()


def nothing(pool):
    return None


def of_another_pool(pool):
    other = ConnectionPool(create=Gate())
    return other.get()


def destroyed_when_the_pool_shrank(pool):
    items = [pool.get(), pool.get()]
    for item in items:
        pool.put(item)
    pool.resize(1)
    return items[0]


def destroyed_when_reset_failed(pool):
    item = pool.get()
    pool.reset = lambda item: error()
    pool.put(item)
    return item


def of_a_closed_pool(pool):
    item = put_back_already(pool)
    pool.close()
    return item


not_out = pytest.mark.parametrize(
    "bring",
    [
        put_back_already,
        put_back_while_others_wait,
        discarded,
        being_destroyed,
        being_reset,
        being_checked,
        foreign,
        nothing,
        of_another_pool,
        destroyed_when_the_pool_shrank,
        destroyed_when_reset_failed,
        of_a_closed_pool,
    ],
    ids=lambda function: function.__name__,
)


@not_out
@pytest.mark.parametrize("how", ["put", "discard"])
def test_item_that_is_not_out_is_refused_and_nothing_changes(pool, gate, bring, how):
    item = bring(pool)
    before = state(pool)
    calls = dict(gate.calls)
    with pytest.raises(NotInUse, match="this ConnectionPool got back") as caught:
        getattr(pool, how)(item)
    assert isinstance(caught.value, PoolError)
    assert isinstance(caught.value, ValueError)
    assert state(pool) == before
    assert gate.calls == calls, "no verb was called for it"
    if bring in (being_reset, being_checked, being_destroyed, of_a_closed_pool):
        return
    if bring is put_back_while_others_wait:
        settle()
        pool.put(pool.waiter.get(block=False))
        return
    pool.reset = gate.reset
    full_check(pool, gate)


@pytest.mark.parametrize(
    ("bring", "says"),
    [
        (put_back_already, "twice: it is idle already"),
        (being_destroyed, "twice: it is discarded already"),
        (being_reset, "twice: it is being checked or reset already"),
        (discarded, "that it has not out"),
        (foreign, "that it has not out"),
    ],
)
def test_refusal_says_what_is_wrong(pool, bring, says):
    item = bring(pool)
    with pytest.raises(NotInUse, match=says) as caught:
        pool.put(item)
    assert f"<{type(item).__name__} at {id(item):#x}>" in str(caught.value)


@pytest.mark.parametrize("puts", [2, 3, 10])
def test_item_put_more_than_once_never_has_two_holders(pool, gate, puts):
    item = pool.get()
    refused = 0
    for _ in range(puts):
        try:
            pool.put(item)
        except NotInUse:
            refused += 1
    assert refused == puts - 1
    first, second = pool.get(), pool.get()
    assert first is not second
    pool.put(first)
    pool.put(second)
    full_check(pool, gate)


def test_late_put_by_the_former_holder_does_not_take_the_item_from_the_next_one(gate):
    """The pool cannot tell whose put it is, but it never lends the item to two at once."""
    pool = make(ConnectionPool, gate, max_size=1)
    former = pool.get()
    pool.put(former)
    assert pool.get() is former
    pool.put(former)  # the former holder's, too late: accepted as the present one's
    with pytest.raises(NotInUse):
        pool.put(former)  # the present holder's
    full_check(pool, gate)


def test_equal_item_of_another_pool_is_refused():
    """Identity counts, not equality."""

    class Equal:
        __hash__ = None

        def __eq__(self, other):
            return True

    one, other = (ConnectionPool(create=Equal, max_size=1) for _ in range(2))
    mine, foreign = one.get(), other.get()
    assert mine == foreign
    with pytest.raises(NotInUse):
        one.put(foreign)
    one.put(mine)
    other.put(foreign)


class Plain:
    # Of a size that little else has, or something else would get its place in memory.
    __slots__ = ("__weakref__", *(f"unused_{number}" for number in range(40)))


def test_new_item_at_the_address_of_a_discarded_one_is_not_taken_for_it():
    gone = set()

    def create():
        others = []  # these fill the gaps in memory, and so at some time that one
        while gone and len(others) < 100_000:
            others.append(made := Plain())
            if id(made) in gone:
                return made
        return Plain()

    pool = ConnectionPool(max_size=1, create=create, destroy=lambda item: None)
    for n in range(10):
        with pool.item() as item:
            assert n == 0 or id(item) in gone
            gone.add(id(item))
            pool.discard(item)
        del item
        settle()
    with pool.item():
        assert len(pool.holders()) == 1
    assert (pool.free(), pool.current_size) == (1, 1)
    assert pool.stats().destroyed == {"discarded": 10}


# Items of all kinds


class EqualToAll:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1


class Unhashable:
    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("compared")


class ChangesItsHash:
    def __init__(self):
        self.value = 0

    def __eq__(self, other):
        return self.value == other.value

    def __hash__(self):
        self.value += 1
        return self.value


class Untrue:
    def __bool__(self):
        raise RuntimeError("asked for its truth")

    def __len__(self):
        raise RuntimeError("asked for its length")


class HasNoRepr:
    def __repr__(self):
        raise RuntimeError("shown")


class Slotted:
    __slots__ = ()


@both
@pytest.mark.parametrize(
    "item_class",
    [EqualToAll, Unhashable, ChangesItsHash, Untrue, HasNoRepr, Slotted, list, dict],
)
def test_items_of_any_kind(kind, item_class):
    pool = kind(create=item_class, max_size=3)
    items = [pool.get() for _ in range(3)]
    waiter = spawn(pool.get)
    settle()
    for item in items:
        pool.put(item)
    settle()
    again = [waiter.get(block=False), pool.get(), pool.get()]
    assert list(map(id, again)) == list(map(id, items)), "in the order in which they came back"
    for item in again:
        pool.put(item)
    with pool.item() as item:
        if isinstance(item, list):
            item.append("changed while in use")
    if kind is ConnectionPool:
        with pytest.raises(NotInUse):
            pool.put(item)
        pool.discard(pool.get())
        assert pool.current_size == 2
        pool.resize(1)
        assert pool.current_size == 1
        assert pool.close() == []
        assert pool.current_size == 0
    else:
        assert pool.free() == 3


# A failing reset


@pytest.mark.parametrize("failure", [error, timed_out, killed])
def test_reset_that_fails_restores_capacity_and_serves_the_waiter(failure):
    gate = Gate(reset=(failure, ok))
    pool = make(ConnectionPool, gate, max_size=1)
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    try:
        pool.put(item)
    except (Timeout, gevent.GreenletExit):
        assert failure is not error
    else:
        assert failure is error, "only an Exception says that the item is not as new"
    settle()
    fresh = waiter.get(block=False)
    assert fresh is not item
    assert item.destroyed
    assert gate.destroyed == 1
    pool.put(fresh)
    full_check(pool, gate)


@pytest.mark.parametrize("failure", [error, timed_out, killed])
def test_reset_that_fails_many_times_under_load(failure):
    gate = Gate(reset=(failure, slow, ok), destroy=(slow, ok, error), seed=5)
    pool = make(ConnectionPool, gate, max_size=3)

    def work():
        try:
            with pool.item() as item:
                item.use()
        except (Timeout, gevent.GreenletExit):
            pass

    workers = [spawn(work) for _ in range(60)]
    gevent.joinall(workers, timeout=10)
    assert all(worker.successful() for worker in workers)
    assert gate.destroyed > 5
    gevent.sleep(0.01)
    full_check(pool, gate)


def test_reset_is_over_before_the_next_one_gets_the_item():
    resetting = Event()
    gate = Gate(reset=(resetting.wait, ok))
    pool = make(ConnectionPool, gate, max_size=1)
    item = pool.get()
    putter = spawn(pool.put, item)
    waiter = spawn(pool.get)
    settle()
    assert not waiter.ready()
    assert not pool.free_items
    resetting.set()
    settle()
    assert putter.successful()
    assert waiter.get(block=False) is item


def test_plain_pool_calls_nothing_on_return():
    pool = Pool(create=Untrue, max_size=1)
    for name in ("reset", "check", "destroy", "close", "discard"):
        setattr(pool, name, lambda *args: pytest.fail("called"))
    with pool.item():
        pass
    pool.resize(0)
    with pool.item():
        pass


# Twenty at once


@pytest.mark.parametrize("destroy", [ok, slow, error])
def test_20_greenlets_discard_and_put_one_item_and_it_is_destroyed_once(destroy):
    gate = Gate(destroy=(destroy,), reset=(slow,))
    pool = make(ConnectionPool, gate, max_size=2)
    item, other = pool.get(), pool.get()
    acts = [pool.discard, pool.put] * 10
    greenlets = [spawn(act, item) for act in acts]
    gevent.joinall(greenlets, timeout=5)
    assert sum(greenlet.successful() for greenlet in greenlets) == 1
    assert all(isinstance(g.exception, (NotInUse, type(None))) for g in greenlets)
    until(lambda: all_gone(pool))
    assert gate.calls["destroy"] == gate.destroyed == 1
    assert gate.double_destroys == []
    pool.put(other)
    gevent.sleep(0.01)
    full_check(pool, gate)


def test_20_greenlets_put_one_item_and_it_is_on_the_shelf_once():
    gate = Gate(reset=(slow,))
    pool = make(ConnectionPool, gate, max_size=2)
    item = pool.get()
    greenlets = [spawn(pool.put, item) for _ in range(20)]
    gevent.joinall(greenlets, timeout=5)
    assert sum(greenlet.successful() for greenlet in greenlets) == 1
    assert list(pool.free_items) == [item]
    full_check(pool, gate)


def test_put_and_discard_of_the_same_item_by_one_greenlet():
    gate = Gate()
    pool = make(ConnectionPool, gate, max_size=1)
    item = pool.get()
    pool.discard(item)
    for act in (pool.put, pool.discard):
        with pytest.raises(NotInUse):
            act(item)
    assert gate.destroyed == 1
    full_check(pool, gate)
