"""A process that uses a fleet pool and keeps its own record of it, for tests/fleets.py.

    python -m tests.fleet_worker '{"url": ..., "name": ..., "log": ...}'

A line of the record is what, pid, fence, nanoseconds of CLOCK_MONOTONIC: "A"
after a token was got, "R" before it is put, "L" when the pool said it was lost.
"D" has no fence, and the time until which tokens are valid, as known then.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import json
import os
import random
import signal
import sys
import time

import gevent

from gpools import PoolError
from gpools.fleet import DistributedTokenPool, _link, _member, _script


def main(told):
    log = os.open(told["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    pid = os.getpid()

    def write(what, token):
        os.write(log, f"{what} {pid} {token.fence} {time.monotonic_ns()}\n".encode())

    def on_lost(tokens):
        for token in tokens:
            write("L", token)

    for old, new in told.get("script", []):  # a guard taken out, for a negative control
        assert old.encode() in _script.SOURCE
        _link.SOURCE = _link.SOURCE.replace(old.encode(), new.encode())
        _link.SHA = _script.sha1(_link.SOURCE).hexdigest()

    pool = DistributedTokenPool(
        told["url"], told["name"], told["size"], on_lost=on_lost, **told.get("settings", {})
    )

    def user(seed):
        rng = random.Random(seed)
        while not stop:
            try:
                with pool.item(timeout=rng.choice([None, 0.5])) as token:
                    write("A", token)
                    try:
                        gevent.sleep(rng.random() * told["hold"])
                    finally:
                        write("R", token)
            except PoolError:
                gevent.sleep(0.01)

    def watch_the_lease():
        last = 0.0
        while True:
            member = pool._member_now
            if member is not None and member.deadline and member.deadline != last:
                last = member.deadline
                at = time.monotonic_ns() + int((last - _member.clock()) * 1e9)
                os.write(log, f"D {pid} - {at}\n".encode())
            gevent.sleep(0.005)

    gevent.spawn(watch_the_lease)
    stop = []
    gevent.signal_handler(signal.SIGTERM, stop.append, 1)
    users = [gevent.spawn(user, pid * 1000 + n) for n in range(told["greenlets"])]
    print("ready", flush=True)
    while not stop:
        gevent.sleep(0.02)
    gevent.killall(users, timeout=5)
    mismatches = pool._member_now.mismatches if pool._member_now else 0
    pool.close()
    print(json.dumps({"mismatches": mismatches}), flush=True)


main(json.loads(sys.argv[1]))
