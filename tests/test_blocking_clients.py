"""Clients that stop all greenlets are refused, with what to do instead."""

import sys
from functools import partial
from types import SimpleNamespace

import gevent.socket
import pytest
from gevent.monkey import get_original

from gpools import HttpPool, MemcachedPool, MySQLPool, PoolError, PostgresPool, RedisPool
from gpools.adapters._blocking import refuse_blocking, tell_unpatched
from tests.cooperative_psycopg import cooperative_psycopg  # noqa: F401


def client_of(module, **attributes):
    """Make a client as if *module* had defined its class."""
    return type("Connection", (), {"__module__": module, **attributes})()


@pytest.mark.parametrize(
    ("module", "instead"),
    [
        ("psycopg2.extensions", "psycogreen"),
        ("MySQLdb.connections", "PyMySQL"),
        ("pymssql._pymssql", "threadpool"),
        ("pylibmc.client", "pymemcache"),
        ("ssh2.session", "parallel-ssh"),
        ("grpc._channel", "init_gevent"),
    ],
)
def test_client_that_blocks_the_hub_is_refused(module, instead):
    with pytest.raises(PoolError, match=f"stops all greenlets.*{instead}"):
        refuse_blocking(client_of(module))


def test_subclass_of_a_client_that_blocks_is_refused():
    base = type(client_of("MySQLdb.connections"))
    with pytest.raises(PoolError, match="MySQLdb"):
        refuse_blocking(type("Mine", (base,), {})())


@pytest.mark.parametrize("module", ["psycopg", "pymysql.connections", "grpcio_tools", "mine.ssh2"])
def test_other_clients_pass(module):
    refuse_blocking(client_of(module))


def test_psycopg2_with_a_wait_callback_passes(monkeypatch):
    extensions = SimpleNamespace(get_wait_callback=lambda: None)
    monkeypatch.setitem(sys.modules, "psycopg2.extensions", extensions)
    connection = client_of("psycopg2.extensions")
    with pytest.raises(PoolError, match="psycopg2"):
        refuse_blocking(connection)

    extensions.get_wait_callback = lambda: print

    refuse_blocking(connection)


def test_grpc_after_init_gevent_passes(monkeypatch):
    cygrpc = SimpleNamespace(g_gevent_activated=False)
    monkeypatch.setitem(sys.modules, "grpc._cython.cygrpc", cygrpc)
    channel = client_of("grpc._channel")
    with pytest.raises(PoolError, match="grpc"):
        refuse_blocking(channel)

    cygrpc.g_gevent_activated = True

    refuse_blocking(channel)


def test_ssh2_session_that_does_not_block_passes():
    with pytest.raises(PoolError, match="ssh2"):
        refuse_blocking(client_of("ssh2.session", get_blocking=lambda self: True))
    refuse_blocking(client_of("ssh2.session", get_blocking=lambda self: False))


def test_a_program_that_is_not_patched_is_told_once_for_each_library(monkeypatch, caplog):
    monkeypatch.setattr("gpools.adapters._blocking._told", set())
    plain = SimpleNamespace(socket=get_original("socket", "socket"))
    derived = SimpleNamespace(socket=type("socksocket", (gevent.socket.socket,), {}))
    for library, sockets in [
        ("redis-py", gevent.socket),
        ("redis-py", derived),
        ("httplib2", plain),
        ("PyMySQL", plain),
        ("httplib2", plain),
    ]:
        tell_unpatched(library, SimpleNamespace(socket=sockets))

    assert [record.args for record in caplog.records] == [("httplib2",), ("PyMySQL",)]
    assert "patch_all()" in caplog.text


@pytest.mark.parametrize(
    "make",
    [HttpPool, RedisPool, PostgresPool, MySQLPool, partial(MemcachedPool, ("127.0.0.1", 1))],
    ids=["http", "redis", "postgres", "mysql", "memcached"],
)
@pytest.mark.usefixtures("cooperative_psycopg")
def test_pools_refuse_what_a_create_of_ones_own_makes(make):
    pool = make(max_size=1, create=lambda: client_of("pylibmc.client"))
    for _ in range(2):
        with pytest.raises(PoolError, match="take pymemcache"):
            pool.get(timeout=5)
    assert pool.current_size == 0
