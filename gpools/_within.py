"""Bound a call by a timeout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gevent import Timeout, get_hub, getcurrent
from greenlet import greenlet

T = TypeVar("T")


def within(timeout: float | None, act: Callable[[], T], late: Callable[[float], Exception]) -> T:
    """Return what *act* returns; raise ``late(timeout)`` if it takes longer than *timeout*.

    In seconds; None is for ever.  Switches if *act* does.
    """
    if timeout is None:
        return act()
    # Not a Timeout yet: to make one takes longer than most calls need.
    fired: list[Timeout] = []
    timer = get_hub().loop.timer(max(timeout, 0))
    timer.start(_interrupt, getcurrent(), timeout, fired)
    try:
        return act()
    except Timeout as error:
        if error not in fired:
            raise
    finally:
        timer.close()
        # Being the error too, it has this frame, which has the pool: a cycle.
        fired.clear()
    raise late(timeout)


def _interrupt(caller: greenlet, seconds: float, fired: list[Timeout]) -> None:
    error = Timeout()  # without a timer of its own
    error.seconds = seconds
    fired.append(error)
    caller.throw(error)
