"""Bound a wait in a line by a timeout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gevent import Timeout

T = TypeVar("T")


def within(timeout: float | None, wait: Callable[[], T], late: Callable[[], BaseException]) -> T:
    """Return what *wait* does; raise ``late()`` if that takes longer.  May switch."""
    if timeout is None:
        return wait()
    timer = Timeout.start_new(max(timeout, 0))
    try:
        return wait()
    except Timeout as fired:
        if fired is not timer:
            raise
    finally:
        timer.close()
        del timer  # it is the error too, which has this frame: a cycle
    raise late()
