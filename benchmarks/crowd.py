"""Many greenlets that ask a real server through few connections."""

import time
from contextlib import contextmanager
from importlib.util import find_spec

from benchmarks.harness import Contender
from benchmarks.page import spread


@contextmanager
def crowd(open_client, greenlets, times, option):
    """Let so many *greenlets* each ask so many *times*, by what *open_client* yields."""
    with open_client(option) as ask:
        if option.quick:
            times = 1

        def run():
            waits = []

            def use():
                asked = begun  # all come at once, whenever they get to run
                for _ in range(times):
                    ask()
                    answered = time.perf_counter()
                    waits.append(answered - asked)
                    asked = answered

            begun, cpu = time.perf_counter(), time.process_time()
            option.join([option.spawn(use) for _ in range(greenlets)])
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
    """The contenders of a theme, by name; register them with a call."""

    def __init__(self):
        self.opens = {}
        self.needs = {}
        self.ours = set()

    def __call__(self, name, *needs, ours=False):
        def register(function):
            self.opens[name] = contextmanager(function)
            self.needs[name] = needs
            if ours:
                self.ours.add(name)
            return function

        return register

    def contenders(self, start):
        """Return them all; *start* makes the context of a round from what opens a client."""
        return {
            name: Contender(
                start(open_client),
                missing=tuple(need for need in self.needs[name] if find_spec(need) is None),
            )
            for name, open_client in self.opens.items()
        }

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
        values = [(name, results.median(name, "rate"), name in self.ours) for name in results.names]
        return sorted(values, key=lambda value: -value[1])
