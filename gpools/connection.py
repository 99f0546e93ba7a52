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

The pool keeps an idle item alive, but not one in use: an item that the program
has dropped gives its slot back when it is collected.

The invariants stand in `gpools._line`, the rules of age in `gpools.lifecycle`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from functools import partial
from inspect import signature
from numbers import Real
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import finalize, ref

from gevent import Timeout, get_hub, getcurrent, spawn_raw

from gpools import _fork
from gpools._aside import aside, each_aside
from gpools._book import Book, Limiter, enter, on_loan, same
from gpools._closing import Closing
from gpools._creator import Creator
from gpools._direct import current_thread
from gpools._fast import MISSING, ConnectionCore, Missing, Use, take_back
from gpools._holders import Hold, item_name
from gpools._shed import CoDel
from gpools._sweeper import Sweeper
from gpools._within import within
from gpools.errors import (
    HubWouldBlock,
    NotInUse,
    PoolClosed,
    PoolError,
    PoolTimeout,
    WrongThread,
)
from gpools.lifecycle import BETWEEN, GONE, IDLE, IN_USE, Entry, Lifecycle
from gpools.pool import Pool
from gpools.stats import EVENTS, Listener, Stats

__all__ = ["ConnectionPool"]

T = TypeVar("T")

log = logging.getLogger("gpools")


class ConnectionPool(Closing, Pool[T], ConnectionCore):
    """A pool of items that must not be shared, leaked or used when dirty.

    Define `create` and, as needed, `check`, `reset`, `destroy` and `fit_after`
    in a subclass, or give the first four as keywords::

        with ConnectionPool(max_size=10, create=connect, destroy=Conn.quit) as pool:
            with pool.item(timeout=5) as conn:
                conn.query()

    All durations are in seconds.  *min_size*, *max_size*, *order_as_stack*,
    *create* and *name* are those of `Pool`, and ``with pool:`` closes it.

    Waiting: *timeout* is the default of `get` and `item`; None waits for ever.
    *max_waiting* callers at most stand in line.  *shed*, a `CoDel`, turns away
    those who have waited too long while the pool is overloaded.

    Ages: an item is let go when it is older than *max_age* (less up to 5 %, so
    that a burst does not expire at once) or was idle for *max_idle*.  What a
    whole *max_idle* never needed goes too.  *min_size* items stay.  An item
    idle for more than *check_after* is checked before it goes out; None: never.

    *limiter*, a `TokenPool` or a pool of tokens of a whole fleet, limits the
    items of several pools together: an item has a token of it from before
    `create` until it is gone.

    Verbs: `check` is cut off after *check_timeout*, `destroy` after
    *destroy_timeout*; the item counts as dead, or gone.  By default `create`
    runs in the caller.  With *max_creating* up to so many run at once in
    greenlets of the pool, each for at most *create_timeout*: they go on when
    the caller has given up, whatever comes first goes to the first in line, and
    the constructor does not wait for *min_size* items (`wait_ready` does).

    Watching: *leak_after* reports an item held for longer, once, with where its
    holder is.  *listener* is told of rare transitions, see `Listener`;
    *count_holds* has `stats` add up the time items are held.

    Raises ValueError for settings that make no sense, and whatever `create`
    raises when the constructor makes *min_size* items.
    """

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
        shed: CoDel | None = None,
        max_age: float | None = None,
        max_idle: float | None = None,
        check_after: float | None = 0.0,
        check_timeout: float | None = 5.0,
        destroy_timeout: float = 5.0,
        max_creating: int | None = None,
        create_timeout: float = 30.0,
        leak_after: float | None = None,
        listener: Listener | object | None = None,
        count_holds: bool = False,
        limiter: Limiter | None = None,
    ) -> None:
        _require_sizes(min_size, max_size)
        _require_positive(max_age=max_age, max_idle=max_idle, leak_after=leak_after)
        _require_positive(check_timeout=check_timeout, destroy_timeout=destroy_timeout)
        _require_positive(max_creating=max_creating, create_timeout=create_timeout)
        _require_not_negative(timeout=timeout, max_waiting=max_waiting, check_after=check_after)
        _require_whole(max_waiting=max_waiting, max_creating=max_creating)
        if shed is not None and not isinstance(shed, CoDel):
            raise TypeError(f"shed must be a CoDel, not {shed!r}")
        if listener is not None and not any(_has(listener, event) for event in EVENTS):
            raise TypeError(f"listener has none of the methods {', '.join(EVENTS)}")
        if limiter is not None and not (hasattr(limiter, "get") and hasattr(limiter, "put")):
            raise TypeError(f"limiter must be a pool of tokens, not {limiter!r}")
        if check is None and type(self).check is ConnectionPool.check:
            check_after = None  # it would always say yes: spare the idle path the detour
        self._book = Book(
            Lifecycle(max_age, max_idle, check_after),
            timeout=timeout,
            max_waiting=max_waiting,
            check_timeout=check_timeout,
            destroy_timeout=destroy_timeout,
            leak_after=leak_after,
            listener=listener,
            count_holds=count_holds,
            limiter=limiter,
        )
        for verb, given in (("check", check), ("reset", reset), ("destroy", destroy)):
            if given is not None:
                if not callable(given):
                    raise TypeError(f"{verb} must be callable with one item, not {given!r}")
                setattr(self, verb, given)
        super().__init__(0, max_size, order_as_stack, create, name=name)
        self.min_size = min_size
        self._line.shed = shed
        _fork.watch(self)
        if max_creating is not None:
            self._book.creator = Creator(self, max_creating, create_timeout)
            self._line.maker = self._book.creator.look
            self._book.creator.look()
            return
        try:
            self._fill_up()
        except BaseException:
            # Interrupted or failed half way: those made would leak with the pool.
            self.close()
            raise

    # The verbs, to be overridden.  Each may switch, fail, or be killed.

    def check(self, item: T, /) -> bool:
        """Tell whether an idle *item* is still good; an Exception means no."""
        return True

    def destroy(self, item: T, /) -> object:
        """Let *item* go for good: close it, if it can be closed.

        An Exception is logged and goes no further.
        """
        close = getattr(item, "close", None)
        return close() if callable(close) else None

    def fit_after(self, item: T, error: Exception, /) -> bool:
        """Tell whether *item* is still sound after *error* left its with block.

        An adapter says yes where the error is only the application's.  Not
        asked after a Timeout, a kill or any other BaseException: these leave
        the item at an unknown byte, and it is destroyed.
        """
        return False

    if TYPE_CHECKING:
        # They are the core's, which is not generic.

        def reset(self, item: T, /) -> object: ...

        def get(self, *, timeout: float | Missing | None = MISSING) -> T: ...

        def put(self, item: T) -> None: ...

        def item(
            self, *, timeout: float | Missing | None = MISSING
        ) -> AbstractContextManager[T]: ...

    else:
        # Its own, for a Pool.put that somebody replaced is not for connections.
        get, put, item = ConnectionCore.get, ConnectionCore.put, ConnectionCore.item
        reset = ConnectionCore.reset

    def discard(self, item: T) -> None:
        """Destroy *item*, which came from `get`, instead of putting it back.

        Its slot comes free when it is gone.  Raises `NotInUse` and
        `WrongThread` as `put` does.  Switches only if `destroy` does, and then
        for one turn of the hub.
        """
        take_back(self, item)
        self._let_go("discarded", item)

    def recycle(self, spread: float = 0.0) -> None:
        """Retire all items made before now, those in use and those being made included.

        Idle ones are destroyed now, those in use when they are put back; with
        *spread* each at a moment of its own within so many seconds, so that
        their successors are not all made at once.  Until its moment an item is
        handed out as before.  Switches only if `destroy` does.
        """
        self._outdate(spread)
        self._retire_expired(monotonic())

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until *min_size* items exist, making them if nothing else does.

        Waits at most *timeout* seconds, with None for ever.  Raises
        `PoolTimeout`, with the last error of `create` as its cause, or
        `PoolClosed`; without *max_creating* whatever `create` raises.  May switch.
        """
        fill = self._fill_up if self._book.creator is None else self._await_filled
        within(timeout, fill, self._unready_error)
        if self._line.refusal is not None:
            raise self._line.refusal()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._line.refusal is not None

    def close(self, timeout: float | None = None) -> list[Hold]:
        """Refuse all gets from now on, destroy the idle items, return the holds that remain.

        Everybody in line gets `PoolClosed` at once; an item in use is destroyed
        when it comes back, one being made when it is made.  With *timeout*,
        waits at most so many seconds for those, then logs who still holds one.
        Closing twice is fine.

        Raises `HubWouldBlock` if the hub's own greenlet would have to wait.
        Switches if there is something to wait for or `destroy` does.
        """
        line, book = self._line, self._book
        self._refuse_all()
        self._drop_all_idle("closed")
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
        entries = [entry for entry in self._book.items.values() if entry.state is IN_USE]
        entries.sort(key=lambda entry: entry.since)
        return [self._hold_of(entry) for entry in entries]

    def stats(self) -> Stats:
        """Return what there is and what was counted, frozen.  Never switches."""
        line, book = self._line, self._book
        states = [entry.state for entry in book.items.values()]
        return Stats(
            size=line.size,
            idle=states.count(IDLE),
            in_use=states.count(IN_USE),
            between=states.count(BETWEEN),
            creating=line.size - len(book.items) - len(book.going),
            destroying=len(book.going),
            waiting=len(line.waiters),
            max_size=line.limit,
            **book.counters.frozen(),
        )

    @property
    def max_size(self) -> int:
        """The most items that may exist; to set it is to `resize`."""
        return self._line.limit

    @max_size.setter
    def max_size(self, new_size: int) -> None:
        _require_sizes(self.min_size, new_size)
        self._belong_here()
        line, book = self._line, self._book
        line.limit = new_size
        line.wake()
        self._drop_longest_idle(line.size - len(book.going) - new_size, "surplus")

    def resize(self, new_size: int) -> None:
        """Set ``max_size``: let in who now fits, or destroy the surplus.

        Idle surplus is destroyed now, surplus in use as it is put back.
        Switches only if `destroy` does.
        """
        self.max_size = new_size

    # Getting.

    def _doubt_all(self) -> None:
        book = self._book
        book.life.doubt((book.items[id(item)] for item in self._line.idle), monotonic())

    def _spare(self) -> bool:
        return len(self._book.items) > self.min_size

    # Making.

    def _new(self, failed: Callable[[BaseException], None] | None = None) -> T:
        """Fill a slot that is already taken; may switch.

        Where that fails the slot comes free and the error goes on, after *failed*
        was called with it.
        """
        line, book = self._line, self._book
        token: Any = MISSING
        try:
            if book.limiter is not None:
                token = book.limiter.get()
            generation, begun = book.life.generation, monotonic()
            item = _fork.making(self.create)
            if item is None:
                raise PoolError(f"create() returned None instead of an item; {self!r}")
            if self._known(item) or id(item) in book.going:
                raise PoolError(f"create() returned {item_name(item)}, which is pooled already")
            now = monotonic()
            book.counters.create_seconds += now - begun
        except BaseException as error:
            # Whatever ended it, a kill included, the slot must not end with it.
            book.counters.create_errors += 1
            self._tell("create_failed", error)
            if failed is not None:
                failed(error)
            self._return_token(book, token)
            self._vacate(line)
            raise
        if book is not self._book:  # forked while create() ran: it is the parent's
            _fork.abandon([item], self._filenos(item))
            self._return_token(book, token)
            raise NotInUse(f"{item_name(item)} was being made when this process was forked")
        if book.limiter is not None:
            token = book.tokens[id(item)] = on_loan(book.limiter, token, item)
        entry = book.items[id(item)] = enter(self, item, generation)
        book.life.begin(entry, now, random())
        book.counters.created += 1
        self._tell("created")
        try:
            _fork.making(partial(self._adopt, item))
            if line.refusal is not None:  # closed while create() ran
                raise line.refusal()
        except BaseException as error:
            # Made, but refused or interrupted before anybody had it.
            if failed is not None:
                failed(error)
            self._let_go("refused", item)
            raise
        if self._sweeps():
            self._sweeper()
        if len(book.items) >= self.min_size:
            book.filled.set()
        return item

    def _fill_up(self) -> None:
        """Make the items that are missing of min_size, one by one; may switch."""
        if self.min_size:
            self._belong_here()
        while True:
            line, book = self._line, self._book  # others, if a fork came in between
            if len(book.items) >= self.min_size or not line.room() or self.closed:
                return
            line.claim()
            item = self._new()
            self._shelve(book.items[id(item)], item)

    def _await_filled(self) -> None:
        book = self._book
        while len(book.items) < self.min_size and not self.closed and book.creator is not None:
            book.filled.clear()
            book.creator.look()
            book.filled.wait()

    def _adopt(self, item: T) -> None:
        """For adapters: see to an item fresh from `create`, whoever wrote that; may switch."""

    # Taking back.

    def _refuse(self, entry: Entry | None, item: T) -> NoReturn:
        """Raise, for an *item* that was given back without being out."""
        pool, known = type(self).__name__, entry is not None and entry.find() is item
        if id(item) not in self._book.going and not known:
            raise NotInUse(f"this {pool} got back an item that it has not out: {item_name(item)}")
        state = (GONE if entry is None else entry.state).value
        raise NotInUse(f"this {pool} got back {item_name(item)} twice: it is {state} already")

    def _note_hold(self, entry: Entry, item: T) -> None:
        held = monotonic() - entry.since
        if self._book.count_holds:
            self._book.counters.hold_seconds += held
        if entry.reported:
            # By another greenlet, for a handler may wait, and be killed there.
            spawn_raw(log.info, "%r: %s came back after %.1f s", self, item_name(item), held)

    def _reset_failed(self, item: T, error: BaseException) -> None:
        self._let_go("reset", item)
        if isinstance(error, Exception):
            log.info("%r: reset of %s failed: %r", self, item_name(item), error)

    def _shelve(self, entry: Entry, item: T) -> None:
        line, book, now = self._line, self._book, monotonic()
        if book.items.get(entry.key) is not entry:  # inherited by a fork
            return
        reason = book.life.verdict(entry, now)
        if line.refusal is not None:
            reason = "closed"
        elif line.size - len(book.going) > line.limit:
            reason = "surplus"
        elif line.budget is not None and line.budget.displaces(line):
            reason = "displaced"
        if reason is not None:
            self._let_go(reason, item)
            return
        if line.shed is not None and not line.idle and not line.waiters:
            line.shed.idle(now)
        book.life.shelve(entry, now)
        if self.order_as_stack:
            line.idle.appendleft(item)
        else:
            line.idle.append(item)
        if line.waiters or line.budget is not None:
            line.wake()

    # Letting go.

    def _let_go(self, reason: str, *items: T) -> None:
        """Destroy items that nobody else can reach; their slots come free when they are gone."""
        self._let_all_go([(reason, item) for item in items])

    def _let_all_go(self, doomed: list[tuple[str, T]]) -> None:
        line, book = self._line, self._book
        going: list[Callable[[], None]] = []
        for reason, item in doomed:
            entry = book.items.pop(id(item), None)
            if entry is not None:  # else it was inherited by a fork
                entry.state = GONE
                entry.find = partial(same, item)  # no report when it is collected
                book.going[id(item)] = item
                going.append(partial(self._destroy, line, book, reason, item))
                if line.budget is not None:
                    line.budget.going += 1
                    line.budget.note(line)
        if going:
            # Aside, all together, for a kill must not save the last of them,
            # and each of them, for a slow one must not delay the next.
            aside(partial(each_aside, going))

    def _destroy(self, line: Any, book: Book, reason: str, item: T) -> None:
        try:
            with Timeout(book.destroy_timeout):
                self.destroy(item)
        except BaseException as error:
            # Nobody is there to catch it, and the slot must come free.
            log.warning("%r: destroy of %s failed: %r", self, item_name(item), error)
        finally:
            del book.going[id(item)]
            if line.budget is not None:
                line.budget.going -= 1
            self._gone(line, book, id(item), reason)

    def _gone(self, line: Any, book: Book, key: int, reason: str) -> None:
        self._return_token(book, book.tokens.pop(key, MISSING))
        book.counters.gone(reason)
        self._vacate(line)
        self._tell("destroyed", reason)
        if len(book.items) < self.min_size and book is self._book:
            self._sweeper().wake()

    def _return_token(self, book: Book, token: Any) -> None:
        if book.limiter is not None and token is not MISSING:
            if isinstance(token, finalize):
                loan = token.detach()
                if loan is None:  # the item was collected, and the token given back
                    return
                token = loan[2][1]
            try:
                book.limiter.put(token)
            except Exception as error:
                # The limiter's own trouble; the slot must come free all the same.
                spawn_raw(log.warning, "%r: limiter.put failed: %r", self, error)

    def _vacate(self, line: Any) -> None:
        line.vacate()
        if line is not self._line:
            return
        if self._book.creator is not None:
            self._book.creator.look()  # min_size may be short of one
        if self.closed and line.size == 0:
            self._book.emptied.set()

    def _drop_longest_idle(self, count: int, reason: str) -> None:
        idle = self._line.idle
        longest = idle.pop if self.order_as_stack else idle.popleft
        self._let_go(reason, *[longest() for _ in range(min(count, len(idle)))])

    def _drop_all_idle(self, reason: str) -> None:
        idle, self._line.idle = self._line.idle, deque()
        self._let_go(reason, *idle)

    def _retire_expired(self, now: float) -> None:
        """Let go of the idle items that are too old; may switch if `destroy` does."""
        line, book = self._line, self._book
        spare = len(book.items) - self.min_size
        expired = []
        for item in line.idle:
            reason = book.life.verdict(book.items[id(item)], now, spare > 0)
            if reason is not None:
                expired.append((reason, item))
                spare -= 1
        if expired:
            gone = {id(item) for _, item in expired}
            kept = [item for item in line.idle if id(item) not in gone]
            line.idle.clear()
            line.idle.extend(kept)
            self._let_all_go(expired)

    def _outdate(self, spread: float) -> None:
        """Have all items made before now go within *spread* seconds.  Never switches."""
        if spread is None:  # which means something elsewhere
            raise TypeError("spread must be a number, not None")
        _require_not_negative(spread=spread)
        self._belong_here()
        book = self._book
        book.life.recycle(book.items.values(), monotonic(), spread, random)
        if spread or self.min_size:
            self._sweeper().wake()

    def _refuse_all(self) -> None:
        """Be closed, for those in line and for all who come.  Never switches."""
        line, book = self._line, self._book
        self._belong_here()
        if not self.closed:
            self._tell("closed")
        line.refusal = partial(_closed_error, ref(self))
        self._doubt_all()  # so that no idle item goes out unseen until it is destroyed
        line.wake()
        book.filled.set()
        if book.sweeper is not None:
            book.sweeper.wake()

    # Watching.

    def _sweeps(self) -> bool:
        return self._book.life.ages or self._book.leak_after is not None

    def _sweeper(self) -> Sweeper:
        if self._book.sweeper is None:
            self._book.sweeper = Sweeper(self)
        return self._book.sweeper

    def _end_sweeper(self) -> None:
        """Have no sweeper until there is something to sweep again.  Never switches."""
        sweeper, self._book.sweeper = self._book.sweeper, None
        if sweeper is not None:
            sweeper.wake()

    def _hold_of(self, entry: Entry) -> Hold:
        holder = entry.holder() if entry.holder is not None else None
        return Hold(entry.find(), holder, monotonic() - entry.since)

    def _report_leak(self, entry: Entry) -> None:
        hold = self._hold_of(entry)
        entry.reported = True
        self._book.counters.leaks += 1
        log.warning("%r: an item is held for %s\n%s", self, hold, hold.stack())
        self._tell("leaked", hold)

    def _lose(self, key: int, find: object) -> None:
        """Take back the slot of an item that was collected without put."""
        line, book = self._line, self._book
        entry = book.items.get(key)
        if entry is None or entry.find is not find:
            return
        del book.items[key]
        hold = self._hold_of(entry)
        book.counters.leaks += 1
        # By another greenlet, for this may be the hub, where a handler could not wait.
        spawn_raw(
            log.warning, "%r: an item was dropped without put or discard after %s", self, hold
        )
        self._tell("leaked", hold)
        self._gone(line, book, key, "collected")

    def _known(self, item: T) -> bool:
        entry = self._book.items.get(id(item))
        if entry is None:
            return False
        if entry.find() is item:
            return True
        self._lose(entry.key, entry.find)  # its address is taken again before it was missed
        return False

    def _tell(self, event: str, *about: object) -> None:
        """Call the listener, in a greenlet of its own; never switches."""
        if self._book.listener is not None:
            spawn_raw(_call_listener, self._book.listener, event, self, *about)

    def _leave(self, use: Use, item: T, error: BaseException | None) -> None:
        """End the with block of *use*, by *error* or with its *item* put back or gone before."""
        if self._book.items.get(use._entry.key) is not use._entry:
            return  # discarded in the block, or inherited by a fork: nothing is left to do
        if not use.out():
            if error is None:  # else that error tells more
                raise NotInUse(f"{item_name(item)} was put back inside its own with block")
            return
        try:
            fit = self._fit(item, error)
        except BaseException:
            # Killed while fit_after ran: nobody has judged the item.
            self.discard(item)
            raise
        if not use.out():
            return  # fit_after has seen to it
        if fit:
            self.put(item)
        else:
            self.discard(item)

    def _fit(self, item: T, error: BaseException | None) -> bool:
        if error is None:
            return True
        if not isinstance(error, Exception):
            return False
        try:
            return bool(self.fit_after(item, error))
        except Exception as failure:
            log.info("%r: fit_after of %s failed: %r", self, item_name(item), failure)
            return False

    def _create_error(self) -> BaseException | None:
        creator = self._book.creator
        return None if creator is None else creator.last_error

    def _timeout_error(self, timeout: float) -> PoolTimeout:
        line, book = self._line, self._book
        book.counters.timeouts += 1
        self._tell("timed_out")
        holds = self.holders()
        in_use, between = len(holds), line.size - len(line.idle) - len(holds)
        others = f", {between} being made, checked or destroyed" if between else ""
        in_all = ""
        advice = "raise max_size, or hold items for less time"
        if in_use < line.limit:
            advice = "create() or destroy() is slow, or timeout is short"
            if line.budget is not None and line.budget.used >= line.budget.limit:
                holds = line.budget.holders()
                in_all = f", and {len(holds)} of {line.budget.limit} of all keys"
                advice = "raise the max_size of all keys, or hold items for less time"
        longest = f"; longest held {holds[0]}" if holds else ""
        late = PoolTimeout(
            f"no item {self._of_name()}came free within {timeout} s "
            f"({in_use} of {line.limit} in use{in_all}{others}, {len(line.waiters)} still waiting"
            f"{longest}); {advice}"
        )
        late.holders = tuple(holds)
        late.__cause__ = self._create_error()
        return late

    def _unready_error(self, timeout: float) -> PoolTimeout:
        late = PoolTimeout(
            f"{len(self._book.items)} items exist after {timeout} s; min_size is {self.min_size}"
        )
        late.__cause__ = self._create_error()
        return late

    # Threads and forks.

    def _belong_here(self) -> None:
        """Claim the pool for this thread at its first use; refuse every other thread."""
        self._book.thread = this_thread(self, self._book.thread or None)

    def _start_anew_after_fork(self) -> None:
        """Be empty, in a child; what is under way here acts on the parent's line and book."""
        line, book = self._line, self._book
        self._line, self._book = line.anew(), book.anew()
        if book.creator is not None:
            self._book.creator = book.creator.anew(self)
            self._line.maker = self._book.creator.look
        tokens, book.tokens = book.tokens, {}  # once: what is under way here goes on
        for token in tokens.values():
            self._return_token(book, token)
        held = [entry.find() for entry in book.items.values()]
        for entry in book.items.values():
            entry.state = GONE  # a with block that ends here has nothing to put back
        items = [item for item in (*held, *book.going.values()) if item is not None]
        filenos: list[int] = []
        for item in items:
            with suppress(Exception):  # one that cannot tell must not spoil it for the others
                filenos.extend(self._filenos(item))
        _fork.abandon(items, filenos)

    def _filenos(self, item: T) -> Iterable[int]:
        """For adapters: the file descriptors of *item*, to be cut off in a child."""
        for owner in (item, getattr(item, "sock", None), getattr(item, "_sock", None)):
            fileno = getattr(owner, "fileno", None)
            if callable(fileno):
                try:
                    return [fd for fd in [fileno()] if isinstance(fd, int) and fd >= 0]
                except Exception:
                    return []  # closed, by the look of it
        return []


def split_settings(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """For adapters: part the keywords that are `ConnectionPool`'s from the client's."""
    ours = {name: value for name, value in options.items() if name in _SETTINGS}
    return ours, {name: value for name, value in options.items() if name not in _SETTINGS}


_SETTINGS = frozenset(signature(ConnectionPool).parameters)


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


def _require_positive(**settings: float | None) -> None:
    _require("above 0", (0.0).__lt__, settings)


def _require_not_negative(**settings: float | None) -> None:
    _require("at least 0", (0.0).__le__, settings)


def _require(bound: str, holds: Callable[[float], bool], settings: dict[str, float | None]) -> None:
    for name, value in settings.items():
        if value is None:
            continue
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, or None, not {value!r}")
        if not holds(float(value)):
            raise ValueError(f"{name} is {value!r} but must be {bound}, or None")


def _require_whole(**settings: int | None) -> None:
    for name, value in settings.items():
        if value is not None and not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, or None, not {value!r}")


def this_thread(pool: object, owner: int | None) -> int:
    """Return the number of this thread; refuse it if another is the *owner* of *pool*."""
    here = current_thread()
    if owner is None or owner == here:
        return here
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    raise WrongThread(
        f"this {type(pool).__name__} belongs to thread {names.get(owner)!r} ({owner}) "
        f"and was used in thread {names.get(here)!r} ({here}); make a pool for each thread"
    )


def _closed_error(pool: ref[ConnectionPool[Any]]) -> PoolClosed:
    # Weakly, for the pool's line has this, and a closed pool is to go at once.
    return PoolClosed(f"{pool()!r} is closed")


def _has(listener: object, event: str) -> bool:
    try:
        return hasattr(listener, event)
    except Exception:
        return True  # its error is logged when it is to be called


def _call_listener(listener: object, event: str, *about: object) -> None:
    try:
        heard = getattr(listener, event, None)
        if heard is not None:
            heard(*about)
    except BaseException as error:
        # Whatever it was, it is the listener's own.
        log.warning("a pool's listener failed: %r", error)
