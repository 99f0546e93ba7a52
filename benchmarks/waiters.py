"""Very many greenlets in line: what each costs, to serve, to kill and to keep."""

import gc
import time
import tracemalloc
from contextlib import contextmanager
from functools import cache, partial, wraps
from itertools import count
from statistics import median

from benchmarks.harness import Contender
from benchmarks.page import Goal, Section, goal, named, spread, table
from benchmarks.peers import LEAST, LIBRARIES, Peer, about, bare_line, opened, semaphore
from benchmarks.plots import lines

LENGTHS = (10, 100, 10_000, 25_000)
KEPT = "memory"
WHO = [
    "Pool",
    "Pool, compiled",
    "ConnectionPool",
    "eventlet.pools",
    "gevent.queue recipe",
    "psycopg_pool",
]
FLOOR = "gevent's semaphore"
BARE = "a greenlet that waits for nothing"
KILLED = 50
WARM = False  # each round sets up anew


def length_of(length, option):
    return min(length, 500) if option.quick else length


def without_collector(run):
    """Keep the garbage collector from looking at so many greenlets again and again."""

    @wraps(run)
    def quiet():
        gc.disable()
        try:
            return run()
        finally:
            gc.enable()

    return quiet


@contextmanager
def in_line(open_peer, length, option):
    """A crowd comes, is served for a while, loses some, and goes."""
    length = length_of(length, option)
    seconds, most = (0.01, 500) if option.quick else (0.15, 20_000)

    @without_collector
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
            turns, begun = 0, time.process_time()
            while (spent := time.process_time() - begun) < seconds and turns < most:
                for _ in range(100):
                    put(taken.pop())
                    sleep(0)
                    while not taken:
                        sleep(0)
                turns += 100
            kills = []
            for victim in crowd[:: max(1, length // KILLED)]:
                begun = time.process_time()
                victim.kill()
                kills.append(time.process_time() - begun)
            # From the front of the line, where those are found soon who must be searched for.
            front = turns % length
            option.kill(crowd[front:] + crowd[:front])
        return {"us": spent / turns * 1e6, "kill": median(kills) * 1e6}

    yield run


@contextmanager
def kept(open_peer, option):
    """Count the memory of a crowd in line."""
    length = length_of(5_000, option)

    @cache  # it is the same each time
    @without_collector
    def run():
        with open_peer(option) as (get, put, _):
            held = get()
            tracemalloc.start()
            crowd = [option.spawn(get) for _ in range(length)]
            option.sleep(0)
            option.sleep(0)
            size = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            option.kill(crowd)
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
    peers = {FLOOR: (semaphore, {}), LEAST: (bare_line, {})}
    for name in WHO:
        library = LIBRARIES[name]
        peers[name] = partial(opened, library), about(library)
    for name, (open_peer, settings) in peers.items():
        for length in LENGTHS[: 3 if name == "psycopg_pool" else 4]:  # it takes too long
            start = partial(in_line, open_peer, length)
            found[f"{length}, {name}"] = Contender(start, **settings)
        if settings.get("process") != "eventlet":
            found[f"{KEPT}, {name}"] = Contender(partial(kept, open_peer), **settings)
    return found


def report(results):
    rows, curves = [], {}
    for name in [FLOOR, LEAST, *WHO]:
        uses = [use for length in LENGTHS if (use := f"{length}, {name}") in results.names]
        if not uses:
            continue
        costs = [results.median(use, "us") for use in uses]
        kills = [results.median(use, "kill") for use in (uses[1], uses[-1])]
        size = "-"
        if (memory := f"{KEPT}, {name}") in results.names:
            size = f"{results.median(memory, 'bytes') - bare_size(results):.0f}"
        rows.append(
            [
                named(name),
                *(f"{cost:.1f}" for cost in costs),
                *["-"] * (len(LENGTHS) - len(costs)),
                spread(results.ratios(uses[-1], uses[0], "us")),
                *(f"{kill:.0f}" for kill in kills),
                size,
            ]
        )
        ours = name in LIBRARIES and LIBRARIES[name].ours
        curves[name] = list(zip(LENGTHS, costs, strict=False)), ours
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
    heads += ("longest / 10", "kill of 100, us", "kill of longest, us", "bytes beyond the greenlet")
    text = f"""\
Microseconds of CPU for each hand-over while so many wait, and for each kill of one of them.
Bytes are counted by `tracemalloc` with 5,000 in line, less the
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
