"""The fleet pool in one process, on a real redis-server."""

import gc
import os
import pickle
import random
import select
import signal
import socket
import struct
import time
import weakref
from contextlib import suppress
from itertools import count
from types import SimpleNamespace

import gevent
import gevent.event
import gevent.os
import pytest
import redis
import redis.asyncio

from gpools import (
    HubWouldBlock,
    NotInUse,
    PoolClosed,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    WrongThread,
)
from gpools.fleet import DistributedTokenPool, _link, _member
from gpools.fleet._link import Refused
from tests.cooperative import cooperative  # noqa: F401
from tests.fleets import RIGHTS, without, without_in_script
from tests.servers import RedisServer, free_port
from tests.waiting import settle, spawn, until

names = (f"pool{n}" for n in count())


@pytest.fixture
def fleet():
    """Make pools, each a member of its own; at the end I5 must have held at every reply."""
    pools, members = [], []
    original = _member.Member.__init__

    def remember(member, *args):
        original(member, *args)
        members.append(member)

    _member.Member.__init__ = remember

    def make(server, name, max_size=2, lease=3.0, grace=0, mismatches=0, **settings):
        url = server if not hasattr(server, "url") else server.url
        pools.append(DistributedTokenPool(url, name, max_size, lease, grace=grace, **settings))
        return pools[-1]

    make.mismatches = 0
    yield make
    for pool in pools:
        pool.close()
    _member.Member.__init__ = original
    assert sum(member.mismatches for member in members) == make.mismatches


@pytest.fixture
def name():
    return next(names)


def used(pool):
    """Tell how many are in use, or None while the connection is cut."""
    with suppress(PoolUnavailable):
        return pool.stats().used


def empty(pool):
    with suppress(PoolUnavailable):  # while the connection is cut
        stats = pool.stats()
        return stats.used == 0 and stats.waiting == 0


def waiting(pool):
    """Tell how many wait, or None while the connection is cut."""
    with suppress(PoolUnavailable):
        return pool.stats().waiting


# The interface of TokenPool.


def test_tokens_go_round(fleet, redis_server, name):
    a, b = fleet(redis_server, name), fleet(redis_server, name)
    one, two = a.get(), b.get()
    waiter = spawn(a.get)
    until(lambda: used(b) == 2 and b.stats().waiting == 1)
    assert one.valid
    assert two.fence > one.fence
    b.put(two)
    assert waiter.get(timeout=2).fence > two.fence
    assert not two.valid
    a.put(one)
    a.put(waiter.get())
    until(lambda: empty(a))


def test_free_and_waiting_are_those_of_the_fleet(fleet, redis_server, name):
    a, b = fleet(redis_server, name, 3), fleet(redis_server, name, 3)
    held = [a.get() for _ in range(3)]
    waiter = spawn(b.get)
    until(lambda: (b.free(), b.waiting()) == (0, 1))
    a.put(held.pop())
    b.put(waiter.get(timeout=2))
    until(lambda: (b.free(), b.waiting()) == (1, 0))
    [a.put(token) for token in held]
    assert repr(b).startswith(f"<DistributedTokenPool '{name}' 0 in use here")


def test_served_in_the_order_they_came_over_all_processes(fleet, redis_server, name):
    a, b = fleet(redis_server, name, 1), fleet(redis_server, name, 1)
    order, held = [], a.get()

    def user(pool, n):
        with pool.item():
            order.append(n)

    waiters = []
    for n in range(8):
        waiters.append(spawn(user, (a, b)[n % 2], n))
        until(lambda n=n: a.stats().waiting == n + 1)
    a.put(held)
    gevent.joinall(waiters, timeout=5)
    assert order == list(range(8))


def test_item_gives_back_whatever_happens(fleet, redis_server, name):
    pool = fleet(redis_server, name, 1)
    with pytest.raises(gevent.Timeout), pool.item(), gevent.Timeout(0.01):
        gevent.sleep(5)
    with pool.item(timeout=2):
        assert used(pool) == 1


def test_item_serves_one_block(fleet, redis_server, name):
    pool = fleet(redis_server, name, 1)
    block = pool.item()
    with pytest.raises(RuntimeError, match="was not entered"):
        block.__exit__(None, None, None)
    with block, pytest.raises(RuntimeError, match="one with block"):
        block.__enter__()
    with pytest.raises(RuntimeError, match="left before"):
        block.__exit__(None, None, None)
    until(lambda: empty(pool))


def test_item_without_timeout_waits_for_ever_whatever_the_pools_is(fleet, redis_server, name):
    pool = fleet(redis_server, name, 1, timeout=0.01)

    def wait():
        with pool.item(timeout=None):
            pass

    with pool.item(timeout=None):
        waiter = spawn(wait)
        with pytest.raises(PoolTimeout), pool.item():
            pass
        assert not waiter.ready()
    waiter.get(timeout=5)


def test_timeout_tells_who_holds(fleet, redis_server, name):
    pool = fleet(redis_server, name, 1, timeout=0.05)
    with pool.item(timeout=5):
        pool.stats()
        with pytest.raises(PoolTimeout, match=r"1 of 1 in use in the fleet, 1 of them"):
            pool.get()
    until(lambda: empty(pool))


def test_without_block_nobody_waits(fleet, redis_server, name):
    pool = fleet(redis_server, name, 1)
    token = pool.get(block=False)
    with pytest.raises(PoolTimeout, match="1 of 1 in use in the fleet, 0 waiting"):
        pool.get(block=False)
    pool.put(token)
    pool.put(pool.get(block=False))


def test_put_twice_or_elsewhere_is_refused(fleet, redis_server, name):
    a, b = fleet(redis_server, name), fleet(redis_server, name)
    token = a.get()
    b.put(b.get())
    for pool, wrong in ((b, token), (a, object()), (a, None)):
        with pytest.raises(NotInUse):
            pool.put(wrong)
    a.put(token)
    with pytest.raises(ValueError, match="twice"):
        a.put(token)
    until(lambda: empty(a))


def test_resize_serves_the_waiters_of_others_at_once(fleet, redis_server, name):
    a, b = fleet(redis_server, name, 1), fleet(redis_server, name, 1)
    held = a.get()
    waiters = [spawn(b.get) for _ in range(3)]
    until(lambda: a.stats().waiting == 3)
    a.resize(4)
    tokens = [waiter.get(timeout=1) for waiter in waiters]
    assert (a.max_size, b.stats().max_size) == (4, 4)
    a.resize(1)
    a.put(held)
    [b.put(token) for token in tokens[:2]]
    until(lambda: used(a) == 1)
    with pytest.raises(PoolTimeout):
        a.get(block=False)
    b.put(tokens[2])


def test_another_max_size_is_logged_and_does_not_count(fleet, redis_server, name, caplog):
    a = fleet(redis_server, name, 3)
    a.put(a.get())
    b = fleet(redis_server, name, 7)
    b.put(b.get())
    until(lambda: "call resize(7)" in caplog.text)
    assert b.max_size == 3


def test_a_lease_that_microseconds_cannot_tell_is_no_other_one(fleet, redis_server, name, caplog):
    pool = fleet(redis_server, name, 2**53, lease=10 / 3, grace=1 / 3)
    pool.put(pool.get())
    until(lambda: empty(pool))
    assert (pool.max_size, pool.free()) == (2**53, 2**53)
    assert not caplog.text


def test_the_hubs_own_greenlet_cannot_wait(fleet, redis_server, name):
    pool = fleet(redis_server, name)
    failed = []

    def in_hub():
        try:
            pool.get()
        except HubWouldBlock as error:
            failed.append(error)

    gevent.get_hub().loop.run_callback(in_hub)
    settle()
    assert len(failed) == 1


def test_another_thread_is_refused(fleet, redis_server, name):
    pool = fleet(redis_server, name)
    token = pool.get()

    def elsewhere(act, *args):
        with pytest.raises(WrongThread):
            act(*args)

    gevent.get_hub().threadpool.apply(elsewhere, (pool.get,))
    gevent.get_hub().threadpool.apply(elsewhere, (pool.put, token))
    pool.put(token)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"name": ""}, ValueError),
        ({"name": "a{b"}, ValueError),
        ({"name": 3}, TypeError),
        ({"max_size": 0}, ValueError),
        ({"max_size": 2.5}, TypeError),
        ({"lease": 0}, ValueError),
        ({"lease": 1e-7}, ValueError),
        ({"name": "\ud800"}, ValueError),
        ({"max_size": 2**53 + 1}, ValueError),
        ({"lease": None}, ValueError),
        ({"grace": -1}, ValueError),
        ({"grace": float("inf")}, ValueError),
        ({"keep": -1}, ValueError),
        ({"on_lost": 3}, TypeError),
        ({"leak_after": 0}, ValueError),
        ({"leak_after": 1, "on_leak": 3}, TypeError),
        ({"on_leak": print}, ValueError),
        ({"on_unavailable": "cry"}, TypeError),
        ({"client_or_url": 3}, TypeError),
        ({"client_or_url": redis.asyncio.Redis()}, TypeError),
        ({"client_or_url": "http://nowhere"}, ValueError),
    ],
)
def test_bad_settings_are_refused_at_once(settings, error):
    good = {"client_or_url": "redis://127.0.0.1:1", "name": "x", "max_size": 1}
    with pytest.raises(error):
        DistributedTokenPool(**(good | settings))


def test_closed_gives_everything_back_and_refuses(fleet, redis_server, name):
    a, b = fleet(redis_server, name, 1), fleet(redis_server, name, 1)
    token = a.get()
    mine, other = spawn(a.get), spawn(b.get)
    until(lambda: b.stats().waiting == 2)
    a.close()
    assert isinstance(until(lambda: mine.exception), PoolClosed)
    b.put(other.get(timeout=2))
    assert token.lost
    a.put(token)
    with pytest.raises(PoolClosed):
        a.get()
    until(lambda: empty(b))
    assert len(b.stats().members) == 1
    a.close()


def test_closed_by_one_who_is_served_refuses_who_was_to_be_served_next(fleet, redis_server, name):
    """They were granted tokens in the same reply, and had not run yet."""
    pool = fleet(redis_server, name, 1)
    held = pool.get()

    def user():
        pool.get()
        pool.close()

    waiters = [spawn(user) for _ in range(4)]
    until(lambda: pool.stats().waiting == 4)
    pool.resize(5)
    gevent.joinall(waiters, timeout=2)
    assert [type(one.exception) for one in waiters] == [type(None)] + 3 * [PoolClosed]
    assert held.lost


def test_closed_with_many_in_line_it_leaves_none_behind(fleet, redis_server, name):
    a, b = fleet(redis_server, name, 1), fleet(redis_server, name, 1)
    held = a.get()
    waiters = [spawn(b.get) for _ in range(1200)]
    until(lambda: a.stats().waiting == 1200)
    b.close()
    assert a.stats().waiting == 0
    assert {type(waiter.exception) for waiter in waiters} == {PoolClosed}
    a.put(held)


@pytest.mark.parametrize("flushed", [False, True])
def test_closed_in_the_hub_it_leaves_without_waiting(fleet, redis_server, name, flushed):
    """A handler of a signal runs there, if the program is idle."""
    pool, other = (fleet(redis_server, name, 1, lease=30.0) for _ in range(2))
    pool.get()
    closing = []

    def close():
        try:
            closing.append(pool.close())
        except BaseException as error:
            closing.append(error)

    if flushed:
        redis_server.call("SCRIPT", "FLUSH")
    gevent.get_hub().loop.run_callback(close)
    assert until(lambda: closing) == [None]
    other.put(other.get(timeout=5))


def test_closed_while_it_tells_the_server_anew_it_leaves_all_the_same(fleet, redis_server, name):
    """Its tokens used to be missing for a lease."""
    a, b = (fleet(redis_server, name, 1, lease=30.0) for _ in range(2))
    b.stats()
    a.get()
    a._member().resync()
    a.close()
    b.put(b.get(timeout=5))
    assert len(b.stats().members) == 1


def test_one_connection_for_all_pools_of_a_server(fleet, redis_server, name):
    pools = [fleet(redis_server, f"{name}.{n}", 5) for n in range(4)]
    held = [(pool, pool.get()) for pool in pools for _ in range(3)]
    [pool.stats() for pool in pools]
    assert redis_server.stats()["open"] == 1
    [pool.put(token) for pool, token in held]
    for pool in pools[1:]:
        pool.close()
    pools[0].put(pools[0].get())
    pools[0].close()
    until(lambda: redis_server.stats()["open"] == 0)


def test_a_thousand_waiters_in_chunks(fleet, redis_server, name):
    pool = fleet(redis_server, name, 7)
    done = []

    def user():
        with pool.item():
            gevent.sleep(0)
            done.append(1)

    gevent.joinall([spawn(user) for _ in range(1800)], timeout=20)
    assert len(done) == 1800
    until(lambda: empty(pool))


def calls(server):
    text = server.call("INFO", "commandstats")
    return int(text.split("cmdstat_evalsha:calls=")[1].split(",")[0])


def test_what_many_want_at_a_time_goes_in_one_call(fleet, redis_server, name, monkeypatch):
    monkeypatch.setattr(_member, "IN_A_ROW", 10.0)
    pool = fleet(redis_server, name, 50)
    pool.put(pool.get())
    before = calls(redis_server)

    def user():
        for _ in range(40):
            pool.put(pool.get())

    gevent.joinall([spawn(user) for _ in range(50)], timeout=20)
    assert calls(redis_server) - before < 60  # for 2,000 pairs


@pytest.mark.hub_errors
def test_who_fails_as_it_is_served_keeps_nothing_from_the_others(fleet, redis_server, name):
    """A raw greenlet's error comes out of the switch to it, amid the row of the served."""
    pool = fleet(redis_server, name, 1)
    held, got = pool.get(), []

    def user():
        with pool.item():
            got.append(1)
            raise ZeroDivisionError

    for _ in range(5):
        gevent.spawn_raw(user)
    until(lambda: pool.stats().waiting == 5)
    pool.resize(5)  # four in one reply
    until(lambda: len(got) == 5)
    pool.put(held)
    until(lambda: empty(pool))
    assert pool._member().link.connections == 1


# Interruption.


@pytest.mark.parametrize("cut", [False, True], ids=["undisturbed", "cut off now and then"])
def test_aborted_at_random_moments_nothing_leaks(fleet, redis_server, name, cut):
    a, b = fleet(redis_server, name, 3), fleet(redis_server, name, 3)
    inside, most, done = [0], [0], [0]
    end = time.monotonic() + float(os.environ.get("GPOOLS_STRESS_SECONDS", 1))

    def use(pool, rng):
        with pool.item(timeout=rng.choice([None, rng.random() * 0.01])):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            try:
                gevent.sleep(rng.random() * 0.002)
            finally:
                inside[0] -= 1

    def use_quietly(pool, rng):
        with suppress(PoolTimeout):
            use(pool, rng)

    def user(pool, seed):
        rng = random.Random(seed)
        while time.monotonic() < end or done[0] <= 2000:
            how = rng.randrange(3)
            try:
                if how == 0:
                    use(pool, rng)
                elif how == 1:
                    with gevent.Timeout(rng.random() * 0.005):
                        use(pool, rng)
                else:
                    one = spawn(use_quietly, pool, rng)
                    gevent.sleep(rng.random() * 0.005)
                    one.kill()
                    assert one.successful() or isinstance(one.value, gevent.GreenletExit)
            except (PoolTimeout, gevent.Timeout):
                pass
            done[0] += 1

    def cutter():
        while time.monotonic() < end:
            gevent.sleep(random.random() * 0.1)
            redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")

    users = [spawn(user, pool, n) for n in range(20) for pool in (a, b)]
    if cut:
        users.append(spawn(cutter))
    gevent.joinall(users, raise_error=True)
    until(lambda: empty(a))
    until(lambda: empty(b))
    assert most[0] == 3
    tokens = [a.get(timeout=1) for _ in range(3)]
    [a.put(token) for token in tokens]


@pytest.mark.parametrize("first", [True, False], ids=["before it is woken", "as it is woken"])
def test_killed_in_the_moment_of_its_grant_gives_it_on(fleet, redis_server, name, first):
    pool = fleet(redis_server, name, 1)
    held = pool.get()
    member = pool._member()
    deliver, got = member._deliver, []

    def user():
        with pool.item():
            got.append(1)

    waiter = spawn(user)

    def deliver_and_kill(*grant):
        member._deliver = deliver
        if first:
            waiter.kill(block=False)
            gevent.get_hub().loop.run_callback(deliver, *grant)
        else:
            deliver(*grant)
            waiter.kill(block=False)

    member._deliver = deliver_and_kill
    until(lambda: pool.stats().waiting == 1)
    pool.put(held)
    until(lambda: waiter.ready())
    assert len(got) == (0 if first else 1)
    pool.put(pool.get(timeout=2))
    until(lambda: empty(pool))


def ended_in_line(fleet, server, name):
    """End two who wait, by a kill and by a Timeout, and put the token that they waited for."""
    pool = fleet(server, name, 1)
    held = pool.get()

    def impatient():
        with gevent.Timeout(0.2, False):
            pool.get()

    waiters = [spawn(pool.get), spawn(impatient)]
    until(lambda: pool.stats().waiting == 2)
    waiters[0].kill()
    gevent.joinall(waiters)
    pool.put(held)
    return pool


def test_who_ended_in_line_is_granted_nothing(fleet, redis_server, name):
    pool = ended_in_line(fleet, redis_server, name)
    until(lambda: empty(pool))
    pool.put(pool.get(timeout=2))


def test_without_except_baseexception_the_dead_have_the_token(
    fleet, redis_server, name, monkeypatch
):
    """The negative control of the test above."""
    without(monkeypatch, _member.Member, "wait", "except BaseException:", "except Exception:")
    pool = ended_in_line(fleet, redis_server, name)
    monkeypatch.undo()
    until(lambda: pool._member().out)
    assert used(pool) == 1
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0.5)
    pool._member().waiters.clear()  # the other one, for the dead cannot be told of the close


def test_a_stray_switch_is_no_token(fleet, redis_server, name):
    pool = fleet(redis_server, name, 1)
    held = pool.get()
    waiter = spawn(pool.get)
    settle()
    gevent.get_hub().loop.run_callback(waiter.switch)
    settle()
    assert not waiter.dead
    pool.put(held)
    pool.put(waiter.get(timeout=2))


# The server is lost, and comes back.


def test_a_cut_connection_costs_neither_tokens_nor_places(fleet, redis_server, name):
    a, b = fleet(redis_server, name, 1), fleet(redis_server, name, 1)
    order, held = [], a.get()

    def user(n):
        with a.item():
            order.append(n)

    waiters = []
    for n in range(5):
        waiters.append(spawn(user, n))
        until(lambda n=n: waiting(b) == n + 1)
        redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
    until(lambda: waiting(b) == 5)
    assert held.valid
    a.put(held)
    gevent.joinall(waiters, timeout=5)
    assert order == list(range(5))
    until(lambda: empty(b))


def test_a_connection_that_cannot_be_closed_is_replaced(fleet, redis_server, name, monkeypatch):
    """One whose socket was made in a hub that is gone says ValueError to it."""
    a, b = fleet(redis_server, name, 1), fleet(redis_server, f"{name} b", 1)
    held = a.get()
    link, disconnect = a._member().link, redis.Connection.disconnect

    def fail(conn, *args):
        disconnect(conn, *args)
        raise ValueError("operation on destroyed loop")

    monkeypatch.setattr(redis.Connection, "disconnect", fail)
    until(lambda: b._member().start() or b._member().ready)
    assert b._member().link is link
    link.fail(ConnectionError("cut"))
    b.put(b.get(timeout=5))
    a.put(held)
    until(lambda: empty(a))
    for pool in (a, b):
        pool.close()
    assert link not in _link._links.values()


def test_given_up_while_it_connects_a_link_keeps_what_it_opens(
    fleet, redis_server, name, monkeypatch
):
    """Forgotten, its socket was closed with a watcher on it, for which libev ends the process."""
    pool, publish_command = fleet(redis_server, name), _link._publish_command

    def give_up(hello):
        pool._member().link.fail(ConnectionError("cut"))
        return publish_command(hello)

    monkeypatch.setattr(_link, "_publish_command", give_up)
    with pool.item(timeout=5):
        link = pool._member().link
        assert link._conn._sock is link._sock


def test_closed_while_it_connects_a_pool_says_nothing(
    fleet, redis_server, name, monkeypatch, caplog
):
    """It warned that the connection was down: "not wanted any more"."""
    pool, publish_command = fleet(redis_server, name), _link._publish_command

    def close(hello):
        pool.close()
        return publish_command(hello)

    monkeypatch.setattr(_link, "_publish_command", close)
    with pytest.raises(PoolClosed):
        pool.get(timeout=5)
    until(lambda: redis_server.stats()["open"] == 0)
    settle()
    assert not caplog.text


def test_who_ended_as_the_connection_was_lost_is_not_in_line(fleet, redis_server, name):
    pool = fleet(redis_server, name, 1, lease=30.0)
    held, member = pool.get(), pool._member()
    waiter = spawn(pool.get)
    until(lambda: pool.stats().waiting == 1)
    member.link._write, write = lambda data: None, member.link._write
    waiter.kill()
    until(lambda: member.flying and member.flying.cancels)
    member.link._write = write
    member.link.fail(ConnectionError("cut"))
    until(lambda: waiting(pool) == 0)
    pool.put(held)


KEEPS_ITS_COUNT = ("local holds = tonumber(ARGV[5])", "local holds = held or tonumber(ARGV[5])")
NO_I5 = ("if held != self._count() + self.unsent:", "if False:")


def put_while_cut_off(fleet, server, name):
    pool = fleet(server, name, 1)
    held, member = pool.get(), pool._member()
    member.link.fail(ConnectionError("cut"))
    assert not member.ready
    pool.put(held)
    until(lambda: member.ready and member.flying is None)
    return pool


def test_what_is_put_while_cut_off_is_free(fleet, redis_server, name):
    pool = put_while_cut_off(fleet, redis_server, name)
    until(lambda: empty(pool))
    pool.put(pool.get(timeout=2))


def test_without_the_absolute_state_what_is_put_while_cut_off_is_lost(
    fleet, redis_server, name, monkeypatch
):
    """The negative control of the test above: the server goes on from what it had."""
    without_in_script(monkeypatch, *KEEPS_ITS_COUNT)
    without(monkeypatch, _member.Member, "_answered", *NO_I5)
    pool = put_while_cut_off(fleet, redis_server, name)
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0.5)
    assert used(pool) == 1
    assert not pool._member().out


def test_a_flushed_script_is_sent_again(fleet, redis_server, name):
    pool = fleet(redis_server, name)
    for _ in range(5):
        with pool.item():
            redis_server.call("SCRIPT", "FLUSH")
    assert redis_server.stats()["accepted"] == 1


def test_a_flushed_script_is_sent_again_for_each_call_in_its_order(fleet, redis_server, name):
    pool = fleet(redis_server, name, 5)
    held = [pool.get() for _ in range(3)]
    redis_server.call("SCRIPT", "FLUSH")
    pool.put(held[0]), pool.put(held[1])
    asking = [spawn(pool.stats) for _ in range(3)]
    assert [one.get(timeout=5).used for one in asking] == [1, 1, 1]
    pool.put(held[2])


def test_without_sending_it_again_a_flushed_script_is_the_end(
    fleet, redis_server, name, monkeypatch
):
    """The negative control of the test above."""
    pool = fleet(redis_server, name)
    pool.put(pool.get())
    until(lambda: empty(pool))
    without(monkeypatch, _link.Link, "_answer", '"NOSCRIPT"', '"no such error"')
    redis_server.call("SCRIPT", "FLUSH")
    with pytest.raises(PoolTimeout):
        pool.get(timeout=0.5)
    assert redis_server.stats()["accepted"] > 1


def flushed(fleet, server, name, lease):
    """Flush the data while one token is out and another came back; wait until it is told anew."""
    lost = []
    a = fleet(server, name, 2, lease=lease, grace=None, on_lost=lost.extend)
    b = fleet(server, name, 2, lease=lease, grace=None)
    held, free = a.get(timeout=5), b.get(timeout=5)
    b.put(free)
    server.call("FLUSHALL")
    until(lambda: used(b) == 1)
    return a, b, held, lost


def test_flushed_data_is_told_anew_and_holders_are_warned(fleet, redis_server, name):
    a, b, held, lost = flushed(fleet, redis_server, name, lease=1.5)
    until(lambda: lost)
    assert lost == [held]
    assert held.lost
    assert not held.valid
    a.put(held)
    until(lambda: empty(b))
    [b.put(token) for token in [b.get(timeout=20), b.get(timeout=20)]]


def test_without_a_word_of_it_holders_are_not_warned_of_flushed_data(
    fleet, redis_server, name, monkeypatch
):
    """The negative control of the test above."""
    warning = 'self._lose("the server did not know this process any more")'
    without(monkeypatch, _member.Member, "_denied", warning, "pass")
    a, _, held, lost = flushed(fleet, redis_server, name, lease=3.0)
    settle()
    assert not lost
    assert not held.lost
    a.put(held)


def sabotaged(fleet, server, name, sabotage, lease):
    """Change by hand what the server has of a pool with one who holds and one who waits."""
    pool = fleet(server, name, 1, lease=lease)
    held = pool.get()
    waiter = spawn(pool.get)
    until(lambda: pool.stats().waiting == 1)
    key = f"gp:{{{name}}}"
    if sabotage == "count":
        server.call("SETRANGE", key, 8, struct.pack("<d", 40).decode())
    elif sabotage == "queue":
        server.call("DEL", f"{key}:q")
    else:
        [process] = server.call("HKEYS", f"{key}:t")
        words = server.call("HGET", f"{key}:t", process).split(" ", 1)
        server.call("HSET", f"{key}:t", process, f"5 {words[1]}")
    return pool, held, waiter


MENDED = {
    "count": lambda stats: stats.used == 1,
    "queue": lambda stats: stats.waiting == 1,
    "held": lambda stats: stats.members[0].held == 1,
}


@pytest.mark.parametrize("sabotage", MENDED)
def test_mends_itself_after_sabotage(fleet, redis_server, name, sabotage):
    fleet.mismatches = 1 if sabotage == "held" else 0
    pool, held, waiter = sabotaged(fleet, redis_server, name, sabotage, lease=2.0)
    until(lambda: MENDED[sabotage](pool.stats()))
    pool.put(held)
    pool.put(waiter.get(timeout=2))
    until(lambda: empty(pool))


@pytest.mark.parametrize("sabotage", MENDED)
def test_without_its_guard_sabotage_stays(fleet, redis_server, name, monkeypatch, sabotage):
    """The negative control of the test above."""
    if sabotage == "count":
        guard = "pool.used, pool.audit = sum, pool.clock"
        without_in_script(monkeypatch, guard, "pool.audit = pool.clock")
    elif sabotage == "queue":
        without_in_script(monkeypatch, "found and 1 or 0", "1")
    else:
        without(monkeypatch, _member.Member, "_answered", *NO_I5)
    # A lapse would mend it, so the lease is long, and what a third of it does is done at once.
    without_in_script(monkeypatch, "pool.clock >= pool.audit + pool.lease / 3", "true")
    pool, held, waiter = sabotaged(fleet, redis_server, name, sabotage, lease=30.0)
    member = pool._member()

    def renew():
        before = member.deadline
        member.flush(always=True)
        until(lambda: member.deadline > before)

    [renew() for _ in range(3)]
    assert not MENDED[sabotage](pool.stats())
    pool.put(held)
    [renew() for _ in range(3)]
    assert not waiter.ready()
    waiter.kill()


def test_after_a_restart_without_data_nothing_is_granted_for_a_lease(fleet, start_server, name):
    server = start_server(RedisServer)
    a = fleet(server, name, 2, lease=1.0, grace=None)
    b = fleet(server, name, 2, lease=1.0, grace=None)
    held = [a.get(timeout=5), a.get(timeout=5)]
    b.stats()
    server.kill9()
    server.start()
    back = time.monotonic()
    waiter = spawn(b.get)
    until(lambda: used(a) == 2)
    assert all(token.valid and not token.lost for token in held)
    a.put(held[0])
    b.put(waiter.get(timeout=5))
    assert time.monotonic() - back > 0.7
    a.put(held[1])
    until(lambda: empty(b))


def test_without_grace_it_is_granted_twice(fleet, start_server, name):
    """The negative control of the test above."""
    server = start_server(RedisServer)
    client = SimpleNamespace(url=redis.Redis(port=server.port))
    a, b = fleet(client, name, 1, lease=5.0), fleet(server, name, 1, lease=5.0)
    held = a.get(timeout=5)
    b.stats()
    a._member().link._failures = 10  # slow to come back
    server.kill9()
    server.start()
    other = b.get(timeout=2)
    assert held.valid
    assert other.valid


def test_restarted_from_old_data_a_holder_is_told_and_counted(fleet, start_server, name):
    """The server has heard of the pool, but not of the holder, who cannot know why."""
    server = start_server(RedisServer)
    first = fleet(server, name, 1, lease=1.0, grace=None)
    first.put(first.get(timeout=5))
    first.close()
    server.call("SAVE")
    pool = fleet(server, name, 1, lease=1.0, grace=None)
    held = pool.get(timeout=5)
    server.kill9()
    server.start()
    until(lambda: held.lost)
    until(lambda: used(pool) == 1)
    waiter = spawn(pool.get)
    until(lambda: pool.stats().waiting == 1)
    pool.put(held)
    pool.put(waiter.get(timeout=5))
    until(lambda: empty(pool))


def test_a_frozen_server_loses_the_lease_before_others_can_have_it(fleet, start_server, name):
    server = start_server(RedisServer)
    lost = []
    pool = fleet(server, name, 1, lease=1.0, on_lost=lost.append)
    held = pool.get(timeout=5)
    server.freeze()
    until(lambda: lost)
    server.thaw()
    assert lost == [[held]]
    assert held.lost
    assert not held.valid
    until(lambda: used(pool) == 1)  # out, so it counts
    pool.put(held)
    until(lambda: empty(pool))


def test_without_a_deadline_of_its_own_the_holder_is_not_told(
    fleet, start_server, name, monkeypatch
):
    """The negative control of the test above."""
    monkeypatch.setattr(_member, "SAFE", 1000)
    server = start_server(RedisServer)
    lost = []
    pool = fleet(server, name, 1, lease=0.6, on_lost=lost.extend)
    held = pool.get(timeout=5)
    server.freeze()
    frozen = time.monotonic()
    until(lambda: time.monotonic() > frozen + 0.6)  # a lease: none is later renewed
    assert not lost
    assert held.valid
    server.thaw()
    pool.put(held)


def test_a_blocked_hub_is_a_lost_lease_and_is_said(fleet, redis_server, name, caplog):
    pool = fleet(redis_server, name, 1, lease=0.3)
    held = pool.get(timeout=5)
    time.sleep(0.4)  # not gevent's
    assert not held.valid
    until(lambda: held.lost)
    until(lambda: "its hub blocked" in caplog.text)
    pool.put(held)
    until(lambda: empty(pool))


@pytest.mark.parametrize("by", ["sync", "step", "push"])
def test_granted_by_what_is_older_than_a_lease_is_refused(
    fleet, redis_server, name, monkeypatch, by
):
    """Stopped with the grant in hand, it cannot know whose the token is by now."""
    client = SimpleNamespace(url=redis.Redis(port=redis_server.port))  # not connected yet
    pool, other = fleet(client, name, 1, lease=0.5), fleet(redis_server, name, 1, lease=0.5)
    answered, pushed = _member.Member._answered, _member.Member.pushed
    stopped_in = []

    def stop(kind, member):
        if kind == by and member is pool._member_now and not stopped_in:
            stopped_in.append(member.generation)
            time.sleep(0.6)  # not gevent's

    def answered_late(member, flight, reply):
        if flight.wants:
            stop("sync" if flight.sync else "step", member)
        answered(member, flight, reply)

    def pushed_late(member, channel, message):
        stop("push", member)
        pushed(member, channel, message)

    monkeypatch.setattr(_member.Member, "_answered", answered_late)
    monkeypatch.setattr(_member.Member, "pushed", pushed_late)
    if by == "step":
        until(lambda: pool._member().start() or pool._member().ready)
    held = other.get(timeout=20) if by == "push" else None
    waiter = spawn(pool.get)
    if held:
        until(lambda: pool._member().queued)
        other.put(held)
    token = waiter.get(timeout=20)
    assert not stopped_in or pool._member().generation > stopped_in[0]
    pool.put(token)


def test_unavailable_and_loud(fleet, name):
    pool = fleet(f"redis://127.0.0.1:{free_port()}", name, on_unavailable="raise")
    for _ in range(2):
        with pytest.raises(PoolUnavailable, match="refused"):
            pool.get(timeout=5)
    with pytest.raises(PoolUnavailable):
        pool.stats()


def test_unavailable_and_patient(fleet, start_server, name):
    server = start_server(RedisServer)
    pool = fleet(server, name, lease=1.0)
    server.kill9()
    with pytest.raises(PoolTimeout, match="has not answered") as late:
        pool.get(timeout=0.2)
    assert isinstance(late.value.__cause__, redis.ConnectionError)
    waiter = spawn(pool.get)
    settle()
    server.start()
    pool.put(waiter.get(timeout=5))


def test_unavailable_with_a_safe_capacity(fleet, start_server, name):
    server = start_server(RedisServer)
    a = fleet(server, name, 8, lease=1.0, on_unavailable=2)
    b = fleet(server, name, 8, lease=1.0, on_unavailable=2)
    server.kill9()
    tokens = [(pool, pool.get(timeout=5)) for pool in (a, b) for _ in range(2)]
    assert not any(token.valid for _, token in tokens)
    third = spawn(a.get)
    settle()
    assert not third.ready()
    a.put(tokens.pop(0)[1])
    tokens.append((a, third.get(timeout=2)))
    server.start()
    until(lambda: a.stats().used == 4, timeout=15)
    assert all(token.valid for _, token in tokens)
    [pool.put(token) for pool, token in tokens]
    until(lambda: empty(a))


@pytest.mark.parametrize("how", ["wait", "raise", 1])
def test_a_server_that_answers_with_errors_is_out_of_reach(fleet, start_server, name, how):
    """It has no memory left, or may not write: connecting to it succeeds."""
    server = start_server(RedisServer)
    pool = fleet(server, name, 8, lease=60.0, on_unavailable=how)
    held = pool.get(timeout=5)
    server.call("CONFIG", "SET", "maxmemory", 1)
    waiter = spawn(pool.get)
    until(lambda: pool._member().failed)
    if how == "raise":
        with pytest.raises(PoolUnavailable, match="OOM"):
            waiter.get(timeout=5)
        with pytest.raises(PoolUnavailable, match="OOM"):
            pool.resize(3)
    elif how == 1:
        pool.put(held)
        held = waiter.get(timeout=5)
        assert held.fence is None
        assert not held.valid  # the server does not count it yet
    else:
        with pytest.raises(PoolUnavailable, match="OOM"):
            pool.get(block=False)
    server.call("CONFIG", "SET", "maxmemory", 0)
    if how == "wait":
        pool.put(waiter.get(timeout=15))
    until(lambda: pool._member().ready, timeout=15)
    assert held.valid
    pool.put(held)
    until(lambda: empty(pool))
    assert pool.max_size == 8


def test_stats_of_a_server_that_answers_with_errors_are_unavailable(fleet, start_server, name):
    """They raised ConnectionError, or, from a node that owns the pool no more, Moved."""
    server = start_server(RedisServer)
    pool = fleet(server, name, lease=60.0)
    pool.put(pool.get(timeout=5))
    until(lambda: empty(pool))
    server.call("CONFIG", "SET", "replica-serve-stale-data", "no")
    server.call("REPLICAOF", "127.0.0.1", free_port())
    with pytest.raises(PoolUnavailable, match="MASTERDOWN"):
        pool.stats()
    server.call("REPLICAOF", "NO", "ONE")
    pool.put(pool.get(timeout=15))


def test_a_pool_that_is_refused_cuts_others_off_once(fleet, start_server, name):
    """They were on one connection, which was given up each time that it was refused again."""
    server = start_server(RedisServer)
    url = acl_user(server, f"~gp:{{{name}}}*", "&gp:*", "+@all")
    pool, refused = fleet(url, name), fleet(url, f"{name} not")
    pool.put(pool.get(timeout=5))
    link = pool._member().link
    for _ in range(3):
        with pytest.raises(Refused):
            refused.get(timeout=5)
        refused._member().failed = None
    until(lambda: refused._member().failed)
    pool.put(pool.get(timeout=5))
    assert pool._member().link is link
    assert link.connections <= 2
    acl_user(server, "~gp:*", "&gp:*", "+@all")
    until(lambda: refused._member().ready)
    refused.put(refused.get(timeout=5))


def test_without_its_room_the_safe_capacity_has_no_end(fleet, name, monkeypatch):
    """The first negative control of the test above."""
    room = "room = safe - len(self.out) - self.grants"
    without(monkeypatch, _member.Member, "_serve_locally", room, "room = safe")
    without(monkeypatch, _member.Member, "_refuse_newcomer", "full = ", "full = False and ")
    pool = fleet(f"redis://127.0.0.1:{free_port()}", name, 8, on_unavailable=2)
    assert len({pool.get(timeout=5) for _ in range(5)}) == 5


def test_without_being_told_the_server_grants_beside_the_safe_capacity(
    fleet, start_server, name, monkeypatch
):
    """The second negative control: tokens without a fence are left out of what is told."""

    def count(member):
        return sum(token.fence is not None for token in member.out) + member.grants

    monkeypatch.setattr(_member.Member, "_count", count)
    server = start_server(RedisServer)
    pool = fleet(server, name, 2, lease=1.0, on_unavailable=2)
    pool.put(pool.get(timeout=5))
    until(lambda: empty(pool))
    server.kill9()
    until(lambda: not pool._member().ready)
    tokens = [pool.get(timeout=5) for _ in range(2)]
    server.start()
    until(lambda: pool._member().ready, timeout=15)
    tokens += [pool.get(timeout=5) for _ in range(2)]
    assert len(pool._member().out) == 4  # of 2
    [pool.put(token) for token in tokens[2:]]


def test_what_the_kernel_does_not_take_at_once_arrives_whole(fleet, redis_server, name):
    pool = fleet(redis_server, name, 1, lease=60.0)
    pool.put(pool.get())
    link = pool._member().link
    link._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    redis_server.freeze()
    asking = [spawn(pool.stats, timeout=30) for _ in range(3000)]
    until(lambda: link._out)
    getting = spawn(pool.get)
    settle()
    redis_server.thaw()
    gevent.joinall(asking, timeout=30)
    assert {one.get().max_size for one in asking} == {1}
    pool.put(getting.get(timeout=5))
    assert not link._out
    assert link.connections == 1


def test_closed_while_the_server_is_down(fleet, name):
    pool = fleet(f"redis://127.0.0.1:{free_port()}", name)
    waiter = spawn(pool.get)
    settle()
    pool.close()
    assert isinstance(until(lambda: waiter.exception), PoolClosed)


def test_closed_while_somebody_asks(fleet, name):
    pool = fleet(f"redis://127.0.0.1:{free_port()}", name)
    asking = [spawn(pool.resize, 3), spawn(pool.stats)]
    settle()
    pool.close()
    for greenlet in asking:
        error = until(lambda greenlet=greenlet: greenlet.exception)
        assert isinstance(error, (PoolClosed, PoolUnavailable))


# Kept tokens.


def test_kept_tokens_cost_no_request_and_are_recalled(fleet, redis_server, name):
    a, b = fleet(redis_server, name, 2, keep=2), fleet(redis_server, name, 2)
    one, two = a.get(), a.get()
    a.put(one), a.put(two)
    before = calls(redis_server)
    for _ in range(100):
        with a.item() as token:
            assert token.valid
    assert calls(redis_server) - before <= 2
    assert used(a) == 2
    b.put(b.get(timeout=1))


def test_kept_tokens_of_a_lost_epoch_are_given_up_without_a_word(fleet, redis_server, name, caplog):
    """The sync that learned of the loss had still counted them."""
    pool = fleet(redis_server, name, 2, keep=2)
    one, two = pool.get(), pool.get()
    pool.put(one), pool.put(two)
    assert used(pool) == 2
    redis_server.call("FLUSHALL")
    redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
    until(lambda: empty(pool))
    assert "counts differ" not in caplog.text


def test_kept_tokens_go_when_a_reconnected_waiter_comes(fleet, redis_server, name):
    """A sync that queues must recall, too."""
    a, b = fleet(redis_server, name, 1, keep=1), fleet(redis_server, name, 1)
    a.put(a.get())
    assert used(a) == 1
    b.put(b.get(timeout=1))
    a.put(a.get(timeout=1))
    redis_server.call("CLIENT", "KILL", "TYPE", "pubsub")
    b.put(b.get(timeout=1))


@pytest.mark.parametrize("closed", [False, True])
def test_kept_tokens_go_from_each_pool_of_the_name(fleet, redis_server, name, closed):
    """Of two on one connection only the last one heard, and none once that was closed."""
    a, b = (fleet(redis_server, name, 2, lease=60.0, keep=2) for _ in range(2))
    for token in [a.get() for _ in range(2)]:
        a.put(token)
    assert used(a) == 2
    b.stats()
    if closed:
        b.close()
    other = fleet(redis_server, name, 2)
    other.put(other.get(timeout=10))


def test_kept_tokens_go_when_the_size_shrinks(fleet, redis_server, name):
    """Taken again and again, they were more than the new size for as long as nobody waited."""
    a, b = fleet(redis_server, name, 5, lease=60.0, keep=5), fleet(redis_server, name, 5)
    [a.put(token) for token in [a.get() for _ in range(5)]]
    assert used(a) == 5
    b.resize(2)
    until(lambda: used(b) == 0)
    held = [a.get(block=False) for _ in range(2)]
    with pytest.raises(PoolTimeout):
        a.get(block=False)
    [a.put(token) for token in held]


def test_kept_tokens_go_when_the_size_shrank_while_cut_off(fleet, redis_server, name, monkeypatch):
    a, b = fleet(redis_server, name, 5, lease=60.0, keep=5), fleet(redis_server, name, 5)
    [a.put(token) for token in [a.get() for _ in range(5)]]
    assert used(a) == 5
    monkeypatch.setattr(a._member(), "pushed", lambda *message: None)
    b.resize(2)
    a._member().link.fail(ConnectionError("cut"))
    until(lambda: used(b) == 0)


# Fork.


def in_child(act):
    reader, writer = os.pipe()
    pid = gevent.os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)
            try:
                answer = act()
            except BaseException as error:
                answer = repr(error)
            os.write(writer, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writer)
    until(lambda: select.select([reader], [], [], 0)[0], timeout=40)
    with os.fdopen(reader, "rb") as pipe:
        return pickle.loads(pipe.read())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_a_member_of_its_own(fleet, redis_server, name):
    pool = fleet(redis_server, name, 3)
    held = pool.get()
    waiting = [spawn(pool.get) for _ in range(4)]
    until(lambda: used(pool) == 3)
    connections = redis_server.stats()["accepted"]

    def child():
        pool.put(held)  # the parent's: nothing
        before = pool.stats()
        late = "no"
        try:
            pool.get(timeout=0.2)
        except PoolTimeout:
            late = "yes"
        pool.close()
        return before.used, len(before.members), late

    assert in_child(child) == (3, 2, "yes")
    assert held.valid
    assert redis_server.stats()["accepted"] == connections + 1
    assert len(pool.stats().members) == 1
    pool.put(held)
    for _ in range(4):
        until(lambda: any(waiter.ready() for waiter in waiting))
        done = next(waiter for waiter in waiting if waiter.ready())
        waiting.remove(done)
        pool.put(done.get())
    until(lambda: empty(pool))


def a_child_closes(fleet, server, name):
    """Have a child close what it inherited; return how many members the server knows then."""
    pool = fleet(server, name, 1, lease=30.0)
    held = pool.get()
    in_child(pool.close)
    members = server.call("HLEN", f"gp:{{{name}}}:t")
    pool.put(held)
    return members


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_closes_leaves_the_parent_in(fleet, redis_server, name):
    assert a_child_closes(fleet, redis_server, name) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_without_starting_anew_a_child_takes_the_parent_out(fleet, redis_server, name, monkeypatch):
    """The negative control of the test above."""
    monkeypatch.setattr(_link, "abandon_all", lambda: None)
    monkeypatch.setattr(DistributedTokenPool, "_start_anew_in_child", lambda pool: None)
    assert a_child_closes(fleet, redis_server, name) == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_spin_on_what_it_inherited(fleet, redis_server, name):
    """In a child the parent's connection is /dev/null, which is always ready to be read."""
    pool = fleet(redis_server, name)
    pool.put(pool.get())

    def sleep():
        loop = gevent.get_hub().loop
        before = loop.iteration
        gevent.sleep(0.3)
        return loop.iteration - before

    assert in_child(sleep) < 100


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_while_one_closes_the_child_still_shares_its_connection(fleet, redis_server, name):
    """The child has a copy of who closes, whose end took the child's connection for its own."""
    pool = fleet(redis_server, name)
    pool.put(pool.get())
    pool._member().link._write = lambda data: None  # so that it waits
    closing = spawn(pool.close)

    def child():
        settings = (redis_server.url, name, 2)
        mine = DistributedTokenPool(*settings)
        mine.put(mine.get(timeout=5))
        until(closing.ready)
        other = DistributedTokenPool(*settings)
        other.put(other.get(timeout=5))
        return other._member().link is mine._member().link

    settle()
    assert in_child(child) is True
    closing.get(timeout=5)


@pytest.mark.usefixtures("cooperative")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_while_it_connects_the_child_writes_nothing(fleet, name, monkeypatch):
    """The child has a copy of the greenlet, which would shake hands beside the parent's."""
    monkeypatch.setattr(_link, "is_module_patched", lambda name: True)
    gate, connect = gevent.event.Event(), redis.Connection._connect

    def connect_slowly(conn):
        sock = connect(conn)
        gate.wait()
        return sock

    def child():
        gate.set()
        settle()

    monkeypatch.setattr(redis.Connection, "_connect", connect_slowly)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = fleet(f"redis://127.0.0.1:{listener.getsockname()[1]}", name, lease=60.0)
        getting = spawn(pool.get)
        until(gate.linkcount)
        with listener.accept()[0] as conn:
            assert in_child(child) is None
            with pytest.raises(BlockingIOError):
                conn.recv(100, socket.MSG_DONTWAIT)
            gate.set()
            settle()
            assert conn.recv(100, socket.MSG_DONTWAIT).count(b"HELLO") == 1
        getting.kill()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_inside_a_block_the_child_gives_back_nothing(fleet, redis_server, name):
    pool = fleet(redis_server, name, 1)

    def leave():
        block.__exit__(None, None, None)
        stats = pool.stats()
        pool.close()
        return stats.used

    block = pool.item()
    block.__enter__()
    assert in_child(leave) == 1
    block.__exit__(None, None, None)
    until(lambda: empty(pool))


# Rights, and servers that will not do.


def acl_user(server, *rules):
    server.call("ACL", "SETUSER", "fleet", "reset", "on", ">secret", *rules)
    return f"redis://fleet:secret@{server.host}:{server.port}"


def test_works_with_the_rights_that_the_docs_name(fleet, start_server, name):
    server = start_server(RedisServer)
    pool = fleet(acl_user(server, "~gp:*", "&gp:*", *RIGHTS), name, 1)
    with pool.item(timeout=5):
        waiter = spawn(pool.get)
        assert used(pool) == 1
    pool.put(waiter.get(timeout=2))
    pool.resize(3)


@pytest.mark.parametrize("lacking", ["+info", "+evalsha", "+publish", "&gp:*", "~gp:*"])
def test_a_lacking_right_is_named(fleet, start_server, name, lacking):
    server = start_server(RedisServer)
    rules = [rule for rule in ("~gp:*", "&gp:*", *RIGHTS) if rule != lacking]
    pool = fleet(acl_user(server, *rules), name, 1)

    def use():
        token = pool.get(timeout=5)
        pool.get(timeout=5)  # in line, which publishes a recall
        pool.put(token)

    with pytest.raises(PoolError, match=r"lacks a right|refuses") as refused:
        use()
    assert "secret" not in str(refused.value)


def test_a_wrong_password_is_told_without_it(fleet, start_server, name):
    server = start_server(RedisServer, password="right")
    pool = fleet(f"redis://:wr0ng@{server.host}:{server.port}", name)
    with pytest.raises(Refused) as refused:
        pool.get(timeout=5)
    assert "wr0ng" not in str(refused.value)
    assert "wr0ng" not in repr(pool)


def test_a_client_that_cannot_do_resp3_is_refused(fleet, start_server, name):
    server = start_server(RedisServer, config={"rename-command HELLO": "GONE"})
    pool = fleet(server, name)
    with pytest.raises(Refused, match="Redis 6 or newer"):
        pool.get(timeout=5)


def test_a_client_of_redis_py_is_as_good_as_its_url(fleet, redis_server, name):
    client = redis.Redis(host=redis_server.host, port=redis_server.port, decode_responses=True)
    a, b = fleet(SimpleNamespace(url=client), name), fleet(redis_server, name)
    with a.item(timeout=5), b.item(timeout=5):
        assert used(a) == 2
    client.close()


# Held for too long.


@pytest.mark.parametrize("keep", [0, 1])
def test_a_token_that_is_held_for_long_is_told_once(fleet, redis_server, name, caplog, keep):
    told, held = [], []
    settings = {"leak_after": 0.3, "on_leak": told.append, "keep": keep}
    pool = fleet(redis_server, name, 2, lease=30.0, **settings)
    pool.put(pool.get())

    def holder():
        with pool.item():
            pass
        with pool.item() as token:
            held.append(token)
            done.wait()

    def of_it():
        return [hold.greenlet for hold in told if hold.item in held]

    done = gevent.event.Event()
    holding = spawn(holder)
    until(of_it)
    with pool.item():
        pass
    assert "a token is held for " in caplog.text
    assert "done.wait()" in caplog.text
    gevent.sleep(0.7)
    assert of_it() == [holding]
    done.set()
    holding.get(timeout=2)


# Dropped without close.


def test_a_dropped_pool_that_was_never_used_is_collected():
    pool = weakref.ref(DistributedTokenPool("redis://127.0.0.1:1", "x", 1))
    gc.collect()
    assert pool() is None


@pytest.mark.parametrize("settings", [{}, {"keep": 1, "fast_reclaim": True}])
def test_a_dropped_pool_leaves_and_its_connection_is_closed(redis_server, name, settings):
    pool = DistributedTokenPool(redis_server.url, name, 1, grace=0, **settings)
    pool.put(pool.get())
    pool.stats()
    member = weakref.ref(pool._member_now)
    del pool

    def gone():
        gc.collect()
        return member() is None

    key = f"gp:{{{name}}}"
    until(lambda: redis_server.call("EXISTS", f"{key}:s", f"{key}:t") == 0)
    until(lambda: redis_server.stats()["open"] == 0)
    until(gone)


def test_a_dropped_pool_with_a_token_out_stays_counted(fleet, redis_server, name):
    """Its use may go on, and nobody can put it back."""
    token = DistributedTokenPool(redis_server.url, name, 2, grace=0, lease=1).get()
    gc.collect()
    other = fleet(redis_server, name, lease=1)
    gevent.sleep(1.2)  # longer than the lease

    def counted():
        with suppress(PoolUnavailable):  # with so short a lease its patience is short, too
            return used(other) == 1

    until(counted)
    assert token.valid
    token._member.close(None)
    token._member.end()


def test_a_dropped_pool_in_an_outage_is_collected(name):
    pool = DistributedTokenPool(f"redis://127.0.0.1:{free_port()}", name, 1, timeout=0.05)
    with suppress(PoolTimeout):
        pool.get()
    member = weakref.ref(pool._member_now)
    del pool

    def gone():
        gc.collect()
        return member() is None

    until(gone)


# Fewer calls.


def test_a_pair_in_a_tight_loop_is_one_call(fleet, redis_server, name):
    pool = fleet(redis_server, name)
    pool.put(pool.get())
    before = calls(redis_server)
    for _ in range(200):
        pool.put(pool.get())
    assert calls(redis_server) - before < 210
