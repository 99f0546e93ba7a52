"""CoDel: who is turned away under overload, and who never is."""

import random
from time import monotonic

import gevent
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpools import CoDel, ConnectionPool, PoolShed, PoolTimeout, _fast, _line, connection
from tests.hostile import Gate, full_check
from tests.waiting import settle, spawn

TARGET, INTERVAL = 50, 1000  # milliseconds in the pure tests, db_connection's defaults


# The algorithm, on timelines made by hand.


def codel():
    return CoDel(target=TARGET, interval=INTERVAL)


def test_the_first_in_line_is_served_however_long_it_has_waited():
    assert not codel().hopeless(now=0, waited=10_000)


def test_a_whole_interval_of_long_waits_makes_the_pool_slow():
    shed = codel()
    assert not shed.hopeless(0, 60)
    assert not shed.hopeless(500, 101)
    assert not shed.hopeless(999, 2000)
    assert not shed.slow
    assert not shed.hopeless(1000, 2000)  # the first of an interval is served
    assert shed.slow
    assert shed.hopeless(1001, 101)
    assert not shed.hopeless(1002, 100)  # twice the target is not yet too long


def test_one_short_wait_in_the_interval_keeps_the_pool_fast():
    shed = codel()
    shed.hopeless(0, 5000)
    shed.hopeless(500, 50)
    shed.hopeless(900, 5000)
    assert not shed.hopeless(1000, 5000)
    assert not shed.hopeless(1500, 5000)
    assert not shed.slow


def test_a_wait_of_the_target_is_not_too_long():
    shed = codel()
    shed.hopeless(0, 50)
    shed.hopeless(1000, 5000)
    assert not shed.slow
    shed = codel()
    shed.hopeless(0, 51)
    shed.hopeless(1000, 5000)
    assert shed.slow


def test_an_item_that_nobody_wants_ends_the_slowness_with_the_interval():
    shed = codel()
    shed.hopeless(0, 60)
    shed.hopeless(1000, 60)
    assert shed.slow
    shed.idle(1500)
    assert shed.slow
    assert shed.hopeless(1600, 200)
    assert not shed.hopeless(2000, 200)
    assert not shed.slow


def test_the_drops_of_an_interval_do_not_count_as_waits():
    """Else a single long wait that was dropped would hide nothing, a short one all."""
    shed = codel()
    shed.hopeless(0, 60)
    shed.hopeless(1000, 70)
    assert shed.hopeless(1001, 5000)
    assert not shed.hopeless(1002, 60)
    assert not shed.hopeless(2000, 60)
    assert shed.slow
    assert not shed.hopeless(2001, 10)
    assert not shed.hopeless(3000, 60)
    assert not shed.slow


def test_idle_after_the_interval_begins_a_new_one():
    shed = codel()
    shed.hopeless(0, 60)
    shed.idle(1000)
    assert shed.slow
    assert shed.hopeless(1999, 101)
    assert not shed.hopeless(2000, 101)
    assert not shed.slow


def test_a_stalled_line_is_judged_once_an_interval():
    shed = codel()
    assert not shed.stalled(1000, 1000)  # nothing is known yet
    assert not shed.stalled(1999, 1999)
    assert shed.stalled(2000, 2000)
    assert not shed.stalled(2999, 2999)
    assert shed.stalled(3000, 3000)


def test_a_stalled_line_is_spared_after_a_short_wait():
    shed = codel()
    shed.hopeless(0, 10)
    assert not shed.stalled(1000, 1000)
    assert not shed.slow


@pytest.mark.parametrize("wrong", [{"target": 0}, {"interval": 0}, {"target": -1}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be above 0"):
        CoDel(**wrong)
    with pytest.raises(ValueError, match="must be above 0"):
        CoDel(interval=float("nan"))


def test_the_defaults_are_those_of_db_connection():
    assert repr(CoDel()) == "CoDel(target=0.05, interval=1.0)"


# The same as db_connection, which keeps a whole pool in its state.


class Reference:
    """What DBConnection.ConnectionPool does with its queue and one connection.

    After lib/db_connection/connection_pool.ex of elixir-ecto/db_connection:
    checkouts enter a queue, a checkin takes from it, a poll looks whether it
    has stalled.  `log` tells who was served and who was dropped, in order.
    """

    def __init__(self, target, interval, now=0):
        self.target, self.interval = target, interval
        self.delay, self.slow, self.next = 0, False, now
        self.busy = True
        self.queue = []  # (when, who), while busy
        self.log = []

    def checkout(self, now, who):
        if self.busy:
            self.queue.append((now, who))
        else:
            self.busy = True
            self.log.append(("served", who))

    def cancel(self, who):
        self.queue = [entry for entry in self.queue if entry[1] != who]

    def checkin(self, now):
        assert self.busy
        if now >= self.next:
            slow = self.delay > self.target
            self.next = now + self.interval
            self.slow = slow
            if self.queue:
                sent, who = self.queue.pop(0)
                self.delay = now - sent
                self.log.append(("served", who))
            else:
                self.delay = 0
                self.busy = False
        else:
            while self.slow and self.queue and now - self.queue[0][0] > 2 * self.target:
                self.log.append(("dropped", self.queue.pop(0)[1]))
            if self.queue:
                sent, who = self.queue.pop(0)
                self.delay = min(self.delay, now - sent)
                self.log.append(("served", who))
            else:
                self.delay = 0
                self.busy = False

    def poll(self, now):
        """The queue has made no progress since the last poll."""
        if not self.queue or not self.busy or now < self.next:
            return
        waited = now - self.queue[0][0]
        self.slow = self.delay > self.target
        self.delay, self.next = waited, now + self.interval
        if self.slow:
            hopeless = [entry for entry in self.queue if entry[0] < now - 2 * self.target]
            self.log += [("dropped", who) for _, who in hopeless]
            self.queue = [entry for entry in self.queue if entry not in hopeless]


class Ours:
    """The same with a CoDel: what the line of a pool does with it."""

    def __init__(self, target, interval):
        self.shed = CoDel(target, interval)
        self.busy = True
        self.queue = []
        self.log = []

    def checkout(self, now, who):
        if self.busy:
            self.queue.append((now, who))
        else:
            self.busy = True
            self.log.append(("served", who))

    def checkin(self, now):
        while self.queue:
            sent, who = self.queue.pop(0)
            dropped = self.shed.hopeless(now, now - sent)
            self.log.append(("dropped" if dropped else "served", who))
            if not dropped:
                return
        self.shed.idle(now)
        self.busy = False

    def poll(self, now):
        if self.queue and self.busy and self.shed.stalled(now, now - self.queue[0][0]):
            kept = [entry for entry in self.queue if not entry[0] < now - 2 * self.shed.target]
            self.log += [("dropped", who) for at, who in self.queue if (at, who) not in kept]
            self.queue = kept


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["checkout", "checkout", "checkout", "checkin", "checkin", "poll"]),
        st.sampled_from([0, 1, 7, 40, 50, 51, 100, 101, 400, 1000]),
    ),
    max_size=120,
)


@given(EVENTS)
def test_the_state_machine_equals_db_connections(events):
    reference, ours = Reference(TARGET, INTERVAL), Ours(TARGET, INTERVAL)
    now = 0
    for who, (event, later) in enumerate(events):
        now += later
        for pool in (reference, ours):
            if event == "checkout":
                pool.checkout(now, who)
            elif event == "poll":
                pool.poll(now)
            elif pool.busy:
                pool.checkin(now)
        assert ours.log == reference.log
        assert (ours.shed.slow, ours.busy) == (reference.slow, reference.busy)


def test_random_storms_drop_and_serve_as_db_connection_does():
    """Long enough for many intervals, slow and fast; both kinds must occur."""
    for seed in range(20):
        chance = random.Random(seed)
        reference, ours = Reference(TARGET, INTERVAL), Ours(TARGET, INTERVAL)
        now, load = 0, 1.0
        for who in range(3000):
            now += chance.randrange(20)
            if who % 300 == 0:
                load = chance.choice([0.3, 0.8, 1.0, 1.5, 3.0])
            event = "checkout" if chance.random() < load / (1 + load) else "checkin"
            for pool in (reference, ours):
                if event == "checkout":
                    pool.checkout(now, who)
                elif pool.busy:
                    pool.checkin(now)
        assert ours.log == reference.log
        kinds = [kind for kind, _ in ours.log]
        assert kinds.count("served") > 100
    assert "dropped" in kinds


# In a pool, on a clock of its own.


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (_fast, _line, connection):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


class Line:
    """Callers of a pool of one; tells who was served and who was turned away."""

    def __init__(self, clock, **settings):
        settings.setdefault("shed", CoDel(target=0.05, interval=1.0))
        self.clock = clock
        self.gate = Gate()
        self.pool = ConnectionPool(max_size=1, **{**self.gate.verbs, **settings})
        self.item = self.pool.get()
        self.log = []

    @property
    def busy(self):
        return not self.pool.free()

    def _call(self, who):
        try:
            self.pool.get()
        except PoolShed:
            self.log.append(("dropped", who))
        else:
            self.log.append(("served", who))

    def checkout(self, now, who):
        self.clock.now = now
        caller = spawn(self._call, who)
        settle()
        return caller

    def checkin(self, now):
        self.clock.now = now
        self.pool.put(self.item)
        settle()


ALL_TURNED_AWAY = [
    *[("checkout", 0), ("checkout", 0), ("checkout", 50), ("checkin", 1), ("checkin", 1000)],
    *[("checkin", 0), ("checkout", 0), ("checkout", 0), ("checkout", 1000), ("checkin", 0)],
    ("checkin", 101),
]


@given(EVENTS)
@example(ALL_TURNED_AWAY)
def test_a_pool_of_one_equals_db_connection(events):
    """The clock is patched by hand: hypothesis and fixtures of one test do not mix."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        for module in (_fast, _line, connection):
            patch.setattr(module, "monotonic", clock)
        reference = Reference(TARGET, INTERVAL)
        line = Line(clock, check=None, shed=CoDel(TARGET, INTERVAL))
        callers = []
        now = 0
        for who, (event, later) in enumerate(events):
            now += later
            if event == "checkout":
                reference.checkout(now, who)
                callers.append(line.checkout(now, who))
            elif event == "checkin" and reference.busy:
                reference.checkin(now)
                line.checkin(now)
            assert line.log == reference.log
            assert line.busy == reference.busy
        gevent.killall(callers)


def overloaded(clock, **settings):
    """A line that has been too long for a whole interval."""
    line = Line(clock, **settings)
    for n in range(3):
        line.checkout(1000.0, n)
    line.checkin(1000.2)
    line.checkin(1001.2)
    assert line.log == [("served", 0), ("served", 1)]
    assert line.pool._line.shed is None or line.pool._line.shed.slow
    return line


def test_no_pool_sheds_unless_asked_to(clock):
    line = overloaded(clock, shed=None)
    line.checkin(1002.1)
    for n in range(10):
        line.checkout(1003.0, n)
    for n in range(10):
        line.checkin(1010.0 + n * 0.3)
    assert [kind for kind, _ in line.log] == ["served"] * 13
    assert line.pool.stats().shed == 0


def test_those_who_waited_for_too_long_are_turned_away(clock):
    line = overloaded(clock)
    for n in range(10, 15):
        line.checkout(1001.3, n)
    fresh = line.checkout(1001.5, 20)
    line.checkin(1001.59)
    dropped = [who for kind, who in line.log if kind == "dropped"]
    assert dropped == [2, *range(10, 15)]
    assert line.log[-1] == ("served", 20)
    assert fresh.ready()
    stats = line.pool.stats()
    assert (stats.shed, stats.waiting, stats.timeouts, stats.in_use) == (6, 0, 0, 1)


def test_the_error_tells_how_long_and_is_a_timeout(clock):
    line = overloaded(clock)
    failed = spawn(line.pool.get)
    settle()
    line.checkin(1001.5)
    assert isinstance(failed.exception, PoolShed)
    assert isinstance(failed.exception, PoolTimeout)
    assert isinstance(failed.exception, TimeoutError)
    assert str(failed.exception).startswith("turned away after 0.30 s in line: the pool has been")
    assert "raise max_size" in str(failed.exception)


def test_the_listener_hears_of_each(clock):
    heard = []

    class Listener:
        def shed(self, pool):
            heard.append(pool)

    line = overloaded(clock, listener=Listener())
    line.checkout(1001.2, 8)
    line.checkin(1001.5)
    settle()
    assert heard == [line.pool] * 2


def test_a_burst_worked_off_within_an_interval_drops_nobody(clock):
    line = Line(clock)
    for n in range(50):
        line.checkout(1000.0, n)
    for n in range(50):
        line.checkin(1000.0 + 0.0199 * n)
    assert line.log == [("served", n) for n in range(50)]
    line.checkin(1000.998)
    assert line.pool.free() == 1
    for n in range(50, 60):  # and the next burst finds a fast pool
        line.checkout(1001.5, n)
    for n in range(10):
        line.checkin(1001.5 + 0.02 * n)
    assert len(line.log) == 60  # the first of them found the item idle
    assert {kind for kind, _ in line.log} == {"served"}


def test_a_slow_pool_is_fast_again_after_a_quiet_time(clock):
    line = overloaded(clock)
    line.checkout(1001.2, 7)
    line.checkin(1001.22)  # turns away who waited for too long, and serves that one
    line.checkin(1001.25)  # nobody wants it
    assert line.pool.free() == 1

    line.checkout(2000.0, 29)
    for n in range(30, 33):
        line.checkout(2000.0, n)
    line.checkin(2000.3)
    line.checkin(2000.6)
    assert line.log[-2:] == [("served", 30), ("served", 31)]


def test_after_all_in_line_were_turned_away_the_quiet_counts(clock):
    """The item nobody was left for ends the slowness, as an item nobody wanted does."""
    line = overloaded(clock)
    line.checkin(1001.8)  # the last in line is turned away
    assert line.log[-1] == ("dropped", 2)
    assert line.pool.free() == 1

    clock.now = 5000.0
    line.item = line.pool.get()
    for n in range(30, 33):
        line.checkout(5000.0, n)
    line.checkin(5000.3)
    line.checkin(5000.6)
    assert line.log[-2:] == [("served", 30), ("served", 31)]


def test_the_slots_are_whole_after_shedding(clock):
    line = overloaded(clock)
    for n in range(10):
        line.checkout(1001.2, n)
    line.checkin(1001.9)
    assert line.pool.free() == 1
    full_check(line.pool, line.gate)


# A line in which nothing comes free at all: only the clock can tell.


def test_a_stalled_line_turns_away_those_who_waited_for_too_long():
    pool = ConnectionPool(max_size=1, shed=CoDel(target=0.02, interval=0.1), **Gate().verbs)
    held = pool.get()
    old = [spawn(pool.get) for _ in range(3)]
    gevent.joinall(old, timeout=10)
    assert [type(caller.exception) for caller in old] == [PoolShed] * 3
    assert pool.waiting() == 0

    young = spawn(pool.get)
    settle()
    assert not young.ready()
    pool.put(held)
    settle()
    assert young.get(block=False) is held
    assert pool.stats().shed == 3


def test_only_the_old_ones_of_a_stalled_line_go(clock):
    line = Line(clock)
    line.checkout(1000.0, "old")
    line.checkout(1000.5, "older than 0.1 s")
    line.pool._line._ring()
    settle()
    clock.now = 1001.0
    line.pool._line._ring()
    settle()
    assert line.log == []
    clock.now = 2001.0
    line.checkout(2000.9, "exactly 0.1 s")
    line.checkout(2000.95, "young")
    clock.now = 2001.0
    line.pool._line._ring()
    settle()
    assert [who for kind, who in line.log if kind == "dropped"][:2] == ["old", "older than 0.1 s"]
    assert "young" not in [who for _, who in line.log]
    assert line.pool.waiting() == 4 - len(line.log)


def test_no_alarm_is_left_once_nobody_waits(clock):
    line = Line(clock)
    caller = line.checkout(1000.0, 1)
    assert line.pool._line._alarm is not None
    caller.kill()
    line.pool._line._ring()
    assert line.pool._line._alarm is None
    line.checkout(1000.0, 2)
    assert line.pool._line._alarm is not None


# Sustained overload, in real time: the same load with and without.


def load(shed, seconds, seed):
    """Offer about twice what P(2) can do; return the waits of the served and the errors."""
    chance = random.Random(seed)
    pool = ConnectionPool(max_size=2, shed=shed, **Gate().verbs)
    waits, errors = [], []

    def caller():
        begun = monotonic()
        try:
            with pool.item():
                waits.append(monotonic() - begun)
                gevent.sleep(0.004)
        except PoolShed as error:
            errors.append(error)

    callers = []
    end = monotonic() + seconds
    while monotonic() < end:
        callers += [spawn(caller), spawn(caller)]
        gevent.sleep(0.002 * chance.uniform(0.5, 1.5))
    gevent.joinall(callers, timeout=30)
    assert len(waits) + len(errors) == len(callers)
    assert pool.stats().shed == len(errors)
    return sorted(waits), errors


def test_sustained_overload_drops_and_the_served_wait_less_than_without():
    waits, errors = load(CoDel(target=0.01, interval=0.1), seconds=0.8, seed=1)
    without, no_errors = load(None, seconds=0.8, seed=1)

    assert errors
    assert not no_errors
    assert len(waits) > len(errors) / 10
    assert waits[len(waits) * 9 // 10] < without[len(without) * 9 // 10] / 2
