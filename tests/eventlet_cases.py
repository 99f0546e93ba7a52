"""Cases that run on `eventlet.pools` and on gpools, each in a process of its own.

Two hubs in one process would disturb each other, so
``python -m tests.eventlet_cases eventlet`` (or ``gpools``) runs all cases on
one of them and prints what each returned, as JSON.  A case is a function of
the house it runs *on*; what it must return stands above it, once for both
where they agree, else once for each.  `tests.test_eventlet_parity` compares.
"""

import gc
import json
import sys
import time
import traceback
import weakref
from itertools import count

from greenlet import GreenletExit

from tests import eventlet_users as users

CASES = {}


class Case:
    """What a function of a house returns, on eventlet and on gpools."""

    def __init__(self, run, eventlet, gpools):
        self.run = run
        self.name = run.__name__
        self.expected = {"eventlet": eventlet, "gpools": gpools}
        self.mended = eventlet != gpools
        CASES[self.name] = self


def both(expected):
    return lambda run: Case(run, expected, expected)


def mended(*, eventlet, gpools):
    return lambda run: Case(run, eventlet, gpools)


class House:
    """One of the two: its pools, and the words of its hub that cases need."""

    def attempt(self, call):
        return Attempt(self, call)

    def kill(self, greenlet):
        greenlet.kill()

    def in_hub(self, call):
        """Call *call* in the hub's own greenlet and tell how it ended."""
        attempt = Attempt(self, call, start=False)
        self.schedule(attempt.run)
        self.settle()
        return attempt.ended

    def overdue(self):
        """Let time pass while nothing runs: all short Timeouts are due now, none has fired."""
        time.sleep(0.02)


class Eventlet(House):
    def __init__(self):
        import eventlet
        from eventlet import hubs, pools

        self.Pool = self.TidyPool = pools.Pool
        self.TokenPool = pools.TokenPool
        self.Timeout = eventlet.Timeout
        self.spawn = eventlet.spawn
        self.sleep = eventlet.sleep
        self.getcurrent = eventlet.getcurrent
        self.schedule = lambda call: hubs.get_hub().schedule_call_global(0, call)

    def settle(self):
        """Run all others until nothing moves."""
        for _ in range(20):
            self.sleep(0)

    def kill_soon(self, greenlet):
        self.schedule(lambda: greenlet.throw(GreenletExit))


class Gpools(House):
    def __init__(self):
        import gevent

        import gpools

        self.Pool = gpools.Pool
        self.TidyPool = gpools.ConnectionPool  # the one that has a destroy
        self.TokenPool = gpools.TokenPool
        self.Timeout = gevent.Timeout
        self.spawn = gevent.spawn
        self.sleep = gevent.sleep
        self._idle = gevent.idle
        self.getcurrent = gevent.getcurrent
        self.schedule = lambda call: gevent.get_hub().loop.run_callback(call)

    def settle(self):
        """Run all others until nothing moves."""
        for _ in range(5):
            self._idle()

    def kill_soon(self, greenlet):
        greenlet.kill(block=False)


class Attempt:
    """A call in a greenlet of its own, and how it ended, in words that JSON can carry."""

    def __init__(self, on, call, start=True):
        self.call = call
        self.ended = "waiting"
        self.greenlet = on.spawn(self.run) if start else None

    def run(self):
        try:
            self.ended = f"got {self.call()}"
        except BaseException as error:
            self.ended = type(error).__name__


def numbers():
    """A create that makes 1, 2, 3 ..."""
    return count(1).__next__


def ends(attempts):
    return [attempt.ended for attempt in attempts]


def got(attempts):
    return [n for n, attempt in enumerate(attempts) if attempt.ended.startswith("got")]


def bursting(on, *ends):
    """A create that switches, then for each call raises, or returns, one of *ends*."""
    rest = iter(ends)

    def create():
        end = next(rest)
        on.sleep(0)
        if isinstance(end, BaseException):
            raise end
        return end

    return create


# What eventlet gets wrong, row by row.


@mended(eventlet=["OSError", "waiting", 1], gpools=["OSError", "got item", 0])
def failed_create_lets_the_next_waiter_in(on):
    pool = on.Pool(max_size=1, create=bursting(on, OSError(), "item"))
    attempts = [on.attempt(pool.get) for _ in range(2)]
    on.settle()
    return [*ends(attempts), pool.free()]


@mended(eventlet=["GreenletExit", "waiting", 1], gpools=["GreenletExit", "got item", 0])
def killed_create_lets_the_next_waiter_in(on):
    calls = []

    def create():
        calls.append(None)
        if len(calls) == 1:
            on.sleep(10)
        return "item"

    pool = on.Pool(max_size=1, create=create)
    attempts = [on.attempt(pool.get) for _ in range(2)]
    on.settle()
    on.kill(attempts[0].greenlet)
    on.settle()
    return [*ends(attempts), pool.free()]


@mended(eventlet=["Timeout", "waiting", 1], gpools=["Timeout", "got item", 0])
def timed_out_create_lets_the_next_waiter_in(on):
    pool = on.Pool(max_size=1, create=bursting(on, on.Timeout(), "item"))
    attempts = [on.attempt(pool.get) for _ in range(2)]
    on.settle()
    return [*ends(attempts), pool.free()]


def three_in_line(on):
    pool = on.Pool(max_size=1, create=numbers())
    pool.get()
    attempts = [on.attempt(pool.get) for _ in range(3)]
    on.settle()
    return pool, attempts


@mended(
    eventlet=["waiting", "waiting", "waiting"],
    gpools=["got 2", "got 3", "waiting"],
)
def resize_up_lets_in_who_now_fits(on):
    pool, attempts = three_in_line(on)
    pool.resize(3)
    on.settle()
    return ends(attempts)


@mended(
    eventlet=["waiting", "waiting", "waiting"],
    gpools=["got 2", "got 3", "waiting"],
)
def setting_max_size_lets_in_who_now_fits(on):
    pool, attempts = three_in_line(on)
    pool.max_size = 3
    on.settle()
    return ends(attempts)


@mended(
    eventlet=["waiting", "waiting", "waiting"],
    gpools=["got 2", "waiting", "waiting"],
)
def lowering_current_size_lets_in_who_now_fits(on):
    pool, attempts = three_in_line(on)
    pool.current_size -= 1
    on.settle()
    return ends(attempts)


@mended(eventlet=["other ran", "put returned"], gpools=["put returned", "other ran"])
def put_with_waiters_does_not_switch(on):
    pool = on.Pool(max_size=1, create=numbers())
    item = pool.get()
    on.attempt(pool.get)
    on.settle()
    story = []
    on.attempt(lambda: story.append("other ran"))
    pool.put(item)
    story.append("put returned")
    on.settle()
    return story


@mended(
    eventlet={"put": "Timeout", "waiter": "waiting", "free": 0, "idle": 0},
    gpools={"put": "got None", "waiter": "got 1", "free": 0, "idle": 0},
)
def timeout_during_put_loses_nothing(on):
    pool = on.Pool(max_size=1, create=numbers())
    item = pool.get()
    waiter = on.attempt(pool.get)
    on.settle()

    def put_late():
        with on.Timeout(0.01):
            on.overdue()
            return pool.put(item)

    putter = on.attempt(put_late)
    on.settle()
    return {
        "put": putter.ended,
        "waiter": waiter.ended,
        "free": pool.free(),
        "idle": len(pool.free_items),
    }


@mended(
    eventlet={"put": "GreenletExit", "waiter": "waiting", "free": 0},
    gpools={"put": "got None", "waiter": "got 1", "free": 0},
)
def kill_during_put_loses_nothing(on):
    pool = on.Pool(max_size=1, create=numbers())
    item = pool.get()
    waiter = on.attempt(pool.get)
    on.settle()

    def put_and_die():
        on.kill_soon(on.getcurrent())
        return pool.put(item)

    putter = on.attempt(put_and_die)
    on.settle()
    return {"put": putter.ended, "waiter": waiter.ended, "free": pool.free()}


@mended(eventlet="some other order", gpools="in the order they came")
def waiters_are_served_in_the_order_they_came(on):
    pool = on.Pool(max_size=1, create=numbers())
    item = pool.get()
    # Some die, so that those who come later are made where they have been.
    dead = [on.attempt(pool.get) for _ in range(40)]
    on.settle()
    for attempt in dead[::-3]:
        on.kill(attempt.greenlet)
    on.settle()
    came = [attempt for attempt in dead if attempt.ended == "waiting"]
    came += [on.attempt(pool.get) for _ in range(20)]
    on.settle()
    served = []
    while pool.waiting():
        pool.put(item)
        on.settle()
        served += [n for n in got(came) if n not in served]
    return "in the order they came" if served == list(range(len(came))) else "some other order"


@mended(
    eventlet={"newcomer": "got 2", "came first": "waiting"},
    gpools={"newcomer": "waiting", "came first": "got 2"},
)
def newcomer_does_not_take_a_new_slot_before_the_line(on):
    pool = on.Pool(max_size=1, create=numbers())
    pool.get()
    first = on.attempt(pool.get)
    on.settle()
    pool.max_size = 2
    newcomer = on.attempt(pool.get)
    on.settle()
    return {"newcomer": newcomer.ended, "came first": first.ended}


@both({"putter": "waiting", "came first": "got 1"})
def who_has_just_put_does_not_overtake_the_line(on):
    pool = on.Pool(max_size=1, create=numbers())
    item = pool.get()
    first = on.attempt(pool.get)
    on.settle()

    def put_and_get():
        pool.put(item)
        return pool.get()

    putter = on.attempt(put_and_get)
    on.settle()
    return {"putter": putter.ended, "came first": first.ended}


@mended(
    eventlet={"waiter": "waiting", "idle": 1, "waiting": 1},
    gpools={"waiter": "got 1", "idle": 0, "waiting": 0},
)
def waiter_that_times_out_during_a_put_and_asks_again_is_woken(on):
    pool = on.Pool(max_size=1, create=numbers())
    item = pool.get()

    def ask_twice():
        try:
            with on.Timeout(0.01):
                return pool.get()
        except on.Timeout:
            on.sleep(0)
            return pool.get()

    waiter = on.attempt(ask_twice)
    on.settle()
    on.overdue()
    pool.put(item)
    on.settle()
    return {
        "waiter": waiter.ended,
        "idle": len(pool.free_items),
        "waiting": pool.waiting(),
    }


@mended(eventlet={"made": 2, "destroyed": 0}, gpools={"made": 2, "destroyed": 2})
def constructor_that_fails_midway_destroys_what_it_made(on):
    made, destroyed = [], []

    class Failing(on.TidyPool):
        def create(self):
            if len(made) == 2:
                raise OSError("the third")
            made.append(users.Line())
            return made[-1]

        def destroy(self, item):
            destroyed.append(item)

    try:
        Failing(min_size=3)
    except OSError:
        pass
    else:
        return "no error left the constructor"
    on.settle()
    return {"made": len(made), "destroyed": len(destroyed)}


@both({"right after": ["item"], "kept": True})
def five_waiters_about_to_time_out_leave_the_item_in_free_items(on):
    """Eventlet's own suite finds the item there right after put()."""
    pool = on.Pool(min_size=0, max_size=1, create=lambda: "item")
    item = pool.get()

    def impatient():
        with on.Timeout(0.01):
            return pool.get()

    waiters = [on.attempt(impatient) for _ in range(5)]
    on.settle()
    on.overdue()
    pool.put(item)
    right_after = list(pool.free_items)
    on.settle()
    served = len(got(waiters))
    return {"right after": right_after, "kept": served + len(pool.free_items) == 1}


# What eventlet's own suite asks of its pools, in other words.


@both(["got 1", "got 2", "got 3", "got 4"])
def items_are_made_one_by_one(on):
    pool = on.Pool(min_size=0, max_size=4, create=numbers())
    attempts = [on.attempt(pool.get) for _ in range(4)]
    on.settle()
    return ends(attempts)


@both([4, 3, 4])
def free_falls_by_get_and_rises_by_put(on):
    pool = on.Pool(max_size=4, create=numbers())
    before = pool.free()
    item = pool.get()
    between = pool.free()
    pool.put(item)
    return [before, between, pool.free()]


@both([0, "waiting", "got 1"])
def exhausted_pool_serves_the_waiter_at_the_next_put(on):
    pool = on.Pool(max_size=4, create=numbers())
    items = [pool.get() for _ in range(4)]
    free = pool.free()
    waiter = on.attempt(pool.get)
    on.settle()
    before = waiter.ended
    pool.put(items[0])
    on.settle()
    return [free, before, waiter.ended]


@both([[0, 0, 0, 0], 1, "waiting"])
def only_the_get_that_exceeds_max_size_waits(on):
    pool = on.Pool(max_size=4, create=numbers())
    waiting = []

    def greedy():
        for _ in range(4):
            pool.get()
            waiting.append(pool.waiting())
        return pool.get()

    attempt = on.attempt(greedy)
    on.settle()
    result = [list(waiting), pool.waiting(), attempt.ended]
    on.kill(attempt.greenlet)
    return result


@both({"fifo": [1, 2], "stack": [2, 1]})
def items_go_out_in_order_or_as_a_stack(on):
    orders = {}
    for name, stack in ("fifo", False), ("stack", True):
        pool = on.Pool(max_size=3, order_as_stack=stack, create=numbers())
        for item in [pool.get(), pool.get()]:
            pool.put(item)
        orders[name] = [pool.get(), pool.get()]
    return orders


@both([0, 1, 2])
def puts_of_several_greenlets_all_return(on):
    pool = on.Pool(max_size=2, create=numbers())
    returned = []

    def just_put(item, n):
        pool.put(item)
        returned.append(n)

    for n in range(3):
        item = pool.get()
        on.spawn(just_put, item, n)
    on.settle()
    return sorted(returned)


@both([0, 1, 2])
def put_after_a_shrink_drops_the_surplus(on):
    pool = on.Pool(max_size=2, create=numbers())
    items = [pool.get(), pool.get()]
    free = [pool.free()]
    pool.resize(1)
    for item in items:
        pool.put(item)
    free.append(pool.free())
    pool.resize(2)
    free.append(pool.free())
    return free


@both({"made": 4, "served": 100, "free": 4})
def a_hundred_users_of_a_slow_create_make_four_items(on):
    made = numbers()
    counts = []

    def create():
        counts.append(made())
        on.sleep(0)
        return "item"

    pool = on.Pool(max_size=4, create=create)

    def use():
        item = pool.get()
        on.sleep(0)
        pool.put(item)

    attempts = [on.attempt(use) for _ in range(100)]
    for _ in range(40):
        on.settle()
    return {"made": len(counts), "served": len(got(attempts)), "free": pool.free()}


@both(["NotImplementedError", 4])
def pool_without_a_create_says_so(on):
    pool = on.Pool()
    attempt = on.attempt(pool.get)
    on.settle()
    return [attempt.ended, pool.free()]


@both([3, 1, 2])
def min_size_items_are_there_at_once(on):
    pool = on.Pool(min_size=3, max_size=3, create=numbers())
    idle = len(pool.free_items)
    return [idle, pool.get(), len(pool.free_items)]


@both([3, "RuntimeError", 3])
def failing_create_costs_no_slot(on):
    class Raising(on.Pool):
        def create(self):
            raise RuntimeError

    pool = Raising(max_size=3)
    before = pool.free()
    attempt = on.attempt(pool.get)
    on.settle()
    return [before, attempt.ended, pool.free()]


@both({"small": 1, "great": 1, "used": 30})
def two_pools_in_one_greenlet_do_not_disturb_each_other(on):
    """One pool of greenlets each holding an item while it waits for a token."""
    small = on.Pool(min_size=1, max_size=1, create=numbers())
    great = on.TokenPool(max_size=1)

    def use():
        with small.item(), great.item():
            on.sleep(0)

    attempts = [on.attempt(use) for _ in range(30)]
    for _ in range(10):
        on.settle()
    return {"small": small.free(), "great": great.free(), "used": len(got(attempts))}


# The clauses of the contract that can be seen from outside.


@both({"pool": [0, 2, True], "token": [1, 4, False], "distinct": True, "true": True})
def parameters_come_in_this_order(on):
    create = numbers()
    pool = on.Pool(0, 2, True, create)
    tokens = on.TokenPool(1)
    one, two = tokens.get(), tokens.get()
    return {
        "pool": [pool.min_size, pool.max_size, pool.order_as_stack],
        "token": [tokens.min_size, tokens.max_size, tokens.order_as_stack],
        "distinct": len({one, two}) == 2,
        "true": bool(one) and bool(two),
    }


@both({"true": True, "iterable": False, "equal": False, "dies at once": True})
def empty_pool_is_true_and_one_of_its_kind(on):
    pool, other = on.Pool(), on.Pool()
    seen = weakref.ref(pool)
    result = {"true": bool(pool), "iterable": hasattr(pool, "__iter__"), "equal": pool == other}
    gc.disable()
    try:
        del pool
        result["dies at once"] = seen() is None
    finally:
        gc.enable()
    return result


@both({"readable": True, "got": [1, "a", "b"]})
def create_is_looked_up_at_each_call(on):
    class Numbered(on.Pool):
        def create(self):
            return "of the class"

    create = numbers()
    pool = Numbered(max_size=9, create=create)
    readable = pool.create is create
    items = [pool.get()]
    pool.create = lambda: "a"
    items.append(pool.get())
    pool.create = lambda: "b"
    items.append(pool.get())
    return {"readable": readable, "got": items}


@both({"during": [1, 0], "after": [1, 0], "direct": [1, 0]})
def slot_is_counted_before_create_and_a_direct_create_is_not(on):
    pool = on.Pool(max_size=1)
    seen = []

    def create():
        seen.append([pool.current_size, pool.free()])
        return "item"

    pool.create = create
    pool.get()
    after = [pool.current_size, pool.free()]
    pool.create()
    return {"during": seen[0], "after": after, "direct": [pool.current_size, pool.free()]}


@both({"items": [1, 2, 3], "size": 3, "free": 1, "called": []})
def constructor_makes_min_size_items_even_beyond_max_size(on):
    called = []

    class Watched(on.Pool):
        def create(self):
            return len(self.free_items) + 1

        def get(self):
            called.append("get")

        def put(self, item):
            called.append("put")

        def resize(self, new_size):
            called.append("resize")

        def free(self):
            called.append("free")

        def waiting(self):
            called.append("waiting")

    pool = Watched(min_size=3, max_size=1)
    return {
        "items": list(pool.free_items),
        "size": pool.current_size,
        "free": on.Pool.free(pool),
        "called": called,
    }


@both(["None", "[]", "{}", "nan", "0"])
def anything_can_be_an_item(on):
    class Touchy:
        __hash__ = None

        def __eq__(self, other):
            raise AssertionError("compared")

        def __bool__(self):
            raise AssertionError("asked for truth")

    pool = on.Pool(max_size=9)
    items = [None, [], {}, float("nan"), 0]
    for item in [*items, Touchy()]:
        pool.put(item)
    out = [pool.get() for _ in items]
    pool.get()
    return [str(item) for item in out]


@both({"free": 7, "out": ["a", "b"]})
def foreign_items_may_be_put(on):
    pool = on.Pool(max_size=4, create=numbers())
    pool.put("a")
    pool.put("b")
    pool.put("c")
    return {"free": pool.free(), "out": [pool.get(), pool.get()]}


@both([2, 5, "x", 4])
def free_items_is_a_deque_that_users_change_and_replace(on):
    from collections import deque

    pool = on.Pool(max_size=4, create=numbers())
    pool.free_items.append("a")
    pool.free_items.appendleft("b")
    pool.free_items.remove("a")
    free = [len(pool.free_items) + 1]
    pool.free_items = deque(["x"])
    return [*free, pool.free(), pool.get(), pool.free()]


@both({"waiter": "got by hand", "free": 0})
def current_size_is_believed(on):
    """Below zero, above max_size: whatever was written is what counts."""
    pool = on.Pool(max_size=1, create=lambda: "by hand")
    pool.current_size = -1
    pool.get()
    pool.get()
    free = pool.free()
    pool.current_size = 5
    waiter = on.attempt(pool.get)
    on.settle()
    assert waiter.ended == "waiting"
    assert pool.free() == -4
    pool.current_size = 1
    pool.put("by hand")
    on.settle()
    return {"waiter": waiter.ended, "free": free}


@both([3, 1, 0])
def waiters_that_are_killed_or_time_out_no_longer_count(on):
    pool = on.Pool(max_size=0)

    def impatient():
        with on.Timeout(0.001):
            pool.get()

    attempts = [on.attempt(pool.get), on.attempt(impatient), on.attempt(pool.get)]
    on.settle()
    counted = [3 if pool.waiting() >= 2 else pool.waiting()]
    on.kill(attempts[0].greenlet)
    on.overdue()
    on.settle()
    counted.append(pool.waiting())
    on.kill(attempts[2].greenlet)
    counted.append(pool.waiting())
    return counted


@both(["get", "body", "put 1", "OSError"])
def item_goes_through_get_and_put_of_the_subclass(on):
    story = []

    class Told(on.Pool):
        def get(self):
            story.append("get")
            return super().get()

        def put(self, item):
            story.append(f"put {item}")
            super().put(item)

    pool = Told(create=numbers())
    try:
        with pool.item():
            story.append("body")
            raise OSError
    except OSError:
        story.append("OSError")
    return story


@both(["ZeroDivisionError", 0, "got 1"])
def any_exception_may_be_thrown_into_a_waiter(on):
    pool = on.Pool(max_size=1, create=numbers())
    item = pool.get()
    victim, other = on.attempt(pool.get), on.attempt(pool.get)
    on.settle()
    on.schedule(lambda: victim.greenlet.throw(ZeroDivisionError))
    on.settle()
    pool.put(item)
    on.settle()
    return [victim.ended, len(pool.free_items), other.ended]


@both({"idle get": "got 1", "put": "got None", "waiter": "got 1", "empty get": True})
def hub_may_put_and_may_get_what_is_there(on):
    pool = on.Pool(max_size=1, min_size=1, create=numbers())
    result = {"idle get": on.in_hub(pool.get)}
    waiter = on.attempt(pool.get)
    on.settle()
    result["put"] = on.in_hub(lambda: pool.put(1))
    on.settle()
    result["waiter"] = waiter.ended
    result["empty get"] = on.in_hub(pool.get) in ("AssertionError", "HubWouldBlock")
    return result


@both(
    {"queue": 0, "waiting": 1, "served": "got 1", "late": "Empty", "no block": "Empty", "left": 0}
)
def channel_get_waits_as_any_waiter(on):
    pool = on.Pool(max_size=1, create=numbers())
    item = pool.get()
    waiter = on.attempt(pool.channel.get)
    on.settle()
    result = {"queue": len(pool.channel.queue), "waiting": pool.waiting()}
    pool.put(item)
    on.settle()
    result["served"] = waiter.ended
    late = on.attempt(lambda: pool.channel.get(timeout=0.001))
    on.settle()
    on.overdue()
    on.settle()
    result["late"] = late.ended
    no_block = on.attempt(lambda: pool.channel.get(block=False))
    on.settle()
    result["no block"] = no_block.ended
    result["left"] = pool.channel.getting() + pool.channel.putting()
    return result


# The users.


@both({"first": 1, "dead one": 2, "size": 2, "put closes": [1, 1], "left": 1, "removed": 1})
def cinders_ssh_pool(on):
    pool = users.ssh_pool(on.Pool)("10.0.0.1", 22, 30, "root", "secret", max_size=3)
    one = pool.get()
    first = one.number
    one.alive = False
    pool.put(one)
    two = pool.get()
    three = pool.get()
    result = {"first": first, "dead one": two.number, "size": pool.current_size}
    pool.resize(1)
    pool.put(two)
    result["put closes"] = [two.closed, pool.current_size]
    pool.put(three)
    result["left"] = len(pool.free_items)
    pool.remove(three)
    result["removed"] = three.closed
    assert pool.current_size == 0
    return result


@both([1, 1, 1])
def cinders_ssh_pool_drains_itself_when_it_is_dropped(on):
    SSHPool = users.ssh_pool(on.Pool)
    pool = SSHPool("10.0.0.1", 22, 30, "root", "secret", max_size=3)
    lines = [pool.get(), pool.get(), pool.get()]
    for line in lines:
        pool.put(line)
    del pool
    return [line.closed for line in lines]


@mended(eventlet=["ValueError", "AttributeError"], gpools=["ValueError"])
def cinders_ssh_pool_dies_in_peace_when_its_constructor_failed(on):
    """Its __del__ reads current_size of a pool that never began."""
    errors = []
    old, sys.unraisablehook = sys.unraisablehook, lambda hook: errors.append(hook.exc_type)
    try:
        try:
            users.ssh_pool(on.Pool)("10.0.0.1", 22, 30, "")
        except ValueError as error:
            errors.insert(0, type(error))
            error.__traceback__ = None
    finally:
        sys.unraisablehook = old
    return [kind.__name__ for kind in errors]


@both({"true": True, "waiting": 1, "waiter": "got True", "removed": 0})
def storage_drivers_ssh_pool_waits_in_the_channel(on):
    pool = users.careless_ssh_pool(on.Pool)(max_size=1)
    result = {"true": bool(pool)}
    line = pool.get()
    waiter = on.attempt(lambda: pool.get() is line)
    on.settle()
    result["waiting"] = pool.waiting()
    pool.put(line)
    on.settle()
    result["waiter"] = waiter.ended
    pool.remove(line)
    result["removed"] = pool.current_size
    return result


@both(
    {
        "first": ["file of sock 1", "sock 1"],
        "again": ["file of sock 1", "sock 1"],
        "after a break": ["file of sock 2", "sock 2"],
        "refused": ["Timeout", 1],
        "waiter": "got ('file of sock 1', 'sock 1')",
    }
)
def swifts_memcached_pool(on):
    made = numbers()
    refuse = []

    def connect(host, port):
        assert (host, port) == ("10.0.0.1", "11211")
        if refuse:
            on.sleep(10)
        return f"sock {made()}"

    MemcacheConnPool = users.memcached_pool(on.Pool, connect, on.Timeout)
    pool = MemcacheConnPool("10.0.0.1:11211", 1, 0.01)
    result = {"first": list(pool.get())}
    waiter = on.attempt(pool.get)
    on.settle()
    pool.return_conn(*result["first"])
    on.settle()
    result["waiter"] = waiter.ended
    pool.return_conn(*result["first"])
    result["again"] = list(pool.get())
    pool.broken()
    result["after a break"] = list(pool.get())
    late = MemcacheConnPool("10.0.0.1:11211", 1, 0.001)
    refuse.append(True)
    refused = on.attempt(late.get)
    on.settle()
    on.overdue()
    on.settle()
    result["refused"] = [refused.ended, late.free()]
    return result


@both({"first": "sock 1", "waiter": "got ('file of sock 1', 'sock 1')", "size": [1, 1]})
def swifts_old_memcached_pool_counts_by_itself(on):
    made = numbers()
    pool = users.old_memcached_pool(on.Pool, lambda host, port: f"sock {made()}")("h:1", 1)
    fp, sock = pool.get()
    waiter = on.attempt(pool.get)
    on.settle()
    sizes = [pool.current_size]
    pool.put((fp, sock))
    on.settle()
    sizes.append(pool.current_size)
    return {"first": sock, "waiter": waiter.ended, "size": sizes}


@both({"idle": 2, "last first": True, "closed": [1, 1], "size": 2})
def rpc_pool_is_emptied(on):
    pool = users.rpc_pool(on.Pool)({"rpc_conn_pool_size": 2}, users.Line)
    one, two = pool.get(), pool.get()
    pool.put(one)
    pool.put(two)
    result = {"idle": len(pool.free_items), "last first": pool.free_items[0] is two}
    pool.empty()
    result["closed"] = [one.closed, two.closed]
    result["size"] = pool.current_size
    return result


@both({"kept": True, "still": True, "called": [], "dropped": -1})
def pool_steps_on_no_name_and_calls_no_method_of_a_subclass(on):
    pool = users.all_known_names(on.Pool)(min_size=1, max_size=2)
    with pool.item():
        pass
    items = [pool.get(), pool.get()]
    waiter = on.attempt(pool.get)
    on.settle()
    pool.put(items[0])
    on.settle()
    assert waiter.ended.startswith("got")
    pool.resize(1)
    free = pool.free()
    pool.put(items[1])
    return {
        "kept": all(pool.kept),
        "still": all(getattr(pool, name) == f"{name} after" for name in pool.attributes),
        "called": pool.called,
        "dropped": free,
    }


def run(case, on):
    """What *case* returns, or how it broke."""
    try:
        with on.Timeout(10, AssertionError("the case hangs")):
            return case.run(on)
    except BaseException:
        return traceback.format_exc()
    finally:
        on.settle()


def main(house):
    on = {"eventlet": Eventlet, "gpools": Gpools}[house]()
    json.dump({name: run(case, on) for name, case in CASES.items()}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
