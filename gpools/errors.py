"""What the pools raise; each error is also one that callers already catch."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING

from gevent.exceptions import BlockingSwitchOutError

if TYPE_CHECKING:
    from gpools._holders import Hold

__all__ = [
    "HubWouldBlock",
    "NotInUse",
    "PoolClosed",
    "PoolError",
    "PoolFull",
    "PoolShed",
    "PoolTimeout",
    "PoolUnavailable",
    "WrongThread",
]


class PoolError(Exception):
    """The base of all errors of this package."""


class PoolTimeout(PoolError, TimeoutError):
    """No item could be had within the timeout; the message tells who holds them longest.

    *holders* are all of them, longest first, from a connection pool.
    """

    holders: tuple[Hold, ...] = ()


class PoolShed(PoolTimeout):
    """The pool is overloaded and dropped a caller who had waited for too long already."""


class PoolUnavailable(PoolError, ConnectionError):
    """No item exists and making one keeps failing; the cause is the last error of `create`."""


class PoolClosed(PoolError):
    """The pool has been closed, or was closed while the caller stood in line."""


class PoolFull(PoolError, queue.Full):
    """As many callers as `max_waiting` allows stand in line already."""


class NotInUse(PoolError, ValueError):
    """An item was put or discarded that this pool has not handed out, or has back already."""


class HubWouldBlock(PoolError, BlockingSwitchOutError):
    """The hub's own greenlet asked for an item and would have had to wait for it."""


class WrongThread(PoolError, RuntimeError):
    """A pool was used from another OS thread than the one whose hub it belongs to."""
