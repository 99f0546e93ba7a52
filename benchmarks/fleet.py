"""Measure the fleet pool beside its peers: python -m benchmarks.fleet [--write] [--quick]

It starts a redis-server of its own, and worker processes.  What is compared is
measured in turn, round by round, in one run; look at the ratios, the rates are
the machine's.  With --write the tables go into docs/fleet.md.

The peers are redis-py's Lock, which lets in one at a time, and the package
redis-semaphore of PyPI, left out where it is not installed.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import datetime
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import gevent
import greenlet
import redis
from gevent.fileobject import FileObject

from gpools import PoolTimeout
from gpools.fleet import DistributedTokenPool
from tests.servers import RedisServer

try:
    from redis_semaphore import Semaphore
except ImportError:
    Semaphore = None

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "fleet.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end of what was measured -->\n"

POOL, LOCK, SEMAPHORE, LIST = "DistributedTokenPool", "redis-py Lock", "redis-semaphore", "list"
PROCESSES, TOKENS, HOLD = 4, 50, 0.005


# Ways to take and to give back.


class Pool:
    def __init__(self, url, name, size):
        self.pool = DistributedTokenPool(url, name, size, grace=0)

    def take(self):
        return self.pool.get()

    def give(self, token):
        self.pool.put(token)

    def close(self):
        self.pool.close()

    def in_line(self):
        return self.pool.stats().waiting == 1


class Client:
    def __init__(self, url, name, size):
        self.client = redis.Redis.from_url(url, socket_timeout=None)
        self.name, self.size = f"{type(self).__name__} {name}", size

    def close(self):
        self.client.close()


class Lock(Client):
    def take(self):
        lock = self.client.lock(self.name, timeout=60)
        lock.acquire()
        return lock

    def give(self, lock):
        lock.release()

    def in_line(self):
        gevent.sleep(0.05 + random.random() * 0.1)  # it polls, every 0.1 s
        return True


class Blocking(Client):
    """What waits in BLPOP."""

    def in_line(self):
        return self.client.info("clients")["blocked_clients"] == 1


class Semaphores(Blocking):
    def take(self):
        semaphore = Semaphore(self.client, self.size, self.name)
        semaphore.acquire()
        return semaphore

    def give(self, semaphore):
        semaphore.release()


class List(Blocking):
    """Nothing but RPUSH and BLPOP."""

    def take(self):
        return self.client.blpop("bare")

    def give(self, item):
        self.client.rpush("bare", "x")


WAYS = {POOL: Pool, LOCK: Lock} | ({SEMAPHORE: Semaphores} if Semaphore else {})


# How many pairs per second.


def rates(acts, seconds, slices=20):
    """Call each of *acts* for *seconds*, in turn, for the machine has other things to do, too.

    Return calls per second, by name.
    """
    calls, spent = dict.fromkeys(acts, 0), dict.fromkeys(acts, 0.0)
    for _ in range(slices):
        for name, act in acts.items():
            act()
            begun, count = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds / slices:
                act()
                count += 1
            calls[name] += count
            spent[name] += time.perf_counter() - begun
    return {name: calls[name] / spent[name] for name in acts}


def rate_of_many(way, greenlets, seconds):
    done, begun = [0], time.perf_counter()

    def user():
        while time.perf_counter() < begun + seconds:
            way.give(way.take())
            done[0] += 1

    gevent.joinall([gevent.spawn(user) for _ in range(greenlets)], raise_error=True)
    return done[0] / (time.perf_counter() - begun)


def measure_rates(server, rounds, seconds, greenlets):
    """Return what each round found: of PING its rate, of all else pairs per PING."""
    client = redis.Redis.from_url(server.url)
    one = {name: way(server.url, "one", 2) for name, way in WAYS.items()}
    many = {name: way(server.url, "many", 100) for name, way in WAYS.items()}
    kept = DistributedTokenPool(server.url, "kept", 2, grace=0, keep=2)
    acts = {name: lambda way=way: way.give(way.take()) for name, way in one.items()}
    acts |= {"ping": client.ping, "keep": lambda: kept.put(kept.get())}
    columns = {}
    for _ in range(rounds):
        here = {(name, 1): found for name, found in rates(acts, seconds).items()}
        here |= {(name, 100): rate_of_many(way, greenlets, seconds) for name, way in many.items()}
        ping = here.pop(("ping", 1))
        columns.setdefault("ping", []).append(ping)
        for key, found in here.items():
            columns.setdefault(key, []).append(found / ping)
    for each in (client, kept, *one.values(), *many.values()):
        each.close()
    return columns


# From one process to another.


def measure_hand_over(server, rounds, each):
    """Return the milliseconds that each hand-over took, by name."""
    ways = WAYS | {LIST: List}
    mine = {name: way(server.url, "hand over", 1) for name, way in ways.items()}
    mine[LIST].client.rpush("bare", "x")
    workers = {name: Worker("hand-over", server.url, name) for name in ways}
    took = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in mine.items():
            for _ in range(max(1, each // 10) if name == LOCK else each):
                token = way.take()
                workers[name].tell("go")
                while not way.in_line():
                    gevent.sleep(0.001)
                gevent.sleep(0.002)
                begun = time.monotonic()
                way.give(token)
                took[name].append((workers[name].hear() - begun) * 1000)
    for name, worker in workers.items():
        worker.end()
        mine[name].close()
    return took


def hand_over_worker(url, name):
    way = (WAYS | {LIST: List})[name](url, "hand over", 1)
    for _ in FileObject(sys.stdin):
        item = way.take()
        got = time.monotonic()
        way.give(item)
        gevent.sleep(0.001)  # so that it is given before the other one asks
        print(got, flush=True)


# Many waiters.


def measure_waiters(server, waiters, calls):
    """Queue *waiters* of PROCESSES processes, measure the script meanwhile, then serve them all."""
    pool = DistributedTokenPool(server.url, "queue", TOKENS, grace=0)
    held = [pool.get() for _ in range(TOKENS)]
    found = {"script": {0: script_time(server, pool, calls)}}
    before = int(server.call("INFO", "memory").split("used_memory:")[1].split()[0])
    share = str(waiters // PROCESSES)
    workers = [Worker("wait", server.url, "queue", share) for _ in range(PROCESSES)]
    for queued in sorted({100, min(1000, waiters), waiters}):
        share = queued - pool.stats().waiting
        for n, worker in enumerate(workers):
            worker.tell(share // PROCESSES + (n < share % PROCESSES))
        while pool.stats(timeout=60).waiting < queued:
            gevent.sleep(0.05)
        found["script"][queued] = script_time(server, pool, calls)
    memory = int(server.call("INFO", "memory").split("used_memory:")[1].split()[0])
    found["waiters"], found["bytes"] = waiters, (memory - before) / waiters
    info = server.call("INFO", "clients")
    found["connections"] = int(info.split("connected_clients:")[1].split()[0]) - 1  # the control's
    server.call("CONFIG", "RESETSTAT")
    server.call("CONFIG", "SET", "slowlog-log-slower-than", 1000)
    server.call("SLOWLOG", "RESET")
    spent = server_cpu(server)
    begun = time.monotonic()
    for token in held:
        pool.put(token)
    answers = [worker.hear() for worker in workers]
    found["seconds"] = time.monotonic() - begun
    found["server"] = (server_cpu(server) - spent) / waiters * 1e6
    for key in ("wakes", "cpu"):
        found[key] = sum(answer[key] for answer in answers) / waiters
    assert sum(answer["served"] for answer in answers) == waiters
    asked, _ = commandstats(server, "evalsha")
    found["calls"] = asked / waiters
    found["slow"] = server.call("SLOWLOG", "LEN")
    for worker in workers:
        worker.end()
    pool.close()
    return found


def waiting_worker(url, name, share):
    pool = DistributedTokenPool(url, name, TOKENS, grace=0)
    waiting, wakes = set(), [0]
    begun, users = resource.getrusage(resource.RUSAGE_SELF), []

    def count(event, about):
        if about[1] in waiting:
            wakes[0] += 1

    def user():
        me = greenlet.getcurrent()
        waiting.add(me)
        token = pool.get()
        waiting.discard(me)
        gevent.sleep(HOLD)
        pool.put(token)

    def all_served():
        gevent.joinall(users, raise_error=True)
        pool.stats()  # so that the last puts are there
        ended = resource.getrusage(resource.RUSAGE_SELF)
        cpu = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
        answer = {"served": len(users), "wakes": wakes[0], "cpu": cpu * 1e6}
        print(json.dumps(answer), flush=True)

    for n in FileObject(sys.stdin):
        users += [gevent.spawn(user) for _ in range(int(n))]
        gevent.sleep(0)
        if len(users) == int(share):
            # All are in line, or will be without being woken.
            greenlet.settrace(count)
            begun = resource.getrusage(resource.RUSAGE_SELF)
            gevent.spawn(all_served)


def script_time(server, pool, calls):
    """Return the microseconds of the server for a call that is granted nothing, the median."""
    client, times = redis.Redis.from_url(server.url), []
    server.call("CONFIG", "SET", "slowlog-log-slower-than", 0)
    server.call("CONFIG", "SET", "slowlog-max-len", 5000)
    for _ in range(3):
        server.call("SLOWLOG", "RESET")
        for _ in range(calls):
            with suppress(PoolTimeout):
                pool.get(block=False)
        logged = client.slowlog_get(5000)
        times += [e["duration"] for e in logged if e["command"].startswith(b"EVALSHA")]
    server.call("CONFIG", "SET", "slowlog-log-slower-than", -1)
    client.close()
    return statistics.median(times)


def commandstats(server, command):
    for line in server.call("INFO", "commandstats").splitlines():
        if line.startswith(f"cmdstat_{command}:"):
            pairs = dict(pair.split("=") for pair in line.split(":")[1].split(","))
            return int(pairs["calls"]), float(pairs["usec_per_call"])
    return 0, 0.0


def server_cpu(server):
    lines = dict(line.split(":") for line in server.call("INFO", "cpu").splitlines() if ":" in line)
    return float(lines["used_cpu_user"]) + float(lines["used_cpu_sys"])


class Worker:
    """This module as a process of its own, which is told lines and answers in JSON."""

    def __init__(self, *what):
        command = [sys.executable, "-m", "benchmarks.fleet", "worker", *what]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, **pipes)

    def tell(self, what):
        self.process.stdin.write(f"{what}\n".encode())
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.kill()
        self.process.wait()


# What is said of it.


def table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def goal(value, limit, at_least=True):
    met = value >= limit if at_least else value <= limit
    return f"{'at least' if at_least else 'at most'} {limit:g}: {'met' if met else '**not met**'}"


def report(server, columns, took, queue, load):
    middle = {key: statistics.median(values) for key, values in columns.items()}

    def ratio(key):
        found = columns.get(key)
        if found is None:
            return "-"
        return f"{middle[key]:.2f} ({min(found):.2f} to {max(found):.2f})"

    bare = statistics.median(took[LIST])
    yield (
        f"`python -m benchmarks.fleet --write`, {datetime.date.today()}: "
        f"{os.cpu_count()} cores ({platform.machine()}), load {load[0]:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after, Redis "
        f"{server.call('INFO', 'server').split('redis_version:')[1].split()[0]} on loopback, "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {_version(name)}" for name in ("gevent", "redis", "redis-semaphore"))
        + f".\nThe load is not all ours.  PING of redis-py: {middle['ping']:.0f} per second, "
        f"in rounds from {min(columns['ping']):.0f} to {max(columns['ping']):.0f}.\n\n"
    )
    rows = [(name, ratio((name, 1)), ratio((name, 100))) for name in (POOL, LOCK, SEMAPHORE)]
    rows += [(f"{POOL} with *keep*", ratio(("keep", 1)), "")]
    rows += [("the goal", goal(middle[POOL, 1], 0.7), goal(middle[POOL, 100], 5))]
    yield (
        "Pairs of take and give per PING of one greenlet in the same round: the median of "
        f"{len(columns['ping'])} rounds, and the least and the most.\n\n"
    )
    yield table(["", "one greenlet, a tight loop", "100 greenlets"], rows) + "\n"
    yield "To a waiter in another process, milliseconds:\n\n"
    rows = []
    for name in (LIST, POOL, SEMAPHORE, LOCK):
        if name in took:
            times = sorted(took[name])
            shown = "bare RPUSH and BLPOP" if name == LIST else name
            p50 = statistics.median(times)
            p99 = times[int(len(times) * 0.99)]
            aim = goal(p50 / bare, 1.5, at_least=False) if name == POOL else ""
            rows.append((shown, f"{p50:.2f}", f"{p99:.2f}", f"{p50 / bare:.2f}", aim, len(times)))
    yield table(["", "p50", "p99", "p50 to the bare one's", "the goal", "hand-overs"], rows) + "\n"
    yield (
        f"{queue['waiters']:,} waiters in {PROCESSES} processes, {TOKENS} tokens, each held for "
        f"{HOLD * 1000:g} ms:\n\n"
    )
    script = ", ".join(f"{time:.0f} us at {n:,}" for n, time in queue["script"].items())
    least = queue["waiters"] * HOLD / TOKENS
    rows = [
        ("connections", queue["connections"], f"{PROCESSES + 1}, one for each process"),
        ("wake-ups per grant", f"{queue['wakes']:.3f}", "1"),
        ("script, by the length of the queue", script, "the same"),
        ("calls of the script per grant", f"{queue['calls']:.3f}", ""),
        ("all served in", f"{queue['seconds']:.2f} s", f"{least:.2f} s were ideal"),
        ("CPU of Redis per grant", f"{queue['server']:.0f} us", ""),
        ("CPU of the clients per grant, counted wake by wake", f"{queue['cpu']:.0f} us", ""),
        ("memory of Redis per waiter", f"{queue['bytes']:.0f} bytes", ""),
        ("calls of 1 ms and more", queue["slow"], ""),
    ]
    yield table(["", "measured", "the goal"], rows)


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def main(options):
    load = os.getloadavg()
    quick = "--quick" in options
    with RedisServer() as server:
        columns = measure_rates(server, *((1, 0.05, 5) if quick else (9, 0.5, 100)))
        took = measure_hand_over(server, *((1, 2) if quick else (6, 60)))
        queue = measure_waiters(server, *((400, 50) if quick else (10_000, 500)))
        text = "".join(report(server, columns, took, queue, load))
    print(text)
    if "--write" in options:
        head, rest = PAGE.read_text().split(BEGIN)
        _, tail = rest.split(END)
        PAGE.write_text(f"{head}{BEGIN}{text}{END}{tail}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        kind, *told = sys.argv[2:]
        {"hand-over": hand_over_worker, "wait": waiting_worker}[kind](*told)
    else:
        main(sys.argv[1:])
