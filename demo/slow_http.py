"""`tests.http_server`, slow on purpose, and quick to see that a client has hung up.

Most servers are, nginx for one.  Without it a connection that the client has
dropped would count as open until its slow answer is ready, beside the one that
took its place.
"""

import sys

import gevent
from gevent import select, socket

from tests import http_server
from tests.servers import HttpServer

DELAY = 0.02  # seconds before each answer


class Attentive(http_server.Connection):
    def answer(self, request):
        if select.select([self.socket], [], [], DELAY)[0]:
            if not self.socket.recv(1, socket.MSG_PEEK):
                return False
            gevent.sleep(DELAY)
        return super().answer(request)


class SlowHttpServer(HttpServer):
    def command(self):
        ports = ["--port", self.port, "--control-port", self.control_port]
        return [sys.executable, "-m", "demo.slow_http", *ports]


if __name__ == "__main__":
    http_server.Connection = Attentive
    http_server.main()
