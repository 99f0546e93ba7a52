"""Who holds an item, for how long and where it is now."""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass
from os.path import basename
from traceback import format_stack
from types import FrameType

from gevent import getcurrent
from greenlet import greenlet

_LIBRARIES = tuple(
    {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
)


@dataclass(frozen=True)
class Hold:
    """One item in use.

    *item* is None if it was collected, *greenlet* if the greenlet that took it
    has ended and was collected.
    """

    item: object
    greenlet: greenlet | None
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s by {greenlet_name(self.greenlet)}{self._where()}"

    def stack(self) -> str:
        """Return the live stack of the holder, innermost call last, or an empty string."""
        if self.greenlet is None:
            return ""
        frame = sys._getframe() if self.greenlet is getcurrent() else self.greenlet.gr_frame
        return "".join(format_stack(frame)) if frame is not None else ""

    def _where(self) -> str:
        frame = None if self.greenlet is None else _frame(self.greenlet)
        return "" if frame is None else f" at {basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def item_name(item: object) -> str:
    """Name *item* by its type and address; its repr may show a password."""
    return f"<{type(item).__name__} at {id(item):#x}>"


def greenlet_name(holder: greenlet | None) -> str:
    """Name a greenlet without its arguments, which may hold a password."""
    if holder is None:
        return "a greenlet that is gone"
    name = getattr(holder, "name", None) or (
        "main" if holder.parent is None else f"{id(holder):#x}"
    )
    return f"<{type(holder).__name__} {name!r}>{' (ended)' if holder.dead else ''}"


def _frame(holder: greenlet) -> FrameType | None:
    """Return where *holder* is in the program's own code, else in whatever it runs."""
    frame = sys._getframe() if holder is getcurrent() else holder.gr_frame
    outside = []
    while frame is not None:
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module not in ("gevent", "gpools"):
            outside.append(frame)
        frame = frame.f_back
    own = (f for f in outside if not f.f_code.co_filename.startswith(_LIBRARIES))
    return next(own, outside[0] if outside else None)
