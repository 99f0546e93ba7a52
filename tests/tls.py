"""A TLS server in this process, with a certificate of its own."""

import ssl
import subprocess

import gevent
import gevent.ssl
from gevent import socket
from gevent.pool import Group

__all__ = ["TlsServer", "make_certificate"]


def make_certificate(directory):
    """Write a self-signed certificate for localhost and its key; return their paths."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    return str(cert), str(key)


class TlsServer:
    """Answers every HTTP request with its path; `connections` are its ends of them."""

    withheld = 0  # bytes that each answer announces and does not have

    def __init__(self, cert, key, version=ssl.TLSVersion.TLSv1_3):
        self.context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = self.context.maximum_version = version
        self.context.load_cert_chain(cert, key)
        self.connections = []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.greenlets = Group()

    @property
    def url(self):
        return f"https://localhost:{self.port}"

    def __enter__(self):
        self.greenlets.spawn(self.accept)
        return self

    def __exit__(self, *error):
        self.greenlets.kill()
        self.listener.close()
        for connection in self.connections:
            connection.close()

    def accept(self):
        while True:
            self.greenlets.start(gevent.Greenlet(self.serve, self.listener.accept()[0]))
            gevent.sleep(0)  # so that a kill finds it where it closes its socket

    def serve(self, sock):
        sock = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        try:
            sock.do_handshake()
            self.connections.append(sock)
            with sock.makefile("rb") as stream:
                while line := stream.readline():
                    while stream.readline().strip():
                        pass
                    path = line.split()[1]
                    length = len(path) + self.withheld
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + path)
        except OSError:
            pass  # the client does not trust us, or has gone
        finally:
            sock.close()
