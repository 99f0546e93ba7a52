"""python -m demo.scorecard [--seconds 4] [--seed 1] [--only NAME ...] [--page PATH]

Takes some three minutes.  The exit status is 0 if every contender has been through all
its trials, 1 if not (the page says where), 2 if a server is missing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from demo.scorecard.contenders import CONTENDERS
from demo.scorecard.page import failures, page
from demo.scorecard.trials import TRIALS
from tests.servers import DIE_WITH_PARENT, ROOT

BOUND = 60  # seconds for all trials of a contender, beside those of chaos


def options():
    parser = argparse.ArgumentParser(prog="python -m demo.scorecard", description="pools compared")
    parser.add_argument("--seconds", type=float, default=4, help="of chaos for each contender")
    parser.add_argument("--seed", type=int, default=1, help="of what is asked and cut off when")
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--jobs", type=int, default=1, help="contenders at a time")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "scorecard.md")
    option = parser.parse_args()
    if option.seconds <= 0 or option.jobs < 1:
        parser.error("--seconds and --jobs must be more than 0")
    option.command = " ".join(["python -m demo.scorecard", *sys.argv[1:]])
    return option


def contest(name, option, directory, processes):
    """Have a contender go through all trials in a process of its own; return what came out.

    It is among the *processes* while it runs.
    """
    words = [sys.executable, "-m", "demo.scorecard.contest", name, option.seed, option.seconds]
    # Killed with this process, and its server with it.
    launcher = [sys.executable, "-ISc", DIE_WITH_PARENT, os.getpid()]
    process = subprocess.Popen(
        [str(word) for word in (*launcher, *words)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes.add(process)
    try:
        output, complaints = process.communicate(timeout=BOUND + option.seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, complaints = process.communicate()
    processes.discard(process)
    outcome = dict(map(json.loads, output.splitlines()))
    for trial in TRIALS:
        outcome.setdefault(trial.__name__, {"broken": "the process hung, or died"})
    return outcome, complaints


def run(option, console):
    """Make the page; return the exit status."""
    chosen = {name: CONTENDERS[name] for name in option.only}
    for server_class in dict.fromkeys(cls.server_class for cls in chosen.values()):
        if reason := server_class.missing():
            console.print(f"the scorecard cannot be made: {reason}")
            return 2
    outcomes, status, processes = {}, 0, set()
    with (
        # What killed servers leave behind goes with it.  Short: Unix sockets live there.
        tempfile.TemporaryDirectory(prefix="gpools-", ignore_cleanup_errors=True) as directory,
        ThreadPoolExecutor(option.jobs) as executor,
    ):
        running = {
            name: executor.submit(contest, name, option, directory, processes) for name in chosen
        }
        try:
            for name, future in running.items():
                outcomes[name], complaints = future.result()
                tell(name, outcomes[name], console)
                if any("broken" in outcome for outcome in outcomes[name].values()):
                    status = 1
                    console.print(complaints[-2000:], markup=False)
        except BaseException:
            # Interrupted: neither those that run nor those that wait are wanted any more.
            executor.shutdown(wait=False, cancel_futures=True)
            for process in list(processes):
                process.kill()
            raise
    option.page.write_text(page(outcomes, option))
    console.print(f"written: {option.page}")
    return status


def tell(name, outcome, console):
    chaos = outcome["chaos"]
    console.print(
        f"{name:28}{chaos.get('got', 0):6} answers, {chaos.get('foreign', '?')} foreign, "
        f"{chaos.get('lost', '?')} slots lost.{failures(outcome)}",
        markup=False,
    )


def main():
    option = options()
    # By its exception the processes that were started are ended, and the directory goes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(run(option, Console(highlight=False, soft_wrap=True)))
