"""A scheduler for tests that runs gevent in every order in which gevent might run.

A `Scenario` is a pool, two to four greenlets, each with a short script, and a
factory whose verbs may switch or fail.  `explore` runs it once for every
schedule, depth first: a run follows a prefix of choices and takes the first
option from there on; the next prefix differs in the last choice that has
another option.  It stops at the first schedule in which a claim of the pools
does not hold, and tells who did what, with a key that replays it.

The hub, greenlets, Timeout, Event, sleep and kill are gevent's own, and so is
all code of the pools.  Only the loop is ours (`Loop`).  What gevent promises
about its loop, and thus what the loop here does:

- Callbacks (`run_callback`: a kill, the end of `sleep(0)`, `_serve`, an Event
  that notifies) run in the order in which they were scheduled.  One that was
  stopped does nothing.
- Watchers (timers, sockets) call back in the loop, between batches of
  callbacks, in any order.  gevent ends a batch when no callback is left, but
  also after any 50 callbacks that took longer than the switch interval; in a
  program with other things to do that is between any two callbacks.  So, with
  `busy`, an event may come between any two callbacks, as often and in any
  order; without it only when no batch is under way.
- A timer that is active may fire at any time, before any other: durations are
  not modelled.  A pause of a script or of a verb is such a timer too, and
  stands for a socket that becomes ready.
- The clock of the pools (`time.monotonic`) moves a little whenever it is read,
  to its deadline when a timer fires, and when a script says so (`World.age`).
  There is no chance: jitter is always a half.
- The sweeper of a pool sleeps and wakes without end, so it is woken by its timer
  at most *sweeps* times.
- A script starts when an event says so, for arrivals come from sockets.
- A kill from outside throws between any two callbacks.  That it has been
  scheduled earlier makes no difference to anybody, and every position is
  taken; what does differ, its place in the queue behind what the killer did
  just before, is for scripts that kill (`World.kill`).

The verbs' choices (`Scenario.verbs`) are choice points like any other.

One reduction: of scripts that are the same function, the first starts first.
A pool cannot tell two such greenlets apart, so each schedule left out is one
that was run, with the names swapped.

Not covered: exceptions between two bytecodes (signals), threads, garbage
collected at an arbitrary moment (collection is off during a run), real time.
"""

import gc
import logging
import random
import re
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import gevent
from gevent import Greenlet, GreenletExit, Timeout, getcurrent
from gevent._hub_local import set_hub
from gevent.event import Event
from gevent.hub import Hub, get_hub

import gpools
from tests.watching import wrong_in_keys

__all__ = ["CutOff", "Result", "Scenario", "World", "explore", "replay", "sample", "virtual_time"]


TICK = 1e-6  # seconds between two looks at the clock

# Who looks at the clock, and who rolls dice.
CLOCKED = ("_creator", "_fast", "_line", "_sweeper", "connection", "keyed")
CHANCED = ("_creator", "connection")


KEYS = {"a": 1, "b": 1}  # of a KeyedPool: how many of each can be taken at once


def is_place(greenlet):
    """Tell whether a greenlet that stands in line is but a place that is kept for somebody."""
    return not greenlet and not greenlet.dead


class Callback:
    """What `run_callback` returns."""

    __slots__ = ("args", "callback")

    def __init__(self, callback, args):
        self.callback = callback
        self.args = args

    def stop(self):
        self.callback = self.args = None

    close = stop

    def __bool__(self):
        return self.args is not None

    @property
    def pending(self):
        return self.callback is not None


class Watcher:
    """A timer, or an idle watcher: started, it stands in its loop's dict *where*."""

    __slots__ = ("after", "args", "callback", "deadline", "label", "loop", "owner", "where")

    def __init__(self, loop, where, after):
        self.loop = loop
        self.where = where
        self.after = after
        self.callback = self.args = self.label = self.owner = None

    def start(self, callback, *args, update=None):
        self.callback = callback
        self.args = args
        self.owner = getcurrent()
        self.deadline = self.loop.time + self.after
        self.where[self] = None

    def stop(self):
        self.callback = self.args = None
        self.where.pop(self, None)

    close = stop

    def fire(self):
        callback, args = self.callback, self.args
        self.stop()
        callback(*args)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    @property
    def active(self):
        return self.callback is not None

    pending = active


class Loop:
    """As much of gevent's loop as pools and those who use them touch.

    This one keeps virtual time: what is scheduled runs at once and in order,
    and then the clock jumps to the next timer.
    """

    error_handler = None
    approx_timer_resolution = 0.0

    def __init__(self):
        self.time = 0.0
        self.queue = deque()  # callbacks in the order in which they were scheduled
        self.timers = {}  # active ones in the order in which they were started
        self.idlers = {}

    def run_callback(self, callback, *args):
        scheduled = Callback(callback, args)
        self.queue.append(scheduled)
        return scheduled

    run_callback_threadsafe = run_callback

    def timer(self, after, repeat=0.0, ref=True, priority=None):
        return Watcher(self, self.timers, after)

    def idle(self, ref=True, priority=None):
        return Watcher(self, self.idlers, 0)

    def now(self):
        return self.time

    def monotonic(self):
        self.time += TICK
        return self.time

    def update_now(self):
        pass

    def _format(self):
        return f"{len(self.queue)} callbacks, {len(self.timers)} timers"

    def run_next_callback(self):
        scheduled = self.queue.popleft()
        callback, scheduled.callback = scheduled.callback, None
        if callback is not None:
            callback(*scheduled.args)
            scheduled.args = None

    def run(self):
        while True:
            try:
                if self.queue:
                    self.run_next_callback()
                elif self.idlers:
                    next(iter(self.idlers)).fire()
                elif self.timers:
                    watcher = min(self.timers, key=lambda timer: timer.deadline)
                    self.time = max(self.time, watcher.deadline)
                    watcher.fire()
                else:
                    return
            except Exception as error:
                self.error_handler.handle_error("callback", type(error), error, error.__traceback__)


@contextmanager
def hub_on(loop, hub_class=Hub):
    """Have gevent use *loop* in this thread for the length of the block."""
    real = get_hub()
    hub = hub_class(loop=loop)
    set_hub(hub)
    try:
        yield hub
    finally:
        set_hub(real)


@contextmanager
def replaced(lib, names, what, by):
    """Have modules of the package *lib* use something else for the length of the block."""
    modules = [getattr(lib, name) for name in names]
    usual = [getattr(module, what) for module in modules]
    for module in modules:
        setattr(module, what, by)
    try:
        yield
    finally:
        for module, thing in zip(modules, usual, strict=True):
            setattr(module, what, thing)


def half():
    return 0.5


@contextmanager
def clock_of(loop, lib):
    """Have the pools of *lib* read the clock of *loop*, and leave nothing to chance."""
    with (
        replaced(lib, CLOCKED, "monotonic", loop.monotonic),
        replaced(lib, CHANCED, "random", half),
    ):
        yield


@contextmanager
def virtual_time():
    """Let gevent and the pools run on a clock that jumps from timer to timer.

    No sleep takes time, and nothing is left to chance.
    """
    loop = Loop()
    with clock_of(loop, gpools), hub_on(loop) as hub:
        yield hub.loop


class Item:
    """What a pool of a `World` pools; it knows what is being done with it."""

    __slots__ = ("__weakref__", "epoch", "gone", "holder", "number", "spoiled", "verb")

    def __init__(self, number, epoch):
        self.number = number
        self.epoch = epoch  # so many recycles had been when it was begun
        self.holder = None  # the actor that uses it
        self.verb = None  # being checked, reset or destroyed
        self.spoiled = False  # nobody may have it any more
        self.gone = False

    def __repr__(self):
        return f"item {self.number}"


class CutOff(BaseException):
    """What a script's own Timeout raises, to tell it from all others."""


class Actor:
    """One greenlet of a scenario and what is known of it."""

    __slots__ = (
        "__weakref__",
        "greenlet",
        "key",
        "name",
        "script",
        "started",
        "thrown",
        "ticket",
        "took",
    )

    def __init__(self, name, script, greenlet):
        self.name = f"{name}:{script.__name__}"
        self.script = script
        self.greenlet = greenlet
        self.started = False
        self.ticket = 0  # of its last get: gets are numbered as they come
        self.key = None  # of its last get, from a KeyedPool
        self.took = False  # something from the pool, in its last get
        self.thrown = []  # into it, from outside


@dataclass(frozen=True)
class Scenario:
    """A pool and those who use it.

    *pool* is called with the `World` and makes the pool; each of *scripts* is
    called with the World in a greenlet of its own.  *verbs* names for create,
    check, reset and destroy what a call may do: words out of ``ok slow raise
    timeout exit never refuse none``, done in order.  The first stands for itself,
    any other costs one of *faults*.  At most *kills* greenlets are killed from
    outside, out of *killable* (numbers of scripts; all, if None), by a kill or,
    with *by_timeout*, by a Timeout of somebody else.  The pool's sweeper is
    woken by its timer at most *sweeps* times.
    """

    name: str
    pool: object
    scripts: tuple
    verbs: dict = field(default_factory=dict)
    faults: int = 0
    kills: int = 0
    killable: tuple | None = None
    by_timeout: bool = False
    busy: bool = True
    sweeps: int = 0


class Choices:
    """A path through the tree of schedules: a prefix that is given, then the default."""

    def __init__(self, prefix=(), rng=None):
        self.path = list(prefix)  # (choice, out of how many)
        self.depth = 0
        self.rng = rng

    def choose(self, width):
        if width == 1:
            return 0
        if self.depth < len(self.path):
            choice, known = self.path[self.depth]
            if known is not None and known != width:
                raise RuntimeError(f"not deterministic: {known} options became {width}")
        else:
            choice = self.rng.randrange(width) if self.rng else 0
            self.path.append((choice, width))
        self.depth += 1
        return choice

    def following(self):
        """Return the prefix of the next path, depth first; None after the last."""
        path = self.path
        while path:
            choice, width = path.pop()
            if choice + 1 < width:
                path.append((choice + 1, width))
                return path
        return None

    DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

    @property
    def key(self):
        return "".join(self.DIGITS[choice] for choice, _ in self.path).rstrip("0") or "0"

    @classmethod
    def of(cls, key):
        return cls([(cls.DIGITS.index(digit), None) for digit in key])


class World:
    """One run of a scenario: what scripts call, the factory, and the claims."""

    MAX_STEPS = 400

    def __init__(self, scenario, loop, choices, lib=gpools, trace=None):
        self.scenario = scenario
        self.loop = loop
        self.choices = choices
        self.lib = lib
        self.trace = trace
        self.failure = None
        self.forgiving = False  # items survive an Exception in their block
        self.calm = False  # verbs do the first of what they may, at once
        self.in_batch = False
        self.faults = scenario.faults
        self.kills = scenario.kills
        self.created = self.creating = self.destroyed = self.dropped = self.held = 0
        self.tickets = 0
        self.epoch = 0  # recycles so far
        self.sweeps = scenario.sweeps
        self.items = []
        self.busy = scenario.busy
        self.actors = []
        self.by_greenlet = {}
        for number, script in enumerate(scenario.scripts):
            greenlet = Greenlet(self._play, script)
            actor = Actor("abcdefg"[number], script, greenlet)
            self.actors.append(actor)
            self.by_greenlet[greenlet] = actor
        self.killable = [
            self.actors[number]
            for number in (
                range(len(self.actors)) if scenario.killable is None else scenario.killable
            )
        ]
        self.made_aside = False  # by pools with max_creating
        self.most = 0  # items that may ever exist
        self.pool = scenario.pool(self)
        self.most = self.pool.max_size
        self.keyed = isinstance(self.pool, lib.KeyedPool)
        self.plain = not self.keyed and not isinstance(self.pool, lib.ConnectionPool)

    # What scripts call.

    def pause(self, label="pause"):
        """Wait for something outside, as for the answer of a server."""
        if self.calm:
            return
        with self.loop.timer(0) as timer:
            timer.label = label
            get_hub().wait(timer)

    def get(self, *key, **options):
        self._ask(*key)
        return self._taken(self.pool.get(*key, **options))

    def put(self, item):
        self._let_go(item, "put")
        self.pool.put(item)

    def discard(self, item):
        self._let_go(item, "discard")
        item.spoiled = True
        self.pool.discard(item)

    def item(self, *key, **options):
        return Use(self, self.pool.item(*key, **options), key)

    def drop(self, item):
        """Forget *item*, as a program does that loses it; the caller must too."""
        self._let_go(item, "drops")
        self.items.remove(item)
        self.dropped += 1

    def age(self, seconds):
        self.note(f"lets {seconds} s pass")
        self.loop.time += seconds

    def recycle(self):
        self.note("recycles")
        self.epoch += 1
        self.pool.recycle()

    def kill(self, number):
        """Have another script killed, as `Greenlet.kill(block=False)` does."""
        target = self.actors[number]
        self.note(f"kills {target.name}")
        if target.started:
            target.thrown.append(GreenletExit)
            target.greenlet.kill(block=False)

    def stray(self, number):
        """Have another script switched to out of turn, if it waits in line by then."""
        greenlet = self.actors[number].greenlet

        def switch():
            if greenlet in self.line():
                self.note(f"stray switch to {self.actors[number].name}")
                greenlet.switch("stray")

        self.loop.run_callback(switch)

    def resize(self, size):
        self.note(f"resizes to {size}")
        self.most = max(self.most, size)
        self.pool.resize(size)

    def close(self, **options):
        self.note("closes")
        return self.pool.close(**options)

    # The factory.

    def create(self):
        self._took()
        if self.made_aside and getcurrent() in self.by_greenlet:
            self.fail("create runs in the greenlet of a caller")
        epoch = self.epoch
        self.creating += 1
        if self.most and self.exist() > self.most:  # else the pool is being made
            self.fail(f"creates an item too many: {self.books()}")
        try:
            none = self._behave("create", None) is None
        finally:
            self.creating -= 1
        if none:
            return None
        self.created += 1
        item = Item(self.created, epoch)
        self.items.append(item)
        return item

    def check(self, item):
        self._took()
        return self._verb("check", item) is not False

    def reset(self, item):
        self._verb("reset", item)

    def destroy(self, item):
        try:
            self._verb("destroy", item)
        finally:  # however it ended, it is not called again
            item.gone = True
            self.destroyed += 1

    def _verb(self, verb, item):
        if item.gone or item.holder or item.verb or (item.spoiled and verb != "destroy"):
            self.fail(f"{verb} of {item}: {self._state(item)}")
        item.verb = verb
        good = False
        try:
            good = self._behave(verb, item)
            return good
        finally:
            item.verb = None
            item.spoiled = item.spoiled or not good

    def _behave(self, verb, item):
        allowed = self.scenario.verbs.get(verb, ("ok",))
        choice = 0
        if self.faults and len(allowed) > 1 and not self.calm:
            choice = self.choices.choose(len(allowed))
            self.faults -= choice > 0
        what = "ok" if self.calm else allowed[choice]
        name = verb if item is None else f"{verb} of {item}"
        self.note(f"{name}: {what}")
        for word in what.split():
            if word == "slow":
                self.pause(name)
            elif word == "raise":
                raise OSError(verb)
            elif word == "timeout":
                raise Timeout(None, verb)
            elif word == "exit":
                raise GreenletExit(verb)
            elif word == "never":
                Event().wait()
            elif word == "refuse":
                return False
            elif word == "none":
                return None
        return True

    # Claims.  They are noted, not raised: whoever calls may catch everything.

    def fail(self, message):
        message = re.sub("0x[0-9a-f]+", "0x...", message)  # for a replay says the same
        self.note(f"FAILS: {message}")
        if self.failure is None:
            self.failure = message

    def note(self, message):
        if self.trace is not None:
            actor = self.by_greenlet.get(getcurrent())
            self.trace.append(f"        {actor.name if actor else 'pool'}: {message}")

    def exist(self):
        """Count the items that there are and those being made."""
        if self.plain:  # which lets items go without a word
            return len(self.pool._line.idle) + self.held + self.creating
        return self.created - self.destroyed - self.dropped + self.creating

    @property
    def closed(self):
        return self.pool._closed if self.keyed else not self.plain and self.pool.closed

    def pools(self):
        """Return the connection pools that there are."""
        if self.plain:
            return []
        return list(self.pool.pools().values()) if self.keyed else [self.pool]

    def _size(self):
        return sum(pool.current_size for pool in self.pools())

    def books(self):
        return (
            f"{self.created} created, {self.destroyed} destroyed, {self.creating} being created, "
            f"{self.held} held; {self.pool!r}"
        )

    def line(self):
        """Return the greenlets in line, first come first."""
        return list(self._line.waiters)

    @property
    def _line(self):
        return self.pool._line

    def _who(self, greenlet):
        """Return the actor who stands in line as *greenlet*, be it a place that is kept for him."""
        return self.by_greenlet.get(greenlet) or self.by_greenlet.get(greenlet.parent)

    def _state(self, item):
        if item.gone:
            return "it is gone"
        if item.verb:
            return f"in {item.verb}"
        return f"held by {item.holder.name}" if item.holder else "it is spoiled"

    def _ask(self, key=None):
        actor = self.by_greenlet.get(getcurrent())
        if actor is not None:
            self.tickets += 1
            actor.ticket = self.tickets
            actor.key = key
            actor.took = False
        self.note("get" if key is None else f"get {key!r}")

    def _took(self):
        """The greenlet that runs has just taken an item or a slot: did it overtake?"""
        actor = self.by_greenlet.get(getcurrent())
        if actor is None:
            return
        actor.took = True
        pool = self.pool.pools()[actor.key] if self.keyed else self.pool
        for greenlet in pool._line.waiters:
            earlier = self._who(greenlet)
            if earlier is not None and earlier.ticket < actor.ticket:
                self.fail(f"{actor.name} overtakes {earlier.name}")

    def _taken(self, item):
        actor = self.by_greenlet.get(getcurrent())
        if item is None or item.gone or item.holder or item.verb or item.spoiled:
            self.fail(f"got {item}: {item and self._state(item)}")
        if self.closed:
            self.fail(f"got {item} from a closed pool")
        if item is not None and item.epoch < self.epoch:
            self.fail(f"got {item} from before a recycle")
        if actor is not None and not actor.took:
            self._took()
        self.note(f"got {item}")
        item.holder = actor or self
        self.held += 1
        return item

    def _let_go(self, item, how):
        self.note(f"{how} {item}")
        if item.holder is (self.by_greenlet.get(getcurrent()) or self):
            item.holder = None
            self.held -= 1

    def _check(self):
        """Assert the invariants of `gpools._line`, in the hub, where nobody else runs."""
        exist = self.exist()
        if self.plain:
            line = self.pool._line
            if exist != line.size or exist > self.most:
                self.fail(f"the size is wrong (invariant 1): {self.books()}")
            if line.waiters:
                self._check_line(line)
            return
        for pool in self.pools():
            line = pool._line
            for item in line.idle:
                if item.holder or item.verb or item.gone or item.spoiled:
                    self.fail(f"{item} is idle, and yet: {self._state(item)}")
                if item.epoch < self.epoch and not self.keyed:
                    self.fail(f"{item} is idle, and from before a recycle")
            if line.waiters:
                self._check_line(line)
                self._check_creator(pool)
        size = self._size()
        if exist > size or exist > self.most:
            self.fail(f"the size is wrong (invariant 1): {self.books()}")
        if self.keyed and not size == self.pool.size <= self.most:
            self.fail(f"the keys have {size} slots, and yet: {self.books()}")
        if self.keyed:
            self._check_keys()

    def _check_keys(self):
        """Assert that the keys are known, and that idle items make way for those who wait."""
        if wrong := wrong_in_keys(self.pool):
            self.fail("; ".join(wrong))
        budget, lines = self.pool._budget, [pool._line for pool in self.pools()]
        spare = any(line.idle and not line.waiters for line in lines)
        if spare and budget._wanted > budget._coming() and not self._seen_to(lines[0]):
            self.fail(f"an idle item does not make way: {self.books()}")

    def _check_line(self, line):
        first = next(iter(line.waiters))
        served = line.idle or line.room() or line.errors or line.refusal is not None
        if served and not is_place(first) and not self._seen_to(line):
            self.fail(f"waits while something is to be had (invariant 2): {self.books()}")
        last = None
        for greenlet in line.waiters:
            actor = self._who(greenlet)
            if actor is None:
                continue
            if is_place(greenlet):
                if not self._scheduled(actor.greenlet.switch):
                    self.fail(f"a place is kept for {actor.name}, who is not on the way")
            elif greenlet.dead:
                self.fail(f"{actor.name} is dead and stands in line")
            if last is not None and actor.ticket < last.ticket:
                self.fail(f"{last.name} stands before {actor.name} (invariant 3)")
            last = actor

    def _check_creator(self, pool):
        """Assert that a creation is under way where one can be, or an alarm is set for it."""
        line, creator = pool._line, pool._book.creator
        if creator is None or line.refusal is not None or creator._alarm is not None:
            return
        if is_place(next(iter(line.waiters))) or self._seen_to(line):
            return
        if any(self._scheduled(creation.switch) for creation in self.loop.creations):
            return  # it looks when it is back
        if creator._missing(pool) and line.open():
            self.fail(f"somebody waits and nobody creates: {self.books()}")

    def _seen_to(self, line):
        """Tell whether the hub is about to look at *line*, or at one under the same limit."""
        if line.budget is None:
            return self._scheduled(line._serve)
        looks = ("_serve", "_go_on")
        return any(getattr(s.callback, "__name__", None) in looks for s in self.loop.queue)

    def _scheduled(self, callback):
        return any(scheduled.callback == callback for scheduled in self.loop.queue)

    # The scheduler, in the hub.

    def run(self):
        steps = 0
        while self.failure is None and self._step():
            self._check()
            steps += 1
            if steps > self.MAX_STEPS:
                self.fail("no end in sight")
        if self.failure is None:
            self._finish()

    def _step(self):
        loop = self.loop
        queue = loop.queue
        while queue and queue[0].callback is None:
            queue.popleft()
        self.in_batch = self.in_batch and bool(queue)
        if self.in_batch and not self.busy:
            self._run_callback()
            return True
        timers = self._timers()
        starts = self._starts()
        if not (queue or timers or starts):
            for actor in self.actors:
                if not actor.greenlet.dead:
                    self.fail(f"{actor.name} sleeps for ever; {self.books()}")
            return False
        targets = (
            [a for a in self.killable if a.started and not a.greenlet.dead] if self.kills else ()
        )
        callbacks = 1 if queue else 0
        choice = self.choices.choose(callbacks + len(timers) + len(starts) + len(targets))
        if choice < callbacks:
            self._run_callback()
            return True
        choice -= callbacks
        if choice < len(timers):
            self._fire(timers[choice])
            return True
        choice -= len(timers)
        if choice < len(starts):
            self._start(starts[choice])
        else:
            self._throw(targets[choice - len(starts)])
        return True

    def _timers(self):
        """Return the timers that may fire."""
        return [t for t in self.loop.timers if self.sweeps or not self._of_sweeper(t)]

    def _of_sweeper(self, timer):
        # In its greenlet the alarm of a creator may be set too, which must ring.
        return timer.owner in self.loop.sweepers and timer.callback.__name__ == "set"

    def _starts(self):
        starts = []
        for actor in self.actors:
            if not actor.started and not any(a.script is actor.script for a in starts):
                starts.append(actor)
        return starts

    def _run_callback(self):
        self.in_batch = True
        if self.trace is not None:
            callback = self.loop.queue[0].callback
            self.trace.append(f"callback {getattr(callback, '__qualname__', callback)}")
        self._guard(self.loop.run_next_callback)

    def _fire(self, timer):
        if self.trace is not None:
            owner = self.by_greenlet.get(timer.owner)
            what = timer.label or f"timer of {timer.after} s"
            self.trace.append(f"event: {what} ends, of {owner.name if owner else 'the pool'}")
        self.loop.time = max(self.loop.time, timer.deadline)
        self.sweeps -= self._of_sweeper(timer)
        self._guard(timer.fire)

    def _start(self, actor):
        if self.trace is not None:
            self.trace.append(f"event: {actor.name} starts")
        actor.started = True
        self._guard(actor.greenlet.switch)

    def _throw(self, actor):
        error = Timeout() if self.scenario.by_timeout else GreenletExit()
        if self.trace is not None:
            self.trace.append(f"event: {type(error).__name__} hits {actor.name}")
        self.kills -= 1
        actor.thrown.append(type(error))
        self._guard(lambda: actor.greenlet.throw(error))

    def _guard(self, act):
        try:
            act()
        except Exception as error:
            self.fail(f"the hub got {error!r}")

    def _play(self, script):
        """Run a script in its greenlet and judge how it ends."""
        actor = self.by_greenlet[getcurrent()]
        errors = self.lib
        ended = None
        try:
            script(self)
        except errors.PoolTimeout:
            ended = errors.PoolTimeout
        except errors.PoolClosed:
            ended = errors.PoolClosed
            if not self.closed:
                self.fail(f"{actor.name} got PoolClosed from an open pool")
        except errors.PoolFull:
            ended = errors.PoolFull
        except errors.PoolUnavailable as error:
            ended = errors.PoolUnavailable
            if not self.keyed and any(not i.gone and i.verb != "destroy" for i in self.items):
                self.fail(f"{actor.name} is refused, and yet: {self.books()}; {error}")
        except errors.PoolError as error:
            ended = errors.PoolError
            if not re.search(r"returned None|create\(\) was ended by", str(error)):
                self.fail(f"{actor.name} ends with {error!r}")
        except OSError as error:
            ended = OSError
            if error.args != ("create",):
                self.fail(f"{actor.name} got the error of {error}")
        except CutOff:
            ended = CutOff
        except (GreenletExit, Timeout) as error:
            ended = type(error)
            verb = error.exception if ended is Timeout else error.args and error.args[0]
            if verb == "destroy" or not (verb or ended in actor.thrown):
                self.fail(f"{actor.name} got a {ended.__name__} that was not meant for it")
        except Exception as error:
            ended = type(error)
            self.fail(f"{actor.name} ends with {error!r}")
        self.note("ends" if ended is None else f"ends with {ended.__name__}")
        if actor.thrown and actor.thrown[-1] is not ended:
            self._swallowed(actor, ended)

    def _swallowed(self, actor, ended):
        # A script that was killed while it was ending anyway may end either way,
        # so only one that comes to a good end has lost the kill.
        if ended is None and not self._pending_kill(actor):
            self.fail(f"{actor.name} was killed and yet goes on")

    def _pending_kill(self, actor):
        return any(
            scheduled.callback is not None and actor.greenlet in scheduled.args
            for scheduled in self.loop.queue
        )

    # The full check.

    def _finish(self):
        """Assert that the pool is as good as new, with a factory that works."""
        if self.trace is not None:
            self.trace.append("full check")
        left = [timer.owner for timer in self.loop.timers if not self._of_sweeper(timer)]
        if left:
            self.fail(f"timers are left: {left}")
        self.calm = True
        if self.held:
            self.fail(f"the scenario itself still holds items: {self.books()}")
        self.loop.time += 1000  # whoever waits to try again has waited
        if self.plain:
            self._take_and_put_all(self.pool.max_size)
            return
        closed = self.closed
        for pool in () if closed else self.pools():
            if pool._book.creator is not None and len(pool._book.items) < pool.min_size:
                self.fail(f"fewer than min_size: {self.books()}")
        for key, size in KEYS.items() if self.keyed else {None: self.pool.max_size}.items():
            if not closed and self.failure is None:
                self._take_and_put_all(size, *() if key is None else (key,))
        if self.failure is None:
            self._close_and_count()

    def _take_and_put_all(self, size, *key):
        taken = []
        taker = Greenlet(self._take_all, size, taken, key)
        taker.start()
        self._drain()
        if not taker.dead or len(taken) != size:
            self.fail(f"only {len(taken)} of {size} gets succeed: {self.books()}")
            taker.throw(GreenletExit)
            return
        if len(set(map(id, taken))) != size:
            self.fail("an item was handed out twice")
        pool = self.pool.pools()[key[0]] if key else self.pool
        if pool.waiting():
            self.fail(f"somebody still stands in line: {self.books()}")
        live = self.created - self.destroyed - self.dropped
        if self.keyed:  # other keys have items too
            size = self.pool.size
        if not self.plain and not live == self._size() == size:
            self.fail(f"{size} items out, and yet: {self.books()}")
        for item in taken:
            self._let_go(item, "put")
            pool.put(item)
        self._drain()
        if pool.free() != pool.max_size:
            self.fail(f"all are put back, and yet: {self.books()}")

    def _take_all(self, size, taken, key):
        while len(taken) < size:
            taken.append(self.get(*key))

    def _close_and_count(self):
        """Close the pools, which ends their sweepers; nothing may be left."""
        pools = self.pools()
        if not self.closed:
            closer = Greenlet(self.pool.close)
            closer.start()
            self._drain()
        self._check()
        if self.created != self.destroyed + self.dropped or self.loop.timers:
            self.fail(f"closed, and yet: {self.books()}, {self.loop.timers}")
        for pool in pools:
            stats = pool.stats()
            gone = sum(stats.destroyed.values())
            if stats.size or stats.created != gone or (not self.keyed and gone != self.created):
                self.fail(f"{self.created} created, and yet: {stats}")
            if pool._book.creator is not None and pool._book.creator.in_flight:
                self.fail(f"{pool._book.creator.in_flight} are in flight and none is")

    def _drain(self):
        for _ in range(self.MAX_STEPS):
            if not self.loop.queue:
                return
            self._guard(self.loop.run_next_callback)
        self.fail("no end in sight")


class Use:
    """`with world.item() as item:`, which is `with pool.item() as item:` with accounts kept."""

    __slots__ = ("block", "item", "key", "world")

    def __init__(self, world, block, key):
        self.world = world
        self.block = block
        self.key = key

    def __enter__(self):
        self.world._ask(*self.key)
        self.item = self.world._taken(self.block.__enter__())
        return self.item

    def __exit__(self, kind, error, traceback):
        world, item = self.world, self.item
        world._let_go(item, "leaves the block of")
        if kind is not None and not world.plain:
            item.spoiled = not issubclass(kind, Exception) or not world.forgiving
        return self.block.__exit__(kind, error, traceback)


@dataclass
class Result:
    """What came of exploring a scenario."""

    scenario: str
    schedules: int
    complete: bool  # every schedule was run
    seconds: float
    failure: str | None = None
    key: str | None = None
    trace: list | None = None

    def __str__(self):
        how = "all" if self.complete else "some"
        text = f"{self.scenario}: {self.schedules} schedules ({how}), {self.seconds:.1f} s"
        if self.failure is None:
            return text
        steps = "\n".join(self.trace)
        return f"{text}\nreplay key {self.key!r}: {self.failure}\n{steps}"


class ExploredLoop(Loop):
    """Runs one world after the other; between two of them the main greenlet goes on."""

    world = None

    def __init__(self):
        super().__init__()
        self.sweepers = set()
        self.creations = []

    def spawn_of_sweeper(self, run, *args):
        self.sweepers.add(gevent.spawn_raw(run, *args))

    def spawn_creation(self, run, *args):
        self.creations.append(gevent.spawn_raw(run, *args))

    def run(self):
        main = get_hub().parent
        while True:
            self.world.run()
            main.switch()


class ExploredHub(Hub):
    """A hub that reports the errors of greenlets to the world that runs."""

    def handle_error(self, context, kind, error, traceback):
        if issubclass(kind, Exception):
            self.loop.world.fail(f"{context} died of {error!r}")
        else:
            self.parent.throw(kind, error, traceback)


class Explorer:
    """Runs schedules of one scenario after each other on one hub."""

    COLLECT_EVERY = 100

    def __init__(self, scenario, lib):
        self.scenario = scenario
        self.lib = lib
        self.loop = ExploredLoop()
        self.schedules = 0
        self.graveyard = []  # worlds whose greenlets could not be ended

    @contextmanager
    def ready(self):
        """Have gevent use the explorer's hub; keep collector, log and greenlet tree out of it."""
        log = logging.getLogger("gpools")
        config = gevent.config
        tree, config.track_greenlet_tree = config.track_greenlet_tree, False
        disabled, log.disabled = log.disabled, True
        collecting = gc.isenabled()
        gc.disable()
        gc.freeze()
        try:
            with (
                clock_of(self.loop, self.lib),
                replaced(self.lib, ("_sweeper",), "spawn_raw", self.loop.spawn_of_sweeper),
                replaced(self.lib, ("_creator",), "spawn_raw", self.loop.spawn_creation),
                hub_on(self.loop, ExploredHub) as self.hub,
            ):
                yield
                self.hub.throw(GreenletExit)
        finally:
            gc.unfreeze()
            if collecting:
                gc.enable()
            log.disabled = disabled
            config.track_greenlet_tree = tree

    def run(self, choices, trace=None):
        """Run one schedule and return what failed, or None."""
        self.loop.__init__()
        world = self.loop.world = World(self.scenario, self.loop, choices, self.lib, trace)
        self.hub.switch()
        if world.failure is not None:
            self._bury(world)
        self.schedules += 1
        if self.schedules % self.COLLECT_EVERY == 0:
            self.loop.world = None
            gc.collect()
        return world.failure

    def _bury(self, world):
        # Greenlets that never end would be thrown into when they are collected, and
        # would then run code of the pool in the middle of another schedule.
        self.graveyard.append(world)
        world.trace = None
        world.calm = True

        def end_all():
            for actor in world.actors:
                for _ in range(5):
                    if actor.started and not actor.greenlet.dead:
                        world._guard(lambda g=actor.greenlet: g.throw(GreenletExit))
            # The pool may be collected long after this hub is gone, and would then wake
            # its sweeper, whose end would go to the main greenlet, wherever that waits.
            for greenlet in (*self.loop.sweepers, *self.loop.creations):
                if not greenlet.dead:
                    world._guard(lambda g=greenlet: g.throw(GreenletExit))
            world._drain()

        world.run = end_all
        self.hub.switch()

    def result(self, complete, since, failure=None, choices=None):
        result = Result(
            self.scenario.name, self.schedules, complete, perf_counter() - since, failure
        )
        if failure is not None:
            result.key = choices.key
            result.trace = []
            self.run(Choices(choices.path), result.trace)
        return result


def explore(scenario, lib=gpools, most=None, seconds=None):
    """Run every schedule of *scenario*, or the first *most*, or for so many *seconds*.

    Stops at the first that fails.  *lib* is the package whose pools are made.
    """
    explorer = Explorer(scenario, lib)
    since = perf_counter()
    prefix = []
    with explorer.ready():
        while prefix is not None:
            if most is not None and explorer.schedules >= most:
                return explorer.result(False, since)
            if seconds is not None and perf_counter() - since > seconds:
                return explorer.result(False, since)
            choices = Choices(prefix)
            failure = explorer.run(choices)
            if failure is not None:
                return explorer.result(False, since, failure, choices)
            prefix = choices.following()
        return explorer.result(True, since)


def sample(scenario, lib=gpools, most=1000, seconds=None, seed=0):
    """Run *most* schedules of *scenario* picked at random, or as many as *seconds* allow."""
    explorer = Explorer(scenario, lib)
    since = perf_counter()
    rng = random.Random(seed)
    with explorer.ready():
        while explorer.schedules < most or (seconds and perf_counter() - since < seconds):
            choices = Choices(rng=rng)
            failure = explorer.run(choices)
            if failure is not None:
                return explorer.result(False, since, failure, choices)
        return explorer.result(False, since)


def replay(scenario, key, lib=gpools):
    """Run the one schedule of *scenario* that *key* names."""
    explorer = Explorer(scenario, lib)
    since = perf_counter()
    with explorer.ready():
        choices = Choices.of(key)
        result = explorer.result(False, since)
        result.trace = []
        result.key = key
        result.failure = explorer.run(choices, result.trace)
        result.schedules = 1
        return result
