"""The contract of `Pool` and `TokenPool`: what code written for eventlet.pools relies on.

In the order of the contract's clauses, then its table of what eventlet gets
wrong.  `tests.test_eventlet_parity` runs much of it on eventlet as well; here
it stands in full, for where eventlet is missing.
"""

import gc
import queue
import time
import weakref
from collections import deque
from contextlib import suppress
from itertools import count

import gevent
import pytest
from gevent.event import Event
from greenlet import greenlet as raw_greenlet
from greenlet import settrace

from gpools import ConnectionPool, HubWouldBlock, Pool, PoolTimeout, TokenPool
from tests import eventlet_users as users
from tests.hostile import Gate, error, killed, ok, slow_error, timed_out
from tests.waiting import settle, spawn


@pytest.fixture(params=[Pool, TokenPool])
def kind(request):
    """Both classes; a TokenPool takes a create of one's own, too."""
    return request.param


@pytest.fixture
def full(kind):
    """A pool of one item, which is in use: the number 1."""
    pool = kind(max_size=1, create=count(1).__next__)
    assert pool.get() == 1
    return pool


@pytest.fixture
def line(kill_later):
    """`line(pool, 3)`: as many greenlets waiting in *pool*, in this order."""

    def stand(pool, how_many, call=None):
        waiters = []
        for _ in range(how_many):
            waiters.append(kill_later(call or pool.get))
            settle()
        return waiters

    return stand


@pytest.fixture
def kill_later():
    """`spawn`, for greenlets that may still wait when the test ends."""
    greenlets = []

    def start(call, *args):
        greenlets.append(spawn(call, *args))
        return greenlets[-1]

    yield start
    gevent.killall(greenlets)


@pytest.fixture
def no_gc():
    """Whatever dies here dies because nothing refers to it, not even itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def in_hub(call, *args):
    """Call in the hub's own greenlet; return what it returned or raised."""
    ends = []

    def run():
        try:
            ends.append(call(*args))
        except BaseException as failed:
            ends.append(failed)

    gevent.get_hub().loop.run_callback(run)
    settle()
    (end,) = ends
    return end


def done(greenlets):
    """What those who are through have got, in their order."""
    settle()
    return [g.get() for g in greenlets if g.ready()]


class Switches:
    """Counts switches between greenlets while it is entered."""

    def __enter__(self):
        self.seen = []
        self.before = settrace(self.record)
        return self

    def record(self, event, args):
        self.seen.append(event)

    def __exit__(self, *failed):
        settrace(self.before)


class Touchy:
    """An item that hates to be looked at."""

    __hash__ = None

    def __eq__(self, other):
        raise AssertionError("compared")

    def __bool__(self):
        raise AssertionError("asked for its truth")

    def __len__(self):
        raise AssertionError("asked for its length")

    def close(self):
        raise AssertionError("closed")


# Clause 1: the surface


def test_parameters_come_in_eventlets_order(kind):
    create = count(1).__next__
    pool = kind(2, 3, True, create)

    assert (pool.min_size, pool.max_size, pool.order_as_stack) == (2, 3, True)
    assert pool.create is create
    assert list(pool.free_items) == [1, 2]


def test_parameters_have_eventlets_names(kind):
    pool = kind(create=count(1).__next__, order_as_stack=True, max_size=3, min_size=2)

    assert (pool.min_size, pool.max_size, pool.order_as_stack) == (2, 3, True)
    assert list(pool.free_items) == [1, 2]


def test_defaults_are_eventlets(kind):
    pool = kind()

    assert (pool.min_size, pool.max_size, pool.order_as_stack) == (0, 4, False)
    assert pool.current_size == 0
    assert list(pool.free_items) == []
    assert pool.free() == 4
    assert pool.waiting() == 0


def test_further_parameters_are_keyword_only(kind):
    with pytest.raises(TypeError):
        kind(0, 4, False, None, "name")
    pool = kind(name="db")
    for further in pool.get, pool.item:
        with pytest.raises(TypeError):
            further(1)


def test_methods_take_eventlets_arguments(kind):
    pool = kind(create=count(1).__next__)
    item = pool.get()
    pool.put(item=item)
    pool.resize(new_size=2)
    with pool.item() as item:
        assert item == 1
    assert pool.create() == 2
    assert (pool.free(), pool.waiting()) == (2, 0)


def test_methods_have_these_results(kind):
    pool = kind(create=count(1).__next__)
    assert pool.put(pool.get()) is None
    assert pool.resize(3) is None


def test_tokens_are_distinct_true_and_hashable():
    pool = TokenPool(max_size=3)
    tokens = [pool.get() for _ in range(3)]

    assert len(set(tokens)) == 3
    assert all(tokens)
    assert isinstance(pool, Pool)


def test_token_is_used_again():
    pool = TokenPool(1)
    (token,) = pool.free_items
    with pool.item() as taken:
        assert taken is token
    assert list(pool.free_items) == [token]


def test_subclass_may_call_a_pool_by_its_class(kind):
    """`Pool.__init__(self, ...)` and `Pool.get(self)` instead of super()."""

    class Old(kind):
        def __init__(self, size):
            kind.__init__(self, max_size=size)

        def create(self):
            return 1

        def get(self):
            return kind.get(self)

    pool = Old(1)
    assert pool.get() == 1
    kind.put(pool, 1)
    assert pool.free() == 1


def test_timeout_of_get_covers_waiting(full):
    with pytest.raises(PoolTimeout, match="1 of 1"):
        full.get(timeout=0.001)
    assert full.waiting() == 0


def test_timeout_of_item_covers_waiting(full):
    with pytest.raises(PoolTimeout), full.item(timeout=0.001):
        pytest.fail("there was no item")


def test_timeout_of_get_covers_creating(kind):
    never = Event()
    pool = kind(create=never.wait)
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0.001)
    assert pool.free() == 4


def test_timeout_of_get_ends_with_the_get(kind):
    """Its timer must not go off in whatever the caller does next."""
    pool = kind(create=count(1).__next__)
    pool.get(timeout=0.005)
    with suppress(ZeroDivisionError):
        kind(create=lambda: 1 / 0).get(timeout=0.005)
    gevent.sleep(0.02)


def test_timeout_of_somebody_else_passes_through_a_get_with_timeout(full):
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.001) as outer:
        full.get(timeout=10)
    assert caught.value is outer


@pytest.mark.parametrize("timeout", [0, -1])
def test_timeout_of_nothing_takes_what_is_there(kind, timeout):
    pool = kind(min_size=1, max_size=2, create=count(1).__next__)
    assert pool.get(timeout=timeout) == 1
    assert pool.get(timeout=timeout) == 2
    with pytest.raises(PoolTimeout):
        pool.get(timeout=timeout)


def test_repr_tells_the_state(full, line):
    line(full, 2)
    assert repr(full) == f"<{type(full).__name__} 0 idle, 1 in use, 2 waiting, max 1>"


def test_repr_tells_the_name(kind):
    pool = kind(min_size=1, name="db", create=count(1).__next__)
    assert repr(pool) == f"<{kind.__name__} 'db' 1 idle, 0 in use, 0 waiting, max 4>"


@pytest.mark.parametrize("wrong", [{"max_size": None}, {"max_size": "4"}, {"min_size": "1"}])
def test_size_that_is_no_number_is_refused_at_once(kind, wrong):
    with pytest.raises(TypeError, match="must be a number"):
        kind(**wrong)


def test_create_that_cannot_be_called_is_refused_at_once(kind):
    with pytest.raises(TypeError, match="must be callable"):
        kind(create="http")


# Clause 2: a pool is true


@pytest.mark.parametrize("max_size", [0, 4])
def test_pool_is_true_however_empty(kind, max_size):
    assert kind(max_size=max_size)
    with pytest.raises(TypeError):
        len(kind())


def test_pool_is_not_iterable(kind):
    with pytest.raises(TypeError):
        iter(kind())
    with pytest.raises(TypeError):
        1 in kind()  # noqa: B015


def test_pools_are_compared_by_identity(kind):
    one, two = kind(), kind()
    assert one == one
    assert one != two
    assert len({one, two}) == 2


def test_pool_is_weakly_referable(kind):
    pool = kind()
    assert weakref.ref(pool)() is pool


# Clause 3: names


def test_known_names_of_subclasses_are_theirs(kind, line):
    """Set before and after super().__init__, they are neither lost nor read nor called."""
    pool = users.all_known_names(kind)(1, 2)
    with pool.item() as one:
        two = pool.get()
        waiters = line(pool, 1)
    assert done(waiters) == [one]
    pool.resize(1)
    pool.put(one)
    pool.put(two)
    with pytest.raises(queue.Empty):
        pool.channel.get(block=False)

    assert all(pool.kept)
    assert {getattr(pool, name) for name in pool.attributes} == {
        f"{name} after" for name in pool.attributes
    }
    assert pool.called == []
    assert repr(pool)


def test_known_names_change_nothing_of_the_pool(kind):
    plain = kind(1, 2, create=users.Line)
    named = users.all_known_names(kind)(1, 2, create=users.Line)
    for pool in plain, named:
        pool.put(pool.get())

    assert plain.free() == named.free() == 2
    assert plain.current_size == named.current_size == 1


# Clause 4: create


def test_create_is_called_without_arguments(kind):
    calls = []
    pool = kind(create=lambda *args, **kwargs: calls.append((args, kwargs)))
    pool.get()
    assert calls == [((), {})]


def test_create_given_wins_over_the_class(kind):
    class Numbered(kind):
        def create(self):
            return "of the class"

    assert Numbered().get() == "of the class"
    create = count(1).__next__
    pool = Numbered(create=create)
    assert pool.create is create
    assert pool.get() == 1


def test_create_is_looked_up_at_each_call(kind):
    pool = kind(create=lambda: "first")
    assert pool.get() == "first"
    pool.create = lambda: "second"
    assert pool.get() == "second"
    pool.create = lambda: "third"
    assert pool.get() == "third"


def test_create_set_before_the_constructor_is_used(kind):
    class Early(kind):
        def __init__(self):
            self.create = lambda: "early"
            super().__init__(min_size=1)

    assert Early().get() == "early"


def test_pool_without_create_says_so():
    pool = Pool()
    with pytest.raises(NotImplementedError):
        pool.get()
    with pytest.raises(NotImplementedError):
        pool.create()
    assert pool.free() == 4


# Clause 5: the slot is taken first


def test_slot_is_taken_before_create_runs(kind):
    seen = []
    pool = kind(max_size=2)
    pool.create = lambda: seen.append((pool.current_size, pool.free()))
    pool.get()
    assert seen == [(1, 1)]


def test_slow_create_is_not_done_twice_for_one_slot(kind, kill_later):
    """All ask while the first is still creating."""
    go = Event()
    calls = []

    def create():
        calls.append(len(calls))
        go.wait()
        return calls[-1]

    pool = kind(max_size=2, create=create)
    callers = [kill_later(pool.get) for _ in range(5)]
    settle()

    assert len(calls) == pool.current_size == 2
    assert pool.waiting() == 3
    go.set()
    assert len(done(callers)) == 2


@pytest.mark.parametrize("failure", [error, killed, timed_out])
def test_create_that_fails_frees_the_slot_and_reaches_the_caller(kind, failure):
    pool = kind(max_size=1, create=Gate(failure, ok))
    with pytest.raises((OSError, gevent.GreenletExit, gevent.Timeout)) as caught:
        pool.get()

    assert caught.type.__name__ in ("OSError", "GreenletExit", "Timeout")
    assert (pool.free(), pool.current_size) == (1, 0)
    assert pool.get().number == 1


def test_what_create_raised_is_untouched(kind):
    class Odd(BaseException):
        pass

    odd = Odd()

    def create():
        raise odd

    pool = kind(create=create)
    for get in pool.get, lambda: pool.get(timeout=1), pool.item().__enter__:
        with pytest.raises(Odd) as caught:
            get()
        assert caught.value is odd
    assert pool.current_size == 0


def test_create_that_fails_in_the_channel_reaches_the_caller_untouched(kind, full):
    """A PoolTimeout out of create is not the channel's own."""
    with suppress(PoolTimeout):
        full.get(timeout=0)

    def create():
        return full.get(timeout=0)

    pool = kind(max_size=1, create=create)
    with pytest.raises(PoolTimeout):
        pool.channel.get()
    assert pool.free() == 1


# Clause 6: min_size


def test_constructor_makes_min_size_items_in_order(kind):
    class Numbered(kind):
        made = 0

        def create(self):
            self.made += 1
            assert self.current_size == self.made
            return self.made

    pool = Numbered(min_size=3, order_as_stack=True)
    assert list(pool.free_items) == [1, 2, 3]
    assert (pool.current_size, pool.free()) == (3, 4)


def test_min_size_may_exceed_max_size(kind):
    pool = kind(min_size=3, max_size=1, create=count(1).__next__)
    assert list(pool.free_items) == [1, 2, 3]
    assert (pool.current_size, pool.free()) == (3, 1)


def test_token_pool_of_one_positional_argument_makes_one_token():
    assert len(TokenPool(1).free_items) == 1


def test_failing_create_leaves_the_constructor(kind):
    gate = Gate(ok, error)
    with pytest.raises(OSError, match="said no"):
        kind(min_size=3, create=gate)
    assert gate.calls["create"] == 2


def test_constructor_calls_nothing_but_create(kind):
    called = []

    def told(name):
        return lambda self, *args, **kwargs: called.append(name)

    names = ("get", "put", "item", "resize", "free", "waiting", "create", "destroy", "__repr__")
    Told = type("Told", (kind,), {name: told(name) for name in names})
    Told(2, 1)
    assert called == ["create", "create"]


def test_constructor_may_create_slowly(kind):
    made = kind(min_size=2, create=lambda: gevent.sleep(0) or "slow")
    assert list(made.free_items) == ["slow", "slow"]


# Clause 7: a direct create


def test_direct_create_is_not_counted(kind):
    pool = kind(create=count(1).__next__)
    assert pool.create() == 1
    assert (pool.current_size, pool.free()) == (0, 4)


def test_create_may_return_the_same_object_again(kind):
    the_one = users.Line()
    pool = kind(max_size=3, create=lambda: the_one)
    items = [pool.get() for _ in range(3)]
    for item in items:
        pool.put(item)
    assert len(pool.free_items) == pool.free() == pool.current_size == 3


# Clause 8: items


def test_item_is_handed_over_untouched(full, line):
    """Not compared, hashed, asked for truth or closed: not even by a waiter's way."""
    touchy = Touchy()
    waiters = line(full, 1)
    full.put(touchy)
    (taken,) = done(waiters)
    assert taken is touchy
    full.put(touchy)
    assert full.get() is touchy
    full.resize(0)
    full.put(touchy)
    assert full.current_size == 0


@pytest.mark.parametrize("nothing", [None, 0, "", [], {}])
def test_item_without_truth_is_an_item(kind, line, nothing):
    pool = kind(max_size=1, create=lambda: nothing)
    assert pool.get() is nothing
    waiters = line(pool, 1)
    pool.put(nothing)
    settle()
    assert waiters[0].ready()
    pool.put(nothing)
    with pool.item() as item:
        assert item is nothing
    assert pool.current_size == len(pool.free_items) == 1


def test_item_never_taken_may_be_put(kind):
    pool = kind(max_size=1)
    pool.put("foreign")
    pool.put("another")
    assert pool.free() == 3 > pool.max_size
    assert [pool.get(), pool.get()] == ["foreign", "another"]


def test_fresh_tuple_may_be_put_at_each_return(full):
    for n in range(3):
        full.put(("file", n))
        assert full.get() == ("file", n)
    assert full.current_size == 1


# Clause 9: who keeps what alive


@pytest.mark.usefixtures("no_gc")
def test_pool_does_not_keep_a_taken_item_alive(kind):
    pool = kind(min_size=1, max_size=2, create=users.Line)
    idle, made = pool.get(), pool.get()
    seen = [weakref.ref(idle), weakref.ref(made)]
    del idle, made
    assert [ref() for ref in seen] == [None, None]


@pytest.mark.usefixtures("no_gc")
def test_pool_does_not_keep_an_item_alive_that_it_handed_to_a_waiter(kind, kill_later):
    """The hub holds it until the waiter switches, as eventlet's does; then nobody does."""
    alive = []
    pool = kind(max_size=1, create=users.Line)
    item = pool.get()

    def take_and_drop():
        seen = weakref.ref(pool.get())
        gevent.sleep(0)
        alive.append(seen() is not None)

    kill_later(take_and_drop)
    settle()
    pool.put(item)
    del item
    settle()
    assert alive == [False]


@pytest.mark.usefixtures("no_gc")
def test_pool_does_not_keep_a_surplus_item_alive(kind):
    pool = kind(max_size=1, create=users.Line)
    item = pool.get()
    seen = weakref.ref(item)
    pool.resize(0)
    pool.put(item)
    del item
    assert seen() is None


@pytest.mark.usefixtures("no_gc")
def test_dropped_pool_dies_at_once_with_its_items(kind):
    """After use of every kind: whatever made a cycle would keep it."""
    pool = kind(min_size=1, max_size=2, create=users.Line, name="db")
    with pool.item(timeout=1) as item:
        pool.get(timeout=1)
        with suppress(queue.Empty):
            pool.channel.get(block=False)
        waiter = spawn(pool.get)
        settle()
    settle()
    pool.put(waiter.get())
    pool.resize(3)
    repr(pool)
    seen = [weakref.ref(pool), weakref.ref(item)]
    del pool, item, waiter
    assert [ref() for ref in seen] == [None, None]


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("ask", ["get", "item", "channel", "create"])
def test_dropped_pool_that_saw_a_timeout_dies_at_once(kind, ask):
    pool = kind(max_size=0)
    with suppress(PoolTimeout, queue.Empty):
        if ask == "get":
            pool.get(timeout=0)
        elif ask == "item":
            pool.item(timeout=0).__enter__()
        elif ask == "channel":
            pool.channel.get(timeout=0)
        else:
            pool.resize(1)
            pool.create = Event().wait
            pool.get(timeout=0)
    settle()
    seen = weakref.ref(pool)
    del pool
    assert seen() is None


@pytest.mark.usefixtures("no_gc")
def test_dropped_pool_whose_waiter_was_killed_dies_at_once(kind):
    pool = kind(max_size=1, create=users.Line)
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    waiter.kill()
    pool.put(item)
    settle()
    seen = weakref.ref(pool)
    del pool, waiter
    assert seen() is None


@pytest.mark.usefixtures("no_gc")
def test_dropped_pool_whose_create_failed_dies_at_once(kind):
    pool = kind(max_size=1, create=Gate(error))
    with suppress(OSError):
        pool.get()
    with suppress(OSError):
        pool.get(timeout=1)
    seen = weakref.ref(pool)
    del pool
    assert seen() is None


# Clause 10: order


def test_items_go_out_in_the_order_they_came_back(kind):
    pool = kind(create=count(1).__next__)
    one, two, three = pool.get(), pool.get(), pool.get()
    for item in two, one, three:
        pool.put(item)
    assert list(pool.free_items) == [2, 1, 3]
    assert [pool.get(), pool.get(), pool.get()] == [2, 1, 3]


def test_stack_gives_the_last_one_back_first(kind):
    pool = kind(order_as_stack=True, create=count(1).__next__)
    one, two, three = pool.get(), pool.get(), pool.get()
    for item in two, one, three:
        pool.put(item)
    assert list(pool.free_items) == [3, 1, 2]
    assert [pool.get(), pool.get(), pool.get()] == [3, 1, 2]


@pytest.mark.parametrize("stack", [False, True])
def test_left_end_of_free_items_goes_out_next(kind, line, stack):
    """Also to a waiter."""
    pool = kind(max_size=2, order_as_stack=stack, create=count(1).__next__)
    items = [pool.get(), pool.get()]
    for item in items:
        pool.put(item)
    assert pool.free_items[0] == pool.get()
    pool.get()
    waiters = line(pool, 1)
    pool.free_items.extend(["next", "later"])
    assert done(waiters) == ["next"]
    assert list(pool.free_items) == ["later"]


def test_idle_item_goes_out_before_one_is_made(kind, line):
    gate = Gate()
    pool = kind(min_size=1, max_size=3, create=gate)
    idle = pool.free_items[0]
    assert pool.get() is idle
    pool.get()
    pool.get()
    waiters = line(pool, 1)
    pool.put(idle)
    pool.max_size = 4
    assert done(waiters) == [idle]
    assert gate.created == 3


# Clause 11: shared state


def test_free_items_is_a_deque_of_the_items(kind):
    pool = kind(min_size=2, create=count(1).__next__)
    assert type(pool.free_items) is deque
    assert pool.free_items is pool.free_items
    assert list(pool.free_items) == [1, 2]


def test_free_items_may_be_changed_by_hand(kind):
    pool = kind(min_size=3, create=count(1).__next__)
    assert pool.free_items.popleft() == 1
    pool.free_items.remove(3)
    pool.free_items.append("by hand")
    assert [pool.get(), pool.get(), pool.get()] == [2, "by hand", 4]


def test_free_items_may_be_replaced(kind):
    pool = kind(min_size=2, create=count(1).__next__)
    mine = deque(["mine"])
    pool.free_items = mine
    assert pool.free_items is mine
    assert pool.free() == 3
    assert pool.get() == "mine"
    pool.put("mine")
    assert mine == deque(["mine"])


def test_sizes_are_plain_ints_to_read_and_write(kind):
    pool = kind(min_size=1, max_size=3, create=count(1).__next__)
    assert type(pool.current_size) is type(pool.max_size) is int
    pool.current_size += 2
    pool.max_size -= 1
    assert (pool.current_size, pool.max_size) == (3, 2)


def test_sizes_are_there_before_the_constructor_ran(kind):
    class Early(kind):
        def __init__(self):
            self.early = (self.current_size, self.max_size, len(self.free_items), self.waiting())
            self.current_size = 7
            self.max_size = 8
            super().__init__(max_size=2)

    pool = Early()
    assert pool.early[0] == pool.early[2] == pool.early[3] == 0
    assert type(pool.early[1]) is int
    assert (pool.current_size, pool.max_size) == (0, 2)


def test_sizes_are_there_when_the_constructor_never_ran(kind):
    """As a __del__ finds them after the subclass failed before super().__init__."""
    seen = []

    class Failing(kind):
        def __init__(self):
            raise ValueError("no login")

        def __del__(self):
            self.resize(1)
            seen.append((self.current_size, self.max_size, len(self.free_items)))
            self.current_size -= 1
            seen.append((self.free(), self.waiting(), repr(self)))

    with suppress(ValueError):
        Failing()
    gc.collect()
    assert seen == [(0, 1, 0), (2, 0, "<Failing 0 idle, -1 in use, 0 waiting, max 1>")]


@pytest.mark.parametrize(("size", "made"), [(-2, 5), (0, 3), (2, 1), (3, 0), (9, 0)])
def test_current_size_is_believed(kind, size, made):
    """Negative or above max_size: gets make items up to max_size, as it says."""
    pool = kind(max_size=3, create=count(1).__next__)
    pool.current_size = size
    taken = 0
    with suppress(PoolTimeout):
        while True:
            pool.get(timeout=0)
            taken += 1
    assert taken == made
    assert pool.current_size == max(size, 3)


def test_put_believes_current_size(kind):
    pool = kind(max_size=1)
    pool.current_size = 2
    pool.put("surplus")
    pool.put("kept")
    assert (pool.current_size, list(pool.free_items)) == (1, ["kept"])


# Clause 12: free


@pytest.mark.parametrize(("size", "idle"), [(0, 0), (2, 1), (-1, 0), (7, 2), (0, 6)])
def test_free_is_idle_plus_max_size_minus_current_size(kind, size, idle):
    pool = kind(max_size=3)
    pool.current_size = size
    pool.free_items.extend(range(idle))
    assert pool.free() == idle + 3 - size


def test_free_is_negative_after_a_shrink(kind):
    pool = kind(create=count(1).__next__)
    for _ in range(4):
        pool.get()
    pool.resize(1)
    assert pool.free() == -3


# Clause 13: waiting


def test_waiting_counts_who_blocks(full, line):
    line(full, 2)
    line(full, 1, full.channel.get)
    assert full.waiting() == 3


def test_who_creates_does_not_wait(kind, kill_later):
    pool = kind(create=Event().wait)
    kill_later(pool.get)
    settle()
    assert pool.waiting() == 0


def test_killed_waiter_vanishes_at_once(full, line):
    waiters = line(full, 3)
    waiters[1].kill()
    assert full.waiting() == 2
    full.put("item")
    assert done(waiters[:1]) == ["item"]


def test_timed_out_waiter_vanishes_at_once(full):
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
        full.get()
    assert full.waiting() == 0


def test_served_waiter_does_not_wait_any_more(full, line):
    line(full, 2)
    full.put("item")
    settle()
    assert full.waiting() == 1


# Clause 14: item


def test_item_takes_at_enter_by_get_and_gives_back_by_put(kind):
    told = []

    class Told(kind):
        def get(self, *args, **kwargs):
            told.append(("get", args, kwargs))
            return super().get(*args, **kwargs)

        def put(self, *args, **kwargs):
            told.append(("put", args, kwargs))
            super().put(*args, **kwargs)

    pool = Told(min_size=1, create=count(1).__next__)
    block = pool.item()
    assert told == []
    with block as item:
        assert item == 1
        assert told == [("get", (), {})]
    assert told == [("get", (), {}), ("put", (1,), {})]


def test_item_gives_what_get_of_the_subclass_returned(kind):
    put = []

    class Wrapping(kind):
        def get(self):
            return ("wrapped", super().get())

        def put(self, item):
            put.append(item)
            super().put(item[1])

    with Wrapping(create=count(1).__next__).item() as item:
        assert item == ("wrapped", 1)
    assert put == [("wrapped", 1)]


@pytest.mark.parametrize(
    "failure", [OSError, gevent.Timeout, gevent.GreenletExit, KeyboardInterrupt, StopIteration]
)
def test_item_is_put_back_after_any_exception(kind, failure):
    pool = kind(max_size=1, create=count(1).__next__)
    with pytest.raises(failure), pool.item():
        raise failure
    assert list(pool.free_items) == [1]


def test_item_is_put_back_when_its_user_is_killed(kind):
    pool = kind(max_size=1, create=count(1).__next__)

    def use():
        with pool.item():
            Event().wait()

    user = spawn(use)
    settle()
    user.kill()
    assert list(pool.free_items) == [1]


def test_item_that_could_not_be_taken_is_not_put(kind):
    put = []

    class Told(kind):
        def put(self, item):
            put.append(item)

    with pytest.raises(OSError, match="said no"), Told(create=Gate(error)).item():
        pytest.fail("there was no item")
    assert put == []


def test_nothing_else_calls_get_or_put(full, line):
    called = []
    full.get, full.put = lambda *a, **k: called.append("get"), lambda *a: called.append("put")
    kind = type(full)
    waiters = line(full, 1, full.channel.get)
    kind.put(full, "item")
    assert done(waiters) == ["item"]
    full.resize(3)
    full.current_size -= 1
    full.free_items = deque(["idle"])
    assert kind.get(full) == "idle"
    assert called == []


def test_item_serves_one_block(kind):
    """A second one would put back what the first did."""
    pool = kind(create=count(1).__next__)
    block = pool.item()
    with block, pytest.raises(RuntimeError, match="for each"):
        block.__enter__()
    with pytest.raises(RuntimeError, match="for each"):
        block.__enter__()
    assert list(pool.free_items) == [1]
    assert pool.free() == 4


def test_a_block_that_is_left_without_an_item_puts_nothing(kind):
    """An ExitStack.push() in place of enter_context() put a marker into the pool."""
    pool = kind(create=lambda: None)
    block = pool.item()
    with pytest.raises(RuntimeError, match="was not entered"):
        block.__exit__(None, None, None)
    with block as item:
        assert item is None
    with pytest.raises(RuntimeError, match="left before"):
        block.__exit__(None, None, None)

    assert list(pool.free_items) == [None]
    assert pool.free() == 4


def test_a_block_that_is_left_while_it_waits_puts_nothing(kind, full, kill_later):
    block = full.item()
    waiter = kill_later(block.__enter__)
    settle()
    with pytest.raises(RuntimeError, match="was not entered"):
        block.__exit__(None, None, None)

    full.put(1)
    assert waiter.get(timeout=1) == 1
    assert full.free() == 0


@pytest.mark.usefixtures("no_gc")
def test_left_block_does_not_keep_its_item_alive(kind):
    pool = kind(create=users.Line)
    block = pool.item()
    with block as item:
        pool.resize(0)
    seen = weakref.ref(item)
    del item
    assert seen() is None


# Clause 15 and 16: resizing


def test_shrunk_pool_drops_surplus_at_put_one_each(kind):
    pool = kind(create=count(1).__next__)
    items = [pool.get() for _ in range(4)]
    pool.resize(2)
    sizes = [pool.current_size]
    for item in items:
        pool.put(item)
        sizes.append(pool.current_size)
    assert sizes == [4, 3, 2, 2, 2]
    assert list(pool.free_items) == [3, 4]


def test_shrunk_pool_keeps_what_is_idle(kind):
    pool = kind(min_size=3, create=count(1).__next__)
    pool.resize(1)
    assert (pool.current_size, list(pool.free_items), pool.free()) == (3, [1, 2, 3], 1)
    assert pool.get() == 1
    pool.put(1)
    assert (pool.current_size, list(pool.free_items)) == (2, [2, 3])


def test_shrunk_pool_drops_surplus_even_while_others_wait(kind, line):
    pool = kind(max_size=2, create=count(1).__next__)
    items = [pool.get(), pool.get()]
    pool.resize(1)
    waiters = line(pool, 1)
    pool.put(items[0])
    assert done(waiters) == []
    assert pool.current_size == 1
    pool.put(items[1])
    assert done(waiters) == [2]


def test_pool_shrunk_to_nothing_makes_its_users_wait(kind, line):
    pool = kind(create=count(1).__next__)
    pool.resize(0)
    waiters = line(pool, 1)
    assert done(waiters) == []
    pool.resize(1)
    assert done(waiters) == [1]


@pytest.mark.parametrize("size", [1, 3])
def test_setting_max_size_stands_for_resize(kind, size):
    set_, resized = kind(max_size=2), kind(max_size=2)
    set_.max_size = size
    resized.resize(size)
    assert set_.max_size == resized.max_size == size
    assert set_.free() == resized.free() == size


# Clause 17: when nothing switches


@pytest.mark.parametrize("timeout", [None, 10])
def test_get_that_need_not_wait_does_not_switch(kind, timeout):
    pool = kind(min_size=1, max_size=2, create=count(1).__next__)
    with Switches() as switches:
        pool.get(timeout=timeout)
        pool.get(timeout=timeout)
        pool.put(1)
        with pool.item(timeout=timeout):
            pass
    assert switches.seen == []


def test_any_exception_may_be_thrown_into_a_waiter(full, line):
    for failure in ZeroDivisionError, KeyError, gevent.Timeout:
        waiters = line(full, 2)
        waiters[0].kill(failure)
        assert isinstance(waiters[0].exception, failure)
        assert full.waiting() == 1
        full.put("item")
        assert done(waiters[1:]) == ["item"]
    assert full.current_size == 1


def test_raw_greenlet_may_wait(full):
    got = []
    waiter = raw_greenlet(lambda: got.append(full.get()), gevent.get_hub())
    gevent.get_hub().loop.run_callback(waiter.switch)
    settle()
    full.put("item")
    settle()
    assert got == ["item"]


def test_waiter_switched_to_by_a_stranger_goes_on_waiting(full, line):
    waiters = line(full, 1)
    gevent.get_hub().loop.run_callback(waiters[0].switch, "stray")
    settle()
    assert full.waiting() == 1
    full.put("item")
    assert done(waiters) == ["item"]


# Clause 18: in the hub


def test_hub_may_put(full):
    assert in_hub(full.put, "item") is None
    assert list(full.free_items) == ["item"]


def test_hub_may_put_while_others_wait(full, line):
    waiters = line(full, 2)
    assert in_hub(full.put, "item") is None
    assert done(waiters) == ["item"]


def test_hub_may_get_what_is_idle_and_what_can_be_made(kind):
    pool = kind(min_size=1, max_size=2, create=count(1).__next__)
    assert [in_hub(pool.get), in_hub(pool.get)] == [1, 2]


def test_hub_that_would_have_to_wait_is_told_so(full):
    for get in full.get, lambda: full.get(timeout=1), full.channel.get:
        assert isinstance(in_hub(get), HubWouldBlock)
    assert (full.waiting(), full.current_size) == (0, 1)
    full.put("item")
    assert full.get() == "item"


def test_finalizer_in_the_hub_may_put(full, line):
    class Lease:
        def __del__(self):
            full.put("item")

    waiters = line(full, 1)
    leases = [Lease()]
    in_hub(leases.clear)
    assert done(waiters) == ["item"]


# Clause 19: settled


def test_item_put_while_somebody_waits_is_not_idle_once_settled(full, line):
    waiters = line(full, 2)
    full.put("item")
    settle()
    assert list(full.free_items) == []
    assert done(waiters) == ["item"]


# Clause 20: the channel


def test_queue_of_the_channel_is_an_empty_container(full, line):
    line(full, 1)
    full.put("item")
    full.put("another")
    assert len(full.channel.queue) == 0
    assert list(full.channel.queue) == []
    assert not full.channel.queue


def test_channel_get_stands_in_the_same_line(full, line):
    waiters = [*line(full, 1), *line(full, 1, full.channel.get), *line(full, 1)]
    assert full.waiting() == 3
    for item in "abc":
        full.put(item)
        settle()
    assert done(waiters) == ["a", "b", "c"]


def test_channel_get_raises_empty_on_timeout(full):
    with pytest.raises(queue.Empty):
        full.channel.get(True, 0.001)
    with pytest.raises(queue.Empty):
        full.channel.get(timeout=0.001)
    assert full.waiting() == 0


def test_channel_get_that_may_not_block_raises_empty(full):
    with Switches() as switches:
        for args in (False,), (False, 10):
            with pytest.raises(queue.Empty):
                full.channel.get(*args)
    assert switches.seen == []


def test_channel_counts_getters_and_putters(full, line):
    line(full, 2)
    assert (full.channel.getting(), full.channel.putting()) == (2, 0)


def test_channel_get_takes_a_slot_that_comes_free(full, line):
    waiters = line(full, 1, full.channel.get)
    full.current_size -= 1
    assert done(waiters) == [2]


@pytest.mark.parametrize("idle", [["idle"], []])
def test_channel_get_that_finds_nobody_in_line_takes_what_there_is(kind, line, idle):
    """An idle item, else a slot: it must not sleep beside either."""
    pool = kind(max_size=1, create=lambda: "made")
    pool.current_size = len(idle)
    pool.free_items.extend(idle)
    waiters = line(pool, 1, pool.channel.get)
    assert done(waiters) == (idle or ["made"])


# The users


SSH = ("10.0.0.1", 22, 30, "root", "secret")


def test_ssh_pool_replaces_a_dead_connection(kind):
    pool = users.ssh_pool(kind)(*SSH, max_size=2)
    with pool.item() as one:
        one.alive = False
    with pool.item() as two:
        assert two is not one
        assert one.closed == 1
        assert pool.current_size == 1


def test_ssh_pool_that_is_full_waits_in_the_channel(kind, line):
    pool = users.ssh_pool(kind)(*SSH, max_size=1)
    one = pool.get()
    waiters = line(pool, 1)
    assert pool.waiting() == 1
    pool.put(one)
    assert done(waiters) == [one]
    pool.put(one)


def test_ssh_pool_that_cannot_connect_keeps_its_slots(kind):
    pool = users.ssh_pool(kind)("10.0.0.1", 22, 30, "root", max_size=1)
    with pytest.raises(OSError, match="password"):
        pool.get()
    assert pool.free() == 1


def test_ssh_pool_closes_surplus_in_its_own_put(kind):
    pool = users.ssh_pool(kind)(*SSH, max_size=3)
    lines = [pool.get(), pool.get(), pool.get()]
    pool.resize(1)
    for one in lines:
        pool.put(one)
    assert [one.closed for one in lines] == [1, 1, 0]
    assert (pool.current_size, list(pool.free_items)) == (1, [lines[2]])


def test_ssh_pool_removes_a_connection(kind, line):
    """And so makes room for somebody, whom eventlet lets sleep."""
    pool = users.ssh_pool(kind)(*SSH, min_size=1, max_size=1)
    (one,) = pool.free_items
    pool.remove(one)
    assert (one.closed, pool.current_size, pool.free()) == (1, 0, 1)

    two = pool.get()
    waiters = line(pool, 1)
    two.close()
    pool.current_size -= 1
    assert [three.number for three in done(waiters)] == [3]


@pytest.mark.usefixtures("no_gc")
def test_ssh_pool_that_is_dropped_drains_itself(kind):
    pool = users.ssh_pool(kind)(*SSH, max_size=3)
    lines = [pool.get(), pool.get(), pool.get()]
    for one in lines:
        pool.put(one)
    del pool, one
    assert [one.closed for one in lines] == [1, 1, 1]


@pytest.mark.usefixtures("no_gc")
def test_ssh_pool_that_is_dropped_in_the_hub_drains_itself(kind):
    pools = [users.ssh_pool(kind)(*SSH, max_size=2)]
    lines = [pools[0].get(), pools[0].get()]
    for one in lines:
        pools[0].put(one)
    assert in_hub(pools.clear) is None
    assert [one.closed for one in lines] == [1, 1]


def test_ssh_pool_whose_constructor_failed_dies_in_peace(kind):
    with pytest.raises(ValueError, match="no login"):
        users.ssh_pool(kind)("10.0.0.1", 22, 30, "")
    gc.collect()  # its __del__ must not fail: pytest would say so


def test_ssh_pool_that_counts_after_create_gets_along(kind, line):
    pool = users.careless_ssh_pool(kind)(max_size=1)
    one = pool.get()
    waiters = line(pool, 1)
    pool.put(one)
    assert done(waiters) == [one]
    waiters = line(pool, 1)
    pool.remove(one)
    (two,) = done(waiters)
    assert two is not one


def connector():
    made = count(1)
    return lambda host, port: f"sock {next(made)} to {host}:{port}"


def test_memcached_pool_puts_a_fresh_tuple_at_each_return(kind, line):
    pool = users.memcached_pool(kind, connector(), gevent.Timeout)("h:11211", 1, 1)
    fp, sock = pool.get()
    waiters = line(pool, 3)
    for n in range(3):
        pool.return_conn(fp, sock)
        assert done(waiters)[n:] == [(fp, sock)]
    assert pool.current_size == 1


def test_memcached_pool_connects_anew_after_a_broken_connection(kind):
    pool = users.memcached_pool(kind, connector(), gevent.Timeout)("h:11211", 1, 1)
    assert pool.get()[1] == "sock 1 to h:11211"
    pool.broken()
    assert pool.get()[1] == "sock 2 to h:11211"
    assert pool.current_size == 1


def test_memcached_pool_that_cannot_connect_keeps_its_slots(kind):
    never = Event()
    pool = users.memcached_pool(kind, lambda *to: never.wait(), gevent.Timeout)("h:1", 1, 0.001)
    with pytest.raises(gevent.Timeout):
        pool.get()
    assert pool.free() == 1


def test_memcached_pool_that_counts_by_itself_gets_along(kind, line):
    pool = users.old_memcached_pool(kind, connector())("h:1", 2)
    one, two = pool.get(), pool.get()
    waiters = line(pool, 2)
    assert (pool.current_size, pool.waiting()) == (2, 2)
    pool.put(two)
    pool.put(one)
    assert done(waiters) == [two, one]
    assert pool.current_size == 2


def test_rpc_pool_is_a_stack_that_empties_itself(kind):
    pool = users.rpc_pool(kind)({"rpc_conn_pool_size": 2}, users.Line)
    one, two = pool.get(), pool.get()
    pool.put(one)
    pool.put(two)
    assert pool.max_size == 2
    assert pool.free_items[0] is two
    pool.empty()
    assert (one.closed, two.closed) == (1, 1)
    assert list(pool.free_items) == []


# What eventlet gets wrong: create fails while others wait


@pytest.mark.parametrize("failure", [slow_error, killed, timed_out])
def test_failed_create_lets_the_next_waiter_in(kind, kill_later, failure):
    """The second caller used to sleep until somebody else put."""
    go = Event()

    def late():
        go.wait()
        failure()

    pool = kind(max_size=1, create=Gate(late, ok))
    first, second, third = (kill_later(pool.get) for _ in range(3))
    settle()
    go.set()
    first.join(timeout=1)
    settle()

    assert first.ready()
    assert first.exception is not None or isinstance(first.value, gevent.GreenletExit)
    assert second.get(block=False).number == 1
    assert not third.ready()
    assert (pool.free(), pool.waiting()) == (0, 1)


def test_killed_create_lets_the_oldest_waiter_in(kind, kill_later):
    never = Event()
    pool = kind(max_size=1, create=Gate(never.wait, ok))
    waiters = [kill_later(pool.get) for _ in range(3)]
    settle()
    waiters[0].kill()
    settle()

    assert [w.ready() for w in waiters] == [True, True, False]
    assert pool.waiting() == 1


def test_create_of_a_waiter_that_fails_lets_the_next_one_in(kind, kill_later):
    """Down the whole line: everyone gets its own error."""
    go = Event()

    def late_error():
        go.wait()
        error()

    pool = kind(max_size=1, create=Gate(late_error))
    waiters = [kill_later(pool.get) for _ in range(5)]
    settle()
    go.set()
    settle()

    assert [type(w.exception) for w in waiters] == [OSError] * 5
    assert (pool.free(), pool.waiting()) == (1, 0)


def test_timeout_of_a_get_that_creates_lets_the_next_waiter_in(kind, kill_later):
    pool = kind(max_size=1, create=Gate(Event().wait, ok))
    first = kill_later(lambda: pool.get(timeout=0.001))
    second = kill_later(pool.get)
    first.join(timeout=1)
    settle()

    assert isinstance(first.exception, PoolTimeout)
    assert second.get(block=False).number == 1


# What eventlet gets wrong: room is made while others wait


def resize(pool, size):
    pool.resize(size)


def set_max_size(pool, size):
    pool.max_size = size


def lower_current_size(pool, size):
    pool.current_size -= size - pool.max_size


def replace_free_items(pool, size):
    pool.free_items = deque(range(2, size + 1))


def extend_free_items(pool, size):
    pool.free_items.extend(range(2, size + 1))


@pytest.mark.parametrize(
    "make_room",
    [resize, set_max_size, lower_current_size, replace_free_items, extend_free_items],
)
def test_room_made_by_hand_lets_in_who_now_fits(full, line, make_room):
    waiters = line(full, 4)
    make_room(full, 3)

    assert done(waiters) == [2, 3]
    assert [w.ready() for w in waiters] == [True, True, False, False]
    assert full.waiting() == 2


def test_room_made_by_hand_is_not_given_twice(full, line):
    waiters = line(full, 4)
    full.max_size = 2
    full.max_size = 2
    full.put(1)
    full.resize(2)
    assert sorted(done(waiters)) == [1, 2]
    assert (full.current_size, full.waiting()) == (2, 2)


def test_surplus_that_is_dropped_lets_nobody_in(kind, line):
    pool = kind(max_size=3, create=count(1).__next__)
    items = [pool.get(), pool.get(), pool.get()]
    pool.resize(1)
    waiters = line(pool, 1)
    pool.put(items[0])
    assert done(waiters) == []


# What eventlet gets wrong: put switches


def test_put_never_switches(full, line):
    waiters = line(full, 2)
    with Switches() as switches:
        full.put("item")
    assert switches.seen == []
    assert done(waiters) == ["item"]


def test_timeout_in_put_loses_nothing(full, line):
    """It is due before the put begins; put is over before it can fire."""
    waiters = line(full, 1)

    def put_late():
        with gevent.Timeout(0.001):
            time.sleep(0.005)
            full.put("item")
            settle()
            pytest.fail("the Timeout was not due")

    putter = spawn(put_late)
    assert done(waiters) == ["item"]
    assert isinstance(putter.exception, gevent.Timeout)


def test_kill_in_put_loses_nothing(full, line):
    waiters = line(full, 1)

    def put_and_die():
        gevent.getcurrent().kill(block=False)
        full.put("item")
        gevent.sleep(0)
        pytest.fail("survived")

    putter = spawn(put_and_die)
    assert done(waiters) == ["item"]
    assert isinstance(putter.value, gevent.GreenletExit)


def test_resize_and_hand_edits_do_not_switch(full, line):
    line(full, 1)
    with Switches() as switches:
        full.resize(2)
        full.current_size -= 1
        full.free_items.append("item")
        full.free_items = deque()
    assert switches.seen == []


# What eventlet gets wrong: order


def test_waiters_are_served_strictly_in_order(full, line):
    """Also when some of them have died in between."""
    waiters = line(full, 12)
    for dead in waiters[3:9:2]:
        dead.kill()
    waiters = [w for w in waiters if not w.ready()] + line(full, 3)
    for n in range(len(waiters)):
        full.put(n)
        settle()
    assert [w.get(block=False) for w in waiters] == list(range(12))


def test_items_put_together_go_to_the_line_in_order(full, line):
    waiters = line(full, 3)
    for item in "abc":
        full.put(item)
    assert done(waiters) == ["a", "b", "c"]


def test_newcomer_does_not_overtake_while_the_hub_has_not_looked(full, line, kill_later):
    """Item and slot are there, and free to see, but they are the line's."""
    waiters = line(full, 2)
    late = []

    def put_and_get():
        full.put("item")
        full.max_size = 2
        assert full.free() == 2
        late.append(full.get())

    kill_later(put_and_get)
    settle()
    assert sorted(map(str, done(waiters))) == ["2", "item"]
    assert late == []
    assert full.waiting() == 1


def test_who_has_just_put_does_not_overtake_the_line(full, line, kill_later):
    waiters = line(full, 1)
    order = []

    def put_and_get():
        full.put("item")
        order.append(full.get())

    putter = kill_later(put_and_get)
    settle()
    assert done(waiters) == ["item"]
    assert not putter.ready()


def test_newcomer_with_a_timeout_of_nothing_does_not_overtake(full, line):
    waiters = line(full, 1)
    full.put("item")
    with pytest.raises(PoolTimeout):
        full.get(timeout=0)
    assert done(waiters) == ["item"]


def test_who_gets_in_a_circle_lets_the_others_have_their_turn(full, line, kill_later):
    order = []

    def circle(name):
        for _ in range(3):
            order.append(name)
            full.put(item)
            full.get()
        full.put(item)

    item = 1
    circles = [kill_later(lambda n=n: (full.get(), circle(n))) for n in range(3)]
    settle()
    full.put(item)
    gevent.joinall(circles, timeout=1)
    assert order == [0, 1, 2] * 3


def test_line_that_takes_and_puts_at_once_leaves_the_loop_its_turns(full, kill_later):
    """Or no timer would fire and no socket be read while the pool is busy."""
    stop = []

    def busy():
        for _ in range(1_000_000):
            full.put(full.get())
            if stop:
                return
        pytest.fail("no timer fired")

    workers = [kill_later(busy) for _ in range(3)]
    settle()
    full.put(1)
    gevent.sleep(0.001)
    stop.append(True)
    gevent.joinall(workers, timeout=1, raise_error=True)
    assert all(w.ready() for w in workers)


@pytest.mark.hub_errors
def test_waiter_that_dies_of_what_it_got_does_not_stop_the_line(full, line):
    """A raw greenlet's error lands in the hub, in the middle of the hand-over."""
    doomed = raw_greenlet(lambda: full.get() / 0, gevent.get_hub())
    gevent.get_hub().loop.run_callback(doomed.switch)
    settle()
    waiters = line(full, 2)
    for item in 2, 3, 4:
        full.put(item)
    assert done(waiters) == [3, 4]
    assert doomed.dead


# What eventlet gets wrong: lost wake-ups


def test_waiter_that_times_out_during_a_put_and_asks_again_is_woken(full):
    def ask_twice():
        try:
            with gevent.Timeout(0.001):
                return full.get()
        except gevent.Timeout:
            gevent.sleep(0)
            return full.get()

    waiter = spawn(ask_twice)
    settle()
    time.sleep(0.005)
    full.put("item")
    settle()
    assert waiter.get(block=False) == "item"
    assert list(full.free_items) == []


def test_item_meant_for_a_waiter_that_dies_goes_to_the_next(full, line):
    """The kill reaches the waiter before the hub has looked at the line."""
    waiters = line(full, 2)
    waiters[0].kill(block=False)
    full.put("item")
    settle()
    assert isinstance(waiters[0].value, gevent.GreenletExit)
    assert done(waiters[1:]) == ["item"]


def test_item_of_a_waiter_killed_just_after_it_was_served_is_its_own(full, line):
    """The hub served it first: it runs on with the item, nobody else has it."""
    got = []
    waiters = line(full, 1, lambda: got.append(full.get()))
    full.put("item")
    waiters[0].kill(block=False)
    settle()
    assert got == ["item"]
    assert list(full.free_items) == []


def test_slot_meant_for_a_waiter_that_dies_goes_to_the_next(full, line):
    waiters = line(full, 2)
    waiters[0].kill(block=False)
    full.resize(2)
    settle()
    assert done(waiters[1:]) == [2]
    assert full.current_size == 2


def test_item_put_for_waiters_that_all_die_stays_idle(full, line):
    waiters = line(full, 3)
    for waiter in waiters:
        waiter.kill(block=False)
    full.put("item")
    settle()
    assert list(full.free_items) == ["item"]
    assert (full.waiting(), full.get()) == (0, "item")


def test_waiters_about_to_time_out_leave_the_item_in_free_items(full, line):
    """Eventlet's own suite looks right after put(); later somebody has it, or it is idle."""
    got = []

    def impatient():
        with gevent.Timeout(0.001, False):
            got.append(full.get())

    for _ in range(5):
        spawn(impatient)
    gevent.sleep(0)
    assert full.waiting() == 5
    time.sleep(0.005)
    full.put("item")

    assert list(full.free_items) == ["item"]
    settle()
    assert [*got, *full.free_items] == ["item"]
    assert full.waiting() == 0


# What eventlet gets wrong: a constructor that fails midway


def test_constructor_that_fails_midway_destroys_what_it_made():
    gate = Gate(ok, ok, error)
    with pytest.raises(OSError, match="said no"):
        ConnectionPool(min_size=3, **gate.verbs)
    settle()
    assert (gate.created, gate.destroyed, gate.double_destroys) == (2, 2, [])


def test_plain_pool_that_fails_midway_closes_nothing(kind):
    """It has no destroy; what it made is dropped, as anything it does not know."""
    gate = Gate(ok, ok, error)
    with pytest.raises(OSError, match="said no"):
        kind(min_size=3, create=gate)
    gc.collect()
    assert (gate.created, gate.destroyed, gate.dropped) == (2, 0, 2)


@pytest.mark.parametrize("base", [Pool, ConnectionPool])
def test_a_class_with_an_order_of_its_own_hides_none_that_is_given(base):
    class Ordered(base):
        order_as_stack = False

    pool = Ordered(create=object, order_as_stack=True)
    first, second = pool.get(), pool.get()
    pool.put(first)
    pool.put(second)
    assert pool.get() is second
