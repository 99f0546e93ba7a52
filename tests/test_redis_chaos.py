"""Chaos on a real redis-server, for RedisPool and for clients on a FairConnectionPool."""

from contextlib import suppress

import pytest
import redis
from gevent import Timeout

from gpools import PoolTimeout, RedisPool
from gpools.adapters.redis_py import FairConnectionPool
from tests.chaos import (
    KillStorm,
    Subject,
    closed_when_idle,
    cut_in_every_reply,
    frozen,
    in_a_black_hole,
    in_block,
    killed_and_back,
    three_children,
)
from tests.cooperative import cooperative  # noqa: F401
from tests.proxy import REQUEST, black_hole, close, reset
from tests.servers import RedisServer
from tests.test_byte_boundaries import (
    Ordeal,
    blocking,
    every_ending,
    get,
    pipeline,
    subscription,
    transaction,
)

pytestmark = pytest.mark.usefixtures("cooperative")


def echo(client, tag):
    return client.echo(tag)


KINDS = ["RedisPool", "FairConnectionPool"]


@pytest.fixture(params=KINDS)
def redis_subject(request):
    """`redis_subject(server, size, through=proxy, ...)`: a Subject of each kind of pool."""
    made = []

    def make(server, size=1, through=None, kind=request.param, timeout=5, **options):
        place = through or server
        options |= {"host": place.host, "port": place.port, "decode_responses": True}
        if kind == "RedisPool":
            made.append(RedisPool(max_size=size, timeout=timeout, **options))
            return Subject(made[-1], server, echo)
        fair = FairConnectionPool(max_connections=size, timeout=timeout, **options)
        made.append(fair.connections)
        return Subject(fair.connections, server, echo, redis.Redis(connection_pool=fair))

    yield make
    for pool in made:
        pool.close()


# Killed and timed out


def one_of_many(chance, client, tag):
    """Have the server say a tag, in one of many ways."""
    kind = chance.randrange(8)
    if kind == 0:
        client.set(tag, tag)
        return client.getdel(tag)
    if kind == 1:  # a large one
        client.set(tag, f"{tag} " * 30_000)
        return client.getdel(tag).split()[-1]
    if kind == 2:
        with client.pubsub() as pubsub:
            pubsub.subscribe(tag)
            return pubsub.get_message(timeout=5)["channel"]
    if kind == 3:
        with suppress(redis.WatchError):
            return client.transaction(lambda pipe: pipe.multi() or pipe.echo(tag), "key")[0]
    if kind == 4:
        client.rpush(f"list-{tag}", tag)
        return client.blpop(f"list-{tag}")[1]
    if kind == 5:
        with suppress(redis.ResponseError):
            client.incr("no-number")
    if kind in (6, 7):
        one, two = client.pipeline(transaction=kind == 6).echo(tag).echo(tag).execute()
        return one if one == two else (one, two)
    return client.echo(tag)


@pytest.mark.parametrize("protocol", [2, 3])
def test_storm_of_kills_on_tagged_commands(redis_server, redis_subject, protocol):
    """Thousands of commands, many of them interrupted: no foreign answer, no lost slot."""
    redis_server.call("SET", "no-number", "x")
    subject = redis_subject(redis_server, 5, protocol=protocol)
    once = in_block(subject, one_of_many, echo)
    KillStorm(protocol, once).rage(subject.core, answers=1500, kills=300)
    subject.whole()


@every_ending
def test_interrupted_while_writing_a_large_value(redis_server, proxy_to, redis_subject, ending):
    proxy = proxy_to(redis_server)
    subject = redis_subject(redis_server, through=proxy)
    big = "x" * 900_000
    ordeal = Ordeal(subject, proxy, lambda client, tag: client.set(tag, big), echo)
    for k in (0, 1, 10, 31, 40, 1000, 65536, 500_000, 899_999):
        ordeal.strike(ending, REQUEST, k)
    assert ordeal.foreign == []
    subject.whole()


# The server goes


@pytest.mark.parametrize("protocol", [2, 3])
def test_killed_with_50_idle_and_back(start_server, redis_subject, protocol):
    subject = redis_subject(start_server(RedisServer), 50, protocol=protocol)
    killed_and_back(subject)
    assert subject.server.stats()["accepted"] == 50


@pytest.mark.parametrize("redis_subject", [None], indirect=True)  # all, for it takes its time
def test_idle_connections_that_the_server_closes(start_server, redis_subject):
    server = start_server(RedisServer, config={"timeout": 1, "hz": 100})
    closed_when_idle(server, [redis_subject(server, 3, kind=kind) for kind in KINDS])


def test_refused_connections_come_out_as_they_are(redis_server, proxy_to, redis_subject):
    proxy = proxy_to(redis_server)
    subject = redis_subject(redis_server, through=proxy)
    proxy.refuse()
    for _ in range(3):
        with pytest.raises(redis.ConnectionError, match=r"(?i)refused"):
            subject.user("x")
    assert subject.core.current_size == 0
    proxy.listen()
    subject.whole()


# Forks


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, of threads
def test_three_children_at_work(redis_server, redis_subject):
    three_children(redis_subject(redis_server, 3))


# The server or the network is silent


@pytest.mark.parametrize("connected", [True, False])
def test_a_frozen_server_costs_no_slot(redis_server, redis_subject, connected):
    full = (PoolTimeout, redis.exceptions.MaxConnectionsError)
    frozen(redis_subject(redis_server, 2, timeout=0.3), full, connected)


@pytest.mark.parametrize("bound", ["socket_timeout", "Timeout", "kill"])
def test_a_black_hole_is_waited_for_no_longer_than_asked(
    redis_server, proxy_to, redis_subject, bound
):
    proxy = proxy_to(redis_server, black_hole)
    options = {"socket_timeout": 0.05} if bound == "socket_timeout" else {}
    subject = redis_subject(redis_server, 2, through=proxy, **options)
    timeout = Timeout if bound == "Timeout" else redis.TimeoutError
    in_a_black_hole(subject, proxy, timeout, killed=bound == "kill")


@pytest.mark.parametrize("how", [close, reset])
@pytest.mark.parametrize("exchange", [get, pipeline, transaction, subscription, blocking])
def test_half_a_reply_is_an_error_and_costs_no_slot(
    redis_server, proxy_to, redis_subject, exchange, how
):
    proxy = proxy_to(redis_server)
    redis_server.call("SET", "theirs", "theirs")
    redis_server.call("RPUSH", "list", *["x" * 6] * 500)
    subject = redis_subject(redis_server, through=proxy)
    cut_in_every_reply(subject, proxy, exchange, how, redis.ConnectionError)
