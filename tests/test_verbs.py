"""Verbs given to an adapter by keyword are called beside its own, which keep what it promises."""

import gc
import weakref

import gevent
import pytest
from gevent import GreenletExit, Timeout
from psycopg.pq import TransactionStatus

from gpools import HttpPool, RedisPool
from gpools.adapters import MemcachedPool, MySQLPool, PostgresPool, SocketPool
from tests.cooperative_psycopg import cooperative_psycopg  # noqa: F401
from tests.waiting import spawn, until

pytestmark = pytest.mark.usefixtures("cooperative_psycopg")

ADDRESS = ("127.0.0.1", 1)
POOLS = {
    HttpPool: (),
    MemcachedPool: (ADDRESS,),
    MySQLPool: (),
    PostgresPool: (),
    RedisPool: (),
    SocketPool: (ADDRESS,),
}


@pytest.fixture(params=POOLS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


class Item:
    """Stands for a client; a connection of psycopg's is asked for its state."""

    class pgconn:
        transaction_status = 0


def test_they_are_called_beside_the_adapters_own(kind):
    calls = []

    class Recorded(kind):
        def check(self, item):
            calls.append("check")
            return item is not None

        def reset(self, item):
            calls.append("reset")

        def destroy(self, item):
            calls.append("destroy")

    def given(verb, answer=None):
        return lambda item: (calls.append(f"given {verb}"), answer)[1]

    pool = Recorded(
        *POOLS[kind], check=given("check", 7), reset=given("reset"), destroy=given("destroy")
    )
    assert pool.check(Item)
    assert not pool.check(None)
    pool.reset(Item)
    pool.destroy(Item)
    assert calls == [
        *("check", "given check", "check"),  # not given what is dead
        *("reset", "given reset", "reset"),
        *("given destroy", "destroy"),
    ]
    assert not Recorded(*POOLS[kind], check=given("check", False)).check(Item)


def test_what_fails_in_one_does_not_keep_an_item_from_its_end(kind):
    ended = []

    class Recorded(kind):
        def destroy(self, item):
            ended.append(item)

    pool = Recorded(*POOLS[kind], destroy=fail)
    with pytest.raises(ZeroDivisionError):
        pool.destroy(Item)
    assert ended == [Item]


def fail(item):
    raise ZeroDivisionError


def test_a_check_of_ones_own_has_a_timer(kind):
    """It asks the server, and on one that is frozen a get would hang for ever."""

    class Asking(kind):
        def check(self, item):
            return True

    def timer(pool_class=kind, **settings):
        return pool_class(*POOLS[kind], **settings)._book.check_timeout

    assert timer() is None
    assert timer(check=fail) == timer(Asking) == 5
    assert timer(check=fail, check_timeout=1) == timer(check_timeout=1) == 1
    assert timer(Asking, check_timeout=None) is None


def test_a_pool_with_them_dies_at_once(kind):
    gc.collect()
    gc.disable()
    try:
        pool = kind(*POOLS[kind], check=fail, reset=fail, destroy=fail)
        there = weakref.ref(pool)
        del pool
        gevent.idle()
        assert there() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("verb", ["check", "reset", "destroy"])
def test_what_cannot_be_called_is_refused_at_once(kind, verb):
    with pytest.raises(TypeError, match=f"{verb} must be callable"):
        kind(*POOLS[kind], **{verb: "nonsense"})


def test_what_a_reset_of_ones_own_leaves_reaches_nobody(redis_server):
    def reset(client):
        assert client.client_info()["db"] in (0, "0")
        client.select(2)

    with RedisPool(port=redis_server.port, max_size=1, reset=reset) as pool:
        for _ in range(2):
            with pool.item() as client:
                assert client.client_info()["db"] in (0, "0")


def test_a_reset_of_ones_own_needs_no_rollback(postgres_server):
    states = []

    def reset(conn):
        states.append(conn.info.transaction_status.name)
        conn.execute("RESET ALL")

    with PostgresPool(postgres_server.url, max_size=1, reset=reset) as pool:
        for _ in range(2):
            with pool.item() as conn:
                states.append(conn.info.transaction_status.name)
                conn.execute("SELECT 1")
        assert pool.stats().created == 1
    assert states == ["IDLE"] * 4


class Asking(PostgresPool):
    def check(self, item):
        return super().check(item) and ask(item)


def ask(conn):
    return conn.execute("SELECT 1").fetchone() == (1,)


class Asks:
    """To be mixed in."""

    def check(self, item):
        return super().check(item) and ask(item)


class Mixed(Asks, PostgresPool):
    pass


class Thorough(PostgresPool):
    def check(self, item, *, thorough=False):
        return super().check(item) and (not thorough or ask(item))


class AlwaysThorough(Thorough):
    def check(self, item):
        return super().check(item, thorough=True)


class Static(PostgresPool):
    check = staticmethod(ask)


def test_a_keyword_beside_a_static_check(postgres_server):
    with Static(postgres_server.url, max_size=1, check_after=0, check=ask) as pool:
        for _ in range(2):
            with pool.item():
                pass
        assert pool.stats().created == 1


@pytest.mark.parametrize(
    ("pool_class", "settings"),
    [
        (Asking, {}),
        (Mixed, {}),
        (AlwaysThorough, {}),
        (Static, {}),
        (PostgresPool, {"check": ask}),
    ],
)
def test_a_check_that_asks_the_server_leaves_no_transaction(postgres_server, pool_class, settings):
    """Its user's own would be a part of that one, and be rolled back with it."""
    with pool_class(postgres_server.url, max_size=1, check_after=0, **settings) as pool:
        with pool.item() as conn:
            conn.execute("CREATE TEMPORARY TABLE kept (x int)")
            conn.commit()
        with pool.item() as conn, conn.transaction():
            conn.execute("INSERT INTO kept VALUES (1)")
        with pool.item() as conn:
            assert conn.execute("SELECT * FROM kept").fetchall() == [(1,)]
        assert pool.stats().created == 1


@pytest.mark.parametrize("ending", ["kill", "Timeout", "check_timeout"])
def test_a_check_whose_transaction_cannot_be_ended_costs_the_connection(postgres_server, ending):
    def ask_and_freeze(conn):
        fit = ask(conn)
        postgres_server.freeze()  # so that the rollback waits
        frozen.append(conn)
        return fit

    def rolling_back():
        return frozen and frozen[0].pgconn.transaction_status == TransactionStatus.ACTIVE

    frozen = []

    settings = {"check_timeout": 0.2 if ending == "check_timeout" else None}
    with PostgresPool(
        postgres_server.url, max_size=1, check_after=0, cancel_timeout=None, **settings
    ) as pool:
        with pool.item() as conn:
            conn.execute("SELECT 1")
        pool.check = ask_and_freeze
        user = spawn(pool.get)
        if ending == "check_timeout":
            until(lambda: pool.stats().destroyed)
        else:
            until(rolling_back)
            user.kill(GreenletExit if ending == "kill" else Timeout(), timeout=5)
            assert ending == "kill" or isinstance(user.exception, Timeout)
            until(lambda: pool.free() == 1)
        postgres_server.thaw()
        if ending == "check_timeout":
            pool.put(user.get(timeout=10))
        assert conn.closed
        pool.check = ask
        with pool.item() as other:
            assert other is not conn
