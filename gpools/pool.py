"""`Pool` and `TokenPool`, as `eventlet.pools` documents them, on gevent's hub.

A plain `Pool` knows `create` and nothing else: it never inspects, wraps or
closes an item, and **it puts an item back after every exception**, a Timeout
or a kill in the middle of a request included.  For anything with a socket in
it take `gpools.ConnectionPool`.

The invariants stand in `gpools._line`.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gpools._fast import Core
from gpools._line import Line
from gpools._within import within
from gpools.errors import PoolTimeout

__all__ = ["Pool", "Token", "TokenPool"]

T = TypeVar("T")
Self = TypeVar("Self", bound="Pool[Any]")

_order: Any = vars(Core).get("order_as_stack")  # where the compiled core has it


class _Channel(Generic[T]):
    """What code written for eventlet uses of ``pool.channel``.

    Nothing is ever kept in it: a get stands in the pool's own line.
    """

    def __init__(self, pool: Pool[T]) -> None:
        self._pool = pool
        self.queue: deque[T] = deque()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Wait for an item as `Pool.get` does; raises `queue.Empty` where that times out."""
        if not block:
            raise queue.Empty
        return within(timeout, self._pool._get_in_line, lambda _: queue.Empty())

    def getting(self) -> int:
        """Tell how many greenlets wait."""
        return self._pool.waiting()

    def putting(self) -> int:
        """Tell how many greenlets wait to put: none ever does."""
        return 0


class _ChannelOfPool:
    # Made at each access: one kept by the pool would close a reference cycle.
    # Not a property, so that a subclass may set a channel of its own.
    def __get__(self, pool: Pool[T], owner: type[Pool[T]]) -> _Channel[T]:
        return _Channel(pool)


class Pool(Core, Generic[T]):
    """A pool of up to *max_size* items of any kind, made on demand.

    Give *create*, a callable without arguments, or define `create` in a
    subclass::

        pool = Pool(max_size=10, create=lambda: Client("db1", timeout=5))
        with pool.item() as client:
            client.query()

    *min_size* items are made by the constructor.  Items go out in the order in
    which they came back, with *order_as_stack* the last one first.  *name* is
    for the reader of `repr` and of errors.

    Public and writable, as in eventlet: ``free_items``, a deque whose left end
    goes out next, ``current_size``, the items that exist, and ``max_size``.
    Setting one lets in whoever now fits.

    Raises TypeError for sizes that are no numbers, and whatever `create`
    raises.  May switch if `create` does.
    """

    name: str | None = None
    min_size: int = 0

    channel = _ChannelOfPool()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A value in a class would hide from the compiled core what is set on its pools.
        if _order is not None and isinstance(cls.order_as_stack, bool):
            cls.order_as_stack = _order

    def __new__(cls: type[Self], *args: Any, **kwargs: Any) -> Self:
        # Here, not in __init__, because subclasses use their pool before they
        # call __init__, and in a __del__ after it failed.
        pool = super().__new__(cls)
        pool._line = Line(4)
        pool.order_as_stack = False
        return pool

    def __init__(
        self,
        min_size: int = 0,
        max_size: int = 4,
        order_as_stack: bool = False,
        create: Callable[[], T] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        _require_number("min_size", min_size)
        _require_number("max_size", max_size)
        if create is not None and not callable(create):
            raise TypeError(f"create must be callable without arguments, not {create!r}")
        self.min_size = min_size
        self.order_as_stack = order_as_stack
        if name is not None:
            self.name = name
        if create is not None:
            self.create = create  # type: ignore[method-assign]
        line = self._line
        line.limit = max_size
        line.size = 0
        line.idle = deque()
        for _ in range(min_size):
            line.size += 1
            line.idle.append(self._make_item())

    def create(self) -> T:
        """Make one item; to be defined by a subclass or given as *create*.

        Called without arguments when an item is wanted and none is idle.  It
        may switch.  What it raises, a Timeout or a kill included, frees the
        slot and reaches the caller of `get`.
        """
        raise NotImplementedError("give create=, or define create() in a subclass")

    if TYPE_CHECKING:
        # They are the core's, which is not generic.

        def get(self, *, timeout: float | None = None) -> T: ...

        def put(self, item: T) -> None: ...

        def _get_in_line(self) -> T: ...

        def item(self, *, timeout: float | None = None) -> AbstractContextManager[T]: ...

    def resize(self, new_size: int) -> None:
        """Set ``max_size``; whoever now fits is let in.

        Items beyond a smaller size are dropped as they are put back, one each.
        Never switches.
        """
        self.max_size = new_size

    def free(self) -> int:
        """Tell how many gets would succeed without waiting; negative after a shrink."""
        line = self._line
        return len(line.idle) + line.limit - line.size

    def waiting(self) -> int:
        """Tell how many greenlets stand in line."""
        return len(self._line.waiters)

    @property
    def free_items(self) -> deque[T]:
        """The idle items; the left end goes out next."""
        # Whoever reads it may be about to append to it by hand.
        self._line.look()
        return self._line.idle

    @free_items.setter
    def free_items(self, items: deque[T]) -> None:
        self._line.idle = items
        self._line.wake()

    @property
    def current_size(self) -> int:
        """The items that exist, idle or in use, and those being made."""
        return self._line.size

    @current_size.setter
    def current_size(self, size: int) -> None:
        self._line.size = size
        self._line.wake()

    @property
    def max_size(self) -> int:
        """The most items that may exist."""
        return self._line.limit

    @max_size.setter
    def max_size(self, new_size: int) -> None:
        _require_number("max_size", new_size)
        self._line.limit = new_size
        self._line.wake()

    def __repr__(self) -> str:
        line = self._line
        name = "" if self.name is None else f" {self.name!r}"
        idle = len(line.idle)
        return (
            f"<{type(self).__name__}{name} {idle} idle, {line.size - idle} in use, "
            f"{len(line.waiters)} waiting, max {line.limit}>"
        )

    def _make_item(self) -> T:
        """Fill a slot that is already taken; may switch."""
        try:
            return self.create()
        except BaseException:
            # Whatever ended it, a kill included, the slot must not end with it.
            self._line.vacate()
            raise

    def _of_name(self) -> str:
        return "" if self.name is None else f"of {self.name!r} "

    def _timeout_error(self, timeout: float) -> PoolTimeout:
        line = self._line
        return PoolTimeout(
            f"no item {self._of_name()}came free within {timeout} s "
            f"({line.size - len(line.idle)} of {line.limit} in use, {len(line.waiters)} "
            "still waiting); raise max_size, or hold items for less time"
        )


class Token:
    """The right to use one unit of something limited; nothing but an identity."""


class TokenPool(Pool[Token]):
    """A pool of tokens: a limit on how many greenlets do something at once.

    ::

        uploads = TokenPool(max_size=5)
        with uploads.item():
            upload()
    """

    def create(self) -> Token:
        """Make a token, distinct from all others."""
        return Token()


def _require_number(name: str, value: object) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
