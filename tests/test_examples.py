"""Every example runs offline, by itself, and prints what it shows."""

import ast
import importlib.util
import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.databases import MariadbServer, MemcachedServer, PostgresServer
from tests.servers import RedisServer, require_server

ROOT = Path(__file__).parent.parent
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("[a-z]*.py"))}

PRINTS = {
    "ages": """\
        at the start: 1 idle, 1 made, {}
        after a spike: 5 idle, 5 made, {}
        a while later: 1 idle, 5 made, {'max_idle': 4}
        after recycle(): 1 idle, 6 made, {'max_idle': 4, 'recycled': 1}
        connection 6
    """,
    "custom_client": """\
        create
        ONE
        reset
        check
        destroy
        create
        TWO
        reset
        destroy
    """,
    "custom_http": """\
        200 {'you asked for': '/users/7'}
        <ApiPool 'api' 1 idle, 0 in use, 0 waiting, max 2>
    """,
    "custom_redis": """\
        left: 9
        left: 8
        <ShopPool 'shop' 1 idle, 0 in use, 0 waiting, max 2>
    """,
    "eventlet_after": """\
        ann: the database refused the first connection
        bob has a connection
        free: 1, waiting: 0
    """,
    "eventlet_before": """\
        ann: the database refused the first connection
        bob: 0.5 seconds
        free: 1, waiting: 0
    """,
    "fair_queue": """\
        queue.LifoQueue:
        greedy
        greedy
        greedy
        greedy
        greedy
        greedy
        greedy
        FairLifoQueue:
        greedy
        patient 0
        patient 1
        patient 2
        patient 3
        patient 4
        greedy
    """,
    "fleet": """\
        4 workers: 3 of 3 tokens in use, 1 waits
        killed one: its token went to who waited
        killed all: 3 tokens are free again
    """,
    "http_pool": """\
        200 this is /one
        the answer to /slow is still on its way
        this is /two
        <HttpPool 1 idle, 0 in use, 0 waiting, max 1>
    """,
    "keyed_http": """\
        this is 127.0.0.1 and this is 127.0.0.2
        <KeyedHttpPool 2 keys, 2 idle, 0 in use, 0 waiting, max 3>
        300 hosts asked
        <KeyedHttpPool 3 keys, 3 idle, 0 in use, 0 waiting, max 3>
        <KeyedHttpPool 0 keys, 0 idle, 0 in use, 0 waiting, max 3>
    """,
    "keyed_pool": """\
        connect to db1
        ask db1
        connect to db2
        ask db2
        ask db1
        leave db2
        connect to db3
        ask db3
        ['db1', 'db3'] <KeyedPool 2 keys, 2 idle, 0 in use, 0 waiting, max 2>
        leave db1
        leave db3
    """,
    "lambda_style": """\
        connecting to db1, timeout 5 s
        connecting to db1, timeout 5 s
        <Pool 0 idle, 2 in use, 4 waiting, max 2>
        [0, 1, 4, 9, 16, 25]
        <Pool 2 idle, 0 in use, 0 waiting, max 2>
    """,
    "memcached_pool": """\
        after a Timeout: <MemcachedPool 0 idle, 0 in use, 0 waiting, max 1>
        the next user has a timeout of 5 and b'1'
        20 more, on 2 connections: b'21' <ClientPool 2 idle, 0 in use, 0 waiting, max 2>
    """,
    "mysql_pool": """\
        after a Timeout: <MySQLPool 2 idle, 0 in use, 0 waiting, max 3>
        the row is there already, the connection is kept: Duplicate entry '7' for key 'PRIMARY'
        after an error of the application: <MySQLPool 2 idle, 0 in use, 0 waiting, max 3>
        visits, tenant: 20 None
    """,
    "outage": """\
        ConnectionRefusedError
        {'refused at once'} 1 try
        served by the server
    """,
    "partial_style": """\
        the server accepts a connection
        ONE TWO THREE
    """,
    "redis_connection_pool": """\
        visits: 50
        fifty greenlets: <FairConnectionPool 'app' 2 idle, 0 in use, 0 waiting, max 2>
        after a Timeout: <FairConnectionPool 'app' 1 idle, 0 in use, 0 waiting, max 2>
        after a lost pubsub: <FairConnectionPool 'app' 0 idle, 0 in use, 0 waiting, max 2>
        no item of 'app' came free within 0.1 s (2 of 2 in use, 0 still waiting
    """,
    "postgres_pool": """\
        left over: 80
        after 20 greenlets: <PostgresPool 2 idle, 0 in use, 0 waiting, max 2>
        the statement was wrong, the connection is kept: column "right_over" does not exist
        left over: 80
        connections made: 2
    """,
    "redis_pool": """\
        visits: 20
        after a Timeout: <RedisPool 0 idle, 0 in use, 0 waiting, max 1>
        the command was wrong, the connection is kept: value is not an integer or out of range
        after an error reply: <RedisPool 1 idle, 0 in use, 0 waiting, max 1>
        after SELECT: <RedisPool 0 idle, 0 in use, 0 waiting, max 1>
    """,
    "socket_pool": """\
        ONE <SocketPool 1 idle, 0 in use, 0 waiting, max 1>
        the answer to slow is still on its way: <SocketPool 0 idle, 0 in use, 0 waiting, max 1>
        TWO
        an answer was not read: <SocketPool 0 idle, 0 in use, 0 waiting, max 1>
        FOUR
    """,
    "requests_adapter": """\
        HTTPAdapter: more connections
        FairHTTPAdapter: 5 connections
        PoolTimeout
    """,
    "sqlalchemy_engine": """\
        served: a b c d e f
        after a Timeout: mine <FairPool 1 idle, 0 in use, 0 waiting, max 1>
        no connection came free within 1.0 s (1 of 1 in use, 0 still waiting
    """,
    "subclassing": """\
        ann@db1 session 1
        ann@db1 session 1
        ann@db1 session 2
        <SessionPool 1 idle, 0 in use, 0 waiting, max 1>
    """,
    "token_pool": """\
        3 upload, 7 wait
        at most 3 at a time, 3 tokens free at the end
    """,
}


NEEDS = {
    "_redis": RedisServer,
    "_memcached": MemcachedServer,
    "_mysql": MariadbServer,
    "_postgres": PostgresServer,
}


def lines(text):
    return [line.strip() for line in text.strip().splitlines()]


def test_each_example_has_its_output_here():
    assert EXAMPLES.keys() == PRINTS.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_prints_what_it_shows(name):
    source = EXAMPLES[name].read_text()
    for module, server_class in NEEDS.items():
        if f"from {module} import" in source:
            require_server(server_class)
    if "from eventlet" in source and importlib.util.find_spec("eventlet") is None:
        pytest.skip("eventlet is not installed")
    done = subprocess.run(
        [sys.executable, EXAMPLES[name]],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # where gpools is not installed
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == lines(PRINTS[name])
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem
)
def test_example_is_short_and_says_what_it_shows(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 40
    assert 1 <= len(ast.get_docstring(ast.parse(source)).splitlines()) <= 2


def test_moving_from_eventlet_changes_the_imports_only():
    before, after = (
        ast.parse(EXAMPLES[name].read_text()).body[1:]
        for name in ("eventlet_before", "eventlet_after")
    )
    changed = [
        (old, new) for old, new in zip_longest(before, after) if ast.dump(old) != ast.dump(new)
    ]
    assert changed
    assert all(isinstance(node, ast.ImportFrom) for pair in changed for node in pair)
