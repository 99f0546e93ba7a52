"""`DistributedTokenPool`: a limit that the processes of a whole fleet share, on Redis."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal
from weakref import WeakSet, finalize

from gevent import getcurrent, spawn_raw
from gevent.monkey import get_original

from gpools._closing import Closing
from gpools._fast import ENTERED, MISSING, ONE_BLOCK, Item, Missing
from gpools._fork import before_pools
from gpools._holders import Hold
from gpools._within import within
from gpools.connection import (
    _require_not_negative,
    _require_positive,
    this_thread,
)
from gpools.errors import NotInUse, PoolTimeout
from gpools.fleet import _link
from gpools.fleet._link import Source
from gpools.fleet._member import Member, Token, closed_error, info_of_this_process
from gpools.fleet._watch import FleetStats, fleet_stats

__all__ = ["DistributedTokenPool"]

SHORTEST = 0.001  # seconds of a lease
MOST = 2**53  # Redis counts in floating point

current_thread: Callable[[], int] = get_original("_thread", "get_ident")


@dataclass(frozen=True)
class Settings:
    """What a process was given."""

    name: str
    max_size: int
    lease: float
    grace: float
    keep: int
    on_lost: Callable[[list[Token]], object] | None
    on_unavailable: str | int
    leak_after: float | None
    on_leak: Callable[[Hold], object] | None

    def info(self) -> str:
        return info_of_this_process()


class DistributedTokenPool(Closing):
    """A pool of *max_size* tokens for all processes that name it, on a Redis server.

    ::

        payments = DistributedTokenPool("redis://10.0.0.5", "payment-api", max_size=200)
        with payments.item(timeout=5) as token:
            charge(idempotency_key=token.fence)

    Give a *client_or_url*: a `redis.Redis`, also one of a Sentinel, a
    `redis.RedisCluster`, or a URL.  Redis 6 or newer, or Valkey; in a cluster
    7.  Nothing is connected before the first use.

    *max_size*, *lease* and *grace* are the pool's, not the process's: what
    Redis has holds, and a difference is logged.  They are set by whoever comes
    while nobody else is there, unless `resize` was called.

    *lease*, in seconds, is after how long the tokens of a process that is
    silent go to others.  *grace*, in seconds, is for how long nothing is
    granted after the server has lost data or was replaced; None is *lease*, and
    less lets more than *max_size* be in use for a while.

    *timeout* is the default of `get` and `item`; None waits for ever.
    *on_lost* is called with a list of tokens before others can have them.
    *on_unavailable* says what a get does while the server is out of reach:
    ``"wait"``; ``"raise"`` `PoolUnavailable`; or a number: let so many in, per
    process, and count them later.  *keep* tokens stay here while nobody waits
    anywhere, so that getting one costs nothing.  With *fast_reclaim* the tokens
    of a dead process are given up by another one of its machine that waits.
    A token that is out for longer than *leak_after* seconds is logged, once,
    with the stack of its holder, and *on_leak* is called with the `Hold`.

    Raises TypeError and ValueError for settings that make no sense.
    Never switches.
    """

    def __init__(
        self,
        client_or_url: Any,
        name: str,
        max_size: int,
        lease: float = 30.0,
        *,
        timeout: float | None = None,
        on_lost: Callable[[list[Token]], object] | None = None,
        on_unavailable: Literal["wait", "raise"] | int = "wait",
        grace: float | None = None,
        keep: int = 0,
        fast_reclaim: bool = False,
        leak_after: float | None = None,
        on_leak: Callable[[Hold], object] | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r}")
        if not name or "{" in name or "}" in name:
            raise ValueError(f"name is {name!r} but must not be empty nor have braces")
        name.encode()  # raises for half a surrogate pair
        _require_count("max_size", max_size, 1)
        _require_count("keep", keep, 0)
        _require_positive(lease=lease, leak_after=leak_after)
        _require_not_negative(timeout=timeout, grace=grace)
        if lease is None or not isfinite(lease) or not isfinite(grace or 0.0):
            raise ValueError("lease and grace must be finite numbers of seconds")
        if lease < SHORTEST:
            raise ValueError(f"lease is {lease} but must be at least {SHORTEST} seconds")
        if on_unavailable not in ("wait", "raise"):
            _require_count("on_unavailable", on_unavailable, 0)
        if on_lost is not None and not callable(on_lost):
            raise TypeError(f"on_lost must be callable with a list of tokens, not {on_lost!r}")
        if on_leak is not None and not callable(on_leak):
            raise TypeError(f"on_leak must be callable with a Hold, not {on_leak!r}")
        if on_leak is not None and leak_after is None:
            raise ValueError("on_leak needs leak_after")
        self._settings = Settings(
            name,
            max_size,
            float(lease),
            float(lease if grace is None else grace),
            keep,
            on_lost,
            on_unavailable,
            leak_after,
            on_leak,
        )
        self._timeout = timeout
        self._fast_reclaim = fast_reclaim
        self._source = Source(client_or_url)
        self._thread: int | None = None
        self._member_now: Member | None = None
        self._closed = False
        _pools.add(self)

    @property
    def name(self) -> str:
        """The name by which processes share it."""
        return self._settings.name

    @property
    def lease(self) -> float:
        """The lease, in seconds, as of the last reply."""
        member = self._member_now
        return self._settings.lease if member is None else member.lease

    @property
    def max_size(self) -> int:
        """The tokens there are, as of the last reply; before it, as the constructor was told."""
        member = self._member_now
        return self._settings.max_size if member is None else member.size

    def get(self, *, block: bool = True, timeout: float | Missing | None = MISSING) -> Token:
        """Take a token, waiting in line if none is free.

        Callers are served in the order in which they came to the server,
        whatever their process.  *timeout*, in seconds, covers all of it; None
        waits for ever; left out, it is the pool's.  Without *block* the server
        is asked, but nobody waited for.

        Every get needs its `put`; `item` does both.

        Raises `PoolTimeout`, `PoolClosed`, `PoolUnavailable`, `HubWouldBlock`,
        `WrongThread`, or `PoolError` where the server will not do.  Switches,
        unless a token is kept here.
        """
        member = self._member()
        token = member.take_kept()
        if token is not None:
            return token
        seconds = self._timeout if timeout is MISSING else timeout
        if seconds is None:
            return member.wait(block)
        return within(seconds, partial(member.wait, block), self._timeout_error)

    def put(self, token: Token) -> None:
        """Give *token* back.

        Raises `NotInUse` for one that is not out, or not of this pool, and
        `WrongThread`.  Never switches.
        """
        self._belong_here()
        owner = getattr(token, "_member", None)
        if not isinstance(owner, Member) or owner.settings is not self._settings:
            raise NotInUse(f"{self!r} got back what it has not handed out: {token!r}")
        if owner.over:
            owner.out.discard(token)  # inherited by a fork, or given back by close() already
        elif token not in owner.out:
            raise NotInUse(f"{self!r} got back {token!r} twice")
        else:
            owner.give_back(token)

    def item(self, *, timeout: float | Missing | None = MISSING) -> AbstractContextManager[Token]:
        """Take a token for the length of a ``with`` block; it goes back whatever happens there.

        *timeout* as in `get`.
        """
        use = _Use()
        use._pool, use._timeout, use._item = self, timeout, MISSING
        return use

    def free(self) -> int:
        """Tell how many tokens of the fleet are free, as of the last reply.  Never switches."""
        member = self._member_now
        return self.max_size - (0 if member is None else member.used)

    def waiting(self) -> int:
        """Tell how many wait in the whole fleet, as of the last reply.  Never switches."""
        member = self._member_now
        return 0 if member is None else member.queued

    def resize(self, new_size: int) -> None:
        """Set the number of tokens, for the whole fleet, at once.

        Nobody is cut off: a surplus melts as tokens come back.  Waits until the
        server has it, for as long as a `get` would by default; raises as that
        does.  May switch.
        """
        _require_count("new_size", new_size, 1)
        result = self._member().resize(new_size)
        within(self._timeout, result.get, self._silence_error)

    def stats(self, *, timeout: float | None = 5.0) -> FleetStats:
        """Ask the server who holds and who waits.

        Raises `PoolTimeout` after *timeout* seconds, `PoolUnavailable` and
        `PoolClosed`.  Switches.
        """
        result = self._member().ask("list")
        listed: Any = within(timeout, result.get, self._silence_error)
        return fleet_stats(self.name, listed)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Give everything back, and refuse all gets from now on.

        Who waits gets `PoolClosed`; tokens that are out are `lost`.  Waits up to
        a second for the server to have noted it, but in the hub's own greenlet,
        where a signal handler may run.  Closing twice is fine.  May switch.
        """
        self._belong_here()
        self._closed = True
        member, self._member_now = self._member_now, None
        if member is None:
            return
        result = member.close(partial(closed_error, self.name))
        if getcurrent() is member.hub:  # which a signal handler may be, and cannot wait
            # Cut off now, what was sent may be lost with the answers to it.
            spawn_raw(member.end_after, result)
        else:
            member.end_after(result)

    def __repr__(self) -> str:
        member, here = self._member_now, 0
        if member is not None:
            here = len(member.out)
        return (
            f"<DistributedTokenPool {self.name!r} {here} in use here, "
            f"{self.max_size - self.free()} of {self.max_size} in the fleet, "
            f"{self.waiting()} waiting>"
        )

    # How it works inside.

    def _member(self) -> Member:
        self._belong_here()
        if self._closed:
            raise closed_error(self.name)
        if self._member_now is None:
            member = self._member_now = Member(self._settings, self._source)
            # The link holds it, and it must not hold the pool.
            finalize(self, _drop, member).atexit = False
            if self._fast_reclaim:
                spawn_raw(_bury_the_dead, member)
        return self._member_now

    def _belong_here(self) -> None:
        if self._thread != current_thread():
            self._thread = this_thread(self, self._thread)

    def _timeout_error(self, timeout: float) -> PoolTimeout:
        member = self._member_now
        assert member is not None
        if member.ready:
            state = (
                f"{member.used} of {member.size} in use in the fleet, {len(member.out)} of them "
                f"here, {member.queued} waiting"
            )
            advice = "raise max_size, or hold tokens for less time"
        else:
            state = f"{len(member.out)} in use here, and the server has not answered"
            advice = "see whether it is up"
        late = PoolTimeout(
            f"no token of {self.name!r} came free within {timeout} s ({state}); {advice}"
        )
        late.__cause__ = member.failed
        return late

    def _silence_error(self, timeout: float) -> PoolTimeout:
        late = PoolTimeout(
            f"the server of the fleet pool {self.name!r} has not answered within {timeout} s"
        )
        if self._member_now is not None:
            late.__cause__ = self._member_now.failed
        return late

    def _start_anew_in_child(self) -> None:
        member, self._member_now = self._member_now, None
        self._thread = None
        if member is not None:
            member.abandoned = True

    def _say_goodbye(self) -> None:
        member = self._member_now
        if member is not None and not member.abandoned:
            member.close(partial(closed_error, self.name))


def _drop(member: Member) -> None:
    # Wherever the pool was collected; where its hub is gone, all is.
    with suppress(Exception):
        member.hub.loop.run_callback_threadsafe(member.drop)


def _bury_the_dead(member: Member) -> None:
    """Give up the tokens of dead processes of this machine, as long as *member* lives."""
    from gpools.fleet._reclaim import bury_the_dead

    bury_the_dead(member)


class _Use(Item):
    """One ``with pool.item()`` block, where a *timeout* of None is not the pool's."""

    __slots__ = ()

    def __enter__(self) -> Token:
        timeout = self._timeout
        if timeout is ENTERED:
            raise RuntimeError(ONE_BLOCK)
        self._timeout = ENTERED
        token: Token = self._pool.get(timeout=timeout)
        self._item = token
        return token


def _require_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} is {value} but must be at least {least}")
    if value > MOST:
        raise ValueError(f"{name} is {value} but must be at most {MOST}")


_pools: WeakSet[DistributedTokenPool] = WeakSet()


def _in_child() -> None:
    _link.abandon_all()
    for pool in list(_pools):
        pool._start_anew_in_child()


def _at_exit() -> None:
    # Sent, not waited for: tokens of a process that ended well are not missed for a lease.
    for pool in list(_pools):
        with suppress(Exception):
            pool._say_goodbye()


before_pools.append(_in_child)  # which give tokens back to what may be theirs
atexit.register(_at_exit)
