"""Ten greedy greenlets and one item: each asks again as soon as it has given it back."""

from contextlib import contextmanager
from functools import partial

from benchmarks.harness import Contender
from benchmarks.page import Goal, Section, named, table
from benchmarks.peers import LIBRARIES, about, opened, semaphore

FLOOR = "gevent's semaphore"
USERS, TURNS = 10, 2000


@contextmanager
def greedy(open_peer, option):
    with open_peer(option) as (get, put, _):

        def use(counts, number):
            while sum(counts) < TURNS:
                item = get()
                try:
                    counts[number] += 1
                    option.sleep(0)
                finally:
                    put(item)

        def run():
            counts = [0] * USERS
            option.join([option.spawn(use, counts, number) for number in range(USERS)])
            return {"least": min(counts), "most": max(counts)}

        yield run


def contenders():
    found = {FLOOR: Contender(partial(greedy, semaphore))}
    for name, library in LIBRARIES.items():
        if library.waits and not library.variant:
            found[name] = Contender(partial(greedy, partial(opened, library)), **about(library))
    return found


def report(results):
    rows, worst = [], {}
    for name in results.names:
        pairs = zip(results.all(name, "least"), results.all(name, "most"), strict=True)
        least, most = min(pairs, key=lambda pair: pair[0] / pair[1])
        worst[name] = least / most
        rows.append((named(name), least, most, f"{worst[name]:.3f}"))
    rows.sort(key=lambda row: -float(row[3]))
    goals = [
        Goal(f"`{name}`: least over most at least 0.95", f"{worst[name]:.3f}", worst[name] >= 0.95)
        for name in ("Pool", "ConnectionPool")
    ]
    text = f"""\
{TURNS:,} turns of {USERS} greenlets with one item: how often the one that had it least and the
one that had it most had it, in the worst of {len(results.rounds)} rounds.

{table(("pool", "least", "most", "least / most"), rows)}"""
    return Section("Fairness", text, goals, {})
