"""Close what a client library would leave open."""

from __future__ import annotations

from contextlib import suppress
from http.client import HTTPResponse
from io import IOBase
from socket import SHUT_RDWR, SocketIO, socket
from traceback import walk_tb

from gevent.socket import socket as gevents_socket


def close_half_open(connection: object, error: BaseException) -> None:
    """Close the socket that *connection* was connecting when *error* came, if it was no Exception.

    Libraries close a socket that they could not connect after an OSError.  After
    a Timeout or a kill only the frame that died has it, and the error has the
    frame, and so it stays open as long as anybody looks at the error.
    """
    if isinstance(error, Exception):
        return
    connecting = False
    for frame, _ in walk_tb(error.__traceback__):
        # Below, but not above: a request's body may come from a socket of the program's.
        if frame.f_code.co_name in ("connect", "_connect"):
            connecting = connecting or frame.f_locals.get("self") is connection
        if connecting:
            for value in frame.f_locals.values():
                if isinstance(value, IOBase):
                    _let_go_of_socket(value)
                elif isinstance(value, (socket, gevents_socket)):
                    value.close()


def _let_go_of_socket(file: IOBase) -> None:
    """Have *file*, if it was made of a socket, not keep that open.  Never switches.

    PySocks makes one to read what a proxy says.
    """
    raw = getattr(getattr(file, "buffer", file), "raw", file)
    if isinstance(raw, SocketIO):
        raw.close()  # and not the file, which would send what it has yet to write


def end_answer(answer: HTTPResponse) -> None:
    """Close an answer; a greenlet in the middle of reading it gets an OSError.

    It reads from a buffered file, which lets nobody close it meanwhile, and the
    socket stays open as long as that.  Never switches.
    """
    file = answer.fp
    try:
        answer.close()
    except RuntimeError:  # "reentrant call"
        sock = file.raw._sock  # type: ignore[attr-defined]
        sock = getattr(sock, "socket", sock)  # where urllib3 has TLS within TLS
        with suppress(OSError):
            # Not TLS's own, after which a reader would fail by whatever error.
            gevents_socket.shutdown(sock, SHUT_RDWR)
