"""RedisPool: what a block leaves behind on its connection never reaches the next user."""

from gevent import monkey

monkey.patch_all()

import gevent
import redis

from _servers import redis_url
from gpools import RedisPool


def visit(pool):
    with pool.item() as client:
        client.incr("gpools:visits")


with redis_url() as url, RedisPool(url, max_size=1, socket_timeout=5, timeout=2) as pool:
    with pool.item() as client:
        client.delete("gpools:visits", "gpools:list")
    gevent.joinall([gevent.spawn(visit, pool) for _ in range(20)], raise_error=True)
    with pool.item() as client:
        print("visits:", int(client.get("gpools:visits")))

    with gevent.Timeout(0.1, False), pool.item() as client:
        client.blpop("gpools:list", timeout=3)  # interrupted: this connection is closed
    print("after a Timeout:", pool)

    try:
        with pool.item() as client:
            client.incr("gpools:visits", "many")
    except redis.ResponseError as error:
        print("the command was wrong, the connection is kept:", error)
    print("after an error reply:", pool)

    with pool.item() as client:
        client.execute_command("SELECT", 1)
    print("after SELECT:", pool)
