"""GET from a real Redis by 200 greenlets through 20 connections."""

from contextlib import contextmanager
from functools import partial

from benchmarks.crowd import NO_POOL, Clients
from benchmarks.page import Section, better, goal, table
from benchmarks.plots import bars

GREENLETS, CONNECTIONS, TIMES = 200, 20, 20
BASE = "redis BlockingConnectionPool"
client = Clients(GREENLETS, CONNECTIONS, TIMES)


@contextmanager
def server():
    from tests.servers import RedisServer

    if reason := RedisServer.missing():
        raise RuntimeError(reason)
    with RedisServer() as running:
        running.call("SET", "key", "value")
        yield {"port": running.port}, lambda: running.stats()["accepted"]


@client("RedisPool", ours=True)
def redis_pool(option):
    from gpools import RedisPool

    with RedisPool(port=option.port, max_size=CONNECTIONS) as pool:
        item = pool.item

        def ask():
            with item() as client:
                client.get("key")

        yield ask


@client("FairConnectionPool", ours=True)
def fair(option):
    import redis

    from gpools.adapters import FairConnectionPool

    pool = FairConnectionPool(port=option.port, max_connections=CONNECTIONS)
    yield partial(redis.Redis(connection_pool=pool).get, "key")
    pool.disconnect()


@client(BASE)
def blocking(option):
    import redis

    pool = redis.BlockingConnectionPool(port=option.port, max_connections=CONNECTIONS)
    yield partial(redis.Redis(connection_pool=pool).get, "key")
    pool.disconnect()


@client(NO_POOL)
def held(option):
    import redis

    with redis.Redis(port=option.port, single_connection_client=True) as client:
        yield partial(client.get, "key")


client.also_compiled("RedisPool", "FairConnectionPool")
contenders = client.contenders


def report(results):
    goals = []
    for name in ("RedisPool", "FairConnectionPool"):
        goals += [
            goal(
                f"`{name}`: at least 1.2 times the commands of `redis.BlockingConnectionPool`",
                results.ratios(name, BASE, "rate"),
                least=1.2,
            ),
            goal(f"`{name}`: p99 at most the other's", results.ratios(name, BASE, "p99"), 1.0),
        ]
    heads = (
        "pool",
        "commands/s",
        "times redis-py's",
        "CPU us",
        "times redis-py's",
        "p50 ms",
        "p99 ms",
        "connections",
    )
    text = f"""\
Each of {GREENLETS} greenlets sends {TIMES} GETs in a row, through {CONNECTIONS} connections to a
redis-server on the same machine.
The times are those of a caller, from asking for a connection to the answer.
CPU is the client's for one command.
Connections: opened in all rounds, counted by the server.
No pool: {CONNECTIONS} greenlets send as many, each on a connection of its own, and wait for
nothing but answers; no pool can be much ahead of that with the same client.

{table(heads, client.rows(results, BASE, "counted"))}"""
    plot = bars(
        f"Redis GET, {GREENLETS} greenlets, {CONNECTIONS} connections",
        "commands per second; more is better",
        client.bars(results),
    )
    others = better("GET from Redis", client.bars(results), "commands/s", more=True)
    return Section("Redis", text, goals, {"redis": plot}, others)
