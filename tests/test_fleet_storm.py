"""The failure table of the fleet pool: real processes, killed, frozen, cut off and misled.

The limit is checked by what the workers wrote down, not by what the pool says,
and each guard is taken out once to see that the checker fires.  They run for
GPOOLS_STRESS_SECONDS each, or a few seconds.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from itertools import count

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

from gpools import PoolTimeout
from gpools.fleet import DistributedTokenPool, _member
from tests.fleets import Fleet, most_at_once, without_in_script
from tests.servers import RedisServer
from tests.waiting import until

STRESS = float(os.environ.get("GPOOLS_STRESS_SECONDS", 1.5))
names = (f"storm{n}" for n in count())

pytestmark = pytest.mark.timeout(60 + 4 * STRESS)


@pytest.fixture
def fleet_on(tmp_path):
    fleets = []

    def start(server, workers=2, warm=10, **told):
        name = told.pop("name", None) or next(names)
        fleets.append(Fleet(server, name, tmp_path, **told))
        fleets[-1].start(workers)
        until(lambda: fleets[-1].uses() >= warm, timeout=20)
        return fleets[-1]

    yield start
    for fleet in fleets:
        fleet.__exit__()


def for_a_while(*chaos, pause=0.3):
    """Do one of *chaos* after the other, at random, for as long as the test may last."""
    end = time.monotonic() + STRESS
    while time.monotonic() < end:
        random.choice(chaos)()
        gevent.sleep(pause * (0.5 + random.random()))


def sound_afterwards(fleet, valid=True):
    """Check the limit, that all goes on, and that one process can take all tokens."""
    before = fleet.uses()
    until(lambda: fleet.uses() > before + 10, timeout=10 + 4 * fleet.lease)
    assert fleet.stop() == 0  # I5, in those that are still there
    assert fleet.most(valid) <= fleet.size
    settings = {"lease": fleet.lease} | fleet.told["settings"]
    with DistributedTokenPool(fleet.server.url, fleet.name, fleet.size, **settings) as pool:
        tokens = [pool.get(timeout=5 + 3 * fleet.lease) for _ in range(fleet.size)]
        assert pool.stats().used == fleet.size
        for token in tokens:
            pool.put(token)
        until(lambda: pool.stats().used == 0)
        assert pool.stats().waiting == 0


def test_the_checker_counts_overlaps():
    record = [("A", 1, "7", 10), ("A", 2, "8", 20), ("R", 1, "7", 30), ("A", 3, "9", 40)]
    assert most_at_once(record, []) == 2
    assert most_at_once(record, [("K", 2, 35)]) == 2
    record.insert(2, ("A", 4, "5", 25))
    assert most_at_once(record, []) == 3
    assert most_at_once([("A", 1, "1", 0), ("A", 2, "2", 3 * 10**9)], [], 1.0) == 2
    assert most_at_once([("A", 1, "1", 0), ("A", 2, "2", 3 * 10**9)], [("F", 1, 5)], 1.0) == 1


def test_workers_killed_with_kill_9(fleet_on, redis_server):
    fleet = fleet_on(redis_server, hold=0.1)

    def kill_one():
        fleet.kill9()
        fleet.start()

    for_a_while(kill_one)
    sound_afterwards(fleet)


NEVER_REAPED = ("if pool.due > pool.clock then", "if true then")


def test_without_the_end_of_leases_kills_cost_tokens(fleet_on, redis_server, monkeypatch):
    """The negative control of the test above."""
    without_in_script(monkeypatch, *NEVER_REAPED)
    fleet = fleet_on(redis_server, hold=0.1, script=[NEVER_REAPED])
    one = fleet.workers[0]
    until(lambda: fleet.held_by(one) > 2)
    fleet.kill9(one)
    killed = time.monotonic()
    fleet.start()
    until(lambda: time.monotonic() > killed + 2 * fleet.lease)
    assert fleet.stop() == 0
    with DistributedTokenPool(redis_server.url, fleet.name, 8, lease=1.0) as pool:
        assert pool.stats().used > 0


def test_the_tokens_of_the_dead_come_back_within_a_lease(fleet_on, redis_server):
    fleet = fleet_on(redis_server, workers=1, warm=4, size=4, hold=30)
    with DistributedTokenPool(redis_server.url, fleet.name, 4, lease=1.0) as pool:
        until(lambda: pool.stats().used == 4)
        fleet.kill9()
        begun = time.monotonic()
        tokens = [pool.get(timeout=5) for _ in range(4)]
        assert 0.3 < time.monotonic() - begun < 2.5
        for token in tokens:
            pool.put(token)


def test_without_the_end_of_leases_the_tokens_of_the_dead_are_lost(
    fleet_on, redis_server, monkeypatch
):
    """The negative control of the test above."""
    without_in_script(monkeypatch, *NEVER_REAPED)
    fleet = fleet_on(redis_server, workers=1, warm=4, size=4, hold=30, script=[NEVER_REAPED])
    with DistributedTokenPool(redis_server.url, fleet.name, 4, lease=1.0) as pool:
        until(lambda: pool.stats().used == 4)
        fleet.kill9()
        with pytest.raises(PoolTimeout):
            pool.get(timeout=2.5)
        assert pool.stats().used == 4


def served_by_a_death(fleet_on, server, timeout, **settings):
    """Kill who holds all, and tell whether one who waits is served long before the lease."""
    long = {"lease": 30.0, "hold": 30.0, "settings": {"grace": 0}}
    fleet = fleet_on(server, workers=1, warm=4, size=4, **long)
    settings |= {"lease": 30.0, "grace": 0}
    with DistributedTokenPool(server.url, fleet.name, 4, **settings) as pool:
        until(lambda: pool.stats().used == 4)
        waiter = gevent.spawn(pool.get)
        gevent.sleep(0.7)
        assert not waiter.ready()  # the living are not buried
        fleet.kill9()
        waiter.join(timeout)
        served = waiter.ready()
        waiter.kill()
        return served


def test_fast_reclaim_does_not_wait_for_the_lease(fleet_on, redis_server):
    assert served_by_a_death(fleet_on, redis_server, timeout=10, fast_reclaim=True)


def test_without_fast_reclaim_the_lease_is_waited_for(fleet_on, redis_server):
    """The negative control of the test above."""
    assert not served_by_a_death(fleet_on, redis_server, timeout=1.5)


def test_connections_cut_and_scripts_flushed(fleet_on, redis_server):
    fleet = fleet_on(redis_server)
    for_a_while(
        lambda: redis_server.call("CLIENT", "KILL", "TYPE", "pubsub"),
        lambda: redis_server.call("SCRIPT", "FLUSH"),
        pause=0.05,
    )
    sound_afterwards(fleet)


def test_all_data_flushed(fleet_on, redis_server):
    fleet = fleet_on(redis_server)
    # Who has never been answered knows of no data that could be missing.
    workers = {worker.pid for worker in fleet.workers}
    until(lambda: {line[1] for line in fleet.record()} == workers)
    flushes = partial(redis_server.call, "FLUSHALL")
    for_a_while(flushes, pause=1.0)
    until(lambda: for_a_while(flushes) or any(line[0] == "L" for line in fleet.record()), 60)
    sound_afterwards(fleet)


PERSISTENCE = {
    "memory": {},
    "rdb": {"save": "1 1"},
    "aof": {"appendonly": "yes", "appendfsync": "everysec"},
}


class PersistentServer(RedisServer):
    def answers(self):
        try:
            return super().answers()
        except RuntimeError:  # it still loads its data
            return False


@pytest.mark.parametrize("kind", PERSISTENCE)
def test_server_killed_and_restarted(fleet_on, start_server, kind):
    server = start_server(PersistentServer, config=PERSISTENCE[kind])
    fleet = fleet_on(server, hold=0.2)

    def restart():
        server.kill9()
        server.start()
        gevent.sleep(1.0)

    for_a_while(restart)
    sound_afterwards(fleet)


def while_a_holder_is_frozen(fleet_on, server, lose, **told):
    """Freeze one that holds all, *lose* what the server knows, thaw it within its lease.

    Return how many tokens were valid at once.
    """
    fleet = fleet_on(server, workers=1, warm=8, lease=3.0, hold=20, **told)
    holder = fleet.workers[0]
    fleet.start(1)
    members, line = (f"gp:{{{fleet.name}}}:{kind}" for kind in "tq")
    until(lambda: server.call("HLEN", members) == 2 and server.call("ZCARD", line) > 5)
    os.kill(holder.pid, signal.SIGSTOP)
    now = lose() or server
    until(lambda: now.call("HLEN", members) == 1)  # the other has come
    gevent.sleep(0.3)
    fleet.thaw(holder)
    until(lambda: now.call("HLEN", members) == 2)
    gevent.sleep(0.3)
    return fleet.most()


def restarted(server, between=lambda: None):
    def lose():
        server.kill9()
        between()
        server.start()

    return lose


def test_server_killed_while_a_holder_is_frozen(fleet_on, start_server):
    server = start_server(RedisServer)
    assert while_a_holder_is_frozen(fleet_on, server, restarted(server)) <= 8


def test_without_grace_a_frozen_holder_and_the_others_are_too_many(fleet_on, start_server):
    """The negative control of the test above."""
    server = start_server(RedisServer)
    settings = {"grace": 0}
    assert while_a_holder_is_frozen(fleet_on, server, restarted(server), settings=settings) > 8


NO_RUN_ID = ("if pool.run ~= run then", "if false then")


def restarted_from_old_data(fleet_on, start_server, kind, **told):
    """Restart with a disk that has heard of the pool, but of no grant."""
    server = start_server(PersistentServer, config=PERSISTENCE[kind])
    name = next(names)
    with DistributedTokenPool(server.url, name, 8, lease=3.0, grace=0) as pool:
        pool.put(pool.get())
    if kind == "rdb":
        server.call("SAVE")
    data = server.directory / ("dump.rdb" if kind == "rdb" else "appendonlydir")
    old = {}

    def written():
        files = [data] if data.is_file() else data.iterdir()
        old.update({path: path.read_bytes() for path in files})
        return any(name.encode() in content for content in old.values())

    until(written)

    def set_back():
        for path, content in old.items():
            path.write_bytes(content)

    lose = restarted(server, set_back)
    return while_a_holder_is_frozen(fleet_on, server, lose, name=name, **told)


@pytest.mark.parametrize("kind", ["rdb", "aof"])
def test_restarted_from_old_data_while_a_holder_is_frozen(fleet_on, start_server, kind):
    assert restarted_from_old_data(fleet_on, start_server, kind) <= 8


@pytest.mark.parametrize("kind", ["rdb", "aof"])
def test_without_the_run_id_old_data_grants_too_many(fleet_on, start_server, kind):
    """The negative control of the test above."""
    assert restarted_from_old_data(fleet_on, start_server, kind, script=[NO_RUN_ID]) > 8


def flushed(server):
    def lose():
        server.call("FLUSHALL")
        server.call("CLIENT", "KILL", "TYPE", "pubsub")  # so that it is noticed now

    return lose


def test_all_data_flushed_while_a_holder_is_frozen(fleet_on, redis_server):
    assert while_a_holder_is_frozen(fleet_on, redis_server, flushed(redis_server)) <= 8


def test_without_the_known_epoch_flushed_data_is_too_many(fleet_on, redis_server):
    """The negative control of the test above."""
    guard = ("if lost or known ~= '' or up < grace then", "if false then")
    lose = flushed(redis_server)
    assert while_a_holder_is_frozen(fleet_on, redis_server, lose, script=[guard]) > 8


def test_server_frozen_for_longer_than_a_lease(fleet_on, start_server):
    server = start_server(RedisServer)
    fleet = fleet_on(server, hold=4.0, greenlets=40)
    server.freeze()
    gevent.sleep(1.5)
    server.thaw()
    sound_afterwards(fleet)
    assert any(line[0] == "L" for line in fleet.record())


def test_workers_frozen_for_longer_than_a_lease(fleet_on, redis_server):
    """Its tokens go to others: more are in use than valid, which no lease can prevent."""
    fleet = fleet_on(redis_server, hold=0.5)
    until(lambda: fleet.held_by(fleet.workers[0]) > 2)
    fleet.freeze(fleet.workers[0])
    gevent.sleep(1.7)
    fleet.thaw(fleet.workers[0])
    gevent.sleep(0.3)
    physically = fleet.most(valid=False)
    sound_afterwards(fleet)
    assert any(line[0] == "L" for line in fleet.record())
    assert physically > fleet.size  # or the checker is blind


def valid_when_another_has_it(fleet_on, server):
    """Block a holder until its token is another's; return whether it is valid all the same."""
    name = next(names)
    with DistributedTokenPool(server.url, name, 1, lease=1.0) as pool:
        held = pool.get(timeout=5)
        fleet = fleet_on(server, workers=1, warm=0, size=1, hold=30, name=name)
        until(lambda: pool.stats().waiting > 0)
        end = time.monotonic() + 20
        while not fleet.uses():
            assert time.monotonic() < end
            time.sleep(0.02)  # not gevent's
        return held.valid


def test_what_is_anothers_after_a_block_is_not_valid(fleet_on, redis_server):
    assert not valid_when_another_has_it(fleet_on, redis_server)


def test_without_a_deadline_of_its_own_it_is_valid_twice(fleet_on, redis_server, monkeypatch):
    """The negative control of the test above."""
    monkeypatch.setattr(_member, "SAFE", 1000)
    assert valid_when_another_has_it(fleet_on, redis_server)


def replica_of(first, second):
    first.call("CONFIG", "SET", "repl-diskless-sync-delay", 0)
    second.call("REPLICAOF", first.host, first.port)
    until(lambda: "master_link_status:up" in second.call("INFO", "replication"))


def test_a_replica_is_promoted(fleet_on, start_server):
    first, second = start_server(RedisServer), start_server(RedisServer)
    replica_of(first, second)
    fleet = fleet_on(first, hold=0.2)
    port = first.port
    first.kill9()
    second.call("REPLICAOF", "NO", "ONE")
    # The address of the service moves, as with a virtual IP.
    with Forwarder(port, second.port):
        fleet.server = second
        sound_afterwards(fleet)


def promoted_with_a_lag(fleet_on, start_server, **told):
    """Have a replica take over that has heard of the pool, but of no grant."""
    first, second = start_server(RedisServer), start_server(RedisServer)
    name = next(names)
    with DistributedTokenPool(first.url, name, 8, lease=3.0, grace=0) as pool:
        pool.put(pool.get())
    replica_of(first, second)
    second.call("REPLICAOF", "NO", "ONE")
    forwarder = Forwarder(first.port, second.port)

    def lose():
        first.kill9()
        forwarder.__enter__()
        return second

    try:
        return while_a_holder_is_frozen(fleet_on, first, lose, name=name, **told)
    finally:
        forwarder.__exit__()


def test_a_replica_that_lags_is_promoted_while_a_holder_is_frozen(fleet_on, start_server):
    assert promoted_with_a_lag(fleet_on, start_server) <= 8


def test_without_the_run_id_a_replica_that_lags_grants_too_many(fleet_on, start_server):
    """The negative control of the test above."""
    assert promoted_with_a_lag(fleet_on, start_server, script=[NO_RUN_ID]) > 8


class Forwarder:
    """Listens where a server was, and hands on to another."""

    def __init__(self, port, to):
        def forward(client, _):
            other = socket.create_connection(("127.0.0.1", to))
            copies = [gevent.spawn(copy, *pair) for pair in ((client, other), (other, client))]
            gevent.joinall(copies)
            client.close(), other.close()

        def copy(source, sink):
            try:
                while data := source.recv(65536):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        self.server = StreamServer(("127.0.0.1", port), forward)

    def __enter__(self):
        self.server.start()

    def __exit__(self, *error):
        self.server.stop(timeout=1)


CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long offset(void) {
    static int fd = -1;
    char text[32] = {0};
    if (fd < 0) fd = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    return fd < 0 || pread(fd, text, 31, 0) < 1 ? 0 : atol(text);
}
int gettimeofday(struct timeval *tv, void *tz) {
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(tv, tz);
    tv->tv_sec += offset();
    return result;
}
int clock_gettime(clockid_t id, struct timespec *ts) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, ts);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) ts->tv_sec += offset();
    return result;
}
"""


class ClockServer(RedisServer):
    """A redis-server whose clock can be set."""

    @classmethod
    def missing(cls):
        return super().missing() or (None if shutil.which("gcc") else "no gcc")

    def prepare(self):
        source, self.library = self.directory / "clock.c", self.directory / "clock.so"
        source.write_text(CLOCK)
        command = ["gcc", "-shared", "-fPIC", "-o", self.library, source, "-ldl"]
        subprocess.run(command, check=True)
        self.step(0)

    def environment(self):
        ours = {"LD_PRELOAD": str(self.library), "CLOCK_OFFSET": str(self.directory / "offset")}
        return os.environ | ours

    def step(self, seconds):
        (self.directory / "offset").write_text(f"{seconds:<20}\n")


def clock_is_set(fleet_on, start_server, **told):
    server = start_server(ClockServer)
    # A leap takes half a lease, a renewal may be a third old: the sixth that is left is for
    # a machine that is slow.
    fleet = fleet_on(server, hold=0.6, lease=6.0, settings={"grace": 0}, **told)
    before = int(server.call("TIME")[0])
    for seconds in (30, 0, -3600, 3, 0):
        server.step(seconds)
        gevent.sleep(max(0.4, STRESS / 5))
    server.step(3600)
    assert int(server.call("TIME")[0]) - before > 3000
    gevent.sleep(0.4)
    return fleet


def test_the_clock_of_the_server_is_set(fleet_on, start_server):
    fleet = clock_is_set(fleet_on, start_server)
    sound_afterwards(fleet, valid=False)
    assert not any(line[0] == "L" for line in fleet.record())


def test_without_the_pool_clock_a_set_clock_ends_leases(fleet_on, start_server):
    """The negative control of the test above."""
    guard = "math.min(wall - pool.wall, math.floor(pool.lease / 2))"
    fleet = clock_is_set(fleet_on, start_server, script=[(guard, "wall - pool.wall")])
    assert fleet.most(valid=False) > fleet.size


def all_at_once(fleet_on, start_server, **told):
    server = start_server(RedisServer)
    fleet = fleet_on(server, hold=0.05, **told)

    def kill_one():
        fleet.kill9()
        fleet.start()

    def restart():
        server.kill9()
        server.start()

    for_a_while(
        kill_one,
        lambda: server.call("CLIENT", "KILL", "TYPE", "pubsub"),
        lambda: server.call("CLIENT", "KILL", "TYPE", "pubsub"),
        lambda: server.call("SCRIPT", "FLUSH"),
        restart,
        pause=0.2,
    )
    return fleet


def fences(fleet):
    return [line[2] for line in fleet.record() if line[0] == "A"]


def test_all_at_once(fleet_on, start_server):
    fleet = all_at_once(fleet_on, start_server)
    sound_afterwards(fleet)
    assert len(fences(fleet)) == len(set(fences(fleet)))


def test_without_the_count_and_rising_numbers_all_at_once_shows_it(fleet_on, start_server):
    """The negative control of the test above; what else it does has controls of its own."""
    guards = [
        ("pool.used < pool.size and ", ""),
        ("pool.size - pool.used", "AT_ONCE"),
        ("math.max(pool.n + 1, wall)", "pool.n + 1"),
        ("pool.n = math.max(pool.n, tonumber(ARGV[10]))", ""),
    ]
    fleet = all_at_once(fleet_on, start_server, script=guards)
    fleet.server.kill9()
    fleet.server.start()
    until(lambda: len(fences(fleet)) > len(set(fences(fleet))), timeout=20)
    assert fleet.most() > fleet.size
