"""Order: what its things are found by, and that nothing is left of those that are gone."""

import gc
import random
import weakref

import pytest

from gpools._order import SLACK, Order


def test_the_first_is_the_earliest():
    order = Order()
    for thing, time in (("b", 2), ("a", 1), ("c", 3)):
        order.place(thing, time)

    assert order.first() == "a"
    assert order.time("b") == 2


def test_an_empty_order_has_no_first():
    assert Order().first() is None
    assert list(Order().before(1)) == []


def test_of_two_at_one_time_the_first_placed_is_first():
    order = Order()
    for thing in "bac":
        order.place(thing, 1)
    order.place("b", 1)  # as it stood

    assert order.first() == "b"


def test_who_is_placed_anew_stands_there_only():
    order = Order()
    order.place("a", 1)
    order.place("b", 2)
    order.place("a", 3)
    assert order.first() == "b"
    order.place("a", 1)
    assert order.first() == "a"
    assert sorted(order.before(9)) == ["a", "b"]


def test_who_is_placed_nowhere_is_gone():
    order = Order()
    order.place("a", 1)
    order.place("a", None)
    order.place("b", None)

    assert "a" not in order
    assert order.first() is None


@pytest.mark.parametrize("seed", range(5))
def test_it_is_as_good_as_sorting(seed):
    dice = random.Random(seed)
    order, truth = Order(), {}
    for _ in range(2000):
        thing, time = dice.randrange(50), dice.choice((None, dice.randrange(30)))
        order.place(thing, time)
        truth.pop(thing, None)
        if time is not None:
            truth[thing] = time
        if dice.random() < 0.5:
            first = order.first()
            assert truth.get(first) == min(truth.values(), default=None)
        limit = dice.randrange(30)
        early = sorted(order.before(limit))
        assert early == sorted(thing for thing in truth if truth[thing] < limit)
        assert all(order.time(thing) == truth[thing] for thing in truth)
        assert all((thing in order) == (thing in truth) for thing in range(50))
        assert len(order._heap) <= 2 * len(truth) + SLACK


def test_what_is_gone_is_not_kept_alive():
    class Thing:
        pass

    order, thing = Order(), Thing()
    order.place(thing, 1)
    order.place(thing, 2)
    order.place(thing, None)
    gone = weakref.ref(thing)
    del thing
    gc.collect()

    assert gone() is None
