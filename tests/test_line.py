"""The line by itself: `gpools._line`."""

from math import inf
from time import monotonic

import gevent
import pytest
from gevent.event import Event
from greenlet import greenlet

from gpools._line import NOTHING, SLOT, Line
from gpools.errors import HubWouldBlock
from tests.waiting import settle, spawn
from tests.watching import counting_switches


class Refused(Exception):
    pass


def waiters_in(line, count, served):
    def wait(number):
        served.append((number, line.wait()))

    waiters = [spawn(wait, number) for number in range(count)]
    settle()
    assert list(line.waiters) == waiters
    return waiters


def put(line, item):
    line.idle.append(item)
    line.wake()


@pytest.fixture
def line():
    return Line(0)


def test_take_prefers_an_idle_item_to_a_slot():
    line = Line(1)
    line.idle.extend("ab")
    line.size = 2
    line.limit = 3
    assert [line.take() for _ in range(4)] == ["a", "b", SLOT, NOTHING]
    assert line.size == 3


def test_take_leaves_everything_to_those_in_line(line):
    served = []
    waiters = waiters_in(line, 1, served)
    line.limit = 1
    line.idle.append("a")
    assert line.take() is NOTHING
    assert line.take(monotonic()) is NOTHING
    [arrived] = line.waiters.values()
    assert line.take(arrived) is NOTHING, "he came at the same moment"
    assert line.take(arrived - 0.001) == "a"
    assert line.take(-inf) is SLOT
    assert line.take(-inf) is NOTHING
    gevent.killall(waiters)


def test_wait_is_served_at_once_by_what_came_before_it(line):
    line.idle.append("a")
    waiter = spawn(line.wait)
    settle()
    assert waiter.get(block=False) == "a"


@pytest.mark.parametrize("how", ["idle", "limit", "size"])
def test_wake_serves_the_first(line, how):
    served = []
    waiters = waiters_in(line, 2, served)
    if how == "idle":
        line.idle.append("a")
    elif how == "limit":
        line.limit = 1
    else:
        line.size = -1
    assert served == [], "not before somebody says so"
    line.wake()
    assert served == [], "and not in the middle of it"
    settle()
    assert served == [(0, "a" if how == "idle" else SLOT)]
    assert line.size == (0 if how != "limit" else 1)
    gevent.killall(waiters)


def test_vacate_lets_the_first_in():
    line = Line(1)
    assert line.take() is SLOT
    served = []
    waiters = waiters_in(line, 2, served)
    line.vacate()
    settle()
    assert served == [(0, SLOT)]
    assert line.size == 1
    gevent.killall(waiters)


def test_wake_with_nothing_to_be_had_schedules_nothing(line):
    waiters = waiters_in(line, 2, [])
    line.wake()
    assert not line._scheduled
    gevent.killall(waiters)


def test_wake_with_nobody_in_line_schedules_nothing(line):
    line.limit = 3
    line.wake()
    line.look()
    assert not line._scheduled


def test_look_finds_what_was_put_without_a_word(line):
    served = []
    waiters_in(line, 1, served)
    line.look()
    line.idle.append("a")
    settle()
    assert served == [(0, "a")]


def test_look_that_finds_nothing_is_over(line):
    served = []
    waiters = waiters_in(line, 1, served)
    line.look()
    settle()
    assert served == []
    assert not line._scheduled
    put(line, "a")
    settle()
    assert served == [(0, "a")]
    assert waiters[0].ready()


def test_ten_wakes_serve_once(line):
    served = []
    waiters = waiters_in(line, 5, served)
    line.idle.append("a")
    with counting_switches() as counts:
        for _ in range(10):
            line.wake()
        settle()
    assert served == [(0, "a")]
    assert [counts.get(waiter, 0) for waiter in waiters] == [1, 0, 0, 0, 0]
    gevent.killall(waiters)


def test_many_items_serve_many_in_order_though_each_runs_for_long(line):
    """The next in line does not wait until the one before it blocks for the second time."""
    served = []
    go = Event()

    def wait(number):
        served.append((number, line.wait()))
        go.wait()

    waiters = [spawn(wait, number) for number in range(3)]
    settle()
    line.idle.extend("abc")
    line.wake()
    settle()
    assert served == [(0, "a"), (1, "b"), (2, "c")]
    go.set()
    gevent.joinall(waiters)


def test_each_one_served_has_a_turn_of_the_hub_to_itself(line):
    """Else a crowd that never blocks would keep the loop from its sockets and timers."""
    served = []
    waiters_in(line, 3, served)
    line.idle.extend("abc")
    for _ in range(3):
        line.wake()
    other = []
    gevent.get_hub().loop.run_callback(lambda: other.append(len(served)))
    settle()
    assert other == [1]
    assert len(served) == 3


def test_waiter_who_arrived_before_stands_before(line):
    """Each goes to where his time belongs, behind those who are his equals."""
    served = []
    waiters = waiters_in(line, 2, served)
    first, second = line.waiters.values()

    def wait(arrived):
        served.append((arrived, line.wait(arrived)))

    between, late = (first + second) / 2, monotonic()
    for arrived in (late, -2.0, between, -1.0, second, -2.0):
        waiters.append(spawn(wait, arrived))
        settle()
    assert list(line.waiters.values()) == [-2.0, -2.0, -1.0, first, between, second, second, late]
    for item in "abcdefgh":
        put(line, item)
    settle()
    assert served == [
        (-2.0, "a"),
        (-2.0, "b"),
        (-1.0, "c"),
        (0, "d"),
        (between, "e"),
        (1, "f"),
        (second, "g"),
        (late, "h"),
    ]


def test_waiter_back_in_line_waits_to_be_served(line):
    """His place is before those who came later, and no further."""
    served = []
    waiters = waiters_in(line, 1, served)
    back = spawn(line.wait, -1.0)
    settle()
    assert served == []
    assert list(line.waiters) == [back, waiters[0]]
    put(line, "a")
    settle()
    assert back.get(block=False) == "a"
    assert served == []
    gevent.killall(waiters)


def test_place_that_is_kept_holds_up_those_behind_it_and_is_served_itself_by_nobody(line):
    served = []
    waiters_in(line, 2, served)
    place = line.keep_place(-1.0)
    assert next(iter(line.waiters)) is place
    line.idle.extend("ab")
    line.wake()
    settle()
    assert served == []
    assert not line._scheduled, "the hub does not turn round for it"
    assert list(line.idle) == ["a", "b"]
    assert line.take() is NOTHING
    line.give_up_place(place)
    assert served == []
    settle()
    assert served == [(0, "a"), (1, "b")]


def test_place_is_kept_where_its_time_belongs(line):
    served = []
    waiters = waiters_in(line, 2, served)
    first, second = line.waiters.values()
    place = line.keep_place((first + second) / 2)
    assert list(line.waiters) == [waiters[0], place, waiters[1]]
    line.idle.extend("ab")
    line.wake()
    settle()
    assert served == [(0, "a")], "who came before is not held up"
    line.give_up_place(place)
    settle()
    assert served == [(0, "a"), (1, "b")]


def test_place_alone_in_line_keeps_newcomers_from_what_is_to_be_had():
    line = Line(2)
    place = line.keep_place(monotonic())
    assert line.take() is NOTHING
    assert line.take(-inf) is SLOT
    line.give_up_place(place)
    assert line.take() is SLOT
    assert not line.waiters
    settle()


def test_place_holds_up_a_refusal_until_it_is_given_up(line):
    waiters = [spawn(line.wait) for _ in range(2)]
    settle()
    place = line.keep_place(-1.0)
    line.refusal = Refused
    line.wake()
    settle()
    assert len(line.waiters) == 3
    line.give_up_place(place)
    settle()
    assert [type(waiter.exception) for waiter in waiters] == [Refused] * 2


def test_error_of_the_maker_goes_to_the_first_alone_or_to_everybody(line):
    waiters = [spawn(line.wait) for _ in range(4)]
    settle()
    mine = Refused("create")
    line.fail(mine, everybody=False)
    settle()
    assert [waiter.ready() for waiter in waiters] == [True, False, False, False]
    assert waiters[0].exception is mine
    line.fail(mine, everybody=True)
    settle()
    assert [waiter.exception for waiter in waiters] == [mine] * 4
    assert not line.errors


def test_item_goes_before_an_error(line):
    waiters = [spawn(line.wait) for _ in range(2)]
    settle()
    line.fail(Refused(), everybody=False)
    put(line, "a")
    settle()
    assert waiters[0].get(block=False) == "a"
    assert isinstance(waiters[1].exception, Refused)


def test_error_that_nobody_is_left_to_get_is_not_for_those_who_come_later(line):
    waiter = spawn(line.wait)
    settle()
    waiter.kill(block=False)
    line.fail(Refused(), everybody=False)
    settle()
    assert waiter.ready()
    assert not line.errors
    line.fail(Refused(), everybody=False)  # to nobody
    late = spawn(line.wait)
    settle()
    assert not late.ready()
    late.kill()


def test_maker_is_told_while_there_is_room_and_callers_make_nothing_themselves():
    line = Line(2)
    told = []
    line.maker = lambda: told.append(len(line.waiters))
    assert line.take() is NOTHING
    waiters = [spawn(line.wait) for _ in range(2)]
    settle()
    assert told == [1, 2]
    line.claim()
    line.claim()
    line.wake()
    assert told == [1, 2], "there is no slot"
    assert line.size == 2
    gevent.killall(waiters)
    told.clear()
    line.vacate()
    assert told == [], "nobody waits"


def test_line_anew_is_empty_and_set_as_before(line):
    line = Line(3)
    line.refusal, line.shed = Refused, object()
    line.claim()
    line.idle.append("a")
    line.errors.append(Refused())
    place = line.keep_place(1.0)
    anew = line.anew()
    assert (anew.limit, anew.refusal, anew.shed) == (3, Refused, line.shed)
    assert (anew.size, len(anew.idle), len(anew.errors), len(anew.waiters)) == (0, 0, 0, 0)
    assert anew.budget is None
    assert (line.size, len(line.idle)) == (1, 1), "the old one is as it was"
    del line.waiters[place]


def test_stray_switch_leaves_the_waiter_in_its_place(line):
    """Somebody else's event may still wake a greenlet that once waited for it."""
    served = []
    waiters = waiters_in(line, 2, served)
    for _ in range(3):
        gevent.get_hub().loop.run_callback(waiters[0].switch, "stray")
        settle()
    assert served == []
    assert list(line.waiters) == waiters
    put(line, "a")
    put(line, "b")
    settle()
    assert served == [(0, "a"), (1, "b")]


def test_stray_switch_in_the_turn_of_a_put_changes_nothing(line):
    served = []
    waiters = waiters_in(line, 1, served)
    gevent.get_hub().loop.run_callback(waiters[0].switch, "stray")
    put(line, "a")
    settle()
    assert served == [(0, "a")]


@pytest.mark.parametrize("error", [gevent.GreenletExit(), gevent.Timeout(), OSError()])
def test_waiter_that_is_thrown_out_gives_up_its_place_alone(line, error):
    served = []
    waiters = waiters_in(line, 3, served)
    gevent.get_hub().loop.run_callback(waiters[1].throw, error)
    settle()
    assert list(line.waiters) == [waiters[0], waiters[2]]
    assert waiters[1].value is error or waiters[1].exception is error
    put(line, "a")
    put(line, "b")
    settle()
    assert served == [(0, "a"), (2, "b")]


def test_hub_itself_cannot_wait(line):
    raised = []

    def wait():
        try:
            line.wait()
        except HubWouldBlock as error:
            raised.append(str(error))

    gevent.get_hub().loop.run_callback(wait)
    settle()
    assert raised == [
        "no item is idle and the hub's own greenlet cannot wait for one; "
        "spawn a greenlet for what needs an item"
    ]
    assert not line.waiters


def test_raw_greenlet_waits_like_any_other(line):
    served = []
    raw = greenlet(lambda: served.append(line.wait()), gevent.get_hub())
    gevent.get_hub().loop.run_callback(raw.switch)
    settle()
    put(line, "a")
    settle()
    assert served == ["a"]
    assert raw.dead


def test_main_greenlet_waits_like_any_other(line):
    gevent.spawn(put, line, "a")
    assert line.wait() == "a"


def test_refusal_throws_all_out_in_order(line):
    order = []

    def wait(number):
        try:
            line.wait()
        except Refused:
            order.append(number)

    waiters = [spawn(wait, number) for number in range(5)]
    settle()
    line.idle.append("a")
    line.refusal = Refused
    line.wake()
    gevent.joinall(waiters, timeout=5)
    assert order == [0, 1, 2, 3, 4]
    assert list(line.idle) == ["a"]


def test_refusal_meets_those_who_come_later(line):
    line.refusal = Refused
    waiter = spawn(line.wait)
    settle()
    assert isinstance(waiter.exception, Refused)
    assert not line.waiters


def test_error_of_one_served_does_not_stop_the_line(line):
    def fail():
        line.wait()
        raise OSError

    first, second = spawn(fail), spawn(line.wait)
    settle()
    line.idle.extend("ab")
    line.wake()
    settle()
    assert isinstance(first.exception, OSError)
    assert second.get(block=False) == "b"


def test_one_served_that_waits_again_at_once_goes_to_the_end(line):
    order = []

    def wait(name):
        for _ in range(2):
            order.append((name, line.wait()))

    waiters = [spawn(wait, name) for name in "xy"]
    settle()
    line.idle.extend("abcd")
    line.wake()
    gevent.joinall(waiters, timeout=5)
    assert order == [("x", "a"), ("y", "b"), ("x", "c"), ("y", "d")]


def test_line_is_not_searched_for_the_waiter_that_leaves(line):
    """Nobody is looked at but the first in line: no step beyond him."""

    class Waiters(type(line.waiters)):
        def __iter__(self):
            yield next(super().__iter__())
            raise AssertionError("searched")

        keys = items = __iter__

        def values(self):
            yield next(iter(super().values()))
            raise AssertionError("searched")

    line.waiters = Waiters()
    waiters = [spawn(line.wait) for _ in range(3)]
    settle()
    waiters[1].kill()
    assert len(line.waiters) == 2
    line.idle.extend("ab")
    line.wake()
    settle()
    assert not line.waiters
    assert waiters[2].get(block=False) == "b"
