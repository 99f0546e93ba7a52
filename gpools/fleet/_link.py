"""The one connection of a process to a server, whatever pools are on it.

Greenlets of the program never read or write it: they are killed and timed out,
and would leave half a command or half a reply behind.  The hub does both, in
callbacks that do not switch.  A greenlet of the link's own connects, for that
waits.

A link knows nothing of tokens.  It tells its members when it is up, when it is
down, and what came for them.  A new connection has no past: its members begin
by saying how things are with them.
"""

from __future__ import annotations

import logging
import ssl
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from inspect import iscoroutinefunction
from itertools import chain
from random import choice, random
from typing import Any, Protocol

import redis
from gevent import Timeout, get_hub, sleep, spawn_raw
from gevent.monkey import is_module_patched
from redis.backoff import NoBackoff
from redis.retry import Retry

from gpools._fork import abandon, making
from gpools.adapters._half_open import close_half_open
from gpools.adapters._redis_connection import NO_NOTICES
from gpools.errors import PoolError
from gpools.fleet._resp import Push, Replies, ServerError, packed, written
from gpools.fleet._script import SHA, SOURCE

__all__ = ["Link", "Moved", "Refused", "Source"]

log = logging.getLogger("gpools")

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0  # seconds between tries to connect

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Refused(PoolError):
    """The server, or what this user may do on it, will not do: waiting would not help."""


class Moved(Exception):
    """Another node of the cluster has what was asked for."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port}")
        self.address = (host, port)


class Member(Protocol):
    """What a link calls; none of it may switch."""

    channels: tuple[bytes, ...]

    @property
    def patience(self) -> float:
        """The seconds that an answer may take."""

    def link_up(self) -> None:
        """Called when a connection stands."""

    def link_down(self, error: Exception, tried: bool) -> None:
        """Called when it is lost, and, with *tried*, when connecting has failed."""

    def denied(self, error: ServerError) -> None:
        """Called when the server does not let it listen."""

    def pushed(self, channel: bytes, message: bytes) -> None:
        """Called with what was published for it."""


class Source:
    """How to connect: what a redis-py client or a URL says."""

    def __init__(self, client_or_url: Any) -> None:
        self.trouble: str | None = None  # that was logged, until it is over
        self._cluster: redis.RedisCluster | None = None
        if isinstance(client_or_url, str):
            self.pool: Any = redis.ConnectionPool.from_url(client_or_url)
            self.key: object = client_or_url
        elif isinstance(client_or_url, redis.RedisCluster):
            node = client_or_url.get_default_node()  # type: ignore[no-untyped-call]
            kwargs = dict(client_or_url.nodes_manager.connection_kwargs)
            kwargs.update(host=node.host, port=node.port)
            self.pool = redis.Redis(**_plain(kwargs)).connection_pool
            self.key = id(client_or_url)
            self._cluster = client_or_url
        else:
            pool = getattr(client_or_url, "connection_pool", None)
            connect = getattr(getattr(pool, "connection_class", None), "connect", None)
            if connect is None or iscoroutinefunction(connect):
                raise TypeError(
                    "a fleet pool needs a redis.Redis, a redis.RedisCluster or a URL, "
                    f"not {type(client_or_url).__name__}"
                )
            self.pool = pool
            self.key = id(pool)

    def connection(self, limit: float, address: tuple[str, int] | None) -> Any:
        """Make a connection of redis-py that is not connected yet."""
        kwargs = dict(self.pool.connection_kwargs)
        if NO_NOTICES is not None:
            kwargs["maint_notifications_config"] = NO_NOTICES
        kwargs.pop("maint_notifications_pool_handler", None)
        for name in ("socket_timeout", "socket_connect_timeout"):
            kwargs[name] = min(kwargs.get(name) or limit, limit)
        kwargs.update(
            protocol=3,
            retry=Retry(NoBackoff(), 0),  # the link has its own
            health_check_interval=0,
            decode_responses=False,
        )
        if address is None and self._cluster is not None:
            # Any: the one that it was made with may be gone, and each leads to the owner.
            node = choice(self._cluster.get_nodes())  # type: ignore[no-untyped-call]
            address = (node.host, node.port)
        if address is not None:
            kwargs["host"], kwargs["port"] = address
        connection_class = self.pool.connection_class
        if issubclass(connection_class, redis.UnixDomainSocketConnection):
            kwargs.pop("socket_connect_timeout")
        return connection_class(**kwargs)


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    # What RedisCluster adds for itself.
    ours = ("redis_connect_func", "event_dispatcher", "cluster_error_retry_attempts")
    return {name: value for name, value in kwargs.items() if name not in ours}


class Link:
    """One connection, kept up while it has members."""

    def __init__(self, source: Source, address: tuple[str, int] | None, alone: str | None) -> None:
        self.source = source
        self.address = address  # of a node of a cluster, where it is not the source's own
        self.alone = alone  # the one member that it is for
        self.hub = get_hub()
        self.members: dict[bytes, list[Member]] = {}  # by channel
        self.publish = b"PUBLISH"
        self.up = False
        self.connections = 0  # so many so far
        self._abandoned = False
        self._connector: Any = None  # greenlet, while there is no connection
        self._failures = 0  # in a row, of connecting or before the first answer
        self._proven = False  # the script has answered on this connection
        self._conn: Any = None  # redis-py's, which has the socket
        self._sock: Any = None
        self._watchers: tuple[Any, ...] = ()
        self._replies = Replies()
        # In order of their commands: who hears the reply, and what to send again
        # should the server not have the script.
        self._pending: deque[tuple[Callable[[Any], None], int, bytes]] = deque()
        self._by_name = written(["EVALSHA", SHA])
        self._reading = False
        self._then: deque[Callable[[], None]] = deque()  # to be called once all is read
        self._out = bytearray()  # what the kernel would not take yet

    @classmethod
    def of(
        cls, source: Source, address: tuple[str, int] | None = None, alone: str | None = None
    ) -> Link:
        """Return the link of this hub to that server, or one that is for *alone* only."""
        key = (id(get_hub()), source.key, address, alone)
        link = _links.get(key)
        if link is None:
            link = _links[key] = cls(source, address, alone)
        return link

    def join(self, member: Member, failures: int = 0) -> None:
        """Serve *member* from now on; pause first if it has failed so often elsewhere."""
        for channel in member.channels:
            self.members.setdefault(channel, []).append(member)
        if not self.up:
            self._failures = max(self._failures, failures)
            if self._connector is None:
                self._connector = spawn_raw(self._connect)
        elif failures:
            spawn_raw(self._begin_later, member, failures, self._conn)
        else:
            self._begin(member)

    def part(self, member: Member) -> None:
        """Serve *member* no more; without members there is no connection."""
        left = []
        for channel in member.channels:
            others = [other for other in self.members.pop(channel, ()) if other is not member]
            if others:  # of the same name, which are recalled as one
                self.members[channel] = others
            else:
                left.append(channel)
        if self.members:
            if self.up:
                self._listen(b"unsubscribe", left, lambda error: None)
        else:
            self._close()
            key = (id(self.hub), self.source.key, self.address, self.alone)
            if _links.get(key) is self:  # not so in a child, which may have another
                del _links[key]

    def run(self, count: int, words: bytes, heard: Callable[[Any], None]) -> None:
        """Have the server run the script; *heard* gets the reply.

        *words* are *count* written ones: how many keys, the keys, the arguments.
        """
        self._pending.append((heard, count, words))
        self._write(b"*%d\r\n%b%b" % (count + 2, self._by_name, words))

    def soon(self, act: Callable[[], None]) -> None:
        """Have the hub call *act*; while it reads, as soon as it has read all."""
        if self._reading:
            self._then.append(act)
        else:
            self.hub.loop.run_callback(act)

    def fail(self, error: Exception) -> None:
        """Give the connection up and make another; to be called in the hub."""
        if not self._proven:
            self._failures += 1
        self._close()
        if self._abandoned:
            return
        self._note(error)
        for member in self._each():
            member.link_down(error, tried=False)
        if self.members and self._connector is None:
            self._connector = spawn_raw(self._connect)

    def abandon(self) -> None:
        """Leave the connection to the parent, in a child."""
        self._abandoned = True
        conn, self._conn = self._conn, None
        self._unwatch()  # /dev/null, which the socket becomes, is always ready
        self.members.clear()
        self.up, self._sock = False, None
        sock = getattr(conn, "_sock", None)
        if sock is not None:
            abandon([conn, sock], [sock.fileno()] if sock.fileno() >= 0 else [])

    def _each(self) -> list[Member]:
        return list(dict.fromkeys(chain(*self.members.values())))

    # Connecting, in a greenlet of its own.

    def _connect(self) -> None:
        while self.members and not self._abandoned:
            if self._failures:
                _pause(self._failures)
            try:
                self._open()
            except BaseException as error:
                # Whatever it was, a Timeout of this function's included: tried, and failed.
                if self._abandoned:
                    return
                if not self.members:
                    break  # which was the error, or makes it nobody's
                self._failures += 1
                shown = error if isinstance(error, Exception) else ConnectionError(repr(error))
                self._note(shown)
                for member in self._each():
                    member.link_down(shown, tried=True)
            else:
                break
        self._connector = None

    def _open(self) -> None:
        limit = max(0.2, min(5.0, *(member.patience for member in self._each()), 5.0))
        conn = self._conn = self.source.connection(limit, self.address)
        late = ConnectionError(f"the server has not answered within {limit:.1f} s")
        try:
            with Timeout(2 * limit, late):
                if is_module_patched("socket"):
                    hello = making(partial(_shake_hands, conn))
                else:  # redis-py blocks, so not here
                    hello = self.hub.threadpool.apply(_shake_hands, (conn,))
            if isinstance(hello, Exception):
                raise hello
            self.publish = _publish_command(hello)
            if self._abandoned or not self.members:
                raise ConnectionError("not wanted any more")
            sock = conn._sock
            sock.setblocking(False)
        except BaseException as error:
            # Failed, or cut off half way: nobody else will close it.
            if not self._abandoned:
                self._conn = None
                _disconnect(conn)
                close_half_open(conn, error)
            raise _explained(error) from error
        loop = self.hub.loop
        self._conn, self._sock, self._replies = conn, sock, Replies()
        self._watchers = (loop.io(sock.fileno(), 1), loop.io(sock.fileno(), 2))
        self._watchers[0].start(self._readable)
        self.up, self._proven, self._connector = True, False, None
        self.connections += 1
        for member in self._each():
            self._begin(member)

    def _begin(self, member: Member) -> None:
        def denied(error: Any) -> None:
            if member.channels[0] in self.members:
                member.denied(error)

        self._listen(b"subscribe", member.channels, denied)
        member.link_up()

    def _begin_later(self, member: Member, failures: int, conn: Any) -> None:
        _pause(failures)
        if conn is self._conn and member.channels[0] in self.members:  # else it has begun, or left
            self._begin(member)

    def _listen(
        self, word: bytes, channels: Iterable[bytes], denied: Callable[[Any], None]
    ) -> None:
        """Begin, or end, to listen on *channels*; *denied* gets an error reply."""
        if self.publish == b"SPUBLISH":
            word = b"s" + word
        for channel in channels:
            # One by one, for then each has one reply in its turn: a push like it, or an error.
            words = packed(word, channel)
            self._pending.append((denied, 0, words))
            self._write(words)

    def _close(self) -> None:
        self.up = False
        conn, self._conn = self._conn, None
        self._unwatch()
        self._sock = None
        self._pending.clear()
        self._out.clear()
        if conn is not None and not self._abandoned and self._connector is None:
            _disconnect(conn)

    def _unwatch(self) -> None:
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers = ()

    def _note(self, error: Exception) -> None:
        # Once for each kind of trouble; by another greenlet, for a handler may wait.
        if not isinstance(error, Moved) and self.source.trouble != type(error).__name__:
            self.source.trouble = type(error).__name__
            spawn_raw(log.warning, "the connection of a fleet pool is down: %s", str(error))

    # Reading and writing, in the hub or without switching.

    def _write(self, data: bytes) -> None:
        if self._sock is None:
            return  # `fail` is on its way, or was here
        if self._out:
            self._out += data
            return
        try:
            sent = self._sock.send(data)
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            # Not here: this may be a greenlet of the program's.
            self.hub.loop.run_callback(self._fail_if, self._sock, error)
            return
        if sent < len(data):
            self._out += data[sent:]
            self._watchers[1].start(self._writable)

    def _fail_if(self, sock: Any, error: Exception) -> None:
        if sock is self._sock:
            self.fail(error)

    def _writable(self) -> None:
        if self._abandoned:
            return
        try:
            sent = self._sock.send(self._out)
        except WOULD_BLOCK:
            return
        except OSError as error:
            self.fail(error)
            return
        del self._out[:sent]
        if not self._out:
            self._watchers[1].stop()

    def _readable(self) -> None:
        if self._abandoned:
            return
        self._reading = True
        try:
            self._read(self._sock)
        finally:
            self._reading = False
        while self._then:
            act = self._then.popleft()
            try:
                act()
            except BaseException:
                # A raw greenlet that was served has ended with an error, which is the hub's to
                # tell; raised out of here it would stop the watcher.
                self.hub.handle_error(act, *sys.exc_info())

    def _read(self, sock: Any) -> None:
        try:
            while sock is self._sock:
                data = sock.recv(65536)
                if not data:
                    raise ConnectionError("the server has closed the connection")
                for reply in self._replies.feed(data):
                    if sock is self._sock:  # else the last one was the end of it
                        self._take(reply)
                if len(data) < 65536 and not isinstance(sock, ssl.SSLSocket):
                    break
        except WOULD_BLOCK:
            pass
        except Exception as error:
            self._fail_if(sock, error)

    def _take(self, reply: Any) -> None:
        if isinstance(reply, Push):
            if reply[0] in (b"message", b"smessage"):
                for member in [*self.members.get(reply[1], ())]:
                    member.pushed(reply[1], reply[2])
            elif reply[0].endswith(b"subscribe"):
                if self._pending and self._pending[0][2] == packed(*reply[:2]):
                    self._pending.popleft()
                elif reply[0] == b"sunsubscribe" and reply[1] in self.members:
                    raise ConnectionError("the slot has moved to another node")
        elif self._pending:
            self._answer(reply, *self._pending.popleft())
        elif isinstance(reply, ServerError):
            raise _explained(reply)

    def _answer(self, reply: Any, heard: Callable[[Any], None], count: int, words: bytes) -> None:
        if isinstance(reply, ServerError):
            if str(reply).startswith("NOSCRIPT"):
                # Not run, so it may be sent again, with the script.
                self._pending.append((heard, count, words))
                whole = written(["EVAL", SOURCE])
                self._write(b"*%d\r\n%b%b" % (count + 2, whole, words))
                return
        elif not self._proven:
            self._proven, self._failures, self.source.trouble = True, 0, None
        heard(reply)


_links: dict[Any, Link] = {}


def abandon_all() -> None:
    """Forget all links, in a child."""
    for link in _links.values():
        link.abandon()
    _links.clear()


def trouble(reply: ServerError) -> Exception:
    """Say what an error reply to the script means."""
    text = str(reply)
    if text.startswith("MOVED"):
        host, _, port = text.split()[2].rpartition(":")
        return Moved(host, int(port))
    explained = _explained(reply)
    return explained if isinstance(explained, Exception) else ConnectionError(text)


def _explained(error: BaseException) -> BaseException:
    text = str(error)
    if "unknown command" in text.lower() and "HELLO" in text.upper():
        return Refused("a fleet pool needs RESP3: Redis 6 or newer, or Valkey")
    if "NOPERM" in text or "no permission" in text.lower() or "user executing the script" in text:
        return Refused(f"the user of this fleet pool lacks a right: {text}; see docs/fleet.md")
    if isinstance(error, redis.AuthenticationError):
        return Refused(f"the server refuses the user of this fleet pool: {text}")
    if isinstance(error, ServerError):
        return ConnectionError(f"the server answered {text}")
    return error


def _pause(failures: int) -> None:
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
    sleep(pause * (0.5 + random()))


def _shake_hands(conn: Any) -> dict[Any, Any] | Exception:
    try:
        conn.connect()
        conn.send_command("HELLO", 3)
        return {_text(key): _text(value) for key, value in conn.read_response().items()}
    except Exception as error:  # raised in a thread of the pool, it would be printed
        return error


def _disconnect(conn: Any) -> None:
    # Whatever its socket says to that, one made in a hub that is gone for example, the
    # members are to be told, and to have another.
    with suppress(Exception):
        conn.disconnect()


def _publish_command(hello: dict[Any, Any]) -> bytes:
    if hello.get("mode") == "sentinel":
        raise Refused(
            "this is a Sentinel, which keeps no data; give a fleet pool "
            "redis.Sentinel(...).master_for(service)"
        )
    if hello.get("mode") != "cluster":
        if hello.get("role") in ("replica", "slave"):
            raise ConnectionError("the server is a replica, which grants nothing")
        return b"PUBLISH"
    # Here a replica, too, tells who owns the slot.
    if hello.get("server") == "redis" and int(str(hello["version"]).split(".")[0]) < 7:
        raise Refused("in a cluster a fleet pool needs Redis 7 or newer, for SPUBLISH")
    return b"SPUBLISH"


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
