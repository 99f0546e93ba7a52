"""MemcachedPool, PooledClient and SocketPool in a program under gevent.monkey.patch_all()."""

import json
import subprocess
import sys
from pathlib import Path

from tests.tls import make_certificate

PROGRAM = """
from gevent import monkey
monkey.patch_all()

import json, socket, ssl, sys
import gevent
from gevent import Timeout
from pymemcache.client.base import PooledClient
from gpools.adapters.memcached import ClientPool, FairHashClient, MemcachedPool
from gpools.adapters import SocketPool
from tests.test_socket_pool import Echo, ask, tls_server

address = ("127.0.0.1", int(sys.argv[1]))
results = {}

def crowd(ask_one):
    wrong = []
    def user(name):
        for turn in range(3):
            tag = f"{name}-{turn}"
            with Timeout(0.001 if turn == 1 else 20, False):
                answer = ask_one(tag)
                if answer != tag:
                    wrong.append((tag, answer))
    gevent.joinall([gevent.spawn(user, name) for name in range(20)], raise_error=True)
    return wrong

def one(client, tag):
    client.set(tag, tag)
    return client.get(tag).decode()

def pooled(tag):
    with pool.item() as client:
        return one(client, tag)

def asked(tag):
    with sockets.item() as sock:
        return ask(sock, tag)

with MemcachedPool(address, max_size=3) as pool:
    results["pool"] = crowd(pooled)

shared = PooledClient(address, max_pool_size=3)  # the patched socket module
shared.client_pool = ClientPool(shared)
results["pooled client"] = crowd(lambda tag: one(shared, tag))
results["used"] = len(shared.client_pool.used)
shared.client_pool.pool.close()

cluster = FairHashClient([address], max_pool_size=3)
results["hash client"] = crowd(lambda tag: one(cluster, tag))
for each in cluster.clients.values():
    each.client_pool.pool.close()

listener = socket.create_server(("127.0.0.1", 0))
context = ssl.create_default_context(cafile=sys.argv[2])
with Echo(listener, tls_server(sys.argv[2:4])) as echo:
    with SocketPool(echo.address, ssl=context, server_hostname="localhost", max_size=3) as sockets:
        results["sockets"] = crowd(asked)
print(json.dumps(results))
"""


def test_all_work_in_a_patched_program(memcached_server, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-c", PROGRAM),
            *(str(memcached_server.port), *make_certificate(tmp_path)),
        ],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""  # no warning, no error that the hub printed
    assert json.loads(done.stdout) == {
        "pool": [],
        "pooled client": [],
        "used": 0,
        "hash client": [],
        "sockets": [],
    }
    assert memcached_server.stats()["open"] == 0
