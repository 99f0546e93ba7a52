"""The script that every call to the server runs; see `_script.lua`."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files

__all__ = ["SHA", "SOURCE"]

SOURCE = files(__package__).joinpath("_script.lua").read_bytes()
SHA = sha1(SOURCE).hexdigest()  # by which the server calls it
