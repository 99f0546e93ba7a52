"""Taking an item that is idle, and giving it back: nobody waits, nothing switches."""

from collections import deque
from contextlib import contextmanager
from functools import partial

from benchmarks.harness import Contender, timed
from benchmarks.page import Section, better, goal, named, spread, table
from benchmarks.peers import COMPILED, LEAST, LIBRARIES, Dummy, Least, Maker, about
from benchmarks.plots import bars

FLOOR = "floor"
BLOCK = "with, {}"
PAIR = "get and put, {}"
HAVE_A_BLOCK = ["eventlet.pools", "psycopg_pool", "pymemcache ObjectPool", "DBUtils PooledDB"]


@contextmanager
def floor():
    from gevent.lock import BoundedSemaphore

    semaphore, items = BoundedSemaphore(1), deque([Dummy()])

    def loop(turns):
        for _ in range(turns):
            with semaphore:
                items.append(items.pop())

    yield loop


@contextmanager
def least():
    items = deque([Dummy()])

    def loop(turns):
        for _ in range(turns):
            with Least(items):
                pass

    yield loop


@contextmanager
def block(library):
    with library.open(Maker(), 10, 10) as peer:
        item = peer.item

        def loop(turns):
            for _ in range(turns):
                with item():
                    pass

        yield loop


@contextmanager
def pair(library):
    with library.open(Maker(), 10, 10) as peer:
        get, put = peer.get, peer.put

        def loop(turns):
            for _ in range(turns):
                put(get())

        yield loop


def loops():
    """Return what opens each loop, and the library that it needs."""
    found = {FLOOR: (floor, None), BLOCK.format(LEAST): (least, None)}
    for name, library in LIBRARIES.items():
        if library.variant:
            continue
        if library.ours or name in HAVE_A_BLOCK:
            found[BLOCK.format(name)] = partial(block, library), library
        found[PAIR.format(name)] = partial(pair, library), library
    return found


@contextmanager
def measured(open_loop, option):
    with open_loop() as loop:
        yield timed(loop, option)


def contenders():
    return {
        name: Contender(partial(measured, open_loop), **about(library))
        for name, (open_loop, library) in loops().items()
    }


PLAIN = BLOCK.format("Pool")
AGED = BLOCK.format("ConnectionPool, ages and check")


def report(results):
    rows, values = [], []
    for name in [LEAST, *LIBRARIES]:
        if PAIR.format(name) not in results.names and name != LEAST:
            continue
        cells = [named(name)]
        for use in (BLOCK.format(name), PAIR.format(name)):
            if (ratio := results.ratios(use, FLOOR, "ns")) is None:
                cells += ["-", "-"]
            else:
                cells += [f"{results.median(use, 'ns'):.0f}", spread(ratio)]
        rows.append(cells)
    for use in results.names:
        ours = any(each.ours and use.endswith(f", {name}") for name, each in LIBRARIES.items())
        values.append((use, results.ratios(use, FLOOR, "ns")[0], ours))
    values.sort(key=lambda value: value[1])

    def ratio(one, other):
        return results.ratios(one, other, "ns")

    slow = [
        use for use in results.names if any(name in use for name in ("psycopg", "redis", "SQLA"))
    ]
    eventlet = BLOCK.format("eventlet.pools")
    goals = []
    for how in ("{}", COMPILED):
        kind, plain, aged = how.format("`Pool`"), how.format(PLAIN), how.format(AGED)
        goals += [
            goal(f"with, {kind}: at most 1.3 times the floor", ratio(plain, FLOOR), 1.3),
            goal(
                f"{kind}: at least 4 times as fast as eventlet's", ratio(eventlet, plain), least=4
            ),
            goal(
                f"with, {how.format('`ConnectionPool` with ages and check')}: "
                "at most 2.5 times the floor",
                ratio(aged, FLOOR),
                2.5,
            ),
            goal(
                "the same: at least 5 times as fast as the nearest of psycopg_pool, redis-py's "
                "and SQLAlchemy's",
                min((ratio(use, aged) for use in slow if ratio(use, aged)), default=None),
                least=5,
            ),
        ]
    goals += [
        goal(
            "`get` and `put`, `Pool`: at most eventlet's",
            ratio(PAIR.format("Pool"), PAIR.format("eventlet.pools")),
            1.0,
        ),
    ]
    heads = ("pool", "with, ns", "times the floor", "get and put, ns", "times the floor")
    text = f"""\
Nanoseconds of CPU for taking an idle item and giving it back.
The floor, {results.median(FLOOR, "ns"):.0f} ns, is what any correct pool on gevent pays:
`with` gevent's `BoundedSemaphore`, in which an item is taken from a deque and put back.
The least in Python is a `with` block of a class of four lines that does the same, without a
semaphore, a limit, or anything else.
Ten items are idle and nothing ever switches.

{table(heads, rows)}"""
    plot = bars("Taking an idle item and giving it back", "times the floor; less is better", values)
    others = better("Taking an idle item and giving it back", values, "times the floor")
    return Section("Uncontended", text, goals, {"uncontended": plot}, others)
