"""requests with a fair adapter, on a real HTTP server; for urllib3 see test_urllib3_pool."""

import json
import pickle
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import gevent
import gevent.server
import pytest
import requests
from gevent import Timeout
from requests.adapters import HTTPAdapter

from gpools import PoolTimeout
from gpools.adapters import FairHTTPAdapter
from tests.cooperative import cooperative_urllib3  # noqa: F401
from tests.proxy import REPLY, REQUEST
from tests.test_byte_boundaries import HEADERS, Ordeal, at_every_byte, whole
from tests.test_urllib3_pool import http_proxy  # noqa: F401
from tests.tls import make_certificate
from tests.waiting import settle, spawn, until

pytestmark = pytest.mark.usefixtures("cooperative_urllib3")

HERE = Path(__file__).parent.parent


@pytest.fixture
def session():
    """`session(...)`: a requests.Session on a FairHTTPAdapter of one connection."""
    made = []

    def make(adapter_class=FairHTTPAdapter, **options):
        one = requests.Session()
        one.trust_env = False
        one.headers.clear()
        one.headers.update(HEADERS)
        adapter = adapter_class(**{"pool_maxsize": 1, **options})
        one.mount("http://", adapter)
        one.mount("https://", adapter)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def core(http, server):
    """Return the `ConnectionPool` behind a session."""
    pools = http.get_adapter("http://").poolmanager._alive.values()
    (found,) = (one.pool for one in pools if one.port == server.port)
    return found


def ask(http, server, **query):
    return http.get(server.url, params=query).json()


# In a patched program


@pytest.fixture
def patched(http_server, tmp_path):
    def run(adapter):
        done = subprocess.run(
            [
                *(sys.executable, "-W", "error", "-m", "tests.patched_requests", adapter),
                *(str(http_server.port), *make_certificate(tmp_path)),
            ],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    return run


def test_a_patched_program(patched, http_server):
    result, errors = patched("fair")
    assert errors == ""
    assert result["crowd"] == [[], 5]
    assert result["killed waiters"] == [1, None]
    assert result["dropped"] is True
    assert result["storm"] == [True, [], 5]
    assert result["tls"] is True
    assert result["tls connections"] == 2
    until(lambda: http_server.stats()["open"] == 0)


def test_the_same_with_requests_own_adapter(patched, http_server):
    """So the test above can fail: more connections than allowed, and slots lost for ever."""
    result, _ = patched("own")
    foreign, connections = result["crowd"]
    assert (foreign, connections > 20) == ([], True)
    at_once, _ = result["killed waiters"]
    assert at_once > 1
    assert result["dropped"] is False
    assert result["tls"] is True
    assert result["tls connections"] > 2


# The line


def test_200_greenlets_on_5_connections_open_5(http_server, session):
    http = session(pool_maxsize=5)
    users = [spawn(ask, http, http_server, tag=n) for n in range(200)]
    gevent.joinall(users, timeout=30, raise_error=True)
    assert [user.value["tag"] for user in users] == [str(n) for n in range(200)]
    stats = http_server.stats()
    assert (stats["accepted"], stats["peak"], stats["requests"]) == (5, 5, 200)


def test_200_greenlets_on_requests_own_adapter_open_many(http_server, session):
    """So the test above can fail."""
    http = session(HTTPAdapter, pool_maxsize=5)
    http_server.behave(delay=0.05)
    users = [spawn(ask, http, http_server, tag=n) for n in range(200)]
    gevent.joinall(users, timeout=30, raise_error=True)
    assert http_server.stats()["accepted"] > 100


def test_waiters_are_served_in_the_order_they_came(http_server, session):
    http = session()
    users = [spawn(ask, http, http_server, tag=n) for n in range(100)]
    gevent.joinall(users, timeout=30, raise_error=True)
    assert [user.value["request"] for user in users] == list(range(1, 101))


def test_one_adapter_for_two_schemes_counts_each_host_once(http_server, session):
    http = session(pool_timeout=0.01)
    with http.get(http_server.url, stream=True), pytest.raises(requests.ConnectTimeout):
        http.get(http_server.url + "/other")


def test_a_wait_too_long_is_requests_error_with_our_diagnosis(http_server, session):
    http = session(pool_timeout=0.01)
    with http.get(http_server.url, stream=True):
        with pytest.raises(requests.ConnectTimeout, match="1 of 1 in use") as caught:
            http.get(http_server.url)
        assert isinstance(caught.value, (requests.ConnectionError, requests.Timeout))
        assert isinstance(caught.value.__cause__.__cause__, PoolTimeout)
        assert caught.value.request.method == "GET"
    assert ask(http, http_server, tag="mine")["tag"] == "mine"


# Interrupted


@pytest.mark.parametrize("ending", ["killed", "leaves"])
@pytest.mark.parametrize("direction", [REQUEST, REPLY])
@pytest.mark.parametrize(("stream", "body"), [(False, "chunked"), (True, "length")])
def test_no_answer_reaches_another(http_server, proxy_to, session, ending, direction, stream, body):
    proxy = proxy_to(http_server)
    proxy.url = f"http://{proxy.host}:{proxy.port}"
    http = session()

    class One:
        max_size = 1

        @contextmanager
        def item(self):
            yield http

    def exchange(http, tag):
        response = http.get(f"{proxy.url}/?tag={tag}&body={body}", stream=stream)
        content = b"".join(response.iter_content(50)) if stream else response.content
        assert response.headers["x-tag"] == json.loads(content)["tag"]
        return response.headers["x-tag"]

    ordeal = Ordeal(One(), proxy, exchange, exchange)
    at_every_byte(ordeal, ending, direction)
    assert ordeal.foreign == []
    whole(core(http, proxy), proxy)


def test_a_timeout_in_a_request_costs_its_connection_only(http_server, session):
    http = session()
    assert ask(http, http_server)["connection"] == 1
    with pytest.raises(Timeout), Timeout(0.05):
        ask(http, http_server, silent=1)
    assert ask(http, http_server)["connection"] == 2
    with pytest.raises(requests.ReadTimeout):
        http.get(http_server.url + "/?silent=1", timeout=0.02)
    assert ask(http, http_server)["connection"] == 3
    assert core(http, http_server).current_size == 1


def test_streamed_responses_give_their_slot_back(http_server, session):
    http = session(pool_timeout=5)
    big = http_server.url + "/?size=100000"
    with http.get(big, stream=True) as response:
        response.raw.read(10)
    assert ask(http, http_server, tag="1")["tag"] == "1"
    for _ in http.get(big, stream=True).iter_content(1000):
        break
    assert ask(http, http_server, tag="2")["tag"] == "2"
    http.get(big, stream=True)
    assert ask(http, http_server, tag="3")["tag"] == "3"
    assert len(list(http.get(http_server.url + "/?size=99", stream=True).iter_lines())) == 1
    assert ask(http, http_server, tag="4")["tag"] == "4"


# What else a session does


def test_redirects_between_hosts(http_server, start_server, session):
    other = start_server(type(http_server))
    http = session(pool_timeout=5)
    for _ in range(3):
        response = http.get(http_server.url, params={"redirect": f"{other.url}/there"})
        assert response.json()["path"] == "/there"
        assert len(response.history) == 1
    assert http_server.stats()["accepted"] == other.stats()["accepted"] == 1
    http.max_redirects = 3
    with pytest.raises(requests.TooManyRedirects):
        http.get(http_server.url + "/?redirect=/?redirect=/?redirect=/?redirect=/?redirect=/")
    assert core(http, http_server).free() == core(http, other).free() == 1


def test_a_proxy(session, http_proxy):  # noqa: F811
    http = session()
    http.proxies = {"http": http_proxy, "https": http_proxy}
    for n in range(3):
        assert http.get(f"http://example{n}.test/").text == f"http://example{n}.test/"
    (manager,) = http.get_adapter("http://").proxy_manager.values()
    (pool,) = (one.pool for one in manager._alive.values())
    assert (pool.max_size, pool.current_size, pool.free()) == (1, 1, 1)
    with pytest.raises(requests.exceptions.ProxyError):
        http.get("https://example.test/")


def test_adapters_and_sessions_can_be_pickled(http_server, session):
    http = session(pool_timeout=0.01, max_idle=30, max_retries=2)
    ask(http, http_server)
    twin = pickle.loads(pickle.dumps(http))
    with twin.get(http_server.url, stream=True) as held:
        with pytest.raises(requests.ConnectTimeout):
            twin.get(http_server.url)
        assert held.ok
    assert core(twin, http_server)._book.life.max_idle == 30
    assert twin.get_adapter("http://").max_retries.total == 2
    assert http_server.stats()["accepted"] == 2
    twin.close()


def test_close_leaves_no_connection_and_the_session_usable(http_server, session):
    http = session(pool_maxsize=2)
    held = http.get(http_server.url, stream=True)
    ask(http, http_server)
    http.close()
    until(lambda: http_server.stats()["open"] == 1)
    assert held.json()["method"] == "GET"
    until(lambda: http_server.stats()["open"] == 0)
    assert ask(http, http_server, tag="mine")["tag"] == "mine"


def test_close_lets_who_waits_go_on(http_server, session):
    http = session()
    held = http.get(http_server.url, stream=True)
    waiter = spawn(ask, http, http_server, tag="mine")
    settle()
    http.close()
    held.close()
    assert waiter.get(timeout=5)["tag"] == "mine"


def test_nothing_is_repeated_unless_asked(http_server, session):
    http = session()
    for _ in range(2):
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            ask(http, http_server, cut=0)
    assert http_server.stats()["requests"] == 2


@pytest.mark.parametrize(
    "options",
    [{"no_such": 1}, {"pool_block": False}, {"pool_maxsize": 0}, {"max_idle": -1}, {"timeout": 3}],
)
def test_nonsense_is_refused_at_once(options):
    with pytest.raises((TypeError, ValueError), match=next(iter(options)).removeprefix("pool_")):
        FairHTTPAdapter(**options)
