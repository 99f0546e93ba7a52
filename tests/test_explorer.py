"""The explorer itself: it runs every order that gevent may, once, and no other."""

import gc
import random
import weakref
from contextlib import suppress
from math import comb

import gevent
import pytest
from gevent.event import Event
from gevent.exceptions import LoopExit

import gpools
from tests.explorer import Choices, Explorer, Scenario, explore, replay, sample, virtual_time


def plain(world):
    return world.lib.Pool(max_size=1, create=world.create)


def runs(*scripts, **options):
    """Explore *scripts* and return what each run has written into ``world.log``."""
    logs = []

    def logging_pool(world):
        world.log = []
        logs.append(world.log)
        return plain(world)

    result = explore(Scenario("", logging_pool, scripts, **options))
    assert result.failure is None, str(result)
    assert result.complete
    assert result.schedules == len(logs)
    return ["".join(log) for log in logs]


def pause_twice(world):
    world.log.append("a")
    world.pause()
    world.log.append("b")
    world.pause()
    world.log.append("c")


def pause_twice_too(world):
    world.log.append("x")
    world.pause()
    world.log.append("y")
    world.pause()
    world.log.append("z")


def test_each_order_of_events_is_run_once():
    logs = runs(pause_twice, pause_twice_too)

    assert len(logs) == len(set(logs)) == comb(6, 3)
    assert {"abcxyz", "axbycz", "xyzabc"} <= set(logs)


def test_of_equal_scripts_the_first_starts_first():
    assert len(runs(pause_twice, pause_twice)) == comb(6, 3) / 2


def test_a_kill_comes_at_every_position():
    assert runs(pause_twice, kills=1) == ["abc", "ab", "a"]


def test_a_timeout_from_outside_comes_at_every_position():
    assert runs(pause_twice, kills=1, by_timeout=True) == ["abc", "ab", "a"]


def schedule_two(world):
    world.loop.run_callback(world.log.append, "1")
    world.loop.run_callback(world.log.append, "2")
    world.log.append("0")


def come(world):
    world.log.append("x")


def test_callbacks_run_in_order_and_events_come_between():
    assert runs(schedule_two) == ["012"]
    assert sorted(runs(schedule_two, come)) == ["012x", "01x2", "0x12", "x012"]


def test_a_loop_that_is_not_busy_ends_its_batches():
    assert sorted(runs(schedule_two, come, busy=False)) == ["012x", "0x12", "x012"]


def test_a_stopped_callback_is_no_step():
    def stop_one(world):
        world.loop.run_callback(world.log.append, "1").stop()
        world.loop.run_callback(world.log.append, "2")
        world.log.append("0")

    assert sorted(runs(stop_one, come)) == ["02x", "0x2", "x02"]


def test_a_timer_may_fire_before_any_other():
    def sleep_long(world):
        gevent.sleep(1000)
        world.log.append("l")

    def sleep_short(world):
        gevent.sleep(0.001)
        world.log.append("s")

    assert set(runs(sleep_long, sleep_short)) == {"ls", "sl"}


def test_gevents_own_event_timeout_and_kill_work():
    def wait(world):
        world.event = Event()
        try:
            world.log.append("set" if world.event.wait(timeout=60) else "late")
        except gevent.GreenletExit:
            world.log.append("killed")
            raise

    def set_it(world):
        if hasattr(world, "event"):
            world.event.set()

    def kill_it(world):
        world.kill(0)

    assert set(runs(wait, set_it)) == {"set", "late"}
    assert set(runs(wait, set_it, kill_it)) == {"set", "late", "killed"}


def test_verbs_do_all_that_they_may_within_their_faults():
    def get_twice(world):
        for _ in range(2):
            try:
                world.pool.create()
                world.log.append(".")
            except OSError:
                world.log.append("!")

    verbs = {"create": ("ok", "raise")}
    for faults, logs in enumerate(
        (
            [
                "..",
            ],
            ["..", ".!", "!."],
            ["..", ".!", "!.", "!!"],
        )
    ):
        world_logs = runs(get_twice, verbs=verbs, faults=faults)
        assert world_logs == logs


def take_and_keep(world):
    world.get()


def test_a_slot_that_does_not_come_back_is_found():
    result = explore(Scenario("kept", plain, (take_and_keep,)))

    assert "still holds items" in result.failure


def test_a_greenlet_that_sleeps_for_ever_is_found():
    result = explore(Scenario("kept", plain, (take_and_keep, take_and_keep)))

    assert "b:take_and_keep sleeps for ever" in result.failure


def test_a_kill_that_is_swallowed_is_found():
    def swallow(world):
        with suppress(gevent.GreenletExit):
            world.pause()

    result = explore(Scenario("swallowed", plain, (swallow,), kills=1))

    assert "was killed and yet goes on" in result.failure


def test_a_scenario_without_end_is_found():
    def spin(world):
        while True:
            gevent.sleep(0)

    result = explore(Scenario("endless", plain, (spin,)))

    assert result.failure == "no end in sight"


class Racy(gpools.Pool):
    """Counts a new item only once it is there."""

    def _make_item(self):
        self._line.size -= 1
        item = self.create()
        self._line.size += 1
        return item


def racy(world):
    return Racy(max_size=1, create=world.create)


def borrow(world):
    with world.item():
        world.pause()


RACE = Scenario("race", racy, (borrow, borrow), {"create": ("slow",)})


def aging(world):
    return world.lib.ConnectionPool(create=world.create, destroy=world.destroy, max_age=50)


def sweeper_looks(**options):
    """Explore one borrower of an aging pool; return how often the sweeper's timer woke it."""
    looks = []

    def counting(world):
        pool = aging(world)
        pool._retire_expired = lambda now: looks.__setitem__(-1, looks[-1] + 1)
        looks.append(0)
        return pool

    result = explore(Scenario("", counting, (borrow,), **options))
    assert result.failure is None, str(result)
    assert result.complete
    return [count - 1 for count in looks]  # it looks once as it begins


def test_the_sweeper_wakes_as_often_as_it_may():
    assert set(sweeper_looks()) == {0}
    assert set(sweeper_looks(sweeps=2)) == {2}


def test_the_clock_of_the_pools_moves_by_timers_and_scripts_only():
    ages = []

    def age(world):
        begun = gpools.connection.monotonic()
        world.age(1000)
        with gevent.Timeout(5, False):
            Event().wait()
        ages.append(gpools.connection.monotonic() - begun)

    assert explore(Scenario("", aging, (age,))).failure is None
    assert ages == [pytest.approx(1005, abs=0.01)]


def test_an_item_that_outlives_a_recycle_is_found():
    def keep_young(world):
        world.pool = aging(world)
        world.pool._outdate = lambda spread: None
        borrow(world)
        world.recycle()
        borrow(world)

    result = explore(Scenario("", aging, (keep_young,)))

    assert "from before a recycle" in result.failure


def test_an_item_that_is_dropped_is_no_leak_of_the_scenario():
    def drop(world):
        item = world.get()
        world.drop(item)
        del item

    def one(world):
        return world.lib.ConnectionPool(max_size=1, create=world.create, destroy=world.destroy)

    assert explore(Scenario("", one, (drop, drop))).failure is None


def test_a_failing_schedule_tells_its_story_and_can_be_replayed():
    result = explore(RACE)

    assert not result.complete
    assert f"replay key {result.key!r}" in str(result)
    assert "create: slow" in str(result)
    again = replay(RACE, result.key)
    assert again.failure == result.failure
    assert again.trace == result.trace


def test_a_random_schedule_that_fails_can_be_replayed():
    result = sample(RACE, seed=3)

    assert replay(RACE, result.key).failure == result.failure


def test_the_same_seed_runs_the_same_schedules():
    scenario = Scenario("", plain, (borrow,) * 4)
    keys = []
    for _ in range(2):
        explorer = Explorer(scenario, gpools)
        with explorer.ready():
            choices = Choices(rng=random.Random(7))
            explorer.run(choices)
        keys.append(choices.key)
    assert keys[0] == keys[1]


def test_a_scenario_that_is_not_deterministic_is_refused():
    choices = Choices([(1, 2)])

    with pytest.raises(RuntimeError, match="2 options became 3"):
        choices.choose(3)


def test_the_world_goes_on_after_an_exploration():
    """The hub of the thread is gevent's own again."""
    hub = gevent.get_hub()
    explore(RACE)

    assert gevent.get_hub() is hub
    gevent.sleep(0)


def test_virtual_time_jumps_from_timer_to_timer():
    woken = []

    def sleep(seconds):
        gevent.sleep(seconds)
        woken.append(seconds)

    with virtual_time() as loop:
        gevent.joinall([gevent.spawn(sleep, seconds) for seconds in (3600, 60, 60.5)])
        with pytest.raises(gevent.Timeout), gevent.Timeout(1000):
            gevent.sleep(10_000)
        with pytest.raises(LoopExit):
            Event().wait()

    assert woken == [60, 60.5, 3600]
    assert loop.time == 4600


def test_a_schedule_that_fails_leaves_no_sweeper_behind():
    """One ended in the main greenlet when its pool was collected, two files of tests later."""

    pools = weakref.WeakSet()

    def losing(world):
        pools.add(pool := aging(world))
        return pool

    def lose_one(world):
        world.item().__enter__()

    assert explore(Scenario("", losing, (lose_one,))).failure is not None
    gc.collect()
    assert not pools
    gevent.idle()  # raised InvalidSwitchError, the main greenlet being switched to
