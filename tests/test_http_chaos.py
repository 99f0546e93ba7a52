"""Servers that restart, freeze, vanish and break off, and forks, for each of the HTTP pools."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import gevent
import gevent.server
import httplib2
import pytest
import requests
import urllib3

from gpools.adapters import FairHTTPAdapter, FairPoolManager, HttpPool, KeyedHttpPool
from tests.cooperative import cooperative, cooperative_urllib3  # noqa: F401
from tests.proxy import REPLY, REQUEST, black_hole, close, hang, passing, reset
from tests.servers import HttpServer
from tests.waiting import spawn, until

pytestmark = pytest.mark.usefixtures("cooperative", "cooperative_urllib3")

ERRORS = (
    OSError,  # requests' too
    httplib2.http.client.HTTPException,
    httplib2.HttpLib2Error,
    urllib3.exceptions.HTTPError,
    json.JSONDecodeError,  # http.client takes half the headers for all of them
)


class Httplib2:
    """A user of one of the pools: `ask`, and the `pool` behind."""

    def __init__(self, server, size, timeout):
        self.where = f"http://{server.host}:{server.port}/"
        self.front = self.make(size, timeout)

    def make(self, size, timeout):
        return HttpPool(max_size=size, timeout=timeout, get_timeout=10)

    @property
    def pool(self):
        return self.front

    def fetch(self, url, method):
        return self.front.request(url, method)[1]

    def ask(self, tag, method="GET", **query):
        more = "".join(f"&{name}={value}" for name, value in query.items())
        return json.loads(self.fetch(f"{self.where}?tag={tag}{more}", method))["tag"]

    def close(self):
        self.front.close()


class Keyed(Httplib2):
    def make(self, size, timeout):
        return KeyedHttpPool(max_per_host=size, timeout=timeout, get_timeout=10)

    @property
    def pool(self):
        return self.front.pools().get(self.where[:-1])


class Urllib3(Httplib2):
    def make(self, size, timeout):
        return FairPoolManager(maxsize=size, timeout=timeout, pool_timeout=10, retries=False)

    @property
    def pool(self):
        return self.front.connection_from_url(self.where).pool

    def fetch(self, url, method):
        return self.front.request(method, url).data

    def close(self):
        self.front.clear()


class Requests(Httplib2):
    def make(self, size, timeout):
        session = requests.Session()
        session.trust_env = False
        session.mount("http://", FairHTTPAdapter(pool_maxsize=size, pool_timeout=10))
        self.timeout = timeout
        return session

    @property
    def pool(self):
        (only,) = self.front.get_adapter("http://").poolmanager._alive.values()
        return only.pool

    def fetch(self, url, method):
        return self.front.request(method, url, timeout=self.timeout).content


@pytest.fixture(params=[Httplib2, Keyed, Urllib3, Requests])
def client(request):
    """`client(server, size)`: a user of each of the pools."""
    made = []

    def make(server, size=3, timeout=30):
        made.append(request.param(server, size, timeout))
        return made[-1]

    yield make
    for one in made:
        one.close()


def crowd(user, n, **query):
    """Have *n* greenlets ask at once; return the errors, having seen no foreign answer."""

    def one(tag):
        try:
            answer = user.ask(tag, **query)
        except ERRORS as error:
            return error
        assert answer == tag
        return None

    users = [spawn(one, str(k)) for k in range(n)]
    gevent.joinall(users, timeout=30, raise_error=True)
    return [user.get(timeout=1) for user in users if user.value is not None]


def sound(user, size):
    """Assert that all slots are there and work."""
    assert crowd(user, size * 2) == []
    at_rest(user, size)


def at_rest(user, size):
    """Assert that nobody has or wants anything, and that no more than *size* are there."""
    assert user.pool.waiting() == 0
    assert user.pool.holders() == []
    assert user.pool.current_size <= size


def test_a_restart_with_50_idle_costs_nobody_an_error(start_server, client):
    server = start_server(HttpServer)
    user = client(server, size=50)
    assert crowd(user, 50, delay=0.3) == []
    assert user.pool.current_size == server.stats()["open"] == 50
    server.kill9()
    server.start()
    assert crowd(user, 200, method="POST") == []
    assert server.stats()["requests"] == 200
    assert server.stats()["peak"] <= 50


def test_a_frozen_server_ends_in_timeouts(start_server, client):
    server = start_server(HttpServer)
    user = client(server, timeout=0.2)
    until(lambda: crowd(user, 3) == [])  # a busy machine may need longer
    server.freeze()
    errors = crowd(user, 6)
    assert len(errors) == 6
    server.thaw()
    until(lambda: crowd(user, 6) == [])
    at_rest(user, 3)


@pytest.mark.parametrize("fault", ["black hole", "firewall"])
def test_a_black_hole_ends_in_timeouts(http_server, proxy_to, client, fault):
    proxy = proxy_to(http_server, black_hole)
    if fault == "firewall":
        proxy.never_accept()
    user = client(proxy, timeout=0.1)
    assert len(crowd(user, 6)) == 6
    proxy.fault = close()
    if fault == "firewall":
        proxy.listen()
    assert len(crowd(user, 6)) == 6
    proxy.fault = hang(10**9)
    until(lambda: crowd(user, 6) == [])
    at_rest(user, 3)


def test_refused_and_back(http_server, proxy_to, client):
    proxy = proxy_to(http_server)
    user = client(proxy)
    proxy.refuse()
    assert len(crowd(user, 9)) == 9
    proxy.listen()
    sound(user, 3)


def test_connections_closed_for_being_idle_cost_nobody_an_error(http_server, client):
    user = client(http_server)
    for end in ("close_idle", "reset_all", "close_all") * 3:
        assert crowd(user, 6, method="POST") == []
        getattr(http_server, end)()
    assert http_server.stats()["requests"] == 9 * 6
    http_server.behave(fin=1)
    assert user.ask("1", "POST") == "1"
    until(lambda: http_server.stats()["open"] == 0)
    assert user.ask("2", "POST") == "2"
    assert http_server.stats()["requests"] == 9 * 6 + 2


@pytest.mark.parametrize("how", [close, reset, hang])
@pytest.mark.parametrize("stream", [REQUEST, REPLY])
def test_half_an_exchange_costs_no_slot_and_no_second_post(
    http_server, proxy_to, client, how, stream
):
    proxy = proxy_to(http_server)
    user = client(proxy, size=1, timeout=0.1 if how is hang else 30)

    def answered():
        """Ask until there is an answer: 0.1 s may be over before a busy machine has one."""
        errors = crowd(user, 1)
        assert not errors or how is hang, errors
        return not errors

    broken = 0
    for after in (0, 1, 20, 60, 130, 160, 220):
        until(answered)  # connects
        link = proxy.links[-1]
        link.fault = how(len(getattr(link, stream)) + after, stream)
        broken += len(crowd(user, 1, method="POST", after=after))
        link.fault = passing  # where the exchange was shorter
        proxy.resume()
        until(answered)
    assert broken >= 3
    assert http_server.stats()["same_posts"] == 1
    until(lambda: crowd(user, 2) == [])
    at_rest(user, 1)


FORKS = """
from gevent import monkey; monkey.patch_all()
import os, sys
from contextlib import suppress
import gevent, requests
from gpools.adapters import FairHTTPAdapter, FairPoolManager, HttpPool, KeyedHttpPool
url = sys.argv[1]
session = requests.Session()
session.trust_env = False
session.mount("http://", FairHTTPAdapter(pool_maxsize=3, pool_timeout=20))
manager = FairPoolManager(maxsize=3, pool_timeout=20, retries=False)
plain = HttpPool(max_size=3, get_timeout=20)
keyed = KeyedHttpPool(max_per_host=3, get_timeout=20)
fetches = [
    lambda url: session.get(url).content,
    lambda url: manager.request("GET", url).data,
    lambda url: plain.request(url)[1],
    lambda url: keyed.request(url)[1],
]

def work(who, rounds):
    wrong = done = 0
    def one(n):
        nonlocal wrong, done
        tag = f"{who}-{n}"
        wrong += f'"{tag}"'.encode() not in fetches[n % 4](f"{url}/?tag={tag}")
        done += 1
    gevent.joinall([gevent.spawn(one, n) for n in range(rounds)], raise_error=True)
    return wrong, done

assert work("master", 40) == (0, 40), "master"
held = [session.get(f"{url}/?tag=held&size=300000", stream=True)]
held.append(manager.request("GET", f"{url}/?tag=held&size=300000", preload_content=False))
pids = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        answer = work(f"child{child}", 80)
        # What it inherited leads nowhere.
        with suppress(OSError):
            held[1].connection.sock.send(b"GET /?tag=childs HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        for response in held:
            response.close()
        del held, response
        answer2 = work(f"child{child}", 80)
        os._exit(0 if answer == answer2 == (0, 80) else 1)
    pids.append(pid)
assert work("parent", 80) == (0, 80), "parent"
print(*[os.waitpid(pid, 0)[1] for pid in pids])
print(held[0].json()["tag"], held[1].json()["tag"])
assert work("after", 40) == (0, 40), "after"
(fair,) = (one.pool for one in manager._alive.values())
print(fair.stats().destroyed, fair.max_size, plain.stats().destroyed)
sys.stdout.flush()
os._exit(0)
"""


def test_three_forked_children_at_work(http_server):
    """The parent has idle connections and half-read answers, and keeps them."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKS, http_server.url],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["0 0 0", "held held", "{} 3 {}"], done.stderr
    assert http_server.stats()["requests"] == 40 + 2 + 3 * 160 + 80 + 40


def test_a_naive_session_shared_with_children_gives_foreign_answers(http_server):
    """So the test above can fail: a socket that both use."""
    pool = urllib3.HTTPConnectionPool(http_server.host, http_server.port, retries=False)
    pool.request("GET", "/")
    connection = pool.pool.get_nowait()
    twin = socket.fromfd(connection.sock.fileno(), socket.AF_INET, socket.SOCK_STREAM)
    twin.sendall(b"GET /?tag=childs HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.request("GET", "/?tag=mine")
    assert json.loads(connection.getresponse().data)["tag"] == "childs"
    connection.close()
    twin.close()


class Strays(gevent.server.StreamServer):
    """Answers its first request with *first* and, when told to, *late*; the others with "mine"."""

    first: bytes
    late: bytes

    def __init__(self, first, late):
        super().__init__(("127.0.0.1", 0), self.serve)
        self.first, self.late = first, late
        self.sockets = []

    @property
    def host(self):
        return self.address[0]

    @property
    def port(self):
        return self.server_port

    def serve(self, sock, address):
        self.sockets.append(sock)
        with sock.makefile("rb") as stream:
            while stream.readline():
                while stream.readline().strip():
                    pass
                if len(self.sockets) == 1 and self.first:
                    sock.sendall(self.first)
                    self.first = b""
                    continue
                if len(self.sockets) == 1:
                    sock.sendall(self.late)  # not there before the next user asked
                sock.sendall(answer("mine"))


def answer(tag):
    body = json.dumps({"tag": tag}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    ("first", "late"),
    [
        (b"103 Early Hints\r\nLink: </style.css>", answer("theirs")),
        (b"102 Processing", answer("theirs")),
        (b"101 Switching Protocols\r\nUpgrade: other", answer("theirs")),
        (b"204 No Content\r\nContent-Length: 200", answer("theirs")),
    ],
    ids=["103", "102", "101", "204"],
)
def test_what_follows_an_answer_that_looks_whole_is_read_by_nobody(client, first, late):
    server = Strays(b"HTTP/1.1 %s\r\n\r\n" % first, late)
    server.start()
    try:
        user = client(server, size=1)
        user.fetch(user.where, "GET")
        assert user.ask("mine") == "mine"
        assert user.ask("mine") == "mine"
        assert len(server.sockets) == 2
    finally:
        server.stop()


@pytest.mark.parametrize("length", [b"", b"Content-Length: 0\r\n"])
def test_an_answer_without_content_keeps_its_connection(client, length):
    server = Strays(b"HTTP/1.1 204 No Content\r\n%s\r\n" % length, b"")
    server.start()
    try:
        user = client(server, size=1)
        user.fetch(user.where, "GET")
        assert user.ask("mine") == "mine"
        assert len(server.sockets) == 1
    finally:
        server.stop()
