"""A program that uses both adapters, in a process of its own, patched or plain.

    python -m tests.patched_user patched|plain HTTP_PORT REDIS_PORT CERT KEY

It prints what happened as a JSON object.
"""

import sys

if sys.argv[1] == "patched":
    from gevent import monkey

    monkey.patch_all()

import json
from functools import partial

import gevent
import redis
from gevent import Timeout

from gpools import HttpPool, RedisPool
from tests.switching import switches
from tests.tls import TlsServer


def ask(http, port, **query):
    words = "&".join(f"{key}={value}" for key, value in query.items())
    _, body = http.request(f"http://127.0.0.1:{port}/?{words}")
    return json.loads(body)["tag"]


def crowd(ask_one, greenlets=12, turns=3):
    """Have a crowd ask; return the answers that were somebody else's, and how many there were."""
    foreign, answers = [], 0

    def user(name):
        nonlocal answers
        for turn in range(turns):
            tag = f"{name}-{turn}"
            answer = ask_one(tag)
            answers += 1
            if answer != tag:
                foreign.append((tag, answer))

    users = [gevent.spawn(user, name) for name in range(greenlets)]
    gevent.joinall(users, raise_error=True)
    return foreign, answers


def interrupt(act):
    """Give up on *act*: by a Timeout of gevent's where that can hit, else by the client's own."""
    try:
        with Timeout(0.1 if sys.argv[1] == "patched" else 5):
            act()
    except (Timeout, TimeoutError, redis.TimeoutError) as error:
        return type(error).__name__


def http(port):
    with HttpPool(max_size=3, timeout=30 if sys.argv[1] == "patched" else 0.5) as pool:
        yield "http crowd", crowd(lambda tag: ask(pool, port, tag=tag, delay=0.005))
        yield "http pool", repr(pool)
        yield "http interrupted", interrupt(lambda: ask(pool, port, tag="theirs", silent=1))
        yield "http next", ask(pool, port, tag="mine")
        with pool.item() as client, switches() as count:
            pool.check(client)
        yield "http switches", count()
        yield "http waits in line", wait_in_line(pool, lambda item: ask(item, port, tag="x"))


def redis_(port):
    options = {} if sys.argv[1] == "patched" else {"socket_timeout": 0.5}
    with RedisPool(port=port, max_size=3, decode_responses=True, **options) as pool:

        def echo(tag):
            with pool.item() as client:
                client.execute_command("SELECT", 3)
                if sys.argv[1] == "patched":  # else all wait for it
                    client.blpop("nothing", timeout=0.01)
                return client.echo(tag)

        yield "redis crowd", crowd(echo)
        yield "redis pool", repr(pool)

        def stuck():
            with pool.item() as client:
                client.blpop("nothing", timeout=0)

        yield "redis interrupted", interrupt(stuck)
        with pool.item() as client:
            yield "redis next", [client.echo("mine"), client.client_info()["db"]]
        with pool.item() as client:
            pass
        with switches() as count:
            yield "redis check", pool.check(client)
        yield "redis switches", count()
        yield "redis waits in line", wait_in_line(pool, lambda item: item.echo("x"))


def wait_in_line(pool, use):
    """Take all items, and have others wait for them; return what they got."""
    items = [pool.get() for _ in range(pool.max_size)]

    def wait():
        with pool.item(timeout=5) as item:
            return use(item)

    waiters = [gevent.spawn(wait) for _ in range(5)]
    gevent.sleep(0)
    assert pool.waiting() == 5
    for item in items:
        pool.put(item)
    gevent.joinall(waiters, raise_error=True)
    return [waiter.value for waiter in waiters]


def tls(cert, key):
    if sys.argv[1] == "plain":
        return  # its server would need the turn that a plain client does not give
    with TlsServer(cert, key) as server, HttpPool(max_size=2, ca_certs=cert) as pool:
        yield "tls crowd", crowd(lambda tag: pool.request(f"{server.url}/{tag}")[1][1:].decode())
        with pool.item() as client, switches() as count:
            pool.check(client)
        yield "tls switches", count()
        yield "tls connections", len(server.connections)


def main():
    http_port, redis_port = map(int, sys.argv[2:4])
    results = {}
    for part in (
        partial(http, http_port),
        partial(redis_, redis_port),
        partial(tls, *sys.argv[4:]),
    ):
        results.update(part())
    print(json.dumps(results))


if __name__ == "__main__":
    main()
