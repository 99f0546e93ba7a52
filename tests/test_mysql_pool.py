"""MySQLPool on a real MariaDB: whatever one user does, the next one finds nothing of it."""

# ruff: noqa: PT012  (what is in a block is what a user does)

import errno
import gc
import inspect
import logging
import os
import random
import socket as blocking
import sys
import traceback
import warnings
from contextlib import closing, contextmanager, suppress
from copy import copy
from functools import partial

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent import Timeout

from gpools import ConnectionPool, NotInUse, PoolError, PoolTimeout
from tests.chaos import children_born_while_it_connects, swallowed
from tests.databases import MariadbServer, MysqlServer
from tests.proxy import REPLY, REQUEST, close, hang, reset
from tests.servers import require_server
from tests.slots import assert_slots_are_taken_back, slotted
from tests.switching import high_fds, switches  # noqa: F401
from tests.test_byte_boundaries import Ordeal, at_every_byte, both_ways, every_ending
from tests.test_byte_boundaries import whole as whole_behind_proxy
from tests.tls import make_certificate
from tests.waiting import settle, spawn, until

pymysql = pytest.importorskip("pymysql")
from pymysql import err  # noqa: E402
from pymysql.constants import CLIENT  # noqa: E402
from pymysql.cursors import DictCursor, SSCursor  # noqa: E402

from gpools.adapters import mysql  # noqa: E402
from gpools.adapters.mysql import MySQLPool  # noqa: E402

ON_MYSQL = MysqlServer.missing() is None
OneServer = MysqlServer if ON_MYSQL else MariadbServer

WORD = "xyzzy-secret"  # a password, to be looked for where it must not be


@pytest.fixture(autouse=True)
def cooperative(monkeypatch):
    """Have PyMySQL switch greenlets where it waits for a socket."""
    monkeypatch.setattr(pymysql.connections, "socket", gevent.socket)
    monkeypatch.setattr(pymysql.connections, "ssl", gevent.ssl)


@pytest.fixture
def server(mariadb_server):
    """The shared server, with the database `main`, an empty table `t`, and nobody connected."""
    with control(mariadb_server) as conn:
        for statement in (
            "CREATE DATABASE IF NOT EXISTS main",
            "CREATE DATABASE IF NOT EXISTS other",
            "DROP TABLE IF EXISTS main.t",
            "CREATE TABLE main.t (id INT PRIMARY KEY, v VARCHAR(100)) ENGINE=InnoDB",
            "DROP PROCEDURE IF EXISTS main.two",
            "CREATE PROCEDURE main.two() BEGIN SELECT 'foreign'; SELECT 'foreign'; END",
        ):
            conn.query(statement)
        for number in connected(conn):
            with suppress(err.OperationalError):  # it may just have gone
                conn.kill(number)
        until(lambda: connected(conn) == [])
    return mariadb_server


@contextmanager
def control(server, **options):
    """A connection that is no pool's."""
    options = {"ssl_disabled": True, "autocommit": True} | options
    with closing(pymysql.connect(host=server.host, port=server.port, user="root", **options)) as c:
        yield c


def rows(conn, statement, *args):
    with conn.cursor(pymysql.cursors.Cursor) as cursor:
        cursor.execute(statement, args or None)
        return cursor.fetchall()


def one(conn, statement, *args):
    ((value,),) = rows(conn, statement, *args)
    return value


def connected(conn):
    """List the numbers of all clients but *conn*."""
    listed = rows(
        conn,
        "SELECT id FROM information_schema.processlist "
        "WHERE id <> CONNECTION_ID() AND user NOT IN ('system user', 'event_scheduler')",
    )
    return [number for (number,) in listed]


def ask(conn, tag):
    return one(conn, f"SELECT '{tag}'")


def number(pool):
    """Tell which connection the next user gets."""
    with pool.item() as conn:
        return one(conn, "SELECT CONNECTION_ID()")


@pytest.fixture
def mysql_pool(server):
    """`mysql_pool(server, ...)`: a MySQLPool of one connection, closed after the test."""
    pools = []

    def make(at=None, *args, pool_class=MySQLPool, **options):
        if at is not None:
            options = {"host": at.host, "port": at.port, "user": "root"} | options
        defaults = {"max_size": 1}
        if not args and "create" not in options:
            defaults |= {"ssl_disabled": True}
        pools.append(pool_class(*args, **(defaults | options)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def whole(pool, server):
    """Assert that the pool has all its slots, and each item a working connection of its own."""
    items = [pool.get(timeout=5) for _ in range(pool.max_size)]
    numbers = {one(item, "SELECT CONNECTION_ID()") for item in items}
    assert len(numbers) == pool.max_size
    assert pool.free() == 0
    with control(server) as conn:
        until(lambda: set(connected(conn)) == numbers)
    for item in items:
        pool.put(item)
    assert pool.free() == pool.current_size == pool.max_size


# Making connections


def test_from_keywords(server, mysql_pool):
    pool = mysql_pool(server, database="main", charset="latin1", cursorclass=DictCursor)
    with pool.item() as conn:
        assert isinstance(conn, pymysql.connections.Connection)
        with conn.cursor() as cursor:
            cursor.execute("SELECT DATABASE() AS d, @@character_set_client AS c")
            assert cursor.fetchall() == [{"d": "main", "c": "latin1"}]


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"])
def test_from_url(server, mysql_pool, scheme):
    url = f"{scheme}://root@{server.host}:{server.port}/main"
    pool = mysql_pool(
        None,
        f"{url}?charset=latin1&autocommit=true&connect_timeout=7&ssl_disabled=1",
        charset="utf8",
    )
    with pool.item() as conn:
        assert (conn.charset, conn.autocommit_mode, conn.connect_timeout) == ("utf8", True, 7)
        assert one(conn, "SELECT DATABASE()") == "main"


def test_a_url_is_decoded():
    pool = MySQLPool("mysql://%61nn:p%40%2Fss@[::1]:33/d%20b?unix_socket=/tmp/s")
    model = pool._mysql
    assert (model.user, model.password, model.db) == ("ann", b"p@/ss", "d b")
    assert (model.host, model.port, model.unix_socket) == ("::1", 33, "/tmp/s")


def test_unix_socket(server, mysql_pool):
    pool = mysql_pool(unix_socket=str(server.unixsocket), user="root")
    assert number(pool) == number(pool)


@pytest.mark.parametrize(
    "options",
    [
        {"defer_connect": True},
        {"no_such_option": 1},
        {"reset_timeout": 0},
        {"port": "3306"},
        {"connect_timeout": 0},
        {"max_size": 0},
        {"url": "postgres://h/d"},
        {"url": f"mysql://user:{WORD}/with@host/d"},
        {"url": f"mysql://user:{WORD}@[host/d"},
        {"url": "mysql://h/d?connect_timeout=x"},
        {"url": "mysql://h/d?autocommit=perhaps"},
        {"url": "mysql://h/d?no_such_option=1"},
    ],
    ids=str,
)
def test_nonsense_is_refused_at_once(options):
    with pytest.raises((TypeError, ValueError)) as caught:
        MySQLPool(**options)
    assert WORD not in "".join(traceback.format_exception(caught.value))


class Own(pymysql.connections.Connection):
    """With a method of one's own."""

    def hello(self):
        return ask(self, "hello")


class OwnPool(MySQLPool):
    def create(self):
        conn = super().create()
        conn.mark = "mine"
        return conn


@pytest.mark.parametrize("kind", [pymysql.connect, Own, "subclass", "unconnected"])
def test_connections_of_ones_own_are_as_safe(server, mysql_pool, kind):
    options = {"host": server.host, "port": server.port, "user": "root", "ssl_disabled": True}
    if kind == "subclass":
        pool = mysql_pool(server, pool_class=OwnPool)
    elif kind == "unconnected":
        pool = mysql_pool(create=lambda: pymysql.connect(**options, defer_connect=True))
    else:
        pool = mysql_pool(create=lambda: kind(**options, init_command="SET @i=1"))
    with pool.item() as conn:
        first = one(conn, "SELECT CONNECTION_ID()")
        assert getattr(conn, "mark", "mine") == "mine"
        if kind is Own:
            assert conn.hello() == "hello"
        conn.query("SET @x=1")
        conn.ping()
    with pool.item() as conn:
        assert rows(conn, "SELECT CONNECTION_ID(), @x") == ((first, None),)
        assert one(conn, "SELECT @i") == (1 if kind in (pymysql.connect, Own) else None)
        with Timeout(0.02, False):
            conn.query("SELECT SLEEP(0.2)")
        assert not conn.open
    whole(pool, server)


@pytest.mark.parametrize("plain", [False, True])
def test_what_create_says_is_not_lost_in_a_reset(server, mysql_pool, plain):
    """The first user would have had it, and all others not."""

    class Saying(MySQLPool):
        def create(self):
            conn = super().create()
            if plain:
                conn.close()
                conn = pymysql.connect(
                    host=server.host, port=server.port, user="root", ssl_disabled=True
                )
            conn.query("SET time_zone = '+03:00'")
            return conn

    pool = mysql_pool(server, pool_class=Saying)
    with pytest.raises(PoolError, match="init_command"):
        pool.get()
    assert pool.current_size == 0
    kept = mysql_pool(server, pool_class=Saying, reset_session=False)
    for _ in range(2):
        with kept.item() as conn:
            assert one(conn, "SELECT @@time_zone") == "+03:00"


def test_create_may_ping(server, mysql_pool):
    class Pinging(MySQLPool):
        def create(self):
            conn = super().create()
            conn.ping()
            return conn

    pool = mysql_pool(server, pool_class=Pinging)
    assert number(pool) == number(pool)


def test_a_connection_of_mysqlclient_is_refused_with_advice(mysql_pool):
    closed = []

    class Connection:
        __module__ = "MySQLdb.connections"

        def close(self):
            closed.append(self)

    pool = mysql_pool(create=Connection)
    with pytest.raises(PoolError, match=r"MySQLdb stops all greenlets.*take PyMySQL"):
        pool.get()
    assert pool.current_size == 0
    assert len(closed) == 1


def test_what_is_no_connection_is_refused(mysql_pool):
    with pytest.raises(PoolError, match=r"returned a builtins\.object; make it with"):
        mysql_pool(create=object).get()


def test_no_verb_of_the_core_is_overridden():
    for verb in ("get", "put", "item", "discard"):
        assert inspect.getattr_static(MySQLPool, verb) is inspect.getattr_static(
            ConnectionPool, verb
        )


def test_the_certificates_of_all_authorities_are_read_once(server, monkeypatch):
    """25 ms for each connection, in which nobody else ran."""
    read = []
    create = gevent.ssl.create_default_context
    monkeypatch.setattr(
        gevent.ssl, "create_default_context", lambda **how: read.append(1) or create(**how)
    )
    with MySQLPool(host=server.host, port=server.port, user="root", max_size=3) as pool:
        items = [pool.get() for _ in range(3)]
        for item in items:
            pool.put(item)
    assert len(read) <= 1  # PyMySQL 1.1 makes no context unless asked to


def test_connections_share_no_settings(server, mysql_pool):
    pool = mysql_pool(server, max_size=2)
    one_, two = pool.get(), pool.get()
    assert one_.encoders is not two.encoders
    assert one_.decoders is not two.decoders
    assert pool._mysql._sock is None
    pool.put(one_)
    pool.put(two)


# What one user leaves, the next does not find

STATE = """SELECT @x, @@autocommit, @@time_zone, @@sql_mode, @@character_set_client,
    @@character_set_results, @@collation_connection, DATABASE(), IS_USED_LOCK('l'),
    LAST_INSERT_ID(), @@{tx}_isolation, @@session.{tx}_read_only, @@sql_safe_updates,
    @@foreign_key_checks, @i"""
STATE = STATE.format(tx="transaction") if ON_MYSQL else STATE.format(tx="tx") + ", @@in_transaction"


# What is the wire's, or the pool's own.
NOT_STATE = """_sock _rfile _result _affected_rows _next_seq_id _current_timeout server_status
    used _told _moved _refused _reading _sending _interrupt _as_made _cursors""".split()  # noqa: SIM905


def state(conn):
    attributes = {name: copy(value) for name, value in vars(conn).items() if name not in NOT_STATE}
    return rows(conn, STATE), attributes


def says(*statements):
    def leave(conn, kept):
        for statement in statements:
            with conn.cursor() as cursor:
                cursor.execute(statement)

    return leave


def does(act):
    return lambda conn, kept: act(conn)


def fails(statement, error=err.MySQLError):
    def leave(conn, kept):
        with pytest.raises(error):
            conn.query(statement)

    return leave


def insert(conn, kept):
    if conn.get_autocommit():
        conn.begin()
    conn.query("INSERT INTO main.t VALUES (1, 'x')")


# Undone in both modes.
LEFT = {
    "nothing": lambda conn, kept: None,
    "a transaction": insert,
    "BEGIN": does(lambda conn: conn.begin()),
    "a snapshot": says("START TRANSACTION WITH CONSISTENT SNAPSHOT"),
    "a read": says("SELECT * FROM main.t"),
    "a read for update": says("SELECT * FROM main.t FOR UPDATE"),
    "a failed insert": lambda conn, kept: [
        insert(conn, kept),
        fails("INSERT INTO main.t VALUES (1, 'x')")(conn, kept),
    ],
    "XA": says("XA START 'x'", "INSERT INTO main.t VALUES (1, 'x')"),
    "SET autocommit": says("SET autocommit = 1 - @@autocommit"),
    "autocommit()": does(lambda conn: conn.autocommit(not conn.get_autocommit())),
    "select_db": does(lambda conn: conn.select_db("other")),
    "USE": says("USE other"),
    "  use": says("  use other"),
    "set_character_set": does(lambda conn: conn.set_character_set("cp1251")),
    "a collation": does(lambda conn: conn.set_character_set("utf8mb4", "utf8mb4_bin")),
    "cursorclass": does(lambda conn: setattr(conn, "cursorclass", DictCursor)),
    "charset, encoding": does(lambda conn: vars(conn).update(charset="gbk", encoding="gbk")),
    "decoders": does(lambda conn: conn.decoders.clear()),
    "encoders": does(lambda conn: conn.encoders.update({int: lambda *_: "'foreign'"})),
    "timeouts": does(lambda conn: vars(conn).update(_read_timeout=0.001, _write_timeout=0.001)),
    "a timeout of the socket": does(lambda conn: conn._sock.settimeout(0.001)),
    "an attribute": does(lambda conn: setattr(conn, "tenant", "foreign")),
    "use_unicode": does(lambda conn: setattr(conn, "use_unicode", False)),
    "close": does(lambda conn: conn.close()),
    "a with block of its own": does(lambda conn: conn.__enter__().__exit__(None, None, None)),
    "the handle": lambda conn, kept: kept.append(conn.cursor()),
    "multiple results": lambda conn, kept: kept.append(conn.query("CALL main.two()")),
}

# Undone by a reset.
LEFT_IN_THE_SESSION = {
    "SET @x": says("SET @x = 1"),
    "@x :=": says("SELECT @x := 1"),
    "SET time_zone": says("SET time_zone = '+03:00'"),
    "SET NAMES": says("SET NAMES cp1251"),
    "SET sql_mode": says("SET sql_mode = 'NO_BACKSLASH_ESCAPES'"),
    "SET TRANSACTION": says("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY"),
    "GET_LOCK": says("SELECT GET_LOCK('l', 1)"),
    "LOCK TABLES": says("LOCK TABLES main.t WRITE"),
    "FLUSH TABLES WITH READ LOCK": says("FLUSH TABLES WITH READ LOCK"),
    "a temporary table": says("CREATE TEMPORARY TABLE main.tmp (x INT)"),
    "one that hides another": says("CREATE TEMPORARY TABLE main.t (x INT)"),
    "PREPARE": says("PREPARE p FROM 'SELECT 1'"),
    "HANDLER": says("HANDLER main.t OPEN AS h"),
    "LAST_INSERT_ID": says("SELECT LAST_INSERT_ID(5)"),
    "a hidden USE": says("/* hidden */ USE other"),
}

CAME_AS = {
    "plain": {},
    "database": {"database": "main"},
    "all": {
        "database": "main",
        "autocommit": True,
        "charset": "latin1",
        "collation": "latin1_bin",
        "sql_mode": "ANSI_QUOTES,NO_BACKSLASH_ESCAPES",
        "init_command": "SET @i = 1, time_zone = '+01:00', autocommit = 0",
    },
    "server's": {"autocommit": None, "init_command": "SET autocommit = 0"},
}


def came_as(*lefts):
    """Each with one set of options or another, and some with each of them."""
    return pytest.mark.parametrize(
        ("left", "options"),
        [
            pytest.param(left, options, id=f"{left}-{name}")
            for left in lefts
            for name, options in CAME_AS.items()
            if name in ("plain", "all") or left in ("nothing", "a transaction", "select_db")
        ],
    )


def look_for_traces(server, pool, leave):
    kept = []
    with pool.item() as conn:
        fresh = state(conn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MariaDB's, of a rolled back temporary table
        with pool.item() as conn:
            leave(conn, kept)
    with pool.item() as conn:
        found = state(conn)
        for of_the_session in zip(fresh[0], found[0], strict=True):
            assert of_the_session[0] == of_the_session[1]
        thread = ("server_thread_id", "salt")  # it may be another connection
        for attributes in (fresh[1], found[1]):
            for name in thread:
                del attributes[name]
        assert fresh[1] == found[1]
        assert ask(conn, "mine") == "mine"
        assert one(conn, "SELECT SLEEP(0.01)") == 0  # no timeout of somebody else's
        assert rows(conn, "SELECT * FROM main.t") == ()
        conn.query(f"""INSERT INTO main.t VALUES (1, {conn.escape("o'x" + chr(92))})""")
        assert one(conn, "SELECT v FROM main.t") == "o'x\\"
        for statement in ("SELECT * FROM main.tmp", "EXECUTE p", "HANDLER h CLOSE"):
            fails(statement)(conn, kept)
        conn.rollback()
        conn.query("DELETE FROM main.t")
        conn.commit()
    with control(server) as conn:
        conn.query("SET lock_wait_timeout = 1, innodb_lock_wait_timeout = 1")
        conn.query("ALTER TABLE main.t COMMENT 'nobody has it'")
        assert one(conn, "SELECT GET_LOCK('l', 0)") == 1
        conn.query("FLUSH TABLES WITH READ LOCK")
    whole(pool, server)


@came_as(*LEFT, *LEFT_IN_THE_SESSION)
def test_a_reset_leaves_nothing_for_the_next_user(server, mysql_pool, left, options):
    leave = {**LEFT, **LEFT_IN_THE_SESSION}[left]
    look_for_traces(server, mysql_pool(server, **options), leave)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("own", [None, "it`s"])
def test_a_role_is_not_the_next_users(server, mysql_pool, own, plain):
    """A reset keeps it, and with it the rights that it gives."""
    to = "TO" if ON_MYSQL else "FOR"
    with control(server) as conn:
        for statement in (
            "DROP ROLE IF EXISTS boss, `it``s`",
            "CREATE ROLE boss, `it``s`",
            "DROP USER IF EXISTS clerk",
            "CREATE USER clerk",
            "GRANT boss TO clerk",
            "GRANT `it``s` TO clerk",
            f"SET DEFAULT ROLE {'NONE' if own is None else '`it``s`'} {to} clerk",
        ):
            conn.query(statement)
    if ON_MYSQL:
        own = "NONE" if own is None else "`it``s`@`%`"
    options = {"host": server.host, "port": server.port, "user": "clerk", "ssl_disabled": True}
    if plain:
        options = {"create": lambda options=options: pymysql.connect(**options)}
    pool = mysql_pool(**options)
    first = number(pool)
    with pool.item() as conn:
        assert one(conn, "SELECT CURRENT_ROLE()") == own
        conn.query("SET ROLE boss")
    with pool.item() as conn:
        assert one(conn, "SELECT CURRENT_ROLE()") == own
    assert number(pool) == first


def test_a_server_that_knows_no_roles(server, mysql_pool, monkeypatch):
    """As MySQL before 8.0, which this stands for."""
    query = mysql.PooledConnection.query

    def old(conn, sql, *args):
        query(conn, sql.replace("CURRENT_ROLE()", "main.current_role()"), *args)

    monkeypatch.setattr(mysql.PooledConnection, "query", old)
    pool = mysql_pool(server)
    first = number(pool)
    with pool.item() as conn:
        conn.query("SET @x = 1")
    with pool.item() as conn:
        assert rows(conn, "SELECT CONNECTION_ID(), @x") == ((first, None),)


def test_a_connection_lost_before_its_role_is_known_is_an_error(server, mysql_pool, proxy_to):
    """Else it would go out with no reset of the role."""
    pool = mysql_pool(proxy := proxy_to(server))
    pool.put(pool.get())
    length = len(proxy.links[0].reply)
    pool.discard(pool.get())
    proxy.script = [close(length - 3)]
    with pytest.raises(err.OperationalError):
        pool.get()
    assert pool.current_size == 0
    whole(pool, server)


@came_as(*LEFT)
def test_a_rollback_leaves_no_transaction_for_the_next_user(server, mysql_pool, left, options):
    pool = mysql_pool(server, reset_session=False, **options)
    look_for_traces(server, pool, LEFT[left])


@pytest.mark.parametrize("left", ["SET @x", "GET_LOCK", "a temporary table", "PREPARE"])
def test_a_rollback_keeps_the_session(server, mysql_pool, left):
    """As the documentation says, and so that the test of the reset can fail."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        look_for_traces(server, mysql_pool(server, reset_session=False), LEFT_IN_THE_SESSION[left])


@pytest.mark.parametrize("reset_session", [True, False])
@pytest.mark.parametrize(
    "leave", ["nothing", "a transaction", "a read", "a failed insert", "autocommit()", "the handle"]
)
def test_what_can_be_undone_keeps_the_connection(server, mysql_pool, leave, reset_session):
    pool = mysql_pool(server, reset_session=reset_session)
    first = number(pool)
    with pool.item() as conn:
        LEFT[leave](conn, [])
    assert number(pool) == first


def test_what_a_user_puts_into_a_slot_reaches_nobody(server, mysql_pool):
    make = partial(slotted(pymysql.connections.Connection), host=server.host, user="root")
    assert_slots_are_taken_back(mysql_pool(create=partial(make, port=server.port)))


@pytest.mark.parametrize("reset_session", [True, False])
def test_an_unused_connection_is_not_reset(server, mysql_pool, reset_session):
    pool = mysql_pool(server, reset_session=reset_session)
    with pool.item() as conn:
        pass
    with control(server) as watch:
        before = rows(watch, "SHOW GLOBAL STATUS LIKE 'Questions'")
        with switches() as count, pool.item() as conn:
            conn.decoders = {}
        assert count() == 0
        assert (
            int(rows(watch, "SHOW GLOBAL STATUS LIKE 'Questions'")[0][1]) == int(before[0][1]) + 1
        )


def questions(server, act):
    """Count the commands that *act* has the server answer."""
    with control(server) as watch:
        (before,) = rows(watch, "SHOW GLOBAL STATUS LIKE 'Questions'")
        act()
        (after,) = rows(watch, "SHOW GLOBAL STATUS LIKE 'Questions'")
    return int(after[1]) - int(before[1]) - 1


@pytest.mark.parametrize(
    ("options", "statement", "commands"),
    [
        ({}, "SELECT * FROM main.t", 4),
        ({"database": "main"}, "SELECT * FROM main.t", 4),
        ({"reset_session": False}, "SELECT * FROM main.t", 2),
        ({"reset_session": False}, "SELECT 1", 1),
        ({"reset_session": False, "autocommit": True}, "SELECT * FROM main.t", 1),
    ],
)
def test_no_more_round_trips_than_the_docs_say(server, mysql_pool, options, statement, commands):
    pool = mysql_pool(server, **options)
    pool.put(pool.get())

    def use():
        with pool.item() as conn:
            conn.query(statement)

    # MySQL sets a role in a statement of its own.
    more = ON_MYSQL and options.get("reset_session", True)
    assert questions(server, use) == commands + more


def test_a_cursor_kept_past_the_block_is_closed(server, mysql_pool):
    pool = mysql_pool(server)
    with pool.item() as conn:
        cursor = conn.cursor()
        cursor.execute("SELECT 'theirs'")
    with pool.item() as conn:
        with pytest.raises(err.ProgrammingError, match="closed"):
            cursor.execute("SET @x = 1")
        assert one(conn, "SELECT @x") is None
        cursor.close()
        assert ask(conn, "mine") == "mine"


def test_the_first_user_changes_nothing_for_the_second(server, mysql_pool):
    """His are the very dictionaries that the connection was made with."""
    pool = mysql_pool(server)
    with pool.item() as conn:
        conn.decoders.clear()
        conn.encoders.clear()
    with pool.item() as conn:
        assert one(conn, "SELECT 1") == 1
        assert one(conn, "SELECT %s", 2) == 2


@pytest.mark.parametrize("reset_session", [True, False])
def test_the_numbers_of_the_last_statement_are_nobody_elses(server, mysql_pool, reset_session):
    pool = mysql_pool(server, reset_session=reset_session, autocommit=True)
    with pool.item() as conn:
        first = one(conn, "SELECT CONNECTION_ID()")
        conn.query("INSERT INTO main.t VALUES (LAST_INSERT_ID(7), 'x')")
        assert (conn.insert_id(), conn.affected_rows()) == (7, 1)
    with pool.item() as conn:
        assert (conn.insert_id(), conn.affected_rows()) == (0, 0)
        assert one(conn, "SELECT CONNECTION_ID()") == first


# Results that nobody has read

MANY = "SELECT seq FROM main.seq_1_to_200000"


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("reset_session", [True, False])
def test_a_streaming_result_half_read_is_not_the_next_users(
    server, mysql_pool, reset_session, kept
):
    pool = mysql_pool(server, database="main", reset_session=reset_session)
    first = number(pool)
    with pool.item() as conn:
        cursor = conn.cursor(SSCursor)
        cursor.execute(MANY)
        assert cursor.fetchone() == (1,)
        if not kept:
            cursor.close()  # reads it to its end
    assert (number(pool) == first) is not kept
    if kept:
        with pytest.raises(err.InterfaceError):
            cursor.fetchone()  # not None, as at its end
    del cursor
    gc.collect()  # and no error that nobody can catch
    whole(pool, server)


def test_the_end_of_a_lost_streaming_result_is_an_error(server, mysql_pool):
    pool = mysql_pool(server, database="main")
    with pool.item() as conn:
        cursor = conn.cursor(SSCursor)
        cursor.execute("SELECT seq, IF(seq < 9000, 0, SLEEP(5)) FROM seq_1_to_9000")
        with Timeout(0.05, False):
            cursor.fetchall()
        assert not conn.open
        with pytest.raises(err.InterfaceError):
            cursor.fetchone()
        del cursor
        gc.collect()


def test_after_an_error_amid_a_streaming_result_a_transaction_may_be_open(server, mysql_pool):
    """The status that came before the rows does not know what they have done."""
    pool = mysql_pool(server, database="main", reset_session=False, autocommit=True)
    with pool.item() as conn, conn.cursor(SSCursor) as cursor:
        cursor.execute("SELECT IF(seq < 9000, seq, (SELECT 1 UNION SELECT 2)) FROM seq_1_to_9000")
        assert not conn.in_transaction
        with pytest.raises(err.OperationalError):
            cursor.fetchall()
        assert conn.in_transaction
        conn.rollback()
        assert not conn.in_transaction
        assert ask(conn, "mine") == "mine"


def test_results_that_are_left_are_read_by_the_reset(server, mysql_pool):
    pool = mysql_pool(server, client_flag=CLIENT.MULTI_STATEMENTS)
    first = number(pool)
    with pool.item() as conn:
        conn.query("SELECT 'foreign'; SELECT 'foreign'; SELECT 'foreign'")
    assert number(pool) == first
    with pool.item() as conn:
        conn.query("SELECT 'foreign'; SELECT SLEEP(0.05); SELECT nonsense")
    with pool.item() as conn:
        assert ask(conn, "mine") == "mine"


def test_a_reset_that_takes_too_long_ends_the_connection(server, mysql_pool):
    pool = mysql_pool(server, client_flag=CLIENT.MULTI_STATEMENTS, reset_timeout=0.05)
    first = number(pool)
    with Timeout(2), pool.item() as conn:
        conn.query("SELECT 'foreign'; SELECT SLEEP(30)")
    assert number(pool) != first


class Odd(Exception):
    pass


def odd(value):
    raise Odd


@pytest.mark.parametrize("error", [Odd, err.DataError])
@pytest.mark.parametrize("reset_session", [True, False])
def test_rows_behind_one_that_cannot_be_read_are_not_the_next_answer(
    server, mysql_pool, reset_session, error
):
    def convert(value):
        raise error

    pool = mysql_pool(server, database="main", reset_session=reset_session)
    with pool.item() as conn:
        conn.decoders[pymysql.constants.FIELD_TYPE.LONGLONG] = convert
        with pytest.raises(error):
            conn.query("SELECT seq FROM seq_1_to_600")
        with suppress(err.InterfaceError):
            assert ask(conn, "goes on") == "goes on"
    with pool.item() as conn:
        assert ask(conn, "mine") == "mine"
    whole(pool, server)


def test_warnings_that_cannot_be_read_are_not_the_next_answer(server, mysql_pool):
    with mysql_pool(server).item() as conn:
        conn.decoders[pymysql.constants.FIELD_TYPE.LONG] = odd
        conn.query("SELECT 1 / 0 FROM main.seq_1_to_3")
        with pytest.raises(Odd):
            conn.show_warnings()
        assert not conn.open


def test_text_that_cannot_be_decoded_leaves_no_rows_behind(server, mysql_pool):
    pool = mysql_pool(server, database="main")
    with pool.item() as conn, suppress(err.InterfaceError):
        conn.encoding = "ascii"
        with pytest.raises(UnicodeDecodeError):
            rows(conn, "SELECT _utf8mb4 0xC3A9 FROM seq_1_to_600")
        assert ask(conn, "goes on") == "goes on"
    with pool.item() as conn:
        assert ask(conn, "mine") == "mine"


@pytest.mark.parametrize("missing", [True, False])
def test_a_local_file(server, mysql_pool, tmp_path, missing):
    path = tmp_path / "rows"
    if not missing:
        path.write_text("1\tx\n")
    pool = mysql_pool(server, local_infile=True)
    with suppress(err.OperationalError), pool.item() as conn:
        conn.query(f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE main.t")
        assert not missing
    with pool.item() as conn:
        assert rows(conn, "SELECT * FROM main.t") == ()
        assert ask(conn, "mine") == "mine"


# Interrupted

BIG = "SELECT LENGTH('" + "x" * 8_000_000 + "')"


def interrupt(user, how):
    user.kill(gevent.GreenletExit if how == "killed" else Timeout(0), block=False)
    user.join(5)
    assert user.ready()
    assert user.exception is None or isinstance(user.exception, Timeout)


def used(pool, statement, caught=False, cursorclass=None):
    with pool.item() as conn, conn.cursor(cursorclass) as cursor:
        try:
            cursor.execute(statement)
            cursor.fetchall()
        except Timeout:
            if not caught:
                raise
        assert not conn.open


how_it_ends = pytest.mark.parametrize("how", ["killed", "timed out", "caught"])


@how_it_ends
def test_killed_while_reading_is_destroyed(server, mysql_pool, how):
    pool = mysql_pool(server)
    first = number(pool)
    user = spawn(used, pool, "SELECT 'foreign', SLEEP(600)", how == "caught")
    gevent.sleep(0.02)
    interrupt(user, how)
    with pool.item() as conn:
        assert one(conn, "SELECT CONNECTION_ID()") != first
        assert ask(conn, "mine") == "mine"


@how_it_ends
def test_killed_while_writing_is_destroyed(server, mysql_pool, proxy_to, how):
    proxy = proxy_to(server)
    pool = mysql_pool(proxy)
    first = number(pool)
    proxy.links[0].fault = hang(len(proxy.links[0].request) + 100_000, REQUEST)
    user = spawn(used, pool, BIG, how == "caught")
    assert proxy.stopped.wait(5)
    interrupt(user, how)
    with Timeout(5), pool.item() as conn:
        assert one(conn, "SELECT CONNECTION_ID()") != first
        assert ask(conn, "mine") == "mine"
    proxy.resume()
    whole(pool, server)


def test_a_naive_pool_hangs_after_a_kill_while_writing(server, proxy_to):
    """So the test above can fail: PyMySQL stays open, half a statement sent."""
    proxy = proxy_to(server)
    with control(proxy) as conn:
        proxy.links[0].fault = hang(len(proxy.links[0].request) + 100_000, REQUEST)
        with Timeout(0.3, False):
            conn.query(BIG)
        proxy.resume()
        assert conn.open
        with pytest.raises(Timeout), Timeout(0.3):
            ask(conn, "mine")
        conn._force_close()


@how_it_ends
def test_killed_while_sending_a_local_file_is_destroyed(
    server, mysql_pool, proxy_to, tmp_path, how
):
    """PyMySQL's error of a failed goodbye took the place of the kill, and of the Timeout."""
    path = tmp_path / "rows"
    path.write_text("".join(f"{row}\t{'x' * 90}\n" for row in range(80_000)))
    proxy = proxy_to(server)
    pool = mysql_pool(proxy, local_infile=True)
    first = number(pool)
    proxy.links[0].fault = hang(len(proxy.links[0].request) + 100_000, REQUEST)
    load = f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE main.t"
    user = spawn(used, pool, load, how == "caught")
    assert proxy.stopped.wait(5)
    interrupt(user, how)
    proxy.resume()
    assert number(pool) != first


@how_it_ends
def test_killed_while_streaming_is_destroyed(server, mysql_pool, proxy_to, how):
    proxy = proxy_to(server)
    pool = mysql_pool(proxy, database="main")
    first = number(pool)
    proxy.links[0].fault = hang(len(proxy.links[0].reply) + 100_000, REPLY)
    user = spawn(used, pool, MANY, how == "caught", SSCursor)
    assert proxy.stopped.wait(5)
    interrupt(user, how)
    proxy.resume()
    assert number(pool) != first
    gc.collect()
    whole(pool, server)


def test_an_interrupted_transaction_is_rolled_back(server, mysql_pool):
    pool = mysql_pool(server)
    with pytest.raises(Timeout), Timeout(0.05), pool.connection() as conn:
        conn.query("INSERT INTO main.t VALUES (1, 'x')")
        gevent.sleep(1)
    with pool.item() as conn:
        until(lambda: rows(conn, "SELECT * FROM main.t FOR UPDATE") == ())


def test_interrupted_while_it_is_reset(server, mysql_pool, proxy_to):
    proxy = proxy_to(server)
    pool = mysql_pool(proxy)
    first = number(pool)
    with pytest.raises(Timeout), Timeout(0.1), pool.item() as conn:
        ask(conn, "x")
        proxy.links[0].fault = hang(len(proxy.links[0].reply) + 3, REPLY)
    proxy.resume()
    assert number(pool) != first
    whole(pool, server)


# Errors


def lock_wait(conn, server):
    with control(server, autocommit=False) as other:
        other.query("INSERT INTO main.t VALUES (1, 'x')")
        conn.query("SET innodb_lock_wait_timeout = 1")
        conn.query("INSERT INTO main.t VALUES (1, 'y')")


def deadlock(conn, server):
    with control(server, autocommit=False) as other:
        for who, row in ((other, 1), (conn, 2)):
            who.query(f"INSERT INTO main.t VALUES ({row}, 'x')")
        for row in range(10, 40):
            other.query(f"INSERT INTO main.t VALUES ({row}, 'x')")
        waiter = spawn(other.query, "SELECT * FROM main.t WHERE id = 2 FOR UPDATE")
        gevent.sleep(0.05)
        try:
            conn.query("SELECT * FROM main.t WHERE id = 1 FOR UPDATE")
        finally:
            waiter.get(timeout=5)


APPLICATION_ERRORS = {
    1062: lambda conn, server: [conn.query("INSERT INTO main.t VALUES (9, 'x')") for _ in range(2)],
    1064: lambda conn, server: conn.query("NONSENSE"),
    1146: lambda conn, server: conn.query("SELECT * FROM main.nowhere"),
    1406: lambda conn, server: conn.query(f"INSERT INTO main.t VALUES (1, '{'x' * 101}')"),
    1205: lock_wait,
    1213: deadlock,
    1317: lambda conn, server: conn.query("SIGNAL SQLSTATE '70100' SET MYSQL_ERRNO = 1317"),
    0: lambda conn, server: odd(None),
}


@pytest.mark.parametrize("code", APPLICATION_ERRORS)
@pytest.mark.parametrize("reset_session", [True, False])
def test_an_error_of_the_application_keeps_the_connection(server, mysql_pool, code, reset_session):
    pool = mysql_pool(server, reset_session=reset_session)
    first = number(pool)
    with pytest.raises((err.MySQLError, Odd)) as caught, pool.item() as conn:
        conn.query("INSERT INTO main.t VALUES (7, 'x')")
        APPLICATION_ERRORS[code](conn, server)
    assert not code or caught.value.args[0] == code
    assert number(pool) == first
    with pool.item() as conn:
        assert rows(conn, "SELECT * FROM main.t") == ()


def killed_meanwhile(conn, server):
    with control(server) as other:
        other.query(f"KILL {conn.thread_id()}")
    ask(conn, "x")


def killed_in_a_command(conn, server):
    def kill():
        with control(server) as other:
            other.query(f"KILL {number}")

    number = conn.thread_id()
    gevent.spawn_later(0.05, kill)
    conn.query("SELECT SLEEP(5)")


LOST = {
    "killed": killed_meanwhile,
    "killed in a command": killed_in_a_command,
    "read only": lambda conn, server: conn.query("SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290"),
    "shutdown": lambda conn, server: conn.query("SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = 1053"),
    "closed": lambda conn, server: [conn.close(), conn.query("SELECT 1")],
    "killed by oneself": lambda conn, server: conn.kill(conn.thread_id()),
}


@pytest.mark.parametrize("how", LOST)
def test_an_error_of_the_connection_ends_it(server, mysql_pool, how):
    pool = mysql_pool(server)
    first = number(pool)
    with pytest.raises(err.MySQLError) as caught, pool.item() as conn:
        LOST[how](conn, server)
    assert not pool.fit_after(conn, caught.value)
    assert pool.current_size == 0
    assert number(pool) != first


def test_a_closed_connection_is_not_kept(server, mysql_pool):
    """Whatever check_after says: that is about what happens to idle ones."""
    pool = mysql_pool(server, check_after=None)
    with pool.item() as conn:
        conn.close()
    assert pool.current_size == 0


def test_a_pooled_connection_does_not_reconnect(server, mysql_pool):
    pool = mysql_pool(server)
    with pool.item() as conn:
        conn.close()
        for reconnect in (conn.connect, lambda: conn.ping(reconnect=True)):
            with warnings.catch_warnings(), pytest.raises(err.InterfaceError, match="another item"):
                warnings.simplefilter("ignore", DeprecationWarning)
                reconnect()
    with pool.item() as conn:
        with control(server) as other:
            other.query(f"KILL {conn.thread_id()}")
        with warnings.catch_warnings(), pytest.raises(err.MySQLError):
            warnings.simplefilter("ignore", DeprecationWarning)
            conn.ping(reconnect=True)
        assert not conn.open
    whole(pool, server)


# connection()


def test_connection_commits(server, mysql_pool):
    pool = mysql_pool(server)
    with pool.connection() as conn:
        first = one(conn, "SELECT CONNECTION_ID()")
        conn.query("INSERT INTO main.t VALUES (1, 'x')")
    with pool.connection(timeout=1) as conn:
        assert rows(conn, "SELECT CONNECTION_ID(), id FROM main.t") == ((first, 1),)


@pytest.mark.parametrize("reset_session", [True, False])
def test_connection_rolls_back_after_an_error(server, mysql_pool, reset_session):
    pool = mysql_pool(server, reset_session=reset_session)
    with pytest.raises(Odd), pool.connection() as conn:
        first = one(conn, "SELECT CONNECTION_ID()")
        conn.query("INSERT INTO main.t VALUES (1, 'x')")
        raise Odd
    with pool.connection() as conn:
        assert rows(conn, "SELECT * FROM main.t") == ()
        assert one(conn, "SELECT CONNECTION_ID()") == first


def test_connection_tells_that_it_could_not_commit(server, mysql_pool):
    pool = mysql_pool(server)
    with pytest.raises(err.InterfaceError), pool.connection() as conn:
        conn.query("INSERT INTO main.t VALUES (1, 'x')")
        with Timeout(0.02, False):
            conn.query("SELECT SLEEP(0.2)")
    assert pool.current_size == 0


def test_connection_takes_its_timeout(server, mysql_pool):
    pool = mysql_pool(server)
    with pool.connection(), pytest.raises(PoolTimeout), pool.connection(timeout=0):
        pass


# Idle


@pytest.mark.parametrize("how", ["closed", "reset", "killed by the server", "stray bytes"])
def test_a_connection_that_died_idle_is_not_handed_out(server, mysql_pool, proxy_to, how):
    proxy = proxy_to(server)
    pool = mysql_pool(proxy)
    first = number(pool)
    if how == "closed":
        proxy.close_all()
    elif how == "reset":
        proxy.reset_all()
    elif how == "killed by the server":
        with control(server) as conn:
            conn.query(f"KILL {first}")
        until(lambda: proxy.open == 0)
    else:
        proxy.links[0].client.sendall(b"\7\0\0\1\0\0\0\2\0\0\0")
    with pool.item() as conn:
        assert ask(conn, "mine") == "mine"
        assert one(conn, "SELECT CONNECTION_ID()") != first
    whole(pool, server)


def test_a_connection_idle_for_longer_than_the_server_allows_is_not_handed_out(server, mysql_pool):
    """Before it closes, MariaDB sends an error, which would be the next answer."""
    pool = mysql_pool(server, init_command="SET wait_timeout = 1")
    first = number(pool)
    with control(server) as conn:
        until(lambda: first not in connected(conn))
    with pool.item() as conn:
        assert one(conn, "SELECT CONNECTION_ID()") != first
        assert ask(conn, "mine") == "mine"


def test_the_check_never_switches(server, mysql_pool):
    pool = mysql_pool(server)
    conn = pool.get()
    pool.put(conn)
    with switches() as count:
        assert pool.check(conn)
        assert pool.get() is conn
        pool.put(conn)
    assert count() == 0
    with control(server) as other:
        other.query(f"KILL {conn.thread_id()}")
        until(lambda: connected(other) == [])
    with switches() as count:
        assert not pool.check(conn)
    assert count() == 0


@pytest.mark.usefixtures("high_fds")
def test_file_descriptors_beyond_1024(server, mysql_pool):
    pool = mysql_pool(server)
    first = number(pool)
    assert number(pool) == first
    with control(server) as conn:
        conn.query(f"KILL {first}")
        until(lambda: connected(conn) == [])
    assert number(pool) != first


# Letting go


class Watching(MySQLPool):
    switched = 0

    def destroy(self, item):
        with switches() as count:
            super().destroy(item)
            self.switched += count()


def aborted(server):
    with control(server) as conn:
        return int(rows(conn, "SHOW GLOBAL STATUS LIKE 'Aborted_clients'")[0][1])


def test_the_server_counts_no_aborted_clients(server, mysql_pool):
    before = aborted(server)
    pool = mysql_pool(server, max_size=3, pool_class=Watching)
    items = [pool.get() for _ in range(3)]
    for item in items:
        ask(item, "x")
        pool.put(item)
    pool.close()
    assert pool.switched == 0
    with control(server) as conn:
        until(lambda: connected(conn) == [])
    assert aborted(server) == before


def test_letting_go_waits_for_nobody(server, mysql_pool, proxy_to):
    """Its buffers are full, and nobody reads."""
    proxy = proxy_to(server)
    pool = mysql_pool(proxy, pool_class=Watching)
    conn = pool.get()
    proxy.links[0].fault = hang(len(proxy.links[0].request) + 1, REQUEST)
    sock = conn._sock
    sock.sendall(b"xx")
    assert proxy.stopped.wait(5)
    sock.settimeout(0)
    with pytest.raises(OSError) as full:  # noqa: PT011
        while True:
            sock.send(b"x" * 65536)
    assert full.value.errno == errno.EWOULDBLOCK
    sock.settimeout(30)
    pool.discard(conn)
    assert pool.switched == 0
    assert sock.fileno() == -1


@contextmanager
def others_lock(server):
    """What waits for this lock the server looks after each second, and in SLEEP each five."""
    with control(server) as other:
        assert one(other, "SELECT GET_LOCK('others', 0)") == 1
        yield "SELECT GET_LOCK('others', 600)"


def test_a_connection_discarded_while_another_greenlet_reads(server, mysql_pool):
    """The server sees the end, but not behind a goodbye, which it would not read."""
    pool = mysql_pool(server)
    with others_lock(server) as waiting:
        conn = pool.get()
        sock = conn._sock
        reader = spawn(conn.query, waiting)
        until(lambda: conn.busy)
        settle()
        pool.discard(conn)
        reader.join(5)
        assert isinstance(reader.exception, err.MySQLError)
        assert sock.fileno() == -1
        with control(server) as watch:
            until(lambda: len(connected(watch)) == 1)  # that of the lock
    whole(pool, server)


def test_put_back_while_another_greenlet_waits_with_it(server, mysql_pool):
    """A reset sent behind his statement would hide the end from the server, till he is done."""
    pool = mysql_pool(server)
    with others_lock(server) as waiting:
        with pool.item() as conn:
            other = spawn(one, conn, waiting)
            until(lambda: conn.busy)
        with pytest.raises(err.OperationalError):
            other.get(timeout=10)
        with control(server) as watch:
            until(lambda: len(connected(watch)) == 1)
    whole(pool, server)


def test_a_connection_of_the_past_is_closed(server, mysql_pool):
    pool = mysql_pool(server)
    conn = pool.get()
    pool.discard(conn)
    with pytest.raises(err.InterfaceError):
        conn.query("SELECT 1")
    conn.close()


# Failing to connect


def test_a_wrong_password_comes_out_as_it_is(server, mysql_pool):
    pool = mysql_pool(server, password="wrong")
    for _ in range(3):
        with pytest.raises(err.OperationalError, match="Access denied"):
            pool.get()
    assert pool.current_size == 0
    with control(server) as conn:
        until(lambda: connected(conn) == [])


def test_refused_connections_come_out_as_they_are(server, mysql_pool, proxy_to):
    proxy = proxy_to(server)
    pool = mysql_pool(proxy)
    proxy.refuse()
    for _ in range(3):
        with pytest.raises(err.OperationalError, match=r"(?i)refused"):
            pool.get()
    assert pool.current_size == 0
    proxy.listen()
    assert number(pool)


def test_a_connection_cut_in_the_handshake_costs_no_slot(server, mysql_pool, proxy_to):
    proxy = proxy_to(server)
    pool = mysql_pool(proxy)
    proxy.script = [close(3), close(30), close(100), close(1, REQUEST)]
    for _ in range(4):
        with pytest.raises(err.OperationalError):
            pool.get()
    assert pool.current_size == 0
    whole(pool, server)


def test_a_handshake_is_waited_for_no_longer_than_connect_timeout(server, mysql_pool, proxy_to):
    """PyMySQL's own ends with that of TCP, and behind it waited for ever."""
    proxy = proxy_to(server, hang(5))
    pool = mysql_pool(proxy, connect_timeout=0.05)
    with Timeout(5), pytest.raises(err.OperationalError, match=r"within 0\.05 s") as caught:
        pool.get()
    assert caught.value.args[0] == 2003
    assert pool.current_size == 0
    until(lambda: proxy.open == 0)


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory):
    require_server(OneServer)
    cert, key = make_certificate(tmp_path_factory.mktemp("tls"))
    with OneServer(config={"ssl-cert": cert, "ssl-key": key}) as server:
        yield server


def tls_context():
    """One of gevent's; in a patched program PyMySQL makes such by itself."""
    context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, gevent.ssl.CERT_NONE
    return context


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")


def open_files():
    return len(os.listdir("/proc/self/fd"))


@needs_proc
@pytest.mark.parametrize("where", ["TCP", "greeting", "TLS"])
def test_interrupted_while_connecting_leaves_no_socket(
    server, request, mysql_pool, proxy_to, where
):
    if where == "TLS":
        server = request.getfixturevalue("tls_server")
    proxy = proxy_to(server)
    options = {"ssl": tls_context(), "ssl_disabled": False} if where == "TLS" else {}
    pool = mysql_pool(proxy, **options)
    if where == "TCP":
        proxy.never_accept()
    before = open_files()
    if where != "TCP":
        proxy.script = [hang(5 if where == "greeting" else 130)]
    getter = spawn(pool.get)
    if where == "TCP":
        settle()
    else:
        assert proxy.stopped.wait(5)
        settle()
    getter.kill(Timeout(0))
    assert isinstance(getter.exception, Timeout)
    assert getter.exception.__traceback__ is not None  # which keeps the frames
    proxy.refuse()
    proxy.close_all()
    proxy.listen()
    assert open_files() <= before
    assert pool.current_size == 0
    whole(pool, server)


@pytest.mark.parametrize("frozen", ["before connecting", "in a command", "at the reset"])
def test_a_frozen_server_is_waited_for_no_longer_than_asked(server, mysql_pool, frozen):
    pool = mysql_pool(server, max_size=2, reset_timeout=0.05)
    items = []
    if frozen != "before connecting":
        items = [pool.get(), pool.get()]
    if frozen == "at the reset":
        for item in items:
            ask(item, "x")
    server.freeze()
    pool._mysql.connect_timeout = 0.1
    try:
        if frozen == "in a command":

            def stuck(item):
                with Timeout(0.05, False):
                    item.query("SELECT 1")
                pool.put(item)

            users = [spawn(stuck, item) for item in items]
            gevent.joinall(users, timeout=5, raise_error=True)
        elif frozen == "at the reset":
            with Timeout(5):
                for item in items:
                    pool.put(item)
        getters = [spawn(pool.get, timeout=0.05) for _ in range(5)]
        gevent.joinall(getters, timeout=5)
        for getter in getters:
            assert isinstance(getter.exception, PoolTimeout)
        with Timeout(5), pytest.raises(err.OperationalError):
            pool.get()
    finally:
        server.thaw()
    assert pool.current_size == 0
    pool._mysql.connect_timeout = 10
    whole(pool, server)


@pytest.mark.parametrize("where", ["before it accepts", "connecting", "in a query"])
def test_a_black_hole_costs_each_user_his_timeout_and_no_slot(server, mysql_pool, proxy_to, where):
    proxy = proxy_to(server)
    pool = mysql_pool(proxy, max_size=3)
    if where == "in a query":
        whole(pool, server)

    def use():
        with Timeout(0.1), pool.connection() as conn:
            conn.query("SELECT 1")

    with swallowed(proxy, where):
        users = [spawn(use) for _ in range(9)]
        gevent.joinall(users, timeout=10)
        assert [type(user.exception) for user in users] == [Timeout] * 9
        assert pool.current_size == pool.waiting() == 0
    whole(pool, server)


def test_connections_made_in_the_background(server, mysql_pool):
    pool = mysql_pool(server, max_size=5, min_size=2, max_creating=2)
    pool.wait_ready(timeout=5)
    users = [spawn(number, pool) for _ in range(30)]
    gevent.joinall(users, timeout=10, raise_error=True)
    assert len({user.value for user in users}) <= 5
    whole(pool, server)


# TLS


def test_tls(tls_server, mysql_pool):
    server = tls_server
    for version in ("TLSv1_2", "TLSv1_3"):
        context = tls_context()
        context.maximum_version = context.minimum_version = gevent.ssl.TLSVersion[version]
        pool = mysql_pool(server, ssl_disabled=False, ssl=context, pool_class=Watching)
        first = number(pool)
        with pool.item() as conn:
            assert rows(conn, "SHOW STATUS LIKE 'Ssl_version'")[0][1].startswith("TLS")
            assert isinstance(conn._sock, gevent.ssl.SSLSocket)
        assert number(pool) == first
        with pool.item() as conn, Timeout(0.02, False):
            conn.query("SELECT SLEEP(0.2)")
        assert number(pool) != first
        with control(server) as conn:
            conn.query(f"KILL {pool.free_items[0].thread_id()}")
            until(lambda: len(connected(conn)) == 0)
        number(pool)
        pool.close()
        assert pool.switched == 0


# Passwords


def test_nothing_prints_a_password(server, mysql_pool, caplog):
    caplog.set_level(logging.DEBUG)
    with control(server) as conn:
        conn.query("DROP USER IF EXISTS ann")
        conn.query(f"CREATE USER ann IDENTIFIED BY '{WORD}'")
    said = []
    url = f"mysql://ann:{WORD}@{server.host}:{server.port}/?ssl_disabled=1"
    pool = mysql_pool(None, url, name="main")
    item = pool.get()
    ask(item, "x")
    said += [repr(pool), repr(item), *map(str, pool.holders())]
    with pytest.raises(PoolTimeout) as caught:
        pool.get(timeout=0)
    said.append(str(caught.value))
    pool.put(item)
    for wrong in (pool.put, pool.discard):
        with pytest.raises(NotInUse) as caught:
            wrong(item)
        said.append(str(caught.value))
    with pool.item() as conn:
        conn.close()  # a failing reset
    item = pool.get()
    item._force_close = lambda: odd(None)  # a failing destroy
    sock, rfile = item._sock, item._rfile
    pool.discard(item)
    rfile.close()
    sock.close()
    with pytest.raises(err.OperationalError) as caught:
        mysql_pool(None, url.replace(WORD, f"{WORD}-wrong")).get()
    said.append(repr(caught.value))
    with pytest.raises(TypeError) as caught:
        MySQLPool(url, no_such_option=1)
    said.append(repr(caught.value))
    pool.close()

    assert "reset of" in caplog.text
    assert "destroy of" in caplog.text
    assert [text for text in (*said, caplog.text) if WORD in text] == []
    with control(server) as conn:
        conn.query("DROP USER ann")


# Chaos


def transaction(conn, tag):
    conn.query("INSERT INTO main.t VALUES (1, 'x')")


def streaming(conn, tag):
    with conn.cursor(SSCursor) as cursor:
        cursor.execute("SELECT 'theirs' UNION ALL SELECT 'theirs'")
        cursor.fetchall()


def plain(conn, tag):
    rows(conn, "SELECT 'theirs'")


def ask_if_open(conn, tag):
    return ask(conn, tag) if conn.open else tag


@pytest.mark.parametrize(
    ("exchange", "reset_session"),
    [(plain, True), (streaming, False), (transaction, False)],
    ids=["a reset", "a streaming result", "a transaction"],
)
@both_ways
@every_ending
def test_no_mysql_answer_reaches_another(
    server, mysql_pool, proxy_to, ending, stream, exchange, reset_session
):
    proxy = proxy_to(server)
    pool = mysql_pool(proxy, reset_session=reset_session)
    ordeal = Ordeal(pool, proxy, exchange, ask_if_open)
    at_every_byte(ordeal, ending, stream)
    assert ordeal.foreign == []
    with control(server) as conn:
        assert rows(conn, "SELECT * FROM main.t") == ()
    whole_behind_proxy(pool, proxy)


@pytest.mark.parametrize("cut", [close, reset])
def test_a_reply_that_ends_half_way_is_an_error_and_nobodys_answer(
    server, mysql_pool, proxy_to, cut
):
    """The reply of the statement, or of the reset that follows it."""
    proxy = proxy_to(server)
    pool = mysql_pool(proxy)
    ordeal = Ordeal(pool, proxy, ask, ask)
    errors = 0
    for k in range(ordeal.length(REPLY)):
        ordeal.next_user("before")
        link = ordeal.link()
        link.fault = cut(len(link.reply) + k)
        try:
            ordeal.next_user("cut")
        except err.OperationalError:
            errors += 1
        assert pool.current_size == 0
        ordeal.next_user("after")
    assert ordeal.foreign == []
    assert errors > 40  # the others were in the reset
    whole_behind_proxy(pool, proxy)


@both_ways
@pytest.mark.parametrize("ending", ["killed", "timed out"])
def test_a_mysql_handshake_interrupted_costs_no_slot(server, mysql_pool, proxy_to, ending, stream):
    proxy = proxy_to(server)
    pool = mysql_pool(proxy, database="main", init_command="SET @i = 1")
    ordeal = Ordeal(pool, proxy, lambda conn, tag: None, ask)
    pool.put(pool.get())
    length = len(getattr(proxy.links[0], stream))
    assert length > 50
    for k in range(length + 1):
        pool.discard(pool.get())
        proxy.script = [hang(k, stream)]
        ordeal.interrupt(f"{ending} at byte {k} of the {stream} of the handshake", ending)
    assert ordeal.foreign == []
    whole_behind_proxy(pool, proxy)


@pytest.mark.parametrize("reset_session", [True, False])
def test_storm_of_kills_on_tagged_statements(server, mysql_pool, reset_session):
    """Thousands of statements, about every third interrupted: no foreign answer, no lost slot."""
    pool = mysql_pool(server, max_size=5, database="main", reset_session=reset_session)
    chance = random.Random(reset_session)
    answers, foreign, interrupted = 0, [], 0
    big = "x" * 300_000

    def note(tag, answer):
        nonlocal answers
        answers += 1
        if answer not in (tag, tag.encode()):
            foreign.append((tag, answer))

    def act(conn, tag):
        kind = chance.randrange(5)
        if kind == 0:
            note(tag, ask(conn, tag))
        elif kind == 1:
            conn.query(f"INSERT INTO t VALUES ({chance.randrange(50)}, '{tag}')")
            note(tag, one(conn, "SELECT v FROM t WHERE v = %s", tag))
            note(tag, one(conn, "SELECT COALESCE(@x, %s)", tag))
        elif kind == 2:
            with conn.cursor(SSCursor) as cursor:
                cursor.execute(f"SELECT '{tag}' FROM seq_1_to_3000")
                for (answer,) in cursor:
                    if answer != tag:
                        foreign.append((tag, answer))
            note(tag, tag)
        elif kind == 3:
            note(tag + "300000", one(conn, f"SELECT CONCAT('{tag}', LENGTH('{big}'))"))
        else:
            if reset_session:
                conn.query(f"SET @x = '{tag}'")
            note(tag, one(conn, f"SELECT IF(SLEEP(0.001), '', '{tag}')"))

    def user(name):
        for turn in range(chance.randrange(1, 15)):
            tag = f"{name}-{turn}"
            lost = suppress(err.MySQLError)
            with lost, Timeout(chance.choice([0.001, 0.004, 5]), False), pool.item() as conn:
                with lost, Timeout(chance.choice([0.001, 0.004, 5]), False):
                    act(conn, tag)
                if chance.random() < 0.5 and conn.open:  # and goes on, or leaves
                    note(tag + "+", ask(conn, tag + "+"))

    names = iter(range(100_000))
    users = []
    while answers < 2000 or interrupted < 300:
        users = [user for user in users if not user.ready()]
        users += [spawn(user, next(names)) for _ in range(15 - len(users))]
        gevent.sleep(0.002)
        for victim in chance.sample(users, 2):
            victim.kill(block=False)
            interrupted += 1
        assert pool.current_size <= 5
    gevent.killall(users)
    settle()
    gc.collect()

    assert foreign == []
    assert pool.holders() == []
    with control(server) as conn:
        until(lambda: len(connected(conn)) <= 5)
        assert rows(conn, "SELECT * FROM main.t") == ()
    whole(pool, server)


def test_a_server_killed_and_restarted_is_nobodys_error(start_server, mysql_pool):
    server = start_server(OneServer)
    pool = mysql_pool(server, max_size=50)
    items = [pool.get() for _ in range(50)]
    for item in items:
        pool.put(item)
    server.kill9()
    server.start()
    users = [spawn(number, pool) for _ in range(100)]
    gevent.joinall(users, timeout=20, raise_error=True)
    whole(pool, server)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_three_children_disturb_neither_each_other_nor_the_parent(server, mysql_pool):
    from tests.test_fork import Child

    pool = mysql_pool(server, max_size=4)
    items = [pool.get() for _ in range(4)]
    for item in items[1:]:
        pool.put(item)
    held = items[0]
    held.query("INSERT INTO main.t VALUES (1, 'x')")
    streaming = pool.get()
    cursor = streaming.cursor(SSCursor)
    cursor.execute("SELECT 1")
    before = {one(item, "SELECT CONNECTION_ID()") for item in items if item is not streaming}

    def work(name):
        wrong = []

        def user(n):
            for turn in range(10):
                with pool.item() as conn:
                    assert conn._connect_attrs["_pid"] == str(os.getpid())
                    tag = f"{name}-{n}-{turn}"
                    if ask(conn, tag) != tag:
                        wrong.append(tag)

        gevent.joinall([gevent.spawn(user, n) for n in range(8)], timeout=20, raise_error=True)
        return [wrong, pool.current_size]

    children = [Child(lambda n=n: work(f"child{n}"), gevent.os.fork) for n in range(3)]
    parent = []
    for turn in range(50):
        with pool.item() as conn:
            parent.append(ask(conn, f"parent-{turn}") == f"parent-{turn}")
        gevent.sleep(0.002)
    for child in children:
        assert child.result() == [[], 4]
    assert all(parent)
    assert cursor.fetchall() == [(1,)]
    assert one(held, "SELECT v FROM main.t") == "x"
    held.rollback()
    pool.put(held)
    cursor.close()
    pool.put(streaming)
    with control(server) as conn:
        until(lambda: before <= set(connected(conn)))
    whole(pool, server)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("deferred", [False, True])
def test_three_children_born_while_it_connects(server, mysql_pool, deferred):
    """They have a copy of the greenlet that connects, which read the parent's handshake."""

    def create():
        return pymysql.connect(
            host=server.host, port=server.port, user="root", ssl_disabled=True, defer_connect=True
        )

    pool = mysql_pool(server, **({"create": create} if deferred else {}))

    def use(tag):
        with pool.item(timeout=10) as conn:
            return ask(conn, tag) == tag

    children_born_while_it_connects(server, use)


def test_patched_and_in_a_crowd(server):
    """In a program of its own, under monkey.patch_all()."""
    import json
    import subprocess

    program = """
from gevent import monkey
monkey.patch_all()
import json, sys, gevent
from gpools.adapters.mysql import MySQLPool
pool = MySQLPool(host="127.0.0.1", port=int(sys.argv[1]), user="root", max_size=3)
found = []
def user(n):
    for turn in range(5):
        with pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute("SELECT %s, SLEEP(0.002)", [f"{n}-{turn}"])
            found.append(cursor.fetchone()[0] == f"{n}-{turn}")
gevent.joinall([gevent.spawn(user, n) for n in range(20)], raise_error=True)
with gevent.Timeout(0.05, False), pool.item() as conn:
    conn.query("SELECT SLEEP(600)")
with pool.item() as conn:
    conn.query("SELECT 'mine'")
    print(json.dumps([all(found), len(found), repr(pool), conn._result.rows]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(server.port)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.stderr == ""
    in_use = "<MySQLPool 1 idle, 1 in use, 0 waiting, max 3>"
    assert json.loads(done.stdout) == [True, 100, in_use, [["mine"]]]


def test_unpatched_it_blocks_but_all_else_holds(server, monkeypatch):
    import ssl

    monkeypatch.setattr(pymysql.connections, "socket", blocking)
    monkeypatch.setattr(pymysql.connections, "ssl", ssl)
    with MySQLPool(
        host=server.host, port=server.port, user="root", max_size=1, read_timeout=0.5
    ) as pool:
        first = number(pool)
        assert number(pool) == first
        with pytest.raises(err.OperationalError), pool.item() as conn:
            conn.query("SELECT SLEEP(5)")
        assert number(pool) != first


def test_no_part_of_a_bad_url_is_in_the_errors_behind_its_error():
    with pytest.raises(ValueError, match="percent-encode") as refused:
        MySQLPool("mysql://root:sec:ret/@host/")
    assert refused.value.__context__ is None
