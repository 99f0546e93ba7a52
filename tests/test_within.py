"""within(): one bound for whatever a call does."""

import gc
import weakref
from contextlib import suppress
from functools import partial
from math import inf, nan

import gevent
import pytest
from gevent import Timeout

from gpools._within import within
from tests.waiting import settle


class Late(Exception):
    pass


@pytest.mark.parametrize("seconds", [0, 0.001])
def test_who_is_late_gets_the_error_that_was_asked_for(seconds):
    with pytest.raises(Late) as caught:
        within(seconds, partial(gevent.sleep, 60), Late)
    assert caught.value.args == (seconds,)


def test_who_looks_at_the_timeout_reads_how_long_it_was():
    seen = []

    def act():
        try:
            gevent.sleep(60)
        except Timeout as error:
            seen.append(str(error))
            raise

    with pytest.raises(Late):
        within(0.001, act, Late)
    assert seen == [str(Timeout(0.001))]


def test_another_timeout_passes_through():
    with pytest.raises(Timeout) as caught, Timeout(0.001) as other:
        within(60, partial(gevent.sleep, 60), Late)
    assert caught.value is other


def test_who_is_late_leaves_nothing_to_the_collector():
    class Waiting:
        def __call__(self):
            gevent.sleep(60)

    waiting = Waiting()
    gone = weakref.ref(waiting)
    gc.disable()
    try:
        with suppress(Late):
            within(0.001, waiting, Late)
        del waiting
        settle()  # the hub was in the middle of it
        assert gone() is None
    finally:
        gc.enable()


def test_a_timeout_that_has_no_timer_passes_through():
    """Users make classes of their own, and not all call the __init__ of gevent's."""

    class Bare(Timeout):
        def __init__(self):
            pass

    def act():
        raise mine

    mine = Bare()
    with pytest.raises(Bare) as caught:
        within(60, act, Late)
    assert caught.value is mine


def test_who_closes_the_timeout_that_comes_is_late_too():
    """A create() may catch it, tidy up all that it knows of timeouts, and let it go on."""

    def act():
        try:
            gevent.sleep(60)
        except Timeout as error:
            error.close()
            raise

    with pytest.raises(Late):
        within(0.001, act, Late)


@pytest.mark.parametrize("seconds", ["3", [3], object])
def test_what_is_no_number_is_refused_before_anything_is_done(seconds):
    done = []
    with pytest.raises(TypeError, match="timeout must be a number, or None, not"):
        within(seconds, partial(done.append, 1), Late)
    assert done == []


@pytest.mark.parametrize("seconds", [-1, -inf, nan, False])
def test_what_is_no_time_at_all_is_over_at_once(seconds):
    """A timer of nan seconds has the event loop run for ever."""
    with pytest.raises(Late):
        within(seconds, partial(gevent.sleep, 60), Late)
