"""Bound a call by a timeout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from gevent import Timeout, get_hub, getcurrent
from greenlet import greenlet

T = TypeVar("T")


def within(timeout: float | None, act: Callable[[], T], late: Callable[[float], Exception]) -> T:
    """Return what *act* returns; raise ``late(timeout)`` if it takes longer than *timeout*.

    In seconds; None is for ever.  Switches if *act* does.
    """
    if timeout is None:
        return act()
    # Whoever waits in a line pays for this, so the Timeout is made only if it is needed.
    try:
        timer = get_hub().loop.timer(max(0, timeout), priority=-1)
    except TypeError:
        raise TypeError(f"timeout must be a number, or None, not {timeout!r}") from None
    timer.start(_ring, getcurrent(), timer, timeout, update=True)
    try:
        return act()
    except _Ours as fired:
        if fired.of is not timer:
            raise
    finally:
        timer.close()
    raise late(timeout)


class _Ours(Timeout):
    """What is thrown; others' Timeouts may lack any attribute, and lose their timer by close()."""

    of: Any


def _ring(me: greenlet, timer: Any, seconds: float) -> None:
    """Throw what a `gevent.Timeout` started on *timer* would throw."""
    timeout = _Ours()
    timeout.seconds = seconds
    timeout.of = timer
    me.throw(timeout)
