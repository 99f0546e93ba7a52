"""`MySQLPool`: PyMySQL connections."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from functools import cache
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from weakref import WeakSet

from gevent import Timeout

from gpools._fast import MISSING, Missing
from gpools.adapters._blocking import refuse_blocking, tell_unpatched, wrong_item
from gpools.adapters._extra import extra
from gpools.adapters._half_open import close_half_open
from gpools.adapters._probe import quiet
from gpools.adapters._slots import Kept, give_back, kept_in_slots
from gpools.adapters._verbs import join_verbs
from gpools.connection import ConnectionPool, split_settings
from gpools.errors import PoolError

with extra("mysql"):
    from pymysql import connections, err  # type: ignore[import-untyped]
    from pymysql.connections import Connection  # type: ignore[import-untyped]
    from pymysql.constants import (  # type: ignore[import-untyped]
        COMMAND,
        CR,
        SERVER_STATUS,
    )
    from pymysql.cursors import Cursor  # type: ignore[import-untyped]

__all__ = ["MySQLPool"]

_RESET_CONNECTION = 0x1F  # PyMySQL has no name for it
_GOODBYE = b"\1\0\0\0\1"  # a packet of one byte, COM_QUIT

# Errors after which the server hangs up or has stopped being one to write to.
# PyMySQL closes the connection itself after those of the network.
_LOST = frozenset(
    [
        CR.CR_SERVER_GONE_ERROR,
        CR.CR_SERVER_LOST,
        CR.CR_COMMANDS_OUT_OF_SYNC,
        1053,  # server shutdown in progress
        *range(1152, 1162),  # aborted, packet too large, packets out of order ...
        1184,  # aborted by the server
        1290,  # read only: it has become a replica
        1836,  # the same, in MySQL
        1927,  # killed, in MariaDB
        4031,  # idle for too long, in MySQL
    ]
)

_SCHEMES = ("mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql")
_NUMBERS = ("connect_timeout", "read_timeout", "write_timeout", "max_allowed_packet", "client_flag")
_FLAGS = ("autocommit", "local_infile", "use_unicode")
_TLS_FLAGS = ("ssl_disabled", "ssl_verify_cert", "ssl_verify_identity")


class MySQLPool(ConnectionPool[Connection]):
    """A pool of PyMySQL connections, to MySQL or MariaDB.

    ::

        pool = MySQLPool(host="127.0.0.1", user="root", max_size=10, read_timeout=30)
        with pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute("INSERT INTO visits VALUES (%s)", [page])

    Give the keyword arguments of `pymysql.connect`, or a *url*,
    ``mysql://user:password@host:port/database?charset=utf8mb4``, or both: the
    keywords win.  The other parameters are those of `ConnectionPool`.

    What a user leaves behind never reaches the next: a returned connection is
    reset, which takes three or four round trips if it was used and none if not.  With
    *reset_session* False only an open transaction is rolled back and the mode
    of autocommit restored, in one round trip each, where needed.  Variables,
    locks, temporary tables and prepared statements then stay.  A reset
    that takes longer than *reset_timeout* seconds ends the connection.

    *connect_timeout*, 10 s unless given, bounds all of connecting, handshake
    and *init_command* included.  A pooled connection never reconnects.

    Raises ValueError and TypeError for what PyMySQL would not take.
    """

    _mysql: Connection  # a model, never connected
    _reset_session: bool
    _reset_timeout: float | None

    def __init__(
        self,
        url: str | None = None,
        *,
        min_size: int = 0,
        max_size: int = 4,
        order_as_stack: bool = False,
        create: Callable[[], Connection] | None = None,
        reset_session: bool = True,
        reset_timeout: float | None = 5.0,
        **options: Any,
    ) -> None:
        settings, mysql_options = split_settings(options)
        if "defer_connect" in mysql_options:
            raise TypeError("defer_connect cannot be given: the pool connects what it hands out")
        if reset_timeout is not None and not reset_timeout > 0:
            raise ValueError(f"reset_timeout is {reset_timeout!r} but must be above 0, or None")
        if url is not None:
            mysql_options = {**_from_url(url), **mysql_options}
        self._mysql = PooledConnection(defer_connect=True, **mysql_options)
        self._reset_session, self._reset_timeout = reset_session, reset_timeout
        join_verbs(self, MySQLPool, settings)
        super().__init__(min_size, max_size, order_as_stack, create, **settings)

    @contextmanager
    def connection(self, timeout: float | Missing | None = MISSING) -> Iterator[Connection]:
        """Take a connection for the length of a ``with`` block, and commit at its end.

        Left by an Exception, what was done is rolled back.  Left by a Timeout, a
        kill, or any other BaseException the connection is destroyed, and so
        nothing is committed.  All else, *timeout* too, is as in `item`.
        """
        with self.item(timeout=timeout) as connection:
            yield connection
            if connection.in_transaction:
                connection.commit()

    def create(self) -> Connection:
        """Make a connection and connect it."""
        connection = _like(self._mysql)
        connection.connect()
        return connection

    def check(self, item: Connection, /) -> bool:
        """Tell whether the server has neither hung up nor sent anything; never switches."""
        return item._sock is not None and quiet(item._sock)

    def reset(self, item: Connection, /) -> None:
        """Make a connection as it was made, or refuse it; switches if it was used."""
        if not item.open:
            raise PoolError("the connection is closed")
        if item.busy:
            raise PoolError("another greenlet still uses it")
        if item.streaming:
            raise PoolError("a streaming result was not read to its end")
        moved = item.take_back()
        if item.used:
            late = PoolError(f"not reset within {self._reset_timeout} s")
            with Timeout(self._reset_timeout, late):
                if self._reset_session:
                    item.renew()
                elif moved:
                    raise PoolError(f"{moved} was changed; with reset_session it can be kept")
                else:
                    item.roll_back()
        item.begin_anew()

    def destroy(self, item: Connection, /) -> None:
        """Close the connection without waiting for anybody; never switches."""
        if not isinstance(item, PooledConnection):
            item.close()  # refused as it came from create()
        elif item.open:
            if item.idle:
                # Without a goodbye the server counts, and logs, an aborted connection.
                # Amid a command it would not see the end behind the goodbye.
                with suppress(Exception):
                    item._sock.settimeout(0)
                    item._sock.send(_GOODBYE)
            item._force_close()

    def fit_after(self, item: Connection, error: Exception, /) -> bool:
        """Say no after errors of the connection, or of a server that goes or is a replica."""
        lost = isinstance(error, err.MySQLError) and error.args[:1] and error.args[0] in _LOST
        return item.open and not lost

    def _adopt(self, item: Connection) -> None:
        refuse_blocking(item)
        tell_unpatched("PyMySQL", connections)
        if not isinstance(item, Connection):
            raise wrong_item(item, "; make it with pymysql.connect")
        if not isinstance(item, PooledConnection):
            item.__class__ = _pooled(type(item))  # type: ignore[arg-type]  # a class is hashable
            # What it has not told: whether anything was sent after connect().
            used = item._result is not None and not (item.sql_mode or item.init_command)
            if item.open:
                with Timeout(self._reset_timeout, PoolError("create() gave one that is mute")):
                    item.learn_role()
                item.used = used
        if not item.open:
            item.connect()
        if self._reset_session and item.used:
            raise PoolError(
                "create() has sent commands, whose effect a reset would undo; "
                "give them as init_command, or give reset_session=False"
            )
        item.adopted()


class PooledConnection(Connection):  # type: ignore[misc]
    """A PyMySQL connection that closes itself where PyMySQL's would go on out of step.

    It does not reconnect, it knows whether a transaction is open, and it can be
    made as it was.
    """

    used = True  # something was sent since the connection was as it was made
    _as_made: dict[str, Any] | None = None  # once in the pool, the attributes it came with
    _slots: Kept = ()  # and what was in slots
    _autocommits = False  # and the mode that it was in
    _told = True  # the server has told its status since the last command
    _refused = False  # the last answer was an error, complete as such
    _sending = False  # a command is being sent
    _reading = False  # an answer is being read
    _interrupt: BaseException | None = None  # what hit it as it wrote meanwhile
    _moved = False  # to another database
    _role: str | None = None  # as SET ROLE takes it, if the server knows roles
    _cursors: WeakSet[Cursor]
    _result: Any

    # Connecting.

    def connect(self, sock: Any = None) -> None:
        """Connect, unless a pool has this connection already; switches."""
        if self._as_made is not None:
            raise err.InterfaceError(0, "a pooled connection does not reconnect; take another item")
        timer = Timeout.start_new(self.connect_timeout)
        try:
            super().connect(sock)
            self.learn_role()
        except BaseException as error:
            # PyMySQL's own timeout ends with the TCP handshake, and what was
            # interrupted before that has a socket that only its frame knows.
            close_half_open(self, error)
            if error is not timer:
                raise
            raise err.OperationalError(
                CR.CR_CONN_HOST_ERROR,
                f"Can't connect to MySQL server on {self.host!r} "
                f"(no complete handshake within {self.connect_timeout} s)",
            ) from None
        finally:
            timer.close()
            del timer  # it is the error too, and would keep this frame alive
        self.used = False

    def learn_role(self) -> None:
        """Keep in mind the role, which a reset leaves as it is; switches."""
        try:
            self.query("SELECT CURRENT_ROLE()")
        except err.MySQLError as error:
            if self.open and error.args[:1] and error.args[0] not in _LOST:
                return  # MySQL has no roles before 8.0
            raise
        ((role,),) = self._result.rows
        if isinstance(role, bytes):
            role = role.decode(self.encoding)
        if self._is_mariadb:  # MySQL has quoted it, and says NONE itself
            role = "NONE" if role is None else f"`{role.replace('`', '``')}`"
        self._role = role

    @property
    def _is_mariadb(self) -> bool:
        return "MariaDB" in self.server_version

    def adopted(self) -> None:
        """Keep in mind what the connection is like."""
        self._autocommits = self.get_autocommit()
        self._as_made = {
            name: copy(value) if isinstance(value, dict) else value
            for name, value in vars(self).items()
            if name not in _VOLATILE
        }
        self._slots = kept_in_slots(self)
        self._cursors = WeakSet()
        self.begin_anew()

    # What its state is.

    @property
    def streaming(self) -> bool:
        """Whether a result is read row by row, and not to its end."""
        return self._result is not None and self._result.unbuffered_active

    @property
    def busy(self) -> bool:
        """Whether a greenlet is just sending a command, or waits for its answer."""
        return self._reading or self._sending

    @property
    def idle(self) -> bool:
        """Whether the server has answered all, as far as can be told."""
        return self._told and not self.streaming and not self.busy

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, or may be."""
        return not self._told or bool(self.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)

    # Making it as it was.

    def take_back(self) -> str:
        """Restore the attributes; tell what of the session changed that only a reset undoes."""
        made = self._as_made or {}
        charset = (self.charset, self.collation) != (made["charset"], made["collation"])
        for name in vars(self).keys() - made.keys() - _VOLATILE:
            delattr(self, name)
        for name, value in made.items():
            setattr(self, name, copy(value) if isinstance(value, dict) else value)
        give_back(self, self._slots)
        self._current_timeout = -1  # whatever the socket's is, it is not this
        return "the character set" if charset else "the database" if self._moved else ""

    def renew(self) -> None:
        """Reset the session, and set it up as connect() had."""
        self._execute_command(_RESET_CONNECTION, "")
        self._read_ok_packet()
        collate = f" COLLATE {self.collation}" if self.collation else ""
        words = [f"NAMES {self.charset}{collate}", f"autocommit={self._autocommits:d}"]
        if self.sql_mode is not None:
            words.append(f"sql_mode={self.escape(self.sql_mode)}")
        if self._role is not None and self._is_mariadb:
            words.append(f"ROLE {self._role}")
        self.query(f"SET {', '.join(words)}")
        if self._role is not None and not self._is_mariadb:
            self.query(f"SET ROLE {self._role}")
        if self.db:
            self.select_db(self.db)
        else:
            self.query("SELECT DATABASE()")
            if self._result.rows != ((None,),):
                raise PoolError("a database was selected, and it came without one")
        if self.init_command is not None:
            with Cursor(self) as cursor:
                cursor.execute(self.init_command)
        self._restore_autocommit()

    def roll_back(self) -> None:
        """End a transaction, and read the results that are left."""
        if self.in_transaction or (self._result is not None and self._result.has_next):
            self.rollback()
        self._restore_autocommit()

    def _restore_autocommit(self) -> None:
        if self.get_autocommit() != self._autocommits:
            self.query(f"SET autocommit={self._autocommits:d}")

    def begin_anew(self) -> None:
        """Be nobody's: what the last user still has of this one, a cursor, is no use to him."""
        self._result, self._affected_rows = None, 0
        self.used = self._moved = False
        for cursor in list(self._cursors):
            cursor.connection = None
        self._cursors.clear()

    def cursor(self, cursor: Any = None) -> Cursor:
        """Make a cursor; it serves until the connection is back in the pool."""
        made = super().cursor(cursor)
        if self._as_made is not None:
            self._cursors.add(made)
        return made

    # Being in step with the server.

    def _execute_command(self, command: int, sql: Any) -> None:
        if command != COMMAND.COM_PING:
            self.used = True
        self._told = False
        if command == COMMAND.COM_INIT_DB or _is_use(sql):
            self._moved = True
        self._sending = True
        try:
            super()._execute_command(command, sql)
        finally:
            self._sending = False

    def _write_bytes(self, data: bytes) -> None:
        if self._sock is None:
            raise err.InterfaceError(0, "")
        try:
            super()._write_bytes(data)
        except BaseException as error:
            # Interrupted, it may have sent a part of the packet: the next command
            # would be taken for the rest.  PyMySQL closes it after an OSError only.
            self._force_close()
            self._interrupt = error if self._reading else None
            raise

    def _read_packet(self, *args: Any, **kwargs: Any) -> Any:
        if self._sock is None:
            raise err.InterfaceError(0, "")
        try:
            packet = super()._read_packet(*args, **kwargs)
        except err.MySQLError:
            self._refused, self._told = True, False  # an error does not tell the status
            raise
        data = packet.get_all_data()
        if len(data) == 5 and data[0] == 0xFE:
            # The end of the rows has it too, and PyMySQL drops that: after a SELECT
            # it does not know that a transaction is open.
            self.server_status = int.from_bytes(data[3:], "little")
            self._told = True
        return packet

    def _read_ok_packet(self) -> Any:
        ok = self._read_whole(super()._read_ok_packet)
        self._told = True
        return ok

    def _read_query_result(self, unbuffered: bool = False) -> Any:
        affected = self._read_whole(super()._read_query_result, unbuffered)
        if self._result.server_status is not None:
            self._told = True
        return affected

    def show_warnings(self) -> Any:
        """Ask for the warnings of the last statement; switches."""
        return self._read_whole(super().show_warnings)

    def _read_whole(self, read: Callable[..., Any], *args: Any) -> Any:
        self._refused, self._reading = False, True
        try:
            return read(*args)
        except BaseException:
            # A row that could not be decoded, say: the next command would get those behind it.
            if not self._refused:
                self._force_close()
            interrupt, self._interrupt = self._interrupt, None
            if interrupt is not None:
                # While it sent a local file.  PyMySQL then says that this is its end, and
                # the error of that would take the place of the Timeout, or the kill.
                raise interrupt from None
            raise
        finally:
            self._reading = False

    def _force_close(self) -> None:
        if self.streaming:
            # Whatever holds this result would read the rest of it as it is collected.
            self._result._finish_unbuffered_query = _nothing
        sock = self._sock
        with suppress(RuntimeError):  # another greenlet is just reading
            super()._force_close()
        if sock is not None and sock.fileno() >= 0:
            # It is, and so the socket is open; it will see the end, and close it.
            with suppress(OSError):
                sock.shutdown(SHUT_RDWR)


_VOLATILE = frozenset(
    """_sock _rfile _next_seq_id _current_timeout _result _affected_rows _closed server_status
    used _as_made _slots _autocommits _told _refused _sending _reading _interrupt _moved
    _cursors""".split()  # noqa: SIM905
)


def _nothing() -> None:
    pass


@cache
def _pooled(connection_class: type) -> type:
    if connection_class is Connection:
        return PooledConnection
    return type(f"Pooled{connection_class.__name__}", (PooledConnection, connection_class), {})


def _like(model: Connection) -> Connection:
    """Make a connection with the settings of *model*.

    To make one from scratch may take 25 ms, for each reads the certificates of
    all authorities there are, and nobody else runs meanwhile.
    """
    connection = copy(model)
    for name, value in vars(model).items():
        if isinstance(value, dict):
            setattr(connection, name, copy(value))
    connection._connect_attrs["_pid"] = str(os.getpid())
    return connection


def _is_use(sql: Any) -> bool:
    start = sql[:32].lstrip()[:3]
    return bool(start.upper() in ("USE", b"USE"))


def _from_url(url: str) -> dict[str, Any]:
    port: int | None = -1
    with suppress(ValueError):
        parts = urlsplit(url)
        port = parts.port
    if port == -1:
        # Not from the error, whose words may be the password's.
        raise ValueError(
            "this is no MySQL URL: percent-encode what is special in user and password"
        )
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"the scheme of a MySQL URL is one of {', '.join(_SCHEMES)}")
    found: dict[str, Any] = {
        "host": parts.hostname,
        "port": port,
        "user": parts.username and unquote(parts.username),
        "password": parts.password and unquote(parts.password),
        "database": unquote(parts.path[1:]),
    }
    options = {name: value for name, value in found.items() if value}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        options[name] = _typed(name, text)
    return options


def _typed(name: str, text: str) -> Any:
    if name in _NUMBERS:
        return int(text)
    if name in _FLAGS + _TLS_FLAGS:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in words:
            raise ValueError(f"{name} in a MySQL URL is true or false, not {text!r}")
        return words[text.lower()]
    return text
