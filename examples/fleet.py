"""A limit for a fleet: four worker processes share three tokens, and one is killed."""

import subprocess
import sys

import gevent

from _servers import redis_url
from gpools.fleet import DistributedTokenPool


def pool_on(url):
    return DistributedTokenPool(url, "uploads", max_size=3, lease=1)


def until(claim):
    while not claim(pool.stats()):
        gevent.sleep(0.05)


if len(sys.argv) > 1:
    pool = pool_on(sys.argv[1])
    while True:  # a worker
        with pool.item():
            gevent.sleep(0.1)
with redis_url() as url, pool_on(url) as pool:
    workers = [subprocess.Popen([sys.executable, __file__, url]) for _ in range(4)]
    until(lambda stats: len(stats.members) == 5 and stats.used == 3 and stats.waiting == 1)
    print(f"4 workers: 3 of {pool.max_size} tokens in use, 1 waits")
    holder = next(member.pid for member in pool.stats().members if member.held)
    next(worker for worker in workers if worker.pid == holder).kill()
    until(lambda stats: len(stats.members) == 4 and stats.used == 3 and stats.waiting == 0)
    print("killed one: its token went to who waited")
    for worker in workers:
        worker.kill()
        worker.wait()
    with pool.item(timeout=5), pool.item(timeout=5), pool.item(timeout=5):
        print("killed all: 3 tokens are free again")
