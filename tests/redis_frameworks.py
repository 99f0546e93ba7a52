"""Django's two redis caches and Celery on our pools, patched, in a process of its own.

    REDIS_URL=redis://... python -m tests.redis_frameworks django|django-redis|celery

It prints what happened as a JSON object.
"""

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import json
import os
import sys

import gevent
import redis

POOLS = "gpools.adapters.redis_py"


def django(backend, **options):
    from django.conf import settings

    cache = {"BACKEND": backend, "LOCATION": os.environ["REDIS_URL"], "OPTIONS": options}
    settings.configure(CACHES={"default": cache})
    from django.core.cache import caches

    def use(n):
        caches["default"].set(f"key {n}", n)
        return caches["default"].get(f"key {n}")

    users = [gevent.spawn(use, n) for n in range(30)]
    gevent.joinall(users, raise_error=True)
    return [user.value for user in users]


def celery():
    from tests.redis_celery import app, double

    answers = [double.delay(n) for n in range(20)]
    return {
        "values": [answer.get(timeout=30) for answer in answers],
        "results": repr(app.backend.client.connection_pool),
        "broker": repr(app.connection_for_write().default_channel.client.connection_pool),
    }


def main(what):
    control = redis.Redis.from_url(os.environ["REDIS_URL"])
    control.config_resetstat()
    if what == "django":
        values = django(
            "django.core.cache.backends.redis.RedisCache",
            pool_class=f"{POOLS}.SharedConnectionPool",
            max_connections=2,
            timeout=10,
        )
    elif what == "django, a pool for each greenlet":
        values = django(
            "django.core.cache.backends.redis.RedisCache",
            pool_class=f"{POOLS}.FairConnectionPool",
            max_connections=2,
        )
    elif what == "django-redis":
        values = django(
            "django_redis.cache.RedisCache",
            CONNECTION_POOL_CLASS=f"{POOLS}.FairConnectionPool",
            CONNECTION_POOL_KWARGS={"max_connections": 2, "timeout": 10},
        )
    else:
        values = celery()
    accepted = control.info("stats")["total_connections_received"]
    print(json.dumps({"values": values, "accepted": accepted}))


if __name__ == "__main__":
    main(sys.argv[1])
