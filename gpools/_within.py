"""Bound a call by a timeout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gevent import Timeout

T = TypeVar("T")


def within(timeout: float | None, act: Callable[[], T], late: Callable[[float], Exception]) -> T:
    """Return what *act* returns; raise ``late(timeout)`` if it takes longer than *timeout*.

    In seconds; None is for ever.  Switches if *act* does.
    """
    if timeout is None:
        return act()
    timer = Timeout.start_new(max(timeout, 0))
    try:
        return act()
    except Timeout as fired:
        if fired is not timer:
            raise
    finally:
        timer.close()
        # Being the error too, it has this frame, which has the pool: a cycle.
        del timer
    raise late(timeout)
