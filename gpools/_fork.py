"""What the child of a fork does with the pools it inherits: it starts with empty ones.

The items are the parent's.  In the child their file descriptors are pointed at
/dev/null, so that nothing the child does or runs at its end, a destructor of a
C library included, can write a goodbye on the parent's connections; the objects
are kept, because some write on being collected.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from gpools.connection import ConnectionPool

log = logging.getLogger("gpools")

_pools: WeakValueDictionary[int, ConnectionPool[Any]] = WeakValueDictionary()  # by id
_kept: list[object] = []  # the parent's items, in a child


def watch(pool: ConnectionPool[Any]) -> None:
    """See to *pool* in the children of this process."""
    _pools[id(pool)] = pool


def abandon(items: Iterable[object], filenos: Iterable[int]) -> None:
    """Cut *items* off from the connections behind *filenos*, in a child."""
    _kept.extend(items)
    doomed = list(filenos)
    if not doomed:
        return
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:  # no descriptor is left: one of these will do
        os.close(doomed[0])
        null = os.open(os.devnull, os.O_RDWR)
    for fileno in doomed:
        if fileno != null:
            os.dup2(null, fileno, inheritable=False)
    if null not in doomed:
        os.close(null)


def _in_child() -> None:
    for pool in list(_pools.values()):
        try:
            pool._start_anew_after_fork()
        except Exception:
            # An adapter's own; the other pools must not stay the parent's for it.
            log.exception("%r could not be emptied after a fork", pool)


os.register_at_fork(after_in_child=_in_child)
