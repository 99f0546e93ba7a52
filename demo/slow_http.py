"""`tests.http_server`, slow on purpose, which counts only connections that are open.

It sees that a client has hung up when it is done with the slow answer, and
meanwhile the client has long had another connection.  So that the two do not
count as open at once, it looks before it counts.
"""

from tests import http_server
from tests.proxy import hung_up
from tests.servers import HttpServer

DELAY = 0.02  # seconds before each answer


class ExactServer(http_server.Server):
    def serve(self, sock, address):
        for connection in [c for c in self.connections if hung_up(c.socket)]:
            del self.connections[connection]
        super().serve(sock, address)


class SlowHttpServer(HttpServer):
    def __init__(self):
        super().__init__(delay=DELAY)

    def command(self):
        return ["demo.slow_http" if w == "tests.http_server" else w for w in super().command()]


if __name__ == "__main__":
    http_server.Server = ExactServer
    http_server.main()
