"""TLS that switches greenlets, with a context of the stdlib's too."""

from __future__ import annotations

import ssl

import gevent.socket
import gevent.ssl


class Cooperative:
    """A context whose sockets are gevent's, patched program or not."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def wrap_socket(
        self, sock: gevent.socket.socket, server_hostname: str | None = None
    ) -> gevent.ssl.SSLSocket:
        """Wrap *sock*; connected or not, no hands are shaken before it is asked to."""
        # The context's own would make a socket that blocks the hub.
        return gevent.ssl.SSLSocket(
            sock=sock,
            server_hostname=server_hostname,
            do_handshake_on_connect=not _connected(sock),
            _context=self.context,
        )


def _connected(sock: gevent.socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
