"""`MemcachedPool`: pymemcache clients; `FairPooledClient`: pymemcache's own pool made fair."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache
from math import inf
from typing import Any

from gevent import socket

from gpools.adapters._blocking import refuse_blocking
from gpools.adapters._extra import extra
from gpools.adapters._half_open import close_half_open
from gpools.adapters._probe import quiet
from gpools.adapters._slots import Kept, give_back, kept_in_slots
from gpools.adapters._tls import Cooperative
from gpools.adapters._verbs import join_verbs
from gpools.connection import ConnectionPool, split_settings
from gpools.errors import NotInUse, PoolError, PoolTimeout

with extra("memcached"):
    from pymemcache.client.base import (  # type: ignore[import-untyped]
        Client,
        PooledClient,
    )
    from pymemcache.client.hash import HashClient  # type: ignore[import-untyped]

__all__ = ["ClientPool", "ClientPoolTimeout", "FairHashClient", "FairPooledClient", "MemcachedPool"]

# What a connection owes its nature to, of the attributes of its client.
_TERMS = ("server", "socket_module", "tls_context", "no_delay", "socket_keepalive")

_MARKER = b"version\r\n"


class MemcachedPool(ConnectionPool[Client]):
    """A pool of `pymemcache.Client`, each on exactly one connection of its own.

    ::

        pool = MemcachedPool(("127.0.0.1", 11211), max_size=10, timeout=5)
        with pool.item() as client:
            client.set("greeting", b"hello")

    *server*, and what else `pymemcache.Client` takes (*serde*, *key_prefix*,
    *ignore_exc*, *tls_context* ...), is the client's.  So are *timeout*, in
    seconds for each read and write, and *connect_timeout*; *get_timeout* is the
    pool's own, the *timeout* of `ConnectionPool`.  The other parameters are
    those of `ConnectionPool`.

    A client is connected when it is made, by sockets of gevent's unless
    *socket_module* says otherwise.  One whose command was interrupted, by a
    Timeout or a kill, has its connection closed, inside a block too.  What a
    block changes on a client (its timeout, its key prefix ...) never reaches
    the next user, and no reply does that a ``noreply`` command was given anyway.

    Raises ValueError and TypeError for what pymemcache would not take.
    """

    _memcached: tuple[Any, dict[str, Any]]  # what a client is made with
    _connects = True

    def __init__(
        self,
        server: Any,
        *,
        min_size: int = 0,
        max_size: int = 4,
        order_as_stack: bool = False,
        create: Callable[[], Client] | None = None,
        timeout: float | None = 30.0,
        connect_timeout: float | None = 10.0,
        get_timeout: float | None = None,
        **options: Any,
    ) -> None:
        settings, client_options = split_settings(options)
        client_options.update(timeout=timeout, connect_timeout=connect_timeout)
        self._memcached = server, _cooperative(client_options)
        Client(server, **self._memcached[1])  # for its complaints; it does not connect
        join_verbs(self, MemcachedPool, settings)
        super().__init__(
            min_size, max_size, order_as_stack, create, timeout=get_timeout, **settings
        )

    def create(self) -> Client:
        """Make a client; the pool connects it."""
        server, options = self._memcached
        return Client(server, **options)

    def check(self, item: Client, /) -> bool:
        """Tell whether the server has neither hung up nor sent anything; never switches."""
        return item.sock is None or item.unheard()

    def reset(self, item: Client, /) -> None:
        """Refuse a client that is not as it was; take back changed attributes; never switches."""
        if item.sock is None and self._connects:
            raise PoolError("the connection was closed")
        item.come_back()

    def destroy(self, item: Client, /) -> None:
        """Close the connection for good."""
        if isinstance(item, _Whole):
            item.retire()
        else:  # refused as it was made
            super().destroy(item)

    def fit_after(self, item: Client, error: Exception, /) -> bool:
        """Say yes while the connection is open: each error in a command closes it."""
        return item.sock is not None

    def _adopt(self, item: Client) -> None:
        refuse_blocking(item)
        if not isinstance(item, Client):
            raise PoolError(
                f"create() returned a {type(item).__name__}; a {type(self).__name__} takes "
                "pymemcache.Client and what is made of it (PooledClient and HashClient have "
                "pools of their own: FairPooledClient)"
            )
        item.__class__ = _whole(type(item))  # type: ignore[arg-type]  # a class is hashable
        item.be_new()
        if self._connects:
            if item.sock is not None:
                item.close()  # its maker has used it; nobody knows how far
            item._connect()


def _cooperative(options: dict[str, Any]) -> dict[str, Any]:
    """Have clients made with *options* switch greenlets where they wait, unless asked not to."""
    options = {"socket_module": socket, **options}
    context = options.get("tls_context")
    if options["socket_module"] is socket and isinstance(context, ssl.SSLContext):
        options["tls_context"] = Cooperative(context)
    return options


class _Whole:
    """Mixed into `pymemcache.Client`: a command that ends half way ends its connection.

    pymemcache closes it after an Exception, but keeps it after a Timeout or a
    kill, and takes the late reply for that of its next command.

    A ``noreply`` command may be answered nevertheless: memcached tells what it
    could not parse.  So a client that comes back after one has asked for a sign
    from the server, and the next user waits until that is there, if it is not
    by then.  If anything else comes, the connection is closed.
    """

    sock: Any
    _as_made: dict[str, Any]
    _slots: Kept

    def be_new(self) -> None:
        """Remember how this client is made."""
        self._as_made = {name: value for name, value in vars(self).items() if name not in _OWN}
        self._slots = kept_in_slots(self)
        self._busy = 0  # commands under way
        self._raw = self._mute = self._retired = False
        self._heard: bytes | None = None  # of the sign, while it is not there
        self._terms = self._current_terms()

    def _current_terms(self) -> list[Any]:
        return [getattr(self, name) for name in _TERMS]

    # Commands.

    def _fetch_cmd(self, *args: Any, **kwargs: Any) -> Any:
        if not self._wait_for_sign(self.ignore_exc):  # type: ignore[attr-defined]
            return {}
        return self._run(super()._fetch_cmd, *args, **kwargs)  # type: ignore[misc]

    def _store_cmd(
        self, name: bytes, values: Any, expire: int, noreply: bool, *args: Any, **kwargs: Any
    ) -> Any:
        self._wait_for_sign()
        store = super()._store_cmd  # type: ignore[misc]
        mute = noreply if values else self._mute  # of nothing there is no reply
        return self._run(store, name, values, expire, noreply, *args, mute=mute, **kwargs)

    def _misc_cmd(
        self, cmds: Any, cmd_name: bytes, noreply: bool, *args: Any, **kwargs: Any
    ) -> Any:
        self._wait_for_sign()
        misc = super()._misc_cmd  # type: ignore[misc]
        mute = noreply if cmds else self._mute  # as above
        return self._run(misc, cmds, cmd_name, noreply, *args, mute=mute, **kwargs)

    def raw_command(self, *args: Any, **kwargs: Any) -> Any:
        self._raw = True  # how long its reply is only its user knows
        try:
            return super().raw_command(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._raw = self.sock is not None

    def _run(
        self, command: Callable[..., Any], *args: Any, mute: bool | None = False, **kwargs: Any
    ) -> Any:
        self._busy += 1
        try:
            result = command(*args, **kwargs)
        except Exception:
            raise  # pymemcache has closed what had to be closed
        except BaseException:
            # Interrupted at an unknown byte.
            self.close()
            raise
        finally:
            self._busy -= 1
        self._mute = bool(mute)  # any reply that was read came after all that are not wanted
        return result

    # Connecting.

    def _connect(self) -> None:
        if self._retired:
            raise ConnectionError("the pool has closed this client for good")
        try:
            super()._connect()  # type: ignore[misc]
        except BaseException as error:
            close_half_open(self, error)
            raise
        self._terms = self._current_terms()
        if self.sock.family != socket.AF_UNIX:
            # Else what follows a command without reply waits for its ACK, 40 ms.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._heard = None
        self._raw = self._mute = False
        super().close()  # type: ignore[misc]

    disconnect_all = close

    def retire(self) -> None:
        """Close the connection; nobody can open it again."""
        self._retired = True
        self.close()

    # Between two users.

    def come_back(self) -> None:
        """Be as good as new, or raise `PoolError`.  Never switches."""
        if self._busy:
            raise PoolError("a command is still under way")
        if self._raw:
            raise PoolError("raw_command may have left anything")
        for name in vars(self).keys() - self._as_made.keys() - _OWN:
            delattr(self, name)
        vars(self).update(self._as_made)
        give_back(self, self._slots)
        if self.sock is None:
            return
        if self._terms != self._current_terms():
            raise PoolError("it was connected with other settings")
        if self.sock.gettimeout() != self.timeout:  # type: ignore[attr-defined]
            self.sock.settimeout(self.timeout)  # type: ignore[attr-defined]
        if self._heard is None:
            if not quiet(self.sock):
                raise PoolError("there is something that nobody has read")
            if self._mute:
                self._ask_for_sign()

    def unheard(self) -> bool:
        """Tell whether nothing has come that the next user must not hear.  Never switches."""
        if self._heard is not None:
            try:
                self._listen(timeout=0)
            except (BlockingIOError, ssl.SSLWantReadError):
                return True  # it is on its way; the first command waits for it
        return quiet(self.sock)

    def _ask_for_sign(self) -> None:
        sent = self._within(0, self.sock.send, _MARKER)
        if sent != len(_MARKER):
            raise PoolError("the server reads nothing")
        self._heard = b""
        self._mute = False

    def _wait_for_sign(self, ignore_exc: bool = False) -> bool:
        """See the sign come; False if the server is too slow and that is to be ignored."""
        if self._heard is None:
            return True
        try:
            self._listen(self.sock.gettimeout())
        except TimeoutError:
            self.close()
            if not ignore_exc:
                raise
            return False
        except (OSError, PoolError):
            self.close()  # not the fault of this user, who gets a new connection
        return True

    def _listen(self, timeout: float | None) -> None:
        assert self._heard is not None
        while not self._heard.endswith(b"\r\n"):
            data = self._within(timeout, self.sock.recv, 4096)
            if not data:
                raise ConnectionResetError("the server hung up")
            self._heard += data
        line, _, rest = self._heard.partition(b"\r\n")
        if rest or not line.startswith(b"VERSION "):
            raise PoolError("the server has told something that nobody has read")
        self._heard = None

    def _within(self, timeout: float | None, act: Callable[[Any], Any], argument: Any) -> Any:
        before = self.sock.gettimeout()
        self.sock.settimeout(timeout)
        try:
            return act(argument)
        finally:
            if self.sock is not None:
                self.sock.settimeout(before)


_OWN = {"sock", "_as_made", "_slots", "_busy", "_raw", "_mute", "_retired", "_heard", "_terms"}


@cache
def _whole(client_class: type) -> type:
    if issubclass(client_class, _Whole):
        return client_class
    return type(f"Pooled{client_class.__name__}", (_Whole, client_class), {})


# pymemcache's own pool.


class ClientPoolTimeout(PoolError, RuntimeError):
    """No client came free in time: the RuntimeError that pymemcache raises when it has no more.

    Not a TimeoutError: `HashClient` would take that for the server's.
    """


class _Unconnected(MemcachedPool):
    # A PooledClient answers a refused connection as it was told to, with a
    # default perhaps, so its clients connect when they are used.
    _connects = False


class ClientPool:
    """What a `PooledClient` finds its clients in, in the place of pymemcache's `ObjectPool`.

    ::

        client = PooledClient("127.0.0.1:11211", max_pool_size=10)
        client.client_pool = ClientPool(client)

    It makes clients as *client* does, and is as large as the pool that it
    replaces, unless *max_size* says otherwise.  Who finds no client waits in
    line, for *timeout* seconds at most, where pymemcache raised at once.

    *settings* are those of `ConnectionPool`, which is its `pool`.
    """

    def __init__(
        self, client: PooledClient, *, timeout: float | None = None, **settings: Any
    ) -> None:
        former = client.client_pool
        settings.setdefault("max_size", former.max_size)
        settings.setdefault("max_idle", former.idle_timeout or None)
        self.pool: ConnectionPool[Client] = _Unconnected(
            client.server, create=client._create_client, get_timeout=timeout, **settings
        )

    def __repr__(self) -> str:
        return repr(self.pool)

    @property
    def max_size(self) -> int:
        """The most clients there may be."""
        return self.pool.max_size

    @property
    def idle_timeout(self) -> float:
        """After how many idle seconds a client is let go; 0 for never."""
        max_idle = self.pool._book.life.max_idle
        return 0 if max_idle == inf else max_idle

    @property
    def used(self) -> tuple[Client, ...]:
        """The clients in use."""
        return tuple(hold.item for hold in self.pool.holders())

    @property
    def free(self) -> tuple[Client, ...]:
        """The idle clients."""
        return tuple(self.pool._line.idle)

    def get_and_release(self, destroy_on_fail: bool = False) -> AbstractContextManager[Client]:
        """Take a client for the length of a ``with`` block.

        After an Exception it is kept if its connection is still sound, whatever
        *destroy_on_fail* says; after a Timeout or a kill it never is.  Raises as
        `get` does.
        """
        return _Use(self.pool.item())

    def get(self) -> Client:
        """Take a client, making one or waiting in line if none is idle.

        Raises `ClientPoolTimeout`, or what `ConnectionPool.get` raises but for
        `PoolTimeout`.  May switch.
        """
        try:
            return self.pool.get()
        except PoolTimeout as late:
            raise ClientPoolTimeout(str(late)) from late

    def release(self, obj: Client, silent: bool = True) -> None:
        """Give *obj* back.  Never switches.

        Raises ValueError if it is not out, unless *silent*.
        """
        with suppress(*[NotInUse] * silent):
            self.pool.put(obj)

    def destroy(self, obj: Client, silent: bool = True) -> None:
        """Close *obj* instead of giving it back; else as `release`.  Does not switch."""
        with suppress(*[NotInUse] * silent):
            self.pool.discard(obj)

    def clear(self) -> None:
        """Close the idle clients now and those in use as they come back.  Does not switch."""
        self.pool.recycle()


class _Use(AbstractContextManager[Client]):
    """One ``with client_pool.get_and_release()`` block."""

    def __init__(self, block: AbstractContextManager[Client]) -> None:
        self._block = block

    def __enter__(self) -> Client:
        try:
            return self._block.__enter__()
        except PoolTimeout as late:
            raise ClientPoolTimeout(str(late)) from late

    def __exit__(self, *error: Any) -> bool | None:
        return self._block.__exit__(*error)


def _parted(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part the keywords that are `ConnectionPool`'s from pymemcache's, whose *timeout* is."""
    settings, client_options = split_settings(options)
    if "timeout" in settings:
        client_options["timeout"] = settings.pop("timeout")
    return settings, client_options


_Unconnected.__name__ = ClientPool.__name__  # as logs and errors have it


class FairPooledClient(PooledClient):  # type: ignore[misc]
    """A `pymemcache.client.base.PooledClient` whose callers wait in line for a client.

    ::

        client = FairPooledClient(("127.0.0.1", 11211), max_pool_size=10, timeout=5)
        client.set("greeting", b"hello")

    *server* and *options* are those of `PooledClient`; further *options* are
    those of `ConnectionPool`, and *get_timeout*, in seconds, is its *timeout*.
    Sockets are gevent's unless *socket_module* says otherwise.
    """

    def __init__(self, server: Any, *, get_timeout: float | None = None, **options: Any) -> None:
        settings, client_options = _parted(options)
        super().__init__(server, **_cooperative(client_options))
        self.client_pool = ClientPool(self, timeout=get_timeout, **settings)


class FairHashClient(HashClient):  # type: ignore[misc]
    """A `pymemcache.HashClient` of `FairPooledClient` behaviour, a pool of its own for each server.

    *servers* and *options* are those of `HashClient`; further *options* are
    those of `ConnectionPool`, for each server, and *get_timeout*, in seconds,
    is its *timeout*.  Sockets are gevent's unless *socket_module* says otherwise.
    """

    def __init__(self, servers: Any, *, get_timeout: float | None = None, **options: Any) -> None:
        settings, client_options = _parted(options)
        self._fair = {"timeout": get_timeout, **settings}
        client_options["use_pooling"] = True
        super().__init__(servers, **_cooperative(client_options))
        self._failed_clients = _Failed()

    def add_server(self, server: Any, port: int | None = None) -> None:
        """Add *server*, or take it back when it was down."""
        former = dict(self.clients)
        super().add_server(server, port)
        # Those who were still asking when it was given up would have it given up again.
        self._failed_clients.pop(_one(server, port), None)
        for key, client in self.clients.items():
            if former.get(key) is not client:
                client.client_pool = ClientPool(client, **{"name": key, **self._fair})
                if key in former:
                    former[key].close()

    def remove_server(self, server: Any, port: int | None = None) -> None:
        """Give up *server*, unless it is given up already."""
        if _one(server, port) not in self._dead_clients:
            super().remove_server(server, port)


class _Failed(dict[Any, Any]):
    """The servers that fail: many greenlets may find at once that one is well again."""

    def pop(self, key: Any, default: Any = None) -> Any:
        return super().pop(key, default)


def _one(server: Any, port: int | None) -> Any:
    """Name a server as pymemcache does, however it was given."""
    return server if port is None else (server, port)
