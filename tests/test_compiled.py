"""Compiled, the core does what it does as Python: its tests are run once more."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CORE = [
    *("ages", "connection", "contract", "creator", "explorer", "fork", "hazards_1_interruption"),
    *("hazards_2_creation", "hazards_3_fairness", "hazards_5_returning", "hazards_6_limits"),
    *("hazards_7_close", "keyed", "leaks", "lifecycle", "limiter", "line", "model", "outage"),
    *("queues", "recycle", "reported", "shed", "stats", "threads"),
]

WHERE = """
from importlib import import_module
for name in ("_line", "lifecycle", "_book", "_fast"):
    print(import_module(f"gpools.{name}").__file__)
"""


def what_is_missing():
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"no C compiler: {compiler}"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no Python.h"
    return None


pytestmark = pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))


def run(*command, cwd, **environ):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository in which the core is compiled."""
    copy = tmp_path_factory.mktemp("compiled") / "gpools"
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.so")
    shutil.copytree(ROOT, copy, ignore=hidden)
    built = run("hatch_build.py", copy, cwd=copy)
    assert built.returncode == 0, built.stdout + built.stderr
    return copy


@pytest.mark.timeout(600)
def test_the_tests_of_the_core_pass_on_the_compiled_core(checkout):
    where = run("-c", WHERE, cwd=checkout).stdout.split()
    assert len(where) == 4
    assert all(path.startswith(f"{checkout}/gpools/") and path.endswith(".so") for path in where)

    files = [f"tests/test_{name}.py" for name in CORE]
    tests = run("-m", "pytest", "-q", *files, cwd=checkout)
    assert tests.returncode == 0, tests.stdout[-20_000:] + tests.stderr
    print(tests.stdout.splitlines()[-1])


def test_a_storm_loses_nothing_of_a_compiled_pool(checkout):
    tests = run("-m", "pytest", "-q", "tests/test_storm.py", "-k", "not sinks", cwd=checkout)
    assert tests.returncode == 0, tests.stdout[-20_000:] + tests.stderr


def test_the_wheel_holds_the_extensions_and_their_sources(checkout, tmp_path):
    built = run(
        *("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, checkout),
        cwd=checkout,
        GPOOLS_COMPILE="1",
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = tmp_path.glob("*.whl")
    assert not wheel.name.endswith("none-any.whl")
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(wheel, unpacked, "zip")
    names = {path.name.split(".")[0] for path in (unpacked / "gpools").glob("*.so")}
    assert names == {"_line", "lifecycle", "_book", "_fast"}
    assert {f"{name}.py" for name in names} <= set(os.listdir(unpacked / "gpools"))

    where = run("-c", WHERE, cwd=unpacked).stdout.split()
    assert len(where) == 4
    assert all(path.startswith(f"{unpacked}/gpools/") and path.endswith(".so") for path in where)
