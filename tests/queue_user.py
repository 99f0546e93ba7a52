"""A patched program whose library waits on a queue of its own, or on FairLifoQueue.

    python -m tests.queue_user redis|urllib3|kombu fair|theirs PORT

It prints what happened as a JSON object.
"""

import sys

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import json
from contextlib import contextmanager
from queue import LifoQueue

import gevent

from gpools.queues import FairLifoQueue

LIBRARY, KIND, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
SIZE = 1
QUEUE = FairLifoQueue if KIND == "fair" else LifoQueue


class Redis:
    def __init__(self):
        import redis

        self.pool = redis.BlockingConnectionPool(
            port=PORT, max_connections=SIZE, timeout=20, queue_class=QUEUE, decode_responses=True
        )
        self.redis = redis

    @contextmanager
    def take(self):
        connection = self.pool.get_connection()
        try:
            yield connection
        finally:
            self.pool.release(connection)

    def echo(self, connection, tag):
        connection.send_command("ECHO", tag)
        return connection.read_response()


class Urllib3:
    def __init__(self):
        from urllib3.connectionpool import HTTPConnectionPool

        class Pool(HTTPConnectionPool):
            QueueCls = QUEUE

        self.pool = Pool("127.0.0.1", PORT, maxsize=SIZE, block=True)

    @contextmanager
    def take(self):
        connection = self.pool._get_conn(timeout=20)
        try:
            yield connection
        finally:
            self.pool._put_conn(connection)

    def echo(self, connection, tag):
        connection.request("GET", f"/?tag={tag}")
        return json.loads(connection.getresponse().data)["tag"]


class Kombu:
    def __init__(self):
        import kombu.resource

        kombu.resource.LifoQueue = QUEUE
        self.pool = kombu.Connection(f"redis://127.0.0.1:{PORT}/0").Pool(SIZE)
        assert type(self.pool._resource) is QUEUE

    @contextmanager
    def take(self):
        connection = self.pool.acquire(block=True, timeout=20)
        try:
            yield connection
        finally:
            connection.release()

    def echo(self, connection, tag):
        with connection.SimpleQueue(f"echo-{tag}") as answers:
            answers.put(tag)
            message = answers.get(timeout=10)
            message.ack()
            return message.payload


def order(user):
    """Have twenty wait while one holds the connection; return in what order they got it."""
    served = []

    def wait(number):
        with user.take():
            served.append(number)

    with user.take():
        waiting = [gevent.spawn(wait, number) for number in range(20)]
        gevent.sleep(0.01)
    gevent.joinall(waiting, raise_error=True)
    return served


def waiters_served(user):
    """Count the waiters that one who takes the connection again at once lets in."""
    served = []

    def wait():
        with user.take():
            served.append(1)

    def greedy():
        for _ in range(50):
            with user.take():
                gevent.sleep(0.001)
                before = len(served)
        return before

    first = gevent.spawn(greedy)
    gevent.sleep(0)
    waiting = [gevent.spawn(wait) for _ in range(5)]
    gevent.joinall([first, *waiting], raise_error=True)
    return first.value


def after_kills(user):
    """Kill every other one of those who wait, as the connection comes back."""
    served = []

    def wait(number):
        with user.take():
            served.append(number)

    with user.take():
        waiting = [gevent.spawn(wait, number) for number in range(20)]
        gevent.sleep(0.01)
        gevent.killall(waiting[:10:2])
        gevent.killall(waiting[10::2], block=False)
    gevent.joinall(waiting, timeout=10)
    survivors = set(range(1, 20, 2))
    return "all served" if survivors <= set(served) else sorted(survivors - set(served))


def foreign(user):
    """Have a crowd ask; return the answers that were somebody else's."""
    wrong = []

    def ask(tag):
        with user.take() as connection:
            answer = user.echo(connection, tag)
        if answer != tag:
            wrong.append((tag, answer))

    gevent.joinall([gevent.spawn(ask, f"t{n}") for n in range(20)], raise_error=True)
    return wrong


def main():
    user = {"redis": Redis, "urllib3": Urllib3, "kombu": Kombu}[LIBRARY]()
    results = {"waiters served while a greedy one uses the pool": waiters_served(user)}
    results["order"] = order(user)
    if KIND == "fair":
        results["after kills"] = after_kills(user)
    results["foreign"] = foreign(user)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
