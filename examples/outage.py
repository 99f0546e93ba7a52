"""An outage: creation in the background asks now and then; callers fail fast meanwhile."""

import gevent
from gevent import socket
from gevent.server import StreamServer

from gpools import ConnectionPool, PoolUnavailable


def connect():
    tries.append(1)
    return socket.create_connection(address, timeout=5)


def call():
    try:
        with pool.item(timeout=5) as sock:
            return f"served by {sock.recv(100).decode()}"
    except PoolUnavailable:
        return "refused at once"
    except OSError as error:
        return type(error).__name__


with socket.socket() as free:  # an address where nobody listens
    free.bind(("127.0.0.1", 0))
    address = free.getsockname()

tries = []
pool = ConnectionPool(max_size=10, max_creating=4, create=connect)
print(call())
print({call() for _ in range(10)}, len(tries), "try")

server = StreamServer(address, lambda sock, _: sock.sendall(b"the server"))
server.start()
gevent.sleep(0.1)  # longer than the pause after the first failure
print(call())
pool.close()
