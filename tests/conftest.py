"""Fixtures: shared servers, servers of one's own, and no error unnoticed."""

import gevent
import pytest
from gevent.hub import Hub

from tests.databases import MariadbServer, MemcachedServer, MysqlServer, PostgresServer
from tests.hostile import unending
from tests.proxy import FaultProxy
from tests.servers import HttpServer, RedisServer, require_server
from tests.ssh_server import SshServer
from tests.waiting import Watched, watched


@pytest.fixture(scope="session")
def shared_servers():
    servers = {}
    yield servers
    for server in servers.values():
        server.stop()


def shared(servers, server_class):
    require_server(server_class)
    server = servers.setdefault(server_class, server_class())
    if server.running:
        server.thaw()
        server.reset()
    else:
        server.start()
    return server


def shared_fixture(server_class):
    """Make a fixture: a server shared by all tests, which drop what they make."""

    @pytest.fixture
    def server(shared_servers):
        return shared(shared_servers, server_class)

    return server


redis_server = shared_fixture(RedisServer)  # no data, no clients, counts at 0
http_server = shared_fixture(HttpServer)  # no connections, counts at 0
memcached_server = shared_fixture(MemcachedServer)  # no data
postgres_server = shared_fixture(PostgresServer)
# Or what GPOOLS_MYSQLD names.
mariadb_server = shared_fixture(MariadbServer if MysqlServer.missing() else MysqlServer)
ssh_server = shared_fixture(SshServer)


@pytest.fixture
def start_server():
    """`start_server(RedisServer, password="secret")`: one for this test alone."""
    servers = []

    def start(server_class, **settings):
        require_server(server_class)
        servers.append(server_class(**settings))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def proxy_to():
    """`proxy_to(server, hang(5))`: a FaultProxy in front of a server."""
    proxies = []

    def start(server, *fault):
        proxies.append(FaultProxy(server.address, *fault).listen())
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.__exit__()


@pytest.fixture(autouse=True)
def hub_errors(request, monkeypatch):
    """Fail the test if the hub printed an error that nobody looked at.

    The errors of greenlets made with `tests.waiting.spawn` count as looked at
    once the test asks for their `exception`, `successful()` or `get()`.  The
    mark `hub_errors` lets all others pass; this list of (context, error) is
    then the test's to look at.
    """
    errors = []
    print_exception = Hub.print_exception

    def record(hub, context, kind, error, traceback):
        errors.append((context, error))
        print_exception(hub, context, kind, error, traceback)

    monkeypatch.setattr(Hub, "print_exception", record)
    yield errors
    for end in list(unending):
        end.set()
    gevent.sleep(0)  # what the test has left scheduled may fail too
    gevent.killall(list(watched), timeout=5)
    lost = [e for e in errors if not (isinstance(e[0], Watched) and e[0].looked_at)]
    if lost and not request.node.get_closest_marker("hub_errors"):
        pytest.fail(f"the hub printed what nobody looked at: {lost}")
