"""What `ConnectionPool` promises besides the hazards."""

import gc
import logging
import math
import queue
import re
from contextlib import ExitStack, suppress
from functools import partial
from typing import get_type_hints

import gevent
import pytest
from gevent import Timeout
from gevent.event import Event
from gevent.monkey import get_original

from gpools import ConnectionPool, NotInUse, Pool, PoolError, PoolFull, PoolTimeout
from gpools.connection import Hold
from tests.hostile import Gate, error, full_check, never, ok, settle, slow, spawn, stale
from tests.waiting import until
from tests.watching import counting_switches, invariants_hold, make  # noqa: F401


class Conn:
    """A client that notes what is done to it."""

    def __init__(self, password="s3cret"):
        self.password = password
        self.done = []

    def __repr__(self):
        return f"<Conn password={self.password}>"

    def note(self, what):
        self.done.append(what)

    def close(self):
        self.note("close")

    def quit(self):
        self.note("quit")


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def pool(gate):
    return make(ConnectionPool, gate, max_size=2)


def is_idle_for_a_while():
    gevent.sleep(0.001)


# The verbs


def test_verbs_by_keyword():
    calls = []

    def verb(name, result=None):
        def call(*args):
            calls.append((name, *args))
            return result

        return call

    item = Conn()
    pool = ConnectionPool(
        create=verb("create", item),
        check=verb("check", True),
        reset=verb("reset"),
        destroy=verb("destroy"),
        max_size=1,
    )
    pool.put(pool.get())
    is_idle_for_a_while()
    pool.discard(pool.get())
    assert calls == [("create",), ("reset", item), ("check", item), ("destroy", item)]
    assert item.done == [], "destroy= is instead of close()"


def test_verbs_by_subclass():
    class Conns(ConnectionPool):
        def __init__(self, host, **settings):
            super().__init__(**settings)
            self.host = host

        def create(self):
            return Conn(self.host)

        def check(self, item):
            item.note("check")
            return True

        def reset(self, item):
            item.note("reset")

        def destroy(self, item):
            item.note("destroy")

    pool = Conns("db1", max_size=1)
    with pool.item() as item:
        assert item.password == "db1"
    is_idle_for_a_while()
    with pool.item() as again:
        pass
    assert again is item
    pool.close()
    assert item.done == ["reset", "check", "reset", "destroy"]


def test_keyword_wins_over_subclass():
    class Conns(ConnectionPool):
        def create(self):
            return Conn("subclass")

        def reset(self, item):
            item.note("subclass")

    pool = Conns(create=lambda: Conn("keyword"), reset=lambda item: item.note("keyword"))
    with pool.item() as item:
        pass
    assert item.password == "keyword"
    assert item.done == ["keyword"]


def test_what_is_set_on_pool_is_not_for_connections(monkeypatch):
    """As a tracing library does it; a plain put would not reset the item."""
    pool = ConnectionPool(create=Conn, reset=lambda item: item.note("reset"))
    for name in ("get", "put", "item"):
        monkeypatch.setattr(Pool, name, never)
    with pool.item() as item:
        pass
    assert item.done == ["reset"]


def test_bases_after_connection_pool_do_not_go_before_it():
    class Numbers(Pool):
        get = put = item = never

    class Conns(ConnectionPool, Numbers):
        pass

    pool = Conns(create=Conn)
    with pool.item():
        pass
    assert pool.stats().idle == 1


def test_annotations_can_be_read_while_it_runs():
    """As checkers of types at run time and makers of documentation do."""
    for kind in (Pool, ConnectionPool):
        for name in ("get", "put", "item", "reset"):
            if hasattr(kind, name):
                assert "return" in get_type_hints(getattr(kind, name))


def test_verb_may_be_a_method_of_the_item():
    pool = ConnectionPool(create=Conn, destroy=Conn.quit)
    item = pool.get()
    pool.discard(item)
    assert item.done == ["quit"]


def test_verbs_are_looked_up_at_each_call(pool, gate):
    fresh = Conn()
    pool.create = lambda: fresh
    assert pool.get() is fresh
    pool.reset = lambda item: item.note("reset")
    pool.put(fresh)
    assert fresh.done == ["reset"]


def test_default_destroy_closes_what_can_be_closed():
    pool = ConnectionPool(create=Conn)
    item = pool.get()
    pool.discard(item)
    assert item.done == ["close"]


@pytest.mark.parametrize("item_class", [object, lambda: type("Item", (), {"close": 3})()])
def test_default_destroy_leaves_what_cannot_be_closed(item_class, caplog):
    pool = ConnectionPool(create=item_class)
    pool.discard(pool.get())
    assert pool.current_size == 0
    assert not caplog.records


def test_default_check_and_reset_do_nothing():
    pool = ConnectionPool(create=Conn)
    item = pool.get()
    pool.put(item)
    is_idle_for_a_while()
    assert pool.get() is item
    assert item.done == []
    assert pool.check(item) is True


def test_create_must_be_given():
    with pytest.raises(NotImplementedError, match="create="):
        ConnectionPool().get()


def test_a_pool_whose_constructor_never_ran_raises_an_error():
    class Forgetful(ConnectionPool):
        def __init__(self):
            self.host = "db1"

        def create(self):
            return Conn()

    pool = Forgetful()
    back = [partial(way, Conn()) for way in (pool.put, pool.discard)]
    for call in (pool.get, pool.item().__enter__, *back):
        with pytest.raises(AttributeError):
            call()


def test_a_block_that_was_never_entered_cannot_be_left(pool):
    with pytest.raises(RuntimeError, match="was not entered"), ExitStack() as stack:
        stack.push(pool.item())
    assert pool.free() == 2


def test_a_block_that_was_left_cannot_be_left_again(pool, gate):
    block = pool.item()
    with block:
        pass
    for raised in (None, KeyError()):
        with pytest.raises(RuntimeError, match="left before"):
            block.__exit__(raised and KeyError, raised, None)
    full_check(pool, gate)


def test_no_verb_is_called_that_was_not_meant(pool, gate):
    """How often each is called in a whole life, and never one more."""
    item = pool.get()
    assert gate.calls == {"create": 1, "check": 0, "reset": 0, "destroy": 0}
    pool.put(item)
    assert gate.calls == {"create": 1, "check": 0, "reset": 1, "destroy": 0}
    is_idle_for_a_while()
    item = pool.get()
    assert gate.calls == {"create": 1, "check": 1, "reset": 1, "destroy": 0}
    pool.discard(item)
    assert gate.calls == {"create": 1, "check": 1, "reset": 1, "destroy": 1}
    repr(pool), pool.free(), pool.waiting(), pool.holders(), pool.free_items, pool.closed
    pool.resize(1)
    pool.close()
    assert gate.calls == {"create": 1, "check": 1, "reset": 1, "destroy": 1}


@pytest.mark.parametrize("way_out", [None, OSError, gevent.GreenletExit])
def test_get_put_and_discard_are_called_by_nobody_but_their_caller(gate, way_out):
    """An adapter never overrides them, and the with block goes the same way as by hand."""
    calls = []

    class Noting(ConnectionPool):
        def get(self, **settings):
            calls.append(("get", settings))
            return super().get(**settings)

        def put(self, item):
            calls.append("put")
            super().put(item)

        def discard(self, item):
            calls.append("discard")
            super().discard(item)

    pool = make(Noting, gate, max_size=1)
    try:
        with pool.item():
            if way_out is not None:
                raise way_out
    except (OSError, gevent.GreenletExit):
        pass
    assert calls == [("get", {}), "put" if way_out is None else "discard"]
    pool.close()
    assert len(calls) == 2


# check_after


@pytest.mark.parametrize(("check_after", "checks"), [(0.0, 1), (0.0005, 1), (60, 0), (None, 0)])
def test_item_is_checked_when_idle_for_longer_than_check_after(gate, check_after, checks):
    pool = make(ConnectionPool, gate, check_after=check_after)
    item = pool.get()
    pool.put(item)
    is_idle_for_a_while()
    assert pool.get() is item
    assert gate.calls["check"] == checks


def test_new_item_is_not_checked(pool, gate):
    first = pool.get()
    is_idle_for_a_while()
    second = pool.get()
    assert gate.calls["check"] == 0
    assert (first.number, second.number) == (1, 2)


def test_check_that_says_no_has_the_item_replaced(pool, gate):
    gate.behaviours["check"] = (stale, ok)
    dead = pool.get()
    pool.put(dead)
    is_idle_for_a_while()
    item = pool.get()
    assert item is not dead
    assert dead.destroyed
    assert gate.created == 2


def test_check_that_raises_says_no(pool, gate, caplog):
    caplog.set_level(logging.INFO, "gpools")
    gate.behaviours["check"] = (error, ok)
    dead = pool.get()
    pool.put(dead)
    is_idle_for_a_while()
    item = pool.get()
    assert item is not dead
    assert dead.destroyed
    settle()  # the log is another greenlet's
    [record] = caplog.records
    assert (record.name, record.levelname) == ("gpools", "INFO")
    assert "check of <Item at" in record.getMessage()


@pytest.mark.parametrize("answer", [False, None, 0, ""])
def test_check_says_no_by_anything_untrue(answer, gate):
    pool = ConnectionPool(create=gate, check=lambda item: answer)
    dead = pool.get()
    pool.put(dead)
    is_idle_for_a_while()
    item = pool.get()
    assert item is not dead
    assert dead.destroyed


def test_check_whose_answer_is_neither_true_nor_false_costs_no_slot(pool, gate):
    """As numpy's and SQLAlchemy's do not: they raise when asked for their truth."""

    class Neither:
        def __bool__(self):
            raise TypeError("neither true nor false")

    pool.check = lambda item: Neither()
    pool.put(pool.get())
    is_idle_for_a_while()
    with suppress(TypeError):
        pool.put(pool.get())
    pool.check = gate.check
    full_check(pool, gate)


def test_fit_after_whose_answer_is_neither_true_nor_false_costs_no_slot(pool, gate):
    class Neither:
        def __bool__(self):
            raise TypeError("neither true nor false")

    pool.fit_after = lambda item, error: Neither()
    with pytest.raises((TypeError, OSError)), pool.item():
        raise OSError
    full_check(pool, gate)


def test_check_that_always_fails_makes_one_new_item_and_no_more(gate):
    """A bounded number of creations: a new item is not checked."""
    gate.behaviours["check"] = (stale,)
    pool = make(ConnectionPool, gate, max_size=3)
    for item in [pool.get() for _ in range(3)]:
        pool.put(item)
    is_idle_for_a_while()
    item = pool.get()
    assert item.number == gate.created == 4
    assert gate.destroyed == 3


def test_all_stale_items_are_replaced_by_one_get_that_does_not_wait(gate):
    gate.behaviours["check"] = (stale,)
    gate.behaviours["destroy"] = (never,)
    pool = make(ConnectionPool, gate, max_size=3)
    for item in [pool.get() for _ in range(2)]:
        pool.put(item)
    is_idle_for_a_while()
    getter = spawn(pool.get)
    settle()
    assert getter.ready()
    assert getter.get() not in (item,)
    assert gate.calls["destroy"] == 2


def test_idle_path_does_not_switch(gate):
    pool = make(ConnectionPool, gate, max_size=1)
    pool.put(pool.get())
    is_idle_for_a_while()
    with counting_switches() as counts:
        with pool.item():
            pass
        with pool.item(timeout=5):
            pass
    assert set(counts.values()) <= set()


def test_default_check_costs_no_clock():
    """It would always say yes."""

    def checked_after(pool):
        return pool._book.life.check_after

    assert checked_after(ConnectionPool(create=Conn)) == math.inf
    assert checked_after(ConnectionPool(create=Conn, check_after=5)) == math.inf

    class Checks(ConnectionPool):
        def check(self, item):
            return True

    assert checked_after(Checks(create=Conn)) == 0.0
    assert checked_after(ConnectionPool(create=Conn, check=bool)) == 0.0
    assert checked_after(Checks(create=Conn, check_after=None)) == math.inf


# Leaving the block


def test_left_clean_the_item_goes_back(pool, gate):
    with pool.item() as item:
        assert not pool.free_items
    assert list(pool.free_items) == [item]
    assert gate.calls["reset"] == 1
    assert gate.destroyed == 0


def test_left_clean_by_return_break_and_continue(pool, gate):
    def by_return():
        with pool.item() as item:
            return item

    item = by_return()
    for word in ("break", "continue"):
        for _ in range(1):
            with pool.item() as again:
                assert again is item
                if word == "break":
                    break
                continue
    assert gate.destroyed == 0
    full_check(pool, gate)


def test_left_by_an_exception_the_item_is_discarded_by_default(pool, gate):
    with pytest.raises(OSError, match="broken"), pool.item() as item:
        raise OSError("broken")
    assert item.destroyed
    assert gate.calls["reset"] == 0
    full_check(pool, gate)


@pytest.mark.parametrize("fit", [True, False])
def test_left_by_an_exception_fit_after_is_asked(pool, gate, fit):
    asked = []

    def fit_after(item, error):
        asked.append((item, error))
        return fit

    pool.fit_after = fit_after
    mine = KeyError("no such row")
    with pytest.raises(KeyError) as caught, pool.item() as item:
        raise mine
    assert caught.value is mine
    assert asked == [(item, mine)]
    assert item.destroyed is not fit
    assert gate.calls["reset"] == fit
    full_check(pool, gate)


def test_fit_after_by_subclass(gate):
    class Forgiving(ConnectionPool):
        def fit_after(self, item, error):
            return isinstance(error, LookupError)

    pool = make(Forgiving, gate, max_size=1)
    with pytest.raises(KeyError), pool.item() as kept:
        raise KeyError
    with pytest.raises(OSError, match="broken"), pool.item() as broken:
        raise OSError("broken")
    assert broken is kept
    assert kept.destroyed


@pytest.mark.parametrize(
    "way_out",
    [Timeout(0), gevent.GreenletExit(), KeyboardInterrupt(), SystemExit(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_left_by_any_other_baseexception_nobody_is_asked(pool, gate, way_out):
    """The item was interrupted at an unknown byte."""
    pool.fit_after = lambda item, error: pytest.fail("asked")
    with pytest.raises(type(way_out)) as caught, pool.item() as item:
        raise way_out
    assert caught.value is way_out
    assert item.destroyed
    assert gate.calls["reset"] == 0
    full_check(pool, gate)


def test_fit_after_that_raises_says_no_and_the_first_error_stays(pool, gate, caplog):
    caplog.set_level(logging.INFO, "gpools")
    pool.fit_after = lambda item, error: 1 / 0
    with pytest.raises(OSError, match="broken"), pool.item() as item:
        raise OSError("broken")
    assert item.destroyed
    assert "fit_after of <Item at" in caplog.text
    full_check(pool, gate)


def test_reset_that_raises_after_a_clean_exit_is_not_the_users_error(pool, gate, caplog):
    caplog.set_level(logging.INFO, "gpools")
    gate.behaviours["reset"] = (error,)
    with pool.item() as item:
        pass
    assert item.destroyed
    [record] = caplog.records
    assert (record.name, record.levelname) == ("gpools", "INFO")
    assert "reset of <Item at" in record.getMessage()


def test_error_of_destroy_does_not_replace_that_of_the_block(pool, gate):
    gate.behaviours["destroy"] = (error,)
    with pytest.raises(KeyError), pool.item():
        raise KeyError
    full_check(pool, gate)


@pytest.mark.parametrize("way_out", [None, KeyError])
def test_discard_in_the_block_is_enough(pool, gate, way_out):
    pool.fit_after = lambda item, error: pytest.fail("asked")
    try:
        with pool.item() as item:
            pool.discard(item)
            if way_out:
                raise way_out
    except KeyError:
        assert way_out
    assert gate.calls["destroy"] == 1
    assert gate.calls["reset"] == 0
    full_check(pool, gate)


def test_discard_in_the_block_while_another_greenlet_takes_the_slot(gate):
    pool = make(ConnectionPool, gate, max_size=1)
    with pool.item() as item:
        pool.discard(item)
        other = spawn(pool.get)
        settle()
        assert other.ready()
    assert gate.destroyed == 1
    pool.put(other.get())
    full_check(pool, gate)


def test_put_in_the_block_is_an_error_that_says_so(pool, gate):
    with pytest.raises(NotInUse, match="was put back inside its own with block"), pool.item() as x:
        pool.put(x)
    full_check(pool, gate)


def test_put_in_the_block_does_not_hide_the_error_of_the_block(pool, gate):
    def work():
        with pool.item() as item:
            pool.put(item)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    item = pool.free_items[0]
    assert not item.destroyed
    full_check(pool, gate)


@pytest.mark.parametrize("way_out", [None, KeyError, gevent.GreenletExit])
def test_item_put_in_the_block_and_taken_by_another_stays_the_others(gate, way_out):
    pool = make(ConnectionPool, gate, max_size=1)
    others = []

    def work():
        with pool.item() as item:
            pool.put(item)
            others.append(spawn(pool.get))
            settle()
            if way_out:
                raise way_out

    with pytest.raises(way_out or NotInUse):
        work()
    [other] = others
    item = other.get(block=False)
    assert [hold.greenlet for hold in pool.holders()] == [other]
    assert not item.destroyed
    pool.put(item)
    full_check(pool, gate)


def test_item_put_and_taken_again_in_the_block_by_its_own_greenlet_is_not_put_twice(gate):
    pool = make(ConnectionPool, gate, max_size=1)
    taken = []

    def work():
        with pool.item() as item:
            pool.put(item)
            taken.append(pool.get())
            assert taken == [item]

    with pytest.raises(NotInUse):
        work()
    [hold] = pool.holders()
    assert hold.item is taken[0]
    pool.put(taken[0])
    full_check(pool, gate)


@pytest.mark.parametrize("kind", [Pool, ConnectionPool])
def test_item_serves_one_with_block(kind, gate):
    pool = make(kind, gate, max_size=2)
    block = pool.item()
    with block, pytest.raises(RuntimeError, match=r"call pool\.item\(\) for each"), block:
        pass
    with pytest.raises(RuntimeError), block:
        pass
    full_check(pool, gate)


def test_item_that_two_greenlets_enter_serves_the_first(gate):
    pool = make(ConnectionPool, gate, max_size=1)
    item = pool.get()
    block = pool.item()

    def enter():
        with block as mine:
            return mine

    first, second = spawn(enter), spawn(enter)
    settle()
    assert isinstance(second.exception, RuntimeError)
    assert pool.waiting() == 1
    pool.put(item)
    settle()
    assert first.get(block=False) is item
    full_check(pool, gate)


def test_item_that_is_never_entered_takes_nothing(pool):
    pool.item()
    pool.item(timeout=5)
    assert pool.current_size == 0


def test_get_that_fails_at_the_entry_of_the_block_leaves_nothing_to_leave(gate):
    pool = make(ConnectionPool, gate, max_size=1)
    with pool.item(), pytest.raises(PoolTimeout), pool.item(timeout=0):
        pytest.fail("entered")
    full_check(pool, gate)


def test_with_blocks_of_many_greenlets_interleave(gate):
    pool = make(ConnectionPool, gate, max_size=3)

    def work(seconds):
        with pool.item() as item:
            item.use(seconds)

    workers = [spawn(work, 0.0005 * (n % 4)) for n in range(30)]
    gevent.joinall(workers, timeout=5)
    assert all(worker.successful() for worker in workers)
    full_check(pool, gate)


# destroy


def test_error_of_destroy_is_logged_once_and_goes_no_further(pool, gate, caplog):
    gate.behaviours["destroy"] = (error, ok)
    pool.discard(pool.get())
    [record] = caplog.records
    assert (record.name, record.levelname) == ("gpools", "WARNING")
    assert re.search(r"<ConnectionPool .*>: destroy of <Item at 0x\w+> failed: OS", caplog.text)
    full_check(pool, gate)


def test_destroy_that_takes_too_long_is_cut_off_and_logged(gate, caplog):
    gate.behaviours["destroy"] = (never, ok)
    pool = make(ConnectionPool, gate, max_size=1, destroy_timeout=0.005)
    pool.discard(pool.get())
    assert pool.current_size == 1
    until(lambda: pool.current_size == 0)
    assert "Timeout" in caplog.text
    full_check(pool, gate)


def test_destroy_without_a_timeout_may_take_for_ever(gate):
    pool = make(ConnectionPool, gate, max_size=1, destroy_timeout=None)
    event = Event()
    gate.behaviours["destroy"] = (event.wait,)
    pool.discard(pool.get())
    settle()
    assert pool.current_size == 1
    event.set()
    settle()
    assert pool.current_size == 0


def test_destroy_runs_in_a_greenlet_of_its_own_once(pool, gate):
    ran = []
    pool.destroy = lambda item: ran.append((gevent.getcurrent(), item.close()))
    pool.discard(pool.get())
    assert len(ran) == 1
    assert ran[0][0] is not gevent.getcurrent()


def test_destroy_that_uses_the_pool_gets_along(gate):
    """A goodbye may need another connection."""
    pool = make(ConnectionPool, gate, max_size=2)
    gate.behaviours["destroy"] = (lambda: pool.put(pool.get()), ok)
    pool.discard(pool.get())
    full_check(pool, gate)


# max_waiting


def test_max_waiting_callers_at_most_stand_in_line(gate):
    pool = make(ConnectionPool, gate, max_size=1, max_waiting=2)
    item = pool.get()
    waiters = [spawn(pool.get) for _ in range(2)]
    settle()
    with pytest.raises(PoolFull, match="2 callers wait already and max_waiting is 2") as caught:
        pool.get(timeout=5)
    assert isinstance(caught.value, queue.Full)
    assert isinstance(caught.value, PoolError)
    assert "<ConnectionPool 0 idle, 1 in use, 2 waiting, max 1>" in str(caught.value)

    waiters[0].kill()
    third = spawn(pool.get)
    settle()
    assert pool.waiting() == 2
    gevent.killall([waiters[1], third])
    pool.put(item)
    full_check(pool, gate)


def test_max_waiting_0_never_waits(gate):
    pool = make(ConnectionPool, gate, max_size=1, max_waiting=0)
    with pool.item(), pytest.raises(PoolFull):
        pool.get()
    with pool.item():
        pass


def test_max_waiting_does_not_turn_away_one_who_need_not_wait(gate):
    pool = make(ConnectionPool, gate, max_size=2, max_waiting=0)
    items = [pool.get(), pool.get()]
    with pytest.raises(PoolFull):
        pool.get()
    pool.put(items.pop())
    items.append(pool.get())
    assert len(items) == gate.created == 2


def test_max_waiting_does_not_turn_away_one_whose_idle_item_was_dead(gate):
    """It had its turn already."""
    gate.behaviours["check"] = (stale, ok)
    gate.behaviours["destroy"] = (slow, ok)
    pool = make(ConnectionPool, gate, max_size=1, max_waiting=0)
    pool.put(pool.get())
    is_idle_for_a_while()
    getter = spawn(pool.get)
    getter.join(5)
    assert getter.ready()
    pool.put(getter.get())
    full_check(pool, gate)


# timeout and its diagnosis


def test_timeout_of_the_pool_is_the_default_of_get_and_item(gate):
    pool = make(ConnectionPool, gate, max_size=1, timeout=0.005)
    item = pool.get()
    with pytest.raises(PoolTimeout, match=r"within 0\.005 s"):
        pool.get()
    with pytest.raises(PoolTimeout, match=r"within 0\.005 s"), pool.item():
        pass
    with pytest.raises(PoolTimeout, match=r"within 0\.01 s"):
        pool.get(timeout=0.01)
    with pytest.raises(PoolTimeout, match="within 0 s"), pool.item(timeout=0):
        pass
    forever = [spawn(pool.get, timeout=None), spawn(pool.item(timeout=None).__enter__)]
    gevent.sleep(0.02)
    assert pool.waiting() == 2
    gevent.killall(forever)
    pool.put(item)
    full_check(pool, gate)


def test_timeout_error_is_a_diagnosis(gate):
    pool = make(ConnectionPool, gate, max_size=3)

    def work():
        with pool.item():
            gevent.sleep(3600)  # the line it names

    workers = []
    for name in ("worker-1", "worker-2"):
        workers.append(spawn(work))
        workers[-1].name = name
        gevent.sleep(0.002)
    settle()
    mine = pool.get()
    waiters = [spawn(pool.get) for _ in range(4)]
    settle()
    with pytest.raises(PoolTimeout) as caught:
        pool.get(timeout=0.005)
    line = work.__code__.co_firstlineno + 2
    assert re.fullmatch(
        r"no item came free within 0\.005 s \(3 of 3 in use, 4 still waiting; "
        rf"longest held \d+\.\d s by <Watched 'worker-1'> at test_connection\.py:{line}\); "
        "raise max_size, or hold items for less time",
        str(caught.value),
    ), caught.value
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.__cause__ is None
    assert [hold.greenlet for hold in caught.value.holders] == [*workers, gevent.getcurrent()]
    gevent.killall(workers + waiters)
    pool.put(mine)
    full_check(pool, gate)


@pytest.mark.parametrize("verb", ["create", "check", "destroy"])
def test_timeout_error_tells_when_items_are_between_states(gate, verb):
    pool = make(ConnectionPool, gate, max_size=2)
    item = pool.get()
    if verb == "check":
        pool.put(pool.get())
        is_idle_for_a_while()
    gate.behaviours[verb] = (never,)
    if verb == "destroy":
        pool.discard(pool.get())
    busy = spawn(pool.get)
    settle()
    with pytest.raises(PoolTimeout) as caught:
        pool.get(timeout=0.005)
    assert "(1 of 2 in use, 1 being made, checked or destroyed, " in str(caught.value)
    assert str(caught.value).endswith("; create() or destroy() is slow, or timeout is short")
    assert [hold.item for hold in caught.value.holders] == [item]
    busy.kill()


def test_timeout_error_with_no_holder_at_all(gate):
    gate.behaviours["create"] = (never,)
    pool = make(ConnectionPool, gate, max_size=1)
    with pytest.raises(PoolTimeout) as caught:
        pool.get(timeout=0)
    assert str(caught.value).startswith("no item came free within 0 s (0 of 1 in use, ")
    assert "longest" not in str(caught.value)


# holders


def test_holders_tells_who_holds_what_longest_held_first(gate):
    pool = make(ConnectionPool, gate, max_size=4)
    assert pool.holders() == []
    idle = pool.get()

    def hold():
        item = pool.get()
        gevent.sleep(3600)
        pool.put(item)

    greenlets = []
    for _ in range(3):
        greenlets.append(spawn(hold))
        gevent.sleep(0.001)
    pool.put(idle)
    greenlets.append(gevent.getcurrent())
    again = pool.get()  # the item that was made first is held last
    gevent.sleep(0.001)
    with counting_switches() as counts:
        holds = pool.holders()
    assert counts == {}
    assert again is idle
    assert [hold.greenlet for hold in holds] == greenlets
    pool.put(idle)
    holds = pool.holders()
    assert [hold.greenlet for hold in holds] == greenlets[:3]
    assert all(isinstance(hold, Hold) for hold in holds)
    assert holds[0].seconds > holds[1].seconds > holds[2].seconds > 0
    assert len({id(hold.item) for hold in holds}) == 3
    assert idle not in [hold.item for hold in holds]


def test_hold_begins_anew_with_each_get(pool):
    item = pool.get()
    gevent.sleep(0.01)
    [before] = pool.holders()
    pool.put(item)
    item = pool.get()
    [after] = pool.holders()
    assert after.seconds < before.seconds


def test_holders_leaves_out_what_is_between_states(pool, gate):
    item, other = pool.get(), pool.get()
    gate.behaviours["reset"] = (never,)
    spawn(pool.put, item)
    gate.behaviours["destroy"] = (never,)
    pool.discard(other)
    settle()
    assert pool.holders() == []


def test_pool_does_not_keep_its_holders_alive(pool):
    taken = []

    def take():
        taken.append(pool.get())

    gevent.spawn(take).join()
    settle()
    gc.collect()
    [hold] = pool.holders()
    assert hold.item is taken[0]
    assert hold.greenlet is None
    assert str(hold).endswith("by a greenlet that is gone")


def test_item_that_outlives_the_hub_of_its_thread_is_collected_without_a_word(gate):
    """Nobody is left who could take its slot back; an error there is one that pytest reports."""
    kept = []

    def live_and_die():
        pool = make(ConnectionPool, gate, max_size=1)
        kept.extend([pool, pool.get()])
        gevent.get_hub().destroy(destroy_loop=True)

    thread = get_original("threading", "Thread")(target=live_and_die)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    kept.pop()
    gc.collect()
    assert gate.dropped == 1


def test_hold_tells_where_its_greenlet_is_now(pool):
    def take():
        with pool.item():
            gevent.sleep(3600)

    taker = spawn(take)
    taker.name = "worker"
    settle()
    [hold] = pool.holders()
    line = take.__code__.co_firstlineno + 2
    assert str(hold) == f"0.0 s by <Watched 'worker'> at test_connection.py:{line}"


def test_hold_of_a_greenlet_that_has_ended_says_so(pool):
    taker = spawn(pool.get)
    settle()
    [hold] = pool.holders()
    assert hold.greenlet is taker
    assert str(hold).endswith("(ended)")


def test_hold_of_the_caller_itself_and_of_main(pool):
    item = pool.get()
    [hold] = pool.holders()
    assert hold.item is item
    assert "<greenlet 'main'> at test_connection.py:" in str(hold)


# The pool as a whole


def test_repr_shows_the_state(gate):
    pool = make(ConnectionPool, gate, max_size=10, name="api")
    assert repr(pool) == "<ConnectionPool 'api' 0 idle, 0 in use, 0 waiting, max 10>"
    items = [pool.get() for _ in range(10)]
    waiters = [spawn(pool.get) for _ in range(2)]
    settle()
    assert repr(pool) == "<ConnectionPool 'api' 0 idle, 10 in use, 2 waiting, max 10>"
    gevent.killall(waiters)
    for item in items[:3]:
        pool.put(item)
    assert repr(pool) == "<ConnectionPool 'api' 3 idle, 7 in use, 0 waiting, max 10>"
    assert repr(make(type("DbPool", (ConnectionPool,), {}), gate)).startswith("<DbPool 0 idle")


@pytest.mark.parametrize("level", ["DEBUG"])
def test_nothing_shows_a_password(caplog, level):
    """An item's repr may show one, and so may a greenlet's, which shows its arguments."""
    caplog.set_level(level)
    said = []

    def fail(item):
        raise OSError("failed")

    def note(act, *args, **settings):
        try:
            act(*args, **settings)
        except Exception as error:
            said.append(str(error))
            said.append(repr(error))

    pool = ConnectionPool(
        max_size=2, create=Conn, check=fail, reset=fail, destroy=fail, max_waiting=1
    )
    pool.fit_after = lambda item, error: fail(item)

    def hold(password):
        item = pool.get()
        gevent.sleep(3600)
        pool.put(item)

    spawn(hold, "s3cret")
    settle()
    item = pool.get()
    note(pool.get, timeout=0)
    waiter = spawn(pool.get)
    settle()
    note(pool.get)
    waiter.kill()
    note(pool.put, Conn())
    pool.put(item)
    note(pool.put, item)
    note(pool.discard, item)
    pool.reset = lambda item: None
    pool.put(pool.get())
    is_idle_for_a_while()
    pool.put(pool.get())
    with pytest.raises(KeyError), pool.item():
        raise KeyError

    def put_inside():
        with pool.item() as item:
            pool.put(item)

    note(put_inside)
    conn = Conn()
    pool.create = lambda: conn
    pool.resize(3)
    note(pool.get)
    note(pool.get)
    said += [repr(pool), *map(str, pool.holders())]
    pool.close(timeout=0.001)
    note(pool.get)
    assert len(said) > 12
    assert len(caplog.records) > 5
    assert "s3cret" not in caplog.text
    assert "s3cret" not in "\n".join(said)


def test_quiet_when_all_is_well(pool, gate, caplog):
    """No per-get logging."""
    caplog.set_level(logging.DEBUG)
    with pool.item():
        pass
    pool.discard(pool.get())
    with pytest.raises(KeyError), pool.item():
        raise KeyError
    pool.resize(3)
    pool.close(timeout=1)
    assert caplog.records == []


def test_connection_pool_is_a_pool_with_its_attributes(pool, gate):
    assert isinstance(pool, Pool)
    assert bool(pool)
    assert pool.min_size == 0
    assert pool.free() == 2
    item = pool.get()
    assert item.number == 1
    assert (pool.current_size, pool.max_size, pool.free()) == (1, 2, 1)
    pool.anything = 3


@pytest.mark.parametrize(("stack", "order"), [(False, "abc"), (True, "cba")])
def test_order_in_which_items_go_out(stack, order):
    names = iter("abc")
    pool = ConnectionPool(max_size=3, order_as_stack=stack, create=lambda: [next(names)])
    items = [pool.get() for _ in range(3)]
    for item in items:
        pool.put(item)
    assert [pool.get()[0] for _ in range(3)] == list(order)


def test_min_size_items_go_out_in_the_order_they_were_made(gate):
    pool = make(ConnectionPool, gate, min_size=3, max_size=3)
    items = [pool.get() for _ in range(3)]
    assert [item.number for item in items] == [1, 2, 3]
    assert gate.created == 3


def test_positional_parameters_are_those_of_pool(gate):
    pool = ConnectionPool(1, 2, True, gate)
    assert (pool.min_size, pool.max_size, pool.order_as_stack) == (1, 2, True)
    assert gate.created == 1
    with pytest.raises(TypeError):
        ConnectionPool(1, 2, True, gate, "name")


def test_settings_of_the_pool_do_not_meet_those_of_a_subclass(gate):
    """A subclass may have a timeout, a check_after and a lock of its own."""

    class Conns(ConnectionPool):
        def __init__(self):
            self.timeout = self.host = self.check_after = self.items = "mine"
            super().__init__(max_size=1, timeout=0.005, **gate.verbs)
            self.going = self.max_waiting = self.emptied = self.lock = "mine"

    pool = Conns()
    with pool.item(), pytest.raises(PoolTimeout):
        pool.get()
    assert pool.timeout == pool.check_after == pool.items == "mine"
    pool.put(pool.get())
    pool.close(timeout=1)


def test_channel_of_a_connection_pool_stands_in_the_same_line(pool, gate):
    items = [pool.get(), pool.get()]
    waiter = spawn(pool.channel.get)
    settle()
    assert pool.waiting() == pool.channel.getting() == 1
    pool.put(items[0])
    settle()
    assert waiter.get(block=False) is items[0]
    assert len(pool.holders()) == 2
    with pytest.raises(queue.Empty):
        pool.channel.get(timeout=0)
    for item in items:
        pool.put(item)
    full_check(pool, gate)


def test_greenlet_may_give_back_what_another_took(pool, gate):
    item = pool.get()
    spawn(pool.put, item).get()
    full_check(pool, gate)


def test_user_of_an_item_may_be_switched_to_while_another_resets_its_own(gate):
    gate.behaviours["reset"] = (slow,)
    pool = make(ConnectionPool, gate, max_size=2)
    done = []

    def work(number):
        with pool.item() as item:
            item.use()
        done.append(number)

    workers = [spawn(work, number) for number in range(6)]
    gevent.joinall(workers, timeout=5)
    assert sorted(done) == list(range(6))
    assert gate.calls["reset"] == 6
    full_check(pool, gate)
