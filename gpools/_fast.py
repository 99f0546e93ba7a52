"""What each `get` and `put` of a `Pool` or a `ConnectionPool` runs through.

This module runs as it is, and can be compiled, with the types of ``_fast.pxd``.
A compiled class can have no `typing.Generic` among its bases, and nothing can
be set on it from outside, so the public classes, which are both, derive from
these.  What is rare, or slow anyway, is theirs.
"""

from __future__ import annotations

import logging
from enum import Enum
from functools import partial
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Final, TypeAlias

from gevent import getcurrent, spawn_raw

from gpools import _direct
from gpools._book import Book
from gpools._holders import item_name
from gpools._line import NOTHING, SLOT, Line
from gpools._within import within
from gpools.errors import PoolFull, PoolShed
from gpools.lifecycle import BETWEEN, IN_USE, Entry, Lifecycle

log = logging.getLogger("gpools")


class Missing(Enum):
    """Stands for what was not given, where None means something."""

    MISSING = "not given"


MISSING: Final = Missing.MISSING
ENTERED: Final = object()

ONE_BLOCK: Final = "an item() serves one with block; call pool.item() for each"
NOT_OUT: Final = "an item() was left that was not entered, or was left before"

# By a name that the compiler does not know, for it would turn 5 into 5.0.
Seconds: TypeAlias = float | None


class Item:
    """One ``with pool.item()`` block; serves once."""

    __slots__ = ("_item", "_pool", "_timeout")

    _pool: Any
    _item: Any  # MISSING while nothing is out
    _timeout: Any  # ENTERED from the entry on

    def __enter__(self) -> Any:
        timeout = self._timeout
        if timeout is ENTERED:
            raise RuntimeError(ONE_BLOCK)
        self._timeout = ENTERED  # no second entry, not even while this one waits
        item = self._pool.get() if timeout is None else self._pool.get(timeout=timeout)
        self._item = item
        return item

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        item = self._item
        if item is MISSING:
            raise RuntimeError(NOT_OUT)
        self._item = MISSING
        self._pool.put(item)


class Use(Item):
    """One ``with pool.item()`` block of a connection pool."""

    __slots__ = ("_entry", "_uses")

    _entry: Entry
    _uses: int

    def __enter__(self) -> Any:
        # As above: to call that would cost more than all else here.
        timeout = self._timeout
        if timeout is ENTERED:
            raise RuntimeError(ONE_BLOCK)
        self._timeout = ENTERED
        pool: ConnectionCore = self._pool
        item = pool.get() if timeout is MISSING else pool.get(timeout=timeout)
        entry: Entry = pool._book.items[_direct.address(item)]
        self._entry = entry
        self._uses = entry.uses
        self._item = item
        return item

    def out(self) -> bool:
        """Tell whether the item is still out for this very block."""
        return self._entry.state is IN_USE and self._entry.uses == self._uses

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        item = self._item
        if item is MISSING:
            raise RuntimeError(NOT_OUT)
        self._item = MISSING
        if error is None and self.out():
            self._pool.put(item)
        else:
            self._pool._leave(self, item, error)


class Core:
    """What is quick of `gpools.Pool`."""

    _line: Line
    order_as_stack: bool

    def get(self: Any, *, timeout: Seconds = None) -> Any:
        """Take an item, making one or waiting in line if none is idle.

        Callers are served in the order they came; a put never lets anyone
        overtake.  *timeout*, in seconds, covers waiting and creating together;
        with None, wait for ever.

        Every get needs its `put`; `item` does both.

        Raises `PoolTimeout`, `HubWouldBlock`, or whatever `create` raised.
        May switch, unless an item is idle and nobody is in line.
        """
        line = self._line
        if line.idle and not line.waiters:
            return line.idle.popleft()
        if timeout is None:
            return self._get_slowly()
        return within(timeout, self._get_slowly, self._timeout_error)

    def put(self: Any, item: Any) -> None:
        """Give *item* back; the first in line gets it.

        While ``current_size`` is above ``max_size`` the item is dropped and
        ``current_size`` falls by one.  Never switches.
        """
        line = self._line
        if line.size > line.limit:
            line.vacate()
            return
        if self.order_as_stack:
            line.idle.appendleft(item)
        else:
            line.idle.append(item)
        if line.waiters:
            line.wake()

    def item(self, *, timeout: Seconds = None) -> Any:
        """Take an item for the length of a ``with`` block.

        It goes back by `put` **whatever happens in the block**: a plain pool
        cannot know whether a Timeout or a kill left it in the middle of
        something.  `ConnectionPool` does.  *timeout* as in `get`.
        """
        use = Item()
        use._pool = self
        use._timeout = timeout
        use._item = MISSING
        return use

    def _get_slowly(self: Any) -> Any:
        granted = self._line.take()
        if granted is NOTHING:
            return self._get_in_line()
        return self._make_item() if granted is SLOT else granted

    def _get_in_line(self: Any) -> Any:
        granted = self._line.wait()
        return self._make_item() if granted is SLOT else granted


class ConnectionCore(Core):
    """What is quick of `gpools.ConnectionPool`."""

    _book: Book

    def reset(self, item: Any) -> object:
        """Make a returned *item* as good as new; an Exception means it cannot be."""
        return None

    def get(self: Any, *, timeout: Seconds | Missing = MISSING) -> Any:
        """Take an item, making one or waiting in line if none is idle.

        Callers are served in the order they came; a put never lets anyone
        overtake.  *timeout*, in seconds, covers waiting, checking and creating
        together; None waits for ever; left out, it is the pool's.

        Every get needs its `put` or `discard`; `item` does both.

        Raises `PoolTimeout`, `PoolClosed`, `PoolFull`, `PoolShed`,
        `PoolUnavailable`, `HubWouldBlock`, `WrongThread`, or whatever `create`
        raised.  May switch, unless an item is idle that need not be checked and
        nobody is in line.
        """
        line = self._line
        book = self._book
        if book.thread != _direct.current_thread():
            self._belong_here()
        if line.idle and not line.waiters:
            item = line.idle.popleft()
            entry: Entry = book.items[_direct.address(item)]
            now = monotonic()
            if now < entry.trusted_until:
                hold(book, line, entry, now)
                return item
            line.idle.appendleft(item)
        seconds = book.timeout if timeout is MISSING else timeout
        if seconds is None:
            return self._get_slowly()
        return within(seconds, self._get_slowly, self._timeout_error)

    def put(self: Any, item: Any) -> None:
        """Give *item* back; the first in line gets it.

        It is `reset` first, and destroyed if that fails, if it is too old, or
        if the pool is closed or has shrunk.  Raises `NotInUse` or `WrongThread`,
        having changed nothing, for an item that is not out, or not here.
        Switches only if `reset` or `destroy` does.
        """
        entry = take_back(self, item)
        try:
            self.reset(item)
        except BaseException as error:
            # Failed, or interrupted at an unknown byte; the slot must come free.
            self._reset_failed(item, error)
            if not isinstance(error, Exception):
                raise
        else:
            shelve(self, entry, item)

    def item(self, *, timeout: Seconds | Missing = MISSING) -> Any:
        """Take an item for the length of a ``with`` block.

        Left without an error the item is put back.  Left by an Exception it is
        put back if `fit_after` says so, else discarded.  Left by a Timeout, a
        kill, or any other BaseException it is discarded.  *timeout* as in `get`.
        """
        use = Use()
        use._pool = self
        use._timeout = timeout
        use._item = MISSING
        return use

    def _get_slowly(self: Any) -> Any:
        line = self._line
        book = self._book
        if book.thread != _direct.current_thread():
            self._belong_here()
        begun = monotonic()
        arrived = None  # known once he comes back with nothing
        while True:
            if line.refusal is not None:
                raise line.refusal()
            granted = line.take(inf if arrived is None else arrived)
            if granted is NOTHING:
                granted = self._stand(arrived)
            if line is not self._line:  # forked while he stood there: that is the parent's
                return self._get_slowly()
            item = self._new() if granted is SLOT else granted
            entry: Entry = book.items[_direct.address(item)]
            now = monotonic()
            if now < entry.trusted_until:  # as in `get`
                hold(book, line, entry, now)
                return item
            reason = self._judge(entry, item, now)
            if line is not self._line:  # forked while check() ran
                return self._get_slowly()
            # However short max_age is, who has made an item gets it, or would make
            # one after the other.
            if reason is None or (reason == "max_age" and granted is SLOT):
                hold(book, line, entry, monotonic())
                return item
            # His item was no good, his turn was not: he keeps his place.
            arrived = begun
            place = line.keep_place(arrived)
            try:
                self._let_go(reason, item)
                if reason == "hung":  # so would the next check: none of them is tried
                    self._drop_all_idle(reason)
            finally:
                line.give_up_place(place)

    def _get_in_line(self: Any) -> Any:
        return self._get_slowly()

    def _stand(self: Any, arrived: Seconds) -> Any:
        line = self._line
        book = self._book
        if arrived is None:
            if book.creator is not None:
                book.creator.refuse_newcomers()
            if book.max_waiting is not None and len(line.waiters) >= book.max_waiting:
                raise PoolFull(
                    f"{len(line.waiters)} callers wait already and max_waiting is "
                    f"{book.max_waiting}; {self!r}"
                )
        begun = monotonic()
        try:
            return line.wait(arrived)
        except PoolShed:
            book.counters.shed += 1
            self._tell("shed")
            raise
        finally:
            book.counters.waits += 1
            book.counters.wait_seconds += monotonic() - begun

    def _judge(self: Any, entry: Entry, item: Any, now: float) -> str | None:
        """Tell why an item just taken may not go out, or None if it may.  May switch."""
        life: Lifecycle = self._book.life
        reason = life.verdict(entry, now)
        if reason == "max_idle" and not self._spare():
            reason = None
        if reason is not None or not life.check_due(entry, now):
            return reason
        entry.state = BETWEEN
        try:
            sound: bool | None = self._checked(item)
        except Exception as error:
            # By another greenlet, for a handler may wait, and be killed there.
            spawn_raw(log.info, "%r: check of %s failed: %r", self, item_name(item), error)
            sound = False
        except BaseException:
            # Interrupted at an unknown byte; the slot must come free.
            self._let_go("check", item)
            raise
        if not sound:
            self._doubt_all()
            return "hung" if sound is None else "check"
        # While check() ran, the pool may have been closed or recycled.
        return "closed" if self.closed else life.verdict(entry, monotonic())

    def _checked(self: Any, item: Any) -> bool | None:
        """Check *item*; None if that was cut off."""
        try:
            return bool(within(self._book.check_timeout, partial(self.check, item), CutOff))
        except CutOff:
            return None


class CutOff(Exception):
    """A check took too long."""


def hold(book: Book, line: Line, entry: Entry, now: float) -> None:
    """Note that the item of *entry* goes out.  Never switches."""
    entry.state = IN_USE
    entry.uses += 1
    entry.since = now
    entry.holder = _direct.weakly(getcurrent())
    entry.reported = False
    if len(line.idle) < book.fewest_idle:
        book.fewest_idle = len(line.idle)


def take_back(pool: Any, item: Any) -> Entry:
    """Accept *item* from its holder, or refuse it with nothing changed."""
    book = pool._book
    if book.thread != _direct.current_thread():
        pool._belong_here()
    entry: Entry | None = book.items.get(_direct.address(item))
    if entry is None or entry.state is not IN_USE or entry.find() is not item:
        pool._refuse(entry, item)
    assert entry is not None
    entry.state = BETWEEN
    if book.count_holds or entry.reported:
        pool._note_hold(entry, item)
    return entry


def shelve(pool: Any, entry: Entry, item: Any) -> None:
    """Make *item*, which was taken back or made, idle, or let it go."""
    line = pool._line
    book = pool._book
    now = monotonic()
    if (
        now >= entry.expires
        or line.size > line.limit
        or line.refusal is not None
        or line.budget is not None
        or line.shed is not None
        or entry.state is not BETWEEN  # but gone, inherited by a fork
    ):
        pool._shelve(entry, item)
        return
    book.life.shelve(entry, now)
    if pool.order_as_stack:
        line.idle.appendleft(item)
    else:
        line.idle.append(item)
    if line.waiters:
        line.wake()
