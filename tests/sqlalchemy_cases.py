"""FairPool on real servers; run by tests/test_sqlalchemy_pool.py in a patched process."""

import gc
import json
import os
import random
import signal
import time
from contextlib import closing
from types import MappingProxyType

import gevent
import pytest
from gevent import GreenletExit, Timeout
from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from gpools import PoolError, PoolTimeout
from gpools.adapters.sqlalchemy import FairPool
from tests.databases import MariadbServer, PostgresServer
from tests.proxy import hang
from tests.waiting import settle, spawn, until


class Postgres:
    server = PostgresServer
    url = "postgresql+psycopg://postgres@{}:{}/postgres"
    sleep = "SELECT pg_sleep({})"
    count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    rows = "SELECT n, :tag FROM generate_series(1, 3000) n"
    options = MappingProxyType({})
    impatient = "options", "-c idle_session_timeout=50ms"  # so the server hangs up on who is idle


class Mariadb:
    server = MariadbServer
    url = "mysql+pymysql://root@{}:{}/mysql"
    sleep = "SELECT sleep({})"
    count = "SELECT count(*) FROM information_schema.processlist WHERE user = 'root'"
    rows = "SELECT seq, :tag FROM seq_1_to_3000"
    # Else it reads the certificates of all authorities for each connection, for 25 ms.
    options = MappingProxyType({"ssl_disabled": True})
    impatient = "init_command", "SET wait_timeout = 1"


@pytest.fixture(params=[Postgres, Mariadb], ids=["postgres", "mariadb"])
def db(request, postgres_server, mariadb_server):
    kind = request.param()
    kind.running = postgres_server if kind.server is PostgresServer else mariadb_server
    engines = []

    def engine(poolclass=FairPool, address=None, **settings):
        settings = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5} | settings
        settings["connect_args"] = dict(kind.options)
        url = kind.url.format(*(address or kind.running.address))
        engines.append(create_engine(url, poolclass=poolclass, **settings))
        return engines[-1]

    kind.engine = engine
    yield kind
    for engine in engines:
        engine.dispose()


def ask(connection, tag):
    return connection.execute(text("SELECT :tag"), {"tag": tag}).scalar()


def full_check(engine):
    """Assert that all slots are there and each has a sound connection of its own."""
    settle()
    pool = engine.pool
    assert pool.waiting() == 0
    limit = pool._line.limit
    with Timeout(10, AssertionError(f"a slot is lost: {pool}")):
        taken = [engine.connect() for _ in range(limit)]
        assert [ask(connection, f"t{n}") for n, connection in enumerate(taken)] == [
            f"t{n}" for n in range(limit)
        ]
    assert pool.checkedout() == limit
    for connection in taken:
        connection.close()
    settle()
    assert pool.checkedout() == 0
    assert pool.checkedin() == min(limit, pool.size())


# Like QueuePool.


def tour(engine):
    """Go through what a pool does; note the events, and the numbers after each step."""
    seen, pool = [], engine.pool
    for name in (
        *("connect", "first_connect", "checkout", "checkin", "reset", "invalidate"),
        *("soft_invalidate", "close", "detach", "close_detached"),
    ):
        event.listen(pool, name, lambda *_, name=name: seen.append(name))

    def note(step):
        numbers = (pool.size(), pool.checkedin(), pool.overflow(), pool.checkedout())
        seen.append((step, numbers, pool.status().split(" Waiting")[0]))

    with engine.connect() as connection:
        note("out")
        assert ask(connection, "a") == "a"
    note("back")
    with Session(engine) as session:
        session.execute(text("SELECT 1"))
        session.commit()
    note("session")
    with pytest.raises(exc.DBAPIError), engine.connect() as connection:
        connection.execute(text("SELECT nonsense FROM nowhere"))
    note("error")
    three = [engine.connect() for _ in range(3)]
    note("three")
    for connection in three:
        connection.close()
    note("overflow closed")
    with engine.connect() as connection:
        connection.invalidate()
        note("invalidated")
    note("back without")
    raw = engine.raw_connection()
    raw.info["mine"] = 1
    raw.invalidate(soft=True)
    raw.close()
    note("soft")
    raw = engine.raw_connection()
    seen.append(dict(raw.info))
    raw.detach()
    note("detached")
    raw.close()
    note("detached closed")
    pool.dispose()
    note("disposed")
    anew = pool.recreate()
    seen.append((anew.size(), anew.timeout(), type(anew) is type(pool)))
    return seen


@pytest.mark.parametrize("lifo", [False, True])
def test_events_and_numbers_are_those_of_queue_pool(db, lifo):
    settings = {"pool_size": 2, "max_overflow": 1, "pool_use_lifo": lifo, "pool_pre_ping": True}
    ours, theirs = (tour(db.engine(kind, **settings)) for kind in (FairPool, QueuePool))
    assert ours == theirs


@pytest.mark.parametrize("lifo", [False, True])
def test_idle_connections_go_out_in_the_order_asked_for(db, lifo):
    engine = db.engine(pool_size=2, pool_use_lifo=lifo)
    first, second = engine.raw_connection(), engine.raw_connection()
    connections = [first.dbapi_connection, second.dbapi_connection]
    first.close()
    second.close()
    assert engine.raw_connection().dbapi_connection is connections[1 if lifo else 0]


def test_no_limit(db):
    engine = db.engine(pool_size=1, max_overflow=-1)
    taken = [engine.connect() for _ in range(5)]
    assert repr(engine.pool) == "<FairPool 0 idle, 5 in use, 0 waiting, no max>"
    for connection in taken:
        connection.close()
    assert (engine.pool.checkedin(), engine.pool.checkedout()) == (1, 0)


def test_recycled_connection_is_replaced(db):
    engine = db.engine(pool_recycle=0)
    raw = engine.raw_connection()
    before = raw.dbapi_connection
    raw.close()
    time.sleep(0.01)
    raw = engine.raw_connection()
    assert raw.dbapi_connection is not before
    raw.close()
    full_check(engine)


@pytest.mark.parametrize("reset", ["rollback", "commit", None])
def test_reset_on_return(db, reset):
    engine = db.engine(pool_reset_on_return=reset)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS fair"))
        connection.execute(text("CREATE TABLE fair (n int)"))
    raw = engine.raw_connection()
    raw.cursor().execute("INSERT INTO fair VALUES (1)")
    raw.close()
    with engine.begin() as connection:
        rows = connection.execute(text("SELECT count(*) FROM fair")).scalar()
        connection.execute(text("DROP TABLE fair"))
    assert rows == (0 if reset == "rollback" else 1)


def test_nonsense_is_refused_at_once():
    for wrong in ({"pool_size": -1}, {"max_overflow": -2}):
        with pytest.raises(ValueError, match="must be at least"):
            create_engine("postgresql+psycopg://", poolclass=FairPool, **wrong)


def test_connection_that_blocks_the_hub_is_refused_and_closed():
    closed = []
    blocking = type("connection", (), {"__module__": "psycopg2.extensions"})
    blocking.close = lambda connection: closed.append(connection)
    pool = FairPool(blocking, pool_size=1, max_overflow=0)
    for _ in range(3):
        with pytest.raises(PoolError, match="psycopg2 stops all greenlets"):
            pool.connect()
    assert len(closed) == 3
    assert pool.checkedout() == 0


# Waiting.


def greedy(engine, turns=40):
    """Count the waiters served while one takes the connection again and again."""
    served = []

    def take():
        with engine.connect():
            served.append(1)

    def hog():
        for _ in range(turns):
            with engine.connect():
                gevent.sleep(0.001)
                count = len(served)
        return count

    hogging = spawn(hog)
    gevent.sleep(0)
    waiting = [spawn(take) for _ in range(5)]
    gevent.joinall([hogging, *waiting], raise_error=True)
    return hogging.value


def test_greedy_user_starves_nobody(db):
    engine = db.engine()
    engine.connect().close()
    assert greedy(engine) == 5


def test_greedy_user_of_queue_pool_starves_all(db):
    engine = db.engine(QueuePool)
    engine.connect().close()
    assert greedy(engine) == 0


def test_waiters_are_served_in_the_order_they_came(db):
    engine, served = db.engine(pool_size=2, max_overflow=1), []

    def take(number):
        with engine.connect() as connection:
            served.append(number)
            ask(connection, "x")

    held = [engine.connect() for _ in range(3)]
    waiting = [spawn(take, number) for number in range(50)]
    settle()
    assert engine.pool.waiting() == 50
    for connection in held:
        connection.close()
    gevent.joinall(waiting, raise_error=True)
    assert served == list(range(50))
    full_check(engine)


def killed_waiter(engine):
    """Kill A, who waits, as the connection comes back: how long does B wait for it?"""
    held = engine.connect()

    def take():
        begun = time.monotonic()
        engine.connect().close()
        return time.monotonic() - begun

    a, b = spawn(take), spawn(take)
    settle()
    a.kill(block=False)
    held.close()
    b.join()
    return b.value if b.successful() else b.exception


def test_killed_waiter_leaves_the_next_awake(db):
    engine = db.engine(pool_timeout=2, pool_reset_on_return=None)
    assert killed_waiter(engine) < 1
    full_check(engine)


def test_killed_waiter_of_queue_pool_leaves_the_next_asleep(db):
    """All of pool_timeout, beside an idle connection; then it finds it."""
    assert killed_waiter(db.engine(QueuePool, pool_timeout=0.3, pool_reset_on_return=None)) >= 0.3


def test_timeout_is_sqlalchemys_and_ours_and_names_the_holder(db):
    engine = db.engine(pool_timeout=0.05)
    with engine.connect():
        with pytest.raises(exc.TimeoutError, match=r"within 0.05 s \(1 of 1 in use") as caught:
            engine.connect()
        assert isinstance(caught.value, PoolTimeout)
        assert "sqlalchemy_cases.py" in str(caught.value)
        assert len(caught.value.holders) == len(engine.pool.holders()) == 1
    full_check(engine)


def failed_connects(engine):
    """Have three come for one slot while every connect fails; return their errors."""

    @event.listens_for(engine, "do_connect")
    def refuse(*_):
        gevent.sleep(0.05)
        raise OSError("the server said no")

    callers = [spawn(engine.connect) for _ in range(3)]
    gevent.joinall(callers)
    return [type(caller.exception) for caller in callers]


def test_failed_connect_lets_the_next_try(db):
    engine = db.engine(pool_timeout=2)
    assert failed_connects(engine) == [OSError] * 3
    assert engine.pool.checkedout() == 0


def test_failed_connect_of_queue_pool_leaves_the_others_asleep(db):
    assert exc.TimeoutError in failed_connects(db.engine(QueuePool, pool_timeout=0.3))


# Interrupted.


def test_timeout_while_connecting_frees_the_slot(db, proxy_to):
    proxy = proxy_to(db.running, hang(0))
    engine = db.engine(address=proxy.address)
    for _ in range(3):
        with pytest.raises(Timeout), Timeout(0.05):
            engine.connect()
    assert engine.pool.checkedout() == 0


def test_interrupted_connect_is_closed_though_its_error_is_still_looked_at(db, proxy_to):
    """psycopg's stayed open, beside the one that was made in its slot."""
    proxy = proxy_to(db.running, hang(0))
    engine = db.engine(address=proxy.address)
    with pytest.raises(Timeout) as caught, Timeout(0.2):
        engine.connect()
    assert caught.value is not None
    proxy.settled()


def test_timeout_in_a_query_closes_the_connection(db):
    engine = db.engine()
    with pytest.raises(Timeout), engine.connect() as connection, Timeout(0.05):
        connection.execute(text(db.sleep.format(2)))
    full_check(engine)


def test_timeout_in_a_block_closes_the_connection(db):
    """Whether it was in the middle of anything, nobody can tell."""
    engine = db.engine()
    raw = engine.raw_connection()
    before = raw.dbapi_connection
    with Timeout(0.01, False), closing(raw):
        gevent.sleep(1)
    raw = engine.raw_connection()
    assert raw.dbapi_connection is not before
    raw.close()
    full_check(engine)


def test_generator_that_is_closed_keeps_its_connection(db):
    engine = db.engine()

    def using():
        with engine.connect() as connection:
            yield connection.connection.dbapi_connection

    first = using()
    before = next(first)
    first.close()
    assert next(using()) is before


@pytest.mark.parametrize("db", [Postgres], indirect=True)
def test_rollback_that_fails_after_an_interruption_loses_no_slot(db):
    """SQLAlchemy 2.0 leaves it to the collector to return the connection."""
    engine = db.engine()

    def use():
        with engine.connect() as connection:
            streamed = connection.execution_options(stream_results=True)
            result = streamed.execute(text(db.rows), {"tag": "mine"})
            db.running.freeze()
            with Timeout(0.05):
                result.close()

    try:
        with Timeout(10), pytest.raises(exc.OperationalError) as caught:
            use()
    finally:
        db.running.thaw()
    assert isinstance(interruption(caught.value), Timeout)
    until(lambda: engine.pool.checkedout() == 0)
    full_check(engine)


@pytest.mark.parametrize("way", ["kill", "timeout"])
def test_interrupted_rollback_on_return_closes_the_connection(db, way):
    engine = db.engine()
    connection = engine.raw_connection()
    before = connection.dbapi_connection
    connection.cursor().execute("SELECT 1")
    db.running.freeze()
    try:
        if way == "kill":
            closer = spawn(connection.close)
            gevent.sleep(0.05)
            closer.kill()
        else:
            with pytest.raises(Timeout), Timeout(0.05):
                connection.close()
    finally:
        db.running.thaw()
    connection.close()  # once more: it must not touch the next user's
    raw = engine.raw_connection()
    assert raw.dbapi_connection is not before
    raw.close()
    full_check(engine)


def test_kill_while_the_connection_is_being_closed_loses_no_slot(db, monkeypatch):
    engine = db.engine()
    close = engine.dialect.do_terminate

    def slow(connection):
        gevent.sleep(0.1)
        close(connection)

    monkeypatch.setattr(engine.dialect, "do_terminate", slow)

    def use():
        raw = engine.raw_connection()
        try:
            raw.invalidate()
        finally:
            raw.close()

    user = spawn(use)
    until(lambda: engine.pool._closing)
    user.kill()
    until(lambda: not engine.pool._closing)
    full_check(engine)


def test_connection_being_closed_keeps_its_slot(db, monkeypatch):
    """Else the server would see one more than the limit."""
    engine, going = db.engine(), []
    close = engine.dialect.do_terminate

    def slow(connection):
        going.append(connection)
        gevent.sleep(0.1)
        close(connection)
        going.remove(connection)

    monkeypatch.setattr(engine.dialect, "do_terminate", slow)
    raw = engine.raw_connection()
    raw.invalidate()
    assert going
    assert engine.pool.checkedout() == 1
    with engine.connect() as connection:
        assert not going
        assert ask(connection, "a") == "a"


@pytest.mark.parametrize("name", ["checkin", "invalidate", "reset", "checkout", "connect"])
def test_listener_that_is_interrupted_loses_no_slot(db, name):
    engine = db.engine()
    engine.connect().close()
    stuck = []

    @event.listens_for(engine, name)
    def wait(*_):
        if not stuck:
            stuck.append(1)
            gevent.sleep(10)

    def use():
        raw = engine.raw_connection()
        if name == "connect":
            raw.invalidate()
            raw = engine.raw_connection()
        try:
            if name == "invalidate":
                raw.invalidate()
        finally:
            raw.close()

    user = spawn(use)
    until(lambda: stuck)
    user.kill()
    full_check(engine)


def test_dropped_connection_is_closed_and_its_slot_comes_back(db, caplog):
    engine = db.engine(pool_timeout=2)
    before = id(engine.raw_connection().dbapi_connection)  # dropped at once
    raw = engine.raw_connection()
    assert id(raw.dbapi_connection) != before or caplog.records
    raw.self = raw  # a cycle, for the collector
    del raw
    gc.collect()
    settle()
    full_check(engine)
    assert [r.getMessage().count("dropped without close()") for r in caplog.records] == [1, 1]


def interruption(error):
    """Find the Timeout or kill in whose place *error* was raised."""
    while error is not None and isinstance(error, Exception):
        error = error.__context__
    return error


def storm(engine, db, questions, seed=0):
    """Kill and time out users at all moments; return what they asked, and were told wrongly."""
    rng, asked, foreign = random.Random(seed), [0], []
    end = time.monotonic() + 20
    slow = db.sleep.format(0.002)

    def over():
        return asked[0] >= questions or time.monotonic() > end

    def check(answers, tag):
        asked[0] += 1
        if any(answer != tag for answer in answers):
            foreign.append((tag, answers))

    def core(tag):
        with engine.connect() as connection:
            check([ask(connection, tag)], tag)
            connection.execute(text(slow))
            connection.commit()

    def orm(tag):
        with Session(engine) as session:
            check([session.execute(text("SELECT :tag"), {"tag": tag}).scalar()], tag)

    def raw(tag):
        connection = engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("SELECT %s", (tag,))
            check([cursor.fetchone()[0]], tag)
        finally:
            connection.close()

    def streaming(tag):
        with engine.connect() as connection:
            streamed = connection.execution_options(stream_results=True, max_row_buffer=50)
            result = streamed.execute(text(db.rows), {"tag": tag})
            check([row[1] for row in result.fetchmany(200)], tag)
            result.close()

    def large(tag):
        with engine.connect() as connection:
            check([ask(connection, tag + "x" * 300_000)[: len(tag)]], tag)

    def user(name):
        turn = 0
        while not over():
            turn += 1
            tag = f"{name}-{turn}"
            act = rng.choice([core, core, orm, raw, raw, streaming, large])
            try:
                with Timeout(rng.choice([0.002, 0.05, 0.5, 2]) * rng.random(), False):
                    act(tag)
            except exc.DBAPIError as error:
                # SQLAlchemy's rollback on the way out fails, and its error takes the
                # place of the Timeout or the kill.
                ended = interruption(error)
                if ended is None:
                    raise
                if isinstance(ended, GreenletExit):
                    return

    users = [spawn(user, n) for n in range(20)]
    while not over():
        gevent.sleep(0.02)
        n = rng.randrange(20)
        users[n].kill(block=rng.random() < 0.5)
        users[n] = spawn(user, f"{n}-{rng.random()}")
    gevent.joinall(users, timeout=20)
    return asked[0], foreign


@pytest.mark.filterwarnings("ignore:Previous unbuffered result")  # PyMySQL, of one interrupted
def test_storm_of_kills_and_timeouts(db):
    engine = db.engine(pool_size=3, max_overflow=2)
    engine.connect().close()
    asked, foreign = storm(engine, db, questions=600)
    assert foreign == []
    assert asked > 100
    until(lambda: not engine.pool._closing)
    full_check(engine)
    with engine.connect() as connection:
        until(lambda: connection.execute(text(db.count)).scalar() <= 8)


# The server, and forks.


def test_restarted_server_is_not_noticed_with_pre_ping(db):
    """And by one user without it: SQLAlchemy replaces all that are older."""
    engine, trusting = (db.engine(pool_size=10, pool_pre_ping=ping) for ping in (True, False))
    for connection in [which.connect() for which in (engine, trusting) for _ in range(10)]:
        connection.close()
    db.running.kill9()
    db.running.start()
    answers = []

    def use(engine, tag):
        with engine.connect() as connection:
            answers.append(ask(connection, tag) == tag)

    gevent.joinall([spawn(use, engine, f"t{n}") for n in range(50)], raise_error=True)
    assert answers == [True] * 50
    full_check(engine)

    assert trusting.pool.checkedin() == 10
    with pytest.raises(exc.DBAPIError):
        use(trusting, "first")
    gevent.joinall([spawn(use, trusting, f"t{n}") for n in range(50)], raise_error=True)
    assert answers == [True] * 100
    full_check(trusting)


def test_children_have_pools_of_their_own(db):
    engine = db.engine(pool_size=3)
    for connection in [engine.connect() for _ in range(3)]:
        connection.close()
    with engine.connect() as held:
        ask(held, "before")
        pipes = []
        for child in range(3):
            read, write = os.pipe()
            if gevent.os.fork() == 0:
                try:
                    wrong = 0
                    for turn in range(30):
                        with engine.connect() as connection:
                            tag = f"child {child} {turn}"
                            wrong += ask(connection, tag) != tag
                    del held
                    gc.collect()
                    os.write(write, json.dumps([wrong, engine.pool.checkedin()]).encode())
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            os.close(write)
            pipes.append(read)
        wrong = sum(ask(held, f"parent {turn}") != f"parent {turn}" for turn in range(100))
    said = [gevent.os.tp_read(read, 100) for read in pipes]
    for read in pipes:
        os.close(read)
    assert [json.loads(words) for words in said] == [[0, 1]] * 3
    assert wrong == 0
    full_check(engine)


def test_connection_returned_after_dispose_is_closed(db):
    engine = db.engine()
    raw = engine.raw_connection()
    pool, connection = engine.pool, raw.dbapi_connection
    waiting = spawn(pool.connect)
    settle()
    engine.dispose()
    raw.close()
    assert connection.closed if db.server is PostgresServer else not connection.open
    waiting.get(timeout=5).close()  # those who waited are served all the same
    assert pool.checkedin() == 0
    full_check(engine)


@pytest.mark.hub_errors
def test_another_thread_is_refused(db):
    engine = db.engine()
    engine.connect().close()
    with pytest.raises(PoolError, match="belongs to thread"):
        gevent.get_hub().threadpool.apply(engine.connect)
    full_check(engine)
