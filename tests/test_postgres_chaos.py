"""PostgresPool under kills, Timeouts and forks: no foreign answer, no slot lost."""

import os
import random
import subprocess
import sys
from contextlib import closing
from itertools import count
from pathlib import Path

import gevent
import gevent.os
import psycopg
import pytest
from gevent import Timeout

from gpools import PoolUnavailable
from gpools.adapters import PostgresPool
from gpools.adapters._probe import A_MOMENT
from tests.chaos import children_born_while_it_connects
from tests.cooperative_psycopg import cooperative_psycopg  # noqa: F401
from tests.databases import PostgresServer
from tests.proxy import REPLY, REQUEST, close, hang, hung_up, reset
from tests.servers import require_server
from tests.test_byte_boundaries import (
    ENDINGS,
    NaivePool,
    Ordeal,
    both_ways,
    every_ending,
    whole,
)
from tests.test_fork import Child
from tests.tls import make_certificate
from tests.waiting import settle, spawn, until

pytestmark = pytest.mark.usefixtures("cooperative_psycopg")

ROOT = Path(__file__).resolve().parent.parent


def ask(conn, tag):
    return conn.execute("SELECT %s", [tag]).fetchone()[0]


# At every byte


def pool_through(proxy, **options):
    url = f"postgresql://postgres@{proxy.host}:{proxy.port}/postgres?sslmode=disable"
    # No cancel, which would be a connection of its own.
    return PostgresPool(url, max_size=1, cancel_timeout=None, **options)


def in_a_pipeline(conn, tag):
    with conn.pipeline():
        first = conn.execute("SELECT %s", [tag])
        second = conn.execute("SELECT 'theirs'")
        assert first.fetchone() == (tag,)
        assert second.fetchone() == ("theirs",)


class PostgresOrdeal(Ordeal):
    """As the other ordeals, but a connection that was interrupted is closed for good."""

    def check(self, where, client):
        if not client.closed or where not in self.interrupted:
            super().check(where, client)

    def interrupt(self, where, ending):
        self.interrupted = [where] if ending == "goes on" else []
        super().interrupt(where, ending)

    interrupted = ()


@pytest.mark.parametrize(
    ("exchange", "autocommit"),
    [(ask, True), (in_a_pipeline, True)],
)
@both_ways
@every_ending
def test_no_answer_reaches_another(postgres_server, proxy_to, ending, stream, exchange, autocommit):
    proxy = proxy_to(postgres_server)
    with pool_through(proxy, autocommit=autocommit) as pool:
        ordeal = PostgresOrdeal(pool, proxy, exchange, ask)
        # psycopg sends a pipeline in one write or in two, with one Sync more.
        spare = 6 if exchange is in_a_pipeline else 0
        for k in range(ordeal.length(stream) + 1 - spare):
            ordeal.strike(ending, stream, k)
        assert ordeal.foreign == []
        whole(pool, proxy)


def in_a_transaction(conn, tag):
    with conn.transaction():
        assert ask(conn, tag) == tag


def prepared(conn, tag):
    for _ in range(2):  # it is prepared by the first
        assert conn.execute("SELECT %s, 1", [tag], prepare=True).fetchone() == (tag, 1)


def copied_out(conn, tag):
    with conn.cursor().copy("COPY (SELECT %s FROM generate_series(1, 2)) TO STDOUT", [tag]) as rows:
        assert list(rows.rows()) == [(tag,)] * 2


def copied_in(conn, tag):
    with conn.cursor().copy("COPY copied FROM STDIN") as rows:
        rows.write_row([tag])


@pytest.mark.parametrize("exchange", [in_a_transaction, prepared, copied_out, copied_in])
@both_ways
def test_no_answer_of_a_longer_exchange_reaches_another(
    postgres_server, proxy_to, stream, exchange
):
    """The endings take turns, from byte to byte."""
    proxy = proxy_to(postgres_server)
    with pool_through(proxy, autocommit=True) as pool:
        with pool.item() as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS copied (tag text)")
        ordeal = PostgresOrdeal(pool, proxy, exchange, ask)
        for k in range(ordeal.length(stream) + 1):
            ordeal.strike(ENDINGS[k % 4], stream, k)
        assert ordeal.foreign == []
        whole(pool, proxy)
        with pool.item() as conn:
            conn.execute("DROP TABLE copied")


@pytest.mark.parametrize("cut", [close, reset])
def test_a_reply_that_ends_half_way_is_an_error_and_nobodys_answer(postgres_server, proxy_to, cut):
    proxy = proxy_to(postgres_server)
    with pool_through(proxy, autocommit=True) as pool:
        ordeal = PostgresOrdeal(pool, proxy, ask, ask)
        for k in range(ordeal.length(REPLY)):
            ordeal.next_user("before")
            link = ordeal.link()
            link.fault = cut(len(link.reply) + k)
            with pytest.raises(psycopg.OperationalError), pool.item() as conn:
                ordeal.check("cut", conn)
            proxy.resume()
            ordeal.next_user("after")
        assert ordeal.foreign == []
        whole(pool, proxy)


DISCARDING = {
    REQUEST: b"Q\0\0\0\x10DISCARD ALL\0",
    REPLY: b"C\0\0\0\x10DISCARD ALL\0Z\0\0\0\x05I",
}


@both_ways
@pytest.mark.parametrize("ending", ["killed", "timed out"])
def test_interrupted_at_any_byte_of_discard_all(postgres_server, proxy_to, ending, stream):
    """The exchange is what the pool does when the connection comes back."""
    proxy = proxy_to(postgres_server)
    with pool_through(proxy, discard_all=True) as pool:

        def nothing(conn, tag):
            pass

        ordeal = PostgresOrdeal(pool, proxy, nothing, ask)
        for k in range(len(DISCARDING[stream]) + 1):
            ordeal.strike(ending, stream, k)
        assert ordeal.foreign == []
        whole(pool, proxy)


@both_ways
def test_a_handshake_interrupted_costs_no_slot(postgres_server, proxy_to, stream):
    """A kill and a Timeout take turns, from byte to byte."""
    proxy = proxy_to(postgres_server)
    with pool_through(proxy) as pool:
        pool.put(pool.get())
        length = len(getattr(proxy.links[0], stream))
        assert length > 30
        interrupt_connects(pool, proxy, stream, range(length + 1))


def interrupt_connects(pool, proxy, stream, moments):
    ordeal = PostgresOrdeal(pool, proxy, ask, ask)
    for turn, k in enumerate(moments):
        pool.discard(pool.get())
        proxy.script = [hang(k, stream)]
        ending = ENDINGS[turn % 2]
        ordeal.interrupt(f"{ending} at byte {k} of the {stream} of the handshake", ending)
    assert ordeal.foreign == []
    whole(pool, proxy)


# Over TLS


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory):
    require_server(PostgresServer)
    cert, key = make_certificate(tmp_path_factory.mktemp("tls"))
    config = {"ssl": "on", "ssl_cert_file": cert, "ssl_key_file": key}
    with PostgresServer(config=config) as server:
        server.cert = cert
        yield server


def over_tls(server, at, **options):
    url = f"postgresql://postgres@{at.host}:{at.port}/postgres"
    tls = {"sslmode": "verify-ca", "sslrootcert": server.cert}
    return PostgresPool(url, max_size=1, **tls, **options)


def test_over_tls(tls_server):
    with over_tls(tls_server, tls_server, autocommit=True) as pool:

        def use():
            with pool.item(timeout=10) as conn:
                assert conn.pgconn.ssl_in_use
                return ask(conn, "mine"), conn.info.backend_pid

        answer, first = use()
        assert answer == "mine"
        assert use() == ("mine", first)  # nothing that TLS has sent is taken for an answer
        with psycopg.connect(tls_server.url, autocommit=True) as control:

            def running():
                asked = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
                return control.execute(asked).fetchall()

            control.execute("SELECT pg_terminate_backend(%s)", [first])
            until(lambda: hung_up(pool.free_items[0]))
            gevent.sleep(A_MOMENT)
            answer, second = use()
            assert (answer, second != first) == ("mine", True)
            with Timeout(0.05, False), pool.item() as conn:
                conn.execute("SELECT pg_sleep(600)")
            assert conn.closed
            until(lambda: not running())  # cancelled, on a connection of its own
        assert use()[1] not in (first, second)
        pool.close(timeout=5)


@both_ways
def test_a_tls_handshake_interrupted_costs_no_slot(tls_server, proxy_to, stream):
    proxy = proxy_to(tls_server)
    with over_tls(tls_server, proxy, cancel_timeout=None) as pool:
        pool.put(pool.get())
        # Its signatures are now and then some bytes shorter.
        length = len(getattr(proxy.links[0], stream)) - 20
        assert length > 400
        interrupt_connects(pool, proxy, stream, [*range(9), *range(9, length, 37)])


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_answer_over_tls_reaches_another(tls_server, proxy_to, ending):
    proxy = proxy_to(tls_server)
    with over_tls(tls_server, proxy, cancel_timeout=None, autocommit=True) as pool:
        ordeal = PostgresOrdeal(pool, proxy, ask, ask)
        for stream in (REQUEST, REPLY):
            for k in range(0, ordeal.length(stream) + 1, 5):
                ordeal.strike(ending, stream, k)
        assert ordeal.foreign == []
        whole(pool, proxy)


@pytest.mark.parametrize("ending", ["killed", "timed out", "leaves"])
def test_a_naive_pool_is_of_no_use_after_one_kill(postgres_server, proxy_to, ending):
    """So the tests above can fail: its one connection is lost, for ever."""
    proxy = proxy_to(postgres_server)
    with psycopg.connect(f"postgresql://postgres@{proxy.host}:{proxy.port}/postgres") as conn:
        naive = NaivePool(conn)
        ordeal = Ordeal(naive, proxy, ask, ask)
        ordeal.next_user("first")
        link = ordeal.link()
        link.fault = hang(len(link.reply), REPLY)
        victim = spawn(ordeal.victim, "waiting", ending, next(ordeal.tags))
        assert proxy.stopped.wait(10)
        victim.kill(gevent.GreenletExit if ending == "killed" else Timeout(0))
        proxy.resume()
        settle()
        assert victim.exception is None or isinstance(victim.exception, Timeout)
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError, match="another command is already"):
                ordeal.next_user("next")
        conn.close()


# Storms


def plain(conn, tag):
    return ask(conn, tag)


def slow(conn, tag):
    return conn.execute("SELECT %s FROM pg_sleep(0.01)", [tag]).fetchone()[0]


def transaction(conn, tag):
    with conn.transaction():
        assert ask(conn, tag) == tag
        return ask(conn, tag)


def pipeline(conn, tag):
    with conn.pipeline():
        cursors = [conn.execute("SELECT %s, %s::int", [tag, n]) for n in range(5)]
        rows = [cursor.fetchone() for cursor in cursors]
    assert [n for _, n in rows] == list(range(5))
    return rows[-1][0]


def stream(conn, tag):
    query = "SELECT %s FROM generate_series(1, 100)"
    tags = {row[0] for row in conn.cursor().stream(query, [tag])}
    return tags.pop() if len(tags) == 1 else tags


def stream_left(conn, tag):
    # Closed here, for where Python does so by itself it swallows a kill.
    query = "SELECT %s FROM generate_series(1, 5000)"
    with closing(conn.cursor().stream(query, [tag])) as rows:
        return next(rows)[0]


def copy_out(conn, tag):
    query = "COPY (SELECT %s FROM generate_series(1, 500)) TO STDOUT"
    with conn.cursor().copy(query, [tag]) as copying:
        tags = {row[0] for row in copying.rows()}
    return tags.pop() if len(tags) == 1 else tags


def large(conn, tag):
    return conn.execute("SELECT %s FROM (SELECT %s) x", [tag, "x" * 2_000_000]).fetchone()[0]


def wrong(conn, tag):
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("SELECT 1/0, %s", [tag])
    conn.rollback()
    return ask(conn, tag)


def many(conn, tag):
    cursor = conn.cursor()
    cursor.executemany("SELECT %s", [(tag,)] * 5, returning=True)
    while cursor.nextset():
        pass
    return cursor.fetchone()[0]


ACTS = [plain] * 4 + [
    slow,
    transaction,
    pipeline,
    stream,
    stream_left,
    copy_out,
    large,
    wrong,
    many,
]


class Storm:
    """Greenlets that ask under tags while they are killed and timed out."""

    def __init__(self, pool, seed):
        self.pool = pool
        self.random = random.Random(seed)
        self.tags = (f"{n:06}" for n in count(1))
        self.answers = self.interrupted = 0
        self.foreign = []
        self.errors = []

    def use(self):
        act, tag = self.random.choice(ACTS), next(self.tags)
        block = self.pool.item if self.random.random() < 0.5 else self.pool.connection
        try:
            seconds = self.random.choice([0.001, 0.005, 0.02, 0.05, 10, 10, 10])
            with Timeout(seconds), block() as conn:
                answer = act(conn, tag)
        except Timeout:
            self.interrupted += 1
            return
        except gevent.GreenletExit:
            self.interrupted += 1
            raise
        except (psycopg.Error, PoolUnavailable) as error:
            self.errors.append((act.__name__, error))
            return
        self.answers += 1
        if answer != tag:
            self.foreign.append((act.__name__, tag, answer))

    def worker(self, turns):
        for _ in range(turns):
            self.use()

    def blow(self, workers, turns):
        alive = [spawn(self.worker, turns) for _ in range(workers)]
        kills = workers * 2
        while any(not worker.ready() for worker in alive):
            gevent.sleep(0.001)
            if kills and self.random.random() < 0.2:
                victim = self.random.choice(alive)
                if not victim.ready():
                    victim.kill(block=False)
                    kills -= 1
                    alive.append(spawn(self.worker, turns // 2))
        for worker in alive:
            assert worker.successful(), worker.exception


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, {}),
        (2, {"discard_all": True, "prepare_threshold": 0}),
        (3, {"max_creating": 3, "autocommit": True, "prepare_threshold": 2}),
    ],
)
def test_a_storm_of_kills_and_timeouts(postgres_server, seed, options):
    with PostgresPool(postgres_server.url, max_size=5, **options) as pool:
        storm = Storm(pool, seed)
        storm.blow(workers=20, turns=60)
        assert storm.foreign == []
        assert storm.errors == []
        assert storm.answers > 300
        assert storm.interrupted > 50
        settle()
        until(lambda: pool.stats().destroying == pool.stats().in_use == 0)
        items = [pool.get(timeout=5) for _ in range(5)]
        assert pool.free() == 0
        backends = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
        until(lambda: len(items[0].execute(backends).fetchall()) == 5)
        for item in items:
            pool.put(item)
        assert pool.free() == pool.current_size == 5


def test_a_storm_on_a_server_that_dies_and_comes_back(start_server):
    server = start_server(PostgresServer)
    with PostgresPool(server.url, max_size=5, max_creating=2, timeout=20) as pool:
        storm = Storm(pool, 4)
        blowing = spawn(storm.blow, workers=10, turns=40)
        gevent.sleep(0.3)
        server.kill9()
        server.start()
        until(blowing.ready, timeout=60)
        blowing.get()
        assert storm.foreign == []
        codes = {getattr(error, "sqlstate", None) for _, error in storm.errors}
        assert codes <= {None, "57P01", "57P02", "57P03"}
        until(lambda: pool.stats().destroying == 0)
        items = [pool.get(timeout=5) for _ in range(5)]
        assert [ask(item, "mine") for item in items] == ["mine"] * 5
        for item in items:
            pool.put(item)
        assert pool.free() == pool.current_size == 5


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, of threads
def test_three_children_at_work(postgres_server):
    """Every connection sees one process only, and the parent's transaction goes on."""
    pool = PostgresPool(postgres_server.url, max_size=3)
    held = pool.get()
    held.execute("CREATE TEMPORARY TABLE mine AS SELECT 'mine' AS a")
    pool.put(pool.get())

    def work(who, held=None):
        foreign, pids = 0, set()
        for n in range(60):
            with pool.item() as conn:
                foreign += ask(conn, f"{who}-{n}") != f"{who}-{n}"
                pids.add(conn.info.backend_pid)
        if held is not None:
            foreign += held.execute("SELECT a FROM mine").fetchone() != ("mine",)
        return foreign, pids

    children = [Child(lambda n=n: work(f"child{n}"), gevent.os.fork) for n in range(3)]
    foreign, pids = work("parent", held)
    assert foreign == 0
    for child in children:
        foreign, others = child.result()
        assert foreign == 0
        assert not others & pids
        pids |= others
    held.execute("SELECT a FROM mine")
    pool.put(held)
    pool.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, of threads
@pytest.mark.parametrize("options", [{}, {"max_creating": 1}])
def test_three_children_born_while_it_connects(postgres_server, options):
    """They have a copy of the greenlet that connects, which read the parent's handshake."""
    pool = PostgresPool(postgres_server.url, **options)

    def use(tag):
        with pool.item(timeout=10) as conn:
            return ask(conn, tag) == tag

    children_born_while_it_connects(postgres_server, use)
    pool.close()


def test_the_childs_use_of_an_inherited_connection_reaches_no_server(postgres_server):
    pool = PostgresPool(postgres_server.url)
    held = pool.get()
    held.execute("CREATE TEMPORARY SEQUENCE s")

    def child():
        with pytest.raises(psycopg.OperationalError):
            held.execute("SELECT nextval('s')")
        held.close()
        pool.close()
        return True

    assert Child(child, gevent.os.fork).result()
    assert held.execute("SELECT nextval('s')").fetchone() == (1,)
    assert not hung_up(held)
    pool.put(held)
    pool.close()


# In a process under monkey.patch_all(), beside psycopg's own pool


def run(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


KILLED_WAITERS = """
from gevent import monkey; monkey.patch_all()
import logging, sys
import gevent, psycopg, psycopg_pool
from gpools.adapters import PostgresPool
logging.disable()

def outcome(pool, late, seconds):
    with pool.connection() as conn:
        for _ in range(3):
            def wait():
                with pool.connection():
                    pass
            waiter = gevent.spawn(wait)
            gevent.sleep(0.02)
            waiter.kill()
    gevent.sleep(0.05)
    try:
        with pool.connection(timeout=seconds) as conn:
            return conn.execute("SELECT 'served'").fetchone()[0]
    except late as error:
        return type(error).__name__

ours = PostgresPool(sys.argv[1], max_size=1)
print(outcome(ours, TimeoutError, 10), ours)
theirs = psycopg_pool.ConnectionPool(sys.argv[1], min_size=1, max_size=1, open=True)
print(outcome(theirs, psycopg_pool.PoolTimeout, 0.5))
sys.stdout.flush()
import os
os._exit(0)
"""


def test_a_killed_waiter_costs_psycopg_pool_a_connection_for_ever(postgres_server):
    lines, errors = run(KILLED_WAITERS, postgres_server.url)
    assert lines == [
        "served <PostgresPool 1 idle, 0 in use, 0 waiting, max 1>",
        "PoolTimeout",
    ], errors


PATCHED = """
from gevent import monkey; monkey.patch_all()
import sys
import gevent, psycopg
from gpools.adapters import PostgresPool

foreign, switched = [], 0

def tick():
    global switched
    while True:
        gevent.sleep(0.001)
        switched += 1

def user(pool, name):
    for turn in range(5):
        with pool.connection() as conn:
            tag = f"{name}-{turn}"
            answer, = conn.execute("SELECT %s FROM pg_sleep(0.01)", [tag]).fetchone()
            if answer != tag:
                foreign.append((tag, answer))

ticker = gevent.spawn(tick)
with PostgresPool(sys.argv[1], max_size=3, max_creating=2) as pool:
    gevent.joinall([gevent.spawn(user, pool, n) for n in range(12)], raise_error=True)
    print(pool, foreign, switched > 50)
    with gevent.Timeout(0.1, False), pool.connection() as conn:
        conn.execute("SELECT pg_sleep(600)")
    with pool.item(timeout=5) as other:
        print(conn.closed, other is not conn)
    pool.close(timeout=5)  # the query is cancelled when this returns
"""


@pytest.mark.parametrize("how", ["", "wait_poll", "wait_select", "wait_selector"])
def test_in_a_patched_program(postgres_server, how):
    lines, errors = run(PATCHED, postgres_server.url, **({"PSYCOPG_WAIT_FUNC": how} if how else {}))
    assert lines == ["<PostgresPool 3 idle, 0 in use, 0 waiting, max 3> [] True", "True True"], (
        errors
    )


BLOCKING = """
import sys
if sys.argv[1] == "late":
    import psycopg
if sys.argv[1] != "never":
    from gevent import monkey; monkey.patch_all()
from gpools.adapters import PostgresPool
try:
    PostgresPool("")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("patched", ["never", "late", "first"])
def test_a_program_that_patches_late_or_never_is_refused(patched):
    lines, _ = run(BLOCKING, patched)
    assert len(lines) == (patched != "first")
    assert all("before psycopg is imported" in line for line in lines)


def test_without_psycopg_the_error_names_the_extra():
    script = "import sys; sys.modules['psycopg'] = None; from gpools.adapters import PostgresPool"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert "pip install 'gpools[postgres]'" in done.stderr
