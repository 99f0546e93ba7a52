"""Connections that are slow to make: a spike of callers, and many made at once."""

import time
from contextlib import contextmanager
from functools import partial

from benchmarks.harness import Contender, quartiles
from benchmarks.page import Goal, Section, better, named, spread, table
from benchmarks.peers import LIBRARIES, Maker, about
from benchmarks.plots import bars

SPIKE, AT_ONCE = "spike, {}", "at once, {}"
CALLERS, READY, CONNECT, USE = 50, 5, 0.150, 0.002
MADE, MAKING = 10, 0.100
WARM = False  # each round sets up anew


@contextmanager
def spike(library, option):
    """Fifty callers come at once, and five connections are ready."""

    def run():
        make = Maker()
        with library.open(make, CALLERS, READY) as (get, put, _):
            make.connect = partial(option.sleep, CONNECT)

            def call():
                item = get()
                try:
                    option.sleep(USE)
                finally:
                    put(item)

            begun = time.perf_counter()
            option.join([option.spawn(call) for _ in range(CALLERS)])
            spent = time.perf_counter() - begun
            option.sleep(CONNECT * 1.5)  # until what is being made is made
            return {"ms": spent * 1000, "items": make.made}

    yield run


@contextmanager
def at_once(library, option):
    """Ten callers come at once, and keep what they get until all have one."""

    def run():
        make = Maker(partial(option.sleep, MAKING))
        with library.open(make, MADE, 0) as (get, put, _):
            items = []
            begun = time.perf_counter()
            option.join([option.spawn(lambda: items.append(get())) for _ in range(MADE)])
            spent = time.perf_counter() - begun
            for item in items:
                put(item)
            return {"ms": spent * 1000, "items": make.made}

    yield run


def contenders():
    found = {}
    for name, library in LIBRARIES.items():
        if library.creates and library.waits and library.process != "compiled":
            # It makes one after the other, for which everybody waits: 7 s.
            if name != "DBUtils PooledDB":
                found[SPIKE.format(name)] = Contender(partial(spike, library), **about(library))
            found[AT_ONCE.format(name)] = Contender(partial(at_once, library), **about(library))
    return found


def report(results):
    rows, values = [], []
    for name in LIBRARIES:
        cells, uses = [named(name)], (SPIKE.format(name), AT_ONCE.format(name))
        if uses[1] not in results.names:
            continue
        for use in uses:
            there = use in results.names
            cells += [f"{results.median(use, 'ms'):.0f}" if there else "-"]
            if use == uses[0]:
                cells += [max(results.all(use, "items")) if there else "-"]
        rows.append(cells)
        if uses[0] in results.names:
            values.append((name, results.median(uses[0], "ms"), LIBRARIES[name].ours))
    ours = SPIKE.format("ConnectionPool, max_creating=2")
    most, middle = max(results.all(ours, "items")), results.median(ours, "ms")
    goals = [
        Goal(
            f"the spike, `max_creating=2`: done in less than one connect, {CONNECT * 1000:.0f} ms",
            f"{spread(quartiles(results.all(ours, 'ms')), 0)} ms",
            middle < CONNECT * 1000,
        ),
        Goal("the same: at most 7 items", str(most), most <= 7),
    ]
    for name in ("Pool", "ConnectionPool", "ConnectionPool, max_creating=max_size"):
        spent = quartiles(results.all(AT_ONCE.format(name), "ms"))
        what = f"{MADE} made at once, `{name}`: about {MAKING * 1000:.0f} ms in all, within 1.2"
        goals.append(Goal(what, f"{spread(spent, 0)} ms", spent[0] <= MAKING * 1200))
    heads = ("pool", "spike, ms", "items", "ten at once, ms")
    text = f"""\
Spike, after an analysis of HikariCP's: {CALLERS} callers come at once and use a connection for
{USE * 1000:.0f} ms each; {READY} are idle, {CALLERS} are allowed, and one takes
{CONNECT * 1000:.0f} ms to make.
Items: how many there are in the end; the fewer, the better for the server.
Ten at once: {MADE} callers find no connection, and one takes {MAKING * 1000:.0f} ms to make.

{table(heads, rows)}
DBUtils makes one connection after the other while all wait, and is left out of the spike."""
    plot = bars(
        f"{CALLERS} callers, {READY} connections idle, {CONNECT * 1000:.0f} ms to make one",
        "milliseconds until all are done; less is better",
        sorted(values, key=lambda value: value[1]),
        ("one connect", CONNECT * 1000),
    )
    fewest = [(name, results.median(SPIKE.format(name), "items"), ours) for name, _, ours in values]
    others = better("A spike", values, "ms")
    others += better("A spike", fewest, "items in the end")
    return Section("Creating", text, goals, {"creating": plot}, others)
