"""How fast the fleet pool is, beside redis-py in the same run: python benchmarks/fleet.py

It starts a redis-server of its own.  Look at the ratios; the rates are the machine's.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gevent
import redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpools.fleet import DistributedTokenPool
from tests.servers import RedisServer

SECONDS = 1.0


def rate(act):
    """Call *act* for a while; return calls per second."""
    act()
    begun, calls = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        act()
        calls += 1
    return calls / (time.perf_counter() - begun)


def pair(pool):
    pool.put(pool.get())


def pairs_of_many(pool, greenlets):
    done, end = [0], time.perf_counter() + SECONDS

    def user():
        while time.perf_counter() < end:
            pair(pool)
            done[0] += 1

    gevent.joinall([gevent.spawn(user) for _ in range(greenlets)])
    return done[0] / SECONDS


def script_time(server):
    """Return the microseconds of the server for one call since the last CONFIG RESETSTAT."""
    for line in server.call("INFO", "commandstats").splitlines():
        if line.startswith("cmdstat_evalsha:"):
            return float(line.split("usec_per_call=")[1].split(",")[0])
    return 0.0


def with_waiters(server, waiters):
    """Measure the script while *waiters* of another process stand in line."""
    name = f"queue{waiters}"
    one = DistributedTokenPool(server.url, name, 1, grace=0)
    held = one.get()
    other = DistributedTokenPool(redis.Redis(port=server.port), name, 1, grace=0)
    waiting = [gevent.spawn(other.get) for _ in range(waiters)]
    while one.stats().waiting < waiters:
        gevent.sleep(0.05)
    server.call("CONFIG", "RESETSTAT")
    for _ in range(2000):
        try:
            one.get(block=False)
        except Exception:
            continue
    spent = script_time(server)
    gevent.killall(waiting)
    one.put(held)
    one.close(), other.close()
    return spent


def hand_over(server, kind):
    """Return how long a token, or a list item, takes to another process: p50 and p99, in ms."""
    worker = subprocess.Popen(
        [sys.executable, __file__, kind, server.url], stdout=subprocess.PIPE, text=True
    )
    client = redis.Redis(port=server.port)
    pool = DistributedTokenPool(server.url, "hand over", 1, grace=0)
    begun = []
    token = pool.get()
    client.set("ready", 0)

    def in_line(n):
        if kind == "list":
            return int(client.get("ready")) >= n
        return pool.stats().waiting == 1

    for n in range(1, 301):
        while not in_line(n):
            gevent.sleep(0.001)
        gevent.sleep(0.002)
        begun.append(time.monotonic())
        if kind == "list":
            client.rpush("list", n)
            client.blpop("back")
        else:
            pool.put(token)  # goes with the want, which stands behind the worker's
            token = pool.get()
    pool.put(token)
    pool.close()
    ended = json.loads(worker.communicate()[0])
    times = sorted((end - start) * 1000 for start, end in zip(begun, ended, strict=True))
    return statistics.median(times), times[int(len(times) * 0.99)]


def worker(kind, url):
    client = redis.Redis.from_url(url, socket_timeout=None)
    pool = DistributedTokenPool(url, "hand over", 1, grace=0)
    ended = []
    for n in range(1, 301):
        client.set("ready", n)
        if kind == "list":
            client.blpop("list")
            ended.append(time.monotonic())
            client.rpush("back", n)
        else:
            token = pool.get()
            ended.append(time.monotonic())
            pool.put(token)
    gevent.sleep(0.1)
    pool.close()
    print(json.dumps(ended))


def main():
    with RedisServer() as server:
        client = redis.Redis(port=server.port)
        pool = DistributedTokenPool(server.url, "one", 2, grace=0)
        many = DistributedTokenPool(server.url, "many", 100, grace=0)
        kept = DistributedTokenPool(server.url, "kept", 2, grace=0, keep=2)
        lock = client.lock("lock", timeout=30)
        rounds = []
        for _ in range(3):
            server.call("CONFIG", "RESETSTAT")
            ping = rate(client.ping)
            one = rate(lambda: pair(pool))
            spent = script_time(server)
            hundred = pairs_of_many(many, 100)
            locks = rate(lambda: (lock.acquire(), lock.release()))
            keeps = rate(lambda: pair(kept))
            rounds.append((ping, one / ping, spent, hundred / ping, locks / ping, keeps / ping))
        middle = [statistics.median(column) for column in zip(*rounds, strict=True)]
        print(f"redis-py PING                            {middle[0]:8.0f} /s")
        print(f"get and put, one greenlet                {middle[1]:8.2f} of PING")
        print(f"  the server's time for the script       {middle[2]:8.1f} us")
        print(f"get and put, 100 greenlets               {middle[3]:8.2f} of PING")
        print(f"get and put with keep                    {middle[5]:8.1f} of PING")
        print(f"redis-py Lock, acquire and release       {middle[4]:8.2f} of PING")
        for each in (pool, many, kept):
            each.close()
        for kind in ("list", "token"):
            p50, p99 = hand_over(server, kind)
            print(
                f"to another process, {kind:5}                {p50:8.2f} ms p50, {p99:.2f} ms p99"
            )
        for waiters in (0, 100, 10_000):
            spent = with_waiters(server, waiters)
            print(f"script with {waiters:6} in line               {spent:8.1f} us")


if len(sys.argv) > 1:
    worker(*sys.argv[1:])
else:
    main()
