"""redis-py's connections, made to know what their users leave behind on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from math import inf
from socket import SHUT_RDWR
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import redis

from gpools.adapters._half_open import close_half_open
from gpools.adapters._probe import JUST_NOW, quiet
from gpools.adapters._short_send import short_send
from gpools.connection import ConnectionPool
from gpools.errors import PoolError

try:
    from redis.maint_notifications import MaintNotificationsConfig
except ImportError:  # redis-py before 6.4
    NO_NOTICES = None
else:
    # A notice that nobody asked for would look like a stray reply.
    NO_NOTICES = MaintNotificationsConfig(enabled=False)

# Commands that leave something behind on the connection, and those that undo it.
_LEAVES = frozenset(
    """AUTH HELLO SELECT READONLY READWRITE ASKING MONITOR RESET QUIT SYNC PSYNC REPLCONF
    SUBSCRIBE PSUBSCRIBE SSUBSCRIBE UNSUBSCRIBE PUNSUBSCRIBE SUNSUBSCRIBE""".split()  # noqa: SIM905
)
# By their first words, those, others that may leave something, and one that redis-py sees to.
_NOTED = _LEAVES | frozenset(
    "CLIENT SCRIPT MULTI WATCH EXEC DISCARD UNWATCH HIMPORT".split()  # noqa: SIM905
)
_CLIENT_READS = frozenset(
    "LIST INFO ID GETNAME GETREDIR PAUSE UNPAUSE UNBLOCK HELP".split()  # noqa: SIM905
)


class Tracked:
    """Mixed into redis-py's connections: knows what its user left behind on it."""

    retired = False
    home: Callable[[], ConnectionPool[Any] | None] = staticmethod(lambda: None)  # the pool it is of

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.owed = 0  # replies that nobody has read yet
        self.left: set[str] = set()  # commands whose effect is still there
        self.heard = -inf  # when the last reply was read
        self._shaking_hands = False  # what is sent now is no user's
        self._unwatching = False  # the next reply is that of UNWATCH
        super().__init__(*args, **kwargs)

    @property
    def open(self) -> bool:
        return self._sock is not None  # type: ignore[attr-defined]

    def unread(self, trusted: float = 0.0) -> bool:
        """Tell whether the server has hung up, or sent what nobody has read; never switches.

        A socket that was read less than *trusted* seconds ago is not looked at.
        redis-py's can_read() switches, in a patched program that has hiredis.
        """
        parser: Any = self._parser  # type: ignore[attr-defined]
        try:
            reader = getattr(parser, "_reader", None)  # hiredis's
            ahead = parser._buffer.unread_bytes() if reader is None else reader.has_data()
        except AttributeError:  # a parser of the program's own
            return bool(self.can_read(timeout=0))  # type: ignore[attr-defined]
        just_read = trusted > 0 and monotonic() - self.heard < trusted
        return bool(ahead) or not (just_read or quiet(self._sock))  # type: ignore[attr-defined]

    @property
    def blemish(self) -> str | None:
        """Tell why the next user must not get it, or None if he may."""
        if self.owed:
            return f"{self.owed} replies were not read"
        if self.left:
            return f"{', '.join(sorted(self.left))} left its mark"
        if not self.open:
            return "it was closed"
        return None

    def fault(self) -> str | None:
        """The same, with a look at what has come unasked; never switches."""
        if self.owed or self.left or self._sock is None:  # type: ignore[attr-defined]
            return self.blemish
        if self.unread(JUST_NOW):
            return "the server has hung up, or sent what nobody had asked for"
        return None

    def retire(self) -> None:
        """Close it; whoever still has it cannot open it again."""
        self.retired = True
        self.disconnect()

    def hang_up(self) -> None:
        """Close it, or have whoever waits for a reply on it find it closed."""
        sock = self._sock  # type: ignore[attr-defined]
        if sock is None or not self.blemish:
            self.disconnect()
            return
        # A socket that is closed under a greenlet which waits for it raises what
        # redis-py does not catch.
        with suppress(OSError):
            sock.shutdown(SHUT_RDWR)

    def filenos(self) -> list[int]:
        sock = self._sock  # type: ignore[attr-defined]
        return [] if sock is None else [sock.fileno()]

    def connect(self) -> None:
        if not self.open:
            self._shake_hands(super().connect)  # type: ignore[misc]

    def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        if not self.open:
            self._shake_hands(super().connect_check_health, *args, **kwargs)  # type: ignore[misc]

    def _shake_hands(self, connect: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        outer, self._shaking_hands = self._shaking_hands, True
        try:
            connect(*args, **kwargs)
        except BaseException:
            # Failed or killed half way; redis-py closes it only after its own errors.
            self._shaking_hands = outer
            self.disconnect()
            raise
        self._shaking_hands = outer

    def _connect(self) -> Any:
        if self.retired:
            raise redis.ConnectionError("the pool has closed this connection for good")
        try:
            return short_send(super()._connect())  # type: ignore[misc]
        except BaseException as error:
            close_half_open(self, error)
            raise

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        if not self._shaking_hands:
            self.owed = 0
            self.left.clear()
        super().disconnect(*args, **kwargs)  # type: ignore[misc]

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        if leaves_nothing(args[0]) and not self.health_check_interval:  # type: ignore[attr-defined]
            # Most do; what follows would come to the same.
            packed = self._command_packer.pack(*args)  # type: ignore[attr-defined]
            self._unwatching = False
            if not self._shaking_hands:
                self.owed += 1
            super().send_packed_command(packed, False)  # type: ignore[misc]
            return
        if args[0] == "UNWATCH" and (not self.open or _in_destructor() or _interrupted()):
            # A pipeline's reset.  It would connect anew to say so, or wait in a
            # destructor, where kills are swallowed, or wait for the server when its
            # user's time is over; after this error it closes the connection instead.
            raise redis.ConnectionError("nothing is watched on a closed connection")
        self._unwatching = args[0] == "UNWATCH"
        packed = self.pack_command(*args)
        try:
            self.send_packed_command(packed, kwargs.get("check_health", True))
        except BaseException as error:
            # Whatever it is, a pipeline's reset may not go on after it.
            self._see_reset_through(error)
            raise

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        check_health = check_health and bool(self.health_check_interval)  # type: ignore[attr-defined]
        if check_health and self.open:
            # It may connect anew, and what is about to be sent was noted already.
            owed, left = self.owed, set(self.left)
            self.check_health()  # type: ignore[attr-defined]
            self.owed, self.left = owed, left
            check_health = False
        super().send_packed_command(command, check_health)  # type: ignore[misc]

    def pack_command(self, *args: Any) -> Any:
        packed = super().pack_command(*args)  # type: ignore[misc]
        self._note(args)  # not of what cannot be packed: it is not sent
        return packed

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        commands = list(commands)
        packed = super().pack_commands(commands)  # type: ignore[misc]
        for command in commands:
            self._note(command)
        return packed

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            reply = super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.ResponseError:
            self._read_one()
            raise
        except BaseException as error:
            # As in `send_command`.
            self._see_reset_through(error)
            raise
        self.heard = monotonic()
        if not kwargs or not kwargs.get("push_request"):
            self._read_one()
        # else it may be a message, which was not owed
        return reply

    def _see_reset_through(self, error: BaseException) -> None:
        """Have the connection come back though UNWATCH was not answered.

        The reset of a pipeline gives it back after a ConnectionError only, and
        after a Timeout or a kill the error keeps the pipeline.
        """
        unwatching, self._unwatching = self._unwatching, False
        if not unwatching:
            return
        if isinstance(error, Exception):
            raise redis.ConnectionError("UNWATCH was not answered") from error
        home = self.home()
        if home is not None:
            with suppress(PoolError):  # not out, or of another thread
                home.discard(self)

    def _read_one(self) -> None:
        self._unwatching = False
        if not self._shaking_hands:
            self.owed -= 1

    def _note(self, command: Sequence[Any]) -> None:
        if leaves_nothing(command[0]):
            if not self._shaking_hands:
                self.owed += 1
            return
        # redis-py takes "CLIENT SETNAME" and "SELECT 3" for two words, too.
        words = [*_word(command[0]).split(), *map(_word, command[1:2])]
        name = words[0] if words else ""
        if self._shaking_hands:
            if name.endswith("SUBSCRIBE"):  # a pubsub's, which connects anew
                self.left.add(name)
            return
        self.owed += 1
        if name in _LEAVES:
            self.left.add(name)
        elif name == "CLIENT":
            if words[1:2] and words[1] not in _CLIENT_READS:
                self.left.add(" ".join(words[:2]))
        elif words[:2] == ["SCRIPT", "DEBUG"]:
            self.left.add("SCRIPT DEBUG")
        elif name in ("MULTI", "WATCH"):
            self.left.add(name)
        elif name in ("EXEC", "DISCARD"):
            if "MULTI" in self.left:  # else it is an error, and ends no WATCH
                self.left -= {"MULTI", "WATCH"}
        elif name == "UNWATCH":
            self.left.discard("WATCH")


try:
    from redis.observability import providers, recorder
except ImportError:  # redis-py before 7.2

    def observed() -> bool:
        """Tell whether anybody collects redis-py's metrics."""
        return False

else:

    def observed() -> bool:
        """Tell whether anybody collects redis-py's metrics."""
        if recorder._metrics_collector is not None:
            return True
        instance = providers._observability_instance
        return instance is not None and instance.get_provider_manager() is not None


def address(options: dict[str, Any]) -> str:
    """Name a server by the *options* of its connections, without its password."""
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"{place}/{options.get('db') or 0}"


def checked_url(url: str) -> str:
    """Return *url*, or raise ValueError where urllib's error would show half of a password."""
    with suppress(ValueError):
        urlsplit(url).port  # noqa: B018
        return url
    raise ValueError(_GARBLED)  # not in an except clause, for then it would have that error


_GARBLED = "the host or port in the URL is not valid; in a password, write %2F for / and %23 for #"


def number_in_url(name: str, value: str | float) -> float:
    """Make a number of a *value*, which some versions of redis-py leave as it stands in a URL."""
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {value!r}") from None


def _in_destructor() -> bool:
    """Tell whether the caller of whoever sends this command is a destructor."""
    return sys._getframe(3).f_code.co_name == "__del__"


def _interrupted() -> bool:
    """Tell whether a Timeout or a kill is on its way through the caller."""
    error = sys.exc_info()[1]
    return error is not None and not isinstance(error, Exception)


def leaves_nothing(command: Any) -> bool:
    """Tell by the first argument of a command that its connection will be as it was."""
    return type(command) is str and _harmless(command)


@lru_cache(maxsize=512)
def _harmless(command: str) -> bool:
    words = command.split()
    return bool(words) and words[0].upper() not in _NOTED


def _word(argument: Any) -> str:
    if isinstance(argument, (bytes, bytearray, memoryview)):
        argument = bytes(argument).decode("latin-1")
    return str(argument).upper()


@cache
def tracked(connection_class: type) -> type:
    if issubclass(connection_class, Tracked):
        return connection_class
    return type(f"Pooled{connection_class.__name__}", (Tracked, connection_class), {})
