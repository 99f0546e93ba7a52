"""What a connection pool knows of its items, and how it misses one that is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import finalize, ref

from gevent import get_hub, spawn_raw
from gevent.event import Event
from gevent.hub import Hub

from gpools._creator import Creator
from gpools._sweeper import Sweeper
from gpools.lifecycle import Entry, Lifecycle
from gpools.stats import Counters

if TYPE_CHECKING:
    from gpools.connection import ConnectionPool

T = TypeVar("T")

log = logging.getLogger("gpools")


class Limiter(Protocol):
    """What limits the items of several pools together: a `TokenPool`, or one of a fleet."""

    def get(self) -> Any:
        """Take a token, waiting for it; may switch."""

    def put(self, token: Any, /) -> None:
        """Give *token* back; must not switch."""


class Book:
    """What a connection pool knows and was told, in one place that no subclass steps on."""

    __slots__ = (
        "check_timeout",
        "count_holds",
        "counters",
        "creator",
        "destroy_timeout",
        "emptied",
        "fewest_idle",
        "filled",
        "going",
        "items",
        "leak_after",
        "life",
        "limiter",
        "listener",
        "max_waiting",
        "sweeper",
        "thread",
        "timeout",
        "tokens",
    )

    def __init__(self, life: Lifecycle, **settings: Any) -> None:
        self.timeout: float | None
        self.max_waiting: int | None
        self.check_timeout: float | None
        self.destroy_timeout: float
        self.leak_after: float | None
        self.count_holds: bool
        self.listener: Any
        self.limiter: Limiter | None
        for name, value in settings.items():
            setattr(self, name, value)
        self.life = life
        self.items: dict[int, Entry] = {}  # by id: items may be equal or unhashable
        self.going: dict[int, Any] = {}  # being destroyed; still counted in size
        self.tokens: dict[int, Any] = {}  # the limiter's, of the items in the two above
        self.counters = Counters()
        self.creator: Creator | None = None
        self.sweeper: Sweeper | None = None
        self.thread = 0  # that of the hub it belongs to, from its first use on
        self.fewest_idle = 0  # at once, of late; the sweeper's, who sets it
        self.emptied = Event()  # closed, and the last item is gone
        self.filled = Event()  # min_size items existed once

    def anew(self) -> Book:
        """Return a book with the same settings and nothing in it."""
        same = (
            "timeout",
            "max_waiting",
            "check_timeout",
            "destroy_timeout",
            "leak_after",
            "count_holds",
            "limiter",
            "listener",
        )
        return Book(self.life, **{name: getattr(self, name) for name in same})


def enter(pool: ConnectionPool[T], item: T, generation: int) -> Entry:
    """Make the entry of *item*, which keeps it alive only where nothing can refer to it weakly."""
    find: Callable[[], T | None]
    try:
        find = ref(item, partial(_collected, ref(pool), id(item), get_hub()))
    except TypeError:
        find = partial(same, item)
    return Entry(item, find, generation)


def on_loan(limiter: Limiter, token: Any, item: object) -> Any:
    """Have *token* go back when *item* is collected, be it with a pool that was never closed.

    Returns what to detach when it goes back before; *token* where nothing can tell.
    """
    try:
        # Not weakly the limiter: a pool may have one of its own, made of what others share.
        loan = finalize(item, _end_loan, limiter, token, get_hub())
    except TypeError:  # nothing can refer to it weakly
        return token
    loan.atexit = False
    return loan


def _end_loan(limiter: Limiter, token: Any, hub: Hub) -> None:
    _leave_to(hub, _put_back, limiter, token)


def _put_back(limiter: Limiter, token: Any) -> None:
    try:
        limiter.put(token)
    except Exception as error:
        # By another greenlet, for this is the hub, where a handler could not wait.
        spawn_raw(log.warning, "limiter.put failed: %r", error)


def same(item: T) -> T:
    return item


def _collected(pool: ref[ConnectionPool[Any]], key: int, hub: Hub, find: object) -> None:
    _leave_to(hub, _lose, pool, key, find)


def _leave_to(hub: Hub, act: Callable[..., None], *about: object) -> None:
    # Called wherever the collector runs, in another thread even: the hub does the rest.
    if hub.loop is not None:
        hub.loop.run_callback_threadsafe(act, *about)


def _lose(pool: ref[ConnectionPool[Any]], key: int, find: object) -> None:
    alive = pool()
    if alive is not None:
        alive._lose(key, find)
