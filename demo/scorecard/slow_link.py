"""A relay between a pool and its server: it is slow, and counts the connections."""

import os
from contextlib import suppress
from random import Random

import gevent
from gevent import socket
from gevent.monkey import get_original
from gevent.server import StreamServer

RECEIVE_BUFFER = 8192  # small, so that large commands are interrupted while they are written
PLAIN_SOCKET = get_original("socket", "socket")


class SlowLink:
    """Relay to *address*, each piece of an answer after up to *delay* seconds."""

    def __init__(self, address, delay, seed):
        self.upstream = address
        self.delay = delay
        self.random = Random(seed)
        self.peak = 0  # most clients at once
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        self.address = listener.getsockname()
        self.server = StreamServer(listener, self.serve)
        self.server.start()

    def serve(self, client, _):
        self.peak = max(self.peak, self.connected())
        try:
            with socket.create_connection(self.upstream) as server:
                asking = gevent.spawn(self.relay, client, server, 0.0005)
                self.relay(server, client, self.delay)
                asking.kill()
        except OSError:
            pass  # the server is down

    def relay(self, source, target, delay):
        with suppress(OSError):
            while data := source.recv(65536):
                gevent.sleep(self.random.uniform(0, delay))
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def connected(self):
        """Count the sockets of this process that are connected to the link.

        They are the contender's.  At our ends of them a hang-up would be seen only
        behind all that was written before it.
        """
        return sum(_peer(int(fileno)) == self.address for fileno in os.listdir("/dev/fd"))


def _peer(fileno):
    try:
        sock = PLAIN_SOCKET(fileno=fileno)
    except OSError:
        return None  # another kind of file
    try:
        return sock.getpeername()
    except OSError:
        return None
    finally:
        sock.detach()
