"""A crowd, a Timeout and a kill over TLS, patched, in a process of its own.

    python -m tests.redis_over_tls RedisPool|FairConnectionPool rediss://...

It prints what happened as a JSON object.
"""

import sys

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import json
from contextlib import contextmanager

import gevent
import redis

from gpools import RedisPool
from gpools.adapters.redis_py import FairConnectionPool


def clients_of(kind, url):
    if kind == "RedisPool":
        pool = RedisPool(url, max_size=2, timeout=10, decode_responses=True)
        return pool.item, pool

    @contextmanager
    def client():
        yield shared

    pool = FairConnectionPool.from_url(url, max_connections=2, decode_responses=True)
    shared = redis.Redis(connection_pool=pool)
    return client, pool.connections


def main(kind, url):
    item, pool = clients_of(kind, url)
    results = {}

    def echo(text):
        with item() as client:
            return client.echo(text)

    def number():
        with item() as client:
            return client.client_id()

    users = [gevent.spawn(echo, str(n)) for n in range(20)]
    gevent.joinall(users, raise_error=True)
    results["crowd"] = [user.value for user in users]
    results["kept"] = number() in {number() for _ in range(2)}
    results["interrupted"] = True
    with gevent.Timeout(0.1, False), item() as client:
        client.blpop("list", timeout=3)
        results["interrupted"] = False
    results["after a Timeout"] = echo("mine")
    with item() as client:
        results["connections"] = len(client.client_list(_type="normal"))
        client.client_kill_filter(_type="normal", skipme=True)
    results["after CLIENT KILL"] = echo("mine")
    pool.close()
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
