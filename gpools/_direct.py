"""What the compiled idle paths call in C, with no detour through Python; see ``_direct.pxd``."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref as weakly

from gevent.monkey import get_original

__all__ = ["address", "current_thread", "weakly"]

address: Callable[[object], int] = id

# Gevent's would tell greenlets apart.
current_thread: Callable[[], int] = get_original("_thread", "get_ident")
