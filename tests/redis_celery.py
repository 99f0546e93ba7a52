"""A Celery program whose broker and results are on FairConnectionPools, as in docs/redis.md.

REDIS_URL=redis://... celery -A tests.redis_celery worker -P gevent
"""

import os

from celery import Celery
from celery.backends.redis import RedisBackend
from kombu.transport import redis as kombu_redis

from gpools.adapters.redis_py import FairConnectionPool


class Channel(kombu_redis.Channel):
    def _get_pool(self, asynchronous=False):
        options = self._connparams(asynchronous)
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=options["db"])
        return FairConnectionPool(**options)


class Transport(kombu_redis.Transport):
    Channel = Channel


class Results(RedisBackend):
    ConnectionPool = FairConnectionPool


url = os.environ["REDIS_URL"]
app = Celery(
    "tests.redis_celery",
    broker=url,
    backend=f"tests.redis_celery:Results+{url}",
    broker_transport="tests.redis_celery:Transport",
    redis_max_connections=5,
    broker_connection_retry_on_startup=False,
)


@app.task
def double(n):
    return 2 * n
