"""stats() adds up at every moment; a listener hears what is rare and can break nothing."""

import dataclasses
import gc
import logging
import random
from collections import Counter
from contextlib import suppress
from itertools import count

import gevent
import greenlet
import pytest

from gpools import CoDel, ConnectionPool, PoolClosed, PoolError, PoolShed, PoolTimeout
from gpools.keyed import KeyedPool
from tests.hostile import (
    Gate,
    error,
    full_check,
    killed,
    never,
    ok,
    settle,
    slow,
    spawn,
    stale,
    timed_out,
)
from tests.test_ages import clock, pool_of, put_all, sweep, take
from tests.waiting import until

__all__ = ["clock"]  # a fixture


def adds_up(pool):
    """Assert what `Stats` promises of any moment, and return it."""
    stats = pool.stats()
    parts = stats.idle, stats.in_use, stats.between, stats.creating, stats.destroying
    assert min(parts) >= 0, stats
    assert stats.size == sum(parts), stats
    assert stats.created - sum(stats.destroyed.values()) == stats.size - stats.creating, stats
    # An item handed over is in no list until its greenlet runs.
    assert stats.idle >= len(pool._line.idle), stats
    return stats


def test_a_new_pool_has_nothing():
    pool = ConnectionPool(max_size=7, create=Gate())

    stats = vars(pool.stats())
    assert stats.pop("max_size") == 7
    assert stats.pop("destroyed") == {}
    assert set(stats.values()) == {0}


def test_it_is_frozen():
    pool = pool_of(Gate(), 1)
    stats = pool.stats()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.size = 5
    with pytest.raises(TypeError):
        stats.destroyed["check"] = 5
    pool.discard(pool.get())

    assert stats.size == 1
    assert stats.destroyed == {}
    assert pool.stats().destroyed == {"discarded": 1}


def test_it_tells_where_each_item_is(clock):
    gate = Gate(
        *(ok,) * 6,
        lambda: gevent.sleep(1),
        check=(lambda: gevent.sleep(1),),
        reset=(ok,) * 3 + (lambda: gevent.sleep(1),),
        destroy=(lambda: gevent.sleep(1),),
    )
    pool = pool_of(gate, max_size=7)
    held = take(pool, 6)
    put_all(pool, held[:3])
    clock.pass_(1)
    spawn(pool.get)  # checks
    spawn(pool.put, held[3])
    spawn(pool.discard, held[4])
    settle()
    taken = [spawn(pool.get) for _ in range(4)]  # two check, one creates, one waits
    settle()
    stats = adds_up(pool)

    assert (stats.size, stats.max_size) == (7, 7)
    assert (stats.idle, stats.in_use, stats.between) == (0, 1, 4)
    assert (stats.creating, stats.destroying, stats.waiting) == (1, 1, 1)
    gevent.killall(taken)


def test_errors_of_create_are_counted():
    gate = Gate(error, killed, timed_out, ok)
    pool = pool_of(gate)
    for kind in (OSError, gevent.GreenletExit, gevent.Timeout):
        with pytest.raises(kind):
            pool.get()
    pool.get()

    assert (adds_up(pool).create_errors, pool.stats().created) == (3, 1)


def test_timeouts_are_counted():
    pool = pool_of(Gate(), max_size=1, timeout=0.001)
    held = pool.get()
    with pytest.raises(PoolTimeout):
        pool.get()
    with pytest.raises(PoolTimeout), pool.item(timeout=0.002):
        pass
    with gevent.Timeout(0.001, False):  # the program's own is no timeout of the pool
        pool.get(timeout=10)

    assert adds_up(pool).timeouts == 2
    pool.put(held)


def test_waits_are_counted_with_their_seconds(clock):
    pool = pool_of(Gate(), max_size=1)
    held = pool.get()
    served, killed = spawn(pool.get), spawn(pool.get)
    settle()
    clock.pass_(3)
    killed.kill()
    clock.pass_(4)
    pool.put(held)
    served.get(timeout=1)

    stats = pool.stats()
    assert stats.waits == 2
    assert stats.wait_seconds == pytest.approx(3 + 7)


def test_gets_that_do_not_wait_count_no_waits(clock):
    pool = pool_of(Gate(), 2)
    clock.pass_(1)
    put_all(pool, take(pool, 3))

    assert (pool.stats().waits, pool.stats().wait_seconds) == (0, 0)


def test_the_seconds_of_create_are_counted(clock):
    gate = Gate(lambda: clock.pass_(2), lambda: clock.pass_(3))
    pool = pool_of(gate)
    take(pool, 2)

    assert pool.stats().create_seconds == pytest.approx(5)


def test_the_seconds_of_holds_are_counted_where_asked_for(clock):
    pool = pool_of(Gate(), count_holds=True)
    put, discarded = take(pool, 2)
    clock.pass_(2)
    pool.put(put)
    clock.pass_(3)
    pool.discard(discarded)
    clock.pass_(100)  # idle is not held
    with pool.item():
        clock.pass_(1)

    assert pool.stats().hold_seconds == pytest.approx(2 + 5 + 1)


def test_the_seconds_of_holds_are_not_counted_otherwise(clock):
    pool = pool_of(Gate())
    item = pool.get()
    clock.pass_(2)
    pool.put(item)

    assert pool.stats().hold_seconds == 0


def overloaded(**settings):
    """Return a pool that sheds, one get of which is held and two of which were shed."""
    gate = Gate()
    pool = pool_of(gate, max_size=1, shed=CoDel(target=0.001, interval=0.005), **settings)
    held = pool.get()
    waiters = [spawn(pool.get) for _ in range(2)]
    gevent.joinall(waiters, timeout=10)
    for waiter in waiters:
        assert isinstance(waiter.exception, PoolShed)
    return pool, held


def test_those_turned_away_by_overload_are_counted():
    pool, held = overloaded()
    stats = adds_up(pool)

    assert (stats.shed, stats.waits, stats.timeouts) == (2, 2, 0)
    pool.put(held)


def test_items_held_for_too_long_are_counted_once(clock):
    pool = pool_of(Gate(), leak_after=10)
    item = pool.get()
    clock.pass_(10)
    sweep(pool)
    clock.pass_(10)
    sweep(pool)
    assert adds_up(pool).leaks == 1

    pool.put(item)
    pool.get()
    clock.pass_(10)
    sweep(pool)
    assert pool.stats().leaks == 2
    pool.close()


# The reasons.


def discarded(clock):
    pool = pool_of(Gate(), 1)
    pool.discard(pool.get())
    return pool


def failed_check(clock):
    pool = pool_of(Gate(check=(stale,)), 1)
    clock.pass_(1)
    pool.put(pool.get())
    return pool


def hung_check(clock):
    pool = pool_of(Gate(check=(never,)), 1, check_timeout=0.01)
    clock.pass_(1)
    pool.put(pool.get())
    return pool


def failed_reset(clock):
    return pool_of(Gate(reset=(error,)), 1)


def shrunk(clock):
    pool = pool_of(Gate(), 2, max_size=2)
    pool.resize(1)
    return pool


def shrunk_in_use(clock):
    pool = pool_of(Gate(), max_size=2)
    pool.held = take(pool, 2)
    pool.resize(1)
    pool.put(pool.held[0])
    return pool


def closed(clock):
    pool = pool_of(Gate(), 1)
    pool.close()
    return pool


def too_old(clock):
    pool = pool_of(Gate(), 1, max_age=10)
    clock.pass_(10)
    sweep(pool)
    return pool


def idle_for_too_long(clock):
    pool = pool_of(Gate(), 1, max_idle=10)
    clock.pass_(10)
    sweep(pool)
    return pool


def never_needed(clock):
    pool = pool_of(Gate(), 2, max_idle=10)
    settle()
    for _ in range(10):
        clock.pass_(1)
        pool.put(pool.get())
        sweep(pool)
    return pool


def recycled(clock):
    pool = pool_of(Gate(), 1)
    pool.recycle()
    return pool


def dropped(clock):
    pool = pool_of(Gate())
    pool.get()
    gc.collect()
    settle()
    return pool


def made_for_another_key(clock):
    pools = KeyedPool(lambda key: pool_of(Gate()), max_size=1)
    with pools.item("a"):
        pool = pools.pools()["a"]
    with pools.item("b"):
        pass
    return pool


def refused(clock):
    pool = pool_of(Gate(slow))
    getter = spawn(pool.get)
    settle()
    pool.close()
    with pytest.raises(PoolClosed):
        getter.get(timeout=1)
    return pool


REASONS = {
    discarded: "discarded",
    failed_check: "check",
    hung_check: "hung",
    failed_reset: "reset",
    shrunk: "surplus",
    shrunk_in_use: "surplus",
    closed: "closed",
    too_old: "max_age",
    idle_for_too_long: "max_idle",
    never_needed: "unused",
    recycled: "recycled",
    dropped: "collected",
    made_for_another_key: "displaced",
    refused: "refused",
}


@pytest.mark.parametrize("cause", REASONS, ids=lambda cause: cause.__name__)
def test_an_item_that_goes_is_counted_with_its_reason(cause, clock):
    pool = cause(clock)
    settle()

    assert adds_up(pool).destroyed == {REASONS[cause]: 1}


def test_every_reason_that_the_docstring_lists_is_among_these():
    from gpools import Stats

    listed = Stats.__doc__.partition("by reason:")[2].partition("The seconds")[0].split("``")[1::2]
    assert set(listed) == set(REASONS.values())


# A storm.


@pytest.mark.parametrize("max_creating", [None, 2])
def test_it_adds_up_at_every_switch_of_a_storm(max_creating, caplog):
    """Looked at whenever any greenlet switches, so between any two acts of the pool."""
    caplog.set_level(logging.CRITICAL, "gpools")  # errors kept in records keep what was held
    dice = random.Random(1)
    gate = Gate(
        *(ok, ok, slow, error, killed),
        check=(ok,) * 8 + (slow, stale, error, killed),
        reset=(ok,) * 20 + (slow, error, timed_out),
        destroy=(ok, slow, error, killed),
        seed=1,
    )
    pool = ConnectionPool(
        max_size=5,
        max_age=0.03,
        max_idle=0.006,
        check_after=0.001,
        max_creating=max_creating,
        count_holds=True,
        listener=(ear := Ear()),
        **gate.verbs,
    )
    wrong = []
    looks = Counter()

    def look(event, between):
        looks[event] += 1
        try:
            stats = adds_up(pool)
            assert gate.creating <= stats.creating
        except AssertionError as error:
            wrong.append(error)

    def work():
        while True:
            try:
                with gevent.Timeout(dice.uniform(0.001, 0.03), False):
                    item = pool.get()
                    gevent.sleep(dice.choice([0, 0.001]))
                    way = dice.random()
                    if way < 0.6:
                        pool.put(item)
                    elif way < 0.85:
                        pool.discard(item)
                    del item  # or else it is lost
            except (OSError, PoolError, gevent.Timeout):
                pass
            item = None
            gevent.sleep(dice.choice([0, 0.001, 0.01]))

    workers = [spawn(work) for _ in range(8)]
    greenlet.settrace(look)
    try:
        for n in count():
            if n >= 150 and len(pool.stats().destroyed) >= 2 and looks["switch"] > 300:
                break  # else on a slow machine little more happens than timeouts
            gevent.sleep(0.001)
            if dice.random() < 0.2:
                victim = dice.randrange(len(workers))
                workers[victim].kill(block=False)
                workers[victim] = spawn(work)
            if dice.random() < 0.05:
                pool.recycle(dice.choice([0, 0.01]))
            if dice.random() < 0.05:
                pool.resize(dice.choice([2, 4, 5]))
        gevent.killall(workers)
    finally:
        greenlet.settrace(None)

    assert not wrong, (len(wrong), wrong[0])
    pool._book.life.max_age = pool._book.life.max_idle = 1e6
    pool.resize(5)
    pool.recycle()
    pool.min_size = 1
    gate.calm()
    workers.clear()  # the errors that ended them keep what they held
    ear.heard.clear()
    until(lambda: gc.collect() >= 0 and not pool.holders())
    creator = pool._book.creator
    until(lambda: pool.stats().destroying == 0)
    if creator is not None:
        creator.look()
        until(lambda: not creator.failures)
    full_check(pool, gate)
    pool.close()


# The listener.


class Ear:
    """Hears all, and keeps it."""

    def __init__(self):
        self.heard = []

    def __getattr__(self, event):
        if event.startswith("_"):
            raise AttributeError(event)
        return lambda pool, *about: self.heard.append((event, *about))

    def counts(self):
        settle()
        return Counter(event for event, *_ in self.heard)


def test_it_hears_of_items_in_their_order():
    ear = Ear()
    pool = pool_of(Gate(), listener=ear)
    pool.discard(pool.get())
    pool.put(pool.get())
    pool.close()
    settle()

    assert ear.heard == [
        ("created",),
        ("destroyed", "discarded"),
        ("created",),
        ("closed",),
        ("destroyed", "closed"),
    ]


def test_it_is_told_which_pool():
    told = []

    class Listener:
        def created(self, pool):
            told.append(pool)

        def destroyed(self, pool, reason):
            told.append(pool)

    pool = pool_of(Gate(), 1, listener=Listener())
    pool.close()
    settle()

    assert told == [pool, pool]


def test_it_hears_the_error_of_a_create():
    ear = Ear()
    pool = pool_of(Gate(error, ok), listener=ear)
    with pytest.raises(OSError, match="said no") as raised:
        pool.get()
    settle()

    assert ear.heard == [("create_failed", raised.value)]


def test_it_hears_of_timeouts():
    ear = Ear()
    pool = pool_of(Gate(), max_size=1, listener=ear)
    held = pool.get()
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0)

    assert ear.counts() == {"created": 1, "timed_out": 1}
    pool.put(held)


def test_it_hears_who_was_turned_away():
    ear = Ear()
    pool, held = overloaded(listener=ear)

    assert ear.counts() == {"created": 1, "shed": 2}
    pool.put(held)


def test_it_hears_of_leaks(clock):
    ear = Ear()
    pool = pool_of(Gate(), listener=ear, leak_after=10)
    item = pool.get()
    clock.pass_(11)
    sweep(pool)

    (event, hold) = ear.heard[-1]
    assert event == "leaked"
    assert hold.item is item
    assert hold.seconds == 11
    assert hold.greenlet is gevent.getcurrent()
    pool.close()


def test_it_hears_of_items_that_were_dropped():
    ear = Ear()
    pool = pool_of(Gate(), listener=ear)
    pool.get()
    gc.collect()
    settle()

    assert [event for event, *_ in ear.heard] == ["created", "leaked", "destroyed"]
    assert ear.heard[-1] == ("destroyed", "collected")


def test_it_hears_of_close_once():
    ear = Ear()
    pool = pool_of(Gate(), listener=ear)
    pool.close()
    pool.close()

    assert ear.counts() == {"closed": 1}


def test_it_hears_the_same_as_stats_count():
    ear = Ear()
    gate = Gate(ok, error, slow, check=(ok, stale), reset=(ok, error), seed=2)
    pool = pool_of(gate, max_size=2, listener=ear, timeout=0.003)

    def work():
        for _ in range(10):
            with suppress(OSError, PoolTimeout):
                pool.put(pool.get())

    gevent.joinall([spawn(work) for _ in range(5)])
    stats, counts = pool.stats(), ear.counts()
    assert counts["created"] == stats.created
    assert counts["create_failed"] == stats.create_errors
    assert counts["destroyed"] == sum(stats.destroyed.values())
    assert counts["timed_out"] == stats.timeouts


def test_a_listener_defines_what_it_wants():
    told = []

    class Listener:
        @staticmethod
        def destroyed(pool, reason):
            told.append(reason)

    pool = pool_of(Gate(), 1, listener=Listener)
    pool.close()
    settle()

    assert told == ["closed"]


@pytest.mark.parametrize("deaf", [print, "ears", object()])
def test_a_listener_with_no_method_of_one_is_refused(deaf):
    """It was never told anything, and its user waited for that."""
    with pytest.raises(TypeError, match="none of the methods created, create_failed, destroyed"):
        pool_of(Gate(), 1, listener=deaf)


def raises(*about):
    raise OSError("the server of metrics is down")


def kills_itself(*about):
    gevent.getcurrent().throw(gevent.GreenletExit)


def exits(*about):
    raise gevent.GreenletExit


def times_out(*about):
    gevent.sleep(0)
    raise gevent.Timeout(0)


def hangs(*about):
    never()


class Bad:
    def __init__(self, behave):
        self.behave = behave

    def __getattr__(self, event):
        return self.behave


@pytest.mark.parametrize("behave", [raises, exits, kills_itself, times_out, hangs])
@pytest.mark.parametrize("max_creating", [None, 1])
def test_a_bad_listener_breaks_nothing(behave, max_creating, clock):
    gate = Gate(error, ok, ok, ok, check=(stale, ok), reset=(ok, error, ok))
    pool = pool_of(gate, max_size=2, listener=Bad(behave), leak_after=10, max_creating=max_creating)
    with pytest.raises(OSError, match="the server said no"):
        pool.get()
    clock.pass_(10)
    put_all(pool, take(pool, 2))
    clock.pass_(1)
    held = take(pool, 2)
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0)
    clock.pass_(10)
    sweep(pool)
    put_all(pool, held)
    settle()

    adds_up(pool)
    full_check(pool, gate)
    pool.close()
    settle()
    assert gate.live == 0


def test_a_listener_that_cannot_say_what_it_hears_costs_no_slot(caplog):
    """Looked up in get(), its attribute raised there, and the item made was nobody's."""

    class Unready:
        @property
        def created(self):
            raise RuntimeError("not connected yet")

    gate = Gate()
    pool = pool_of(gate, 1, listener=Unready())
    put_all(pool, take(pool, 1))
    settle()
    assert "a pool's listener failed: RuntimeError" in caplog.text
    full_check(pool, gate)


def test_errors_of_a_listener_are_logged(caplog):
    pool = pool_of(Gate(), 1, listener=Bad(raises))
    settle()

    assert caplog.text.count("a pool's listener failed: OSError") == 1
    pool.close()


def test_a_slow_listener_holds_up_neither_the_pool_nor_the_next_call():
    calls = []

    class Slow:
        def destroyed(self, pool, reason):
            calls.append(reason)
            never()

    pool = pool_of(Gate(), listener=Slow())
    for _ in range(3):
        pool.discard(pool.get())
    settle()

    assert calls == ["discarded"] * 3


def test_a_listener_may_use_the_pool():
    class Eager:
        def created(self, pool):
            with pool.item():
                used.append(pool)

    used = []
    gate = Gate()
    pool = pool_of(gate, max_size=1, listener=Eager())
    with pool.item():
        settle()
        assert not used
    settle()

    assert used == [pool]
    full_check(pool, gate)


def count_tells(monkeypatch):
    told = []
    tell = ConnectionPool._tell
    monkeypatch.setattr(
        ConnectionPool, "_tell", lambda pool, *about: told.append(about) or tell(pool, *about)
    )
    return told


def test_nothing_is_told_on_the_idle_path(monkeypatch, clock):
    told = count_tells(monkeypatch)
    ear = Ear()
    gate = Gate()
    pool = pool_of(gate, 2, listener=ear, check_after=1, max_idle=100)
    clock.pass_(2)
    settle()
    ear.heard.clear()
    told.clear()
    for _ in range(10):
        with pool.item():
            pool.put(pool.get())
        clock.pass_(2)

    assert told == []
    assert ear.counts() == {}
    assert gate.calls["check"] > 0
    pool.close()


def test_without_a_listener_nobody_is_called(monkeypatch):
    spawned = []
    spawn_raw = gevent.spawn_raw
    monkeypatch.setattr(
        "gpools.connection.spawn_raw", lambda *call: spawned.append(call) or spawn_raw(*call)
    )
    pool = pool_of(Gate(error, ok), listener=None, max_size=1)
    with pytest.raises(OSError, match="said no"):
        pool.get()
    held = pool.get()
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0)
    pool.discard(held)
    pool.close()

    assert spawned == []
