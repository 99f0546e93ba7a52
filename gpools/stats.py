"""What a pool counts, and how it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gpools._holders import Hold
    from gpools.connection import ConnectionPool

__all__ = ["Listener", "Stats"]


@dataclass(frozen=True)
class Stats:
    """A pool at one moment.

    ``size == idle + in_use + between + creating + destroying`` and
    ``created - sum(destroyed.values()) == size - creating``.

    *between* are items being checked or reset.  *destroyed* counts items that
    are gone, by reason: ``discarded``, ``check``, ``hung`` (its check was cut
    off, or that of another while it was idle), ``reset``, ``surplus``,
    ``closed``, ``max_age``, ``max_idle``, ``unused``, ``recycled``,
    ``collected``, ``displaced`` (for another key), ``refused`` (fresh from
    `create`).  The seconds are sums since the pool was made: spent in line by
    those who were served, gave up or were turned away, in `create` where it
    succeeded, and, where *count_holds* was asked for, between get and put.
    """

    size: int
    idle: int
    in_use: int
    between: int
    creating: int
    destroying: int
    waiting: int
    max_size: int
    created: int
    destroyed: Mapping[str, int]
    create_errors: int
    timeouts: int
    shed: int
    leaks: int
    waits: int
    wait_seconds: float
    create_seconds: float
    hold_seconds: float


@dataclass
class Counters:
    """The plain counters behind `Stats`; raised at the edges, never on the idle path."""

    created: int = 0
    destroyed: dict[str, int] = field(default_factory=dict)
    create_errors: int = 0
    timeouts: int = 0
    shed: int = 0
    leaks: int = 0
    waits: int = 0
    wait_seconds: float = 0.0
    create_seconds: float = 0.0
    hold_seconds: float = 0.0

    def gone(self, reason: str) -> None:
        """Count an item that is gone."""
        self.destroyed[reason] = self.destroyed.get(reason, 0) + 1

    def frozen(self) -> dict[str, Any]:
        """Return all counters, the reasons as a copy that cannot be changed."""
        return {**vars(self), "destroyed": MappingProxyType(dict(self.destroyed))}


class Listener(Protocol):
    """Told of rare transitions; define those you want, in any class.

    Each call runs in a greenlet of its own, so a listener that is slow, fails
    or is killed breaks nothing; its errors are logged.
    """

    def created(self, pool: ConnectionPool[Any]) -> None:
        """Called after an item was made."""

    def create_failed(self, pool: ConnectionPool[Any], error: BaseException) -> None:
        """Called after `create` raised *error*."""

    def destroyed(self, pool: ConnectionPool[Any], reason: str) -> None:
        """Called after an item was let go; *reason* as in `Stats`."""

    def timed_out(self, pool: ConnectionPool[Any]) -> None:
        """Called after a caller gave up waiting."""

    def shed(self, pool: ConnectionPool[Any]) -> None:
        """Called after a caller was turned away by overload."""

    def leaked(self, pool: ConnectionPool[Any], hold: Hold) -> None:
        """Called for an item held longer than *leak_after*, or lost without put."""

    def closed(self, pool: ConnectionPool[Any]) -> None:
        """Called after the pool was closed."""


EVENTS = [name for name in vars(Listener) if not name.startswith("_")]
