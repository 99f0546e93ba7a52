"""SELECT 1 by 100 greenlets through 10 connections to a real PostgreSQL."""

from contextlib import contextmanager

from benchmarks.crowd import NO_POOL, Clients
from benchmarks.page import Section, better, goal, table
from benchmarks.plots import bars

GREENLETS, CONNECTIONS, TIMES = 100, 10, 10
BASE = "psycopg_pool"
client = Clients(GREENLETS, CONNECTIONS, TIMES)


@contextmanager
def server():
    from tests.databases import PostgresServer

    if reason := PostgresServer.missing():
        raise RuntimeError(reason)
    with PostgresServer() as running:
        yield {"url": running.url}, None


def _ask(pool):
    def ask():
        with pool.connection() as connection:
            connection.execute("SELECT 1").fetchone()

    return ask


@client("PostgresPool", "psycopg", ours=True)
def postgres_pool(option):
    from gpools import PostgresPool

    with PostgresPool(option.url, max_size=CONNECTIONS, autocommit=True) as pool:
        yield _ask(pool)


@client(BASE, "psycopg_pool")
def psycopg_pool(option):
    from psycopg_pool import ConnectionPool

    size = {"min_size": CONNECTIONS, "max_size": CONNECTIONS}
    with ConnectionPool(option.url, kwargs={"autocommit": True}, open=True, **size) as pool:
        pool.wait()
        yield _ask(pool)


def _alchemy(pool, option):
    from sqlalchemy import create_engine, text

    engine = create_engine(
        option.url.replace("postgresql", "postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        poolclass=pool,
        pool_size=CONNECTIONS,
        max_overflow=0,
    )
    select = text("SELECT 1")

    def ask():
        with engine.connect() as connection:
            connection.execute(select).fetchone()

    yield ask
    engine.dispose()


@client("SQLAlchemy with FairPool", "psycopg", "sqlalchemy", ours=True)
def fair_alchemy(option):
    from gpools import FairPool

    yield from _alchemy(FairPool, option)


@client("SQLAlchemy QueuePool", "psycopg", "sqlalchemy")
def alchemy(option):
    from sqlalchemy import QueuePool

    yield from _alchemy(QueuePool, option)


@client(NO_POOL, "psycopg")
def held(option):
    import psycopg

    with psycopg.connect(option.url, autocommit=True) as connection:
        yield lambda: connection.execute("SELECT 1").fetchone()


client.also_compiled("PostgresPool")
contenders = client.contenders


def report(results):
    goals = [
        goal(
            "`PostgresPool`: at least 1.2 times psycopg_pool",
            results.ratios("PostgresPool", BASE, "rate"),
            least=1.2,
        ),
    ]
    heads = (
        "pool",
        "queries/s",
        "times psycopg_pool",
        "CPU us",
        "times psycopg_pool",
        "p50 ms",
        "p99 ms",
    )
    text = f"""\
Each of {GREENLETS} greenlets sends {TIMES} times `SELECT 1`, through {CONNECTIONS} connections to
a PostgreSQL on the same machine.
All use psycopg, in autocommit.
`PostgresPool` looks at the socket before each use, unless the server answered within the last
millisecond; the others do so only where they are asked
to, with a query.
The columns are those of Redis; no pool: {CONNECTIONS} greenlets with a connection each.

{table(heads, client.rows(results, BASE))}"""
    plot = bars(
        f"SELECT 1, {GREENLETS} greenlets, {CONNECTIONS} connections",
        "queries per second; more is better",
        client.bars(results),
    )
    others = better("SELECT 1", client.bars(results), "queries/s", more=True)
    return Section("PostgreSQL", text, goals, {"sql": plot}, others)
