"""Calls that run to their end whatever becomes of the caller: `gpools._aside`."""

import gc
import weakref

import gevent
import pytest
from gevent.event import Event
from greenlet import greenlet

from gpools._aside import aside
from tests.waiting import settle, spawn
from tests.watching import counting_switches


def test_call_that_does_not_switch_is_over_when_aside_returns():
    done = []
    aside(lambda: done.append(gevent.getcurrent()))
    assert len(done) == 1
    assert done[0] is not gevent.getcurrent()
    assert done[0].dead


def test_call_that_does_not_switch_gives_the_hub_no_turn():
    """Nor does it leave anything for the hub to do."""
    turns = []
    callback = gevent.get_hub().loop.run_callback(turns.append, 1)
    with counting_switches() as counts:
        for _ in range(10):
            aside(lambda: None)
    assert turns == []
    assert gevent.get_hub() not in counts
    callback.stop()

    waiter = spawn(Event().wait)
    settle()
    with counting_switches() as counts:
        settle()
    assert counts.get(gevent.getcurrent(), 0) <= 5, "woken by what aside has left behind"
    waiter.kill()


def test_aside_returns_when_the_call_first_switches():
    order = []

    def act():
        order.append("begun")
        gevent.sleep(0)
        order.append("ended")

    def call():
        aside(act)
        order.append("returned")

    spawn(call)
    settle()
    assert order == ["begun", "returned", "ended"]


def test_call_that_blocks_goes_on_in_the_background():
    event = Event()
    done = []

    def act():
        event.wait()
        done.append(True)

    caller = spawn(aside, act)
    settle()
    assert caller.ready()
    assert not done
    event.set()
    settle()
    assert done


def test_end_of_the_call_does_not_wake_the_caller_again():
    """It waits for something else by then."""
    event, other = Event(), Event()
    woken = []

    def call():
        aside(event.wait)
        other.wait()
        woken.append(True)

    caller = spawn(call)
    settle()
    with counting_switches() as counts:
        event.set()
        settle()
    assert caller not in counts
    assert not woken
    other.set()
    settle()
    assert woken


def test_end_of_the_call_after_the_caller_has_died_goes_to_the_hub():
    event = Event()
    ended = []

    def act():
        event.wait()
        ended.append(gevent.getcurrent().parent)

    caller = spawn(aside, act)
    settle()
    assert caller.dead
    event.set()
    settle()
    assert ended == [gevent.get_hub()]


@pytest.mark.parametrize("error", [gevent.GreenletExit(), gevent.Timeout()])
def test_kill_in_the_turn_of_the_call_hits_the_caller_alone(error):
    event = Event()
    done = []

    def act():
        event.wait()
        done.append(True)

    caller = spawn(aside, act)
    gevent.get_hub().loop.run_callback(
        lambda: gevent.get_hub().loop.run_callback(caller.throw, error)
    )
    # The caller starts, act blocks, and the throw comes in the same turn as the way back.
    settle()
    assert caller.ready()
    assert caller.exception is error or caller.value in (error, None)
    event.set()
    settle()
    assert done


@pytest.mark.parametrize("error", [gevent.GreenletExit(), gevent.Timeout()])
def test_kill_on_its_way_before_the_call_hits_the_caller_alone(error):
    """The kill is on its way already, and comes before the way back."""
    event = Event()
    done = []
    after = []

    def act():
        event.wait()
        done.append(True)

    def call():
        gevent.get_hub().loop.run_callback(callers[0].throw, error)
        try:
            aside(act)
        finally:
            after.append(True)
        gevent.sleep(3600)

    callers = [spawn(call)]
    settle()
    assert callers[0].value is error or callers[0].exception is error
    assert after == [True]
    event.set()
    settle()
    assert done


def test_stale_way_back_does_not_wake_a_caller_that_was_killed_out_of_it():
    """It catches the kill and waits for something else: nothing may end that wait."""
    event = Event()
    order = []

    def call():
        gevent.get_hub().loop.run_callback(gevent.getcurrent().throw, gevent.Timeout())
        try:
            aside(event.wait)
        except gevent.Timeout:
            order.append("timed out")
        gevent.get_hub().switch()  # whatever comes first
        order.append("woken")

    caller = spawn(call)
    settle()
    assert order == ["timed out"]
    event.set()
    settle()
    assert order == ["timed out"]
    caller.kill()


def test_from_the_hub_with_and_without_a_switch():
    event = Event()
    order = []

    def act():
        order.append("begun")
        event.wait()
        order.append("ended")

    def in_the_hub():
        aside(act)
        order.append("returned")
        aside(lambda: order.append("at once"))

    gevent.get_hub().loop.run_callback(in_the_hub)
    settle()
    assert order == ["begun", "returned", "at once"]
    event.set()
    settle()
    assert order[-1] == "ended"


def test_from_the_main_greenlet():
    event = Event()
    done = []

    def act():
        event.wait()
        done.append(True)

    aside(act)
    assert not done
    event.set()
    settle()
    assert done


def test_from_a_raw_greenlet():
    event = Event()
    order = []

    def call():
        aside(event.wait)
        order.append("returned")

    raw = greenlet(call, gevent.get_hub())
    gevent.get_hub().loop.run_callback(raw.switch)
    settle()
    assert order == ["returned"]
    event.set()
    settle()
    assert raw.dead


@pytest.mark.parametrize("depth", [2, 5])
@pytest.mark.parametrize("blocks", [False, True])
def test_aside_of_an_aside(depth, blocks):
    event = Event()
    order = []

    def act(level):
        if level:
            aside(lambda: act(level - 1))
            order.append(level)
        elif blocks:
            event.wait()
            order.append("innermost")
        else:
            order.append("innermost")

    caller = spawn(aside, lambda: act(depth))
    settle()
    assert caller.ready()
    if blocks:
        assert sorted(order) == list(range(1, depth + 1))
        event.set()
        settle()
        assert order[-1] == "innermost"
    else:
        assert order == ["innermost", *range(1, depth + 1)]


def test_calls_run_side_by_side():
    events = [Event() for _ in range(3)]
    done = []

    def act(number):
        events[number].wait()
        done.append(number)

    def call():
        for number in range(3):
            aside(lambda number=number: act(number))

    caller = spawn(call)
    settle()
    assert caller.ready()
    for number in (2, 0, 1):
        events[number].set()
        settle()
    assert done == [2, 0, 1]


def test_call_woken_before_the_way_back_ends_well():
    """Its end leads to the caller, whose way back must not come a second time."""
    order = []
    others = []

    def act():
        others.append(gevent.getcurrent())
        gevent.get_hub().switch()
        order.append("ended")

    def call():
        gevent.get_hub().loop.run_callback(lambda: others[0].switch())  # before aside's own
        aside(act)
        order.append("returned")
        gevent.get_hub().switch()
        order.append("woken")

    caller = spawn(call)
    settle()
    assert order == ["ended", "returned"]
    caller.kill()


def test_nothing_keeps_a_call_or_its_caller_when_both_are_over():
    event = Event()
    seen = []

    def act():
        seen.append(weakref.ref(gevent.getcurrent()))
        event.wait()

    def call():
        seen.append(weakref.ref(gevent.getcurrent()))
        aside(act)

    spawn(call)
    settle()
    gc.collect()
    assert seen[0]() is None, "the caller is gone while the call still runs"
    event.set()
    settle()
    gc.collect()
    assert seen[1]() is None
