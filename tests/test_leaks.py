"""Items held for too long, and items dropped without put or discard."""

import gc
import logging
import re
import sysconfig
import weakref

import gevent
import pytest
from gevent.event import Event
from gevent.monkey import get_original

from gpools import (
    ConnectionPool,
    Hold,
    NotInUse,
    PoolTimeout,
    RedisPool,
    _fast,
    _sweeper,
    connection,
)
from gpools._holders import greenlet_name, item_name
from tests.hostile import Gate, full_check, slow
from tests.waiting import settle, spawn, until

PASSWORD = "s3cret"


class Conn:
    """An item whose repr would show a password."""

    def __repr__(self):
        return f"<Conn for admin:{PASSWORD}@db>"


class Ears:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.leaks = []
        self.reasons = []

    def leaked(self, pool, hold):
        self.leaks.append(hold)

    def destroyed(self, pool, reason):
        self.reasons.append(reason)


@pytest.fixture
def ears():
    return Ears()


@pytest.fixture(autouse=True)
def warnings(caplog):
    """What the pools logged at WARNING and above."""
    gc.collect()
    settle()  # what the test before has dropped
    caplog.set_level(logging.INFO, logger="gpools")
    caplog.clear()
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def collected(pool):
    gc.collect()
    settle()
    return pool.stats().destroyed.get("collected", 0)


# Dropped.


def test_an_item_dropped_without_put_gives_its_slot_back(ears, warnings):
    pool = ConnectionPool(max_size=1, create=Conn, listener=ears)

    def careless():
        pool.get()

    spawn(careless).join()
    assert collected(pool) == 1
    stats = pool.stats()
    assert (stats.size, stats.in_use, stats.leaks) == (0, 0, 1)
    assert stats.created - sum(stats.destroyed.values()) == 0

    [text] = warnings()
    assert "an item was dropped without put or discard after" in text
    [hold] = ears.leaks
    assert isinstance(hold, Hold)
    assert hold.item is None
    assert ears.reasons == ["collected"]
    assert pool.get(timeout=0) is not None


def test_the_log_names_who_held_it(ears, warnings):
    pool = ConnectionPool(max_size=1, create=Conn, listener=ears)

    def careless():
        pool.get()
        Event().wait()

    culprit = spawn(careless)
    culprit.name = "importer-7"
    settle()
    assert collected(pool) == 1
    assert "by <Watched 'importer-7'> at test_leaks.py:" in warnings()[0]
    assert ears.leaks[0].greenlet is culprit
    assert "Event().wait()" in ears.leaks[0].stack()
    culprit.kill()


def test_the_log_says_when_the_greenlet_is_gone_too(warnings):
    pool = ConnectionPool(max_size=1, create=Conn)
    gevent.spawn(lambda: pool.get() and None).join()
    gevent.sleep(0)
    assert collected(pool) == 1
    assert re.search(r"by (a greenlet that is gone|<Greenlet '.*'> \(ended\))$", warnings()[0])


@pytest.mark.parametrize("max_creating", [None, 1])
def test_a_waiter_is_served_when_an_item_is_dropped(max_creating):
    pool = ConnectionPool(max_size=1, create=Conn, max_creating=max_creating)
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    assert not waiter.ready()
    del item
    gc.collect()
    settle()
    assert isinstance(waiter.get(block=False), Conn)
    assert pool.current_size == 1


def test_dropped_items_do_not_outlive_a_shrunk_or_closed_pool():
    pool = ConnectionPool(max_size=2, create=Conn)
    items = [pool.get(), pool.get()]
    pool.resize(1)
    del items[0]
    assert collected(pool) == 1
    closing = spawn(pool.close, timeout=10)
    settle()
    items.clear()
    gc.collect()
    settle()
    assert closing.get(block=False) == []
    assert pool.current_size == 0


def test_idle_items_are_kept_alive_by_their_pool():
    pool = ConnectionPool(max_size=2, create=Conn)
    pool.put(pool.get())
    assert collected(pool) == 0
    assert pool.stats().idle == 1


def test_a_discarded_item_is_not_missed_when_it_is_collected(warnings):
    pool = ConnectionPool(max_size=2, create=Conn)
    pool.discard(pool.get())
    pool.put(pool.get())
    pool.recycle()
    assert collected(pool) == 0
    assert pool.stats().leaks == 0
    assert pool.current_size == 0
    assert warnings() == []


def test_an_item_dropped_in_its_with_block_comes_back():
    """The block holds it."""
    pool = ConnectionPool(max_size=1, create=Conn)
    with pool.item():
        assert collected(pool) == 0
    assert pool.stats().idle == 1


def test_an_item_collected_in_another_thread_is_missed_in_the_hub(ears):
    pool = ConnectionPool(max_size=1, create=Conn, listener=ears)
    box = [pool.get()]
    waiter = spawn(pool.get, timeout=20)
    settle()
    begin = get_original("threading", "Event")()

    def drop():
        begin.wait(20)
        box.clear()
        gc.collect()

    thread = get_original("threading", "Thread")(target=drop, daemon=True)
    thread.start()
    gevent.get_hub().loop.run_callback(begin.set)
    assert isinstance(waiter.get(timeout=20), Conn)
    thread.join(20)
    assert pool.stats().destroyed == {"collected": 1}
    assert ears.leaks[0].item is None


def test_a_get_inside_which_the_collector_runs_counts_right():
    """The finder runs in the middle of whatever is under way."""

    def create():
        made.clear()
        gc.collect()
        return Conn()

    made = []
    pool = ConnectionPool(max_size=3, create=create)
    for _ in range(10):
        cycle = [pool.get(timeout=5)]
        cycle.append(cycle)
        made.append(cycle)
        del cycle
        settle()
    made.clear()
    gc.collect()
    settle()
    stats = pool.stats()
    assert (stats.size, stats.in_use) == (0, 0)
    assert stats.destroyed == {"collected": stats.created}


def test_a_pool_collected_before_its_items_is_no_error(warnings):
    pool = ConnectionPool(max_size=1, create=Conn)
    item = pool.get()
    del pool
    gc.collect()
    del item
    gc.collect()
    settle()
    assert warnings() == []


def test_items_that_cannot_be_referred_to_weakly_are_pooled_all_the_same(warnings):
    """A tuple, as of two sockets: one that is dropped is not missed."""
    pool = ConnectionPool(max_size=2, create=lambda: (object(), object()), destroy=lambda item: 1)
    item = pool.get()
    pool.put(item)
    assert pool.get() is item
    pool.discard(item)
    pool.get()
    gc.collect()
    settle()
    assert pool.stats().in_use == 1
    assert warnings() == []
    assert isinstance(pool.holders()[0].item, tuple)


def test_an_address_taken_again_is_not_taken_for_the_item_that_was_there(warnings):
    """The one that was dropped is missed only a turn later; the new one has its id."""
    ids = []

    def create():
        others = []  # alive, so that no two of them have one address
        for _ in range(1000):
            item = Conn()
            if id(item) in ids:
                break
            others.append(item)
        ids.append(id(item))
        return item

    pool = ConnectionPool(max_size=50, create=create)
    for _ in range(50):
        pool.get()  # dropped at once, and the hub has no turn
    assert len(set(ids)) < len(ids), "no address was taken twice"
    item = pool.get()
    settle()
    stats = pool.stats()
    assert stats.size == stats.in_use == 1
    assert stats.leaks == stats.destroyed["collected"] == 50
    pool.put(item)
    settle()
    assert pool.stats().idle == 1
    assert len(warnings()) == 50


class Large:
    # Of a size that little else has, or something else would get its place in memory.
    __slots__ = ("__weakref__", *(f"unused_{number}" for number in range(40)))


def test_a_foreign_object_at_the_address_of_a_dropped_item_is_refused():
    pool = ConnectionPool(max_size=100, create=Large)
    were = {id(pool.get()) for _ in range(100)}  # some of them at one address
    strangers = [Large() for _ in range(1000)]
    lookalikes = [stranger for stranger in strangers if id(stranger) in were]
    assert lookalikes
    for stranger in lookalikes:
        with pytest.raises(NotInUse):
            pool.put(stranger)
    settle()
    assert pool.current_size == 0


def test_dropping_many_leaves_a_sound_pool(warnings):
    pool = ConnectionPool(max_size=5, **(gate := Gate(slow)).verbs)

    def careless(n):
        item = pool.get(timeout=20)
        gevent.sleep(0)
        if n % 3:
            pool.put(item)

    users = [gevent.spawn(careless, n) for n in range(60)]
    gevent.joinall(users, timeout=30)
    users.clear()
    until(lambda: collected(pool) == 20)
    assert pool.stats().leaks == 20
    full_check(pool, gate)


# Held for too long.


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set; the sweeper looks when told."""
    clock = Clock()
    for module in (_fast, connection, _sweeper):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


def look(pool):
    settle()
    pool._book.sweeper.wake()
    settle()


def test_a_long_hold_is_reported_once_with_where_the_holder_is(clock, ears, warnings):
    pool = ConnectionPool(max_size=2, create=Conn, leak_after=60, listener=ears)

    def forgetful():
        item = pool.get()
        wait_for_godot.wait()
        pool.put(item)

    wait_for_godot = Event()
    holder = spawn(forgetful)
    holder.name = "forgetful-1"
    look(pool)
    clock.now += 59
    look(pool)
    assert warnings() == []

    clock.now += 2
    look(pool)
    [text] = warnings()
    assert "an item is held for 61.0 s by <Watched 'forgetful-1'> at test_leaks.py:" in text
    assert "wait_for_godot.wait()" in text
    assert pool.stats().leaks == 1
    [hold] = ears.leaks
    assert hold.greenlet is holder
    assert isinstance(hold.item, Conn)

    clock.now += 600
    look(pool)
    assert len(warnings()) == 1
    assert pool.stats().leaks == 1
    wait_for_godot.set()
    settle()


def test_a_later_return_says_so(clock, caplog):
    pool = ConnectionPool(max_size=1, create=Conn, leak_after=60)
    item = pool.get()
    look(pool)
    clock.now += 61
    look(pool)
    caplog.clear()
    clock.now += 10
    pool.put(item)
    settle()
    assert [
        record.getMessage().endswith("came back after 71.0 s") for record in caplog.records
    ] == [True]
    assert pool.stats().idle == 1


def test_the_next_hold_of_the_same_item_is_reported_anew(clock, warnings):
    pool = ConnectionPool(max_size=1, create=Conn, leak_after=60)
    for count in (1, 2):
        item = pool.get()
        look(pool)
        clock.now += 61
        look(pool)
        assert len(warnings()) == count
        pool.put(item)
    assert pool.stats().leaks == 2


def test_short_holds_and_idle_items_are_no_leaks(clock, warnings, caplog):
    pool = ConnectionPool(max_size=2, create=Conn, leak_after=60)
    for _ in range(5):
        item = pool.get()
        clock.now += 50
        look(pool)
        pool.put(item)
        clock.now += 5000
        look(pool)
    assert warnings() == []
    assert "came back" not in caplog.text


def test_without_leak_after_nobody_looks():
    pool = ConnectionPool(max_size=1, create=Conn)
    pool.get()
    assert pool._book.sweeper is None


def test_a_long_hold_is_reported_without_anybody_asking(warnings):
    """In real time: the sweeper wakes by itself, and is woken by no use of the pool."""
    pool = ConnectionPool(max_size=1, create=Conn, leak_after=0.02)
    item = pool.get()
    until(warnings)
    assert "by <greenlet 'main'>" in warnings()[0]
    pool.put(item)


@pytest.mark.parametrize("setting", [0, -1, float("nan")])
def test_a_senseless_leak_after_is_refused(setting):
    with pytest.raises(ValueError, match="leak_after"):
        ConnectionPool(create=Conn, leak_after=setting)


# holders().


def test_holders_are_listed_longest_first(clock):
    pool = ConnectionPool(max_size=5, create=Conn)
    made = [pool.get() for _ in range(3)]
    for item in reversed(made):  # so that who takes first takes what was made last
        pool.put(item)
    del made, item
    items = {}

    def hold(name):
        items[name] = pool.get()
        Event().wait()

    greenlets = {}
    for name in "abc":
        greenlets[name] = spawn(hold, name)
        settle()
        clock.now += 10
    pool.put(pool.get())

    holds = pool.holders()
    assert [hold.seconds for hold in holds] == [30.0, 20.0, 10.0]
    assert [hold.item for hold in holds] == [items[name] for name in "abc"]
    assert [hold.greenlet for hold in holds] == [greenlets[name] for name in "abc"]
    pool.discard(items["b"])
    assert [hold.item for hold in pool.holders()] == [items["a"], items["c"]]
    gevent.killall(list(greenlets.values()))


def test_who_put_is_not_who_holds(clock):
    """The holder is who took it last."""
    pool = ConnectionPool(max_size=1, create=Conn)
    spawn(lambda: pool.put(pool.get())).join()
    clock.now += 100
    item = pool.get()
    [hold] = pool.holders()
    assert hold.greenlet is gevent.getcurrent()
    assert hold.seconds == 0
    pool.put(item)


def test_the_stack_is_where_the_holder_is_now():
    pool = ConnectionPool(max_size=1, create=Conn)
    first, second = Event(), Event()

    def work():
        with pool.item():
            first.wait()
            deeper()

    def deeper():
        second.wait()

    holder = spawn(work)
    settle()
    [hold] = pool.holders()
    assert "first.wait()" in hold.stack()
    assert "deeper" not in hold.stack()
    first.set()
    settle()
    stack = hold.stack()
    assert stack.index("deeper()") < stack.index("second.wait()")
    second.set()
    holder.join()
    assert hold.stack() == ""


def test_the_stack_of_the_caller_itself():
    pool = ConnectionPool(max_size=1, create=Conn)
    item = pool.get()
    assert "test_the_stack_of_the_caller_itself" in pool.holders()[0].stack()
    pool.put(item)


def test_the_holder_is_shown_in_the_programs_own_code():
    """Not in the innermost frame, which is gevent's."""
    pool = ConnectionPool(max_size=1, create=Conn)

    def work():
        with pool.item():
            gevent.sleep(60)

    holder = spawn(work)
    settle()
    line = work.__code__.co_firstlineno + 2
    assert str(pool.holders()[0]).endswith(f" at test_leaks.py:{line}")
    holder.kill()


def test_the_caller_itself_is_shown_where_it_asks():
    pool = ConnectionPool(max_size=1, create=Conn)
    item = pool.get()
    assert re.search(r" by <greenlet 'main'> at test_leaks.py:\d+$", str(pool.holders()[0]))
    pool.put(item)


def test_a_holder_that_waits_for_another_item_is_shown_where_it_asked_for_it():
    """Not inside the pool."""
    pool = ConnectionPool(max_size=1, create=Conn)

    def greedy():
        with pool.item():
            pool.get()

    holder = spawn(greedy)
    settle()
    line = greedy.__code__.co_firstlineno + 2
    assert str(pool.holders()[0]).endswith(f" at test_leaks.py:{line}")
    holder.kill()


LIBRARY = """
def call(act, *args):
    return act(*args)

def hold(pool, sleep):
    with pool.item():
        sleep(60)
"""


@pytest.fixture
def library():
    """Functions that pass for the standard library's."""
    names = {"__name__": "library"}
    path = f"{sysconfig.get_path('stdlib')}/library.py"
    exec(compile(LIBRARY, path, "exec"), names)
    return names


def test_a_holder_inside_a_library_is_shown_where_it_called_that(library):
    pool = ConnectionPool(max_size=1, create=Conn)

    def work():
        with pool.item():
            library["call"](gevent.sleep, 60)

    holder = spawn(work)
    settle()
    line = work.__code__.co_firstlineno + 2
    assert str(pool.holders()[0]).endswith(f" at test_leaks.py:{line}")
    holder.kill()


def test_a_holder_that_is_all_library_is_shown_there(library):
    pool = ConnectionPool(max_size=1, create=Conn)
    holder = spawn(library["hold"], pool, gevent.sleep)
    settle()
    assert str(pool.holders()[0]).endswith(" at library.py:7")
    holder.kill()


def test_a_hold_of_a_greenlet_that_is_gone():
    pool = ConnectionPool(max_size=1, create=Conn)
    box = []
    gevent.spawn(lambda: box.append(pool.get())).join()
    gevent.sleep(0)
    gc.collect()
    [hold] = pool.holders()
    assert hold.stack() == ""
    assert re.fullmatch(r"0\.\d s by (a greenlet that is gone|<Greenlet .*> \(ended\))", str(hold))
    pool.put(box.pop())
    assert pool.holders() == []


def test_the_pool_keeps_no_holder_alive():
    pool = ConnectionPool(max_size=1, create=Conn)
    box = []
    holder = gevent.Greenlet(lambda: box.append(pool.get()))
    holder.start()
    holder.join()
    gone = weakref.ref(holder)
    del holder
    gevent.sleep(0)
    gc.collect()
    assert gone() is None
    assert pool.holders()[0].greenlet is None


def test_a_hold_is_frozen():
    with pytest.raises(AttributeError):
        Hold(object(), None, 1.0).seconds = 2


def test_the_timeout_names_the_longest_holder_and_carries_all(clock):
    pool = ConnectionPool(max_size=2, create=Conn)
    done = Event()

    def hold():
        with pool.item():
            done.wait()

    first, second = spawn(hold), spawn(hold)
    first.name, second.name = "first", "second"
    settle()
    clock.now += 31.2
    with pytest.raises(PoolTimeout) as late:
        pool.get(timeout=0)
    assert "longest held 31.2 s by <Watched 'first'> at test_leaks.py:" in str(late.value)
    assert {hold.greenlet for hold in late.value.holders} == {first, second}
    done.set()
    settle()


def test_close_names_those_who_still_hold(warnings):
    pool = ConnectionPool(max_size=1, create=Conn)
    item = pool.get()
    [hold] = pool.close(timeout=0.001)
    assert hold.item is item
    assert "closed after 0.001 s with items still held" in warnings()[0]
    assert "by <greenlet 'main'>" in warnings()[0]


# No password in any of it.


def test_no_password_is_shown(clock, caplog, ears):
    pool = ConnectionPool(
        max_size=2, create=Conn, leak_after=60, listener=ears, destroy=lambda item: item.nonsense()
    )

    def work(password):
        item = pool.get()
        Event().wait()
        return item

    holder = gevent.Greenlet(work, PASSWORD)
    holder.start()
    items = [pool.get()]
    look(pool)
    clock.now += 61
    look(pool)
    shown = [str(late_error(pool)), repr(pool), *map(str, pool.holders()), str(pool.stats())]
    shown += [item_name(items[0]), greenlet_name(holder), *map(str, ears.leaks)]
    pool.put(items.pop())
    with pytest.raises(NotInUse) as refused:
        pool.put(Conn())
    shown.append(str(refused.value))
    holder.kill()
    del holder
    gc.collect()
    settle()
    pool.close(timeout=0.001)
    settle()
    shown += [record.getMessage() for record in caplog.records]
    assert len(caplog.records) >= 3
    assert [text for text in shown if PASSWORD in text] == []


def late_error(pool):
    with pytest.raises(PoolTimeout) as late:
        pool.get(timeout=0)
    return late.value


def test_no_password_of_a_redis_url_is_shown(caplog):
    pool = RedisPool(f"redis://admin:{PASSWORD}@127.0.0.1:1/0", max_size=1)
    with pytest.raises(Exception) as refused:  # noqa: PT011 - whichever redis-py raises
        pool.get(timeout=5)
    assert PASSWORD not in str(refused.value)
    assert PASSWORD not in repr(pool)
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        (None, "a greenlet that is gone"),
        (gevent.getcurrent(), "<greenlet 'main'>"),
    ],
)
def test_greenlets_are_named_without_their_arguments(holder, name):
    assert greenlet_name(holder) == name


def test_greenlets_without_a_name_are_told_by_their_address():
    raw = gevent.hub.spawn_raw(lambda: None)
    assert greenlet_name(raw) == f"<{type(raw).__name__} '{id(raw):#x}'>"
    settle()
    assert greenlet_name(raw).endswith(" (ended)")
