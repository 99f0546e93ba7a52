"""A server that is down for a long time, and then is up again."""

import gc
from itertools import pairwise

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

from gpools import ConnectionPool, PoolError, PoolTimeout, PoolUnavailable, _creator, lifecycle
from tests.hostile import Gate, error, full_check, never, ok, slow
from tests.proxy import hung_up
from tests.servers import free_port
from tests.waiting import settle, spawn, until


class Server:
    """A behaviour for create(): down until told otherwise; counts the tries."""

    def __init__(self, clock=lambda: 0.0, takes=lambda: None):
        self.up = False
        self.clock = clock
        self.takes = takes
        self.tries = []  # when
        self.now = self.peak = 0

    def __call__(self):
        self.tries.append(self.clock())
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            self.takes()
            if not self.up:
                raise ConnectionRefusedError(f"refused, try {len(self.tries)}")
        finally:
            self.now -= 1


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set, for the pauses between tries."""
    clock = Clock()
    monkeypatch.setattr(_creator, "monotonic", clock)
    return clock


@pytest.fixture
def impatient(monkeypatch):
    """Try again after milliseconds."""
    monkeypatch.setattr(_creator, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(_creator, "LONGEST_PAUSE", 0.004)


def pool_of(create, max_size=10, max_creating=4, **settings):
    return ConnectionPool(
        max_size=max_size, max_creating=max_creating, **Gate(create).verbs, **settings
    )


def outcome(pool):
    """Get once; return the item or the error."""
    try:
        return pool.get(timeout=60)
    except (PoolError, OSError) as failure:
        return failure


def down(pool, clock, seconds, step):
    """Have a caller come every *step* for so many virtual *seconds*; return the errors."""
    errors = []
    for _ in range(round(seconds / step)):
        errors.append(outcome(pool))
        clock.now += step
    return errors


# Newcomers, and how often the server is asked.


def test_tries_stay_few_while_the_server_is_down_and_callers_come_in_crowds(clock):
    """Ten minutes and 6,000 callers; at the cap between one try in 1 s and one in 2 s."""
    pool = pool_of(server := Server(clock))
    errors = down(pool, clock, seconds=600, step=0.1)

    assert len(errors) == 6000
    assert 300 <= len(server.tries) <= 615
    assert all(b - a <= 2.2 for a, b in pairwise(server.tries))
    late = [b - a for a, b in pairwise(server.tries[8:])]
    assert min(late) >= 1.0
    assert server.peak == 1


def test_callers_meanwhile_fail_at_once_with_the_last_error_as_their_cause(clock):
    pool = pool_of(server := Server(clock))
    first = outcome(pool)
    assert isinstance(first, ConnectionRefusedError)
    assert str(first) == "refused, try 1"

    for _ in range(3):
        with pytest.raises(PoolUnavailable) as refused:
            pool.get(timeout=60)
        assert refused.value.__cause__ is first
        assert isinstance(refused.value, ConnectionError)
        assert "create() has failed 1 times in a row" in str(refused.value)
        assert "ConnectionRefusedError" in str(refused.value)
        assert "refused, try" not in str(refused.value)  # such texts may hold a password
    assert len(server.tries) == 1
    assert pool.waiting() == pool.current_size == 0


def test_the_refusal_says_when_the_next_try_is_due(clock, monkeypatch):
    monkeypatch.setattr(_creator, "random", lambda: 1.0)
    pool = pool_of(Server(clock))
    outcome(pool)
    assert "is tried again in 0.05 s" in str(outcome(pool))
    clock.now += 0.02
    assert "is tried again in 0.03 s" in str(outcome(pool))


def test_the_newcomer_of_the_moment_is_the_one_who_tries(clock):
    release = Event()
    pool = pool_of(server := Server(clock, takes=release.wait))
    release.set()
    outcome(pool)
    release.clear()
    clock.now += 10

    prober = spawn(outcome, pool)
    settle()
    assert server.now == 1
    others = [outcome(pool) for _ in range(3)]
    assert {type(other) for other in others} == {PoolUnavailable}
    assert "is tried again now" in str(others[0])
    assert not prober.ready()

    server.up = True
    release.set()
    settle()
    assert prober.get(block=False).number == 1
    assert len(server.tries) == 2


def test_the_first_get_after_the_outage_succeeds_within_one_pause(clock):
    pool = pool_of(server := Server(clock))
    down(pool, clock, seconds=120, step=0.1)
    server.up = True
    up = clock.now

    while isinstance(item := outcome(pool), Exception):
        assert clock.now - up <= 2.0
        clock.now += 0.05
    assert item.number == 1
    # And all is as before: nobody is refused, nobody waits for a pause.
    assert all(not isinstance(outcome(pool), Exception) for _ in range(1, 10))


def test_a_success_ends_the_pauses_and_the_memory_of_the_error(clock):
    pool = pool_of(server := Server(clock), max_size=2)
    down(pool, clock, seconds=60, step=0.5)
    server.up = True
    clock.now += 2
    item = pool.get(timeout=60)
    other = pool.get(timeout=60)
    with pytest.raises(PoolTimeout) as late:
        pool.get(timeout=0)
    assert late.value.__cause__ is None
    pool.put(item)
    pool.put(other)


# The pauses.


def pauses(pool, server, clock, count):
    """Return the pauses between *count* tries, to 1 ms."""
    server.tries.clear()
    while len(server.tries) <= count:
        outcome(pool)
        clock.now += 0.001
    return [b - a for a, b in pairwise(server.tries)]


FULL = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_pauses_grow_to_a_cap_and_chance_shortens_them_by_up_to_half(
    clock, monkeypatch, chance, share
):
    monkeypatch.setattr(_creator, "random", lambda: chance)
    pool = pool_of(server := Server(clock))
    expected = [share * pause for pause in FULL]
    assert pauses(pool, server, clock, 9) == pytest.approx(expected, abs=0.0021)


def test_pauses_are_jittered(clock):
    """Two processes must not ask in step."""
    pools = []
    for _ in range(2):
        pool = pool_of(server := Server(clock))
        pools.append(pauses(pool, server, clock, 6))
    assert pools[0] != pools[1]


def test_pauses_begin_anew_after_a_success(clock, monkeypatch):
    monkeypatch.setattr(_creator, "random", lambda: 1.0)
    pool = pool_of(server := Server(clock))
    pauses(pool, server, clock, 7)
    server.up = True
    clock.now += 2
    pool.discard(pool.get())
    settle()
    server.up = False
    assert pauses(pool, server, clock, 2) == pytest.approx(FULL[:2], abs=0.0021)


def test_a_thousand_failures_are_no_overflow(clock):
    pool = pool_of(server := Server(clock))
    down(pool, clock, seconds=5000, step=2.5)
    assert len(server.tries) >= 1999
    assert 0.99 <= pool._book.creator._pause() + 2.5 <= 2.0 + 2.5


# Those in line.


def test_those_in_line_wait_on_while_items_are_in_use(clock):
    """Each failed try ends the wait of the first in line; a returned item serves the next."""
    pool = pool_of(server := Server(clock), max_size=4, max_creating=1)
    server.up = True
    item = pool.get()
    server.up = False

    waiters = [spawn(outcome, pool) for _ in range(4)]
    settle()
    assert [waiter.ready() for waiter in waiters] == [True, False, False, False]
    clock.now += 10
    until(lambda: waiters[1].ready())
    assert [waiter.ready() for waiter in waiters] == [True, True, False, False]
    assert {type(waiter.value) for waiter in waiters[:2]} == {ConnectionRefusedError}

    pool.put(item)
    settle()
    assert waiters[2].value is item
    assert not waiters[3].ready()
    waiters[3].kill()


def test_a_newcomer_stands_in_line_as_long_as_an_item_exists(clock):
    """It may come back, so to wait is not in vain."""
    pool = pool_of(server := Server(clock))
    server.up = True
    item = pool.get()
    server.up = False
    assert isinstance(outcome(pool), ConnectionRefusedError)

    patient = spawn(outcome, pool)
    settle()
    assert not patient.ready()
    pool.put(item)
    settle()
    assert patient.get(block=False) is item
    assert len(server.tries) == 2


def test_those_in_line_are_served_when_the_server_is_back(impatient):
    """Without anybody coming or going: the pool itself tries again."""
    pool = pool_of(server := Server())
    server.up = True
    held = pool.get()
    server.up = False
    waiters = [spawn(outcome, pool) for _ in range(6)]
    until(lambda: waiters[0].ready() and waiters[1].ready())

    server.up = True
    gevent.joinall(waiters, timeout=10)
    served = [w.value for w in waiters if not isinstance(w.value, Exception)]
    assert len(served) == 6 - (len(server.tries) - 1 - len(served))
    assert len(served) >= 2
    assert held not in served


def test_all_in_line_get_the_error_once_no_item_is_left(clock):
    pool = pool_of(server := Server(clock))
    server.up = True
    item = pool.get()
    server.up = False
    outcome(pool)
    waiters = [spawn(outcome, pool) for _ in range(5)]
    settle()
    assert not any(waiter.ready() for waiter in waiters)

    clock.now += 10
    pool.discard(item)
    until(lambda: all(waiter.ready() for waiter in waiters))
    assert {type(waiter.value) for waiter in waiters} == {ConnectionRefusedError}
    assert len(server.tries) == 3


def test_recovery_is_no_herd(impatient):
    """One prober while it is down, and never more than max_creating after that."""
    pool = pool_of(server := Server(takes=slow), max_size=30, max_creating=3)
    server.up = True
    held = pool.get()
    server.up = False
    server.peak = 0
    waiters = [spawn(outcome, pool) for _ in range(40)]
    until(lambda: server.tries and any(waiter.ready() for waiter in waiters))
    until(lambda: server.now <= 1)
    server.peak = server.now
    until(lambda: len(server.tries) >= 8)
    assert server.peak == 1

    server.up = True
    until(lambda: pool.current_size == 30)
    assert server.peak == 3
    pool.put(held)
    gevent.killall(waiters)


def test_a_timeout_in_line_has_the_last_error_of_create_as_its_cause(clock):
    pool = pool_of(server := Server(clock))
    server.up = True
    held = pool.get()
    server.up = False
    assert str(outcome(pool)) == "refused, try 2"
    with pytest.raises(PoolTimeout, match="1 of 10 in use") as late:
        pool.get(timeout=0.005)
    assert str(late.value.__cause__) == "refused, try 2"
    pool.put(held)


def test_a_pool_with_idle_items_serves_on_while_the_server_is_down(clock):
    pool = pool_of(server := Server(clock), max_size=2)
    server.up = True
    pool.put(pool.get())
    server.up = False
    for _ in range(100):
        with pool.item(timeout=60):
            pass
    assert len(server.tries) == 1


def test_killed_waiters_leave_an_outage_sound(impatient):
    gate = Gate(*[error] * 5, never, ok)
    pool = ConnectionPool(max_size=3, max_creating=2, create_timeout=0.01, **gate.verbs)
    for _ in range(10):
        waiters = [spawn(outcome, pool) for _ in range(5)]
        gevent.sleep(0.002)
        gevent.killall(waiters)
    gate.calm()
    until(lambda: pool.stats().creating == 0)
    until(lambda: not isinstance(item := outcome(pool), Exception) and pool.put(item) is None)
    full_check(pool, gate)


def test_failures_of_many_creations_at_once_leave_one_prober(clock):
    release = Event()
    pool = pool_of(server := Server(clock, takes=release.wait), max_creating=4)
    callers = [spawn(outcome, pool) for _ in range(4)]
    settle()
    assert server.now == 4
    release.set()
    settle()
    assert {type(caller.value) for caller in callers} == {ConnectionRefusedError}
    assert len(server.tries) == 4

    clock.now += 10
    server.peak = 0
    release.clear()
    callers = [spawn(outcome, pool) for _ in range(4)]
    settle()
    assert server.peak == server.now == 1
    release.set()
    settle()
    assert all(caller.ready() for caller in callers)


def test_min_size_is_not_hammered_either(clock, monkeypatch):
    """With nobody in line the pool asks by its own alarm alone."""
    alarms = []
    monkeypatch.setattr(
        _creator.Creator, "_look_again_in", lambda self, pause: alarms.append(pause)
    )
    pool = pool_of(server := Server(clock), min_size=3, max_creating=3)
    settle()
    tries = len(server.tries)
    assert tries <= 3
    assert alarms
    assert all(0.0 < pause <= 2.0 for pause in alarms)
    for _ in range(100):
        pool._book.creator.look()
        settle()
    assert len(server.tries) == tries
    clock.now += 2
    pool._book.creator.look()
    settle()
    assert len(server.tries) == tries + 1


def test_nothing_is_left_of_a_thousand_refusals(clock):
    pool = pool_of(Server(clock), max_size=2)
    outcome(pool)
    for _ in range(100):
        outcome(pool)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        outcome(pool)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


def test_a_real_server_goes_and_comes_back(impatient, monkeypatch):
    monkeypatch.setattr(lifecycle, "FRESH", 0.0)  # check what nobody has used yet, too

    def serve(sock, address):
        while sock.recv(10):
            sock.sendall(b"pong")

    address = ("127.0.0.1", free_port())
    sockets = []

    def connect():
        sockets.append(socket.create_connection(address))
        return sockets[-1]

    pool = ConnectionPool(
        max_size=5,
        max_creating=2,
        create_timeout=1,
        create=connect,
        check=lambda sock: not hung_up(sock),
    )
    server = StreamServer(address, serve, spawn=10)
    server.start()

    def ask():
        with pool.item(timeout=5) as sock:
            sock.sendall(b"ping")
            return sock.recv(10)

    asking = [spawn(ask) for _ in range(5)]
    assert [a.get() for a in asking] == [b"pong"] * 5
    server.stop(timeout=0)
    server.close()
    until(lambda: all(map(hung_up, sockets)))
    assert isinstance(outcome(pool), OSError)
    assert isinstance(outcome(pool), OSError)
    assert pool.stats().size == 0

    server = StreamServer(address, serve, spawn=10)
    server.start()

    def answered():
        try:
            return ask() == b"pong"
        except OSError:
            return False

    until(answered)
    pool.close()
    server.stop(timeout=0)
