"""KeyedPool: a pool for each host, under one limit; an idle host makes way for another."""

from gpools import ConnectionPool, KeyedPool


class Conn:
    def __init__(self, host):
        self.host = host
        print("connect to", host)

    def close(self):
        print("leave", self.host)


def make_pool(host):
    return ConnectionPool(max_size=2, create=lambda: Conn(host), timeout=5)


with KeyedPool(make_pool, max_size=2) as pools:
    for host in ("db1", "db2", "db1", "db3"):
        with pools.item(host) as conn:
            print("ask", conn.host)
    print(sorted(pools.pools()), pools)
