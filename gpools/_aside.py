"""Run a call to its end, whatever becomes of the greenlet that started it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gevent import get_hub, getcurrent
from greenlet import greenlet


def aside(act: Callable[[], None]) -> None:
    """Run *act* at once in a greenlet of its own; come back when it ends or first switches.

    What is left of it goes on in the background: a kill or a Timeout hits the
    caller alone.  *act* must not raise.  May switch, for one turn of the hub.
    """
    hub, me = get_hub(), getcurrent()
    if me is hub:
        greenlet(act, hub).switch()
        return
    # While *act* runs without switching, its end brings us back (as its parent).
    # Once it switches, the hub does, and its end must go to the hub instead.
    other = greenlet(act, me)
    back = hub.loop.run_callback(me.switch)
    try:
        other.switch()
    finally:
        back.stop()
        if not other.dead:
            other.parent = hub


def each_aside(acts: Iterable[Callable[[], None]]) -> None:
    """Run each of *acts* aside, so that a slow one does not delay the next."""
    for act in acts:
        aside(act)
