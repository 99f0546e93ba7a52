"""Machine instructions of the uncontended loops, counted by valgrind: the same each time.

Run as a program, under valgrind, it forks a process for each loop and each of
two lengths.  What valgrind says of one, less what it says of the other, is the
loop's own.
"""

import json
import os
import posix
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack

from benchmarks import compiled
from benchmarks.harness import ROOT
from benchmarks.page import Goal, Section, named, table
from benchmarks.peers import COMPILED, LEAST, LIBRARIES
from benchmarks.uncontended import AGED, BLOCK, FLOOR, PAIR, PLAIN, loops
from benchmarks.worker import patch

SHORT, LONG = 200, 1200
PEERS = ("eventlet.pools", "gevent.queue recipe", "psycopg_pool", "redis BlockingConnectionPool")
VALGRIND = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]


def measure(quick):
    """Return the instructions of one turn by loop, or None where there is no valgrind."""
    if shutil.which("valgrind") is None:
        return None
    asked = {}
    for name, (_, library) in loops().items():
        if library is not None and library.process == "compiled":
            if not quick and not library.missing():
                asked.setdefault("compiled", []).append(name)
        elif library is None or (not quick and library.ours) or name.endswith(", Pool"):
            asked.setdefault("nothing" if quick else "gevent", []).append(name)
        elif not quick and name.endswith(PEERS) and not library.missing():
            asked.setdefault(library.process, []).append(name)
    programs = [start(process, names) for process, names in asked.items()]  # at once
    return {name: number for program in programs for name, number in counted(program)}


def start(process, names):
    return subprocess.Popen(
        [*VALGRIND, sys.executable, "-m", "benchmarks.instructions", process, *names],
        cwd=compiled.checkout() if process == "compiled" else ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counted(program):
    said, complaints = program.communicate(timeout=300)
    if program.returncode:
        raise RuntimeError(complaints)
    collected = dict(re.findall(r"^==(\d+)== Collected : (\d+)", complaints, re.MULTILINE))
    for name, short, long in map(json.loads, said.splitlines()):
        yield name, (int(collected[str(long)]) - int(collected[str(short)])) / (LONG - SHORT)


def fork(loop, turns):
    # Not those of os, which are patched: the hub has no part in this.
    if (pid := posix.fork()) == 0:
        loop(turns)
        os._exit(0)
    posix.waitpid(pid, 0)
    return pid


def report(counts):
    if counts is None:
        text = "Not counted: valgrind is not installed.\n"
        return Section("Instructions", text, [Goal("instructions", "not measured", None)], {})
    rows = []
    for name in ["floor", LEAST, *LIBRARIES]:
        uses = [FLOOR, None] if name == "floor" else [BLOCK.format(name), PAIR.format(name)]
        if counts.keys() & set(uses):
            cells = []
            for use in uses:
                number = counts.get(use)
                cells += [f"{number:,.0f}", f"{number / counts[FLOOR]:.2f}"] if number else "--"
            rows.append((named(name), *cells))
    goals = []
    for what, name, other, limit in (
        (
            "`with pool.item()`, `Pool`: at most 1.3 times the floor's",
            BLOCK.format("Pool"),
            FLOOR,
            1.3,
        ),
        ("`ConnectionPool` with ages and check: at most 2.5 times the floor's", AGED, FLOOR, 2.5),
        (
            "`Pool`, compiled: at most 1.3 times the floor's",
            COMPILED.format(PLAIN),
            FLOOR,
            1.3,
        ),
        (
            "`ConnectionPool` with ages and check, compiled: at most 2.5 times the floor's",
            COMPILED.format(AGED),
            FLOOR,
            2.5,
        ),
    ):
        if name in counts:
            ratio = counts[name] / counts[other]
            goals.append(Goal(what, f"{ratio:.2f}", ratio <= limit))
    heads = ("pool", "with", "times the floor", "get and put", "times the floor")
    text = f"""\
Machine instructions for taking an idle item and giving it back, counted by
`valgrind --tool=callgrind`: the loop with {LONG:,} turns less the one with {SHORT}.
They are the same in each run to within one in a hundred, however busy the machine is,
but they are not time.

{table(heads, rows)}"""
    return Section("Instructions", text, goals, {})


def main(process, *names):
    if process == "nothing":
        from gevent import get_hub

        get_hub()
    else:
        patch(process)
    opens = loops()
    with ExitStack() as stack:
        for name in names:
            loop = stack.enter_context(opens[name][0]())
            loop(100)  # until the interpreter has specialized it
            print(json.dumps([name, fork(loop, SHORT), fork(loop, LONG)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
