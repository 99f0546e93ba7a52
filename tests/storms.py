"""The grand storm: all that a connection pool can do, and all that can go wrong, at once.

A storm is one seed's worth of weather over one pool: which settings the pool
has, what its verbs do, what 50 greenlets do with it, whom a kill hits, when it
is resized, recycled and closed and when the process forks.  Then it is calm, and
`survived` asserts that nothing was lost, shared or left behind.
"""

import gc
import logging
import os
import random
import signal
import sys
import traceback
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from time import monotonic
from weakref import WeakSet

import gevent
import gevent.os
from gevent import Timeout
from gevent.event import Event
from greenlet import greenlet

from gpools import (
    CoDel,
    ConnectionPool,
    KeyedPool,
    NotInUse,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolShed,
    PoolTimeout,
    PoolUnavailable,
    _creator,
    _sweeper,
)
from tests.hostile import Gate, error, killed, ok, settle, slow, slow_error, spawn, stale, timed_out
from tests.watching import Watch, tracing, wrong_in_keys

__all__ = ["GrandStorm", "KeyedStorm", "storm_of", "watching", "weather", "what_is_left"]

SIZE = 5
LARGEST = 8
GREENLETS = 50
PATIENT = 15
KEYS = 30
TURNED_AWAY = (PoolFull, PoolShed, PoolUnavailable)  # to be tried again
PATIENCE = 10.0  # seconds after which a storm has lost something
WITHIN = (0.0005, 0.002, 0.01, 0.05)  # seconds, of the Timeouts


def claim(holds, *what):
    if not holds:
        raise AssertionError(*what)


# What must be gone when a storm is over.


def gpools_types():
    """Return the classes whose instances a pool is made of."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "gpools"]
    return {thing for module in ours for thing in vars(module).values() if isinstance(thing, type)}


def what_is_left():
    """Count what a storm must not leave behind: objects of gpools, greenlets, descriptors."""
    settle()
    gc.collect()
    settle()
    ours = {kind for kind in gpools_types() if kind.__module__.startswith("gpools")}
    left = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if kind in ours:
            left[f"{kind.__module__}.{kind.__qualname__}"] += 1
        elif isinstance(thing, greenlet) and not thing.dead:
            left["greenlets"] += 1
    left["file descriptors"] = len(os.listdir("/dev/fd"))
    return left


class Told:
    """Writes out what the pools log, as a program would, and lets no handler keep it."""

    def __init__(self):
        self.errors = []

    def filter(self, record):
        try:
            record.getMessage()
        except Exception:
            self.errors.append(traceback.format_exc())
        return False


@contextmanager
def weather():
    """Have gpools log to nobody, and try again in milliseconds where it takes seconds."""
    log, told = logging.getLogger("gpools"), Told()
    level = log.level
    pauses = _creator.FIRST_PAUSE, _creator.LONGEST_PAUSE, _sweeper.RETRY
    log.addFilter(told)
    log.setLevel(logging.INFO)
    _creator.FIRST_PAUSE, _creator.LONGEST_PAUSE, _sweeper.RETRY = 0.002, 0.02, 0.005
    try:
        yield
    finally:
        log.removeFilter(told)
        log.setLevel(level)
        _creator.FIRST_PAUSE, _creator.LONGEST_PAUSE, _sweeper.RETRY = pauses
    claim(not told.errors, *told.errors[:3])


@contextmanager
def watching(watches):
    """Look at the invariants of `gpools._line` at every switch; *watches* may grow meanwhile."""
    broken = []

    def seen(event, origin, target):
        for watch in list(watches):
            try:
                watch.look(event, origin, target)
            except Exception:  # a trace function must not raise
                broken.append(traceback.format_exc())

    with tracing(seen):
        yield
    claim(not broken, *broken[:3])
    violations = [violation for watch in watches for violation in watch.violations]
    claim(not violations, *violations[:5])


# What the verbs do.


class StormGate(Gate):
    """A Gate whose hanging verbs fail once it is calm, as if a network had come back."""

    def __init__(self, seed, severity):
        self.quiet = Event()
        bad = (error, self.hang, killed, timed_out)
        well = (ok,) * (24 - 4 * severity)
        super().__init__(
            *(*well, *(slow,) * 4, slow_error, *bad),
            check=(*well, slow, slow, stale, *bad),
            reset=(*well, *(ok,) * 4, slow, slow, *bad),
            destroy=(*(ok,) * 6, *(slow,) * 4, *bad),
            seed=seed,
        )

    def hang(self):
        self.quiet.wait()
        error()

    def calm(self):
        super().calm()
        self.quiet.set()

    def create_for(self, key):
        item = self.create()
        item.key = key
        return item


class FailingListener:
    """Counts what it is told, then fails in one way or another."""

    def __init__(self, seed):
        self.heard = Counter()
        self.random = random.Random(seed)

    def _fail(self):
        self.random.choice((ok, ok, slow, slow_error, error, killed, timed_out))()

    def created(self, pool):
        self.heard["created"] += 1
        self._fail()

    def create_failed(self, pool, error):
        self.heard["create_errors"] += 1
        self._fail()

    def destroyed(self, pool, reason):
        self.heard["destroyed", reason] += 1
        self._fail()

    def timed_out(self, pool):
        self.heard["timeouts"] += 1
        self._fail()

    def shed(self, pool):
        self.heard["shed"] += 1
        self._fail()

    def leaked(self, pool, hold):
        self.heard["leaks"] += 1
        str(hold), hold.stack()
        self._fail()

    def closed(self, pool):
        self.heard["closed"] += 1
        self._fail()


def some_settings(dice, gate):
    """Return keywords for a pool, anything that `ConnectionPool` can be told."""
    settings = {
        "order_as_stack": dice.random() < 0.3,
        "check_after": dice.choice((None, 0.0, 0.0005, 0.005)),
        "check_timeout": dice.choice((0.005, 0.02)),
        "destroy_timeout": 0.01,
        "max_age": dice.choice((None, 0.003, 0.01, 0.05)),
        "max_idle": dice.choice((None, 0.002, 0.02)),
        "max_creating": dice.choice((None, 1, 2, 3, 4)),
        "create_timeout": dice.choice((0.003, 0.01, 0.03)),
        "max_waiting": dice.choice((None, None, 10, 30)),
        "shed": CoDel(0.004, 0.02) if dice.random() < 0.3 else None,
        "leak_after": dice.choice((None, 0.001, 0.01)),
        "count_holds": dice.random() < 0.5,
        "timeout": dice.choice((None, None, 0.005, 0.03)),
        "listener": FailingListener(dice.random()) if dice.random() < 0.5 else None,
    }
    for verb in ("check", "reset", "destroy"):
        settings[verb] = getattr(gate, verb)
    return settings


class GrandStorm:
    """One seed's worth of everything.

    ``done`` counts what happened; ``dirty`` are the items met that a former
    user had left in the middle of something.
    """

    keyed = False

    def __init__(self, seed, forks=False, make=ConnectionPool):
        self.seed = seed
        self.random = dice = random.Random(seed)
        self.gate = StormGate(seed, severity=dice.randrange(4))
        self.forks = forks
        self.closing = dice.random() < 0.3
        self.resizes = dice.random() < 0.7
        self.largest = LARGEST if self.resizes else SIZE
        self.moves = [self.use_item] * 60 + [self.get_and_put] * 12 + [self.get_and_discard] * 4
        self.moves += [self.drop] * 4 + [self.get_two] * 2 + [self.look_on] * 3
        self.moves += [self.get_ready] * 2 + [self.recycle] + [self.discard_in_block] * 3
        self.done = Counter()
        self.told = Counter()  # errors that the pool counts too
        self.midway = WeakSet()
        self.dirty = 0
        self.over = self.child = False
        self.failures = []
        self.children = []
        self.watches = []
        self.open(make)

    def open(self, make):
        dice = self.random
        settings = some_settings(dice, self.gate)
        settings["min_size"] = self.min_size = dice.choice((0, 0, 1, 3))
        self.listener = settings["listener"]
        self.settings = settings
        behaviours = self.gate.behaviours
        if settings["max_creating"] is None:
            self.gate.behaviours = dict.fromkeys(behaviours, (ok,))  # else it has no pool at all
        # By a function, not a method of the gate: a creation has its slot a moment before
        # the gate is called, and a watch that knew the gate would miss it.
        gate = self.gate
        self.pool = make(max_size=SIZE, create=lambda: gate.create(), **settings)
        gate.behaviours = behaviours
        self.watch(self.pool)

    def watch(self, pool):
        self.watches.append(Watch(pool))

    def pools(self):
        return [self.pool]

    # What the greenlets do.

    def live(self):
        """Do one thing after the other, each within 0.5 to 50 ms, until it is over."""
        while not self.over:
            timer, refused = Timeout.start_new(self.random.choice(WITHIN)), False
            try:
                self.random.choice(self.moves)()
            except Timeout as fired:
                self.done["timeouts" if fired is timer else "timeouts of verbs"] += 1
            except PoolClosed:
                refused = True
                self.done["refused"] += 1
                claim(self.closing, "PoolClosed from a pool that is open")
            except NotInUse:
                if not self.child:
                    raise
            except PoolError as failure:
                refused = isinstance(failure, TURNED_AWAY)
                self.note(failure)
            except OSError as failure:
                self.note(failure)
            except gevent.GreenletExit:
                self.done["kills survived"] += 1
            finally:
                timer.close()
                del timer  # it has the traceback, which has the item
            if refused:
                gevent.sleep(0.001)
            elif self.random.random() < 0.2:
                gevent.sleep(0)

    def note(self, failure):
        if isinstance(failure, PoolShed):
            self.told["shed"] += 1
        elif isinstance(failure, PoolTimeout) and str(failure).startswith("no item "):
            self.told["timeouts"] += 1
        kind = "pool timeouts" if isinstance(failure, PoolTimeout) else type(failure).__name__
        self.done["shed" if isinstance(failure, PoolShed) else kind] += 1

    def work(self, item):
        self.done["gets"] += 1
        if item in self.midway:
            self.dirty += 1
        self.midway.add(item)
        item.use(self.random.choice((0, 0, 0.0005, 0.002)))
        self.midway.discard(item)
        if self.random.random() < 0.05:
            raise OSError("the application's own")

    def use_item(self):
        with self.pool.item() as item:
            self.work(item)

    def get_and_put(self):
        item = self.pool.get()
        try:
            self.work(item)
        except BaseException:
            self.pool.discard(item)
            raise
        self.pool.put(item)

    def get_and_discard(self):
        self.pool.discard(self.pool.get())
        self.done["gets"] += 1

    def discard_in_block(self):
        with self.pool.item() as item:
            self.work(item)
            self.pool.discard(item)

    def drop(self):
        item = self.pool.get()
        self.done["leaks"] += 1
        self.work(item)

    def get_two(self):
        with self.pool.item() as one:
            self.work(one)
            try:
                other = self.pool.get(timeout=0.01)
            except PoolError as failure:
                self.note(failure)  # here, for the end of the block may raise another
                return
            claim(one is not other, "one item went out twice")
            self.pool.put(other)

    def look_on(self):
        for pool in self.pools():
            repr(pool), [hold.stack() for hold in pool.holders()]
        self.check_bounds()

    def get_ready(self):
        self.pool.wait_ready(self.random.choice((0.001, 0.01)))
        self.done["ready"] += 1

    def recycle(self):
        if self.random.random() < 0.3:
            self.pool.recycle(self.random.choice((0, 0, 0.01)))
            self.done["recycles"] += 1

    # What befalls them.

    def rage(self, seconds):
        self.crowd = [spawn(self.live) for _ in range(GREENLETS)]
        begun = monotonic()
        end = begun + seconds
        fork_at = begun + seconds * self.random.random() if self.forks else end
        close_at = begun + seconds * 0.8 if self.closing else end
        struck = begun
        while (now := monotonic()) < end or self.done["kills"] < 20:
            for _ in range(min(5, int((now - struck) * 1000) or 1)):  # one a millisecond
                self.strike(self.random.randrange(GREENLETS))
            struck = now
            if self.resizes and self.random.random() < 0.05:
                self.resize(self.random.randint(max(1, self.min_size), LARGEST))
            if fork_at <= now < end:
                fork_at = end
                self.fork()
            if close_at <= now < end:
                close_at = end
                self.close()
            self.check_bounds()
            gevent.sleep(0.001)
        self.subside()

    def strike(self, number):
        victim = self.crowd[number]
        self.done["kills"] += 1
        victim.kill(block=False)
        if victim.ready():
            self.bury(victim)
            self.crowd[number] = spawn(self.live)

    def bury(self, one):
        if not one.successful():
            self.failures.append("".join(traceback.format_exception(*one.exc_info)))

    def resize(self, size):
        self.done["resizes"] += 1
        self.pool.resize(size)

    def close(self):
        self.done["closes"] += 1
        self.pool.close(timeout=self.random.choice((None, 0.005)))

    def subside(self):
        """Let half of them end, and kill the others in the midst of it."""
        self.over = True
        self.gate.calm()
        if not self.pool_closed():
            self.resize(SIZE)
        gevent.killall(self.crowd[::2], block=False)
        gevent.joinall(self.crowd, timeout=PATIENCE)
        claim(all(one.ready() for one in self.crowd), f"left hanging: {self.pool!r}")
        for one in self.crowd:
            self.bury(one)
        self.crowd = []
        self.until(lambda: not self.children, "a child did not end")
        claim(not self.failures, *self.failures[:3])

    def pool_closed(self):
        return self.pool.closed

    # What must hold.

    def check_bounds(self):
        """Assert what holds at any moment, whatever is under way."""
        pool, gate = self.pool, self.gate
        stats = pool.stats()
        claim(gate.live + gate.creating <= stats.size, "more live than counted", stats, gate)
        claim(gate.creating <= stats.creating, "more in creation than counted", stats, gate)
        claim(0 <= stats.creating <= stats.size <= self.largest, "limit broken", stats)
        claim(stats.idle == len(pool.free_items), "idle are not those on the shelf", stats)
        parts = stats.idle + stats.in_use + stats.between + stats.creating + stats.destroying
        claim(stats.size == parts, "the parts are not the whole", stats)

    def check_books(self):
        """Assert what holds exactly when no collected item is still to be missed."""
        pool, gate, stats = self.pool, self.gate, self.pool.stats()
        self.check_bounds()
        gone = sum(stats.destroyed.values())
        claim(stats.created - gone == stats.size - stats.creating == gate.live, stats, gate)
        claim(stats.created == gate.created, stats, gate)
        claim(gone == gate.destroyed + gate.dropped, stats, gate)
        claim(stats.destroyed.get("collected", 0) == gate.dropped, stats, gate)
        failed = gate.calls["create"] - gate.created - gate.creating
        claim(stats.create_errors == failed, stats, gate, failed)
        claim(stats.leaks >= gate.dropped, stats, gate)
        claim(stats.timeouts == self.told["timeouts"], stats, self.told)
        claim(stats.shed == self.told["shed"], stats, self.told)
        claim(stats.waiting == pool.waiting() == 0, "left in line", pool)
        self.check_items()

    def check_items(self):
        gate = self.gate
        leaks = self.done["leaks"]
        claim(gate.dropped == leaks, f"the program dropped {leaks} items, not the pool", gate)
        claim(not gate.double_uses, *gate.double_uses)
        claim(not gate.double_destroys, *gate.double_destroys)
        claim(gate.peak <= self.largest, "limit broken", gate)
        claim(not self.dirty, f"{self.dirty} items were lent that their user left midway")

    def check_listener(self):
        if self.listener is None:
            return
        heard = self.listener.heard

        def complete():
            stats = self.pool.stats()
            counted = Counter(created=stats.created, shed=stats.shed)
            counted.update({("destroyed", why): n for why, n in stats.destroyed.items()})
            counted.update(timeouts=stats.timeouts, create_errors=stats.create_errors)
            counted.update(leaks=stats.leaks, closed=int(self.pool.closed))
            return +counted == heard

        self.until(complete, "the listener heard other things than were counted")

    def survived(self):
        """Assert that nothing was lost; the pool is closed, or as good as new, then."""
        settle()
        gc.collect()  # of items that were dropped
        settle()
        self.done["creates"] += self.gate.created
        if self.pool_closed():
            self.until(self.empty, "closed, but not empty")
        else:
            self.calm_after_the_storm()
            self.full_check()
            self.come_to_rest()
        self.check_books()
        self.check_listener()
        if self.pool_closed():
            with suppress(PoolClosed):
                self.get()
                claim(False, "a closed pool answers")

    def empty(self):
        return self.pool.current_size == 0 == self.gate.live

    def calm_after_the_storm(self):
        """All who are patient are served; a wake that is lost leaves one of them in line."""
        served = []

        def patient(number):
            for turn in range(3):
                item = self.get_patiently()
                item.use()
                (self.discard if (number + turn) % 2 else self.put)(item)
            served.append(number)

        crowd = [spawn(patient, number) for number in range(PATIENT)]
        gevent.joinall(crowd, timeout=PATIENCE)
        for one in crowd:
            if not one.ready():
                claim(False, f"only {len(served)} of {PATIENT} served: {self.pool!r}", self.pool)
            self.bury(one)
        claim(not self.failures, *self.failures[:3])

    def get_patiently(self, *key):
        while True:
            try:
                return self.get(*key, timeout=None)
            except TURNED_AWAY as failure:
                self.note(failure)
                gevent.sleep(0.001)

    def get(self, **how):
        return self.pool.get(**how)

    def put(self, item):
        self.pool.put(item)

    def discard(self, item):
        self.pool.discard(item)

    def full_check(self):
        """As many gets as the pool is large succeed, and no more items than that live."""
        pool, gate, taken = self.pool, self.gate, []

        def take_all():
            while len(taken) < SIZE:
                taken.append(self.get_patiently())

        taker = spawn(take_all)
        taker.join(PATIENCE)
        if not taker.ready():
            taker.kill()
            claim(False, f"only {len(taken)} of {SIZE} gets succeeded: {pool!r} {gate}")
        claim(taker.successful(), taker.exception)
        claim(len(set(map(id, taken))) == SIZE, "an item was handed out twice", taken)
        claim(not any(item.destroyed for item in taken), "destroyed and handed out", taken)
        claim(self.size() == gate.live == SIZE, "more or fewer live than taken", pool, gate)
        self.check_full(taken)
        for number, item in enumerate(taken):
            (self.discard if number % 2 else self.put)(item)

    def size(self):
        return self.pool.current_size

    def check_full(self, taken):
        stats = self.pool.stats()
        claim(stats.in_use == len(self.pool.holders()) == SIZE, stats)
        claim(self.pool.free() == 0, self.pool)

    def come_to_rest(self):
        def rested():
            for pool in self.pools():
                book = pool._book
                busy = book.going or (book.creator is not None and book.creator.in_flight)
                if busy or pool.waiting() or pool.current_size < self.min_size:
                    return False
            return self.gate.live == self.size()

        self.until(rested, "the creator does not come to rest")

    def until(self, holds, what):
        end = monotonic() + PATIENCE
        while not holds():
            if monotonic() > end:
                stats = [pool.stats() for pool in self.pools()]
                heard = self.listener and self.listener.heard
                claim(False, what, self.pool, self.gate, stats, heard)
            gevent.sleep(0.001)

    # Forks.

    def fork(self):
        """Have a child look whether it is empty and can serve; the parent goes on."""
        self.done["forks"] += 1
        reader, writer = os.pipe()
        pid = gevent.os.fork()
        if pid == 0:
            answer = b"ended by the child's hub"
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(30)
                self.child = True
                self.be_a_child()
                answer = b"well"
            except BaseException:
                answer = traceback.format_exc().encode()
            finally:
                os.write(writer, answer[-60_000:])
                os._exit(0)
        os.close(writer)
        self.children.append(pid)
        spawn(self.await_child, pid, reader)

    def await_child(self, pid, reader):
        ended = 0
        with suppress(ChildProcessError):  # gevent's loop may have taken note already
            while not ended:
                gevent.sleep(0.005)
                if self.child:
                    return
                ended, _ = os.waitpid(pid, os.WNOHANG)
        answer = os.read(reader, 65_536)
        os.close(reader)
        if answer != b"well":
            self.failures.append("in the child: " + (answer.decode() or "no answer"))
        self.children.remove(pid)

    def be_a_child(self):
        self.over = True
        self.gate.calm()
        self.check_child_is_empty()
        if self.pool_closed():
            return
        gevent.joinall(self.crowd, timeout=PATIENCE)
        claim(all(one.ready() for one in self.crowd), f"left hanging: {self.pool!r}")
        self.gate.double_uses.clear()  # these are of the parent's items
        taken = [self.get_patiently() for _ in range(self.pool.max_size)]
        claim(len(set(map(id, taken))) == self.pool.max_size, "an item was handed out twice")
        for item in taken:
            item.use()
            self.put(item)

    def check_child_is_empty(self):
        stats = self.pool.stats()
        busy = (stats.size, stats.idle, stats.in_use, stats.between, stats.creating)
        claim(not any(busy) and not stats.waiting and not stats.created, stats)


class KeyedWatch(Watch):
    """Under a common limit it is enough that somebody is on the way to who is first."""

    def claim(self, number, holds):
        if number == 2 and not holds:
            budget = self.pool()._line.budget
            lines = [keyed.pool._line for keyed in budget._pools.values()] if budget else ()
            holds = budget and (budget._scheduled or any(line._scheduled for line in lines))
        super().claim(number, holds)


class KeyedStorm(GrandStorm):
    """The same over a pool of pools: 30 keys, 5 items in all."""

    def open(self, make):
        dice, gate = self.random, self.gate
        self.resizes, self.largest, self.min_size = False, SIZE, 0
        self.moves = [move for move in self.moves if move != self.get_ready]
        self.listener = None
        settings = some_settings(dice, gate)
        settings["listener"] = None
        shed = settings.pop("shed")
        self.per_key = dice.choice((1, 2, 5))
        slow_to_make = dice.random() < 0.3

        def make_pool(key):
            if slow_to_make and dice.random() < 0.3:
                gevent.sleep(0.0005)
            own = {"shed": CoDel(0.004, 0.02)} if shed else {}
            pool = make(
                max_size=self.per_key, create=partial(gate.create_for, key), **settings, **own
            )
            # Pools come and go; of those that are gone only what was wrong is kept.
            self.watches[:] = [one for one in self.watches if one.pool() or one.violations]
            self.watches.append(KeyedWatch(pool))
            return pool

        self.settings = settings
        self.pool = KeyedPool(make_pool, max_size=SIZE)

    def pools(self):
        return list(self.pool.pools().values())

    def pool_closed(self):
        return self.pool._closed

    def size(self):
        return self.pool.size

    def key(self):
        # A few keys are hot.
        return min(self.random.randrange(KEYS), self.random.randrange(KEYS))

    def resize(self, size):
        pass

    def right(self, item, key):
        claim(item.key == key, f"{key} got an item of {item.key}")
        return item

    def use_item(self):
        key = self.key()
        with self.pool.item(key) as item:
            self.work(self.right(item, key))

    def get_and_put(self):
        key = self.key()
        item = self.right(self.pool.get(key), key)
        try:
            self.work(item)
        except BaseException:
            self.pool.discard(key, item)
            raise
        self.pool.put(key, item)

    def get_and_discard(self):
        key = self.key()
        self.pool.discard(key, self.pool.get(key))
        self.done["gets"] += 1

    def discard_in_block(self):
        key = self.key()
        with self.pool.item(key) as item:
            self.work(item)
            self.pool.discard(key, item)

    def drop(self):
        item = self.pool.get(self.key())
        self.done["leaks"] += 1
        self.work(item)

    def get_two(self):
        key, other_key = self.key(), self.key()
        with self.pool.item(key) as one, self.pool.item(other_key, timeout=0.01) as other:
            claim(one is not other, "one item went out twice")
            self.work(one)
            self.work(other)

    def get(self, key=None, **how):
        return self.pool.get(self.key() if key is None else key, **how)

    def put(self, item):
        self.pool.put(item.key, item)

    def discard(self, item):
        self.pool.discard(item.key, item)

    def full_check(self):
        pass

    def check_bounds(self):
        pool, gate = self.pool, self.gate
        claim(gate.live + gate.creating <= pool.size, "more live than counted", pool, gate)
        claim(pool.size == sum(one.current_size for one in self.pools()), "sizes", pool)
        claim(0 <= pool.size <= SIZE, "limit broken", pool)
        for one in self.pools():
            claim(0 <= one.current_size <= self.per_key, "limit of one key broken", one)
        claim(not (wrong := wrong_in_keys(pool)), *wrong)
        for one in self.pools():
            claim(one.stats().idle == len(one._line.idle), "idle are not those on the shelf", one)

    def check_books(self):
        pool, gate = self.pool, self.gate
        self.check_bounds()
        creating = sum(one.stats().creating for one in self.pools())
        claim(gate.live == pool.size - creating, pool, gate)
        claim(not any(one.waiting() for one in self.pools()), "left in line", pool)
        self.check_items()

    def survived(self):
        super().survived()
        self.pool.recycle()
        if not self.pool_closed():
            keys = count(KEYS)
            self.until(lambda: self.forgotten(next(keys)), "empty pools are not forgotten")
        claim(self.pool.size == 0 == self.gate.live, self.pool, self.gate)
        if not self.pool_closed():
            self.serve_all_keys()

    def forgotten(self, new_key):
        """A key whose server is down is forgotten when another is first used."""
        self.pool.discard(new_key, self.get_patiently(new_key))
        return not self.pools()

    def serve_all_keys(self):
        """5 items for 30 keys: each displaces one that is idle."""
        for key in range(KEYS):
            with Timeout(PATIENCE, AssertionError(f"{key} starves: {self.pool!r}")):
                item = self.get_patiently(key)
            self.right(item, key).use()
            self.put(item)
            claim(0 <= self.pool.size <= SIZE, "limit broken", self.pool)
            claim(self.pool.size == sum(one.current_size for one in self.pools()), self.pool)

    def empty(self):
        return self.pool.size == 0 == self.gate.live

    def check_child_is_empty(self):
        claim(self.pool.size == 0, self.pool)
        claim(not any(one.current_size or one.waiting() for one in self.pools()), self.pool)

    def be_a_child(self):
        self.over = True
        self.gate.calm()
        self.check_child_is_empty()
        if self.pool_closed():
            return
        gevent.joinall(self.crowd, timeout=PATIENCE)
        claim(all(one.ready() for one in self.crowd), f"left hanging: {self.pool!r}")
        self.serve_all_keys()


def storm_of(kind, seed, seconds, watched=True, **how):
    """Raise a storm, and see that it is survived and leaves nothing; return what was done."""
    before = what_is_left()
    storm = kind(seed, **how)
    try:
        endless = AssertionError("something goes on and on, and nothing comes to rest")
        with watching(storm.watches if watched else []), Timeout(6 * PATIENCE + seconds, endless):
            storm.rage(seconds)
            storm.survived()
    except BaseException as failure:
        what = f"{kind.__name__}, seed {seed}, {storm.settings}"
        if not isinstance(failure, Exception):
            raise
        raise AssertionError(what) from failure
    finally:
        storm.over = True
        storm.gate.calm()
    done = storm.done
    # Half of the pools are closed, half are dropped: the one as the other must leave nothing.
    if seed % 2:
        storm.pool.close()
    storm.watches.clear()
    del storm
    end = monotonic() + PATIENCE
    while left := what_is_left() - before:
        claim(monotonic() < end, f"{kind.__name__}, seed {seed} left behind", left)
        gevent.sleep(0.02)  # a timer that is still on its way
    return done
