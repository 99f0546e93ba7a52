"""What the child of a fork does with the pools it inherits: it starts with empty ones.

The items are the parent's.  In the child their file descriptors are pointed at
/dev/null, so that nothing the child does or runs at its end, a destructor of a
C library included, can write a goodbye on the parent's connections; the objects
are kept, because some write on being collected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from gpools.connection import ConnectionPool

_pools: WeakSet[ConnectionPool[Any]] = WeakSet()
_kept: list[object] = []  # the parent's items, in a child


def watch(pool: ConnectionPool[Any]) -> None:
    """See to *pool* in the children of this process."""
    _pools.add(pool)


def abandon(items: Iterable[object], filenos: Iterable[int]) -> None:
    """Cut *items* off from the connections behind *filenos*, in a child."""
    _kept.extend(items)
    with open(os.devnull, "r+b", buffering=0) as null:
        for fileno in filenos:
            os.dup2(null.fileno(), fileno, inheritable=False)


def _in_child() -> None:
    for pool in list(_pools):
        pool._start_anew_after_fork()


os.register_at_fork(after_in_child=_in_child)
