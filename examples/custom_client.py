"""A pool for a client of one's own: the four verbs create, check, reset and destroy."""

from gevent import Timeout, sleep, socket
from gevent.server import StreamServer

from gpools import ConnectionPool


def serve(sock, address):
    for line in sock.makefile("rb"):
        sleep(2 if b"slow" in line else 0)
        sock.sendall(line.upper())


class ShoutPool(ConnectionPool):
    def create(self):
        print("create")
        return socket.create_connection(server.address, timeout=5)

    def check(self, sock):  # an idle one is about to go out
        print("check")
        sock.sendall(b"ping\n")
        return sock.recv(100) == b"PING\n"

    def reset(self, sock):  # one comes back
        print("reset")
        sock.settimeout(5)

    def destroy(self, sock):  # one is let go for good
        print("destroy")
        sock.close()


server = StreamServer(("127.0.0.1", 0), serve)
server.start()
with ShoutPool(max_size=1) as pool:
    for words in (b"one\n", b"slow\n", b"two\n"):
        with Timeout(0.5, False), pool.item(timeout=2) as sock:
            sock.sendall(words)
            print(sock.recv(100).decode().strip())
