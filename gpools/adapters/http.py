"""`HttpPool`: httplib2 clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, RemoteDisconnected
from typing import Any
from weakref import WeakKeyDictionary, ref

import httplib2

from gpools.adapters._answer import Answer
from gpools.adapters._blocking import refuse_blocking, tell_unpatched, wrong_item
from gpools.adapters._half_open import close_half_open, end_answer
from gpools.adapters._probe import between_requests, may_be_followed, quiet, unread_answer
from gpools.adapters._slots import copied, give_back, kept_in_slots
from gpools.adapters._verbs import join_verbs
from gpools.connection import ConnectionPool, split_settings

__all__ = ["HttpPool"]

_IDEMPOTENT = frozenset(["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])


class HttpPool(ConnectionPool[httplib2.Http]):
    """A pool of `httplib2.Http`, which can stand where one `Http` is expected.

    ::

        pool = HttpPool(max_size=10, timeout=5)
        response, body = pool.request("http://127.0.0.1:8080/")

    *timeout* is that of `httplib2.Http`, in seconds, for connecting and for
    each read; *get_timeout* is the pool's own, the *timeout* of
    `ConnectionPool`.  What else `httplib2.Http` takes (*cache*, *proxy_info*,
    *ca_certs*, *disable_ssl_certificate_validation* ...) is passed on.

    The other parameters are those of `ConnectionPool`.

    Each client keeps one connection per host open.  One that was interrupted
    in the middle of a request, by a Timeout or a kill, is let go with its
    connections; one that comes back with its settings or credentials changed
    gets its own back.  To set them for all, set them on the pool, or make the
    clients yourself, with *create* or in a subclass.
    """

    _http: _Clients  # what a client is made like
    _seen_later: bool  # whatever comes back is looked at before it goes out

    def __init__(
        self,
        min_size: int = 0,
        max_size: int = 4,
        order_as_stack: bool = False,
        create: Callable[[], httplib2.Http] | None = None,
        *,
        timeout: float | None = 30.0,
        get_timeout: float | None = None,
        **options: Any,
    ) -> None:
        settings, http_options = split_settings(options)
        self._http = _Clients({"timeout": timeout, **http_options})
        quick = join_verbs(self, HttpPool, settings)
        self._seen_later = quick and settings.get("check_after", 0.0) == 0
        super().__init__(
            min_size, max_size, order_as_stack, create, timeout=get_timeout, **settings
        )

    def request(
        self,
        uri: str,
        method: str = "GET",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        redirections: int = httplib2.DEFAULT_MAX_REDIRECTS,
        connection_type: type[HTTPConnection] | None = None,
    ) -> tuple[httplib2.Response, bytes]:
        """Make one request with a client of the pool; `httplib2.Http.request` in all else.

        Raises what that raises, and what `get` raises.  Switches.
        """
        with self.item() as http:
            answer: tuple[httplib2.Response, bytes]
            answer = http.request(uri, method, body, headers, redirections, connection_type)
            return answer

    def create(self) -> httplib2.Http:
        """Make a client with the settings of the pool; it connects when it is used."""
        return self._http.make()

    def check(self, item: httplib2.Http, /) -> bool:
        """Drop the connections that the server has closed or sent stray bytes on."""
        for connection in item.connections.values():
            if connection.sock is not None and not quiet(connection.sock):
                connection.close()
        return True

    def reset(self, item: httplib2.Http, /) -> None:
        """Drop connections in the middle of something; take back changed settings."""
        settings = self._http.made[item]
        settings.restore(item)
        for connection in list(item.connections.values()):
            mine = vars(connection)
            # What a block left behind may be asking, or only connecting, still.
            busy = mine.get("asking") or not between_requests(connection)
            as_made = mine.get("terms") == settings.terms
            if busy or not as_made:
                _drop(item, connection)
        if not self._seen_later:
            HttpPool.check(self, item)

    def destroy(self, item: httplib2.Http, /) -> None:
        """Close the connections of *item*.

        Not by its own close(), which would wipe credentials and certificates
        that whoever made the client may have given to others too.
        """
        if not isinstance(item, httplib2.Http):
            return
        connections, item.connections = item.connections, {}
        for connection in connections.values():
            _close(connection)

    def fit_after(self, item: httplib2.Http, error: Exception, /) -> bool:
        """Say no after errors of the network or of HTTP, yes after the program's own."""
        return not isinstance(error, (OSError, HTTPException, httplib2.HttpLib2Error))

    def _adopt(self, item: httplib2.Http) -> None:
        refuse_blocking(item)
        if not isinstance(item, httplib2.Http):
            raise wrong_item(item, ", no httplib2.Http")
        tell_unpatched("httplib2", httplib2)
        item.__class__ = _whole(type(item))  # type: ignore[arg-type]  # a class is hashable
        self._http.remember(item)

    def _filenos(self, item: httplib2.Http) -> list[int]:
        sockets = [connection.sock for connection in item.connections.values()]
        return [sock.fileno() for sock in sockets if sock is not None and sock.fileno() >= 0]

    def _change(self, **attributes: Any) -> None:
        self._http.change(**attributes)
        self.recycle()

    # What an Http is asked for beside request().  Each applies to the clients
    # made from now on; those made before are let go, if in use as they come back.

    @property
    def connections(self) -> dict[str, HTTPConnection]:
        """The connections of the idle clients, by host and number of the client; a copy."""
        return {
            f"{host} {number}": connection
            for number, http in enumerate(self._line.idle)
            for host, connection in http.connections.items()
        }

    @property
    def timeout(self) -> float | None:
        """Seconds to connect, and for each read."""
        timeout: float | None = self._http.model.timeout
        return timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._change(timeout=seconds)

    @property
    def follow_redirects(self) -> bool:
        """Whether clients follow redirects of safe methods."""
        follow: bool = self._http.model.follow_redirects
        return follow

    @follow_redirects.setter
    def follow_redirects(self, follow: bool) -> None:
        self._change(follow_redirects=follow)

    @property
    def redirect_codes(self) -> frozenset[int]:
        """The status codes taken for redirects."""
        codes: frozenset[int] = self._http.model.redirect_codes
        return codes

    @redirect_codes.setter
    def redirect_codes(self, codes: frozenset[int]) -> None:
        self._change(redirect_codes=codes)

    def add_credentials(self, name: str, password: str, domain: str = "") -> None:
        """Add a user name and password for *domain*, or for all hosts."""
        self._http.model.add_credentials(name, password, domain)
        self._change()

    def add_certificate(
        self, key: str, cert: str, domain: str, password: str | None = None
    ) -> None:
        """Add a client certificate for *domain*."""
        self._http.model.add_certificate(key, cert, domain, password)
        self._change()

    def clear_credentials(self) -> None:
        """Forget all user names and passwords."""
        self._http.model.clear_credentials()
        self._change()


_CONNECTIONS = frozenset(("connections", "authorizations"))  # of a client, and what they brought


class _Settings:
    """What makes an `Http` answer as it does, but for its connections."""

    attributes: dict[str, Any]

    def __init__(self, http: httplib2.Http) -> None:
        self.attributes = {
            name: copied(value) for name, value in vars(http).items() if name not in _CONNECTIONS
        }
        self.credentials = list(http.credentials.credentials)
        self.certificates = list(http.certificates.credentials)
        self.slots = kept_in_slots(http)
        self.terms = _terms(http)
        self._note(http)

    def _note(self, http: httplib2.Http) -> None:
        # All that a client has when nothing was changed or learnt, so that to find
        # that is one comparison, which asks for identity first.
        self._unchanged = {
            **self.attributes,
            "connections": http.connections,
            "authorizations": [],
        }
        if self.slots:
            self._unchanged = {}  # these are not seen in what is compared

    def restore(self, http: httplib2.Http) -> None:
        """Give a client back the settings that it was made with."""
        if (
            vars(http) == self._unchanged
            and http.credentials.credentials == self.credentials
            and http.certificates.credentials == self.certificates
        ):
            return
        self.apply(http)
        # Those learnt from credentials that were taken away again, too.
        own = {credentials[1:] for credentials in self.credentials}
        http.authorizations = [a for a in http.authorizations if a.credentials in own]
        self._note(http)

    def apply(self, http: httplib2.Http) -> None:
        give_back(http, self.slots)
        own = self.attributes["credentials"], self.attributes["certificates"]
        for name in vars(http).keys() - self.attributes.keys() - _CONNECTIONS:
            delattr(http, name)
        for name, value in self.attributes.items():
            setattr(http, name, copied(value))
        http.credentials, http.certificates = own
        http.credentials.credentials = list(self.credentials)
        http.certificates.credentials = list(self.certificates)


class _Clients:
    """How to make clients, and what each was like when it was made."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.model = httplib2.Http(**options)  # never connects
        self.made: WeakKeyDictionary[httplib2.Http, _Settings] = WeakKeyDictionary()

    def make(self) -> httplib2.Http:
        http = httplib2.Http(**self.options)
        own = http.credentials, http.certificates
        settings = _Settings(self.model)
        settings.attributes["credentials"], settings.attributes["certificates"] = own
        settings.apply(http)
        return http

    def change(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            setattr(self.model, name, value)

    def remember(self, http: httplib2.Http) -> None:
        self.made[http] = _Settings(http)


class _Whole:
    """Mixed into `httplib2.Http`: a request that ends by an error ends its connection.

    httplib2 keeps a connection on which a Timeout hit, and when the Timeout is
    caught it takes the late answer for that of its next request.  It also sends
    a request again when the server hangs up on it; that is kept to the methods
    of which RFC 9110 says that twice is as good as once.
    """

    def _conn_request(
        self, conn: Any, request_uri: str, method: str, body: Any, headers: Any
    ) -> Any:
        if not hasattr(conn, "terms"):
            conn.terms = _terms(self)  # type: ignore[arg-type]
            conn.asking = 0  # requests under way
            if conn.response_class is HTTPResponse:
                conn.response_class = partial(_known_answer, ref(conn))
        conn.asking += 1
        if method not in _IDEMPOTENT:
            conn.request = _only_once(conn.request)
        try:
            answer = super()._conn_request(conn, request_uri, method, body, headers)  # type: ignore[misc]
            if may_be_followed(answer[0].status, answer[0]):
                _drop(self, conn)  # type: ignore[arg-type]
            return answer
        except BaseException as error:
            _drop(self, conn)  # type: ignore[arg-type]
            close_half_open(conn, error)
            raise
        finally:
            conn.asking -= 1
            vars(conn).pop("request", None)


def _known_answer(connection: ref[HTTPConnection], *args: Any, **kwargs: Any) -> Answer:
    """Make an answer that its *connection* knows, also when it says close and is on its own."""
    answer = Answer(*args, **kwargs)
    owner = connection()
    if owner is not None:
        owner.answer = answer  # type: ignore[attr-defined]
    return answer


def _only_once(request: Callable[..., None]) -> Callable[..., None]:
    """Let a connection send *request* once, and raise where it would do so again."""
    sent = False

    def send(method: str, *args: Any, **kwargs: Any) -> None:
        nonlocal sent
        if sent:
            raise RemoteDisconnected(f"the server hung up; {method} is not sent a second time")
        sent = True
        request(method, *args, **kwargs)

    return send


@cache
def _whole(http_class: type[httplib2.Http]) -> type[httplib2.Http]:
    if issubclass(http_class, _Whole):
        return http_class
    return type(f"Pooled{http_class.__name__}", (_Whole, http_class), {})


_TERMS = (
    "timeout",
    "proxy_info",
    "ca_certs",
    "disable_ssl_certificate_validation",
    "tls_maximum_version",
    "tls_minimum_version",
)


def _terms(http: httplib2.Http) -> tuple[Any, ...]:
    """Return the settings that a connection keeps as they were when it was made."""
    return *(getattr(http, name, None) for name in _TERMS), *http.certificates.credentials


def _drop(http: httplib2.Http, connection: HTTPConnection) -> None:
    """Close a connection and forget it: what it had not sent yet outlives its close()."""
    _close(connection)
    for key, other in list(http.connections.items()):
        if other is connection:
            del http.connections[key]


def _close(connection: HTTPConnection) -> None:
    """Close a connection, whoever is in the middle of reading an answer from it."""
    answer = vars(connection).get("answer") or unread_answer(connection)
    if answer is not None and not answer.isclosed():
        end_answer(answer)
    connection.close()
