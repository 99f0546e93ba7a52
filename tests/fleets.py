"""Worker processes on one fleet pool, and a checker that does not ask the pool.

Each worker writes down when it had which token; afterwards the overlaps are
counted.  What a killed worker had ends when it was killed.  What is lost stops
being *valid* when the worker was told, or, if it was frozen, when the last lease
that it had written down was over.
"""

import inspect
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from hashlib import sha1
from pathlib import Path

from gevent import select

from gpools.fleet import _link
from tests.servers import DIE_WITH_PARENT, ROOT
from tests.waiting import until

__all__ = [
    "RIGHTS",
    "RIGHTS_IN_A_CLUSTER",
    "Fleet",
    "most_at_once",
    "without",
    "without_in_script",
]

# As the page names them: a block, and those that a cluster needs in the line after it.
PAGE = (ROOT / "docs" / "fleet.md").read_text()
RIGHTS = re.search(r"^```\n(\+hello .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1].split()
RIGHTS_IN_A_CLUSTER = re.findall(
    r"`([^`]*)`", re.search("^In a cluster also (.*)$", PAGE, re.MULTILINE)[1]
)[0].split()


class Fleet:
    """Workers that use the pool *name* on a server."""

    def __init__(self, server, name, directory, size=8, lease=1.0, **told):
        self.server, self.name, self.size, self.lease = server, name, size, lease
        settings = {"lease": lease} | told.pop("settings", {})
        self.told = {"name": name, "size": size, "settings": settings}
        self.told |= {"greenlets": 10, "hold": 0.02} | told
        self.directory, self.events, self.workers, self.logs = Path(directory), [], [], 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
            worker.stdout.close()

    def start(self, count=1, url=None):
        """Start workers and wait until they run."""
        started = []
        for _ in range(count):
            self.logs += 1
            told = self.told | {
                "url": url or self.server.url,
                "log": str(self.directory / f"{self.logs}.log"),
            }
            launcher = [sys.executable, "-ISc", DIE_WITH_PARENT, str(os.getpid())]
            worker = [sys.executable, "-m", "tests.fleet_worker", json.dumps(told)]
            started.append(
                subprocess.Popen([*launcher, *worker], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            )
        self.workers += started
        for worker in started:
            assert readline(worker) == "ready\n"
        return started

    def alive(self):
        return [worker for worker in self.workers if worker.poll() is None]

    def kill9(self, worker=None):
        """Kill one, at random if none is given."""
        worker = worker or random.choice(self.alive())
        worker.kill()
        worker.wait()
        self.events.append(("K", worker.pid, time.monotonic_ns()))

    def freeze(self, worker):
        self.events.append(("F", worker.pid, time.monotonic_ns()))
        os.kill(worker.pid, signal.SIGSTOP)

    def thaw(self, worker):
        os.kill(worker.pid, signal.SIGCONT)

    def stop(self):
        """End all workers well; return the mismatches of I5 that they counted."""
        alive = self.alive()
        for worker in alive:
            worker.terminate()
        answers = [json.loads(readline(worker)) for worker in alive]
        for worker in alive:
            worker.wait()
        return sum(answer["mismatches"] for answer in answers)

    def record(self):
        """Return all that was written down, in order of time."""
        lines = []
        for path in self.directory.glob("*.log"):
            for line in path.read_text().splitlines():
                words = line.split()
                if len(words) == 4:
                    lines.append((words[0], int(words[1]), words[2], int(words[3])))
        return sorted(lines, key=lambda line: line[3])

    def uses(self):
        return sum(line[0] == "A" for line in self.record())

    def held_by(self, worker):
        whats = [line[0] for line in self.record() if line[1] == worker.pid]
        return whats.count("A") - whats.count("R")

    def most(self, valid=True):
        return most_at_once(self.record(), self.events, self.lease if valid else None)

    def last_use(self):
        return max(line[3] for line in self.record() if line[0] == "A")


def readline(worker, timeout=30):
    until(lambda: select.select([worker.stdout], [], [], 0)[0], timeout=timeout)
    return worker.stdout.readline()


def most_at_once(record, events, lease=None):
    """Count how many tokens were in use at once, at most; with *lease*, only while valid."""
    killed = {pid: at for what, pid, at in events if what == "K"}
    frozen = []  # pid, since when, until when its tokens were valid
    for what, pid, at in events if lease else ():
        if what == "F":
            latest = at + int(lease * 1e9)
            known = [end for kind, p, _, end in record if (kind, p) == ("D", pid)]
            frozen.append((pid, at, max((end for end in known if end < latest), default=latest)))
    begun, changes = {}, []
    for what, pid, fence, at in record:
        key = (pid, fence)
        if what == "A":
            begun[key] = at
        elif key in begun and (what == "R" or lease):
            changes.append((begun.pop(key), at, pid))
    changes += [(at, killed.get(pid, 1 << 62), pid) for (pid, _), at in begun.items()]
    moments = []
    for start, end, pid in changes:
        for other, since, cut in frozen:
            if other == pid and start < since < cut < end:
                end = cut
        moments += [(start, 1), (end, -1)]
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def without(monkeypatch, owner, name, guard, instead):
    """Take a *guard* out of a function of this process, for a negative control."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(guard) == 1
    source = "from __future__ import annotations\n" + source.replace(guard, instead)
    made = {}
    exec(compile(source, f"<{name} without a guard>", "exec"), function.__globals__, made)
    monkeypatch.setattr(owner, name, made[name])


def without_in_script(monkeypatch, guard, instead):
    """Take a *guard* out of the script that this process sends, for a negative control."""
    assert guard.encode() in _link.SOURCE
    source = _link.SOURCE.replace(guard.encode(), instead.encode())
    monkeypatch.setattr(_link, "SOURCE", source)
    monkeypatch.setattr(_link, "SHA", sha1(source).hexdigest())
