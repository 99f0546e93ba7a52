"""The partial style: a pool of sockets, made by a function with its arguments filled in."""

from functools import partial

import gevent
from gevent.server import StreamServer
from gevent.socket import create_connection

from gpools import ConnectionPool


def serve(sock, address):
    print("the server accepts a connection")
    while data := sock.recv(100):
        sock.sendall(data.upper())


server = StreamServer(("127.0.0.1", 0), serve)
server.start()

connect = partial(create_connection, server.address, timeout=5)


def shout(pool, word):
    with pool.item(timeout=5) as sock:
        sock.sendall(word)
        return sock.recv(100)


with ConnectionPool(max_size=1, create=connect) as pool:
    workers = [gevent.spawn(shout, pool, word) for word in (b"one", b"two", b"three")]
    gevent.joinall(workers, raise_error=True)
    print(b" ".join(worker.value for worker in workers).decode())
