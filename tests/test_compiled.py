"""Compiled, the core does what it does as Python: its tests are run once more."""

import os
import shutil
import subprocess
import sys

import pytest

from benchmarks.compiled import compile_into, missing

# Those of what is compiled; the storms run through all the rest of it.
CORE = [
    *("ages", "connection", "contract", "creator", "fork", "hazards_1_interruption"),
    *("hazards_2_creation", "hazards_5_returning", "hazards_6_limits", "hazards_7_close"),
    *("leaks", "lifecycle", "line", "queues", "shed", "stats", "threads"),
]

WHERE = """
from importlib import import_module
for name in ("_line", "lifecycle", "_book", "_fast"):
    print(import_module(f"gpools.{name}").__file__)
"""


pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"to compile needs {', '.join(missing())}"),
    pytest.mark.timeout(600),
]


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
    return compile_into(tmp_path_factory.mktemp("compiled") / "gpools")


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


def test_a_wheel_that_nobody_asked_to_compile_holds_no_extension(checkout, tmp_path):
    """Those that lie in the checkout are for one platform, and the wheel is for all."""
    built = run(
        *("-m", "build", "--no-isolation", "--outdir", tmp_path, checkout),
        cwd=checkout,
        GPOOLS_COMPILE="0",
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = tmp_path.glob("*-none-any.whl")
    [sdist] = tmp_path.glob("*.tar.gz")
    for archive, form in ((wheel, "zip"), (sdist, "gztar")):
        shutil.unpack_archive(archive, tmp_path / form, form)
        assert not list((tmp_path / form).rglob("*.so"))


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
