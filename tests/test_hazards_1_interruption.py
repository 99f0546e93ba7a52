"""Nothing is lost on kill, Timeout, exception: hazards.md, section 1."""

import gc
import weakref
from contextlib import suppress
from functools import partial
from itertools import pairwise

import gevent
import pytest
from gevent import Timeout
from gevent.event import Event
from greenlet import greenlet

from gpools import ConnectionPool, Pool, PoolClosed, PoolTimeout, _within
from tests.hostile import Gate, error, full_check, killed, never, ok, slow, stale, timed_out
from tests.waiting import settle, spawn, until
from tests.watching import all_gone, both, invariants_hold, make  # noqa: F401


def in_the_hub(*acts):
    """Do *acts* one right after the other in the hub, soon."""

    def act():
        for act in acts:
            act()

    gevent.get_hub().loop.run_callback(act)


def die(victim, error=None):
    if not victim.dead:
        victim.throw(error or gevent.GreenletExit())


def throw(victim, error):
    """Raise *error* in *victim* from the hub, as a timer does, soon."""
    in_the_hub(partial(die, victim, error))


def kill(victim):
    throw(victim, gevent.GreenletExit())


def use(pool, seconds=0):
    with pool.item() as item:
        item.use(seconds)


# How a waiter may end around a put.


def times_out(pool, waiter, put):
    throw(waiter, Timeout())
    settle()
    put()


def is_killed(pool, waiter, put):
    kill(waiter)
    settle()
    put()


def is_killed_before_the_put_in_the_same_turn(pool, waiter, put):
    kill(waiter)
    put()


def is_killed_after_the_put_in_the_same_turn(pool, waiter, put):
    put()
    kill(waiter)


def dies_at_once_before_the_put(pool, waiter, put):
    in_the_hub(partial(die, waiter), put)


def dies_at_once_after_the_put(pool, waiter, put):
    in_the_hub(put, partial(die, waiter))


def times_out_in_get(pool, waiter, put):
    waiter.join(timeout=5)
    put()


def times_out_after_the_put_in_the_same_turn(pool, waiter, put):
    put()
    throw(waiter, Timeout())


endings = pytest.mark.parametrize(
    "ends",
    [
        times_out,
        is_killed,
        is_killed_before_the_put_in_the_same_turn,
        is_killed_after_the_put_in_the_same_turn,
        dies_at_once_before_the_put,
        dies_at_once_after_the_put,
        times_out_in_get,
        times_out_after_the_put_in_the_same_turn,
    ],
    ids=lambda function: function.__name__,
)


def waiter_that_ends(pool, ends):
    """Spawn a waiter that holds what it gets, and ends however it is told to."""

    def wait():
        try:
            with pool.item(timeout=0.02 if ends is times_out_in_get else None) as item:
                item.use(3600)
        except (Timeout, PoolTimeout):
            pass

    return spawn(wait)


@both
@endings
def test_after_a_waiter_ends_a_put_serves_the_next_get(kind, ends):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    waiter = waiter_that_ends(pool, ends)
    settle()
    gone = ends is times_out_in_get and waiter.ready()  # by now, on a busy machine
    assert pool.waiting() == 1 - gone

    ends(pool, waiter, partial(pool.put, item))
    settle()
    assert waiter.ready()
    assert pool.waiting() == 0
    full_check(pool, gate)


@both
@endings
def test_after_a_waiter_ends_the_one_behind_it_is_served(kind, ends):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    first = waiter_that_ends(pool, ends)
    settle()
    second = spawn(use, pool)
    settle()
    gone = ends is times_out_in_get and first.ready()
    assert pool.waiting() == 2 - gone

    ends(pool, first, partial(pool.put, item))
    settle()
    assert first.ready()
    assert second.ready()
    assert second.successful()
    full_check(pool, gate)


@both
@endings
def test_after_a_waiter_ends_the_one_before_it_is_served(kind, ends):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    first = spawn(use, pool)
    settle()
    second = waiter_that_ends(pool, ends)
    settle()

    ends(pool, second, partial(pool.put, item))
    settle()
    assert first.successful()
    assert second.ready()
    full_check(pool, gate)


@both
@endings
def test_after_all_of_ten_waiters_end_nothing_is_missing(kind, ends):
    gate = Gate()
    pool = make(kind, gate, max_size=2)
    items = [pool.get(), pool.get()]
    waiters = [waiter_that_ends(pool, ends) for _ in range(10)]
    settle()

    def put():
        if items:
            pool.put(items.pop())

    for waiter in waiters:
        ends(pool, waiter, put)
    settle()
    assert all(waiter.ready() for waiter in waiters)
    full_check(pool, gate)


@both
def test_waiter_that_dies_before_it_runs_with_its_item_leaves_it_to_the_next(kind):
    """Ten in line, one item put, and all but the last die in that very turn."""
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    waiters = [spawn(pool.get) for _ in range(10)]
    settle()

    in_the_hub(partial(pool.put, item), *(partial(die, waiter) for waiter in waiters[:-1]))
    settle()
    assert waiters[-1].ready()
    assert waiters[-1].get() is item
    pool.put(item)
    full_check(pool, gate)


@both
def test_waiter_that_times_out_as_an_item_comes_and_asks_again_is_served(kind):
    """Once a lost wake-up: the put had chosen the old place in line."""
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()

    def ask_twice():
        try:
            pool.get()
        except Timeout:
            return pool.get()

    waiter = spawn(ask_twice)
    settle()
    in_the_hub(partial(pool.put, item), partial(die, waiter, Timeout()))
    settle()
    assert waiter.ready()
    assert waiter.get() is item
    pool.put(item)
    full_check(pool, gate)


# Every verb, interrupted in every way.


class Scene:
    """A pool of one, and a greenlet that blocks in one verb until `event`.

    ``scene.gate`` behaves so that just that verb blocks.  Everything else is
    slow enough to be hit by a second kill, and well.
    """

    def __init__(self, **settings):
        self.event = Event()
        self.gate = Gate(destroy=(slow,))
        self.settings = settings
        self.blocked = 0

    def block_in(self, verb, *before, then=ok):
        def blocked():
            self.block()
            return then()

        self.gate.behaviours[verb] = (*before, blocked, slow if verb == "destroy" else ok)

    def block(self):
        self.blocked += 1
        self.event.wait()

    def make(self, kind):
        self.pool = pool = make(kind, self.gate, max_size=1, **self.settings)
        return pool


def get_create(scene):
    scene.block_in("create")
    return partial(use, scene.pool, 0.001)


def get_create_that_fails(scene):
    scene.block_in("create", then=error)
    return partial(use_somehow, scene.pool)


def item_is_idle(scene):
    pool = scene.pool
    pool.put(pool.get())
    gevent.sleep(0)  # let it be idle for some time, however short
    return pool


def get_check(scene):
    scene.block_in("check")
    return partial(use, item_is_idle(scene), 0.001)


def get_check_that_says_no(scene):
    scene.block_in("check", then=stale)
    return partial(use, item_is_idle(scene), 0.001)


def get_check_that_fails(scene):
    scene.block_in("check", then=error)
    return partial(use, item_is_idle(scene), 0.001)


def get_replacing_a_stale_item(scene):
    scene.block_in("destroy")
    scene.gate.behaviours["check"] = (stale, ok)
    return partial(use, item_is_idle(scene), 0.001)


def get_replacing_a_stale_item_create(scene):
    scene.block_in("create", ok)
    scene.gate.behaviours["check"] = (stale, ok)
    return partial(use, item_is_idle(scene), 0.001)


def put_reset(scene):
    scene.block_in("reset")
    return partial(scene.pool.put, scene.pool.get())


def put_reset_that_fails(scene):
    scene.block_in("reset", then=error)
    return partial(scene.pool.put, scene.pool.get())


def put_destroy_after_a_failed_reset(scene):
    scene.block_in("destroy")
    scene.gate.behaviours["reset"] = (error, ok)
    return partial(scene.pool.put, scene.pool.get())


def discard_destroy(scene):
    scene.block_in("destroy")
    return partial(scene.pool.discard, scene.pool.get())


def discard_destroy_that_fails(scene):
    scene.block_in("destroy", then=error)
    return partial(scene.pool.discard, scene.pool.get())


def use_somehow(pool, error=None, use=lambda item: None):
    try:
        with pool.item() as item:
            use(item)
            if error is not None:
                raise error
    except OSError:
        pass


def leave_clean_reset(scene):
    scene.block_in("reset")
    return partial(use_somehow, scene.pool)


def leave_by_error_fit_after(scene):
    def fit_after(item, error):
        scene.block()
        return True

    scene.pool.fit_after = fit_after
    return partial(use_somehow, scene.pool, OSError())


def leave_by_error_destroy(scene):
    scene.block_in("destroy")
    return partial(use_somehow, scene.pool, OSError())


def leave_by_application_error_reset(scene):
    scene.block_in("reset")
    scene.pool.fit_after = lambda item, error: True
    return partial(use_somehow, scene.pool, OSError())


def leave_while_in_use(scene):
    def block(item):
        with item:
            scene.block()

    return partial(use_somehow, scene.pool, use=block)


def resize_destroy(scene):
    scene.block_in("destroy")
    pool = item_is_idle(scene)

    def resize():
        pool._line.limit = 2  # as if it had been that large; resize(0) is refused
        other = pool.get()
        third = pool.get()
        pool.put(other)
        pool.put(third)
        gevent.sleep(0)
        pool.resize(1)

    return resize


def close_destroy(scene):
    scene.block_in("destroy")
    return item_is_idle(scene).close


def close_waiting_for_a_holder(scene):
    pool = scene.pool

    def come_back(item):
        with item:
            scene.block()

    spawn(use_somehow, pool, use=come_back)
    settle()
    return partial(pool.close, timeout=5)


def once_killed(scene, victim):
    kill(victim)
    settle()
    scene.event.set()


def once_timed_out(scene, victim):
    throw(victim, Timeout())
    settle()
    scene.event.set()


def killed_before_the_event_in_the_same_turn(scene, victim):
    kill(victim)
    scene.event.set()


def killed_after_the_event_in_the_same_turn(scene, victim):
    scene.event.set()
    kill(victim)


def timed_out_after_the_event_in_the_same_turn(scene, victim):
    scene.event.set()
    throw(victim, Timeout())


def killed_twice_in_one_turn(scene, victim):
    kill(victim)
    kill(victim)
    settle()
    scene.event.set()


def killed_again_a_turn_later(scene, victim):
    kill(victim)
    gevent.sleep(0)
    kill(victim)
    settle()
    scene.event.set()


def killed_again_while_the_rest_is_slow(scene, victim):
    kill(victim)
    gevent.sleep(0.001)
    kill(victim)
    scene.event.set()
    gevent.sleep(0.001)
    kill(victim)


def killed_in_every_turn(scene, victim):
    for _ in range(5):
        kill(victim)
        gevent.sleep(0)
    scene.event.set()
    for _ in range(5):
        kill(victim)
        gevent.sleep(0)


def killed_two_turns_after_the_event(scene, victim):
    scene.event.set()
    gevent.sleep(0)
    kill(victim)
    gevent.sleep(0)
    kill(victim)


def not_at_all(scene, victim):
    scene.event.set()


interruptions = pytest.mark.parametrize(
    "interrupted",
    [
        once_killed,
        once_timed_out,
        killed_before_the_event_in_the_same_turn,
        killed_after_the_event_in_the_same_turn,
        timed_out_after_the_event_in_the_same_turn,
        killed_twice_in_one_turn,
        killed_again_a_turn_later,
        killed_again_while_the_rest_is_slow,
        killed_in_every_turn,
        killed_two_turns_after_the_event,
        not_at_all,
    ],
    ids=lambda function: function.__name__,
)

of_any_pool = [get_create, get_create_that_fails]
of_connection_pools = [
    get_check,
    get_check_that_says_no,
    get_check_that_fails,
    get_replacing_a_stale_item,
    get_replacing_a_stale_item_create,
    put_reset,
    put_reset_that_fails,
    put_destroy_after_a_failed_reset,
    discard_destroy,
    discard_destroy_that_fails,
    leave_clean_reset,
    leave_by_error_fit_after,
    leave_by_error_destroy,
    leave_by_application_error_reset,
    leave_while_in_use,
]
scenes = pytest.mark.parametrize(
    ("kind", "setting"),
    [
        *((Pool, scene) for scene in [*of_any_pool, leave_while_in_use]),
        *((ConnectionPool, scene) for scene in of_any_pool + of_connection_pools),
    ],
    ids=lambda thing: thing.__name__,
)


def play(kind, setting, interrupted, others):
    """Have the scene's greenlet interrupted; return it, the others and the pool."""
    scene = Scene()
    pool = scene.make(kind)
    act = setting(scene)

    def victim_act():
        with suppress(Timeout, PoolClosed):
            act()

    victim = spawn(victim_act)
    until(lambda: scene.blocked)
    waiters = []
    for _ in range(others):
        waiters.append(spawn(use, pool))
        settle()
    interrupted(scene, victim)
    until(lambda: all(one.ready() for one in (victim, *waiters)) and all_gone(pool))
    if not isinstance(victim.exception, OSError):
        assert victim.successful(), victim.exception
    return scene, waiters


@scenes
@interruptions
def test_interrupted(kind, setting, interrupted):
    scene, _ = play(kind, setting, interrupted, others=0)
    full_check(scene.pool, scene.gate)


@scenes
@interruptions
def test_interrupted_with_two_in_line_who_are_served(kind, setting, interrupted):
    scene, waiters = play(kind, setting, interrupted, others=2)
    assert all(waiter.successful() for waiter in waiters)
    full_check(scene.pool, scene.gate)


@interruptions
def test_resize_interrupted(interrupted):
    scene, _ = play(ConnectionPool, resize_destroy, interrupted, others=0)
    assert scene.pool.max_size == 1
    full_check(scene.pool, scene.gate)


@pytest.mark.parametrize("setting", [close_destroy, close_waiting_for_a_holder])
@interruptions
def test_close_interrupted(setting, interrupted):
    scene, _ = play(ConnectionPool, setting, interrupted, others=0)
    pool, gate = scene.pool, scene.gate
    assert pool.closed
    until(lambda: pool.current_size == 0)
    assert gate.live == 0
    assert gate.destroyed == gate.created == 1
    assert pool.close() == []


@pytest.mark.parametrize("verb", ["check", "reset", "destroy"])
@pytest.mark.parametrize("behaviour", [error, killed, timed_out])
def test_verb_that_ends_by_itself_in_any_way_loses_nothing(verb, behaviour):
    """A hook may also raise a Timeout or a GreenletExit of its own making."""
    gate = Gate(**{verb: (behaviour, behaviour, behaviour, ok)})
    pool = make(ConnectionPool, gate, max_size=3)

    def work():
        for _ in range(4):
            try:
                item = pool.get()
            except (Timeout, gevent.GreenletExit):
                continue
            gevent.sleep(0)
            with suppress(Timeout, gevent.GreenletExit):
                (pool.discard if verb == "destroy" else pool.put)(item)
            gevent.sleep(0)

    workers = [spawn(work) for _ in range(5)]
    settle()
    assert all(worker.successful() for worker in workers)
    assert gate.calls[verb] > 3
    full_check(pool, gate)


def test_destroy_that_hangs_is_cut_off_and_its_slot_comes_free():
    gate = Gate(destroy=(never, ok))
    pool = make(ConnectionPool, gate, max_size=1, destroy_timeout=0.005)
    pool.discard(pool.get())
    assert pool.current_size == 1, "it counts until it is gone"

    waiter = spawn(pool.get)
    waiter.join(5)
    assert waiter.ready()
    pool.put(waiter.get())
    full_check(pool, gate)


# Where put() is called from.


@both
@pytest.mark.parametrize("kills", [1, 2])
def test_putter_killed_in_the_turn_of_its_put(kind, kills):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    event = Event()

    def put_and_die():
        item = pool.get()
        event.wait()
        for _ in range(kills):
            kill(gevent.getcurrent())
        pool.put(item)
        gevent.sleep(0)
        raise AssertionError("not killed")

    putter = spawn(put_and_die)
    settle()
    waiter = spawn(use, pool)
    settle()
    event.set()
    settle()
    assert isinstance(putter.value, gevent.GreenletExit)
    assert waiter.ready()
    full_check(pool, gate)


@both
@pytest.mark.parametrize("waiters", [0, 1, 3])
def test_put_in_the_hub(kind, waiters):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    waiting = [spawn(use, pool) for _ in range(waiters)]
    settle()

    gevent.get_hub().loop.run_callback(pool.put, item)
    settle()
    assert all(waiter.successful() for waiter in waiting)
    full_check(pool, gate)


@both
def test_put_from_a_timer(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    waiter = spawn(use, pool)
    settle()
    timer = gevent.get_hub().loop.timer(0.001)
    timer.start(pool.put, item)
    waiter.join(5)
    assert waiter.ready()
    assert waiter.successful()
    timer.close()
    full_check(pool, gate)


@both
@pytest.mark.parametrize("waiters", [0, 2])
def test_put_in_the_hub_whose_reset_would_switch_destroys_the_item(kind, waiters):
    """The hub cannot wait; the slot comes free all the same."""
    gate = Gate(reset=(slow, ok))
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    waiting = [spawn(use, pool) for _ in range(waiters)]
    settle()
    gevent.get_hub().loop.run_callback(pool.put, item)
    settle()
    assert item.destroyed == (kind is ConnectionPool)
    assert all(waiter.successful() for waiter in waiting)
    full_check(pool, gate)


@pytest.mark.parametrize("behaviour", [ok, slow, error, killed])
def test_discard_in_the_hub(behaviour):
    gate = Gate(destroy=(behaviour, ok))
    pool = make(ConnectionPool, gate, max_size=1)
    item = pool.get()
    waiter = spawn(use, pool)
    settle()
    gevent.get_hub().loop.run_callback(pool.discard, item)
    waiter.join(5)
    assert waiter.ready()
    assert waiter.successful()
    full_check(pool, gate)


class PutsBackWhenDropped:
    """A user's session object that returns its item in __del__, in a cycle."""

    def __init__(self, pool):
        self.pool = pool
        self.item = pool.get()
        self.me = self

    def __del__(self):
        self.pool.put(self.item)


@both
def test_put_from_a_finalizer(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    session = PutsBackWhenDropped(pool)
    waiter = spawn(use, pool)
    settle()
    session.me = None
    del session
    settle()
    assert waiter.ready()
    full_check(pool, gate)


@both
@pytest.mark.parametrize("spare", [0, 1])
def test_put_from_a_gc_callback_inside_get(kind, spare):
    """The collector runs whenever something is allocated, in get() too."""
    gate = Gate()
    pool = make(kind, gate, max_size=1 + spare)
    gc.collect()
    threshold = gc.get_threshold()
    gc.disable()
    try:
        kept = PutsBackWhenDropped(pool).item  # else its own finalizer would run as well
        getters = [spawn(pool.get, timeout=5) for _ in range(1 + spare)]
        gc.set_threshold(1)
        gc.enable()
        settle()
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    assert all(getter.ready() for getter in getters)
    items = [getter.get() for getter in getters]
    assert kept in items
    assert len({id(item) for item in items}) == 1 + spare
    for item in items:
        pool.put(item)
    full_check(pool, gate)


@both
def test_put_from_a_finalizer_just_before_a_get_waits(kind, monkeypatch):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()

    def put_and_get_hub():  # get() does, to start its timer
        pool.put(item)
        return gevent.get_hub()

    monkeypatch.setattr(_within, "get_hub", put_and_get_hub)
    getter = spawn(pool.get, timeout=5)
    settle()
    monkeypatch.undo()
    assert getter.ready()
    pool.put(getter.get())
    full_check(pool, gate)


@both
def test_put_between_the_look_at_the_shelf_and_the_wait(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()
    line = pool._line

    class Waiters(type(line.waiters)):
        def __setitem__(self, key, value):
            pool.put(item)  # as a finalizer does, when memory is asked for
            super().__setitem__(key, value)

    line.waiters = Waiters()
    getter = spawn(pool.get)
    settle()
    assert getter.ready()
    assert getter.get() is item


@both
def test_greenlet_collected_in_its_with_block_gives_the_slot_back(kind):
    """Nobody refers to a greenlet that waits for what nobody will do."""
    gate = Gate(destroy=(slow,))
    pool = make(kind, gate, max_size=1)

    def work():
        with pool.item():
            gevent.get_hub().switch()

    worker = greenlet(work, gevent.get_hub())
    gevent.get_hub().loop.run_callback(worker.switch)
    settle()
    assert pool.free() == 0
    waiter = spawn(use, pool)
    settle()
    gone = weakref.ref(worker)
    del worker
    gc.collect()
    assert gone() is None or gone().dead or kind is ConnectionPool
    waiter.join(5)
    assert waiter.ready()
    full_check(pool, gate)


# Leaving the with block.

ways_out = pytest.mark.parametrize(
    "way_out",
    [Timeout(0), gevent.GreenletExit(), KeyboardInterrupt(), SystemExit(), OSError(), None],
    ids=lambda error: type(error).__name__,
)


@both
@ways_out
@pytest.mark.parametrize("second_kill", [False, True])
def test_leaving_the_block(kind, way_out, second_kill):
    """However the block is left, and killed again while that is done, nothing is lost."""
    gate = Gate(reset=(slow,), destroy=(slow,))
    pool = make(kind, gate, max_size=1)

    def work():
        try:
            with pool.item() as item, item:
                if way_out is not None:
                    raise way_out
        except BaseException as error:
            return error

    worker = spawn(work)
    gevent.sleep(0)
    if second_kill:
        kill(worker)
    waiter = spawn(use, pool)
    gevent.joinall([worker, waiter], timeout=5)
    assert worker.ready()
    assert waiter.ready()
    assert waiter.successful()
    if not second_kill:
        assert worker.get() is way_out
    if kind is ConnectionPool:
        assert gate.destroyed == (way_out is not None or second_kill)
    else:
        assert gate.created == 1
    until(lambda: all_gone(pool))
    full_check(pool, gate)


@both
def test_get_by_hand_with_put_in_finally_survives_ten_kills(kind):
    gate = Gate(slow, reset=(slow,), destroy=(slow,))
    pool = make(kind, gate, max_size=2)

    def work():
        item = pool.get()
        try:
            item.use(0.002)
        finally:
            pool.put(item)

    workers = [spawn(work) for _ in range(8)]
    for _ in range(10):
        for worker in workers:
            kill(worker)
        gevent.sleep(0.001)
    gevent.joinall(workers, timeout=5)
    assert all(worker.ready() for worker in workers)
    until(lambda: all_gone(pool))
    full_check(pool, gate)


# Nothing is left behind.


@both
def test_1000_gets_that_time_out_leave_nothing_behind(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()

    def rounds(count):
        getters = [spawn(expect_timeout, pool) for _ in range(count)]
        gevent.joinall(getters, timeout=20)
        assert all(getter.successful() for getter in getters)
        del getters
        gc.collect()
        kinds = (Timeout, PoolTimeout, greenlet)
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    before = rounds(10)
    after = rounds(1000)
    assert after <= before
    assert pool.waiting() == 0
    assert not pool._line._scheduled
    pool.put(item)
    full_check(pool, gate)


def expect_timeout(pool):
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0.001)


@both
def test_timeout_that_ends_a_get_is_cancelled_when_the_get_succeeds(kind):
    """It used to be possible to forget the timer, which then hits the user of the item."""
    gate = Gate(slow)
    pool = make(kind, gate, max_size=1)

    def work():
        for timeout in (0.02, 0.02, None):
            with pool.item(timeout=timeout):
                gevent.sleep(0.03)
        return "unharmed"

    worker = spawn(work)
    worker.join(5)
    assert worker.get(block=False) == "unharmed"


@both
def test_foreign_timeout_passes_through_get_untouched(kind):
    gate = Gate()
    pool = make(kind, gate, max_size=1)
    item = pool.get()

    def work():
        with Timeout(0.005) as mine:
            try:
                pool.get(timeout=5)
            except Timeout as fired:
                return fired is mine

    worker = spawn(work)
    worker.join(5)
    assert worker.get(block=False) is True
    pool.put(item)
    full_check(pool, gate)


@both
def test_kill_at_each_turn_of_a_whole_life(kind):
    """One greenlet gets, uses and puts; each verb takes a turn, and each turn is its last once."""

    def turn():
        gevent.sleep(0)

    lived = []
    for turns in range(14):
        gate = Gate(turn, check=(turn,), reset=(turn,), destroy=(turn,))
        pool = make(kind, gate, max_size=1)

        def work(pool=pool):
            for _ in range(2):
                with pool.item() as item, item:
                    turn()

        worker = spawn(work)
        behind = spawn(use, pool)
        for _ in range(turns):
            gevent.sleep(0)
        kill(worker)
        settle()
        assert worker.ready()
        assert behind.ready()
        assert behind.successful(), behind.exception
        full_check(pool, gate)
        lived.append(worker.value is None)
    assert lived[-1], "14 turns are not enough to see it through"
    assert not lived[0]
    assert all(earlier <= later for earlier, later in pairwise(lived))


@pytest.mark.parametrize("error", [gevent.GreenletExit(), Timeout()])
@pytest.mark.parametrize(
    ("act", "left"),
    [
        (lambda pool: pool.close(), 0),
        (lambda pool: pool.resize(1), 1),
        (lambda pool: pool.recycle(), 0),
    ],
    ids=["close", "resize", "recycle"],
)
def test_kill_while_many_items_are_let_go_saves_none_of_them(act, left, error):
    """It comes when the first destroy has begun and waits; the others would lose their slots."""
    gate = Gate(destroy=(slow,))
    pool = make(ConnectionPool, gate, max_size=4)
    items = [pool.get() for _ in range(4)]
    while items:
        pool.put(items.pop())

    def interrupted():
        gevent.get_hub().loop.run_callback(gevent.getcurrent().throw, error)
        act(pool)

    actor = spawn(interrupted)
    actor.join(5)
    assert actor.value is error or actor.exception is error
    until(lambda: all_gone(pool))
    assert gate.calls["destroy"] == 4 - left
    assert pool.current_size == gate.live == left
    assert gate.double_destroys == []
