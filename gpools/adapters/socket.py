"""`SocketPool`: plain TCP, TLS and Unix sockets."""

from __future__ import annotations

import os
import socket as stdlib
import struct
from collections.abc import Callable
from contextlib import suppress
from socket import IPPROTO_TCP, SO_KEEPALIVE, SO_LINGER, SO_RCVLOWAT, SOL_SOCKET, TCP_NODELAY
from ssl import SSLContext
from typing import Any
from weakref import WeakKeyDictionary

import gevent.ssl
from gevent import socket

from gpools.adapters._probe import quiet
from gpools.adapters._tls import Cooperative
from gpools.adapters._verbs import join_verbs
from gpools.connection import ConnectionPool, split_settings
from gpools.errors import PoolError

__all__ = ["SocketPool"]

_NO_LINGER = struct.pack("ii", 0, 0)

# What a user may have changed and the next must not find: level, option, length of its value.
_OPTIONS = [
    (SOL_SOCKET, SO_KEEPALIVE, 4),
    (SOL_SOCKET, SO_LINGER, len(_NO_LINGER)),
    (SOL_SOCKET, SO_RCVLOWAT, 4),
]
_TCP_OPTIONS = [
    (IPPROTO_TCP, option, 4)
    for option in (TCP_NODELAY, getattr(stdlib, "TCP_CORK", None))
    if option is not None
]


class SocketPool(ConnectionPool[socket.socket]):
    """A pool of connected sockets of gevent's: TCP, TLS or Unix.

    ::

        pool = SocketPool(("127.0.0.1", 8080), max_size=10, timeout=5)
        with pool.item() as sock:
            sock.sendall(b"HEAD / HTTP/1.0\\r\\n\\r\\n")

    *address* is ``(host, port)``, or the path of a Unix socket.  *timeout*, in
    seconds, is that of each socket; *connect_timeout* is for each address of the
    host, and for the TLS handshake; *get_timeout* is the pool's own, the
    *timeout* of `ConnectionPool`.  The other parameters are those of
    `ConnectionPool`.

    *ssl* is an `ssl.SSLContext`, or True for the default one; *server_hostname*
    is the name in the server's certificate, the host if it is not given.
    *nodelay* and *keepalive* set TCP_NODELAY and SO_KEEPALIVE.

    A socket is not handed out when its peer has closed it, or has sent what
    nobody has read.  One that comes back with something unread, or shut down,
    is let go, as is one whose block ended with any error; timeout, TCP_NODELAY,
    TCP_CORK, SO_KEEPALIVE, SO_LINGER and SO_RCVLOWAT are set back.  An answer
    that is still on its way cannot be seen: read all you have asked for.

    Raises ValueError and TypeError for what makes no sense.
    """

    _socket: _Terms
    _options: WeakKeyDictionary[socket.socket, dict[tuple[int, int, int], Any]]

    def __init__(
        self,
        address: tuple[str, int] | str | bytes | os.PathLike[str],
        *,
        min_size: int = 0,
        max_size: int = 4,
        order_as_stack: bool = False,
        create: Callable[[], socket.socket] | None = None,
        ssl: SSLContext | bool | None = None,
        server_hostname: str | None = None,
        timeout: float | None = 30.0,
        connect_timeout: float | None = 10.0,
        get_timeout: float | None = None,
        nodelay: bool = True,
        keepalive: bool = False,
        **settings: Any,
    ) -> None:
        settings, unknown = split_settings(settings)
        if unknown:
            raise TypeError(f"SocketPool does not know {', '.join(sorted(unknown))}")
        self._socket = _Terms(address, ssl, server_hostname, timeout, connect_timeout)
        self._socket.options = {SO_KEEPALIVE: keepalive, TCP_NODELAY: nodelay}
        self._options = WeakKeyDictionary()  # what each socket had when it was made
        join_verbs(self, SocketPool, settings)
        super().__init__(
            min_size, max_size, order_as_stack, create, timeout=get_timeout, **settings
        )

    def create(self) -> socket.socket:
        """Connect a socket, and shake hands if it is for TLS.  Switches."""
        return self._socket.connect()

    def check(self, item: socket.socket, /) -> bool:
        """Tell whether the peer has neither closed nor sent anything; never switches."""
        return quiet(item)

    def reset(self, item: socket.socket, /) -> None:
        """Refuse a socket that is not as it was; set back its options; never switches."""
        if _waited_for(item):
            raise PoolError("another greenlet still waits for it")
        # First, for with SO_RCVLOWAT what was not read would not be seen.
        for (level, option, length), value in self._options[item].items():
            if item.getsockopt(level, option, length) != value:
                item.setsockopt(level, option, value)
        if not quiet(item):
            raise PoolError("something was not read, or the peer has closed")
        if isinstance(item, gevent.ssl.SSLSocket) and item.version() is None:
            raise PoolError("TLS has ended on this socket")
        # Fails on one that was shut down; never waits.
        socket.socket.send(item, b"", 0, 0.0)  # type: ignore[call-arg]
        if item.gettimeout() != self._socket.timeout:
            item.settimeout(self._socket.timeout)

    def destroy(self, item: socket.socket, /) -> None:
        """Close *item*, whoever still has a file made of it.  Never switches, nor blocks."""
        with suppress(OSError):
            item.setsockopt(SOL_SOCKET, SO_LINGER, _NO_LINGER)  # else close() may block
        item.close()
        if item.fileno() >= 0:  # there are files
            item._real_close()  # type: ignore[attr-defined]

    def _adopt(self, item: socket.socket) -> None:
        if not isinstance(item, socket.socket):
            raise PoolError(
                f"create() returned a {type(item).__module__}.{type(item).__name__}; "
                "a SocketPool takes gevent.socket.socket, others block all greenlets"
            )
        options = _OPTIONS if item.family == socket.AF_UNIX else _OPTIONS + _TCP_OPTIONS
        self._options[item] = {about: item.getsockopt(*about) for about in options}
        item.settimeout(self._socket.timeout)


class _Terms:
    """Where to connect to, and how."""

    def __init__(
        self,
        address: Any,
        ssl: SSLContext | bool | None,
        server_hostname: str | None,
        timeout: float | None,
        connect_timeout: float | None,
    ) -> None:
        for name, seconds in (("timeout", timeout), ("connect_timeout", connect_timeout)):
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name} is {seconds!r} but must be above 0, or None")
        self.address = _address(address)
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.options: dict[int, bool] = {}
        self.context: Cooperative | None = None
        if server_hostname is not None and not ssl:
            raise ValueError("server_hostname is for TLS: give ssl=True, or a context")
        if ssl:
            context = gevent.ssl.create_default_context() if ssl is True else ssl
            if not isinstance(context, SSLContext):
                raise TypeError(f"ssl must be an SSLContext, True or None, not {ssl!r}")
            self.context = Cooperative(context)
            if server_hostname is None and isinstance(self.address, tuple):
                server_hostname = self.address[0]
            if context.check_hostname and not server_hostname:
                raise ValueError("TLS on a Unix socket needs a server_hostname")
        self.server_hostname = server_hostname

    def connect(self) -> socket.socket:
        if not isinstance(self.address, tuple):
            try:
                return self._connect_to(socket.AF_UNIX, 0, self.address)
            except OSError as error:
                if error.errno is not None:  # else it would show nothing but that
                    error.filename = self.address  # for who meant a host, and it is a path
                raise
        failure: OSError | None = None
        for family, _, protocol, _, address in socket.getaddrinfo(
            *self.address, type=socket.SOCK_STREAM
        ):
            try:
                return self._connect_to(family, protocol, address)
            except OSError as error:
                failure = error
        try:
            raise failure or OSError(f"{self.address[0]} has no address")
        finally:
            del failure  # it would keep this frame, and this frame it

    def _connect_to(self, family: int, protocol: int, address: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM, protocol)
        try:
            sock.settimeout(self.connect_timeout)
            sock.connect(address)
            if family != socket.AF_UNIX:
                sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, self.options[TCP_NODELAY])
                sock.setsockopt(SOL_SOCKET, SO_KEEPALIVE, self.options[SO_KEEPALIVE])
            if self.context is not None:
                sock = self.context.wrap_socket(sock, self.server_hostname)
                sock.do_handshake()
            return sock
        except BaseException:
            # Refused, or interrupted half way: nobody else has it.
            sock.close()
            raise


def _waited_for(sock: socket.socket) -> bool:
    """Tell whether a greenlet is in the middle of a recv() or send()."""
    events = (sock._read_event, sock._write_event)  # type: ignore[attr-defined]
    return any(event is not None and event.callback is not None for event in events)


def _address(address: Any) -> tuple[str, int] | str | bytes:
    if isinstance(address, (str, bytes, os.PathLike)):
        return os.fspath(address)
    try:
        host, port = address
    except (TypeError, ValueError):
        host = port = None
    if not isinstance(host, str) or not isinstance(port, int):
        raise TypeError(f"address must be (host, port) or the path of a Unix socket: {address!r}")
    return host, port
