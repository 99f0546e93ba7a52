"""Giving an item to the next in line: one item, and a few greenlets or very many."""

from contextlib import contextmanager
from functools import partial

from benchmarks.harness import Contender, quartiles, timed
from benchmarks.page import Section, better, goal, named, spread, table
from benchmarks.peers import COMPILED, LEAST, LIBRARIES, about, bare_line, opened, semaphore
from benchmarks.plots import bars

FLOOR = "handed over, floor"
ALONE = "the loop alone"
USED = "used by 8, {}"
HANDED = "handed over, {}"


@contextmanager
def handed_over(open_peer, waiters, option):
    """One greenlet gives the item away, turn by turn; *waiters* others take it, and wait again."""
    with open_peer(option) as (get, put, _):
        sleep, taken = option.sleep, []

        def wait():
            while True:
                taken.append(get())

        crowd = [option.spawn(wait) for _ in range(waiters)]
        while not taken:
            sleep(0)

        def loop(turns):
            for _ in range(turns):
                put(taken.pop())
                sleep(0)
                while not taken:
                    sleep(0)

        yield timed(loop, option)
        for waiter in crowd:
            waiter.kill()
        put(taken.pop())


@contextmanager
def used(open_peer, option):
    """Eight greenlets use the item by turns, and switch while they have it and when they do not."""
    with open_peer(option) as (get, put, item):
        sleep = option.sleep

        def use(turns):
            for _ in range(turns):
                with item():
                    sleep(0)
                sleep(0)

        def use_by_hand(turns):
            for _ in range(turns):
                taken = get()
                try:
                    sleep(0)
                finally:
                    put(taken)
                sleep(0)

        def loop(turns):
            user = use_by_hand if item is None else use
            option.join([option.spawn(user, turns // 8 + 1) for _ in range(8)])

        yield timed(loop, option)


@contextmanager
def loop_alone(option):
    """Do what the one that hands over does, without an item."""
    sleep = option.sleep

    def loop(turns):
        for _ in range(turns):
            sleep(0)

    yield timed(loop, option)


def contenders():
    found = {
        ALONE: Contender(loop_alone),
        FLOOR: Contender(partial(handed_over, semaphore, 8)),
        USED.format("floor"): Contender(partial(used, semaphore)),
        HANDED.format(LEAST): Contender(partial(handed_over, bare_line, 8)),
        USED.format(LEAST): Contender(partial(used, bare_line)),
    }
    for name, library in LIBRARIES.items():
        if library.waits and not library.variant:
            open_peer = partial(opened, library)
            found[HANDED.format(name)] = Contender(
                partial(handed_over, open_peer, 8), **about(library)
            )
            found[USED.format(name)] = Contender(partial(used, open_peer), **about(library))
    return found


def report(results):
    rows = []
    for name in ["floor", LEAST, *LIBRARIES]:
        cells = [named(name)]
        for use in (HANDED, USED):
            ratio = results.ratios(use.format(name), use.format("floor"), "ns")
            if ratio is not None:
                cells += [f"{results.median(use.format(name), 'ns') / 1000:.2f}", spread(ratio)]
        if len(cells) > 1:
            rows.append(cells)
    rows.sort(key=lambda cells: float(cells[1]))
    goals = [
        goal(
            f"`{name}`: at most 1.3 times gevent's semaphore",
            results.ratios(HANDED.format(name), FLOOR, "ns"),
            1.3,
        )
        for each in ("Pool", "ConnectionPool")
        for name in (each, COMPILED.format(each))
    ]
    floors, plain, alone = (results.all(use, "ns") for use in (FLOOR, HANDED.format("Pool"), ALONE))
    net = quartiles(
        [(one - two) / (floor - two) for one, floor, two in zip(plain, floors, alone, strict=True)]
    )
    heads = ("pool", "handed over, us", "times the floor", "in use by 8, us", "times the floor")
    text = f"""\
Microseconds of CPU for each time that one item changes hands.
The floor is gevent's `BoundedSemaphore`, written in C.
The least in Python is a deque of greenlets: no limit, no timeout, no kill.

- *handed over*: one greenlet puts the item, and the first of eight in line gets it and waits again.
- *in use by 8*: each of eight greenlets takes it, lets the others run, gives it back, and lets
  the others run again; by `with` where there is one.

Of *handed over* {results.median(ALONE, "ns") / 1000:.2f} are a turn of the hub that the loop itself
takes; without them `Pool` is at {spread(net)} times the floor.

{table(heads, rows)}"""
    values = [(row[0].strip("*"), float(row[2].split()[0]), row[0][0] == "*") for row in rows]
    plot = bars(
        "Handing one item over, 8 greenlets in line",
        "times gevent's semaphore; less is better",
        values,
        ("goal: 1.3", 1.3),
    )
    others = better("Handing an item over", values, "times gevent's semaphore")
    return Section("Hand-over", text, goals, {"handover": plot}, others)
