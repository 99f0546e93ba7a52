"""Commands: ``python -m gpools fleet URL NAME`` shows a fleet pool."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {"fleet": "gpools.fleet._screen"}


def main() -> int:
    """Run the command that was named."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: python -m gpools {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 2
    return int(import_module(COMMANDS[arguments[0]]).main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
