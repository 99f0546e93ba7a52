"""Measure gpools and its peers: python -m benchmarks [--smoke] [--write] [theme ...]"""

import argparse
import os
import platform
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import chain

from benchmarks.harness import ROOT, run
from benchmarks.page import Section, write

# Seconds for each.
THEMES = {
    "uncontended": 40,
    "handover": 25,
    "waiters": 30,
    "fairness": 6,
    "creating": 20,
    "redis_get": 25,
    "http_get": 30,
    "sql": 25,
    "importing": 12,
    "instructions": None,  # it takes what it takes
}
PACKAGES = (
    *("gevent", "greenlet", "eventlet", "redis", "httplib2", "requests", "urllib3"),
    *(
        "geventhttpclient",
        "psycopg",
        "psycopg-pool",
        "SQLAlchemy",
        "pymemcache",
        "DBUtils",
        "kombu",
    ),
)


@contextmanager
def no_server():
    yield {}, None


def measure(name, smoke):
    """Run one theme; return its section of the page, and what is said of the run itself."""
    theme = import_module(f"benchmarks.{name}")
    begun = time.monotonic()
    if THEMES[name] is None:
        section, said = theme.report(theme.measure(smoke)), "once"
    else:
        with getattr(theme, "server", no_server)() as (settings, count):
            results = run(theme, THEMES[name], settings | {"quick": smoke}, count)
        section, said = theme.report(results), f"{len(results.rounds)} rounds"
        if missing := sorted(set(chain(*results.missing.values()))):
            said += f", without {', '.join(missing)}: not installed"
    return section, f"{said}, {time.monotonic() - begun:.0f} s"


def about():
    """Say when and on what this runs."""
    processor = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        processor = models[0] if models else processor
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "gpools": f"{version('gpools')}, commit {commit.stdout.strip() or 'unknown'}",
        "machine": f"{processor or platform.machine()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "others": ", ".join(found),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("themes", nargs="*", metavar="theme", help=", ".join(THEMES))
    parser.add_argument("--smoke", action="store_true", help="one round of each, for tests")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md, of all")
    option = parser.parse_args(arguments)
    if unknown := set(option.themes) - THEMES.keys():
        parser.error(f"no such theme: {', '.join(sorted(unknown))}")
    if option.write and (option.themes or option.smoke):
        parser.error("the page is written from a whole run")
    facts, before = about(), os.getloadavg()
    sections, failed = {}, []
    for name in option.themes or THEMES:
        try:
            section, said = measure(name, option.smoke)
        except Exception as error:  # the others are worth having
            traceback.print_exc()
            failed.append(name)
            section = Section(name, f"This part broke off: {str(error).splitlines()[0]}", [], {})
            said = "broke off"
        sections[name] = section, said
        print(f"{section.show()}\n{name}: {said}\n", flush=True)
    if option.write:
        loads = [" ".join(f"{load:.1f}" for load in when) for when in (before, os.getloadavg())]
        facts["load average"] = f"{loads[0]} before, {loads[1]} after"
        write(facts, sections)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
