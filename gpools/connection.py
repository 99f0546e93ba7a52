"""`ConnectionPool`: for anything with a socket in it.

It knows its items by identity and calls four verbs:

========== ================================================= ==================
create()   a slot is free and an item is wanted              must be given
check()    an idle item is about to go out                   True
reset()    an item comes back; raises if it is not as new    nothing
destroy()  an item is let go for good                        ``item.close()``
========== ================================================= ==================

An item is destroyed in a greenlet of its own, which no kill or Timeout of the
program's can hit, and its slot comes free when it is gone.  An item that is
between two states (being checked or reset) belongs to the greenlet that runs
the verb; whatever ends the verb but its return destroys the item.

The invariants stand in `gpools._line`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar
from weakref import ref

from gevent import Timeout, get_hub, getcurrent
from gevent.event import Event
from greenlet import greenlet

from gpools._aside import aside
from gpools._holders import Hold, item_name
from gpools._line import NOTHING, SLOT
from gpools.errors import HubWouldBlock, NotInUse, PoolClosed, PoolError, PoolFull
from gpools.pool import MISSING, Missing, Pool, _Item

__all__ = ["ConnectionPool"]

T = TypeVar("T")
Self = TypeVar("Self", bound="ConnectionPool[Any]")

log = logging.getLogger("gpools")


class State(Enum):
    """Where an item is."""

    IDLE = "idle"
    IN_USE = "in use"
    BETWEEN = "being checked or reset"
    GONE = "discarded"


class Entry(Generic[T]):
    """What the pool knows of one item."""

    __slots__ = ("holder", "item", "since", "state", "uses")

    def __init__(self, item: T) -> None:
        self.item = item
        self.state = State.BETWEEN
        self.uses = 0  # how often it went out; tells one hold from the next
        self.since = 0.0  # idle or held since, monotonic seconds
        self.holder: ref[greenlet] | None = None  # who took it last


class Book(Generic[T]):
    """What a connection pool knows and was told, in one place that no subclass steps on."""

    __slots__ = (
        "check_after",
        "destroy_timeout",
        "emptied",
        "going",
        "items",
        "max_waiting",
        "timeout",
    )

    def __init__(
        self,
        timeout: float | None,
        max_waiting: int | None,
        check_after: float | None,
        destroy_timeout: float,
    ) -> None:
        self.timeout = timeout
        self.max_waiting = max_waiting
        self.check_after = check_after
        self.destroy_timeout = destroy_timeout
        self.items: dict[int, Entry[T]] = {}  # by id: items may be equal or unhashable
        self.going: dict[int, Entry[T]] = {}  # being destroyed; still counted in size
        self.emptied = Event()  # closed, and the last item is gone


class ConnectionPool(Pool[T]):
    """A pool of items that must not be shared, leaked or used when dirty.

    Define `create` and, as needed, `check`, `reset`, `destroy` and `fit_after`
    in a subclass, or give the first four as keywords::

        with ConnectionPool(max_size=10, create=connect, destroy=Conn.quit) as pool:
            with pool.item(timeout=5) as conn:
                conn.query()

    *timeout*, in seconds, is the default of `get` and `item`; None waits for
    ever.  *max_waiting* callers at most stand in line.  An item idle for more
    than *check_after* seconds is checked before it goes out; None: never.
    `destroy` is cut off after *destroy_timeout* seconds.  The other parameters
    are those of `Pool`, and ``with pool:`` closes it.

    Raises ValueError for sizes that make no sense, and whatever `create`
    raises when *min_size* items are made.
    """

    _book: Book[T]

    def __init__(
        self,
        min_size: int = 0,
        max_size: int = 4,
        order_as_stack: bool = False,
        create: Callable[[], T] | None = None,
        *,
        name: str | None = None,
        check: Callable[[T], bool] | None = None,
        reset: Callable[[T], object] | None = None,
        destroy: Callable[[T], object] | None = None,
        timeout: float | None = None,
        max_waiting: int | None = None,
        check_after: float | None = 0.0,
        destroy_timeout: float = 5.0,
    ) -> None:
        _require_sizes(min_size, max_size)
        _require_not_negative(
            timeout=timeout,
            max_waiting=max_waiting,
            check_after=check_after,
            destroy_timeout=destroy_timeout,
        )
        if check is None and type(self).check is ConnectionPool.check:
            check_after = None  # it would always say yes: spare the idle path the clock
        self._book = Book(timeout, max_waiting, check_after, destroy_timeout)
        for verb, given in (("check", check), ("reset", reset), ("destroy", destroy)):
            if given is not None:
                if not callable(given):
                    raise TypeError(f"{verb} must be callable with one item, not {given!r}")
                setattr(self, verb, given)
        super().__init__(0, max_size, order_as_stack, create, name=name)
        self.min_size = min_size
        try:
            for _ in range(min_size):
                self._line.size += 1
                self._shelve(self._new())
        except BaseException:
            # Interrupted or failed half way: those made would leak with the pool.
            self.close()
            raise

    # The verbs, to be overridden.  Each may switch, fail, or be killed.

    def check(self, item: T) -> bool:
        """Tell whether an idle *item* is still good; an Exception means no."""
        return True

    def reset(self, item: T) -> object:
        """Make a returned *item* as good as new; an Exception means it cannot be."""
        return None

    def destroy(self, item: T) -> object:
        """Let *item* go for good: close it, if it can be closed.

        An Exception is logged and goes no further.
        """
        close = getattr(item, "close", None)
        return close() if callable(close) else None

    def fit_after(self, item: T, error: Exception) -> bool:
        """Tell whether *item* is still sound after *error* left its with block.

        An adapter says yes where the error is only the application's.  Not
        asked after a Timeout, a kill or any other BaseException: these leave
        the item at an unknown byte, and it is destroyed.
        """
        return False

    def get(self, *, timeout: float | Missing | None = MISSING) -> T:
        """Take an item, making one or waiting in line if none is idle.

        Callers are served in the order they came; a put never lets anyone
        overtake.  *timeout*, in seconds, covers waiting, checking and creating
        together; None waits for ever; left out, it is the pool's.

        Every get needs its `put` or `discard`; `item` does both.

        Raises `PoolTimeout`, `PoolClosed`, `PoolFull`, `HubWouldBlock`, or
        whatever `create` raised.  May switch, unless an item is idle that need
        not be checked and nobody is in line.
        """
        line, book = self._line, self._book
        if line.idle and not line.waiters:
            item = line.idle.popleft()
            entry = book.items[id(item)]
            if not self._due(entry):
                return self._hold(entry)
            line.idle.appendleft(item)
        return self._within(book.timeout if timeout is MISSING else timeout, self._get)

    def put(self, item: T) -> None:
        """Give *item* back; the first in line gets it.

        It is `reset` first, and destroyed if that fails, if the pool is closed
        or has shrunk.  Raises `NotInUse`, having changed nothing, for an item
        that is not out.  Switches only if `reset` or `destroy` does.
        """
        entry = self._take_back(item)
        try:
            self.reset(item)
        except BaseException as error:
            # Failed, or interrupted at an unknown byte; the slot must come free.
            self._let_go(entry)
            if not isinstance(error, Exception):
                raise
            log.info("%r: reset of %s failed: %r", self, item_name(item), error)
        else:
            self._shelve(entry)

    def discard(self, item: T) -> None:
        """Destroy *item*, which came from `get`, instead of putting it back.

        Its slot comes free when it is gone.  Raises `NotInUse` as `put` does.
        Switches only if `destroy` does, and then for one turn of the hub.
        """
        self._let_go(self._take_back(item))

    def item(self, *, timeout: float | Missing | None = MISSING) -> AbstractContextManager[T]:
        """Take an item for the length of a ``with`` block.

        Left without an error the item is put back.  Left by an Exception it is
        put back if `fit_after` says so, else discarded.  Left by a Timeout, a
        kill, or any other BaseException it is discarded.  *timeout* as in `get`.
        """
        return _Use(self, timeout)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._line.refusal is not None

    def close(self, timeout: float | None = None) -> list[Hold]:
        """Refuse all gets from now on, destroy the idle items, return the holds that remain.

        Everybody in line gets `PoolClosed` at once; an item in use is destroyed
        when it comes back.  With *timeout*, waits at most so many seconds for
        those, then logs who still holds one.  Closing twice is fine.

        Raises `HubWouldBlock` if the hub's own greenlet would have to wait.
        Switches if there is something to wait for or `destroy` does.
        """
        line, book = self._line, self._book
        line.refusal = lambda: PoolClosed(f"{self!r} is closed")
        line.wake()
        idle, line.idle = line.idle, deque()
        self._let_go(*(book.items[id(item)] for item in idle))
        if line.size == 0:
            book.emptied.set()
        elif timeout:
            if getcurrent() is get_hub():
                raise HubWouldBlock("close(timeout=) cannot wait in the hub's own greenlet")
            book.emptied.wait(timeout)
        remaining = self.holders()
        if timeout and remaining:
            who = "; ".join(map(str, remaining))
            log.warning("%r: closed after %s s with items still held: %s", self, timeout, who)
        return remaining

    def holders(self) -> list[Hold]:
        """List the items in use and who took them, longest held first.  Never switches."""
        now = monotonic()
        out = [entry for entry in self._book.items.values() if entry.state is State.IN_USE]
        out.sort(key=lambda entry: entry.since)
        return [
            Hold(entry.item, entry.holder() if entry.holder else None, now - entry.since)
            for entry in out
        ]

    @property
    def max_size(self) -> int:
        """The most items that may exist; to set it is to `resize`."""
        return self._line.limit

    @max_size.setter
    def max_size(self, new_size: int) -> None:
        _require_sizes(self.min_size, new_size)
        line, book = self._line, self._book
        line.limit = new_size
        line.wake()
        # The longest idle go first; those in use follow as they are put back.
        shed = line.idle.pop if self.order_as_stack else line.idle.popleft
        surplus = min(len(line.idle), line.size - len(book.going) - new_size)
        self._let_go(*(book.items[id(shed())] for _ in range(surplus)))

    def resize(self, new_size: int) -> None:
        """Set ``max_size``: let in who now fits, or destroy the surplus.

        Idle surplus is destroyed now, surplus in use as it is put back.
        Switches only if `destroy` does.
        """
        self.max_size = new_size

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _get(self) -> T:
        line, book = self._line, self._book
        first = False
        while True:
            if line.refusal is not None:
                raise line.refusal()
            granted = line.take(first)
            if granted is NOTHING:
                if (
                    not first
                    and book.max_waiting is not None
                    and len(line.waiters) >= book.max_waiting
                ):
                    raise PoolFull(
                        f"{len(line.waiters)} callers wait already and max_waiting is "
                        f"{book.max_waiting}; {self!r}"
                    )
                granted = line.wait(first)
            if granted is SLOT:
                return self._hold(self._new())
            entry = book.items[id(granted)]
            if self._sound(entry):
                return self._hold(entry)
            # Its item was dead, its turn was not: it keeps its place before the line.
            first = True

    _wait = _get

    def _new(self) -> Entry[T]:
        """Fill a slot that is already taken; may switch."""
        line, book = self._line, self._book
        try:
            item = self.create()
            if item is None:
                raise PoolError(f"create() returned None instead of an item; {self!r}")
            if id(item) in book.items or id(item) in book.going:
                raise PoolError(f"create() returned {item_name(item)}, which is pooled already")
        except BaseException:
            # Whatever ended it, a kill included, the slot must not end with it.
            self._vacate()
            raise
        entry = book.items[id(item)] = Entry(item)
        try:
            self._adopt(item)
        except BaseException:
            # Made, but interrupted or refused before anybody had it.
            self._let_go(entry)
            raise
        if line.refusal is not None:  # closed while create() ran
            self._let_go(entry)
            raise line.refusal()
        return entry

    def _adopt(self, item: T) -> None:
        """For adapters: see to an item fresh from `create`, whoever wrote that; may switch."""

    def _due(self, entry: Entry[T]) -> bool:
        after = self._book.check_after
        return after is not None and monotonic() - entry.since > after

    def _sound(self, entry: Entry[T]) -> bool:
        """Check an item just taken from the idle ones; destroy it if it is dead.  May switch."""
        entry.state = State.BETWEEN
        try:
            sound = not self._due(entry) or self.check(entry.item)
        except BaseException as error:
            # Failed, or interrupted at an unknown byte; the slot must come free.
            self._let_go(entry)
            if not isinstance(error, Exception):
                raise
            log.info("%r: check of %s failed: %r", self, item_name(entry.item), error)
            return False
        if not sound or self.closed:  # the latter while check() ran
            self._let_go(entry)
            return False
        return True

    def _hold(self, entry: Entry[T]) -> T:
        entry.state = State.IN_USE
        entry.uses += 1
        entry.since = monotonic()
        entry.holder = ref(getcurrent())
        return entry.item

    def _take_back(self, item: T) -> Entry[T]:
        """Accept *item* from its holder, or refuse it with nothing changed."""
        entry = self._book.items.get(id(item)) or self._book.going.get(id(item))
        pool = type(self).__name__
        if entry is None:
            raise NotInUse(f"this {pool} got back an item that it has not out: {item_name(item)}")
        if entry.state is not State.IN_USE:
            raise NotInUse(
                f"this {pool} got back {item_name(item)} twice: it is {entry.state.value} already"
            )
        entry.state = State.BETWEEN
        return entry

    def _shelve(self, entry: Entry[T]) -> None:
        line = self._line
        if line.refusal is not None or line.size - len(self._book.going) > line.limit:
            self._let_go(entry)
            return
        entry.state = State.IDLE
        entry.since = monotonic()
        if self.order_as_stack:
            line.idle.appendleft(entry.item)
        else:
            line.idle.append(entry.item)
        if line.waiters:
            line.wake()

    def _let_go(self, *entries: Entry[T]) -> None:
        """Destroy items that nobody else can reach; their slots come free when they are gone."""
        for entry in entries:
            key = id(entry.item)
            entry.state = State.GONE
            self._book.going[key] = self._book.items.pop(key)
        if entries:
            aside(partial(self._destroy_each, entries))

    def _destroy_each(self, entries: tuple[Entry[T], ...]) -> None:
        for entry in entries:
            aside(partial(self._destroy, entry))  # a slow one must not delay the next

    def _destroy(self, entry: Entry[T]) -> None:
        try:
            with Timeout(self._book.destroy_timeout):
                self.destroy(entry.item)
        except BaseException as error:
            # Nobody is there to catch it, and the slot must come free.
            log.warning("%r: destroy of %s failed: %r", self, item_name(entry.item), error)
        finally:
            del self._book.going[id(entry.item)]
            self._vacate()

    def _vacate(self) -> None:
        self._line.vacate()
        if self.closed and self._line.size == 0:
            self._book.emptied.set()

    def _fit(self, item: T, error: BaseException | None) -> bool:
        if error is None:
            return True
        if not isinstance(error, Exception):
            return False
        try:
            return self.fit_after(item, error)
        except Exception as failure:
            log.info("%r: fit_after of %s failed: %r", self, item_name(item), failure)
            return False

    def _diagnosis(self, timeout: float) -> str:
        line = self._line
        holds = self.holders()
        between = line.size - len(line.idle) - len(holds)
        others = f", {between} being made, checked or destroyed" if between else ""
        longest = f"; longest held {holds[0]}" if holds else ""
        advice = "raise max_size, or hold items for less time"
        if len(holds) < line.limit:
            advice = "create() or destroy() is slow, or timeout is short"
        return (
            f"no item came free within {timeout} s ({len(holds)} of {line.limit} in use{others}, "
            f"{len(line.waiters)} still waiting{longest}); {advice}"
        )


class _Use(_Item[T]):
    """One ``with pool.item()`` block of a connection pool."""

    __slots__ = ("_entry", "_uses")

    _pool: ConnectionPool[T]

    def __enter__(self) -> T:
        item = super().__enter__()
        self._entry = entry = self._pool._book.items[id(item)]
        self._uses = entry.uses
        return item

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        pool, entry = self._pool, self._entry
        self._item = None
        if entry.state is State.GONE:  # discarded in the block: nothing is left to do
            return
        if entry.state is not State.IN_USE or entry.uses != self._uses:
            if error is None:  # else that error tells more
                raise NotInUse(f"{item_name(entry.item)} was put back inside its own with block")
            return
        try:
            fit = pool._fit(entry.item, error)
        except BaseException:
            # Killed while fit_after ran: nobody has judged the item.
            pool.discard(entry.item)
            raise
        if fit:
            pool.put(entry.item)
        else:
            pool.discard(entry.item)


def _require_sizes(min_size: int, max_size: int) -> None:
    for name, size in (("min_size", min_size), ("max_size", max_size)):
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} must be a whole number, not {size!r}")
    if max_size < 1:
        raise ValueError(f"max_size is {max_size} but must be at least 1")
    if min_size < 0:
        raise ValueError(f"min_size is {min_size} but must be at least 0")
    if min_size > max_size:
        raise ValueError(f"min_size is {min_size} but max_size is {max_size}")


def _require_not_negative(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not value >= 0:
            raise ValueError(f"{name} is {value!r} but must be at least 0, or None")
