"""Many greenlets that ask a real server through few connections."""

import time
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice

from benchmarks import compiled
from benchmarks.harness import Contender
from benchmarks.page import spread
from benchmarks.peers import COMPILED

NO_POOL = "no pool, a connection each"


@contextmanager
def crowd(open_client, greenlets, times, each, option):
    """Let so many *greenlets* each ask so many *times*, by what *open_client* yields.

    They share that, or have one for *each*.
    """
    with ExitStack() as stack:
        asks = [stack.enter_context(open_client(option)) for _ in range(greenlets if each else 1)]
        if option.quick:
            times = max(1, times // 20)

        def run():
            waits = []

            def use(ask):
                asked = begun  # all come at once, whenever they get to run
                for _ in range(times):
                    ask()
                    answered = time.perf_counter()
                    waits.append(answered - asked)
                    asked = answered

            begun, cpu = time.perf_counter(), time.process_time()
            option.join([option.spawn(use, ask) for ask in islice(cycle(asks), greenlets)])
            spent, cpu = time.perf_counter() - begun, time.process_time() - cpu
            waits.sort()
            return {
                "rate": len(waits) / spent,
                "cpu": cpu / len(waits) * 1e6,
                "p50": waits[len(waits) // 2] * 1000,
                "p99": waits[len(waits) * 99 // 100] * 1000,
            }

        yield run


class Clients:
    """The contenders of a theme, by name; register them with a call.

    A crowd of so many *greenlets* asks so many *times* each, through so many *connections*.
    Of NO_POOL as many greenlets as connections ask as often as all of these together.
    """

    def __init__(self, greenlets, connections, times):
        self.greenlets = greenlets
        self.connections = connections
        self.times = times
        self.opens = {}
        self.needs = {}
        self.ours = set()
        self.compiled = {}  # name of a client whose core is compiled: the one it is like

    def also_compiled(self, *names):
        """Register the same clients once more, on the compiled core."""
        for name in names:
            self.compiled[COMPILED.format(name)] = name
            self.ours.add(COMPILED.format(name))

    def __call__(self, name, *needs, ours=False):
        def register(function):
            self.opens[name] = contextmanager(function)
            self.needs[name] = needs
            if ours:
                self.ours.add(name)
            return function

        return register

    def contenders(self):
        found = {}
        for name, open_client in self.opens.items():
            size = (self.greenlets, self.times, False)
            if name == NO_POOL:
                each = self.greenlets * self.times // self.connections
                size = (self.connections, each, True)
            missing = tuple(need for need in self.needs[name] if find_spec(need) is None)
            found[name] = Contender(partial(crowd, open_client, *size), missing=missing)
        for name, like in self.compiled.items():
            missing = found[like].missing + compiled.missing()
            found[name] = found[like]._replace(process="compiled", missing=missing)
        return found

    def named(self, name):
        return f"**{name}**" if name in self.ours else name

    def rows(self, results, base, *more):
        """Write a row for each, the fastest first; *base* is who the rates are compared with."""
        rows = []
        for name in sorted(results.names, key=lambda name: -results.median(name, "rate")):
            rate, cpu, p50, p99 = (
                f"{results.median(name, key):.0f}" for key in ("rate", "cpu", "p50", "p99")
            )
            rates, cpus = (spread(results.ratios(name, base, key)) for key in ("rate", "cpu"))
            counts = [sum(results.all(name, key)) for key in more]
            rows.append((self.named(name), rate, rates, cpu, cpus, p50, p99, *counts))
        return rows

    def bars(self, results):
        """Return the rates of those that are a crowd."""
        values = [
            (name, results.median(name, "rate"), name in self.ours)
            for name in results.names
            if name != NO_POOL
        ]
        return sorted(values, key=lambda value: -value[1])
