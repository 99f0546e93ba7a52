"""What pip installs is whole, and a bare import is light."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command, cwd=None):
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dist")
    # The wheel is built from the sdist, so both are proven whole at once.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT)
    return directory


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The python of an environment that holds nothing but the wheel and its needs."""
    home = tmp_path_factory.mktemp("empty")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    [wheel] = dist.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    # Not from the repository, where the source itself could be imported.
    return lambda program: run(python, "-c", program, cwd=home)


def test_wheel_holds_the_package_and_nothing_else(dist):
    [wheel] = dist.glob("gpools-*-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"gpools"}
    kinds = ("*.py", "*.pxd", "*.lua")
    sources = {
        str(path.relative_to(ROOT)) for kind in kinds for path in (ROOT / "gpools").rglob(kind)
    }
    assert sources | {"gpools/py.typed"} == {name for name in names if ".dist-info/" not in name}


def test_sdist_holds_what_a_packager_needs(dist):
    [sdist] = dist.glob("gpools-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"} <= names
    assert {name.split("/")[0] for name in names} >= {"gpools", "tests", "demo", "examples", "docs"}
    assert not {name for name in names if "__pycache__" in name or ".venv" in name}


def test_an_editable_install_refuses_to_compile_nothing(tmp_path):
    """It said nothing and ran as Python, as it does without being asked."""
    program = "import sys; from hatchling.build import *; build_editable(sys.argv[1])"
    built = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        cwd=ROOT,
        env={**os.environ, "GPOOLS_COMPILE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 1
    assert "python hatch_build.py ." in built.stderr


def test_installed_it_works(installed):
    program = """
from gpools import Pool, TokenPool, ConnectionPool, HttpPool, RedisPool
with Pool(max_size=1, create=list).item() as item:
    print(item)
"""
    assert installed(program) == "[]"


def test_import_loads_no_client_library(installed):
    """Whoever pools something else does not pay for redis and httplib2."""
    program = "import sys, gpools; print({'redis', 'httplib2'} & set(sys.modules))"
    assert installed(program) == "set()"
