"""Django, django-redis and Celery -P gevent on our pools, by class path."""

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("django_redis")
pytest.importorskip("celery")


def run(server, what):
    done = subprocess.run(
        [sys.executable, "-m", "tests.redis_frameworks", what],
        env=os.environ | {"REDIS_URL": server.url},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("cache", ["django", "django-redis"])
def test_thirty_greenlets_share_two_connections(redis_server, cache):
    result = run(redis_server, cache)
    assert result["values"] == list(range(30))
    assert result["accepted"] <= 2


def test_djangos_own_cache_asks_for_a_pool_in_each_greenlet(redis_server):
    """Which is why there is a SharedConnectionPool."""
    result = run(redis_server, "django, a pool for each greenlet")
    assert result["values"] == list(range(30))
    assert result["accepted"] == 30


def test_celery_with_gevent(redis_server):
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", "tests.redis_celery", "worker"),
            *("-P", "gevent", "-c", "10", "-l", "WARNING", "--without-gossip"),
        ],
        env=os.environ | {"REDIS_URL": redis_server.url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        result = run(redis_server, "celery")["values"]
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            _, said = worker.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            worker.kill()
            _, said = worker.communicate()
    assert result["values"] == [2 * n for n in range(20)], said.decode()
    assert result["results"].startswith("<FairConnectionPool")
    assert result["broker"].startswith("<FairConnectionPool")
    assert b"Traceback" not in said, said.decode()
