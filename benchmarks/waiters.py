"""Very many greenlets in line: what each costs, to serve, to kill and to keep."""

import time
import tracemalloc
from contextlib import contextmanager
from functools import partial
from itertools import count

from benchmarks.harness import Contender
from benchmarks.page import Goal, Section, goal, named, spread, table
from benchmarks.peers import LIBRARIES, Peer, about, opened, semaphore
from benchmarks.plots import lines

LENGTHS = (10, 100, 10_000, 25_000)
KEPT = "memory"
WHO = ["Pool", "ConnectionPool", "eventlet.pools", "gevent.queue recipe", "psycopg_pool"]
FLOOR = "gevent's semaphore"
BARE = "a greenlet that waits for nothing"
KILLED = 50


def length_of(length, option):
    return min(length, 500) if option.quick else length


@contextmanager
def in_line(open_peer, length, option):
    """A crowd comes, is served for a while, loses some, and goes."""
    length = length_of(length, option)
    turns = 1000 if option.quick else 15_000

    def run():
        with open_peer(option) as (get, put, _):
            sleep, taken = option.sleep, []

            def wait():
                while True:
                    taken.append(get())

            crowd = [option.spawn(wait) for _ in range(length)]
            while not taken:
                sleep(0)
            sleep(0)
            begun = time.process_time()
            for _ in range(turns):
                put(taken.pop())
                sleep(0)
                while not taken:
                    sleep(0)
            served = time.process_time() - begun
            victims = crowd[:: max(1, length // KILLED)]
            begun = time.process_time()
            for victim in victims:
                victim.kill()
            killed = time.process_time() - begun
            for waiter in crowd:
                waiter.kill()
        return {"us": served / turns * 1e6, "kill": killed / len(victims) * 1e6}

    yield run


@contextmanager
def kept(open_peer, option):
    """Count the memory of a crowd in line."""
    length = length_of(10_000, option)

    def run():
        with open_peer(option) as (get, put, _):
            held = get()
            tracemalloc.start()
            crowd = [option.spawn(get) for _ in range(length)]
            option.sleep(0)
            option.sleep(0)
            size = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            for waiter in crowd:
                waiter.kill()
            put(held)
        return {"bytes": size / length}

    yield run


@contextmanager
def nothing(option):
    """Open what is no pool: all but the first who ask wait in the hub for ever."""
    from gevent import get_hub

    asked = count()
    yield Peer(lambda: next(asked) and get_hub().switch(), lambda _: None)


def contenders():
    found = {f"{KEPT}, {BARE}": Contender(partial(kept, nothing))}
    peers = {FLOOR: (semaphore, {})}
    for name in WHO:
        library = LIBRARIES[name]
        peers[name] = partial(opened, library), about(library)
    for name, (open_peer, settings) in peers.items():
        for length in LENGTHS:
            start = partial(in_line, open_peer, length)
            found[f"{length}, {name}"] = Contender(start, **settings)
        if settings.get("process") != "eventlet":
            found[f"{KEPT}, {name}"] = Contender(partial(kept, open_peer), **settings)
    return found


def report(results):
    rows, curves = [], {}
    for name in [FLOOR, *WHO]:
        uses = [f"{length}, {name}" for length in LENGTHS]
        if uses[0] not in results.names:
            continue
        costs = [results.median(use, "us") for use in uses]
        kills = [results.median(use, "kill") for use in (uses[1], uses[-1])]
        growth = results.ratios(uses[-1], uses[0], "us")
        size = "-"
        if (memory := f"{KEPT}, {name}") in results.names:
            size = f"{results.median(memory, 'bytes') - bare_size(results):.0f}"
        rows.append(
            [named(name), *(f"{cost:.1f}" for cost in costs), spread(growth)]
            + [*(f"{kill:.0f}" for kill in kills), size]
        )
        points = list(zip(LENGTHS, costs, strict=True))
        curves[name] = points, name in LIBRARIES and LIBRARIES[name].ours
    goals = []
    for name in ("Pool", "ConnectionPool"):
        ends = [f"{length}, {name}" for length in LENGTHS]
        goals += [
            goal(
                f"`{name}`: a hand-over with 25,000 in line at most 1.3 times one with 10",
                results.ratios(ends[-1], ends[0], "us"),
                1.3,
            ),
            goal(
                f"`{name}`: to kill one of 25,000 costs what killing one of 100 does, within 1.5",
                results.ratios(ends[-1], ends[1], "kill"),
                1.5,
            ),
        ]
        extra = results.median(f"{KEPT}, {name}", "bytes") - bare_size(results)
        what = f"`{name}`: at most 1,000 bytes for a waiter beyond the greenlet itself"
        goals.append(Goal(what, f"{extra:.0f}", extra <= 1000))
    heads = ("pool", *(f"{length:,} in line, us" for length in LENGTHS))
    heads += ("25,000 / 10", "to kill one of 100, us", "of 25,000, us", "bytes beyond the greenlet")
    text = f"""\
Microseconds of CPU for each hand-over while so many wait, and for each kill of one of them.
Bytes are counted by `tracemalloc` with 10,000 in line, less the
{bare_size(results):.0f} of a gevent greenlet that waits for nothing.

{table(heads, rows)}"""
    plot = lines(
        "Handing over while many wait",
        "greenlets in line",
        "microseconds of CPU for a hand-over",
        curves,
    )
    return Section("Very many in line", text, goals, {"waiters": plot})


def bare_size(results):
    return results.median(f"{KEPT}, {BARE}", "bytes")
