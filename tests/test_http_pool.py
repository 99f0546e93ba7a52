"""HttpPool on a real HTTP server: sound clients, each as the pool made it."""

import gc
import inspect
import io
import json
import logging
import os
import select
import socket
import ssl
from email.utils import formatdate
from http.client import HTTPConnection
from typing import ClassVar
from urllib.parse import quote

import gevent
import google.auth.credentials
import google_auth_httplib2
import httplib2
import pytest
from gevent import Timeout
from googleapiclient.discovery import build_from_document
from googleapiclient.errors import HttpError

from gpools import HttpPool, NotInUse, PoolClosed, PoolError, PoolTimeout
from gpools.adapters import http as adapter
from gpools.adapters._answer import Answer
from tests.chaos import KillStorm, in_block
from tests.cooperative import cooperative  # noqa: F401
from tests.proxy import REQUEST, close, hang
from tests.slots import assert_slots_are_taken_back, slotted
from tests.switching import high_fds, switches  # noqa: F401
from tests.tls import TlsServer, make_certificate
from tests.waiting import settle, spawn, until
from tests.watching import looks_at_sockets

pytestmark = pytest.mark.usefixtures("cooperative")

PROXY_TYPE_HTTP = 3  # as PySocks says, where it is installed
WORD = "xyzzy-secret"  # a password, to be looked for where it must not be


@pytest.fixture
def http_pool():
    """`http_pool(...)`: an HttpPool of one client, closed after the test."""
    pools = []

    def make(pool_class=HttpPool, **options):
        pools.append(pool_class(**({"max_size": 1} | options)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def url(server, path="/", **query):
    where = f"http://{server.host}:{server.port}{path}"
    return where + "?" + "&".join(f"{key}={value}" for key, value in query.items())


def ask(http, server, method="GET", body=None, **query):
    """Make a request; return its status and what the server says of it."""
    response, content = http.request(url(server, **query), method, body)
    return response.status, json.loads(content)


def connection_number(pool, server):
    """Tell which connection the next user gets."""
    return ask(pool, server)[1]["connection"]


def whole(pool, server):
    """Assert that the pool has all its slots, and the server no connection more."""
    items = [pool.get(timeout=5) for _ in range(pool.max_size)]
    for n, item in enumerate(items):
        assert ask(item, server, tag=n)[1]["tag"] == str(n)
    until(lambda: server.stats()["open"] == pool.max_size)
    for item in items:
        pool.put(item)
    assert pool.free() == pool.current_size == pool.max_size


# Making clients


def test_the_timeout_is_30_seconds_unless_told_otherwise(http_server, http_pool):
    for options, seconds in (({}, 30), ({"timeout": 7}, 7), ({"timeout": None}, None)):
        pool = http_pool(**options)
        assert pool.timeout == seconds
        with pool.item() as http:
            assert http.timeout == seconds
            ask(http, http_server)
            (connection,) = http.connections.values()
            assert connection.sock.gettimeout() == seconds


def test_the_timeout_ends_a_read(http_server, http_pool):
    pool = http_pool(timeout=0.02)
    with pytest.raises(socket.timeout):
        ask(pool, http_server, silent=1)
    with pytest.raises(socket.timeout):
        ask(pool, http_server, cut=5, then="hang")
    pool.timeout = 5
    assert ask(pool, http_server)[0] == 200


def test_the_timeout_ends_a_connect(http_server, http_pool, proxy_to):
    proxy = proxy_to(http_server)
    proxy.never_accept()
    pool = http_pool(timeout=0.02)
    with pytest.raises(socket.timeout):
        ask(pool, proxy)
    proxy.listen()
    pool.timeout = 5
    assert ask(pool, proxy)[0] == 200


def test_get_timeout_is_the_pools_own(http_pool):
    pool = http_pool(timeout=30, get_timeout=0.01)
    http = pool.get()
    with pytest.raises(PoolTimeout, match=r"0\.01 s"):
        pool.get()
    with pytest.raises(PoolTimeout):
        pool.request("http://127.0.0.1:1/")
    pool.put(http)


OPTIONS = {
    "cache": object(),
    "timeout": 12,
    "proxy_info": httplib2.ProxyInfo(PROXY_TYPE_HTTP, "127.0.0.1", 1),
    "ca_certs": "certs.pem",
    "disable_ssl_certificate_validation": True,
    "tls_maximum_version": "TLSv1_3",
    "tls_minimum_version": "TLSv1_2",
}


def test_every_option_of_httplib2_is_passed_on(http_pool):
    parameters = set(inspect.signature(httplib2.Http).parameters)
    assert {name for name in parameters if not name.startswith("decode_limit")} == set(OPTIONS)
    for name, value in OPTIONS.items():
        with http_pool(**{name: value}).item() as http:
            assert getattr(http, name) == value
    limits = {"decode_limit_hard": 1000, "decode_limit_safe": 10}
    if limits.keys() <= parameters:
        with http_pool(**limits).item() as http:
            assert http.limit_kwargs == httplib2.Http(**limits).limit_kwargs != {}


def test_an_unknown_option_is_refused_at_once():
    with pytest.raises(TypeError, match="no_such_option"):
        HttpPool(no_such_option=1)


def test_a_cache_is_shared(http_server, http_pool, tmp_path):
    pool = http_pool(max_size=2, cache=str(tmp_path))
    one, two = pool.get(), pool.get()
    date = quote(f"Date:{formatdate(usegmt=True)}")
    fresh = url(http_server, header=f"Cache-Control:max-age=100&header={date}")
    assert not one.request(fresh)[0].fromcache
    assert two.request(fresh)[0].fromcache
    pool.put(one)
    pool.put(two)
    assert http_server.stats()["requests"] == 1


def test_a_proxy_is_used(http_server, http_pool):
    """Without PySocks httplib2 says that it cannot; with it, nobody listens at port 1."""
    pool = http_pool(proxy_info=httplib2.ProxyInfo(PROXY_TYPE_HTTP, "127.0.0.1", 1))
    with pytest.raises((httplib2.ProxiesUnavailableError, OSError)):
        ask(pool, http_server)
    assert http_server.stats()["requests"] == 0


class Inherited(HttpPool):
    def create(self):
        http = super().create()
        http.follow_redirects = False
        http.add_credentials("user", "word")
        return http


class Own(HttpPool):
    class Client(httplib2.Http):
        extra = "mine"

    def create(self):
        http = self.Client(timeout=3)
        http.follow_redirects = False
        http.add_credentials("user", "word")
        return http


@pytest.mark.parametrize("pool_class", [Inherited, Own])
def test_clients_of_ones_own_keep_their_settings(http_server, http_pool, pool_class):
    pool = http_pool(pool_class)
    for _ in range(3):
        assert ask(pool, http_server, redirect="/there")[0] == 302
        assert ask(pool, http_server, auth="user:word")[0] == 200
        with pool.item() as http:
            assert isinstance(http, httplib2.Http)
            assert http.timeout == (3 if pool_class is Own else 30)
            http.clear_credentials()
            http.follow_redirects = True
    if pool_class is Own:
        with pool.item() as http:
            assert isinstance(http, Own.Client)
            assert http.extra == "mine"
    assert http_server.stats()["accepted"] <= 4


# Interrupted, and after errors


def test_what_create_returns_must_be_a_client(http_pool, caplog):
    pool = http_pool(create=lambda: HTTPConnection("127.0.0.1"))
    with pytest.raises(PoolError, match=r"a http\.client\.HTTPConnection, no httplib2\.Http"):
        pool.get()
    assert pool.free() == 1
    assert not caplog.records


def test_an_interrupted_client_loses_its_connections_only(http_server, http_pool):
    """Http.close() would have wiped what whoever made the client may share among many."""
    shared = httplib2.Http()
    shared.add_credentials("user", "word")
    shared.add_certificate("key", "cert", "example.org")

    def create():
        http = httplib2.Http()
        http.credentials, http.certificates = shared.credentials, shared.certificates
        return http

    pool = http_pool(create=create)
    http = pool.get()
    pool.put(http)
    assert ask(pool, http_server)[0] == 200
    (connection,) = http.connections.values()
    with pytest.raises(Timeout), Timeout(0.05):
        ask(pool, http_server, silent=1)

    assert connection.sock is None
    assert http.connections == {}
    assert shared.credentials.credentials == [("", "user", "word")]
    assert shared.certificates.credentials == [("example.org", "key", "cert", None)]
    assert ask(pool, http_server, auth="user:word")[0] == 200
    assert pool.current_size == 1


@pytest.mark.parametrize("status", [404, 500, 503])
def test_an_error_status_keeps_the_connection(http_server, http_pool, status):
    pool = http_pool()
    for _ in range(3):
        assert ask(pool, http_server, status=status)[0] == status
    assert ask(pool, http_server, status=status, body="chunked")[0] == status
    assert http_server.stats()["accepted"] == 1


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_keeps_the_connection(http_server, http_pool, status):
    pool = http_pool()
    for _ in range(3):
        assert pool.request(url(http_server, status=status), "PUT", "x")[0].status == status
    assert http_server.stats()["accepted"] == 1


def test_redirects_are_followed(http_server, http_pool):
    pool = http_pool()
    assert ask(pool, http_server, redirect="/there")[1]["path"] == "/there"
    with pytest.raises(httplib2.RedirectLimit):
        pool.request(url(http_server, redirect="/?redirect=/"), redirections=0)
    with pytest.raises(httplib2.RedirectMissingLocation):
        pool.request(url(http_server, status=302))
    whole(pool, http_server)


def test_answers_are_read_in_less_time(http_server, http_pool):
    class Own(httplib2.HTTPConnectionWithTimeout):
        response_class = type("Response", (httplib2.http.client.HTTPResponse,), {})

    for kind, answers in ((None, Answer), (Own, Own.response_class)):
        with http_pool().item() as http:
            assert http.request(url(http_server), connection_type=kind)[0].status == 200
            (connection,) = http.connections.values()
            connection.request("GET", "/")
            assert type(connection.getresponse()) is answers


def test_head_has_no_body(http_server, http_pool):
    pool = http_pool()
    for _ in range(2):
        response, body = pool.request(url(http_server), "HEAD")
        assert (response.status, body) == (200, b"")
        assert ask(pool, http_server, tag="mine")[1]["tag"] == "mine"


def test_a_programs_own_error_keeps_the_connection(http_server, http_pool):
    pool = http_pool()
    ask(pool, http_server)
    with pytest.raises(ValueError, match="mine"), pool.item():
        raise ValueError("mine")
    ask(pool, http_server)
    assert http_server.stats()["accepted"] == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(),
        httplib2.HttpLib2Error(),
        httplib2.http.client.HTTPException(),
        Timeout(0),
        gevent.GreenletExit(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_worse_error_does_not(http_server, http_pool, error):
    pool = http_pool()
    ask(pool, http_server)
    with pytest.raises(type(error)), pool.item():
        raise error
    assert connection_number(pool, http_server) == 2
    until(lambda: http_server.stats()["open"] == 1)


@pytest.mark.parametrize("caught", [True, False])
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_an_error_in_a_streamed_body_poisons_nobody(http_server, http_pool, caught, sent):
    """Half a request is on the connection, and the next one would have been its other half."""
    pool = http_pool()
    ask(pool, http_server)

    def chunks():
        yield from [b"x" * 10] * sent
        raise ValueError("no more")

    def upload(http):
        http.request(url(http_server), "POST", chunks(), {"Content-Length": "30"})

    if caught:
        with pool.item() as http:
            with pytest.raises(ValueError, match="no more"):
                upload(http)
            assert ask(http, http_server, tag="mine")[1]["tag"] == "mine"
    else:
        with pytest.raises(ValueError, match="no more"), pool.item() as http:
            upload(http)
    assert ask(pool, http_server, tag="mine")[1]["tag"] == "mine"
    whole(pool, http_server)


def test_a_body_from_a_socket_of_the_programs_own_stays_open(http_server, http_pool):
    """Its frame is among those that the Timeout comes through, whatever its name."""
    pool = http_pool()
    one, two = gevent.socket.socketpair()

    def connect(source):
        yield source.recv(10)
        yield source.recv(10)

    two.sendall(b"first")
    with pytest.raises(Timeout), Timeout(0.02):
        pool.request(url(http_server), "POST", connect(one), {"Content-Length": "30"})
    two.sendall(b"second")
    assert one.recv(10) == b"second"
    one.close()
    two.close()


def test_an_answer_half_read_by_hand_poisons_nobody(http_server, http_pool):
    pool = http_pool()
    with pool.item() as http:
        ask(http, http_server)
        (connection,) = http.connections.values()
        connection.request("GET", "/?tag=foreign")
        connection.getresponse().read(3)
    assert ask(pool, http_server, tag="mine")[1]["tag"] == "mine"
    with pool.item() as http:
        (connection,) = http.connections.values()
        connection.request("GET", "/?tag=foreign")
    assert ask(pool, http_server, tag="mine")[1]["tag"] == "mine"
    with pool.item() as http:
        (connection,) = http.connections.values()
        connection.putrequest("GET", "/?tag=foreign")
    assert ask(pool, http_server, tag="mine")[1]["tag"] == "mine"
    whole(pool, http_server)


def test_an_answer_read_but_not_to_its_end_costs_no_second_request(http_server, http_pool):
    """All of it had come, so the socket was quiet; httplib2 asked, found it, and asked again."""
    pool = http_pool()
    with pool.item() as http:
        ask(http, http_server)
        (connection,) = http.connections.values()
        connection.request("GET", "/?tag=foreign")
        response = connection.getresponse()
        response.read(3)
    assert ask(pool, http_server, "POST", "x", tag="mine")[1]["tag"] == "mine"
    response.close()
    assert http_server.stats()["requests"] == 3


class Trusting(HttpPool):
    def check(self, item):
        return True


@pytest.mark.parametrize(
    ("pool_class", "options"),
    [
        (HttpPool, {}),
        (HttpPool, {"check_after": None}),
        (HttpPool, {"check_after": 3600}),
        (HttpPool, {"check": lambda http: True}),
        (Trusting, {}),
    ],
)
def test_a_connection_that_is_dirty_as_it_comes_back_is_not_kept(
    http_server, http_pool, proxy_to, pool_class, options
):
    """Whatever the check is, or check_after says: that is about what happens to idle ones."""
    proxy = proxy_to(http_server)
    pool = http_pool(pool_class, **options)
    with pool.item() as http:
        ask(http, proxy)
        (connection,) = http.connections.values()
        proxy.links[0].client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        until(lambda: readable(connection.sock))
    assert ask(pool, proxy, tag="mine")[1]["tag"] == "mine"


def test_a_connection_that_the_server_closed_in_order_is_made_anew(http_server, http_pool):
    """The same object, which has the TLS context, and that takes longest to make."""
    pool = http_pool()
    with pool.item() as http:
        ask(http, http_server, close=1)
        (connection,) = http.connections.values()
    assert ask(pool, http_server)[0] == 200
    with pool.item() as http:
        assert list(http.connections.values()) == [connection]


def test_the_check_is_made_when_it_is_due(http_server, http_pool):
    class Counting(HttpPool):
        checks = 0

        def check(self, item):
            self.checks += 1
            return super().check(item)

    found = []
    for check_after in (None, 3600, 0):
        pool = http_pool(Counting, check_after=check_after)
        for _ in range(4):
            ask(pool, http_server)
        found.append(pool.checks)
    assert found == [0, 0, 3]


def test_a_connection_from_hand_to_hand_is_looked_at_once(http_server, http_pool, monkeypatch):
    looks = looks_at_sockets(monkeypatch, adapter)
    pool = http_pool()
    for n in range(4):
        ask(pool, http_server)
        assert len(looks) == n


@pytest.mark.parametrize("caught", [True, False])
def test_a_request_that_cannot_be_encoded_poisons_nobody(http_server, http_pool, caught):
    """http.client keeps its first lines, through close(), and sends them before the next one's."""
    pool = http_pool()
    ask(pool, http_server)

    def fail(http):
        with pytest.raises(UnicodeEncodeError):
            http.request(url(http_server, tag="foreign"), headers={"X-Name": "\u20ac"})

    if caught:
        with pool.item() as http:
            fail(http)
            assert ask(http, http_server, tag="mine")[1]["tag"] == "mine"
    else:
        fail(pool)
    assert ask(pool, http_server, tag="mine")[1]["tag"] == "mine"
    whole(pool, http_server)


def test_errors_of_connecting_come_out_as_they_are(http_server, http_pool, proxy_to):
    proxy = proxy_to(http_server)
    pool = http_pool()
    proxy.refuse()
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            ask(pool, proxy)
    proxy.listen()
    proxy.script = [close(), close(10)]
    with pytest.raises((httplib2.http.client.HTTPException, OSError)):
        ask(pool, proxy)
    proxy.script = []
    assert ask(pool, proxy)[0] == 200
    assert pool.current_size == 1


# What one user leaves, the next does not find


@pytest.mark.parametrize("how", ["put", "discard"])
@pytest.mark.parametrize("query", [{}, {"body": "chunked"}, {"close": 1}])
def test_an_answer_that_another_greenlet_still_reads_ends_with_its_client(
    http_server, http_pool, how, query
):
    """Its buffered file lets nobody close it meanwhile, nor was any other connection closed."""
    pool = http_pool()
    for _ in range(3):
        http = pool.get()
        reader = spawn(ask, http, http_server, size=1000, drip=0.05, **query)
        until(lambda http=http: any(map(has_begun, http.connections.values())))
        getattr(pool, how)(http)
        # What has come at that very moment is read still, from a file that is gone then.
        with pytest.raises((OSError, AttributeError), match=r"another greenlet|NoneType"):
            reader.get(timeout=5)
        until(lambda: http_server.stats()["open"] == 0)
    whole(pool, http_server)


def has_begun(connection):
    """Tell whether the headers of an answer were read; where they say close, it is on its own."""
    return getattr(vars(connection).get("answer"), "headers", None) is not None


def test_a_connection_that_another_greenlet_still_connects_is_not_the_next_users(
    http_server, http_pool, proxy_to
):
    proxy = proxy_to(http_server)
    pool = http_pool()
    proxy.never_accept()
    with pool.item() as http:
        left_behind = spawn(ask, http, proxy, tag="theirs")
        until(lambda: any(connection.sock for connection in http.connections.values()))
    user = spawn(ask, pool, proxy, tag="mine")
    settle()
    proxy.listen()
    assert user.get(timeout=10)[1]["tag"] == "mine"
    with pytest.raises(OSError, match="another greenlet"):
        left_behind.get(timeout=10)


def test_credentials_do_not_reach_the_next_user(http_server, http_pool):
    pool = http_pool()
    with pool.item() as http:
        http.add_credentials("user", "word")
        assert ask(http, http_server, auth="user:word")[0] == 200
        assert http.authorizations
    with pool.item() as http:
        assert http.credentials.credentials == []
        assert ask(http, http_server, auth="user:word")[0] == 401


def test_authorizations_do_not_outlive_their_credentials(http_server, http_pool):
    """Added, used, and taken away again: the settings are as before, what was learnt is not."""
    pool = http_pool()
    with pool.item() as http:
        http.add_credentials("user", "word")
        assert ask(http, http_server, auth="user:word")[0] == 200
        http.credentials.clear()
    assert ask(pool, http_server, auth="user:word")[0] == 401


def test_credentials_of_the_pool_stay_when_a_user_adds_his(http_server, http_pool):
    pool = http_pool()
    pool.add_credentials("user", "word")
    with pool.item() as http:
        http.add_credentials("guest", "word2")
        assert ask(http, http_server, auth="guest:word2")[0] == 200
        assert ask(http, http_server, auth="user:word")[0] == 200
    assert ask(pool, http_server, auth="guest:word2")[0] == 401
    assert ask(pool, http_server, auth="user:word")[0] == 200


def test_what_was_learnt_by_the_pools_credentials_is_kept(http_server, http_pool):
    """One challenge, not one per request."""
    pool = http_pool()
    pool.add_credentials("user", "word")
    for _ in range(4):
        assert ask(pool, http_server, auth="user:word")[0] == 200
    assert http_server.stats()["requests"] == 5


CHANGES = {
    "follow_redirects": lambda http: setattr(http, "follow_redirects", False),
    "follow_all_redirects": lambda http: setattr(http, "follow_all_redirects", True),
    "redirect_codes": lambda http: setattr(http, "redirect_codes", frozenset()),
    "timeout": lambda http: setattr(http, "timeout", 0.001),
    "a patched request": lambda http: setattr(http, "request", lambda *args: 1 / 0),
    "a patched _request": lambda http: setattr(http, "_request", lambda *args: 1 / 0),
    "a new attribute": lambda http: setattr(http, "mine", 1),
    "a deleted attribute": lambda http: delattr(http, "follow_redirects"),
    "safe_methods": lambda http: http.safe_methods.append("POST"),
    "no safe_methods": lambda http: http.safe_methods.clear(),
    "cache": lambda http: setattr(http, "cache", httplib2.FileCache(".")),
    "proxy_info": lambda http: setattr(
        http, "proxy_info", httplib2.ProxyInfo(PROXY_TYPE_HTTP, "127.0.0.1", 1)
    ),
    "certificates": lambda http: http.add_certificate("key", "cert", ""),
    "other credentials": lambda http: setattr(http, "credentials", httplib2.Credentials()),
    "force_exception_to_status_code": lambda http: setattr(
        http, "force_exception_to_status_code", True
    ),
    "forward_authorization_headers": lambda http: setattr(
        http, "forward_authorization_headers", True
    ),
    "disable_ssl_certificate_validation": lambda http: setattr(
        http, "disable_ssl_certificate_validation", True
    ),
}


def settings(http):
    """Tell all that a user could have changed."""
    found = {
        name: list(value) if isinstance(value, list) else value
        for name, value in vars(http).items()
        if name not in ("connections", "credentials", "certificates")
    }
    found["credentials"] = list(http.credentials.credentials)
    found["certificates"] = list(http.certificates.credentials)
    return found


@pytest.mark.parametrize("how", CHANGES)
def test_changed_settings_do_not_reach_the_next_user(http_server, http_pool, how):
    pool = http_pool()
    with pool.item() as http:
        before = settings(http)
    for _ in range(2):
        with pool.item() as http:
            CHANGES[how](http)
            assert how == "other credentials" or settings(http) != before
        with pool.item() as http:
            assert settings(http) == before
            assert ask(http, http_server, redirect="/there")[1]["path"] == "/there"


def test_what_a_user_puts_into_a_slot_reaches_nobody(http_pool):
    assert_slots_are_taken_back(http_pool(create=slotted(httplib2.Http)))


class Untold:
    """A cache, say in a table, that cannot be compared."""

    __hash__ = None

    def __eq__(self, other):
        raise ValueError("the truth value of a table is ambiguous")


def test_a_cache_that_cannot_be_compared_costs_no_client():
    pool = HttpPool(max_size=1, create=lambda: httplib2.Http(Untold()))
    with pool.item() as http:
        pass
    with pool.item() as again:
        assert again is http


TERMS = {
    "timeout": 1000,
    "proxy_info": None,
    "ca_certs": "certs.pem",
    "disable_ssl_certificate_validation": True,
    "tls_maximum_version": "TLSv1_2",
    "tls_minimum_version": "TLSv1_2",
}


@pytest.mark.parametrize("back", ["changed back", "changed back and used", "left so"])
@pytest.mark.parametrize("name", [*TERMS, "certificates"])
def test_a_connection_made_with_other_settings_does_not_either(http_server, http_pool, name, back):
    """Its timeout, proxy and trust are those of the moment in which it was made."""
    pool = http_pool()
    with pool.item() as http:
        before = getattr(http, name)
        if name == "certificates":
            http.certificates = httplib2.KeyCerts()
            http.add_certificate("key", "cert", "")
        else:
            setattr(http, name, TERMS[name])
        assert ask(http, http_server)[0] == 200
        if back != "left so":
            setattr(http, name, before)
        if back == "changed back and used":
            assert ask(http, http_server)[0] == 200
    assert connection_number(pool, http_server) == 2
    assert connection_number(pool, http_server) == 2


def test_what_is_given_back_is_given_back_each_time(http_server, http_pool):
    """A client that had its own back once shared a list with what the pool remembers of it."""
    pool = http_pool()
    for _ in range(3):
        with pool.item() as http:
            assert http.credentials.credentials == http.certificates.credentials == []
            http.follow_redirects = False
            http.add_credentials("user", "word")
            http.add_certificate("key", "cert", "")


# Settings of the pool


def new_settings(pool):
    pool.follow_redirects = False
    pool.redirect_codes = frozenset([301])
    pool.timeout = 5
    pool.add_credentials("user", "word", "example.org")
    pool.add_certificate("key", "cert", "example.org", "word")


@pytest.mark.parametrize("check_after", [0, 3600, None])
def test_settings_of_the_pool_reach_all_clients(http_server, http_pool, check_after):
    pool = http_pool(max_size=3, check_after=check_after)
    idle, held = pool.get(), pool.get()
    pool.put(idle)
    new_settings(pool)
    pool.put(held)
    items = [pool.get() for _ in range(3)]
    for http in items:
        assert http.follow_redirects is pool.follow_redirects is False
        assert http.redirect_codes == pool.redirect_codes == {301}
        assert http.timeout == pool.timeout == 5
        assert http.credentials.credentials == [("example.org", "user", "word")]
        assert http.certificates.credentials == [("example.org", "key", "cert", "word")]
    for http in items:
        pool.put(http)
    assert {pool.get() for _ in range(3)} == set(items)
    for http in items:
        pool.put(http)
    pool.clear_credentials()
    with pool.item() as http:
        assert http.credentials.credentials == []
        assert http.follow_redirects is False


ONE_SETTING = {
    "follow_redirects": lambda pool: setattr(pool, "follow_redirects", False),
    "redirect_codes": lambda pool: setattr(pool, "redirect_codes", frozenset([301])),
    "timeout": lambda pool: setattr(pool, "timeout", 5),
    "credentials": lambda pool: pool.add_credentials("user", "word", "example.org"),
    "certificates": lambda pool: pool.add_certificate("key", "cert", "example.org"),
    "no credentials": lambda pool: pool.clear_credentials(),
}


@pytest.mark.parametrize("name", ONE_SETTING)
def test_each_setting_of_the_pool_reaches_clients_made_before(http_pool, name):
    pool = http_pool(max_size=2)
    pool.add_credentials("guest", "word2")
    idle, held = pool.get(), pool.get()
    before = settings(idle)
    pool.put(idle)
    ONE_SETTING[name](pool)
    pool.put(held)
    items = [pool.get(), pool.get()]
    assert settings(items[0]) == settings(items[1]) != before
    for item in items:
        pool.put(item)


@pytest.mark.parametrize("check_after", [0, 3600, None])
def test_cleared_credentials_are_used_no_more(http_server, http_pool, check_after):
    pool = http_pool(check_after=check_after)
    pool.add_credentials("user", "word")
    assert ask(pool, http_server, auth="user:word")[0] == 200
    pool.clear_credentials()
    assert ask(pool, http_server, auth="user:word")[0] == 401


def test_clients_do_not_share_what_they_change(http_pool):
    pool = http_pool(max_size=2)
    pool.add_credentials("user", "word")
    one, two = pool.get(), pool.get()
    one.add_credentials("guest", "word2")
    one.safe_methods.append("POST")
    assert two.credentials.credentials == [("", "user", "word")]
    assert "POST" not in two.safe_methods
    pool.put(one)
    pool.put(two)
    with pool.item() as http:
        assert http.credentials.credentials == [("", "user", "word")]


# Idle connections that die


@pytest.mark.parametrize("how", ["close_idle", "reset_all", "fin"])
def test_a_connection_closed_idle_costs_nothing(http_server, http_pool, how):
    """Not even a second try of the POST: the server counts one request each."""
    pool = http_pool(max_size=2)
    items = [pool.get(), pool.get()]
    for http in items:
        ask(http, http_server, **({"fin": 1} if how == "fin" else {}))
    for http in items:
        pool.put(http)
    if how == "fin":
        until(lambda: http_server.stats()["open"] == 0)
    else:
        getattr(http_server, how)()
    for n in range(4):
        assert ask(pool, http_server, "POST", "x", tag=n)[1]["tag"] == str(n)
    assert http_server.stats()["requests"] == 6


def test_stray_bytes_are_read_by_nobody(http_server, http_pool, proxy_to):
    proxy = proxy_to(http_server)
    pool = http_pool()
    ask(pool, proxy)
    proxy.links[0].client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert ask(pool, proxy, tag="mine")[1]["tag"] == "mine"
    assert proxy.made == 2


def test_only_the_dead_of_several_connections_is_dropped(http_server, http_pool, proxy_to):
    proxy = proxy_to(http_server)
    pool = http_pool()
    ask(pool, http_server)
    ask(pool, proxy)
    proxy.close_all()
    ask(pool, http_server)
    ask(pool, proxy)
    assert proxy.made == 2
    assert http_server.stats()["accepted"] == 3


def test_the_check_never_switches(http_server, http_pool):
    pool = http_pool()
    ask(pool, http_server)
    gevent.sleep(0)
    with switches() as count, pool.item() as http:
        assert pool.check(http)
        (connection,) = http.connections.values()
        assert connection.sock is not None
    assert count() == 0
    http_server.close_idle()
    with switches() as count, pool.item() as http:
        assert connection.sock is None
    assert count() == 0


@pytest.mark.usefixtures("high_fds")
def test_file_descriptors_beyond_1024(http_server, http_pool):
    pool = http_pool()
    first = connection_number(pool, http_server)
    with pool.item() as http:
        (connection,) = http.connections.values()
        assert connection.sock.fileno() > 1023
    assert connection_number(pool, http_server) == first
    http_server.close_idle()
    assert connection_number(pool, http_server) != first


def test_no_more_connections_than_clients(http_server, http_pool):
    pool = http_pool(max_size=5)

    def user(name):
        for turn in range(5):
            tag = f"{name}-{turn}"
            assert ask(pool, http_server, tag=tag)[1]["tag"] == tag

    users = [spawn(user, name) for name in range(100)]
    gevent.joinall(users, timeout=30, raise_error=True)
    stats = http_server.stats()
    assert (stats["accepted"], stats["peak"], stats["requests"]) == (5, 5, 500)


def test_close_leaves_no_connection(http_server, http_pool):
    pool = http_pool(max_size=2)
    held = pool.get()
    ask(held, http_server)
    ask(pool, http_server)
    pool.close()
    until(lambda: http_server.stats()["open"] == 1)
    pool.put(held)
    until(lambda: http_server.stats()["open"] == 0)
    with pytest.raises(PoolClosed):
        ask(pool, http_server)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_kill_in_connect_leaves_no_socket_behind(http_server, http_pool, proxy_to, scheme):
    """Kept by the frame that died, and so by whoever looks at the error."""
    proxy = proxy_to(http_server)
    proxy.never_accept()
    pool = http_pool()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Timeout) as kept, Timeout(0.1):
        pool.request(f"{scheme}://{proxy.host}:{proxy.port}/")
    assert len(os.listdir("/proc/self/fd")) == before
    assert kept.value.__traceback__ is not None


class Proxied(httplib2.HTTPConnectionWithTimeout):
    """Reads what its proxy has to say by a file, as PySocks does."""

    mode: ClassVar = ("rb", None)
    log: ClassVar = io.StringIO()

    def connect(self):
        super().connect()
        log, lines = self.log, self.sock.makefile(*self.mode)
        log.write(str(lines.readline()))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("mode", [("r", None), ("rb", None), ("rb", 0)], ids=["r", "rb", "raw"])
def test_a_kill_amid_the_words_of_a_proxy_leaves_no_socket_behind(http_server, http_pool, mode):
    """The file that the dead frame had kept it open, though the connection was closed."""
    kind = type("Kind", (Proxied,), {"mode": mode})
    pool = http_pool()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Timeout) as kept, Timeout(0.1):
        pool.request(url(http_server), connection_type=kind)
    assert len(os.listdir("/proc/self/fd")) == before
    assert kept.value.__traceback__ is not None
    assert not kind.log.closed


class Asking(httplib2.HTTPConnectionWithTimeout):
    """Has written to a file, not sent, what it asks its proxy."""

    def connect(self):
        super().connect()
        file = self.sock.makefile("wb", 1 << 24)
        file.write(bytes(1 << 23))
        self.sock.recv(1)


def test_a_kill_amid_the_words_to_a_proxy_sends_no_more_of_them(http_pool):
    """The file was closed, and so sent them first, to a proxy that reads nothing, for ever."""
    with gevent.socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        address = "http://{}:{}/".format(*proxy.getsockname())
        asking = spawn(http_pool().request, address, connection_type=Asking)
        accepted, _ = proxy.accept()
        settle()
        with accepted:
            asking.kill(timeout=10)
            assert asking.dead


def test_storm_of_kills_on_tagged_requests(http_server, http_pool):
    """About every third interrupted: no foreign answer, no lost slot."""
    pool = http_pool(max_size=5)

    def ask_one(chance, http, tag):
        query = {"tag": tag} | chance.choice([{}, {"body": "chunked"}, {"size": 3000}])
        return ask(http, http_server, chance.choice(["GET", "POST"]), **query)[1]["tag"]

    def once_more(http, tag):
        return ask(http, http_server, tag=tag)[1]["tag"]

    storm = KillStorm(2, in_block(pool, ask_one, once_more), patience=(0.001, 0.004, 5))
    storm.rage(pool, answers=1500, kills=200)
    whole(pool, http_server)


# Standing in for one Http


def test_request_has_httplib2s_signature(http_server, http_pool):
    ours = inspect.signature(HttpPool.request).parameters.values()
    theirs = inspect.signature(httplib2.Http.request).parameters.values()
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs
    ]

    class Connection(httplib2.HTTPConnectionWithTimeout):
        pass

    pool = http_pool()
    _, content = pool.request(url(http_server), "PUT", b"body", {"X-Tag": "t"}, 3, Connection)
    echo = json.loads(content)
    assert (echo["method"], echo["body"], echo["tag"]) == ("PUT", "body", "t")
    with pool.item() as http:
        assert [type(c) for c in http.connections.values()] == [Connection]
    _, content = pool.request(
        uri=url(http_server), method="PUT", body=b"b", headers={}, redirections=1
    )
    assert json.loads(content)["body"] == "b"


def discovery_document(server):
    thing = {"id": "Thing", "type": "object", "properties": {"name": {"type": "string"}}}
    identity = {"type": "string", "required": True, "location": "path"}
    tag = {"type": "string", "location": "query"}
    one = {"parameters": {"id": identity, "tag": tag}, "parameterOrder": ["id"]}
    one["response"] = {"$ref": "Thing"}
    get = {"id": "toy.things.get", "path": "things/{id}", "httpMethod": "GET"} | one
    put = {"id": "toy.things.put", "path": "things/{id}", "httpMethod": "PUT"} | one
    put["request"] = {"$ref": "Thing"}
    status = {"type": "string", "location": "query"}
    fail = {"id": "toy.things.fail", "path": "things", "httpMethod": "GET"}
    fail["parameters"] = {"status": status}
    return {
        "name": "toy",
        "version": "v1",
        "rootUrl": f"{server.url}/",
        "servicePath": "",
        "baseUrl": f"{server.url}/",
        "schemas": {"Thing": thing},
        "resources": {"things": {"methods": {"get": get, "put": put, "fail": fail}}},
    }


def test_google_api_client_takes_the_pool_for_an_http(http_server, http_pool):
    pool = http_pool(max_size=3)
    service = build_from_document(discovery_document(http_server), http=pool)

    def user(name):
        echo = service.things().get(id=f"t{name}", tag=str(name)).execute()
        assert (echo["tag"], echo["method"]) == (str(name), "GET")
        echo = service.things().put(id="x", tag=str(name), body={"name": str(name)}).execute()
        assert json.loads(echo["body"]) == {"name": str(name)}

    users = [spawn(user, name) for name in range(20)]
    gevent.joinall(users, timeout=20, raise_error=True)
    with pytest.raises(HttpError, match="404"):
        service.things().fail(status="404").execute()
    stats = http_server.stats()
    assert (stats["accepted"], stats["peak"], stats["requests"]) == (3, 3, 41)
    service.close()
    assert pool.closed


class Stale(google.auth.credentials.Credentials):
    """Credentials of which the server knows nothing until they are refreshed."""

    def __init__(self, where):
        super().__init__()
        self.token = "stale"
        self.where = where
        self.refreshed = 0

    @property
    def expired(self):
        return False

    @property
    def valid(self):
        return True

    def refresh(self, request):
        assert request(self.where, method="POST", body="grant").status == 200
        self.refreshed += 1
        self.token = "dXNlcjp3b3Jk"  # user:word

    def apply(self, headers, token=None):
        headers["authorization"] = f"Basic {token or self.token}"


def test_authorized_http_takes_the_pool_for_an_http(http_server, http_pool):
    pool = http_pool(max_size=1)
    credentials = Stale(url(http_server, "/token"))
    authorized = google_auth_httplib2.AuthorizedHttp(credentials, http=pool)
    for _ in range(3):
        assert ask(authorized, http_server, "POST", "x", auth="user:word")[0] == 200
    assert credentials.refreshed == 1
    stats = http_server.stats()
    assert (stats["accepted"], stats["requests"]) == (1, 5)

    authorized.timeout = 7
    authorized.follow_redirects = False
    authorized.redirect_codes = frozenset([301])
    authorized.add_certificate("key", "cert", "example.org")
    assert (pool.timeout, authorized.timeout) == (7, 7)
    assert (pool.follow_redirects, authorized.follow_redirects) == (False, False)
    assert pool.redirect_codes == authorized.redirect_codes == {301}
    assert ask(authorized, http_server, auth="user:word", redirect="/x")[0] == 302
    with pool.item() as http:
        assert http.timeout == 7
        assert http.certificates.credentials == [("example.org", "key", "cert", None)]
        assert authorized.connections == {}
    (connection,) = authorized.connections.values()
    assert connection.port == http_server.port
    authorized.close()
    assert pool.closed


# Passwords


def test_nothing_prints_a_password(http_server, http_pool, caplog):
    caplog.set_level(logging.DEBUG)
    proxy = httplib2.ProxyInfo(PROXY_TYPE_HTTP, "127.0.0.1", 1, proxy_user="user", proxy_pass=WORD)
    pool = http_pool(name="main", proxy_info=proxy)
    pool.add_credentials("user", WORD)
    pool.add_certificate("key", "cert", "", WORD)
    http = pool.get()
    said = [repr(pool), repr(http), *map(str, pool.holders())]
    with pytest.raises(PoolTimeout) as caught:
        pool.get(timeout=0)
    said.append(str(caught.value))
    pool.put(http)
    with pytest.raises(NotInUse) as caught:
        pool.put(http)
    said.append(str(caught.value))
    http = pool.get()
    http.connections["x"] = WORD  # so its reset fails
    pool.put(http)
    http = pool.get()
    http.connections["x"] = WORD  # so its destroy fails
    pool.discard(http)
    with pytest.raises(TypeError) as caught:
        HttpPool(no_such_option=WORD)
    said.append(str(caught.value))

    assert "reset of" in caplog.text
    assert "destroy of" in caplog.text
    assert "main" in repr(pool)
    assert [text for text in (*said, caplog.text) if WORD in text] == []


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def tls(request, certificate):
    with TlsServer(*certificate, version=ssl.TLSVersion[request.param]) as server:
        server.version = request.param
        yield server


def readable(sock):
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_tls(tls, http_pool, certificate):
    pool = http_pool(ca_certs=certificate[0])
    for n in range(3):
        assert pool.request(f"{tls.url}/{n}")[1] == b"/%d" % n
    assert len(tls.connections) == 1


def test_tls_without_trust(tls, http_pool):
    pool = http_pool()
    with pytest.raises(ssl.SSLError):
        pool.request(tls.url)
    assert pool.free() == 1
    blind = http_pool(disable_ssl_certificate_validation=True)
    assert blind.request(f"{tls.url}/x")[1] == b"/x"


def test_trust_that_was_waived_in_a_block_is_required_again(tls, http_pool):
    """The next user used to talk to whoever it was, on the connection kept alive."""
    pool = http_pool()
    with pool.item() as http:
        http.disable_ssl_certificate_validation = True
        assert http.request(f"{tls.url}/x")[1] == b"/x"
        http.disable_ssl_certificate_validation = False
    with pytest.raises(ssl.SSLError):
        pool.request(tls.url)


def test_a_tls_connection_closed_idle_is_replaced(tls, http_pool, certificate):
    pool = http_pool(ca_certs=certificate[0])
    assert pool.request(f"{tls.url}/1")[1] == b"/1"
    with pool.item() as http:
        (connection,) = http.connections.values()
    tls.connections[0].shutdown(socket.SHUT_RDWR)
    until(lambda: readable(connection.sock))
    assert pool.request(f"{tls.url}/2", "POST", "x" * 0)[1] == b"/2"
    assert len(tls.connections) == 2


def test_stray_bytes_on_tls_are_read_by_nobody(tls, http_pool, certificate):
    pool = http_pool(ca_certs=certificate[0])
    assert pool.request(f"{tls.url}/1")[1] == b"/1"
    with pool.item() as http:
        (connection,) = http.connections.values()
    tls.connections[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    until(lambda: readable(connection.sock))
    assert pool.request(f"{tls.url}/2")[1] == b"/2"
    assert len(tls.connections) == 2


def test_unread_session_tickets_do_not_cost_a_connection(tls, http_pool, certificate):
    """A TLS 1.3 server sends them behind its handshake; the socket is readable and healthy."""
    pool = http_pool(ca_certs=certificate[0])
    assert pool.request(f"{tls.url}/1")[1] == b"/1"
    with pool.item() as http:
        (connection,) = http.connections.values()
        connection.close()
        connection.connect()
        until(lambda: len(tls.connections) == 2)
        sock = connection.sock
        if tls.version == "TLSv1_3":
            until(lambda: readable(sock))
    assert pool.request(f"{tls.url}/x")[1] == b"/x"
    assert connection.sock is sock
    assert len(tls.connections) == 2


def test_a_kill_in_a_tls_handshake_leaves_no_socket_behind(http_server, http_pool, proxy_to):
    proxy = proxy_to(http_server, hang(0, REQUEST))
    pool = http_pool()
    user = spawn(pool.request, f"https://{proxy.host}:{proxy.port}/")
    assert proxy.stopped.wait(5)
    user.kill()
    until(lambda: proxy.open == 0)
    gc.collect()
    assert pool.free() == 1
