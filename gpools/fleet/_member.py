"""A process as a member of a fleet pool: what it holds, who waits here, what it has sent.

At most one step is on its way: what is wanted, given up and put back meanwhile
goes with the next.  Replies and grants come over one connection, in order, so
at each reply the server's count must be exactly ours (I5).  Where it is not,
and after every loss of the connection or of the server's data, the member does
not repair: it says how things are (`resync`), which is right whatever was lost.

A waiter is chosen and woken in one act (`_serve`), so one that is killed or
timed out has either not been served, or runs on with its token.

I4  Our lease ends (`deadline`) before the server's: it is counted from before
    the renewal was sent, and is shorter by a fiftieth.
I7  A token that is out is counted by the server after the next sync.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from random import random
from socket import gethostname
from typing import TYPE_CHECKING, Any
from weakref import ref

from gevent import get_hub, getcurrent, spawn, spawn_raw
from gevent.event import AsyncResult
from greenlet import greenlet

from gpools._holders import Hold
from gpools.errors import HubWouldBlock, PoolClosed, PoolTimeout, PoolUnavailable
from gpools.fleet._link import Link, Moved, Refused, Source, trouble
from gpools.fleet._resp import ServerError, written

if TYPE_CHECKING:
    from gpools.fleet.pool import Settings

__all__ = ["Member", "Token", "clock"]

log = logging.getLogger("gpools")

SAFE = 0.98  # of a lease is ours
AT_ONCE = 500  # wants and cancels in one step
GOODBYE = 1.0  # seconds that are waited for the server to have noted it
IN_A_ROW = 0.005  # seconds in which greenlets run before the hub looks after others
JITTER = 0.05  # seconds, so that not all who wait ask at the same moment
NOTHING_ELSE = written(["", "", 0])  # of a step: no waiter to look for, no size, no cancels

# By which leases are measured here; where it can, it goes on in a suspended machine.
clock = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def keys_of(name: str) -> tuple[bytes, ...]:
    """Return the keys of the script, all in one slot of a cluster."""
    key = b"gp:{%b}" % name.encode()
    return (key, key + b":q", key + b":s", key + b":t")


class Token:
    """The right to use one unit of what a whole fleet shares."""

    __slots__ = ("__weakref__", "_member", "fence", "lost")

    def __init__(self, member: Member, fence: int | None) -> None:
        self._member = member
        self.fence = fence
        self.lost = False

    @property
    def valid(self) -> bool:
        """Whether the server still counts it for us; no I/O, never switches."""
        member = self._member
        counted = self.fence is not None or member.ready
        return counted and not self.lost and self in member.out and clock() < member.deadline

    def __repr__(self) -> str:
        state = "lost" if self.lost else "valid" if self.valid else "not valid"
        return f"<Token {self.fence} {state}>"


class Waiter:
    """A greenlet that waits for a token."""

    __slots__ = ("granted", "greenlet", "number", "patient", "queued", "served", "wid")

    def __init__(self, wid: int, patient: bool) -> None:
        self.wid = wid
        self.greenlet: greenlet = getcurrent()
        self.patient = patient  # else it takes what is free, or nothing
        self.number = 0  # of its arrival, once the server has said so
        self.queued = False  # as far as we know
        self.granted = False  # a token for it has come
        self.served = False


class Flight:
    """A step or a sync that is on its way."""

    __slots__ = ("cancels", "new_size", "oldest", "sent", "sync", "wants")

    def __init__(self, sync: bool) -> None:
        self.sync = sync
        self.sent = clock()  # before it is sent: the lease is counted from here
        self.wants: list[Waiter] = []
        self.cancels: list[int] = []
        self.new_size: int | None = None
        self.oldest: Waiter | None = None


class Member:
    """This process in one pool."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.settings = settings
        self.source = source
        self.hub = get_hub()
        self.process = os.urandom(6).hex()
        self.keys = keys_of(settings.name)
        key = self.keys[0]
        self.channels: tuple[bytes, ...] = (key + b":c:" + self.process.encode(),)
        if settings.keep:
            self.channels += (key + b":r",)
        self.link: Link | None = None
        self.relinks = 0  # so often sent from node to node, since the server knew us
        self.alone = False  # on a link of its own, for it was refused
        self.generation = 0
        self.ready = False  # the server knows us, in this generation
        self.failed: Exception | None = None  # why connecting failed, until it succeeds
        self.refusal: Callable[[], Exception] | None = None  # once closed
        self.abandoned = False  # in a child: it is the parent's
        # As the last reply said.
        self.epoch = b""
        self.size, self.used, self.queued = settings.max_size, 0, 0
        self.lease, self.grace = settings.lease, settings.grace
        self.top = 0  # the highest number that we know
        self.deadline = 0.0
        self.told = False  # that the settings of the pool are others than ours
        # Ours.
        self.out: set[Token] = set()
        # Of those out that may yet be held for too long, in order: since when, by whom.
        self.holds: OrderedDict[Token, tuple[float, ref[greenlet]]] = OrderedDict()
        self.kept: deque[Token] = deque()
        self.wanted = False  # somebody waits somewhere, or too many are out: nothing is kept
        self.unsent = 0  # tokens that came back and the server still counts
        self.waiters: OrderedDict[int, Waiter] = OrderedDict()  # by wid, in order of arrival
        self.new: deque[int] = deque()  # wids that the server does not know
        self.cancels: list[int] = []  # wids that it may know, of waiters that are gone
        self.deliveries: deque[tuple[int, int | Exception | None]] = deque()
        self.grants = 0  # deliveries that are tokens, of the server or our own
        self.new_size: int | None = None
        self.resized: list[AsyncResult[None]] = []
        self.asked: list[tuple[list[Any], AsyncResult[Any]]] = []  # to be sent when ready
        self.running: set[AsyncResult[Any]] = set()  # asked, and sent
        self.flying: Flight | None = None
        self.mismatches = 0  # of I5
        self._wid = 0
        self._serving = False  # `_serve` will come, and flush
        self._handing = False  # it is at it
        self._flushing = False  # a flush will come
        self._step = b""  # how a step of this generation begins
        self._timer: Any = None
        self._armed = float("inf")  # when the timer will ring
        self._heartbeat = self._look = float("inf")

    @property
    def patience(self) -> float:
        return self.lease / 3

    @property
    def over(self) -> bool:
        """Whether what was out is nobody's any more: closed, or left to the parent by a fork."""
        return self.abandoned or self.refusal is not None

    # For the pool; none of it switches but `wait`.

    def start(self) -> None:
        """Have a connection made if there is none."""
        if self.link is None:
            self.link = Link.of(self.source)
            self.link.join(self)

    def take_kept(self) -> Token | None:
        """Take a token that was kept here."""
        if self.kept and clock() < self.deadline:
            token = self.kept.popleft()
            self._hand_out(token, getcurrent())
            return token
        return None

    def wait(self, patient: bool) -> Token:
        """Wait for a token of the fleet; switches."""
        if getcurrent() is self.hub:
            raise HubWouldBlock("the hub's own greenlet cannot wait for a token of a fleet")
        if self.link is None:
            self.start()
        if self.failed is not None and not self.ready:
            self._refuse_newcomer(patient)
        self._wid += 1
        waiter = Waiter(self._wid, patient)
        self.waiters[waiter.wid] = waiter
        self.new.append(waiter.wid)
        try:
            if self.failed is not None:
                self._serve_locally()
            if not self._handing:
                self.flush()
            while True:
                token: Token = self.hub.switch()
                if waiter.served:  # else a stray switch: `_serve` did not choose us
                    return token
        except BaseException:
            # Killed or timed out in line, owning nothing: only the place is given up.
            if self.waiters.pop(waiter.wid, None) is not None:
                self.cancels.append(waiter.wid)
                self.flush_soon()
            raise

    def give_back(self, token: Token) -> None:
        """Take *token*, which is out, back."""
        if self.deadline and clock() >= self.deadline:
            self._lapse()  # as long as it is out: its use went on when it was others'
        self.out.remove(token)
        self.holds.pop(token, None)
        keep = self.settings.keep
        if (
            keep
            and self.ready
            and not (self.wanted or self.waiters or token.lost or token.fence is None)
            and len(self.kept) < keep
            and self.used <= self.size
        ):
            self.kept.append(Token(self, token.fence))
            return
        self.unsent += 1
        if not self.ready and self.failed is not None:
            self._serve_locally()
        self.flush_soon()

    def resize(self, new_size: int) -> AsyncResult[None]:
        """Ask for another size; the result comes when the server has it."""
        if self.failed is not None and not self.ready:
            self._refuse_newcomer(True)
        result: AsyncResult[None] = AsyncResult()
        self.new_size = new_size
        self.resized.append(result)
        self.start()
        self.flush()
        return result

    def ask(self, *words: Any) -> AsyncResult[Any]:
        """Ask the server for what grants nothing."""
        result: AsyncResult[Any] = AsyncResult()
        self.asked.append((list(words), result))
        self.start()
        self.flush()  # so that the answer knows of what was put before
        self._send_asked()
        return result

    def close(self, refusal: Callable[[], Exception]) -> AsyncResult[Any]:
        """Refuse all, and begin to give everything back."""
        self.refusal = refusal
        wids = [*self.waiters, *self.cancels]
        result: AsyncResult[Any] = AsyncResult()
        self._lose("the pool is closed")
        # Who has been granted a token, but not run yet, is refused like the others.
        self.deliveries.clear()
        self.grants = 0
        for waiter in self.waiters.values():
            waiter.granted = False
        self._refuse_waiters(refusal)
        for waiting in (*self.resized, *self.running, *(asked for _, asked in self.asked)):
            waiting.set_exception(refusal())
        self.running.clear()
        if self.link is not None and self.link.up:
            # Also with a sync on its way, which the server hears first.
            self._run(["leave", self.process, self.generation, *wids], result)
        else:
            result.set(None)
        self.ready, self.flying = False, None
        return result

    def drop(self) -> None:
        """Leave: the program has dropped the pool without closing it.

        Nobody can put what is out, and its use may go on: that stays counted.
        """
        if not (self.over or self.out):
            spawn_raw(self._say_goodbye)

    def _say_goodbye(self) -> None:
        self.end_after(self.close(partial(closed_error, self.settings.name)))

    def end_after(self, result: AsyncResult[Any]) -> None:
        """Wait, but not for long, until the server has noted that we leave; then `end`."""
        try:
            result.wait(GOODBYE)
        finally:
            self.end()

    def end(self) -> None:
        """Leave the link, and have no timer."""
        if self.link is not None:
            self.link.part(self)
            self.link = None
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def flush_soon(self) -> None:
        """Send what is to be sent in the next turn of the hub, with what comes until then."""
        if not (self._flushing or self._handing or self.abandoned):
            self._flushing = True
            self.hub.loop.run_callback(self._flush_now)

    def flush(self, always: bool = False) -> None:
        """Send what is to be sent, unless something is on its way."""
        if not self.ready or self.flying is not None or self.abandoned:
            return
        if always or self.new or self.unsent or self.cancels or self.new_size is not None:
            released, self.unsent = self.unsent, 0
            self._send(False, 10, self._step + written([released]))

    # For the link, which calls in the hub, or from its connector.

    def link_up(self) -> None:
        self.resync()

    def link_down(self, error: Exception, tried: bool) -> None:
        if isinstance(error, Moved):
            self._relink(error.address)
            return
        self._drop_flight()
        self.ready = False
        for result in self.running:
            result.set_exception(_unavailable(self.settings.name, error))
        self.running.clear()
        if not tried:
            self._refuse_waiters(
                lambda: _unavailable(self.settings.name, error), lambda w: not w.patient
            )
            return
        for _, result in self.asked:
            result.set_exception(_unavailable(self.settings.name, error))
        self.asked.clear()
        self.failed = error
        if self.link is not None and self.link.address is not None:
            self._relink(None)
        if isinstance(error, Refused):
            self._refuse_waiters(lambda: Refused(str(error)))
            self._refuse_to_resize(error)
        elif self.settings.on_unavailable == "raise":
            self._refuse_waiters(lambda: _unavailable(self.settings.name, error))
            self._refuse_to_resize(_unavailable(self.settings.name, error))
        else:
            self._refuse_waiters(
                lambda: _unavailable(self.settings.name, error), lambda w: not w.patient
            )
            self._serve_locally()

    def denied(self, error: ServerError) -> None:
        if self.flying is not None:
            self._denied(self.flying, error)  # the sync, which is of no use then

    def pushed(self, channel: bytes, message: bytes) -> None:
        if channel != self.channels[0]:
            self._recalled()
            return
        generation, *words = message.split()
        if int(generation) != self.generation or not self.ready:
            return  # meant for what we were; the sync has put it right
        if clock() >= self.deadline:
            # Frozen on its way: it may be somebody else's by now.
            self._lapse()
            return
        for i in range(0, len(words), 2):
            self._granted(int(words[i]), int(words[i + 1]))

    def resync(self) -> None:
        """Tell the server how things are here."""
        self._drop_flight()
        self.ready = False
        if self.link is None or not self.link.up or self.over:
            return
        self.generation += 1
        self.unsent = 0
        self.new.clear()
        for waiter in self.waiters.values():
            waiter.queued = False
            if not waiter.granted:
                self.new.append(waiter.wid)
        ours = self.settings
        times = [round(seconds * 1e6) for seconds in (ours.lease, ours.grace)]
        begin = self._words("sync", self.process, self.generation)
        words = [*begin, self._count(), ours.max_size, *times, self.epoch, self.top, ours.info()]
        self._step = written(self._words("step", self.process, self.generation))
        self._send(True, len(words), written(words))

    # Sending.

    def _flush_now(self) -> None:
        self._flushing = False
        self.flush()

    def _words(self, op: str, *words: bytes | str | int) -> list[bytes | str | int]:
        assert self.link is not None
        return [len(self.keys), *self.keys, op, self.link.publish, *words]

    def _send(self, sync: bool, count: int, words: bytes) -> None:
        """Send *words*, which are *count*, and what is wanted and cancelled here."""
        assert self.link is not None
        flight = self.flying = Flight(sync)
        first = next(iter(self.waiters.values()), None)
        if first is not None and first.queued and not first.granted:
            flight.oldest = first
        flight.new_size = self.new_size
        if flight.oldest or self.cancels or self.new_size is not None:
            flight.cancels, self.cancels = self.cancels[:AT_ONCE], self.cancels[AT_ONCE:]
            oldest = flight.oldest.wid if flight.oldest else ""
            new_size = "" if flight.new_size is None else flight.new_size
            words += written([oldest, new_size, len(flight.cancels), *flight.cancels])
        else:
            words += NOTHING_ELSE
        wants = flight.wants
        while self.new and len(wants) < AT_ONCE:
            waiter = self.waiters.get(self.new.popleft())
            if waiter is not None and not waiter.granted:
                wants.append(waiter)
        if wants:
            words += written(map(_want, wants))
        count += 3 + len(flight.cancels) + len(wants)
        self._heartbeat = flight.sent + self.lease / 3
        self.link.run(count, words, lambda reply: self._answered(flight, reply))
        if self._heartbeat < self._armed:
            self._arm()

    def _drop_flight(self) -> None:
        flight, self.flying = self.flying, None
        if flight is not None:
            self.cancels += flight.cancels  # nobody knows whether it has come

    def _run(self, words: list[Any], result: AsyncResult[Any]) -> None:
        def heard(reply: Any) -> None:
            self.running.discard(result)
            if isinstance(reply, ServerError):
                error = trouble(reply)
                refused = isinstance(error, Refused)
                result.set_exception(error if refused else _unavailable(self.settings.name, error))
            else:
                result.set(reply)

        assert self.link is not None
        self.running.add(result)
        words = self._words(*words)
        self.link.run(len(words), written(words), heard)

    def _send_asked(self) -> None:
        if self.ready:
            asked, self.asked = self.asked, []
            for words, result in asked:
                self._run(words, result)

    # Hearing.

    def _answered(self, flight: Flight, reply: Any) -> None:
        if flight is not self.flying or self.link is None:
            return
        if not isinstance(reply, bytes) or not reply.startswith(b"ok"):
            self._denied(flight, reply)
            return
        now = clock()
        self.flying = None
        words = reply.split()
        held, self.used, self.queued, soon, base, direct, found, self.size, lease, grace = map(
            int, words[1:11]
        )
        self.lease, self.grace = lease / 1e6, grace / 1e6
        self.deadline = flight.sent + SAFE * self.lease
        if now >= self.deadline:
            self._lapse()  # stopped while it was on its way: the grants may be others' by now
            return
        self._heartbeat = flight.sent + self.lease / 3
        self._look = now + soon / 1e6 + JITTER * random()
        given_up = flight.sync and self._synced(words[11], int(words[12]))
        if flight.wants:
            self._answer(flight.wants, base, direct)
        for i in range(14 if flight.sync else 11, len(words), 2):
            self._granted(int(words[i]), int(words[i + 1]))
        if given_up:
            self.resync()  # which had counted them
            return
        if held != self._count() + self.unsent:  # I5
            self.mismatches += 1
            spawn_raw(log.warning, "fleet pool %r: counts differ, telling anew", self.settings.name)
            self.resync()
            return
        oldest = flight.oldest
        if oldest is not None and not found and oldest.wid in self.waiters and not oldest.granted:
            self.resync()  # it has lost its place, to a hand or to an eviction
            return
        if flight.new_size is not None and flight.new_size == self.new_size:
            self.new_size = None
            resized, self.resized = self.resized, []
            for result in resized:
                result.set(None)
        self.wanted = self.queued > 0 or self.used > self.size
        if self.wanted:
            self._recalled()
        if self.asked:
            self._send_asked()
        at_once = soon == 0 and self.queued > 0
        if at_once or not self._serving:  # else what those served do goes along
            self.flush(always=at_once)
        if self._heartbeat < self._armed or (self.waiters and self._look < self._armed):
            self._arm()

    def _denied(self, flight: Flight, reply: Any) -> None:
        link = self.link
        assert link is not None
        if isinstance(reply, ServerError):
            error = trouble(reply)
            if isinstance(error, Moved):
                self._relink(error.address)
                return
            if isinstance(error, Refused) and not self.alone:
                # What this pool may not do must not cut the others off time and again.
                self.alone = True
                self._relink(None)
            if flight.sync or isinstance(error, Refused):
                self.link_down(error, tried=True)  # it is there, but of no use
            if link.members:
                link.fail(error)
            return
        if reply == b"gone":
            self._lose("the server did not know this process any more")
        self.resync()

    def _synced(self, epoch: bytes, knew: int) -> bool:
        """Tell whether tokens that nobody has yet were lost."""
        lost = self._lost_by_sync(epoch, knew)
        self.epoch = epoch
        self.ready, self.failed, self.relinks = True, None, 0
        self._compare_settings()
        if not lost:
            return False
        counted = self._count()
        self._lose("the server had given up this process")
        return self._count() < counted

    def _answer(self, wants: list[Waiter], base: int, direct: int) -> None:
        """Note the numbers of *wants*, of which the first *direct* ones are granted."""
        self.top = max(self.top, base + len(wants) - 1)
        for number, waiter in enumerate(wants, base):
            if number < base + direct:
                self._granted(waiter.wid, number)
            elif waiter.patient:
                waiter.queued = True
                waiter.number = waiter.number or number
            else:
                self._deliver(waiter.wid, _none_free(self))

    def _lost_by_sync(self, epoch: bytes, knew: int) -> bool:
        """Tell whether others may have been granted what we hold."""
        if not self.epoch:
            return False
        if epoch == self.epoch:
            return not knew
        return self.grace < self.lease  # else they learn until we could say so

    def _compare_settings(self) -> None:
        ours = self.settings
        theirs = (self.size, self.lease, self.grace)
        stored = (ours.max_size, round(ours.lease, 6), round(ours.grace, 6))
        if self.new_size is None and theirs != stored:
            if not self.told:
                spawn_raw(
                    log.warning,
                    "fleet pool %r has max_size %d, lease %g and grace %g in Redis, which holds; "
                    "this process was given %d, %g and %g: call resize(%d) to change the size for "
                    "all, restart all to change the others",
                    ours.name,
                    *theirs,
                    *(ours.max_size, ours.lease, ours.grace, ours.max_size),
                )
            self.told = True

    def _granted(self, wid: int, fence: int) -> None:
        self.top = max(self.top, fence)
        waiter = self.waiters.get(wid)
        if waiter is None:
            self.unsent += 1
            self.flush_soon()
        else:
            waiter.granted = True
            self.grants += 1
            self._deliver(wid, fence)

    def _recalled(self) -> None:
        self.wanted = True
        if self.kept:
            self.unsent += len(self.kept)
            self.kept.clear()
            self.flush_soon()

    def _count(self) -> int:
        return len(self.out) + len(self.kept) + self.grants

    # Serving, in the hub.

    def _deliver(self, wid: int, what: int | Exception | None) -> None:
        self.deliveries.append((wid, what))
        self._serve_soon()

    def _serve_soon(self) -> None:
        if not (self._serving or self._handing):
            self._serving = True
            if self.link is None:
                self.hub.loop.run_callback(self._serve)
            else:
                self.link.soon(self._serve)

    def _serve(self) -> None:
        """Run some of those who are served; what they put back and want goes in one step."""
        self._serving, self._handing = False, True
        end = clock() + IN_A_ROW
        try:
            while not self.abandoned and self._serve_one() and clock() < end:
                pass
        finally:
            # Also where one of them has ended with an error.
            self._handing = False
            if not self.abandoned:
                if self.deliveries:
                    self._serving = True
                    self.hub.loop.run_callback(self._serve)
                self.flush()

    def _serve_one(self) -> bool:
        """Run one; it runs on here, and may run for long."""
        while self.deliveries:
            wid, what = self.deliveries.popleft()
            waiter = self.waiters.pop(wid, None)
            if not isinstance(what, Exception):
                self.grants -= 1
                if waiter is None:
                    self.unsent += 1
                    self.flush_soon()
            if waiter is not None:
                break
        else:
            return False
        waiter.served = True
        if isinstance(what, Exception):
            if waiter.queued:
                self.cancels.append(wid)
                self.flush_soon()
            waiter.greenlet.throw(what)
        else:
            token = Token(self, what)
            self._hand_out(token, waiter.greenlet)
            waiter.greenlet.switch(token)
        return True

    def _hand_out(self, token: Token, holder: greenlet) -> None:
        self.out.add(token)
        if self.settings.leak_after is not None:
            self.holds[token] = (clock(), ref(holder))
            self._arm()

    def _serve_locally(self) -> None:
        """Without the server, let in as many as are safe; they are counted when it is back."""
        safe = self.settings.on_unavailable
        if not isinstance(safe, int):
            return
        room = safe - len(self.out) - self.grants
        for waiter in self.waiters.values():
            if room <= 0:
                return
            if not waiter.granted:
                waiter.granted = True
                room -= 1
                self.grants += 1
                self._deliver(waiter.wid, None)

    def _refuse_newcomer(self, patient: bool) -> None:
        assert self.failed is not None
        if isinstance(self.failed, Refused):
            raise Refused(str(self.failed))
        safe = self.settings.on_unavailable
        full = not isinstance(safe, int) or len(self.out) + self.grants >= safe
        if safe == "raise" or (full and not patient):
            raise _unavailable(self.settings.name, self.failed)

    def _refuse_waiters(
        self,
        error: Callable[[], Exception],
        which: Callable[[Waiter], bool] = lambda waiter: True,
    ) -> None:
        for waiter in self.waiters.values():
            if not waiter.granted and which(waiter):
                waiter.granted = True
                self._deliver(waiter.wid, error())

    def _refuse_to_resize(self, error: Exception) -> None:
        for result in self.resized:
            result.set_exception(error)
        self.resized, self.new_size = [], None

    # Losing.

    def _lapse(self) -> None:
        """Act on the end of our lease: what we held may be others' now."""
        late = clock() - self.deadline
        self._lose(
            f"the lease of {self.lease:g} s ended {max(0.0, late):.2f} s ago without an answer "
            "of the server: it was out of reach, or this process was stopped or its hub blocked"
        )
        self.deadline = 0.0
        self.resync()

    def _lose(self, why: str) -> None:
        self.kept.clear()
        still = deque(d for d in self.deliveries if not isinstance(d[1], int))
        for wid, what in self.deliveries:
            if isinstance(what, int) and wid in self.waiters:
                self.waiters[wid].granted = False
        self.deliveries, self.grants = still, sum(what is None for _, what in still)
        lost = [t for t in self.out if not t.lost and t.fence is not None]
        for token in lost:
            token.lost = True
        if lost:
            name = self.settings.name
            spawn_raw(log.warning, "fleet pool %r: %d tokens are lost: %s", name, len(lost), why)
            if self.settings.on_lost is not None:
                spawn(self.settings.on_lost, lost)

    def _relink(self, address: tuple[str, int] | None) -> None:
        self._drop_flight()
        self.ready = False
        if self.link is not None:
            self.link.part(self)
        self.link = Link.of(self.source, address, self.process if self.alone else None)
        self.link.join(self, self.relinks)
        self.relinks += 1

    # Timing.

    def _arm(self) -> None:
        due = min(self._heartbeat, self.deadline or float("inf"))
        if self.waiters:
            due = min(due, self._look)
        if self.flying is not None:
            due = min(due, self.flying.sent + self.patience)
        if self.holds:
            due = min(due, self._leak_due())
        if due < self._armed - 0.001:
            if self._timer is not None:
                self._timer.stop()
                self._timer.close()
            self._armed = due
            self._timer = self.hub.loop.timer(max(0.0, due - clock()))
            self._timer.start(self._ring)

    def _ring(self) -> None:
        self._armed = float("inf")
        if self.abandoned or self.refusal is not None or self.link is None:
            return
        now = clock()
        if self.deadline and now >= self.deadline:
            self._lapse()
        if self.flying is not None and now >= self.flying.sent + self.patience:
            silence = now - self.flying.sent
            self._heartbeat = now + self.lease / 3
            self.link.fail(ConnectionError(f"the server has not answered for {silence:.1f} s"))
        elif self.ready and (now >= self._heartbeat or (self.waiters and now >= self._look)):
            self._heartbeat, self._look = now + self.lease / 3, now + 0.05
            self.flush(always=True)
        elif now >= self._heartbeat:
            self._heartbeat = now + self.lease / 3
        while self.holds and now >= self._leak_due():
            self._report_leak(now)
        self._arm()

    def _leak_due(self) -> float:
        since, _ = next(iter(self.holds.values()))
        return since + (self.settings.leak_after or 0.0)

    def _report_leak(self, now: float) -> None:
        token, (since, holder) = self.holds.popitem(last=False)
        hold = Hold(token, holder(), now - since)
        name = self.settings.name
        spawn_raw(
            log.warning, "fleet pool %r: a token is held for %s\n%s", name, hold, hold.stack()
        )
        if self.settings.on_leak is not None:
            spawn(self.settings.on_leak, hold)


def _unavailable(name: str, error: Exception) -> PoolUnavailable:
    unavailable = PoolUnavailable(f"the server of the fleet pool {name!r} is out of reach: {error}")
    unavailable.__cause__ = error
    return unavailable


def _none_free(member: Member) -> PoolTimeout:
    return PoolTimeout(
        f"no token of {member.settings.name!r} is free ({member.used} of {member.size} in use "
        f"in the fleet, {member.queued} waiting)"
    )


def _want(waiter: Waiter) -> bytes:
    if not waiter.patient:
        return b"%d-" % waiter.wid
    if waiter.number:
        return b"%d:%d" % (waiter.wid, waiter.number)
    return b"%d" % waiter.wid


def closed_error(name: str) -> PoolClosed:
    """Say that the pool is closed."""
    return PoolClosed(f"the fleet pool {name!r} is closed")


def machine() -> str:
    """Name where process ids are the same ones: a boot of a machine, and a namespace of it."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def info_of_this_process() -> str:
    """Say who this is, for those who look at the fleet."""
    return json.dumps(
        {"host": gethostname(), "pid": os.getpid(), "since": time.time(), "machine": machine()}
    )
