"""Small crowds on small pools, run in every order: no schedule breaks a promise.

Each scenario is run by `tests.explorer` for every schedule, every place for a
kill, and everything that the factory may do.  GPOOLS_STRESS_SECONDS=600 goes
through larger ones, at random, for about so long in all.
"""

import os
import random
from dataclasses import replace

import gevent
import pytest

from tests.explorer import CutOff, Scenario, explore, sample

STRESS_SECONDS = float(os.environ.get("GPOOLS_STRESS_SECONDS", 0))


# The pools.


def plain(**options):
    """Return a maker of Pools."""
    return lambda world: world.lib.Pool(create=world.create, **options)


def tracked(**options):
    """Return a maker of ConnectionPools; verbs that the scenario does not name are default."""
    for timeout in ("check_timeout", "destroy_timeout", "create_timeout"):
        options.setdefault(timeout, None)  # one more event that may come at any time

    def make(world):
        world.made_aside = "max_creating" in options
        verbs = {v: getattr(world, v) for v in ("check", "reset") if v in world.scenario.verbs}
        return world.lib.ConnectionPool(
            create=world.create, destroy=world.destroy, **verbs, **options
        )

    return make


def forgiving(**options):
    """Return a maker of ConnectionPools that keep an item after an Exception, on reflection."""

    def make(world):
        def fit_after(pool, item, error):
            world.pause("fit_after")
            return True

        world.forgiving = True
        forgiving_pool = type("Forgiving", (world.lib.ConnectionPool,), {"fit_after": fit_after})
        return forgiving_pool(
            create=world.create, destroy=world.destroy, destroy_timeout=None, **options
        )

    return make


def keyed(limit, each=1, **options):
    """Return a maker of KeyedPools."""
    make_pool = tracked(max_size=each, **options)
    return lambda world: world.lib.KeyedPool(lambda key: make_pool(world), max_size=limit)


# The scripts.


class Oops(Exception):
    """An application's error."""


def borrow(world):
    with world.item():
        world.pause()


def glance(world):
    with world.item():
        pass


def borrow_twice(world):
    borrow(world)
    borrow(world)


def glance_twice(world):
    glance(world)
    glance(world)


def glance_thrice(world):
    glance_twice(world)
    glance(world)


def borrow_by_hand(world):
    item = world.get()
    try:
        world.pause()
    except BaseException:
        world.discard(item)
        raise
    world.put(item)


def discard(world):
    item = world.get()
    try:
        world.pause()
    finally:
        world.discard(item)


def discard_and_go_on(world):
    discard(world)
    world.pause()


def discard_inside(world):
    with world.item() as item:
        world.pause()
        world.discard(item)


def put_inside(world):
    """Put an item back inside its own block, whose end must not put that of the next holder."""
    try:
        with world.item() as item:
            world.put(item)
            world.pause()
    except world.lib.NotInUse:
        return
    world.fail("the block has put its item a second time")


def stumble(world):
    try:
        with world.item():
            world.pause()
            raise Oops
    except Oops:
        pass


def give_up(world):
    with world.item(timeout=1):
        world.pause()


def cut_off(world):
    with gevent.Timeout(1, CutOff), world.item():
        world.pause()


def kill_then_put(world):
    with world.item():
        world.pause()
        world.kill(1)


def put_then_kill(world):
    borrow(world)
    world.kill(1)


def kill_second(world):
    world.kill(1)


def switch_to_second(world):
    world.stray(1)


def put_and_switch_to_second(world):
    world.stray(1)
    borrow(world)
    world.stray(1)


def refuse(world, item):
    """Assert that the pool takes *item* neither by put nor by discard."""
    for give in (world.pool.put, world.pool.discard):
        try:
            give(item)
        except world.lib.NotInUse:
            pass
        else:
            world.fail(f"{give.__name__} of {item} was not refused")


def put_twice(world):
    item = world.get()
    world.put(item)
    refuse(world, item)


def put_what_nobody_holds(world):
    """Put items while they are idle, checked, reset or destroyed, and one of nobody's."""
    refuse(world, object())
    for item in world.items:
        if item.holder is None:
            refuse(world, item)


def grow(world):
    world.resize(world.pool.max_size + 1)


def grow_by_two(world):
    world.resize(world.pool.max_size + 2)


def shrink(world):
    world.resize(world.pool.max_size - 1)


def shrink_and_grow(world):
    size = world.pool.max_size
    world.resize(size - 1)
    world.pause()
    world.resize(size)


def close(world):
    world.close()


def close_and_wait(world):
    world.close(timeout=1)


def recycle(world):
    world.recycle()


def recycle_and_borrow(world):
    world.recycle()
    borrow(world)


def grow_old(world):
    world.age(100)


def keep_long(world):
    with world.item():
        world.pause()
        world.age(100)
        world.pause()


def drop(world):
    """Lose an item: no put, no discard."""
    item = world.get()
    world.drop(item)
    del item
    world.pause()


def borrow_a(world):
    with world.item("a"):
        world.pause()


def borrow_b(world):
    with world.item("b"):
        world.pause()


def borrow_both(world):
    borrow_a(world)
    borrow_b(world)


def borrow_a_twice(world):
    borrow_a(world)
    borrow_a(world)


def give_up_b(world):
    with world.item("b", timeout=1):
        world.pause()


def insist_on_b(world):
    """Try again where create fails."""
    try:
        borrow_b(world)
    except OSError:
        borrow_b(world)


def discard_a(world):
    with world.item("a") as item:
        world.pause()
        item.spoiled = True
        raise CutOff


def count_and_borrow(world):
    """Take one item, once it is sure that no more stand in line than may."""
    try:
        with world.item():
            if world.pool.waiting() > 1:
                world.fail("more wait than may")
    except world.lib.PoolFull:
        if world.pool.waiting() != 1:
            world.fail("refused, though fewer wait than may")


# What verbs may do.

SWITCH = dict.fromkeys(("create", "check", "reset", "destroy"), ("slow",))
CREATE_FAILS = {"create": ("slow", "ok", "raise", "slow raise", "slow timeout", "exit")}
CHECK_FAILS = {
    "create": ("ok",),
    "check": ("slow", "ok", "refuse", "slow refuse", "slow raise", "timeout", "slow exit"),
    "destroy": ("ok", "slow"),
}
RESET_FAILS = {
    "create": ("ok",),
    "reset": ("slow", "ok", "raise", "slow raise", "timeout", "slow exit"),
    "destroy": ("ok", "slow"),
}
DESTROY_FAILS = {
    "create": ("ok",),
    "reset": ("raise",),
    "destroy": ("slow", "ok", "raise", "timeout", "slow exit"),
}
ALL_FAIL = {
    "create": ("slow", "ok", "slow raise"),
    "check": ("slow", "refuse", "slow raise"),
    "reset": ("slow", "raise"),
    "destroy": ("slow", "raise"),
}
DEAD = {"check": ("ok", "slow refuse", "refuse"), "destroy": ("ok", "slow")}
NONE = {"create": ("none", "slow none", "slow")}
CUT_OFF = {"create": ("slow",), "destroy": ("never",)}
DESTROYS = {"destroy": ("slow", "ok")}
SLOW_CREATE = {"create": ("slow",)}
SLOW_DESTROY = {"destroy": ("slow",)}
SLOW_RETURN = {"reset": ("slow",), "destroy": ("slow",)}
SLOW_RESET = {"reset": ("slow",)}
SLOW_CHECK = {"check": ("slow",)}
DIES = {"check": ("ok", "slow refuse"), "destroy": ("slow",)}
DIES_SLOWLY = {"check": ("slow", "slow refuse"), "destroy": ("slow",)}
TWO_DEAD = {"check": ("ok", "refuse"), "destroy": ("slow",)}
BROKEN = {"create": ("slow", "raise", "slow raise", "slow exit")}
NEVER_MADE = {"create": ("raise",)}
BREAKS = {"create": ("ok", "slow raise")}
FAILS = {"create": ("slow", "raise")}
HANGS = {"create": ("slow", "never")}
MAKE_AND_GO = {"create": ("slow",), "destroy": ("slow",)}
KEY_FAILS = {
    "create": ("ok", "slow raise"),
    "check": ("ok", "refuse"),
    "reset": ("ok", "raise"),
    "destroy": ("slow", "raise"),
}
MADE_AND_KEPT = {"create": ("slow", "ok"), "destroy": ("ok", "slow")}

ONE, TWO = plain(max_size=1), plain(max_size=2)
STACK = plain(max_size=2, order_as_stack=True)
ONE_TRACKED, TWO_TRACKED = tracked(max_size=1), tracked(max_size=2)
ONE_WAITS = tracked(max_size=1, max_waiting=1)
STACK_TRACKED = tracked(max_size=2, order_as_stack=True)
ONE_CHECKED = tracked(max_size=1, check_timeout=5)
ONE_MADE = tracked(max_size=1, max_creating=1)
TWO_MADE = tracked(max_size=2, max_creating=2)
TWO_MADE_SINGLY = tracked(max_size=2, max_creating=1)
ONE_MADE_IN_TIME = tracked(max_size=1, max_creating=1, create_timeout=30)
ONE_AGES = tracked(max_size=1, max_age=50)
TWO_IDLE = tracked(max_size=2, max_idle=50)
ONE_STAYS = tracked(min_size=1, max_size=2, max_idle=50)
MADE_AND_STAYS = tracked(min_size=1, max_size=2, max_age=50, max_creating=1)
KEYS_MADE, KEYS_MADE_TWO = keyed(1, max_creating=1), keyed(2, 2, max_creating=1)
KEYS_AGE = keyed(2, 2, max_creating=2, max_age=50)
TWO_KEPT = tracked(min_size=2, max_size=2, max_creating=1)
ONE_KEPT = tracked(min_size=1, max_size=2, max_creating=1)

SCENARIOS = [
    # eventlet's face
    Scenario("plain, three share one", ONE, (borrow,) * 3, kills=3),
    Scenario("plain, create is slow", ONE, (borrow,) * 3, SLOW_CREATE, kills=3),
    Scenario("plain, three share two", TWO, (borrow,) * 3, CREATE_FAILS, 1, 1),
    Scenario("plain, create fails", ONE, (borrow,) * 3, CREATE_FAILS, 2, 1),
    Scenario("plain, four share two", TWO, (borrow,) * 4, kills=2),
    Scenario("plain, a greedy loop", ONE, (glance_thrice, borrow, borrow), kills=2),
    Scenario("plain, stacked", STACK, (borrow_twice, borrow, borrow), kills=1),
    Scenario("plain, get times out", ONE, (give_up, give_up, borrow), kills=1),
    Scenario("plain, a Timeout around get", ONE, (cut_off, cut_off, borrow), CREATE_FAILS, 1),
    Scenario("plain, killed before a put", ONE, (kill_then_put, borrow, borrow), SLOW_CREATE),
    Scenario("plain, killed after a put", ONE, (put_then_kill, borrow, borrow), SLOW_CREATE),
    Scenario("plain, a stray switch", ONE, (put_and_switch_to_second, borrow, borrow)),
    Scenario("plain, grows", ONE, (borrow, borrow, borrow, grow), kills=1),
    Scenario("plain, shrinks", TWO, (borrow, borrow, borrow, shrink), kills=1),
    Scenario("plain, shrinks and grows", TWO, (borrow, borrow, borrow, shrink_and_grow)),
    # connections
    Scenario("all verbs switch", ONE_TRACKED, (borrow,) * 3, SWITCH, kills=1),
    Scenario("two are killed", ONE_TRACKED, (borrow, borrow), SWITCH, kills=2),
    Scenario("two are timed out", ONE_TRACKED, (borrow, borrow), SWITCH, 0, 2, by_timeout=True),
    Scenario("create fails", ONE_TRACKED, (borrow,) * 3, CREATE_FAILS, 2, 1),
    Scenario("create gives None", ONE_TRACKED, (borrow,) * 3, NONE, 1, 1),
    Scenario("reset fails", ONE_TRACKED, (borrow,) * 3, RESET_FAILS, 1, 1),
    Scenario("destroy fails", ONE_TRACKED, (borrow, borrow), DESTROY_FAILS, 2, 1),
    Scenario("destroy is cut off", tracked(max_size=1, destroy_timeout=1), (discard,) * 2, CUT_OFF),
    Scenario("discards and goes on", ONE_TRACKED, (discard_and_go_on, borrow), DESTROYS, 1, 1),
    Scenario("discarded inside", ONE_TRACKED, (discard_inside, borrow), SWITCH, kills=2),
    Scenario("put back inside", ONE_TRACKED, (put_inside, borrow, borrow)),
    Scenario("a greedy loop", ONE_TRACKED, (glance_thrice, borrow, borrow), kills=2),
    Scenario("stacked", STACK_TRACKED, (borrow_twice, borrow), SLOW_RETURN, kills=1),
    Scenario("get times out", ONE_TRACKED, (give_up, give_up, borrow), SLOW_DESTROY, kills=1),
    Scenario("killed before a put", ONE_TRACKED, (kill_then_put, borrow, borrow), SWITCH),
    Scenario("killed after a put", ONE_TRACKED, (put_then_kill, borrow, borrow), SWITCH),
    Scenario("a stray switch", ONE_TRACKED, (put_and_switch_to_second, borrow, borrow), SWITCH),
    Scenario("put twice", ONE_TRACKED, (put_twice, borrow, put_what_nobody_holds), SWITCH),
    Scenario("discarded and put", ONE_TRACKED, (discard, put_what_nobody_holds), SWITCH),
    Scenario(
        "max_waiting", tracked(max_size=1, max_waiting=1), (count_and_borrow,) * 3, SWITCH, 0, 1
    ),
    Scenario("grows", ONE_TRACKED, (borrow, borrow, borrow, grow), kills=1),
    Scenario("shrinks", TWO_TRACKED, (borrow, borrow, borrow, shrink), SLOW_DESTROY),
    Scenario("shrinks and grows", TWO_TRACKED, (borrow, borrow, shrink_and_grow), SLOW_DESTROY),
    Scenario("closes", ONE_TRACKED, (borrow, borrow, close), SWITCH, kills=1),
    Scenario("closes on a line", ONE_TRACKED, (borrow, borrow, borrow, close), kills=1),
    Scenario("closes twice", TWO_TRACKED, (borrow, close, close), SWITCH, kills=1),
    Scenario("two dead items", TWO_TRACKED, (borrow_twice, borrow_twice), TWO_DEAD, 2),
    Scenario("check takes too long", ONE_CHECKED, (borrow, borrow), CHECK_FAILS, 1, 1),
    Scenario(
        "a dead item while it grows", ONE_TRACKED, (borrow_twice, borrow, grow_by_two), DIES, 1
    ),
    Scenario("check hangs", ONE_CHECKED, (borrow, borrow), {"check": ("ok", "never")}, 1, 1),
    Scenario("an item is dropped", ONE_TRACKED, (drop, borrow, borrow), SLOW_CREATE),
    # creations in the background
    Scenario("made aside", ONE_MADE, (borrow,) * 3, SLOW_CREATE, kills=2),
    Scenario("made aside, it fails", ONE_MADE, (borrow,) * 3, BROKEN, 2),
    Scenario("made aside, killed and it fails", ONE_MADE, (borrow,) * 2, BROKEN, 2, 1),
    Scenario("made aside, it hangs", ONE_MADE_IN_TIME, (borrow, borrow), HANGS, 2, 1),
    Scenario("made aside, given up", ONE_MADE, (give_up, give_up, borrow), BROKEN, 1),
    Scenario("made aside, discarded", ONE_MADE, (discard, borrow, borrow), SWITCH),
    Scenario("made aside, grows", ONE_MADE, (borrow, borrow, grow), SLOW_CREATE, kills=1),
    Scenario("made aside, closes", ONE_MADE, (borrow, borrow, close), BROKEN, 1, 1),
    Scenario("made aside, closes and waits", ONE_MADE, (borrow, close_and_wait), SWITCH, kills=1),
    Scenario("made aside, recycled", ONE_MADE, (borrow, borrow, recycle), SLOW_CREATE, kills=1),
    Scenario("made aside, lost on its way", TWO_MADE, (borrow, borrow, recycle), SLOW_DESTROY),
    Scenario("made aside, a stray switch", ONE_MADE, (switch_to_second, borrow, borrow), BROKEN, 1),
    Scenario("made aside, never made", ONE_MADE, (borrow, borrow), NEVER_MADE, kills=1),
    Scenario("made aside, two kept", TWO_KEPT, (borrow, discard), FAILS, 1),
    Scenario("made aside, tried again", ONE_MADE, (borrow, borrow, grow_old), BROKEN, 2),
    Scenario("made aside, min_size", ONE_KEPT, (borrow, discard), MADE_AND_KEPT, 2),
    # ages
    Scenario("recycled", ONE_TRACKED, (borrow_twice, borrow, recycle), SWITCH),
    Scenario("recycled and killed", ONE_TRACKED, (borrow, borrow, recycle), SLOW_RETURN, kills=1),
    Scenario("recycled and closed", ONE_TRACKED, (borrow, recycle, close), SWITCH),
    Scenario("grown old in use", ONE_AGES, (keep_long, borrow), SWITCH, sweeps=1),
    Scenario("idle for long, min_size", ONE_STAYS, (borrow_twice, borrow), SLOW_DESTROY, sweeps=2),
    # two keys under one limit
    Scenario("two keys share one", keyed(1), (borrow_a, borrow_b), SWITCH, kills=1),
    Scenario("two keys share one, all fail", keyed(1), (borrow_a, borrow_b), KEY_FAILS, 2),
    Scenario("two keys share one, in turn", keyed(1), (borrow_both, borrow_a_twice), SLOW_RETURN),
    Scenario("two keys share one, given up", keyed(1), (give_up_b, borrow_a), SWITCH, kills=1),
    Scenario("two keys share one, closed", keyed(1), (borrow_a, borrow_b, close), SLOW_DESTROY),
    Scenario("two keys share one, made aside", KEYS_MADE, (borrow_a, borrow_b), BROKEN, 2, 1),
    Scenario("two keys share two", keyed(2, 2), (borrow_a, borrow_a, borrow_b), SLOW_DESTROY),
    Scenario("two keys share two, closed", keyed(2), (borrow_a, borrow_b, close), SLOW_DESTROY),
    Scenario("two keys share two, in turn", keyed(2, 2), (borrow_a_twice, borrow_a, borrow_b)),
    Scenario("two keys share two, one idle too many", keyed(2, 2), (borrow_a,) * 3 + (borrow_b,)),
    Scenario(
        "two keys are closed, both idle", keyed(2), (borrow_both, borrow_b, close), SLOW_DESTROY
    ),
    Scenario("a key is forgotten", keyed(1, max_age=50), (borrow_a, borrow_b), SLOW_DESTROY, 0, 1),
    Scenario("two keys are recycled", keyed(2), (borrow_a, borrow_b, recycle), SLOW_DESTROY),
]

# With events between batches of callbacks only; between all where it is soaked.
LONG = [
    Scenario("made aside, dead items", TWO_MADE, (borrow, borrow_twice), TWO_DEAD, 2),
    Scenario("grown old", ONE_AGES, (borrow_twice, borrow, grow_old), SWITCH),
    Scenario("all fail, two slots", TWO_TRACKED, (borrow, glance), ALL_FAIL, 2),
    Scenario("dead items, two slots", TWO_TRACKED, (borrow_twice, borrow, borrow), DEAD, 1),
    Scenario("two dead items, three callers", TWO_TRACKED, (borrow,) * 3, TWO_DEAD, 2, 1),
    Scenario("an error that is forgiven", forgiving(max_size=1), (stumble,) * 3, SWITCH, kills=2),
    Scenario("get times out and verbs fail", ONE_TRACKED, (give_up, borrow), ALL_FAIL, 2, 1),
    Scenario("a Timeout around get", ONE_TRACKED, (cut_off, borrow), ALL_FAIL, 1, 1),
    Scenario("by hand", ONE_TRACKED, (borrow_by_hand, borrow, discard), SLOW_RETURN, kills=1),
    Scenario("all fail", ONE_TRACKED, (borrow, borrow), ALL_FAIL, 3, 1),
    Scenario("closes while verbs fail", ONE_TRACKED, (borrow, borrow, close), ALL_FAIL, 2),
    Scenario("closes and waits", ONE_TRACKED, (borrow, borrow, close_and_wait), SWITCH, kills=1),
    Scenario("an error in the block", ONE_TRACKED, (stumble, stumble, borrow), SLOW_DESTROY, 0, 1),
    Scenario("check fails", ONE_TRACKED, (borrow_twice, borrow), CHECK_FAILS, 2, 1),
    Scenario("two of three are killed", ONE_TRACKED, (borrow,) * 3, SLOW_RETURN, kills=2),
    Scenario("made aside, two at once", TWO_MADE, (borrow,) * 3, SLOW_CREATE, 0, 1, (0,)),
    Scenario("made aside, one at a time", TWO_MADE_SINGLY, (borrow,) * 3, SLOW_CREATE, kills=1),
    Scenario("made aside, two fail", TWO_MADE, (borrow,) * 3, BROKEN, 1),
    Scenario("made aside, shrinks", TWO_MADE, (borrow, borrow, shrink), MAKE_AND_GO),
    Scenario("made aside, all fail", ONE_MADE, (borrow, borrow), ALL_FAIL, 2, 1),
    Scenario("recycled while verbs fail", ONE_TRACKED, (borrow, borrow, recycle), ALL_FAIL, 1),
    Scenario("recycled, two slots", TWO_TRACKED, (borrow_twice, recycle_and_borrow), SWITCH),
    Scenario("grown old and killed", ONE_AGES, (borrow, borrow), SLOW_RETURN, 0, 1, sweeps=1),
    Scenario("idle for long", TWO_IDLE, (borrow_twice, borrow), SLOW_DESTROY, sweeps=2),
    Scenario("swept while verbs fail", ONE_AGES, (borrow, borrow), ALL_FAIL, 1, sweeps=1),
    Scenario("swept and closed", ONE_AGES, (borrow, borrow, close), SLOW_RETURN, sweeps=1),
    Scenario("swept and refilled", MADE_AND_STAYS, (borrow, borrow), BROKEN, 1, sweeps=1),
    Scenario("three share one of two keys", keyed(1), (borrow_a, borrow_b, borrow_a), MAKE_AND_GO),
    Scenario("keys, given up", keyed(1), (give_up_b, borrow_a, give_up_b), SLOW_DESTROY),
    Scenario("keys, discarded", keyed(1), (discard_a, borrow_b, borrow_a), MAKE_AND_GO),
    Scenario(
        "keys, recycled and killed", keyed(2), (borrow_a, borrow_b, recycle), SLOW_DESTROY, 0, 1
    ),
    Scenario("keys, closed and killed", keyed(2), (borrow_a, borrow_b, close), SLOW_DESTROY, 0, 1),
    Scenario("four share two of two keys", keyed(2, 2), (borrow_a, borrow_a, borrow_b, borrow_b)),
    Scenario(
        "two keys share two, all fail", keyed(2, 2), (borrow_a, borrow_a, borrow_b), KEY_FAILS, 1
    ),
    Scenario(
        "two keys share two, dead items",
        keyed(2, 2),
        (borrow_a_twice, borrow_a, borrow_a),
        DIES_SLOWLY,
        1,
    ),
    Scenario(
        "keys made aside, tried again",
        KEYS_MADE_TWO,
        (borrow_b, insist_on_b, borrow_a),
        {"create": ("ok", "raise")},
        1,
    ),
    Scenario(
        "keys made aside, grown old",
        KEYS_AGE,
        (borrow_a, borrow_a, grow_old),
        {"create": ("slow", "slow raise")},
        1,
    ),
    Scenario(
        "two keys share two, made aside", KEYS_MADE_TWO, (borrow_a, borrow_a, borrow_b), BREAKS, 1
    ),
]

# Too large to be run whole: some schedules, at random.
LARGE = [
    Scenario("four share two and all fails", TWO_TRACKED, (borrow_twice,) * 4, ALL_FAIL, 4, 3),
    Scenario(
        "everything at once",
        TWO_TRACKED,
        (borrow_twice, give_up, discard, shrink_and_grow),
        ALL_FAIL,
        3,
        2,
    ),
    Scenario(
        "everything at once, stacked",
        STACK_TRACKED,
        (borrow_by_hand, cut_off, stumble, put_then_kill, put_and_switch_to_second),
        ALL_FAIL,
        3,
        2,
        by_timeout=True,
    ),
    Scenario(
        "closes amid everything", TWO_TRACKED, (give_up, borrow, discard, close), ALL_FAIL, 3, 2
    ),
    Scenario(
        "made aside, everything at once",
        tracked(max_size=2, max_creating=1, create_timeout=9, check_timeout=5, destroy_timeout=5),
        (borrow_twice, give_up, recycle_and_borrow, shrink_and_grow),
        ALL_FAIL,
        3,
        2,
    ),
    Scenario(
        "made aside, closes amid everything",
        tracked(max_size=2, max_creating=1, max_waiting=1),
        (borrow_twice, discard, borrow, close, grow_old),
        ALL_FAIL,
        3,
        2,
    ),
    Scenario(
        "made aside and swept",
        tracked(min_size=1, max_size=2, max_creating=2, max_age=50, max_idle=30),
        (borrow_twice, keep_long, recycle_and_borrow, grow_old),
        ALL_FAIL,
        3,
        2,
        sweeps=3,
    ),
    Scenario(
        "swept and dropped, stacked",
        tracked(max_size=2, max_age=50, max_creating=2, order_as_stack=True),
        (borrow_twice, drop, cut_off, put_then_kill, recycle),
        ALL_FAIL,
        3,
        2,
        by_timeout=True,
        sweeps=2,
    ),
    Scenario(
        "two keys, everything at once",
        keyed(2, 2),
        (borrow_both, give_up_b, discard_a, borrow_a_twice),
        ALL_FAIL,
        3,
        2,
    ),
    Scenario(
        "two keys made aside, everything at once",
        keyed(1, 2, max_creating=2, max_age=50),
        (borrow_both, give_up_b, discard_a, recycle, grow_old),
        ALL_FAIL,
        3,
        2,
        sweeps=2,
    ),
    Scenario(
        "two keys swept and closed",
        keyed(2, 2, max_creating=1, max_age=50),
        (borrow_both, give_up_b, borrow_a_twice, close, grow_old),
        ALL_FAIL,
        3,
        2,
        sweeps=2,
    ),
    Scenario(
        "plain, everything at once",
        TWO,
        (borrow_twice, give_up, put_then_kill, shrink_and_grow, cut_off),
        CREATE_FAILS,
        3,
        2,
    ),
]


def by_name(scenarios):
    return pytest.mark.parametrize("scenario", scenarios, ids=lambda scenario: scenario.name)


@by_name(SCENARIOS)
def test_every_interleaving(scenario):
    result = explore(scenario)
    print(result)
    assert result.failure is None, str(result)
    assert result.complete


@by_name(LONG)
def test_every_interleaving_between_batches(scenario):
    result = explore(replace(scenario, busy=bool(STRESS_SECONDS)))
    print(result)
    assert result.failure is None, str(result)
    assert result.complete


@pytest.mark.timeout(120 + STRESS_SECONDS)
@by_name(LARGE)
def test_some_interleavings_of_a_larger_crowd(scenario):
    seed = random.randrange(2**32) if STRESS_SECONDS else 0
    result = sample(scenario, most=500, seconds=STRESS_SECONDS / len(LARGE), seed=seed)
    print(result)
    assert result.failure is None, str(result)
