"""A keep-alive HTTP/1.1 server that is slow and wicked on request.

    python -m tests.http_server --port 8000 --control-port 8001 --delay 0.02

Every answer is a JSON object that echoes its request, so that an answer that
belongs to somebody else is recognised: `method`, `path` (with the query),
`tag` (of the query or the X-Tag header; echoed in an X-Tag header too), `body`,
`headers` (lower-case names), and the ordinals `connection` and `request`.

The query says how to answer.  All can be combined:

- delay=SECONDS   before the answer
- status=404      any status
- redirect=/path  302 (or *status*) to there
- auth=user:word  401 with a Basic challenge, unless this user asks
- header=Name:v   a further header of the answer; may be given again
- size=N          pad the body with N bytes
- body=chunked    instead of Content-Length
- drip=SECONDS    send the body byte by byte, with this pause between
- cut=N           send N bytes of the body only, then close the connection,
- then=hang|rst   or hang, or reset the connection
- close=1         say Connection: close, and close
- fin=1           say keep-alive, and close all the same, right after the answer
- silent=1        read the request and never answer

The control port answers /stats, /behave?SETTINGS (defaults for the above),
/close (idle=1: only connections that wait for a request; rst=1: by reset) and
/reset.  Asking there counts nowhere.
"""

import argparse
import base64
import json
import struct
from collections import Counter
from http import HTTPStatus
from itertools import count
from urllib.parse import parse_qs, urlsplit

import gevent
from gevent import socket
from gevent.server import StreamServer


class Connection:
    def __init__(self, server, sock):
        self.server = server
        self.socket = sock
        self.ordinal = next(server.ordinals)
        self.idle = True

    def serve(self):
        with self.socket.makefile("rb") as stream:
            while request := self.read_request(stream):
                self.idle = False
                self.server.count(request)
                if not self.answer(request):
                    return
                self.idle = True

    def read_request(self, stream):
        line = stream.readline().decode("latin-1").split()
        if len(line) != 3:
            return None
        headers = {}
        while header := stream.readline().decode("latin-1").strip():
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", 0)))
        return line[0], line[1], headers, body

    def answer(self, request):
        """Answer one request; return whether the connection goes on."""
        query = parse_qs(urlsplit(request[1]).query)

        def setting(name, default=None):
            return query.get(name, [self.server.settings.get(name, default)])[-1]

        gevent.sleep(float(setting("delay", 0)))
        if setting("silent"):
            gevent.sleep(3600)

        close = bool(setting("close")) or request[2].get("connection", "").lower() == "close"
        status, headers = self.status_and_headers(request, setting)
        headers += [tuple(header.split(":", 1)) for header in query.get("header", [])]
        headers.append(("Connection", "close" if close else "keep-alive"))
        payload = self.payload(request, setting)
        if status in (204, 304):
            payload = b""
        elif setting("body") == "chunked":
            headers.append(("Transfer-Encoding", "chunked"))
            half = len(payload) // 2
            payload = chunk(payload[:half]) + chunk(payload[half:]) + chunk(b"")
        else:
            headers.append(("Content-Length", str(len(payload))))
        if request[0] == "HEAD":
            payload = b""

        cut = setting("cut")
        if cut is not None:
            payload = payload[: int(cut)]
        self.send(self.head(status, headers), payload, setting("drip"))
        if cut is not None:
            if setting("then") == "hang":
                gevent.sleep(3600)
            if setting("then") == "rst":
                self.reset()
            return False
        return not close and not setting("fin")

    def status_and_headers(self, request, setting):
        status = int(setting("status", 200))
        headers = [("Content-Type", "application/json")]
        if tag := setting("tag") or request[2].get("x-tag"):
            headers.append(("X-Tag", tag))
        if setting("redirect"):
            status = status if status != 200 else 302
            headers.append(("Location", setting("redirect")))
        if setting("auth") and not authorized(request[2], setting("auth")):
            status = 401
            headers.append(("WWW-Authenticate", 'Basic realm="tests"'))
        return status, headers

    def payload(self, request, setting):
        method, path, headers, body = request
        echo = {
            "method": method,
            "path": path,
            "tag": setting("tag") or headers.get("x-tag"),
            "body": body.decode("latin-1"),
            "headers": headers,
            "connection": self.ordinal,
            "request": self.server.requests,
        }
        if setting("size"):
            echo["padding"] = "x" * int(setting("size"))
        return json.dumps(echo).encode()

    def head(self, status, headers):
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def send(self, head, payload, drip):
        if drip is None:
            self.socket.sendall(head + payload)
            return
        self.socket.sendall(head)
        for byte in range(len(payload)):
            gevent.sleep(float(drip))
            self.socket.sendall(payload[byte : byte + 1])

    def reset(self):
        """Have the close send RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def authorized(headers, user_and_word):
    expected = base64.b64encode(user_and_word.encode()).decode()
    return headers.get("authorization") == f"Basic {expected}"


class Server:
    def __init__(self, settings):
        self.original_settings = settings
        self.connections = {}  # Connection: the greenlet that serves it
        self.reset()

    def reset(self):
        self.close(list(self.connections))
        self.settings = dict(self.original_settings)
        self.ordinals = count(1)
        self.accepted = self.peak = self.requests = 0
        self.posts = Counter()

    def count(self, request):
        self.requests += 1
        if request[0] == "POST":
            self.posts[request[1]] += 1

    def serve(self, sock, address):
        connection = Connection(self, sock)
        self.accepted += 1
        self.connections[connection] = gevent.getcurrent()
        self.peak = max(self.peak, len(self.connections))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.serve()
        except OSError:
            pass  # the client has gone, which is its right
        finally:
            self.connections.pop(connection, None)
            sock.close()

    def close(self, connections, rst=False):
        for connection in connections:
            if rst:
                connection.reset()
            self.connections[connection].kill(block=False)
        # Counted as closed when this is answered, and closed in fact.
        gevent.joinall([self.connections[c] for c in connections if c in self.connections])

    def control(self, sock, address):
        with sock.makefile("rb") as stream:
            target = urlsplit(stream.readline().decode().split()[1])
            while stream.readline().strip():
                pass
        query = {name: values[-1] for name, values in parse_qs(target.query).items()}
        result = {}
        if target.path == "/close":
            chosen = [c for c in self.connections if c.idle or "idle" not in query]
            self.close(chosen, rst="rst" in query)
            result = {"closed": len(chosen)}
        elif target.path == "/behave":
            self.settings |= query
        elif target.path == "/reset":
            self.reset()
        elif target.path == "/stats":
            result = {name: getattr(self, name) for name in ("accepted", "peak", "requests")}
            result["open"] = len(self.connections)
            result["same_posts"] = max(self.posts.values(), default=0)
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(result).encode())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control-port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    server = Server({"delay": options.delay})
    StreamServer(("127.0.0.1", options.port), server.serve, backlog=1024).start()
    StreamServer(("127.0.0.1", options.control_port), server.control).serve_forever()


if __name__ == "__main__":
    main()
