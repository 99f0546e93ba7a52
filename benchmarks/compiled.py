"""A copy of this repository whose core is compiled, for workers of the kind "compiled"."""

import atexit
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def missing():
    """List what compiling needs and is not here."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    needs = {
        f"a C compiler ({compiler})": shutil.which(compiler),
        "Python.h": headers.exists(),
        **{name: find_spec(name) for name in ("Cython", "setuptools", "hatchling")},
    }
    return tuple(name for name, found in needs.items() if not found)


def compile_into(directory):
    """Copy the repository to *directory* and compile its core there."""
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.so")
    shutil.copytree(ROOT, directory, ignore=hidden)
    command = [sys.executable, "hatch_build.py", str(directory)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return directory


@cache
def checkout():
    """Return where the copy is; it is made when first asked for, and gone with this process."""
    directory = tempfile.mkdtemp(prefix="gpools-compiled-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return compile_into(Path(directory) / "gpools")
