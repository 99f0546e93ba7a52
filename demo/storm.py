"""What happens: two kinds of server, a pool in front of each, and the bad weather."""

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import gevent
import httplib2
import redis
from gevent.event import Event
from gevent.lock import RLock
from redis.backoff import NoBackoff
from redis.retry import Retry

from demo.load import KILLED, NO_CLIENT, SERVER_GONE, TIMED_OUT, Tally, Worker
from demo.naive import ExceptPool, FinallyPool
from demo.slow_http import SlowHttpServer
from demo.verdict import Result
from gpools import HttpPool, RedisPool
from tests.servers import RedisServer

MAX_SIZE = 5


class HttpSide:
    """An HTTP server, clients for it, and what it can tell of them."""

    title = "HTTP"
    options = {"timeout": 5}  # noqa: RUF012

    def __init__(self):
        self.server = SlowHttpServer()
        self.peak = self.opened = 0

    def prepare(self):
        """Nothing to do: what it answers is what it was asked."""

    def gpools(self):
        return HttpPool(max_size=MAX_SIZE, name="demo", **self.options)

    def client(self):
        return httplib2.Http(**self.options)

    def ask(self, http, job):
        """Ask; tell whether the answer is one's own, and from the right place."""
        _, body = http.request(f"{self.server.url}/?tag={job.tag}")
        return json.loads(body)["tag"] == job.tag, True

    def watch(self):
        seen = self.server.stats()
        self.peak, self.opened = seen["peak"], seen["accepted"]


class RedisSide:
    """A redis-server, clients for it, and what it can tell of them."""

    title = "Redis"
    options = {"socket_timeout": 5, "retry": Retry(NoBackoff(), 0)}  # noqa: RUF012

    def __init__(self):
        self.server = RedisServer()
        self.peak = self.opened = self.opened_before = 0
        self.admin = RLock()  # the server's control connection has one user at a time

    def prepare(self):
        """Have each database tell its number, also after a crash."""
        for database in ("1", "0"):
            self.server.call("SELECT", database)
            self.server.call("SET", "database", database)
        self.server.call("SAVE")

    def gpools(self):
        return RedisPool(self.server.url, max_size=MAX_SIZE, name="demo", **self.options)

    def client(self):
        return redis.Redis.from_url(self.server.url, **self.options)

    def ask(self, client, job):
        """Ask; tell whether the answer is one's own, and from the right place."""
        if job.elsewhere:
            client.select(1)
        pipe = client.pipeline(transaction=False)
        pipe.wait(1, 20)  # for a replica that is not there: 20 ms
        pipe.echo(job.tag)
        pipe.get("database")
        _, echo, database = pipe.execute()
        if job.elsewhere:
            gevent.sleep(0.005)  # whoever is cut off here leaves the client in database 1
            client.select(0)
        return echo == job.tag.encode(), database == (b"1" if job.elsewhere else b"0")

    def watch(self):
        with self.admin:
            if not self.server.running:
                return
            # Who was there both times was so in between, also where the server
            # is slow to see that a client has hung up.
            self.peak = max(self.peak, len(self.clients() & self.clients()) - 1)
            self.opened = self.opened_before + self.server.stats()["accepted"]

    def clients(self):
        """Return the ids of all connections, that of this question among them."""
        lines = self.server.call("CLIENT", "LIST").splitlines()
        # Flag A: has hung up, and only waits to be swept up.
        return {line.split()[0] for line in lines if not re.search(r" flags=\w*A", line)}

    def crash(self):
        with self.admin:
            self.watch()
            self.opened_before = self.opened
            self.server.kill9()

    def come_back(self):
        with self.admin:
            self.server.start()


class Contender:
    """A pool, the server behind it, and the workers in front of it."""

    def __init__(self, side, recipe):
        self.side = side
        self.recipe = recipe
        self.tally = Tally()
        self.workers = []
        self.before = self.after = self.lost = self.stuck = None

    def prepare(self):
        """Make the pool; its server runs now."""
        self.side.prepare()
        makers = {"finally": FinallyPool, "except": ExceptPool}
        if self.recipe in makers:
            self.pool = makers[self.recipe](MAX_SIZE, self.side.client)
        else:
            self.pool = self.side.gpools()

    def set_off(self, greenlets, seed, weather):
        self.weather = weather
        self.workers = [
            Worker(index, seed, greenlets, self.pool, self.side.ask, self.tally, weather)
            for index in range(greenlets)
        ]
        self.watcher = gevent.spawn(self.keep_watching)

    def keep_watching(self):
        while True:
            with contextlib.suppress(OSError):
                self.side.watch()
            gevent.sleep(0.02 if self.side.title == "Redis" else 0.2)

    def stop(self):
        self.weather.over.set()  # else others take over from the killed
        gevent.killall([self.watcher, *(worker.greenlet for worker in self.workers)])

    def come_to_rest(self):
        """Wait for the workers to end; count those that hang."""
        rest = [worker.greenlet for worker in self.workers]
        gevent.joinall(rest, timeout=5)
        self.stuck = sum(not greenlet.ready() for greenlet in rest)
        gevent.killall(rest)

    def full_check(self):
        """Take as many clients as there should be, all at once; count those that are missing."""
        taken = []
        with contextlib.suppress(Exception):
            while len(taken) < MAX_SIZE:
                taken.append(self.pool.get(timeout=0.5))
        self.lost = MAX_SIZE - len(taken)
        self.side.watch()
        for client in taken:
            self.pool.put(client)
        self.pool.close()

    def result(self):
        tally = self.tally
        waits = sorted(tally.waits)
        expected = (TIMED_OUT, KILLED, SERVER_GONE, NO_CLIENT)
        return Result(
            side=self.side.title,
            recipe=self.recipe,
            max_size=MAX_SIZE,
            done=tally.done,
            before=self.before,
            after=self.after,
            p50=waits[len(waits) // 2] if waits else None,
            p99=waits[len(waits) * 99 // 100] if waits else None,
            timed_out=tally.errors[TIMED_OUT],
            killed=tally.errors[KILLED],
            server_gone=tally.errors[SERVER_GONE],
            no_client=tally.errors[NO_CLIENT],
            unexpected={k: n for k, n in tally.errors.items() if k not in expected},
            peak=self.side.peak,
            opened=self.side.opened,
            strange=tally.strange,
            astray=tally.astray,
            lost=self.lost,
            stuck=self.stuck,
        )


@dataclass
class Weather:
    """What the workers go by."""

    stormy: bool = False  # jobs meet the fate that was drawn for them
    over: Event = field(default_factory=Event)


def wait(contenders, seconds):
    """Let them be."""


def hang_up(contenders, seconds):
    """Close the keep-alive connections of all HTTP servers, again and again."""
    servers = [c.side.server for c in contenders if c.side.title == "HTTP"]
    with gevent.Timeout(seconds, False):
        while True:
            for _ in range(10):
                for server in servers:
                    server.close_idle()
                gevent.sleep(0.05)
            for server in servers:
                server.close_all()  # in the middle of answers, too


def crash(contenders, seconds):
    """Kill all redis-servers without a warning; bring them back after a while."""
    sides = [c.side for c in contenders if c.side.title == "Redis"]
    for side in sides:
        side.crash()
    gevent.sleep(seconds * 0.4)
    for side in sides:
        side.come_back()


@dataclass
class Phase:
    headline: str
    share: float  # of the whole time
    stormy: bool
    deed: Callable  # called with the contenders and its length in seconds


PHASES = [
    Phase("All is well: many greenlets share a few connections", 0.15, False, wait),
    Phase("Timeouts and kills cut off 3 requests in 10, anywhere in the middle", 0.3, True, wait),
    Phase("... and the HTTP servers hang up, 20 times a second", 0.2, True, hang_up),
    Phase("... and the redis-servers are killed with -9, then restarted", 0.2, True, crash),
    Phase("All is well again: who still serves, and whose answers?", 0.15, False, wait),
]
