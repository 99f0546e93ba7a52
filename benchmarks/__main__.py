"""Measure gpools and its peers: python -m benchmarks [--smoke] [--write] [theme ...]"""

import argparse
import time
from contextlib import contextmanager
from importlib import import_module

from benchmarks.harness import run
from benchmarks.page import goals_table

# Seconds for each, of which a smoke run needs none.
THEMES = {
    "uncontended": 50,
    "handover": 30,
    "waiters": 45,
    "fairness": 10,
    "creating": 20,
    "redis_get": 30,
    "http_get": 40,
    "sql": 30,
}


@contextmanager
def no_server():
    yield {}, None


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("themes", nargs="*", metavar="theme", help=", ".join(THEMES))
    parser.add_argument("--smoke", action="store_true", help="a moment of each, for tests")
    option = parser.parse_args()
    for name in option.themes or THEMES:
        theme = import_module(f"benchmarks.{name}")
        begun = time.monotonic()
        with getattr(theme, "server", no_server)() as (settings, count):
            results = run(theme, THEMES[name], settings | {"quick": option.smoke}, count)
        section = theme.report(results)
        print(f"## {section.title}\n\n{section.text}\n{goals_table(section.goals)}")
        print(f"{len(results.rounds)} rounds in {time.monotonic() - begun:.0f} s", flush=True)


main()
