"""Look at an idle socket without waiting, reading or switching greenlets."""

from __future__ import annotations

import select
import socket
import ssl
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from gevent.monkey import get_original

# Seconds ago: what was looked at then is not looked at again.
JUST_NOW = 0.001

# Seconds for which an item of a busy pool may wait in the hub to be handed on, and longer:
# what came back since then is not looked at when it goes out.
A_MOMENT = 0.01

# The unpatched one: gevent's would switch.  Not select(), which fails at fd 1024.
_poll = get_original("select", "poll")


def quiet(sock: socket.socket) -> bool:
    """Tell whether the peer has neither closed nor sent anything that nobody asked for.

    Takes about a microsecond; never switches.
    """
    fd = sock.fileno()
    if fd < 0:
        return False
    poller = _poll()
    poller.register(fd, select.POLLIN | select.POLLPRI)
    tls = hasattr(type(sock), "pending")  # of the instance, gevent's would look further
    if not poller.poll(0):
        return not (tls and sock.pending())  # type: ignore[attr-defined]  # read, but by nobody
    return tls and _only_tickets(sock)


def between_requests(connection: HTTPConnection) -> bool:
    """Tell whether a connection has answered all that it was asked; its socket is not looked at."""
    # http.client knows, but keeps it to itself.
    idle = getattr(connection, "_HTTPConnection__state", None) == "Idle"
    return idle and unread_answer(connection) is None


def unread_answer(connection: HTTPConnection) -> HTTPResponse | None:
    """Return the last answer on a connection, unless it was read to its end."""
    answer: HTTPResponse | None = getattr(connection, "_HTTPConnection__response", None)
    return None if answer is None or answer.isclosed() else answer


def may_be_followed(status: int, headers: Any) -> bool:
    """Tell whether more may come after an answer that http.client takes for whole."""
    if status == 204:  # it reads no body, whatever the server says of one
        return bool(headers.get("content-length", "0") != "0")
    # Of the interim answers it knows 100 only; after another the final one is on its way.
    return status < 200


def _only_tickets(sock: socket.socket) -> bool:
    """Tell whether all that waits on a TLS socket, the stdlib's or gevent's, is the protocol's own.

    TLS 1.3 servers send session tickets whenever they like, so a healthy
    connection can be readable.
    """
    timeout = sock.gettimeout()
    sock.settimeout(0)  # else the stdlib's would wait so long for what comes after the tickets
    try:
        sock._sslobj.read(1)  # type: ignore[attr-defined]
    except ssl.SSLWantReadError:
        return True
    except (OSError, AttributeError):
        return False
    finally:
        sock.settimeout(timeout)
    return False  # a byte that nobody asked for, or the end
