"""MemcachedPool, and a PooledClient on one: what a Timeout hits is nobody else's trouble."""

import gevent

from _servers import memcached_server
from gpools.adapters.memcached import FairPooledClient, MemcachedPool


def visit(client):
    client.incr("gpools:visits", 1)


with memcached_server() as server, MemcachedPool(server, max_size=1, timeout=5) as pool:
    with pool.item() as client:
        client.set("gpools:visits", 0, noreply=False)

    with gevent.Timeout(0.1, False), pool.item() as client:
        visit(client)
        gevent.sleep(1)  # interrupted: this connection is closed
    print("after a Timeout:", pool)

    with pool.item() as client:
        client.set("", "no such key")  # the server says so, though nobody asked
        client.timeout = 0.001
    with pool.item() as client:
        print("the next user has a timeout of", client.timeout, "and", client.get("gpools:visits"))

    shared = FairPooledClient(server, max_pool_size=2, timeout=5)
    gevent.joinall([gevent.spawn(visit, shared) for _ in range(20)], raise_error=True)
    print("20 more, on 2 connections:", shared.get("gpools:visits"), shared.client_pool)
    shared.close()
