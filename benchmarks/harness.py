"""Runs the contenders of a theme in turn, round by round, and compares what they say.

All run in one run: in each round each has its turn, in an order that is
different each time, and ratios are taken within a round.  What disturbs the
machine for a while disturbs all of them.
"""

import json
import random
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks import compiled

ROOT = Path(__file__).resolve().parent.parent
HANG = 120.0  # seconds for one round


class Contender(NamedTuple):
    """Who takes part in a theme."""

    start: Callable  # with the options of the worker; a context of a function that runs a round
    process: str = "gevent"
    missing: tuple[str, ...] = ()  # modules that are not installed


def timed(loop, option):
    """Make a round of *loop*, called with a number of turns; it returns nanoseconds of CPU a turn.

    The time of the process, so that what else runs on the machine does not count.
    """
    seconds = 0.001 if option.quick else 0.006
    turns = 10
    while True:
        begun = time.process_time()
        loop(turns)
        spent = time.process_time() - begun
        if spent > seconds / 2:
            break
        turns *= 2
    turns = max(1, int(turns * seconds / spent))

    def run():
        loop(turns // 10)
        begun = time.process_time()
        loop(turns)
        return {"ns": (time.process_time() - begun) / turns * 1e9}

    return run


class Worker:
    """A process of `benchmarks.worker`."""

    def __init__(self, process, theme, settings):
        command = [sys.executable, "-m", "benchmarks.worker", process, theme, json.dumps(settings)]
        where = compiled.checkout() if process == "compiled" else ROOT
        self.process = subprocess.Popen(
            command, cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def round(self, name):
        with suppress(BrokenPipeError):  # it ended: then it does not answer either
            print(json.dumps(name), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], HANG)[0]:
            raise RuntimeError(f"{name} hung for {HANG:.0f} s")
        answer = json.loads(self.process.stdout.readline() or '{"error": "its process ended"}')
        if "error" in answer:
            raise RuntimeError(f"{name}: {answer['error']}")
        return answer["result"]

    def close(self):
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextmanager
def workers(theme, contenders, settings):
    """Start a worker for each kind of process that *contenders* need."""
    running = {}
    try:
        for contender in contenders.values():
            if contender.process not in running:
                running[contender.process] = Worker(contender.process, theme, settings)
        yield running
    finally:
        for worker in running.values():
            worker.close()


class Results:
    """What each contender said in each round."""

    def __init__(self, rounds, missing):
        self.rounds = rounds
        self.missing = missing  # who did not take part: what was not installed

    @property
    def names(self):
        return list(self.rounds[0])

    def all(self, name, key):
        return [each[name][key] for each in self.rounds]

    def median(self, name, key):
        return statistics.median(self.all(name, key))

    def ratios(self, name, other, key):
        """Return the median of the ratios of the rounds, and the quartiles around it.

        None if one of the two did not take part.
        """
        if name not in self.rounds[0] or other not in self.rounds[0]:
            return None
        pairs = zip(self.all(name, key), self.all(other, key), strict=True)
        return quartiles([one / two for one, two in pairs])


def quartiles(values):
    """Return the median of *values*, the lower and the upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def run(theme, seconds, settings, count=None):
    """Run the contenders of *theme*, a module, for about so many *seconds*, three rounds at least.

    With quick settings, one round.  *count*, if given, is called before and after
    each round; by how much it grew is in the result as "counted".
    """
    name = theme.__name__.rpartition(".")[2]
    everybody = theme.contenders()
    missing = {who: each.missing for who, each in everybody.items() if each.missing}
    contenders = {
        who: each
        for who, each in everybody.items()
        if not each.missing and not (settings["quick"] and each.process == "compiled")
    }
    order, rounds = list(contenders), []
    dice = random.Random(1)
    with workers(name, contenders, settings) as running:

        def turn(who):
            before = count() if count else 0
            result = running[contenders[who].process].round(who)
            return result | ({"counted": count() - before} if count else {})

        # The first sets everything up; only what it counted is kept.
        first = {who: turn(who) for who in order}
        if settings["quick"]:
            return Results([first], missing)
        if not getattr(theme, "WARM", True):
            rounds.append(first)
        end = time.monotonic() + seconds
        while len(rounds) < 3 or time.monotonic() < end:
            dice.shuffle(order)
            results = {who: turn(who) for who in order}
            rounds.append({who: results[who] for who in contenders})
        for who, result in first.items() if count else ():
            rounds[0][who]["counted"] += result["counted"]
    return Results(rounds, missing)
