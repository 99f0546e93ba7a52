"""What create() makes and no pool can take, above all clients that would stop all greenlets.

Of those some wait in C, where gevent cannot switch, whether the program is patched or
not: these are refused.  They are known by the module of their class, so that
none of these libraries need be installed.  Others wait with Python's sockets,
and in a program that is not patched the log says so, once.
"""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any

from gevent import socket

from gpools.errors import PoolError

log = logging.getLogger("gpools")

_told: set[str] = set()
_INSTEAD = {
    "psycopg2": "call psycogreen.gevent.patch_psycopg() first, or take psycopg 3",
    "MySQLdb": "take PyMySQL",
    "pymssql": "take python-tds, or run it in gevent's threadpool",
    "pylibmc": "take pymemcache",
    "ssh2": "take parallel-ssh, which waits with gevent, or paramiko",
    "grpc": "call grpc.experimental.gevent.init_gevent() first",
}


def refuse_blocking(item: object) -> None:
    """Raise `PoolError` if *item* is of a library known to block the hub.  Never switches.

    Let pass are psycopg2 with a wait callback, grpc after ``init_gevent()``, and
    an ssh2 session that was set not to block.
    """
    for ancestor in type(item).__mro__:
        library = ancestor.__module__.partition(".")[0]
        if library in _INSTEAD and not _made_to_switch(library, item):
            raise PoolError(
                f"{library} stops all greenlets while it waits for its server; {_INSTEAD[library]}"
            )


def wrong_item(item: object, advice: str) -> PoolError:
    """Return the error for what create() made that is not what the pool is of."""
    kind = f"{type(item).__module__}.{type(item).__qualname__}"
    return PoolError(f"create() returned a {kind}{advice}")


def tell_unpatched(library: str, module: ModuleType) -> None:
    """Log, once, that *library* stops all greenlets, if its *module* has other sockets than gevent.

    One derived from gevent's will do, as PySocks puts it there.  Switches only if
    the log does.
    """
    kind = module.socket.socket
    if isinstance(kind, type) and not issubclass(kind, socket.socket) and library not in _told:
        _told.add(library)
        log.warning(
            "%s stops all greenlets while it waits for its server; "
            "call gevent.monkey.patch_all() first of all",
            library,
        )


def _made_to_switch(library: str, item: Any) -> bool:
    if library == "psycopg2":
        extensions: Any = sys.modules.get("psycopg2.extensions")
        return extensions is not None and extensions.get_wait_callback() is not None
    if library == "grpc":
        return bool(getattr(sys.modules.get("grpc._cython.cygrpc"), "g_gevent_activated", False))
    if library == "ssh2":
        return hasattr(item, "get_blocking") and not item.get_blocking()
    return False
