"""`KeyedPool`: one pool for each host, database or shard, under one limit.

A key's pool is made on demand and forgotten when it is empty, so the pools that
exist are never more than the items and waiters are.  Under the common limit a
freed slot goes to the key whose first in line has waited longest; an idle item
makes way for whoever waits, whatever the key; and a key in use makes way for
one that has nothing at all, once its first in line has waited longer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar

from gevent import get_hub

from gpools._aside import aside, each_aside
from gpools._closing import Closing
from gpools._fast import MISSING, NOT_OUT, Missing
from gpools._holders import Hold
from gpools._line import Line
from gpools._order import Order
from gpools.connection import ConnectionPool, this_thread
from gpools.errors import NotInUse, PoolClosed

__all__ = ["KeyedPool"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class KeyedPool(Closing, Generic[K, T]):
    """A pool for each key, of up to *max_size* items in all.

    *make_pool*, called with a key, returns its pool, whose own ``max_size`` is
    the limit of that key, and whose ``min_size`` must be 0::

        pools = KeyedPool(lambda host: HttpPool(max_size=4, timeout=5), max_size=100)
        with pools.item("db1.example") as http:
            http.request("http://db1.example/")

    Raises ValueError for a *max_size* below 1.
    """

    def __init__(
        self, make_pool: Callable[[K], ConnectionPool[T]], max_size: int = 100, *, name: str = ""
    ) -> None:
        if not callable(make_pool):
            raise TypeError(f"make_pool must be callable with a key, not {make_pool!r}")
        if not isinstance(max_size, int) or isinstance(max_size, bool) or max_size < 1:
            raise ValueError(f"max_size is {max_size!r} but must be a whole number, at least 1")
        self.name = name
        self._make_pool = make_pool
        self._pools: dict[K, _Keyed[K, T]] = {}
        self._budget: _Budget[K, T] = _Budget(max_size, self._pools)
        self._closed = False
        self._thread: int | None = None  # from its first use on

    def get(self, key: K, *, timeout: float | Missing | None = MISSING) -> T:
        """Take an item of *key*; `ConnectionPool.get` in all else.  May switch."""
        with self._at(key) as pool:
            return pool.get() if timeout is MISSING else pool.get(timeout=timeout)

    def put(self, key: K, item: T) -> None:
        """Give an *item* of *key* back; `ConnectionPool.put` in all else."""
        self._pool_of(key).put(item)

    def discard(self, key: K, item: T) -> None:
        """Destroy an *item* of *key*; `ConnectionPool.discard` in all else."""
        self._pool_of(key).discard(item)

    def item(
        self, key: K, *, timeout: float | Missing | None = MISSING
    ) -> AbstractContextManager[T]:
        """Take an item of *key* for a ``with`` block; `ConnectionPool.item` in all else."""
        return _KeyedUse(self, key, timeout)

    def pools(self) -> dict[K, ConnectionPool[T]]:
        """Return the pools there are now, by key.  Never switches."""
        return {key: keyed.pool for key, keyed in self._pools.items()}

    @property
    def size(self) -> int:
        """The items that exist in all, idle or in use, and those being made or destroyed."""
        return self._budget.used

    @property
    def max_size(self) -> int:
        """The most items that may exist in all."""
        return self._budget.limit

    def _pool_of(self, key: K) -> ConnectionPool[T]:
        keyed = self._pools.get(key)
        if keyed is None:
            raise NotInUse(f"{self!r} has nothing out of that key")
        return keyed.pool

    def _belong_here(self) -> None:
        """Claim the pools for this thread at their first use; refuse every other thread."""
        self._thread = this_thread(self, self._thread)

    def recycle(self, spread: float = 0.0) -> None:
        """Retire all items made before now; `ConnectionPool.recycle` for each key."""
        self._belong_here()
        pools = self.pools().values()
        for pool in pools:
            pool._outdate(spread)  # first of all, so that nobody gets one of another key
        now = monotonic()
        aside(partial(each_aside, [partial(pool._retire_expired, now) for pool in pools]))

    def close(self, timeout: float | None = None) -> list[Hold]:
        """Close all pools, one after the other; return the holds that remain.

        *timeout*, in seconds, is for each.  May switch as `ConnectionPool.close` does.
        """
        self._belong_here()
        self._closed = True
        pools = self.pools().values()
        for pool in pools:
            pool._refuse_all()  # first of all, so that nobody gets one of another key
        aside(partial(each_aside, [partial(pool._drop_all_idle, "closed") for pool in pools]))
        return [hold for pool in pools for hold in pool.close(timeout)]

    def __repr__(self) -> str:
        lines = [keyed.pool._line for keyed in self._pools.values()]
        idle = sum(len(line.idle) for line in lines)
        name = f" {self.name!r}" if self.name else ""
        return (
            f"<{type(self).__name__}{name} {len(lines)} keys, {idle} idle, "
            f"{self.size - idle} in use, {sum(len(line.waiters) for line in lines)} waiting, "
            f"max {self.max_size}>"
        )

    @contextmanager
    def _at(self, key: K) -> Iterator[ConnectionPool[T]]:
        """Keep the pool of *key* while somebody is busy with it; forget it if it is empty then."""
        self._belong_here()
        keyed, surplus = self._pools.get(key), None
        if keyed is None:
            if self._closed:
                raise PoolClosed(f"{self!r} is closed")
            self._budget.forget_the_leaving()
            made = _usable(self._make_pool(key))
            if self._closed:  # while make_pool() ran
                made.close()
                raise PoolClosed(f"{self!r} is closed")
            keyed = self._pools.get(key)
            if keyed is None:
                keyed = self._budget.join(key, made)
            elif keyed.pool is not made:  # another greenlet was faster
                surplus = made
        keyed.users += 1  # before anything switches, else it might be forgotten meanwhile
        try:
            if surplus is not None:
                surplus.close()
            yield keyed.pool
        finally:
            keyed.users -= 1
            self._budget.forget_if_empty(keyed)


class _Keyed(Generic[K, T]):
    """A pool, and what is known of it."""

    __slots__ = ("keys", "pool", "users", "wants")

    def __init__(self, pool: ConnectionPool[T]) -> None:
        self.pool = pool
        self.keys: list[K] = []  # one, unless make_pool gives several keys the same pool
        self.users = 0  # greenlets in the middle of a call
        self.wants = 0  # slots that it could use now


def _usable(made: ConnectionPool[T]) -> ConnectionPool[T]:
    if not isinstance(made, ConnectionPool):
        raise TypeError(f"make_pool must return a ConnectionPool, not {made!r}")
    if made.min_size:
        made.close()
        raise ValueError(f"min_size is {made.min_size} but must be 0 under a common limit")
    return made


class _KeyedUse(AbstractContextManager[T]):
    """One ``with pools.item(key)`` block."""

    __slots__ = ("_key", "_pools", "_timeout", "_use")

    def __init__(self, pools: KeyedPool[Any, T], key: Any, timeout: float | Missing | None) -> None:
        self._pools = pools
        self._key = key
        self._timeout = timeout
        self._use: AbstractContextManager[T] | None = None

    def __enter__(self) -> T:
        if self._use is not None:
            raise RuntimeError("an item() serves one with block; call pools.item() for each")
        with self._pools._at(self._key) as pool:
            self._use = pool.item(timeout=self._timeout)
            return self._use.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._use is None:
            raise RuntimeError(NOT_OUT)
        # Not by the key: its pool may be forgotten by now, if the item was discarded.
        self._use.__exit__(kind, error, tb)


class _Budget(Generic[K, T]):
    """The limit that the lines of all keys share; see `gpools._line.Budget`.

    Whatever may change what a line could use ends in `note`, so that no
    operation has to go through all keys.
    """

    def __init__(self, limit: int, pools: dict[K, _Keyed[K, T]]) -> None:
        self.limit = limit
        self.used = 0
        self.going = 0
        self._pools = pools
        self._of: dict[Line, _Keyed[K, T]] = {}
        self._having: dict[_Keyed[K, T], None] = {}  # items, or slots for them
        self._wanted = 0  # slots, by all keys together
        # Those that want one, by when their first in line came; and those of
        # them that have nothing at all.
        self._wanting: Order[_Keyed[K, T]] = Order()
        self._poor: Order[_Keyed[K, T]] = Order()
        # Those with an item idle, by the time of the longest idle, or an earlier
        # one: a get, which must be quick, does not tell that it took that item.
        self._spare: Order[_Keyed[K, T]] = Order()
        # Those that were empty and could not be forgotten then, by when they can.
        self._leaving: Order[_Keyed[K, T]] = Order()
        self._scheduled = False  # `_go_on` is on its way

    def join(self, key: K, pool: ConnectionPool[T]) -> _Keyed[K, T]:
        """Have *pool* be that of *key*, and count it in."""
        line = pool._line
        keyed = self._of.get(line)
        if keyed is None:
            keyed = self._of[line] = _Keyed(pool)
            if line.budget is None:
                line.budget = self
                self.used += line.size
                self.going += len(pool._book.going)
            self.note(line)
        keyed.keys.append(key)
        self._pools[key] = keyed
        return keyed

    def renew(self, line: Line, successor: Line) -> None:
        successor.budget = self
        self.used -= line.size
        keyed = self._of.pop(line, None)
        if keyed is not None:
            self.going -= len(keyed.pool._book.going)
            self._of[successor] = keyed
            self.note(successor)
            self._leaving.place(keyed, 0.0)

    def note(self, line: Line) -> None:
        keyed = self._of.get(line)
        if keyed is None:  # it was forgotten, and somebody uses it still
            return
        if line.waiters or keyed.wants:
            wants = _wants(keyed.pool, line)
            self._wanted += wants - keyed.wants
            keyed.wants = wants
            first = _first(line) if wants else None
            self._wanting.place(keyed, first)
            self._poor.place(keyed, None if line.size else first)
        if line.size:
            self._having[keyed] = None
            if line.idle and keyed not in self._spare:
                self._spare.place(keyed, _idle_since(keyed.pool, line))
        else:
            self._having.pop(keyed, None)

    def allows(self, line: Line) -> bool:
        if self.used >= self.limit:
            return False
        longest = self._wanting.first()
        return longest is None or longest.pool._line is line

    def freed(self, line: Line) -> None:
        keyed = self._of.get(line)
        if keyed is not None:
            self.forget_if_empty(keyed)

    def seek(self) -> None:
        longest = self._wanting.first()
        if longest is None:
            return
        if self.used < self.limit:
            longest.pool._line.wake()  # it may take the slot, being the longest
        if not self._scheduled:
            # Others stand behind the longest, which may have taken an idle item
            # of its own or one slot of two: they are seen to when it was served.
            # And to destroy an item can switch, so that is left to the hub too.
            get_hub().loop.run_callback(self._go_on)
            self._scheduled = True

    def _go_on(self) -> None:
        self._scheduled = False
        if self.used < self.limit:
            self.seek()
        else:
            self._make_room()

    def _make_room(self) -> None:
        """Let idle items go, of any key, as many as are waited for."""
        for _ in range(self._wanted - self._coming()):
            longest = self._longest_idle()
            if longest is None:
                return
            longest._drop_longest_idle(1, "displaced")

    def _longest_idle(self) -> ConnectionPool[T] | None:
        """Return the pool with the item that is idle longest and that nobody waits for."""
        while (keyed := self._spare.first()) is not None:
            since = _idle_since(keyed.pool, keyed.pool._line)
            if since == self._spare.time(keyed):
                return keyed.pool
            self._spare.place(keyed, since)
        return None

    def displaces(self, line: Line) -> bool:
        if self.used != self.limit:
            return self.used > self.limit
        coming = self._coming()
        if not line.waiters or self._wanted <= coming:
            return self._wanted > coming
        first = _first(line)
        poorest = self._poor.first()
        if poorest is None or self._poor.time(poorest) >= first:
            return False  # those who have something do not take from each other's lines
        # No more go than those need who came before; no further than that is looked.
        for keyed in self._wanting.before(first):
            coming -= keyed.wants
            if coming < 0:
                return True
        return False

    def holders(self) -> list[Hold]:
        holds = [hold for keyed in self._having for hold in keyed.pool.holders()]
        return sorted(holds, key=lambda hold: hold.seconds, reverse=True)

    def forget_if_empty(self, keyed: _Keyed[K, T]) -> None:
        line = keyed.pool._line
        if line.size or line.waiters or keyed.users or self._of.get(line) is not keyed:
            return
        creator = keyed.pool._book.creator
        if creator is not None and creator.holds_back_until() > monotonic():
            # Forgotten now, the next caller would ask a server that is down again.
            self._leaving.place(keyed, creator.holds_back_until())
            return
        for key in keyed.keys:
            del self._pools[key]
        del self._of[line]
        keyed.pool._end_sweeper()  # which may be long, if a traceback leads to the pool
        self._spare.place(keyed, None)
        self._leaving.place(keyed, None)

    def forget_the_leaving(self) -> None:
        for keyed in list(self._leaving.before(monotonic())):
            self._leaving.place(keyed, None)
            self.forget_if_empty(keyed)

    def _coming(self) -> int:
        """Return how many slots are free, or will be without another item having to go."""
        return self.limit - self.used + self.going


def _wants(pool: ConnectionPool[Any], line: Line) -> int:
    """Return how many slots *pool* could use now."""
    if not line.waiters:
        return 0
    creator = pool._book.creator
    wants = len(line.waiters) - len(line.idle) if creator is None else creator.missing()
    return max(0, min(wants, line.limit - line.size))


def _first(line: Line) -> float:
    return next(iter(line.waiters.values()))


def _idle_since(pool: ConnectionPool[Any], line: Line) -> float | None:
    """Return since when its longest idle item is, None if it has none or somebody waits for it."""
    if not line.idle or line.waiters:
        return None
    item = line.idle[-1] if pool.order_as_stack else line.idle[0]
    return pool._book.items[id(item)].since
