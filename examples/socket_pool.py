"""SocketPool: who speaks a protocol of his own never finds what another has left on a socket."""

from contextlib import suppress

import gevent
from gevent.server import StreamServer

from gpools import SocketPool


def serve(sock, address):
    with suppress(OSError):  # the client has gone
        for line in sock.makefile("rb"):
            gevent.sleep(0.2 if b"slow" in line else 0)
            sock.sendall(line.upper())


def ask(question):
    with pool.item(timeout=5) as sock:
        sock.sendall(question.encode() + b"\n")
        return sock.recv(1000).decode().strip()


server = StreamServer(("127.0.0.1", 0), serve)
server.start()
with SocketPool(server.address, max_size=1, timeout=5) as pool:
    print(ask("one"), pool)

    with gevent.Timeout(0.05, False):
        ask("slow")
    print("the answer to slow is still on its way:", pool)
    print(ask("two"))

    with pool.item() as sock:
        sock.sendall(b"three\n")
        sock.settimeout(0.001)
        gevent.sleep(0.1)
    print("an answer was not read:", pool)
    print(ask("four"))
server.stop()
