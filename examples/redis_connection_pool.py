"""FairConnectionPool: redis-py's own client, shared by all greenlets, in fair order."""

from gevent import monkey

monkey.patch_all()

import gevent
import redis

from _servers import redis_url
from gpools.adapters.redis_py import FairConnectionPool

with redis_url() as url, FairConnectionPool.from_url(url, max_connections=2, name="app") as pool:
    client = redis.Redis(connection_pool=pool)
    client.delete("gpools:visits", "gpools:list")

    def visit():
        client.incr("gpools:visits")
        client.blpop("gpools:list", timeout=0.01)  # takes its time

    gevent.joinall([gevent.spawn(visit) for _ in range(50)], raise_error=True)
    print("visits:", int(client.get("gpools:visits")))
    print("fifty greenlets:", pool)

    with gevent.Timeout(0.1, False):
        client.blpop("gpools:list", timeout=3)  # interrupted: this connection is closed
    print("after a Timeout:", pool)

    client.pubsub().subscribe("gpools:news")  # and nobody closes it
    gevent.sleep(0)
    print("after a lost pubsub:", pool)

    pool.timeout = 0.1
    held = [pool.get_connection() for _ in range(2)]
    try:
        client.ping()
    except redis.ConnectionError as error:
        print(str(error).partition(";")[0])
