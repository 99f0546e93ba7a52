"""What every greenlet does, through whichever pool: the load and its count.

A worker thinks, takes a client from its pool, asks something only it would
ask, and looks whether the answer is its own.  What it asks, and when it is cut
off, comes from a random stream of its own: the same for each pool.
"""

import queue
from collections import Counter
from dataclasses import dataclass, field
from http.client import IncompleteRead
from random import Random
from time import perf_counter

import gevent
import httplib2
import redis
from gevent import GreenletExit, Timeout

from gpools import PoolTimeout

GIVE_UP = 1.0  # seconds that a worker waits for a client
ANSWERS_PER_SECOND = 150  # asked of each pool, however many greenlets ask

TIMED_OUT = "timed out"
KILLED = "killed"
SERVER_GONE = "server gone"
NO_CLIENT = "no client"


@dataclass
class Job:
    tag: str  # no other job has it
    elsewhere: bool  # Redis: goes to database 1 and back
    fate: str | None  # in a storm it is TIMED_OUT or KILLED ...
    after: float  # ... after so many seconds


@dataclass
class Tally:
    """What became of the requests through one pool."""

    done: int = 0
    strange: int = 0  # answers to somebody else's request
    astray: int = 0  # answers from somebody else's database
    errors: Counter = field(default_factory=Counter)
    waits: list = field(default_factory=list)  # seconds in get


class Worker:
    """A greenlet that sends request after request; when it is killed the next takes over."""

    def __init__(self, index, seed, greenlets, pool, ask, tally, weather):
        self.index = index
        self.random = Random(f"{seed}/{index}")
        self.think = greenlets / ANSWERS_PER_SECOND
        self.pool, self.ask, self.tally, self.weather = pool, ask, tally, weather
        self.jobs = 0
        self.start()

    def start(self):
        self.greenlet = gevent.spawn(self.run)
        self.greenlet.rawlink(self.succeed)

    def succeed(self, ended):
        if isinstance(ended.value, GreenletExit):
            self.tally.errors[KILLED] += 1
            self.start()

    def run(self):
        while not self.weather.over.wait(self.random.expovariate(1 / self.think)):
            self.request(self.next_job())

    def next_job(self):
        self.jobs += 1
        return Job(
            tag=f"{self.index}-{self.jobs}",
            elsewhere=self.random.random() < 0.15,
            fate=self.random.choices([None, TIMED_OUT, KILLED], [70, 20, 10])[0],
            after=self.random.uniform(0, 0.05),
        )

    def request(self, job):
        tally, fate = self.tally, job.fate if self.weather.stormy else None
        limit = Timeout(job.after if fate == TIMED_OUT else None)
        killer = None
        if fate == KILLED:
            killer = gevent.spawn_later(job.after, gevent.getcurrent().kill, block=False)
        began = perf_counter()
        try:
            with limit, self.pool.item(timeout=GIVE_UP) as client:
                tally.waits.append(perf_counter() - began)
                own, at_home = self.ask(client, job)
        except (PoolTimeout, queue.Empty):
            tally.waits.append(perf_counter() - began)
            tally.errors[NO_CLIENT] += 1
        except (Exception, Timeout) as error:
            tally.errors[kind(error)] += 1
        else:
            tally.done += 1
            tally.strange += not own
            tally.astray += not at_home
        finally:
            if killer is not None:
                killer.kill(block=False)


def kind(error):
    """Say in a word or two whose fault *error* is; by its own name if nobody ordered it."""
    if isinstance(error, Timeout):
        return TIMED_OUT
    gone = (OSError, IncompleteRead, redis.ConnectionError, redis.TimeoutError)
    ours = redis.exceptions.MaxConnectionsError  # of the pool, and a ConnectionError all the same
    if isinstance(error, (*gone, httplib2.ServerNotFoundError)) and not isinstance(error, ours):
        return SERVER_GONE
    return type(error).__name__
