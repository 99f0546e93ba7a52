"""RedisPool and FairConnectionPool where the server moves, over TLS, and under sentinels."""

import json
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import pytest
import redis
from redis.sentinel import Sentinel

from gpools import PoolTimeout, PoolUnavailable, RedisPool
from gpools.adapters.redis_py import FairConnectionPool, FairSentinelConnectionPool
from tests.cooperative import cooperative  # noqa: F401
from tests.proxy import hang
from tests.servers import RedisServer
from tests.test_redis_pool import clients
from tests.tls import make_certificate
from tests.waiting import settle, until

pytestmark = pytest.mark.usefixtures("cooperative")


class SentinelServer(RedisServer):
    """A sentinel that watches one master by the name of orders."""

    def __init__(self, master, **options):
        super().__init__(**options)
        self.master = master

    def command(self):
        path = self.directory / "sentinel.conf"
        if not path.exists():  # the sentinel writes what it learns into it
            path.write_text(
                f"port {self.port}\nbind {self.host}\ndir {self.directory}\n"
                f"sentinel monitor orders {self.host} {self.master.port} 1\n"
                "sentinel down-after-milliseconds orders 500\n"
                "sentinel failover-timeout orders 5000\n"
            )
        return [self.binary(), path, "--sentinel"]


@pytest.fixture
def replicated(start_server):
    """A master and its replica."""
    master = start_server(RedisServer, config={"repl-diskless-sync-delay": 0})
    replica = start_server(RedisServer, config={"repl-diskless-sync-delay": 0})
    replica.call("REPLICAOF", master.host, master.port)
    until(lambda: "master_link_status:up" in replica.call("INFO", "replication"))
    return master, replica


def turn_around(master, replica):
    """Make a replica of the master and a master of the replica."""
    replica.call("REPLICAOF", "NO", "ONE")
    master.call("REPLICAOF", replica.host, replica.port)
    until(lambda: "master_link_status:up" in master.call("INFO", "replication"))


class Name:
    """What a DNS name is: an address that may change."""

    def __init__(self, server):
        self.server = server

    def connection_class(self):
        name = self

        class Named(redis.Connection):
            def _connect(self):
                self.host, self.port = name.server.address
                return super()._connect()

        return Named


# Promotion of a replica, without sentinels


class FailoverPool(RedisPool):
    """As docs/redis.md has it."""

    def fit_after(self, client, error):
        if isinstance(error, redis.exceptions.ReadOnlyError):
            self.recycle()
        return super().fit_after(client, error)


def fill(pool):
    items = [pool.get() for _ in range(pool.max_size)]
    for item in items:
        pool.put(item)


def failures(write, times):
    failed = 0
    for _ in range(times):
        try:
            write()
        except redis.RedisError:
            failed += 1
    return failed


@pytest.mark.parametrize(("pool_class", "expected"), [(FailoverPool, 1), (RedisPool, 5)])
def test_one_error_is_enough_after_a_promotion(replicated, pool_class, expected):
    """Without recycle() each of the five idle connections brings one."""
    master, replica = replicated
    name = Name(master)

    def create():
        pool = redis.ConnectionPool(connection_class=name.connection_class())
        return redis.Redis(connection_pool=pool)

    with pool_class(max_size=5, create=create) as pool:
        fill(pool)
        turn_around(master, replica)
        name.server = replica

        def write():
            with pool.item() as client:
                client.incr("n")

        assert failures(write, 10) == expected
        assert replica.call("GET", "n") == str(10 - expected)


def test_recycle_moves_a_fair_pool_to_the_new_master(replicated):
    master, replica = replicated
    name = Name(master)
    pool = FairConnectionPool(max_connections=5, connection_class=name.connection_class())
    client = redis.Redis(connection_pool=pool)
    fill(pool.connections)
    turn_around(master, replica)
    name.server = replica
    with pytest.raises(redis.exceptions.ReadOnlyError):
        client.incr("n")
    pool.connections.recycle()
    assert failures(lambda: client.incr("n"), 10) == 0
    assert replica.call("GET", "n") == "10"
    pool.connections.close()


# Sentinels


@pytest.fixture
def watched_by_sentinel(replicated, start_server):
    master, replica = replicated
    server = start_server(SentinelServer, master=master)
    sentinel = Sentinel([server.address], socket_timeout=5)
    until(lambda: sentinel.discover_slaves("orders"), timeout=30)
    yield master, replica, server, sentinel
    sentinel.sentinels[0].close()


@contextmanager
def from_sentinel(kind, sentinel, **options):
    """Have a write and a read of the master and the pool that they go through."""
    if kind == "RedisPool":
        with RedisPool(create=lambda: sentinel.master_for("orders", **options), max_size=5) as pool:

            def run(*command):
                with pool.item() as client:
                    return client.execute_command(*command)

            yield run, pool
    else:
        client = sentinel.master_for(
            "orders",
            connection_pool_class=FairSentinelConnectionPool,
            max_connections=5,
            **options,
        )
        yield client.execute_command, client.connection_pool.connections
        client.connection_pool.connections.close()


def failover(master, replica, server):
    def role(server, name):
        return f"role:{name}" in ask(server, "INFO", "replication")

    def known():
        address = ask(server, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "orders")
        return address and address[1] == str(replica.port)

    until(lambda: ask(server, "SENTINEL", "FAILOVER", "orders"), timeout=20)
    until(lambda: role(replica, "master") and role(master, "slave") and known(), timeout=30)


def ask(server, *words):
    """Call *server*, which may drop its clients, or not know enough yet."""
    try:
        return server.call(*words)
    except (OSError, RuntimeError):
        return ""


def test_a_sentinels_failover_is_followed(watched_by_sentinel):
    master, replica, server, sentinel = watched_by_sentinel
    with (
        from_sentinel("RedisPool", sentinel, decode_responses=True) as ours,
        from_sentinel("FairSentinelConnectionPool", sentinel, decode_responses=True) as theirs,
    ):
        for run, pool in (ours, theirs):
            fill(pool)
            assert run("SET", "k", "before")
        assert len(clients(master)) >= 10
        until(lambda: replica.call("GET", "k") == "before")
        failover(master, replica, server)
        for run, pool in (ours, theirs):
            replica.call("DEL", "n")
            failed = failures(partial(run, "INCR", "n"), 20)
            assert failed <= 5  # one for each connection that was idle
            assert failures(partial(run, "INCR", "n"), 10) == 0
            assert replica.call("GET", "n") == str(30 - failed)
            fill(pool)
            assert pool.stats().in_use == 0
            assert run("GET", "k") == "before"


@pytest.mark.parametrize("kind", ["RedisPool", "FairConnectionPool"])
def test_replicas_are_read_from(watched_by_sentinel, kind):
    master, replica, _, sentinel = watched_by_sentinel
    master.call("SET", "k", "v")
    if kind == "RedisPool":
        with RedisPool(create=lambda: sentinel.slave_for("orders")) as pool, pool.item() as client:
            until(lambda: client.get("k") == b"v")
            assert client.connection_pool.connection.port == replica.port
            with pytest.raises(redis.exceptions.ReadOnlyError):
                client.set("k", "w")
    else:
        client = sentinel.slave_for("orders", connection_pool_class=FairSentinelConnectionPool)
        until(lambda: client.get("k") == b"v")
        assert client.connection_pool._available_connections[0].port == replica.port
        client.connection_pool.connections.close()


def test_a_sentinel_that_is_down_comes_out_as_it_is(watched_by_sentinel):
    *_, server, sentinel = watched_by_sentinel
    server.stop()
    with RedisPool(create=lambda: sentinel.master_for("orders")) as pool:
        with pytest.raises(redis.sentinel.MasterNotFoundError):
            pool.get()
        assert pool.current_size == 0


# TLS


@pytest.fixture
def tls_server(start_server, tmp_path):
    cert, key = make_certificate(tmp_path)
    port = RedisServer().port
    config = {"tls-port": port, "tls-cert-file": cert, "tls-key-file": key}
    config |= {"tls-ca-cert-file": cert, "tls-auth-clients": "no"}
    try:
        server = start_server(RedisServer, config=config)
    except RuntimeError as error:
        pytest.skip(f"this redis-server has no TLS: {error}")
    server.tls_url = f"rediss://localhost:{port}/0?ssl_ca_certs={cert}"
    return server


@pytest.mark.parametrize("pool", ["RedisPool", "FairConnectionPool"])
def test_over_tls(tls_server, pool):
    """In a patched process, for redis-py's TLS sockets would block the hub of this one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.redis_over_tls", pool, tls_server.tls_url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["crowd"] == [str(n) for n in range(20)]
    assert result["kept"]  # session tickets are no reason to close it
    assert result["interrupted"]
    assert result["after a Timeout"] == "mine"
    assert result["after CLIENT KILL"] == "mine"
    assert result["connections"] <= 2


@pytest.mark.parametrize("what", [RedisPool, FairConnectionPool.from_url])
def test_a_certificate_that_is_not_trusted_is_an_error(tls_server, what):
    pool = what(tls_server.tls_url.partition("?")[0])
    use = pool.get if isinstance(pool, RedisPool) else pool.get_connection
    with pytest.raises(redis.ConnectionError, match="certificate"):
        use()
    pool.close()
    until(lambda: clients(tls_server) == [])


# Background connects


def test_a_slow_server_is_connected_to_in_the_background(redis_server, proxy_to):
    """Callers give up, the creation does not, and the next ones find its client."""
    proxy = proxy_to(redis_server)
    proxy.script = [hang(5)]
    with RedisPool(host=proxy.host, port=proxy.port, max_size=3, max_creating=1) as pool:
        for _ in range(3):
            with pytest.raises(PoolTimeout):
                pool.get(timeout=0.02)
        assert proxy.made == 1
        assert proxy.stopped.wait(5)
        proxy.resume()
        with pool.item(timeout=5) as client:
            assert client.ping()
        settle()
        assert proxy.made == 1


def test_a_connect_that_hangs_is_cut_off(redis_server, proxy_to):
    proxy = proxy_to(redis_server)
    proxy.script = [hang(5)]
    options = {"max_creating": 1, "create_timeout": 0.05}
    with RedisPool(host=proxy.host, port=proxy.port, max_size=1, **options) as pool:
        with pytest.raises(PoolTimeout, match=r"0\.05 s"):
            pool.get(timeout=5)

        def made():
            try:
                with pool.item(timeout=5) as client:
                    return client.ping()
            except PoolUnavailable:  # it is tried again in a moment
                return False

        until(made)
        assert proxy.made == 2
        until(lambda: proxy.open == 1)


# What a URL may hold


def test_what_a_url_says(redis_server):
    from_url = redis_server.url[:-1] + (
        "4?client_name=me&socket_timeout=7&socket_connect_timeout=6&health_check_interval=3"
        "&protocol=3&retry_on_timeout=no&socket_keepalive=yes&decode_responses=yes"
    )
    with RedisPool(from_url) as pool, pool.item() as client:
        connection = client.connection_pool.connection
        assert connection.db == 4
        assert (connection.socket_timeout, connection.socket_connect_timeout) == (7, 6)
        assert connection.health_check_interval == 3
        assert connection.protocol == 3
        assert connection.retry_on_timeout is False
        assert connection.socket_keepalive is True
        assert client.client_info()["name"] == "me"


def test_a_url_may_say_how_many_and_how_long():
    """As for redis-py's own pools: the URL wins."""
    with RedisPool("redis://127.0.0.1:1/0?max_connections=3&timeout=0.5", max_size=2) as pool:
        assert pool.max_size == 3
        assert pool._book.timeout == 0.5
    with pytest.raises(ValueError, match="timeout"):  # redis-py's word or ours
        RedisPool("redis://127.0.0.1:1/0?timeout=soon")
