"""Send what is short with one call of the system."""

from __future__ import annotations

from typing import Any

from gevent import socket


class ShortSender(socket.socket):
    """One of gevent's, whose sendall() does not ask how large the system's buffer is.

    To ask that before each command costs as much as to send it.
    """

    __slots__ = ()  # else the class of a socket could not be changed

    def sendall(self, data: Any, flags: int = 0) -> None:
        try:
            # Not to wait, for then sendall() would as long again.
            sent = self.send(data, flags, 0.0)  # type: ignore[call-arg]
        except BlockingIOError:
            sent = 0
        if sent != memoryview(data).nbytes:  # of which an array has more than items
            super().sendall(memoryview(data).cast("B")[sent:], flags)


def short_send(sock: Any) -> Any:
    """Return *sock*, quicker for what fits in a buffer if it is a plain socket of gevent's."""
    if type(sock) is socket.socket:
        sock.__class__ = ShortSender
    return sock
