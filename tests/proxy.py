"""A TCP proxy in front of a server that fails in every way a network can.

    with FaultProxy(server.address) as proxy:
        client = connect(proxy.host, proxy.port)

        proxy.fault = hang(5)             # for connections made from now on
        proxy.script = [reset(), passing] # first for these, one each

        proxy.fault = hang(7, REQUEST)    # the server gets 7 bytes, then nothing
        victim = spawn(use, client)
        proxy.stopped.wait()              # the 7th byte has gone through
        victim.kill()
        proxy.resume()                    # what was held back goes on its way

It is made of greenlets of this process, so its clients must be cooperative.
"""

import select
import struct
from dataclasses import dataclass

import gevent
from gevent import monkey, socket
from gevent.event import Event

from tests.servers import free_port
from tests.waiting import until

__all__ = [
    "REPLY",
    "REQUEST",
    "Fault",
    "FaultProxy",
    "black_hole",
    "close",
    "drip",
    "hang",
    "passing",
    "reset",
]

REQUEST, REPLY = "request", "reply"


@dataclass(frozen=True)
class Fault:
    """What befalls one connection: after *after* bytes of *stream*, *then*.

    *then* is "hang", "close" (FIN) or "reset" (RST), or None: nothing happens.
    """

    then: str | None = None
    after: int = 0
    stream: str = REPLY
    drip: bool = False


def hang(after=0, stream=REPLY):
    """Let *after* bytes of the stream through, and hold the rest until `resume`."""
    return Fault("hang", after, stream)


def close(after=0, stream=REPLY):
    """Let *after* bytes of the stream through, then close both sides (FIN)."""
    return Fault("close", after, stream)


def reset(after=0, stream=REPLY):
    """Let *after* bytes of the stream through, then reset the client (RST)."""
    return Fault("reset", after, stream)


passing = Fault()
drip = Fault(drip=True)  # one byte per turn, both ways
black_hole = Fault("black hole")  # accepted, never read, never answered


class Link:
    """One proxied connection; `request` and `reply` are the bytes let through."""

    def __init__(self, proxy, client, fault):
        self.proxy = proxy
        self.client = client
        self.fault = fault
        self.server = None
        self.request = bytearray()
        self.reply = bytearray()
        self.pumps = []

    def run(self):
        if self.fault == black_hole:
            self.hold(Event())
        self.server = socket.create_connection(self.proxy.target)
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pumps = [
            gevent.spawn(self.pump, self.client, self.server, REQUEST),
            gevent.spawn(self.pump, self.server, self.client, REPLY),
        ]
        gevent.joinall(self.pumps, count=1)

    def pump(self, source, target, stream):
        try:
            while data := source.recv(65536):
                self.forward(data, target, stream)
        except OSError:
            pass  # one side has gone; the other is told by the close

    def forward(self, data, target, stream):
        seen = getattr(self, stream)
        if self.fault.then and self.fault.stream == stream:
            before, data = self.split(data, self.fault.after - len(seen))
            self.send(before, target, seen)
            if len(seen) == self.fault.after:
                self.strike()
        self.send(data, target, seen)

    @staticmethod
    def split(data, at):
        return (data[:at], data[at:]) if at >= 0 else (b"", data)

    def send(self, data, target, seen):
        step = 1 if self.fault.drip else max(len(data), 1)
        for start in range(0, len(data), step):
            target.sendall(data[start : start + step])
            seen += data[start : start + step]
            if self.fault.drip:
                gevent.sleep(0.001)  # a sleep of 0 would let nobody read

    def strike(self):
        """The byte that the fault waits for has gone through."""
        then, self.fault = self.fault.then, passing
        if then == "reset":
            self.reset_on_close()
        self.proxy.struck(self)
        if then != "hang":
            raise ConnectionAbortedError(then)
        self.hold(self.proxy.resumed)

    def hold(self, event):
        """Wait for *event*, unread, unless the client hangs up before it."""
        while not event.wait(0.005):
            if hung_up(self.client):
                raise ConnectionAbortedError("the client hung up")

    def reset_on_close(self):
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def end(self):
        gevent.killall(self.pumps)
        self.client.close()
        if self.server is not None:
            self.server.close()


def hung_up(end):
    """Tell whether the peer has closed, whatever lies unread before that."""
    poll = monkey.get_original("select", "poll")()
    poll.register(end, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


class FaultProxy:
    """Listens on a loopback port of its own and passes on to *target*.

    - `fault`: for connections made from now on; `script`: first for these
    - `stopped`: an Event, set when a fault has struck; `resume()` clears it
    - `made`, `open`, `peak`: connections; `links`: all of them, in order
    """

    host = "127.0.0.1"

    def __init__(self, target, fault=passing):
        self.target = target
        self.fault = fault
        self.script = []
        self.port = free_port()
        self.links = []
        self.peak = 0
        self.stopped = Event()
        self.resumed = Event()
        self._live = {}  # Link: the greenlet that runs it
        self._listener = self._acceptor = None
        self._crowd = []

    def __repr__(self):
        return f"<FaultProxy {self.host}:{self.port} {self.made} made, {self.open} open>"

    @property
    def address(self):
        return (self.host, self.port)

    @property
    def made(self):
        return len(self.links)

    @property
    def open(self):
        return len(self._live)

    def __enter__(self):
        return self.listen()

    def __exit__(self, *error):
        self.refuse()
        self.close_all()

    def listen(self, backlog=1024):
        """Accept again after `refuse` or `never_accept`."""
        self.refuse()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(self.address)
        self._listener.listen(backlog)
        self._acceptor = gevent.spawn(self._accept)
        return self

    def refuse(self):
        """Close the port: new connections are refused, open ones go on."""
        if self._listener is not None:
            self._acceptor.kill()
            self._listener.close()
            self._listener = None
        while self._crowd:
            self._crowd.pop().close()

    def never_accept(self):
        """Let new connections hang before they are made, as behind a firewall."""
        self.listen(backlog=0)
        self._acceptor.kill()
        # The kernel accepts a few by itself; fill its queue until one hangs.
        while not self._crowd or self._connected(self._crowd[-1]):
            self._crowd.append(socket.socket())
            self._crowd[-1].setblocking(False)
            self._crowd[-1].connect_ex(self.address)

    @staticmethod
    def _connected(client):
        try:
            client.getpeername()
        except OSError:
            return False
        return True

    def close_all(self):
        """Close every open connection (FIN)."""
        self._end_all()

    def reset_all(self):
        """Reset every open connection (RST)."""
        for link in self._live:
            link.reset_on_close()
        self._end_all()

    def resume(self):
        """Let go what is held back, and be ready for the next fault."""
        self.stopped.clear()
        self.resumed.set()

    def struck(self, link):
        self.resumed.clear()
        self.stopped.set()

    def settled(self):
        """Wait until every connection that its client has closed is closed."""
        until(lambda: self.open == 0)

    def _end_all(self):
        links = dict(self._live)
        gevent.killall(list(links.values()))
        for link in links:
            self._end(link)  # for one killed before it ran

    def _end(self, link):
        link.end()
        self._live.pop(link, None)

    def _accept(self):
        while True:
            client, _ = self._listener.accept()
            link = Link(self, client, self.script.pop(0) if self.script else self.fault)
            self.links.append(link)
            self._live[link] = gevent.spawn(self._run, link)
            self.peak = max(self.peak, self.open)

    def _run(self, link):
        try:
            link.run()
        except OSError:
            link.reset_on_close()  # the server refuses; this is as near as it gets
        finally:
            self._end(link)
