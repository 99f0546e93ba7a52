"""PostgresPool on a real PostgreSQL: whatever one user does, the next one finds nothing of it."""

import gc
import logging
import time
from contextlib import closing, contextmanager, suppress
from types import SimpleNamespace

import gevent
import psycopg
import pytest
from gevent import Timeout
from psycopg.pq import Format, PipelineStatus, TransactionStatus
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.string import StrDumper, TextLoader

from gpools import ConnectionPool, NotInUse, PoolError, PoolTimeout, PoolUnavailable
from gpools.adapters import PostgresPool, postgres
from gpools.adapters._probe import quiet
from gpools.adapters.postgres import _hang_up
from tests.chaos import swallowed
from tests.cooperative_psycopg import cooperative_psycopg  # noqa: F401
from tests.databases import PostgresServer
from tests.proxy import hang, hung_up
from tests.slots import assert_slots_are_taken_back, slotted
from tests.switching import high_fds, switches  # noqa: F401
from tests.waiting import settle, spawn, until

pytestmark = pytest.mark.usefixtures("cooperative_psycopg")

WORD = "xyzzy-secret"  # a password, to be looked for where it must not be


@pytest.fixture
def pg_pool(postgres_server):
    """`pg_pool(...)`: a PostgresPool of one connection, closed after the test."""
    pools = []

    def make(conninfo=postgres_server.url, pool_class=PostgresPool, **options):
        pools.append(pool_class(conninfo, **({"max_size": 1} | options)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
    until(lambda: all(pool.stats().destroying == 0 for pool in pools))


@pytest.fixture
def control(postgres_server):
    """A connection of the test's own."""
    with psycopg.connect(postgres_server.url, autocommit=True) as conn:
        yield conn
        conn.execute("DROP TABLE IF EXISTS t, d")


@pytest.fixture
def backends(control):
    """`backends()`: what the server runs for whom, but for the control connection, by pid."""

    def ask():
        return dict(
            control.execute(
                "SELECT pid, query FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchall()
        )

    until(lambda: not ask())  # those of the test before
    return ask


def pid(pool):
    """Tell which connection the next user gets."""
    with pool.item(timeout=10) as conn:
        return conn.info.backend_pid


def one(conn, query, *args):
    return conn.execute(query, *args).fetchone()[0]


def whole(pool):
    """Assert that the pool has all its slots, and each item a working connection."""
    items = [pool.get(timeout=10) for _ in range(pool.max_size)]
    assert len({one(conn, "SELECT pg_backend_pid()") for conn in items}) == pool.max_size
    assert pool.free() == 0
    for item in items:
        pool.put(item)
    assert pool.free() == pool.current_size == pool.max_size


# Making connections


def test_from_url_and_keywords(postgres_server, pg_pool):
    by_url = pg_pool(f"{postgres_server.url}?application_name=me")
    by_words = pg_pool(
        "", host=postgres_server.host, port=postgres_server.port, user="postgres", dbname="postgres"
    )
    both = pg_pool(f"{postgres_server.url}?application_name=me", application_name="you")
    for pool, name in ((by_url, "me"), (by_words, ""), (both, "you")):
        with pool.item() as conn:
            assert isinstance(conn, psycopg.Connection)
            assert one(conn, "SHOW application_name") == name


def test_what_psycopg_takes_passes_through(pg_pool):
    context = psycopg.adapt.AdaptersMap(psycopg.adapters)
    context.register_dumper(str, Shouting)
    pool = pg_pool(
        autocommit=True,
        row_factory=dict_row,
        prepare_threshold=None,
        cursor_factory=psycopg.ClientCursor,
        context=Context(context),
        options="-c search_path=elsewhere",
    )
    for _ in range(2):
        with pool.item() as conn:
            assert conn.autocommit
            assert conn.execute("SHOW search_path").fetchone() == {"search_path": "elsewhere"}
            assert conn.execute("SELECT %s AS a", ["b"]).fetchone() == {"a": "B"}
            assert conn.prepare_threshold is None
            assert isinstance(conn.cursor(), psycopg.ClientCursor)


class Shouting(StrDumper):
    def dump(self, obj):
        return obj.upper().encode()

    def quote(self, obj):
        return f"'{obj.upper()}'".encode()


class Whispering(TextLoader):
    def load(self, data):
        return bytes(data).decode().lower() + "..."


class Context:
    connection = None

    def __init__(self, adapters):
        self.adapters = adapters


def test_connections_made_in_the_background(pg_pool, backends):
    pool = pg_pool(max_size=3, min_size=2, max_creating=2)
    pool.wait_ready(timeout=10)
    assert len(backends()) == 2
    whole(pool)


def test_a_class_of_ones_own(pg_pool):
    class Mine(psycopg.Connection):
        def answer(self):
            return one(self, "SELECT 42")

    pool = pg_pool(connection_class=Mine)
    with pool.item() as conn:
        assert isinstance(conn, Mine)
        assert conn.answer() == 42
    with pytest.raises(TypeError, match=r"no psycopg\.Connection"):
        pg_pool(connection_class=dict)


def test_what_is_made_by_the_class_of_a_pooled_connection_is_not_the_pools(pg_pool):
    class Cloning(psycopg.Connection):
        def clone(self):
            return type(self).connect(self.info.dsn)

    with pg_pool(connection_class=Cloning).item() as conn, conn.clone() as other:
        assert type(other) is Cloning
        assert one(other, "SELECT 1") == 1


def test_what_a_class_of_ones_own_lets_nobody_delete_is_taken_back(pg_pool):
    class Tenanted(psycopg.Connection):
        tenant = property(lambda self: vars(self).get("tenant"))

    pool = pg_pool(connection_class=Tenanted)
    with pool.item() as conn:
        vars(conn)["tenant"] = "ann"
    with pool.item() as again:
        assert again is conn
        assert again.tenant is None


def test_what_a_user_adds_to_what_a_class_of_ones_own_keeps_reaches_nobody(pg_pool):
    class Tagged(psycopg.Connection):
        def __init__(self, *args):
            super().__init__(*args)
            self.tags, self.by_name, self.in_order = {"new"}, {"new": 1}, ["new"]

    pool = pg_pool(connection_class=Tagged)
    with pool.item() as conn:
        conn.tags.add("ann's")
        conn.by_name["ann"] = 2
        conn.in_order.append("ann's")
    with pool.item() as again:
        assert again is conn
        assert (again.tags, again.by_name, again.in_order) == ({"new"}, {"new": 1}, ["new"])


def test_what_a_user_puts_into_a_slot_reaches_nobody(pg_pool):
    assert_slots_are_taken_back(pg_pool(connection_class=slotted(psycopg.Connection)))


def test_a_subclass_needs_create_only(pg_pool):
    class Utc(PostgresPool):
        def create(self):
            conn = super().create()
            conn.execute("SET TimeZone TO 'Asia/Tokyo'")
            conn.commit()
            conn.read_only = True
            conn.adapters.register_dumper(str, Shouting)
            return conn

    pool = pg_pool(pool_class=Utc)
    for _ in range(2):
        with pool.item() as conn:
            assert one(conn, "SHOW TimeZone") == "Asia/Tokyo"
            assert one(conn, "SELECT %s", ["a"]) == "A"
            assert conn.read_only
            conn.adapters.register_dumper(str, StrDumper)
            conn.rollback()
            conn.read_only = False


def test_create_given_as_a_keyword(postgres_server, pg_pool):
    pool = pg_pool("", create=lambda: psycopg.connect(postgres_server.url))
    whole(pool)
    with Timeout(0.05, False), pool.item() as conn:
        conn.execute("SELECT pg_sleep(600)")
    whole(pool)


def test_a_new_connection_must_be_at_rest(postgres_server, pg_pool, backends):
    def create():
        conn = psycopg.connect(postgres_server.url)
        conn.execute("SELECT 1")
        return conn

    pool = pg_pool(create=create)
    with pytest.raises(PoolError, match="state INTRANS; commit first"):
        pool.get()
    assert pool.free() == 1
    until(lambda: not backends())


def test_what_create_returns_must_be_a_connection(pg_pool):
    pool = pg_pool(create=lambda: object())
    with pytest.raises(PoolError, match=r"returned a object, no psycopg\.Connection"):
        pool.get()
    assert pool.free() == 1


@pytest.mark.parametrize(
    ("kind", "words", "options"),
    [
        (TypeError, "takes 'hots'", {"hots": "127.0.0.1"}),
        (TypeError, "must be a str", {"conninfo": 5432}),
        (ValueError, "reset_timeout is 0", {"reset_timeout": 0}),
        (ValueError, "cancel_timeout is -1", {"cancel_timeout": -1}),
        (ValueError, "min_size is 8", {"min_size": 8}),
        (ValueError, "neither a URL", {"conninfo": f"postgresql://u@h/d?{WORD}"}),
        (ValueError, "neither a URL", {"conninfo": f"host=h password={WORD} x"}),
        (ValueError, "port is no number", {"conninfo": f"postgresql://u:{WORD}/x@h/d"}),
        (ValueError, "host has an @", {"conninfo": f"postgresql://u:x@{WORD}@h/d"}),
    ],
)
def test_bad_input_is_refused_at_once_and_tells_no_password(pg_pool, kind, words, options):
    with pytest.raises(kind, match=words) as caught:
        pg_pool(**options)
    assert WORD not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_nothing_shows_the_password(start_server, pg_pool, caplog):
    caplog.set_level(logging.DEBUG)
    server = start_server(PostgresServer)
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE guest LOGIN PASSWORD '{WORD}'")
    hba = server.data / "pg_hba.conf"
    hba.write_text("host all guest all scram-sha-256\n" + hba.read_text())
    server.restart()

    def url(word):
        return f"postgresql://guest:{word}@{server.host}:{server.port}/postgres"

    def shown(error):
        while error is not None:
            yield f"{error!r} {error}"
            error = error.__cause__ or error.__context__

    good = pg_pool(url(WORD), max_creating=1)
    with good.item() as conn:
        text = [repr(good), repr(conn), repr(good.holders())]
        with pytest.raises(PoolTimeout) as late:
            good.get(timeout=0)
    bad = pg_pool(url(f"{WORD}2"), max_creating=1)
    for _ in range(3):
        with pytest.raises((psycopg.OperationalError, PoolUnavailable)) as refused:
            bad.get(timeout=5)
        text += shown(refused.value)
    assert isinstance(refused.value, PoolUnavailable)
    server.stop()
    with pytest.raises(psycopg.OperationalError) as gone, good.item() as conn:
        conn.execute("SELECT 1")
    text += [*shown(late.value), *shown(gone.value)]
    assert WORD not in "".join([*text, caplog.text])


def test_psycopg_that_would_block_the_hub_is_refused(postgres_server, monkeypatch):
    monkeypatch.setattr(psycopg.waiting, "wait", psycopg.waiting.wait_c)
    with pytest.raises(RuntimeError, match=r"patch_all\(\) before psycopg is imported"):
        PostgresPool(postgres_server.url)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="block all greenlets"):
        PostgresPool(postgres_server.url)


# Coming back


def test_an_idle_connection_is_kept_and_switches_nothing(pg_pool):
    pool = pg_pool()
    with pool.item() as conn:
        conn.execute("SELECT 1")
        conn.commit()
        first = conn.info.backend_pid
        begun = switches()
        count = begun.__enter__()
    with pool.item():
        pass
    begun.__exit__()
    assert count() == 0
    assert pid(pool) == first
    assert pool.stats().created == 1


@pytest.mark.parametrize("state", ["INTRANS", "INERROR"])
def test_an_open_transaction_is_rolled_back(pg_pool, control, state):
    control.execute("CREATE TABLE t (a int)")
    pool = pg_pool()
    with pool.item() as conn:
        conn.execute("INSERT INTO t VALUES (1)")
        if state == "INERROR":
            with suppress(psycopg.errors.UndefinedTable):
                conn.execute("SELECT * FROM nowhere")
        assert conn.info.transaction_status == TransactionStatus[state]
    with pool.item() as again:
        assert again is conn
        assert again.info.transaction_status == TransactionStatus.IDLE
        assert one(again, "SELECT count(*) FROM t") == 0


def leave_a_stream(conn):
    rows = conn.cursor().stream("SELECT generate_series(1, 100000)")
    next(rows)
    return rows


def leave_a_copy(conn):
    copying = conn.cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
    copying.__enter__().read()
    return copying


def leave_a_copy_in(conn):
    conn.execute("CREATE TEMPORARY TABLE c (a int)")
    copying = conn.cursor().copy("COPY c FROM STDIN")
    copying.__enter__().write_row([1])
    return copying


def leave_a_pipeline(conn):
    pipeline = conn.pipeline()
    pipeline.__enter__()
    conn.execute("SELECT 1")
    return pipeline


def leave_an_empty_pipeline(conn):
    pipeline = conn.pipeline()
    pipeline.__enter__()
    return pipeline


def leave_a_bare_pipeline(conn):
    conn.pgconn.enter_pipeline_mode()


def leave_a_transaction_block(conn):
    block = conn.transaction()
    block.__enter__()
    return block


def leave_a_two_phase_transaction(conn):
    conn.tpc_begin("x")


def leave_an_iterator_of_notifies(conn):
    conn.autocommit = True
    conn.execute("LISTEN x")
    conn.execute("NOTIFY x")
    notifies = conn.notifies()
    next(notifies)
    return notifies


def leave_another_in_it(conn):
    greenlet = spawn(lambda: conn.execute("SELECT pg_sleep(600)"))
    settle()
    return greenlet


def close_it(conn):
    conn.close()


def close_it_by_psycopgs_own_block(conn):
    with conn:
        conn.execute("SELECT 1")


def have_it_terminated(conn):
    with suppress(psycopg.OperationalError):
        conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def have_it_terminated_unseen(conn):
    with psycopg.connect(**conn.info.get_parameters(), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
    until(lambda: hung_up(conn))


@pytest.mark.parametrize(
    "leave",
    [
        leave_a_stream,
        leave_a_copy,
        leave_a_copy_in,
        leave_a_pipeline,
        leave_an_empty_pipeline,
        leave_a_bare_pipeline,
        leave_a_transaction_block,
        leave_a_two_phase_transaction,
        leave_an_iterator_of_notifies,
        leave_another_in_it,
        close_it,
        close_it_by_psycopgs_own_block,
        have_it_terminated,
        have_it_terminated_unseen,
    ],
)
def test_a_connection_in_the_middle_of_something_is_destroyed(pg_pool, backends, leave):
    pool = pg_pool()
    with Timeout(10):
        with pool.item() as conn:
            first = conn.info.backend_pid
            left = leave(conn)
        assert pid(pool) != first
        until(lambda: len(backends()) == 1)
        if isinstance(left, gevent.Greenlet):
            left.join()
            assert isinstance(left.exception, psycopg.OperationalError)
    assert conn.closed
    del left
    gc.collect()
    whole(pool)


def test_a_connection_is_not_freed_under_a_greenlet_that_waits_in_it(pg_pool, backends):
    """It went on in libpq's freed memory when a new connection had got its descriptor."""
    pool = pg_pool(max_size=3)
    for _ in range(5):
        with pool.item() as conn:
            other = spawn(lambda conn=conn: conn.execute("SELECT pg_sleep(600)"))
            settle()
        new = [pool.get() for _ in range(3)]
        for successor in new:
            one(successor, "SELECT 1")
        other.join(5)
        assert isinstance(other.exception, psycopg.OperationalError)
        assert conn.closed
        for successor in new:
            pool.put(successor)
    whole(pool)
    until(lambda: len(backends()) == 3)


def change(name, value):
    def act(conn):
        setattr(conn, name, value)

    act.__name__ = name
    return act


def add_a_dumper(conn):
    conn.adapters.register_dumper(str, Shouting)


def add_a_dumper_for_a_type_of_the_server(conn):
    conn.adapters.register_dumper(None, type("", (Shouting,), {"oid": 25}))


def add_a_loader(conn):
    conn.adapters.register_loader("text", Whispering)


def add_a_type(conn):
    conn.adapters.types.add(TypeInfo("mood", 70000, 70001))


def add_a_notice_handler(conn):
    conn.add_notice_handler(print)


def add_a_notify_handler(conn):
    conn.add_notify_handler(print)


@pytest.mark.parametrize(
    "act",
    [
        change("autocommit", True),
        change("row_factory", dict_row),
        change("cursor_factory", psycopg.ClientCursor),
        change("server_cursor_factory", psycopg.ServerCursor),
        change("isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
        change("read_only", True),
        change("deferrable", True),
        change("prepare_threshold", 0),
        change("prepared_max", 3),
        change("tenant", "ann"),
        add_a_dumper,
        add_a_dumper_for_a_type_of_the_server,
        add_a_loader,
        add_a_type,
        add_a_notice_handler,
        add_a_notify_handler,
    ],
)
@pytest.mark.parametrize("open_transaction", [False, True])
def test_what_a_user_changes_on_a_connection_reaches_nobody(pg_pool, act, open_transaction):
    def face(conn):
        names = set(vars(conn)) - {"pgconn", "lock", "_prepared", "_waiting", "_adapters"}
        seen = {name: vars(conn)[name] for name in names}
        seen = {n: list(v) if isinstance(v, (list, dict)) else v for n, v in seen.items()}
        begin = conn._get_tx_start_command()
        said = conn.execute("SELECT %s::text, 'a'", ("a",)).fetchone()
        types = conn.adapters.types.get("mood"), conn.adapters.get_dumper_by_oid(25, Format.TEXT)
        return seen, conn.prepare_threshold, conn.prepared_max, begin, said, types

    pool = pg_pool()
    with pool.item() as conn:
        before = face(conn)
    with pool.item() as conn:
        act(conn)
        if open_transaction:
            conn.execute("SELECT 1")
    with pool.item() as again:
        assert again is conn
        assert face(again) == before


@pytest.mark.parametrize(("just_now", "looks"), [(3600, 0), (0, 1)])
def test_a_socket_is_not_looked_at_just_after_an_answer(pg_pool, monkeypatch, just_now, looks):
    looked_at = []
    monkeypatch.setattr(postgres, "JUST_NOW", just_now)
    monkeypatch.setattr(postgres, "quiet", lambda conn: looked_at.append(conn) or True)
    pool = pg_pool(check_after=None)
    with pool.item() as conn:
        one(conn, "SELECT 1")
    assert looked_at == [conn] * looks


def ask_nothing(conn):
    pass


def commit_nothing(conn):
    conn.commit()


def roll_nothing_back(conn):
    conn.rollback()


def set_what_the_server_is_told_later(conn):
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE


@pytest.mark.parametrize(
    "act", [ask_nothing, commit_nothing, roll_nothing_back, set_what_the_server_is_told_later]
)
def test_what_asks_the_server_nothing_is_no_answer(pg_pool, control, monkeypatch, act):
    """The connection may have died while its user was busy elsewhere."""
    pool = pg_pool(autocommit=True)
    with pool.item() as conn:
        control.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
        until(lambda: not quiet(conn))
        monkeypatch.setattr(postgres, "JUST_NOW", 3600)  # however slow the rest is
        act(conn)
    assert repr(pool) == "<PostgresPool 0 idle, 0 in use, 0 waiting, max 1>"


@pytest.mark.parametrize("discard_all", [False, True])
def test_handlers_hear_nothing_of_what_the_pool_does(pg_pool, discard_all):
    heard = []
    pool = pg_pool(discard_all=discard_all)
    with pool.item() as conn:
        conn.autocommit = True
        conn.add_notice_handler(heard.append)
        conn.add_notify_handler(heard.append)
        conn.execute("LISTEN x")
        conn.execute("BEGIN")
        conn.execute("NOTIFY x")
        conn.pgconn.send_query(b"COMMIT")  # its notification comes with the answer
        conn.pgconn.flush()
        until(lambda: not (conn.pgconn.consume_input() or conn.pgconn.is_busy()))
        while conn.pgconn.get_result():
            pass
    assert heard == []
    with pool.item() as again:
        assert again is conn
        again.execute("SELECT 1")
        assert list(again.notifies(timeout=0)) == []


# What lives in the session

SESSION = {
    "SET": ("SET work_mem TO '7MB'", "SHOW work_mem", "4MB"),
    "set_config": ("SELECT set_config('work_mem', '7MB', false)", "SHOW work_mem", "4MB"),
    "role": ("SET ROLE pg_monitor", "SELECT current_user::text", "postgres"),
    "temp": (
        "CREATE TEMPORARY TABLE mine (a int)",
        "SELECT count(*) FROM pg_class WHERE relname = 'mine'",
        0,
    ),
    "advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        0,
    ),
    "LISTEN": ("LISTEN x", "SELECT count(*) FROM pg_listening_channels()", 0),
    "PREPARE": (
        "PREPARE mine AS SELECT 1",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'",
        0,
    ),
    "hold cursor": (
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name = 'mine'",
        0,
    ),
}

# These outlive a rollback, as PostgreSQL's documentation says.
OUTLIVE = {"advisory lock", "PREPARE"}


@pytest.mark.parametrize("what", SESSION)
@pytest.mark.parametrize("end", ["left open", "committed", "autocommit"])
@pytest.mark.parametrize("discard_all", [False, True])
def test_session_state(pg_pool, what, end, discard_all):
    """Undone by the rollback if it was not committed, by *discard_all* in any case."""
    act, look, clean = SESSION[what]
    pool = pg_pool(discard_all=discard_all)
    with pool.item() as conn:
        conn.autocommit = end == "autocommit"
        conn.execute(act)
        if end == "committed":
            conn.commit()
        if (what, end) != ("LISTEN", "left open"):  # it begins with the commit
            assert one(conn, look) != clean
    with pool.item() as again:
        assert again is conn
        left = one(again, look) != clean
    assert left == (not discard_all and (end != "left open" or what in OUTLIVE))


def test_a_server_side_cursor_does_not_outlive_its_transaction(pg_pool):
    pool = pg_pool()
    with pool.item() as conn:
        conn.execute("DECLARE mine CURSOR FOR SELECT 1")
    with pool.item() as again:
        assert again is conn
        assert one(again, "SELECT count(*) FROM pg_cursors WHERE name = 'mine'") == 0


@pytest.mark.parametrize("options", [{}, {"autocommit": True}, {"discard_all": True}])
def test_a_pipeline_after_the_stream_of_another(pg_pool, options):
    """libpq would give its first answer row by row, and psycopg call that an InternalError."""
    pool = pg_pool(**options)
    with pool.item() as conn:
        assert [row[0] for row in conn.cursor().stream("SELECT generate_series(1, 3)")] == [1, 2, 3]
    with pool.item() as again:
        assert again is conn
        with again.pipeline():
            assert one(again, "SELECT 4") == 4


def test_a_stream_left_half_way_is_ended_by_psycopg(pg_pool):
    pool = pg_pool()
    first = pid(pool)
    with pool.item() as conn, closing(conn.cursor().stream("SELECT generate_series(1, 5)")) as rows:
        assert next(rows) == (1,)
    assert pid(pool) == first


def test_statements_that_psycopg_has_prepared_outlive_a_return(pg_pool):
    pool = pg_pool(prepare_threshold=0, autocommit=True)
    for n in range(3):
        with pool.item() as conn:
            assert one(conn, "SELECT %s::int", [n]) == n
    with pool.item() as conn:
        count = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%::int'"
        assert conn.execute(count, prepare=False).fetchone()[0] == 1


@pytest.mark.parametrize("autocommit", [False, True])
def test_psycopg_is_told_that_its_prepared_statements_are_gone(pg_pool, autocommit):
    pool = pg_pool(discard_all=True, prepare_threshold=0, autocommit=autocommit)
    first = pid(pool)
    for n in range(5):
        with pool.item() as conn:
            for _ in range(2):
                assert one(conn, "SELECT %s::int", [n]) == n
            assert len(conn._prepared._names) == 1
    assert pid(pool) == first


def test_discard_all_takes_back_what_create_has_set_but_not_options(postgres_server, pg_pool):
    def create():
        conn = psycopg.connect(postgres_server.url, options="-c work_mem=5MB", autocommit=True)
        conn.execute("SET TimeZone TO 'Asia/Tokyo'")
        return conn

    pool = pg_pool(create=create, discard_all=True)
    with pool.item() as conn:
        assert one(conn, "SHOW TimeZone") == "Asia/Tokyo"
    with pool.item() as conn:
        assert one(conn, "SHOW work_mem") == "5MB"
        assert one(conn, "SHOW TimeZone") != "Asia/Tokyo"


def test_a_notification_that_comes_while_idle_ends_the_connection(pg_pool, control):
    pool = pg_pool(autocommit=True, check_after=0.0)
    with pool.item() as conn:
        conn.execute("LISTEN x")
        first = conn.info.backend_pid
    control.execute("NOTIFY x, 'for him'")
    until(lambda: not pool.check(conn))
    with pool.item() as other:
        assert other.info.backend_pid != first
        assert list(other.notifies(timeout=0)) == []


def test_a_check_neither_switches_nor_minds_high_descriptors(high_fds, pg_pool):  # noqa: F811
    pool = pg_pool()
    with pool.item() as conn:
        assert conn.fileno() > 1023
    with switches() as count:
        assert pool.check(conn)
    assert count() == 0
    conn.close()
    assert not pool.check(conn)


# Errors


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("SELEC 1", psycopg.errors.SyntaxError),
        ("SELECT 1/0", psycopg.errors.DivisionByZero),
        ("SELECT * FROM nowhere", psycopg.errors.UndefinedTable),
        ("SET LOCAL statement_timeout TO 5; SELECT pg_sleep(5)", psycopg.errors.QueryCanceled),
        ("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", psycopg.errors.SerializationFailure),
        ("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$", psycopg.errors.DeadlockDetected),
        ("DO $$ BEGIN RAISE SQLSTATE '55P03'; END $$", psycopg.errors.LockNotAvailable),
    ],
)
def test_an_error_of_the_statement_keeps_the_connection(pg_pool, query, error):
    pool = pg_pool()
    first = pid(pool)
    with pytest.raises(error), pool.item() as conn:
        conn.execute(query)
    assert pid(pool) == first


def misuse(conn):
    conn.execute("SET x.y TO 1").fetchone()


def cannot_adapt(conn):
    conn.execute("SELECT %s", [object()])


def of_his_own(conn):
    conn.execute("SELECT 1")
    raise ValueError


def of_another_network(conn):
    raise OSError("another server")


@pytest.mark.parametrize("act", [misuse, cannot_adapt, of_his_own, of_another_network])
def test_an_error_of_the_program_keeps_the_connection(pg_pool, act):
    pool = pg_pool()
    first = pid(pool)
    with pytest.raises((psycopg.ProgrammingError, ValueError, OSError)), pool.item() as conn:
        act(conn)
    assert pid(pool) == first


@pytest.mark.parametrize("code", ["08006", "53200", "57P01", "57P03", "58030", "XX000", "25006"])
def test_an_error_of_the_server_ends_the_connection(pg_pool, code):
    pool = pg_pool()
    first = pid(pool)
    with pytest.raises(psycopg.Error), pool.item() as conn:
        conn.execute(f"DO $$ BEGIN RAISE SQLSTATE '{code}'; END $$")
    assert pid(pool) != first


@pytest.mark.parametrize("error", [psycopg.OperationalError, psycopg.InterfaceError])
def test_an_error_of_the_connection_ends_it(pg_pool, error):
    pool = pg_pool()
    first = pid(pool)
    with pytest.raises(error), pool.item():
        raise error("the line is bad")
    assert pid(pool) != first


def alter_the_table(control, conn):
    control.execute("ALTER TABLE t ADD b int")


def deallocate_unseen(control, conn):
    conn.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")


@pytest.mark.parametrize("spoil", [alter_the_table, deallocate_unseen])
def test_a_statement_prepared_for_what_is_no_more_fails_one_user_only(pg_pool, control, spoil):
    control.execute("CREATE TABLE t (a int)")
    pool = pg_pool(autocommit=True, prepare_threshold=0)
    with pool.item() as conn:
        conn.execute("SELECT * FROM t")
        spoil(control, conn)
    with pytest.raises(psycopg.Error), pool.item() as conn:
        conn.execute("SELECT * FROM t")
    with pool.item() as conn:
        conn.execute("SELECT * FROM t")


# connection()


def test_connection_commits(pg_pool, control):
    control.execute("CREATE TABLE t (a int)")
    pool = pg_pool()
    with pool.connection() as conn:
        conn.execute("INSERT INTO t VALUES (1)")
    assert one(control, "SELECT count(*) FROM t") == 1
    with suppress(ZeroDivisionError), pool.connection(timeout=5) as again:
        assert again is conn
        conn.execute("INSERT INTO t VALUES (2)")
        raise ZeroDivisionError
    with pool.connection() as again:
        assert again is conn
    with Timeout(0.05, False), pool.connection():
        conn.execute("INSERT INTO t VALUES (3)")
        gevent.sleep(10)
    with pool.connection() as another:
        assert another is not conn
    assert one(control, "SELECT count(*) FROM t") == 1
    assert pool.stats().created == 2


def test_a_commit_that_fails_reaches_the_caller(pg_pool, control):
    control.execute("CREATE TABLE d (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    pool = pg_pool()
    first = pid(pool)
    with pytest.raises(psycopg.errors.UniqueViolation), pool.connection() as conn:
        conn.execute("INSERT INTO d VALUES (1), (1)")
    assert pid(pool) == first


def test_a_commit_interrupted_destroys(pg_pool, control, backends):
    """It waits in a deferred trigger; whether it took place nobody can know."""
    control.execute("CREATE TABLE t (a int)")
    control.execute(
        "CREATE OR REPLACE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(600); RETURN NULL; END $$"
    )
    control.execute(
        "CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION nap()"
    )
    pool = pg_pool()
    first = pid(pool)
    with Timeout(0.1, False), pool.connection() as conn:
        conn.execute("INSERT INTO t VALUES (1)")
    assert pid(pool) != first
    until(lambda: len(backends()) == 1)
    assert one(control, "SELECT count(*) FROM t") == 0


def test_a_connection_lost_in_the_block_is_no_silent_success(pg_pool):
    pool = pg_pool()
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        have_it_terminated(conn)
    whole(pool)


def test_put_back_in_its_block_it_is_not_committed_for_its_next_user(pg_pool, control):
    control.execute("CREATE TABLE t (a int)")
    pool = pg_pool()
    taken = []

    def use():
        with pool.connection() as conn:
            pool.put(conn)
            taken.append(pool.get())
            taken[0].execute("INSERT INTO t VALUES (1)")

    with pytest.raises(NotInUse):
        use()
    [conn] = taken
    conn.rollback()
    pool.put(conn)
    assert one(control, "SELECT count(*) FROM t") == 0


def test_discarded_in_its_block_it_is_no_silent_success(pg_pool):
    pool = pg_pool()

    def use():
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            pool.discard(conn)

    with pytest.raises(psycopg.OperationalError, match="closed"):
        use()
    assert pool.current_size == 0


def test_item_and_the_others_are_the_cores():
    for name in ("get", "put", "item", "discard"):
        assert getattr(PostgresPool, name) is getattr(ConnectionPool, name)


# Interrupted


def execute(conn):
    conn.execute("SELECT pg_sleep(600)")


def fetch_from_a_server_cursor(conn):
    with conn.cursor("mine") as cursor:
        cursor.execute("SELECT pg_sleep(600)")
        cursor.fetchone()


def in_a_transaction_block(conn):
    with conn.transaction(), conn.transaction():
        execute(conn)


def in_a_pipeline(conn):
    with conn.pipeline():
        conn.execute("SELECT 1")
        conn.execute("SELECT pg_sleep(600)").fetchone()


def executemany(conn):
    conn.cursor().executemany("SELECT pg_sleep(%s)", [(0,), (600,), (0,)])


def stream(conn):
    for _ in conn.cursor().stream("SELECT pg_sleep(600 * n) FROM generate_series(0, 3) n"):
        pass


def copy_out(conn):
    query = "COPY (SELECT pg_sleep(600 * n) FROM generate_series(0, 3) n) TO STDOUT"
    with conn.cursor().copy(query) as copying:
        for _ in copying:
            pass


def wait_for_a_lock(conn):
    conn.execute("SELECT pg_advisory_lock(1)")


def write_a_large_statement(conn):
    conn.execute(b"SELECT pg_sleep(600), length('" + b"x" * 50_000_000 + b"')")


def psycopgs_own_block(conn):
    with conn:
        execute(conn)


ACTS = [
    execute,
    fetch_from_a_server_cursor,
    in_a_transaction_block,
    in_a_pipeline,
    executemany,
    stream,
    copy_out,
    wait_for_a_lock,
    write_a_large_statement,
    psycopgs_own_block,
]

endings = pytest.mark.parametrize("ending", [gevent.GreenletExit(), Timeout(0), TimeoutError()])


@contextmanager
def at_once(too_long=1.5):
    """Fail what takes as long as the shortest of the timeouts that must not be needed."""
    with Timeout(too_long, AssertionError("not at once")):
        yield


@pytest.mark.parametrize("act", ACTS)
@endings
def test_interrupted_the_query_ends_here_and_on_the_server(pg_pool, control, backends, act, ending):
    control.execute("SELECT pg_advisory_lock(1)")
    pool = pg_pool()
    first = pid(pool)

    def use():
        with pool.item() as conn:
            act(conn)

    victim = spawn(use)
    if act is write_a_large_statement:
        settle()
    else:
        until(lambda: any(word in backends().get(first, "") for word in ("sleep", "lock", "FETCH")))
    with at_once():
        victim.kill(ending)
        error = victim.value if victim.successful() else victim.exception
        assert error is ending, "the kill was swallowed"
        until(lambda: first not in backends())
    assert pid(pool) != first
    control.execute("SELECT pg_advisory_unlock_all()")
    whole(pool)


# No cancel reaches it, so its queries must end by themselves when it is thawed.
ON_A_FROZEN_SERVER = {
    "cancel_timeout": 0.2,
    "options": "-c client_connection_check_interval=20ms",
}


@pytest.mark.parametrize("act", ACTS)
def test_interrupted_on_a_frozen_server_the_greenlet_ends_at_once(postgres_server, pg_pool, act):
    """psycopg's own blocks would wait for the server, to roll back or to end a COPY."""
    server = postgres_server
    pool = pg_pool(server.url, **ON_A_FROZEN_SERVER)
    pool.put(pool.get())
    with psycopg.connect(server.url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(1)")

        def use():
            with pool.item() as conn:
                act(conn)

        victim = spawn(use)
        gevent.sleep(0.05)
        server.freeze()
        with at_once(10):  # who waits for the server waits for ever
            victim.kill()
            assert victim.successful()
            until(lambda: pool.stats().destroying == 0)
        assert pool.free() == 1
        server.thaw()
    whole(pool)


def test_a_query_goes_on_where_no_cancel_is_sent(pg_pool, control, backends):
    pool = pg_pool(cancel_timeout=None)
    first = pid(pool)
    with Timeout(0.05, False), pool.item() as conn:
        conn.execute("SELECT pg_sleep(600)")
    assert pid(pool) != first
    assert "pg_sleep" in backends()[first]
    control.execute("SELECT pg_terminate_backend(%s)", [first])


def test_a_server_that_looks_after_its_clients_needs_no_cancel(pg_pool, backends):
    """For libpq before 17, which cannot cancel without blocking."""
    pool = pg_pool(cancel_timeout=None, options="-c client_connection_check_interval=20ms")
    first = pid(pool)
    with Timeout(0.05, False), pool.item() as conn:
        conn.execute("SELECT pg_sleep(600)")
    until(lambda: first not in backends())


@pytest.mark.parametrize("missing", [AttributeError, psycopg.NotSupportedError])
def test_where_psycopg_cannot_cancel_the_connection_is_closed_all_the_same(missing):
    """psycopg 3.1 has no such method, and with libpq 16 it raises."""

    class OldLibpq:
        transaction_status = TransactionStatus.ACTIVE
        pipeline_status = PipelineStatus.OFF
        finished = False

        def cancel_conn(self):
            raise missing

        def finish(self):
            self.finished = True

    conn = SimpleNamespace(pgconn=OldLibpq())
    _hang_up(conn)
    assert conn.pgconn.finished


@pytest.mark.parametrize("error", [None, LookupError, Timeout])
def test_given_back_while_another_greenlet_waits_with_it(pg_pool, backends, error):
    """What psycopg's C code works with is not freed under it: that crashes the process."""
    pool = pg_pool()
    with suppress(LookupError, Timeout), pool.item() as conn:
        other = spawn(conn.execute, "SELECT pg_sleep(600)")
        until(lambda: any("pg_sleep" in query for query in backends().values()))
        if error is not None:
            raise error
    with pytest.raises(psycopg.OperationalError, match="closed"):
        other.get(timeout=10)
    assert conn.closed
    whole(pool)
    until(lambda: not any("pg_sleep" in query for query in backends().values()))


def test_not_freed_before_the_last_who_waits_with_it_is_gone(pg_pool):
    with pg_pool().item() as conn:
        other = spawn(conn.execute, "SELECT pg_sleep(600)")
        until(lambda: conn.info.transaction_status == TransactionStatus.ACTIVE)
        _hang_up(conn)
        assert not conn.closed
        with pytest.raises(psycopg.OperationalError, match="closed"):
            other.get(timeout=10)
        assert conn.closed


def test_a_timeout_caught_inside_the_block_leaves_a_closed_connection(pg_pool):
    """Not one with a query running, whose answers would come to the next command."""
    pool = pg_pool()
    with pool.item() as conn:
        with Timeout(0.05, False):
            conn.execute("SELECT pg_sleep(600)")
        assert conn.closed
        assert conn.broken
        with pytest.raises(psycopg.OperationalError, match="closed"):
            conn.execute("SELECT 1")
    whole(pool)


def test_a_timeout_while_waiting_for_notifications_costs_nothing(pg_pool, control):
    pool = pg_pool(autocommit=True, discard_all=True)
    first = pid(pool)
    with pool.item() as conn:
        conn.execute("LISTEN x")
        with Timeout(0.05, False):
            next(conn.notifies())
        assert one(conn, "SELECT 1") == 1
        control.execute("NOTIFY x, 'hello'")
        assert next(conn.notifies()).payload == "hello"
    assert pid(pool) == first


def test_killed_while_it_rolls_back_on_return(postgres_server, pg_pool):
    server = postgres_server
    pool = pg_pool(server.url, **ON_A_FROZEN_SERVER)
    conn = pool.get()
    conn.execute("SELECT 1")
    server.freeze()
    victim = spawn(pool.put, conn)
    settle()
    with at_once():
        victim.kill()
        until(lambda: pool.stats().destroying == 0)
    assert pool.free() == 1
    server.thaw()
    whole(pool)


def test_a_rollback_on_a_frozen_server_is_cut_off(postgres_server, pg_pool, caplog):
    server = postgres_server
    pool = pg_pool(server.url, **ON_A_FROZEN_SERVER, reset_timeout=0.2)
    conn = pool.get()
    conn.execute("SELECT 1")
    server.freeze()
    caplog.set_level(logging.INFO)
    with at_once():
        pool.put(conn)
        until(lambda: pool.stats().destroying == 0)
    assert "did not answer within 0.2 s" in caplog.text
    assert pool.free() == 1
    server.thaw()
    whole(pool)


# Interrupted while connecting


@pytest.mark.parametrize("ending", [gevent.GreenletExit(), Timeout(0)])
def test_interrupted_while_connecting_nothing_stays_open(
    postgres_server, proxy_to, pg_pool, ending
):
    """Not even while somebody keeps the error, whose frames have the connection."""
    proxy = proxy_to(postgres_server)
    pool = pg_pool(f"postgresql://postgres@{proxy.host}:{proxy.port}/postgres")
    errors = []

    def get():
        try:
            pool.get()
        except BaseException as error:
            errors.append(error)

    for k in (0, 1, 9, 100):
        proxy.script = [hang(k)]
        victim = spawn(get)
        assert proxy.stopped.wait(10)
        settle()
        victim.kill(ending)
        with at_once():
            until(lambda: hung_up(proxy.links[-1].client))
        proxy.resume()
        assert pool.free() == 1
    assert errors == [ending] * 4
    whole(pool)


def test_a_connect_timeout_leaves_nothing_open(postgres_server, proxy_to, pg_pool):
    proxy = proxy_to(postgres_server, hang())
    url = f"postgresql://postgres@{proxy.host}:{proxy.port}/postgres?connect_timeout=2"
    pool = pg_pool(url, max_creating=1)
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        pool.get()
    assert pool._book.creator.last_error is not None  # which has frames
    with at_once():
        until(lambda: hung_up(proxy.links[-1].client))


# Outages


def test_a_server_killed_and_restarted_costs_no_user_an_error(start_server, pg_pool):
    server = start_server(PostgresServer)
    pool = pg_pool(server.url, max_size=50, max_creating=8)
    items = [pool.get() for _ in range(50)]
    for item in items:
        pool.put(item)
    server.kill9()
    server.start()
    served = []

    def use(n):
        with pool.connection(timeout=20) as conn:
            served.append(one(conn, "SELECT %s::int", [n]))

    users = [spawn(use, n) for n in range(100)]
    gevent.joinall(users, timeout=30)
    assert [user.exception for user in users] == [None] * 100
    assert sorted(served) == list(range(100))
    assert pool.current_size <= 50


def test_connections_that_the_server_closes_for_idleness_are_replaced(pg_pool):
    pool = pg_pool(max_size=2, autocommit=True)
    items = [pool.get(), pool.get()]
    for item in items:
        pool.put(item)
    for item in items:  # no others: on a busy machine these would end in use
        item.execute("SET idle_session_timeout = '50ms'")
    until(lambda: hung_up(items[0]) and hung_up(items[1]))
    whole(pool)


def test_a_frozen_server_costs_each_user_his_timeout_and_no_slot(postgres_server, pg_pool):
    server = postgres_server
    pool = pg_pool(server.url, max_size=3, **ON_A_FROZEN_SERVER, connect_timeout=30)
    whole(pool)
    server.freeze()
    outcomes = []

    def use():
        try:
            with Timeout(0.3), pool.connection() as conn:
                conn.execute("SELECT 1")
        except Timeout:
            outcomes.append("late")

    with Timeout(10):
        gevent.joinall([spawn(use) for _ in range(12)])
    assert outcomes == ["late"] * 12
    until(lambda: pool.free() == 3)
    server.thaw()
    whole(pool)


@pytest.mark.parametrize("where", ["before it accepts", "connecting", "in a query"])
def test_a_black_hole_costs_each_user_his_timeout_and_no_slot(
    postgres_server, proxy_to, pg_pool, where
):
    proxy = proxy_to(postgres_server)
    url = f"postgresql://postgres@{proxy.host}:{proxy.port}/postgres"
    pool = pg_pool(url, max_size=3, cancel_timeout=0.2)  # nor is a cancel answered
    if where == "in a query":
        whole(pool)

    def use():
        with Timeout(0.1), pool.connection() as conn:
            conn.execute("SELECT 1")

    with swallowed(proxy, where):
        users = [spawn(use) for _ in range(9)]
        gevent.joinall(users, timeout=10)
        assert [type(user.exception) for user in users] == [Timeout] * 9
        until(lambda: pool.free() == 3)
        assert pool.waiting() == 0
    whole(pool)


def test_a_refusing_server_is_told_at_once(start_server, pg_pool):
    server = start_server(PostgresServer)
    pool = pg_pool(server.url, max_creating=2)
    server.stop()
    for _ in range(5):
        with pytest.raises((psycopg.OperationalError, PoolUnavailable)):
            pool.get(timeout=5)
    assert pool.free() == 1
    server.start()
    until(lambda: not failing(pool))
    whole(pool)


def failing(pool):
    try:
        pool.put(pool.get(timeout=5))
    except (psycopg.OperationalError, PoolUnavailable):
        return True
    return False


def test_a_server_with_no_connections_left(start_server, pg_pool):
    server = start_server(PostgresServer, config={"max_connections": 6})
    pool = pg_pool(server.url, max_size=20, max_creating=4)
    served = []

    def use(n):
        while True:
            try:
                with pool.connection(timeout=20) as conn:
                    conn.execute("SELECT pg_sleep(0.005)")
                    served.append(n)
                    return
            except psycopg.OperationalError as error:
                assert "too many clients" in str(error) or "reserved" in str(error)  # noqa: PT017

    gevent.joinall([spawn(use, n) for n in range(40)], timeout=30)
    assert sorted(served) == list(range(40))


def test_the_slot_of_a_collected_connection_comes_back(pg_pool, backends):
    pool = pg_pool()
    conn = pool.get()
    assert pool.free() == 0
    with pytest.warns(ResourceWarning, match="deleted while still open"):
        del conn
    until(lambda: pool.free() == 1)
    whole(pool)
    until(lambda: len(backends()) == 1)


def test_waiters_are_not_slowed_down_by_a_query_that_is_cancelled(postgres_server, pg_pool):
    server = postgres_server
    pool = pg_pool(server.url, max_size=2, cancel_timeout=2.0)
    whole(pool)
    other = pool.get()
    with Timeout(0.05, False), pool.item() as conn:
        conn.execute("SELECT pg_sleep(600)")
    begun = time.monotonic()
    pool.put(other)
    assert pool.get(timeout=1) is other
    assert time.monotonic() - begun < 1
    pool.put(other)
