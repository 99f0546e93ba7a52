"""Run tests while their processes are stopped for a moment, again and again.

    python -m tests.jolts [--seed N] tests/test_storm.py -q ...

A busy machine does this to any test, but seldom; here each of its processes
(the tests', their workers', their servers') loses up to half a second at
random.  A test that fails wants luck, or has found something; or it froze a
server that stood still already, and that went on with the end of the jolt.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

SHORTEST, LONGEST = 0.002, 0.5  # seconds


def processes():
    """Return the state and the parent of each process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            found[int(stat.parent.name)] = state, int(parent)
    return found


def victims(root):
    """Return the processes below *root*, itself too, that nobody has stopped."""
    found, below = processes(), {root}
    for pid in sorted(found):
        if found[pid][1] in below:
            below.add(pid)
    return [pid for pid in below if found.get(pid, "T")[0] not in "TZ"]


def moment(chance):
    """Return some seconds, as often from 2 to 20 ms as from 20 to 200."""
    return SHORTEST * (LONGEST / SHORTEST) ** chance.random()


def jolt(root, chance):
    """Stop the tests, or half of the time any process of theirs."""
    pid = chance.choice([root, chance.choice(victims(root) or [root])])
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(moment(chance))
        os.kill(pid, signal.SIGCONT)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.randrange(1000000))
    options, arguments = parser.parse_known_args()
    print(f"jolts: seed {options.seed}", flush=True)
    chance = random.Random(options.seed)
    tests = subprocess.Popen([sys.executable, "-m", "pytest", *arguments])
    while tests.poll() is None:
        jolt(tests.pid, chance)
        time.sleep(2 * moment(chance))
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
