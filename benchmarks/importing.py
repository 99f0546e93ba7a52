"""What an import costs, each time in a process of its own."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec

from benchmarks.harness import ROOT, Contender
from benchmarks.page import Goal, Section, spread, table

BASE, OURS = "import gevent", "import gpools"
WARM = False  # each round sets up anew
STATEMENTS = {
    "nothing": "pass",
    BASE: BASE,
    OURS: OURS,
    "from gpools import HttpPool": "from gpools import HttpPool",
    "from gpools import RedisPool": "from gpools import RedisPool",
    "import redis": "import redis",
    "import psycopg_pool": "import psycopg_pool",
    "from sqlalchemy import QueuePool": "from sqlalchemy import QueuePool",
    "import eventlet.pools": "import eventlet.pools",
}
LATER = ("gpools.adapters", "gpools.fleet", "redis", "httplib2", "psycopg", "requests", "urllib3")
PROGRAM = """
import json, sys, time
def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4
before, begun = resident(), time.process_time()
{statement}
ms, after = (time.process_time() - begun) * 1000, resident()
print(json.dumps({{"ms": ms, "kB": after - before, "modules": sorted(sys.modules)}}))
"""


@contextmanager
def importing(statement, option):
    program = PROGRAM.format(statement=statement)
    command = [sys.executable, "-W", "ignore", "-c", program]
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run():
        done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)
        modules = found.pop("modules")
        return found | {
            "number": len(modules),
            "later": [name for name in modules if name.startswith(LATER)],
        }

    yield run


def contenders():
    found = {}
    for name, statement in STATEMENTS.items():
        needed = statement.split()[1:2][0].partition(".")[0] if statement != "pass" else "sys"
        missing = () if find_spec(needed) else (needed,)
        found[name] = Contender(partial(importing, statement), missing=missing)
    return found


def report(results):
    rows = []
    for name in results.names:
        shown = f"`{name}`" if name != "nothing" else name
        rows.append(
            (
                f"**{shown}**" if "gpools" in name else shown,
                f"{results.median(name, 'ms'):.0f}",
                spread(results.ratios(name, BASE, "ms")),
                f"{results.median(name, 'kB') / 1024:.1f}",
                f"{results.median(name, 'number'):.0f}",
            )
        )
    loaded = sorted({module for names in results.all(OURS, "later") for module in names})
    goals = [
        Goal(
            "`import gpools`: no adapter, no redis, no httplib2",
            ", ".join(loaded) or "none loaded",
            not loaded,
        )
    ]
    more = results.median(OURS, "ms") - results.median(BASE, "ms")
    text = f"""\
CPU and resident memory of one import, each in a new process, compiled before.
gpools imports gevent; what it adds to that is {more:.0f} ms.

{table(("", "ms", "times gevent", "MB", "modules"), rows)}"""
    return Section("Importing", text, goals, {})
