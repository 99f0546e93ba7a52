"""What the child of a fork does with the pools it inherits: it starts with empty ones.

The items are the parent's.  In the child their file descriptors are pointed at
/dev/null, so that nothing the child does or runs at its end, a destructor of a
C library included, can write a goodbye on the parent's connections; the objects
are kept, because some write on being collected.

What a greenlet was just connecting is no item yet, and the child has a copy of
that greenlet, which would read the handshake of the parent's connection.  So
whoever connects does it in `making`, and in the child the sockets that are found
in the frames of such a greenlet are pointed at /dev/null too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from selectors import BaseSelector
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from gevent import getcurrent
from gevent.socket import socket as gevents_socket
from greenlet import greenlet

if TYPE_CHECKING:
    from gpools.connection import ConnectionPool

T = TypeVar("T")

log = logging.getLogger("gpools")

before_pools: list[Callable[[], None]] = []  # what else a child does, and does first
_pools: WeakValueDictionary[int, ConnectionPool[Any]] = WeakValueDictionary()  # by id
_kept: list[object] = []  # the parent's items, in a child
# Who is in `making`, how often; weakly, for one that everybody has dropped is to go.
_makers: WeakKeyDictionary[greenlet, int] = WeakKeyDictionary()


def watch(pool: ConnectionPool[Any]) -> None:
    """See to *pool* in the children of this process."""
    _pools[id(pool)] = pool


def making(make: Callable[[], T]) -> T:
    """Return what *make* returns; in a child born meanwhile its sockets lead nowhere.

    Switches if *make* does.
    """
    # Nowhere by a name: a greenlet that its own frame has is never collected.
    _makers[getcurrent()] = _makers.get(getcurrent(), 0) + 1
    try:
        return make()
    finally:
        depth = _makers.pop(getcurrent()) - 1
        if depth:
            _makers[getcurrent()] = depth


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


def _sockets_of(maker: greenlet) -> Iterator[int]:
    """Find what a greenlet was connecting, in its frames: a socket, or a selector that waits."""
    frame: FrameType | None = maker.gr_frame  # None if it is the one that forks
    while frame is not None and frame.f_code is not making.__code__:
        for value in list(frame.f_locals.values()):
            if isinstance(value, (socket, gevents_socket)):
                yield value.fileno()
            elif isinstance(value, BaseSelector):
                yield from [key.fd for key in (value.get_map() or {}).values()]
        frame = frame.f_back


def _in_child() -> None:
    for maker in list(_makers):
        try:
            abandon((), [fileno for fileno in _sockets_of(maker) if fileno >= 0])
        except Exception:
            log.exception("what %r was connecting could not be cut off after a fork", maker)
    for act in before_pools:
        try:
            act()
        except Exception:
            log.exception("%r failed after a fork", act)
    for pool in list(_pools.values()):
        try:
            pool._start_anew_after_fork()
        except Exception:
            # An adapter's own; the other pools must not stay the parent's for it.
            log.exception("%r could not be emptied after a fork", pool)


os.register_at_fork(after_in_child=_in_child)
