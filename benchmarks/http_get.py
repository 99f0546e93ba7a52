"""GET from a real HTTP server by 200 greenlets through 20 connections."""

from contextlib import contextmanager
from functools import partial

from benchmarks.crowd import NO_POOL, Clients
from benchmarks.page import Goal, Section, better, goal, table
from benchmarks.plots import bars

GREENLETS, CONNECTIONS, TIMES = 200, 20, 3
RECIPE, REQUESTS = "httplib2 in a gevent.queue", "requests"
client = Clients(GREENLETS, CONNECTIONS, TIMES)


@contextmanager
def server():
    from tests.servers import HttpServer

    with HttpServer() as running:
        yield {"url": f"{running.url}/"}, lambda: running.stats()["accepted"]


@client("HttpPool", ours=True)
def http_pool(option):
    from gpools import HttpPool

    with HttpPool(max_size=CONNECTIONS) as pool:
        yield partial(pool.request, option.url)


@client(RECIPE)
def recipe(option):
    import httplib2
    from gevent.queue import LifoQueue

    pool = LifoQueue()
    for _ in range(CONNECTIONS):
        pool.put(httplib2.Http())

    def ask():
        http = pool.get()
        try:
            http.request(option.url)
        finally:
            pool.put(http)

    yield ask


def _requests(adapter, option):
    import requests

    with requests.Session() as session:
        session.mount("http://", adapter)
        session.trust_env = False  # it reads the environment for each request

        yield lambda: session.get(option.url).content


@client("requests with FairHTTPAdapter", "requests", ours=True)
def fair_requests(option):
    from gpools import FairHTTPAdapter

    yield from _requests(FairHTTPAdapter(pool_maxsize=CONNECTIONS), option)


@client(REQUESTS, "requests")
def plain_requests(option):
    from requests.adapters import HTTPAdapter

    yield from _requests(HTTPAdapter(pool_maxsize=CONNECTIONS, pool_block=True), option)


@client("urllib3 with FairPoolManager", "urllib3", ours=True)
def fair_urllib3(option):
    from gpools import FairPoolManager

    with FairPoolManager(maxsize=CONNECTIONS) as manager:
        yield partial(manager.request, "GET", option.url)


@client("urllib3", "urllib3")
def urllib3(option):
    from urllib3 import PoolManager

    with PoolManager(maxsize=CONNECTIONS, block=True) as manager:
        yield partial(manager.request, "GET", option.url)


@client("geventhttpclient", "geventhttpclient")
def geventhttpclient(option):
    from geventhttpclient import HTTPClient
    from geventhttpclient.url import URL

    url = URL(option.url)
    client = HTTPClient.from_url(url, concurrency=CONNECTIONS)
    yield lambda: client.get(url.request_uri).read()
    client.close()


@client(NO_POOL)
def held(option):
    import httplib2

    yield partial(httplib2.Http().request, option.url)


client.also_compiled("HttpPool")
contenders = client.contenders


def report(results):
    fair = "requests with FairHTTPAdapter"
    opened = sum(results.all("HttpPool", "counted"))
    goals = [
        goal(
            "`HttpPool`: ahead of requests", results.ratios("HttpPool", REQUESTS, "rate"), least=1
        ),
        goal(
            "`HttpPool`: ahead of httplib2 in a gevent.queue",
            results.ratios("HttpPool", RECIPE, "rate"),
            least=1,
        ),
        goal(
            "requests with `FairHTTPAdapter`: ahead of requests",
            results.ratios(fair, REQUESTS, "rate"),
            least=1,
        ),
        Goal(f"`HttpPool`: {CONNECTIONS} connections opened", str(opened), opened == CONNECTIONS),
    ]
    heads = (
        "client",
        "requests/s",
        "times requests",
        "CPU us",
        "times requests",
        "p50 ms",
        "p99 ms",
        "connections",
    )
    text = f"""\
Each of {GREENLETS} greenlets sends {TIMES} GETs in a row, through {CONNECTIONS} connections to an
HTTP server on the same machine, which is a small one written in Python.
The columns are those of Redis; no pool: {CONNECTIONS} greenlets with an `httplib2.Http` each.

{table(heads, client.rows(results, REQUESTS, "counted"))}"""
    plot = bars(
        f"HTTP GET, {GREENLETS} greenlets, {CONNECTIONS} connections",
        "requests per second; more is better",
        client.bars(results),
    )
    others = better("GET by HTTP", client.bars(results), "requests/s", more=True)
    return Section("HTTP", text, goals, {"http": plot}, others)
