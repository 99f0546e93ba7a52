"""`FairLifoQueue`: `queue.LifoQueue` whose callers are served in the order they came.

For libraries that build their pool on a queue and let you say which::

    redis.BlockingConnectionPool(queue_class=FairLifoQueue)
    urllib3.connectionpool.HTTPConnectionPool.QueueCls = FairLifoQueue
    kombu.resource.LifoQueue = FairLifoQueue
"""

from __future__ import annotations

import sys
from collections import deque
from queue import Empty, Full
from typing import Generic, TypeVar, cast

from gevent.event import Event

from gpools._line import NOTHING, Line
from gpools._within import within

__all__ = ["FairLifoQueue"]

T = TypeVar("T")


class FairLifoQueue(Generic[T]):
    """A last-in, first-out queue in which getters, and putters, stand in line.

    The interface is that of `queue.LifoQueue`, and so are its errors, `queue.Empty`
    and `queue.Full`.  Unlike there, the first to ask is the first to be served: a
    get that need not wait never takes an item past those who do, and a getter
    that is killed or times out takes nobody's turn with it.

    *maxsize* is the most items that it holds; 0 or less sets no limit.
    ``queue`` is a deque of the items, the next to go out at its left end.

    It belongs to the greenlets of one thread.
    """

    def __init__(self, maxsize: int = 0) -> None:
        self.maxsize = maxsize
        self._getters: Line = Line(0)  # which makes nothing: items are put
        self._putters: Line = Line(maxsize if maxsize > 0 else sys.maxsize)
        self._unfinished = 0
        self._finished = Event()
        self._finished.set()

    @property
    def queue(self) -> deque[T]:
        """The items; the left end goes out next."""
        return self._getters.idle

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Add *item*, waiting in line while the queue is full.

        With *block* false, or after *timeout* seconds, raises `queue.Full`; with
        *timeout* None, waits for ever.  Raises ValueError for a negative *timeout*.
        Switches only if it waits.
        """
        putters = self._putters
        if self.maxsize > 0 and block:
            _require_not_negative(timeout)
        self._count()
        if putters.take() is NOTHING:
            if not block:
                raise Full
            within(timeout, putters.wait, lambda _: Full())
        self._unfinished += 1
        self._finished.clear()
        self.queue.appendleft(item)
        self._getters.wake()
        self._count()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the item that was put last, waiting in line while there is none.

        With *block* false, or after *timeout* seconds, raises `queue.Empty`; with
        *timeout* None, waits for ever.  Raises ValueError for a negative *timeout*.
        Switches only if it waits.
        """
        getters = self._getters
        if block:
            _require_not_negative(timeout)
        item = getters.take()
        if item is NOTHING:
            if not block:
                raise Empty
            item = within(timeout, getters.wait, lambda _: Empty())
        self._count()
        return cast("T", item)  # no slot: there are none

    def put_nowait(self, item: T) -> None:
        """Add *item*; raises `queue.Full` rather than wait.  Never switches."""
        self.put(item, block=False)

    def get_nowait(self) -> T:
        """Take an item; raises `queue.Empty` rather than wait.  Never switches."""
        return self.get(block=False)

    def qsize(self) -> int:
        """Tell how many items there are."""
        return len(self.queue)

    def empty(self) -> bool:
        """Tell whether there is no item."""
        return not self.queue

    def full(self) -> bool:
        """Tell whether there are *maxsize* items."""
        return 0 < self.maxsize <= len(self.queue)

    def task_done(self) -> None:
        """Say that an item which was taken has been worked off.

        Raises ValueError if that was said of all items already.  Never switches.
        """
        if self._unfinished == 0:
            raise ValueError("task_done() was called more often than put()")
        self._unfinished -= 1
        if self._unfinished == 0:
            self._finished.set()

    def join(self) -> None:
        """Wait until `task_done` was called for every item put.  May switch."""
        self._finished.wait()

    def __repr__(self) -> str:
        most = f", max {self.maxsize}" if self.maxsize > 0 else ""
        return (
            f"<{type(self).__name__} {self.qsize()} items, {len(self._getters.waiters)} getting, "
            f"{len(self._putters.waiters)} putting{most}>"
        )

    def _count(self) -> None:
        # Counted anew, for kombu takes items out of `queue` by itself.
        self._putters.size = len(self.queue)
        self._putters.wake()


def _require_not_negative(timeout: float | None) -> None:
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout is {timeout} but must be at least 0, or None")
