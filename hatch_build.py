"""Compile the idle paths of the pool, where asked: ``GPOOLS_COMPILE=1 pip install ...``.

Cython makes an extension of each module that has a ``.pxd`` beside it.  Without
one the very same module runs as Python.  ``python hatch_build.py DIRECTORY``
does it in a checkout, for the tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Without types (_direct), a module is only there for the others to read.
MODULES = ("_line", "lifecycle", "_book", "_fast")


class CompileHook(BuildHookInterface):
    """Puts the extensions into a wheel."""

    def dependencies(self) -> list[str]:
        return ["cython>=3.1", "setuptools"] if asked_for() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or not asked_for():
            return
        if version == "editable":
            # An error, for pip shows no warning, and who asked for it would not know.
            raise RuntimeError(
                "GPOOLS_COMPILE=1 compiles nothing for an editable install, which runs the "
                "sources; install without it, then `pip install cython hatchling setuptools` "
                "and `python hatch_build.py .`, again after each change of the core"
            )
        self.built = TemporaryDirectory()
        for extension in compile_core(Path(self.root), Path(self.built.name)):
            build_data["force_include"][str(extension)] = f"gpools/{extension.name}"
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "built"):
            self.built.cleanup()


def asked_for() -> bool:
    return os.environ.get("GPOOLS_COMPILE", "").lower() not in ("", "0", "false", "no", "off")


def compile_core(root: Path, into: Path) -> list[Path]:
    """Compile the modules of *root* to extensions somewhere in *into*; return where they are."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    here = os.getcwd()
    os.chdir(root)  # the names of the sources, which tracebacks show, are relative to it
    try:
        extensions = cythonize(
            [Extension(f"gpools.{name}", [f"gpools/{name}.py"]) for name in MODULES],
            build_dir=str(into),
            language_level=3,
            # What is not set is None in C, and to look into that ends the process.
            compiler_directives={"nonecheck": True},
            quiet=True,
        )
        command = Distribution({"name": "gpools", "ext_modules": extensions}).get_command_obj(
            "build_ext"
        )
        command.build_lib = command.build_temp = str(into)
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(here)
    return [Path(command.get_ext_fullpath(f"gpools.{name}")) for name in MODULES]


if __name__ == "__main__":
    checkout = Path(sys.argv[1]).resolve()
    with TemporaryDirectory() as directory:
        for built in compile_core(checkout, Path(directory)):
            built.rename(checkout / "gpools" / built.name)
