"""What we say of `eventlet.pools`, checked on eventlet, and what gpools does there.

The cases are in `tests.eventlet_cases`.  Where they agree, code written for
eventlet sees no difference; where they differ, eventlet's side is the failure
that gpools promises to mend.
"""

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.eventlet_cases import CASES

HERE = Path(__file__).parent.parent


@cache
def results(house):
    """What every case returned on *house*, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.eventlet_cases", house],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_eventlet = pytest.mark.skipif(
    importlib.util.find_spec("eventlet") is None, reason="eventlet is not installed"
)


@pytest.mark.parametrize("name", CASES)
def test_gpools_does_what_it_promises(name):
    assert results("gpools")[name] == CASES[name].expected["gpools"]


@needs_eventlet
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.mended])
def test_eventlet_does_the_same(name):
    assert results("eventlet")[name] == CASES[name].expected["eventlet"]


@needs_eventlet
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.mended])
def test_eventlet_fails_as_we_say(name):
    assert results("eventlet")[name] == CASES[name].expected["eventlet"]
