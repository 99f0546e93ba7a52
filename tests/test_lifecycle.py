"""Lifecycle is pure: every rule of age, with plain numbers."""

from math import inf
from random import Random

import pytest

from gpools.lifecycle import BETWEEN, FRESH, GONE, IDLE, IN_USE, JITTER, Entry, Lifecycle


class Thing:
    pass


def made(life, now=0.0, chance=0.0, born=None):
    """Return the entry of an item made at *now*."""
    thing = Thing()
    entry = Entry(thing, lambda: thing, life.generation if born is None else born)
    life.begin(entry, now, chance)
    return entry


def idle(life, since=0.0, uses=1, **how):
    entry = made(life, now=how.pop("now", since), **how)
    entry.uses = uses
    life.shelve(entry, since)
    return entry


def always(number):
    return lambda: number


def test_an_item_without_ages_stays_for_ever():
    life = Lifecycle()
    entry = idle(life)

    assert not life.ages
    assert life.verdict(entry, now=1e12) is None
    assert not life.check_due(entry, now=1e12)
    assert entry.trusted_until == inf
    assert life.next_look([entry], now=1e12) == inf


@pytest.mark.parametrize("settings", [{"max_age": 1}, {"max_idle": 1}])
def test_a_life_with_an_age_ages(settings):
    assert Lifecycle(**settings).ages


def test_a_check_alone_is_no_age():
    assert not Lifecycle(check_after=1).ages


def test_an_item_reaches_max_age_exactly_then():
    life = Lifecycle(max_age=100)
    entry = made(life, now=1000)

    for state in (IDLE, IN_USE, BETWEEN):
        entry.state = state
        assert life.verdict(entry, now=1099.9) is None
        assert life.verdict(entry, now=1100) == "max_age"


def test_max_age_spares_nobody():
    """min_size keeps items from idleness, not from age: others are made instead."""
    life = Lifecycle(max_age=100)

    assert life.verdict(idle(life), now=100, spare=False) == "max_age"


def test_being_used_does_not_make_an_item_younger():
    life = Lifecycle(max_age=100)
    entry = idle(life)
    life.shelve(entry, now=99)

    assert life.verdict(entry, now=100) == "max_age"


@pytest.mark.parametrize(("chance", "age"), [(0, 1000), (0.5, 975), (1, 950)])
def test_jitter_takes_up_to_five_percent_of_max_age(chance, age):
    life = Lifecycle(max_age=1000)
    entry = made(life, now=7, chance=chance)

    assert life.verdict(entry, now=7 + age - 0.001) is None
    assert life.verdict(entry, now=7 + age) == "max_age"


def test_a_burst_does_not_expire_in_one():
    life, chance = Lifecycle(max_age=1000), Random(5)
    ends = [made(life, chance=chance.random()).expires for _ in range(200)]

    assert len(set(ends)) == 200
    assert all(1000 * (1 - JITTER) < end <= 1000 for end in ends)
    # Of 50 s in which they all go, no second sees more than a twentieth of them.
    assert max(sum(second <= end < second + 1 for end in ends) for second in range(940, 1001)) < 20


def test_an_item_reaches_max_idle_exactly_then():
    life = Lifecycle(max_idle=10)
    entry = idle(life, since=5)

    assert life.verdict(entry, now=14.9) is None
    assert life.verdict(entry, now=15) == "max_idle"


def test_one_of_min_size_is_kept_from_idleness():
    life = Lifecycle(max_idle=10)

    assert life.verdict(idle(life), now=1e9, spare=False) is None


@pytest.mark.parametrize("state", [IN_USE, BETWEEN, GONE])
def test_only_an_idle_item_can_be_idle_for_too_long(state):
    life = Lifecycle(max_idle=10)
    entry = idle(life)
    entry.state = state

    assert life.verdict(entry, now=1e9) is None


def test_shelving_starts_the_idle_time_anew():
    life = Lifecycle(max_idle=10)
    entry = idle(life)
    life.shelve(entry, now=9)

    assert entry.state is IDLE
    assert life.verdict(entry, now=18.9) is None
    assert life.verdict(entry, now=19) == "max_idle"


def test_a_check_is_due_after_more_than_check_after():
    life = Lifecycle(check_after=30)
    entry = idle(life, since=100)

    assert not life.check_due(entry, now=130)
    assert life.check_due(entry, now=130.001)


def test_with_check_after_zero_every_item_that_was_out_is_checked():
    life = Lifecycle(check_after=0)

    assert life.check_due(idle(life, since=100), now=100.000001)


def test_a_fresh_item_is_not_checked():
    """Else a check that always says no would have items made without end."""
    life = Lifecycle(check_after=0)
    entry = idle(life, since=100, uses=0)

    assert not life.check_due(entry, now=100 + FRESH)
    assert life.check_due(entry, now=100.001 + FRESH)


def test_freshness_does_not_shorten_check_after():
    life = Lifecycle(check_after=30)

    assert not life.check_due(idle(life, uses=0), now=29)


@pytest.mark.parametrize("state", [IN_USE, BETWEEN, GONE])
def test_only_an_idle_item_is_checked(state):
    life = Lifecycle(check_after=0)
    entry = idle(life)
    entry.state = state

    assert not life.check_due(entry, now=1e9)


@pytest.mark.parametrize(
    ("settings", "until"),
    [
        ({"max_age": 10, "max_idle": 30, "check_after": 30}, 10),
        ({"max_age": 90, "max_idle": 7, "check_after": 30}, 12),
        ({"max_age": 90, "max_idle": 30, "check_after": 7}, 12),
        ({"check_after": 0}, 5),
        ({}, inf),
    ],
)
def test_an_idle_item_goes_out_unseen_until_its_first_deadline(settings, until):
    life = Lifecycle(**settings)

    assert idle(life, since=5, now=0).trusted_until == until


def test_whatever_is_trusted_needs_neither_check_nor_verdict():
    """The fast path of get compares two numbers; the slow one must agree with it."""
    random = Random(11)
    for _ in range(2000):
        times = [random.choice([None, 0.5, 3.0, 10.0]) for _ in range(2)]
        life = Lifecycle(*times, check_after=random.choice([None, 0.0, 2.0]))
        entry = idle(life, since=random.uniform(0, 4), now=0, uses=random.randrange(2))
        now = random.uniform(4, 12)
        if random.random() < 0.3:
            life.recycle([entry], random.uniform(0, now), 5.0, random.random)
        if random.random() < 0.3:
            life.doubt([entry], random.uniform(0, now))
        if now < entry.trusted_until:
            assert life.verdict(entry, now) is None
            assert not life.check_due(entry, now)


def test_a_dead_item_makes_all_that_are_idle_suspect():
    life = Lifecycle(check_after=1000)
    older, newest = idle(life, since=1), idle(life, since=10)
    life.doubt([older, newest], now=10)

    for entry in (older, newest):
        assert entry.trusted_until == -inf
        assert life.check_due(entry, now=11)


def test_a_dead_item_makes_fresh_ones_suspect_too():
    life = Lifecycle(check_after=1000)
    entry = idle(life, since=10, uses=0)
    life.doubt([entry], now=10)

    assert life.check_due(entry, now=10.01)


def test_what_comes_back_after_a_dead_item_was_found_is_trusted():
    life = Lifecycle(check_after=1000)
    entry = idle(life, since=1)
    life.doubt([entry], now=10)
    life.shelve(entry, now=10.5)

    assert not life.check_due(entry, now=11)
    assert entry.trusted_until > 11


def test_recycle_retires_all_at_once():
    life = Lifecycle()
    entries = [idle(life), made(life)]
    life.recycle(entries, now=50, spread=0, chance=always(0.9))

    for entry in entries:
        assert life.verdict(entry, now=50) == "recycled"
    assert entries[0].trusted_until == 50


def test_recycle_spares_nobody():
    life = Lifecycle()
    entry = idle(life)
    life.recycle([entry], now=50, spread=0, chance=always(0))

    assert life.verdict(entry, now=50, spare=False) == "recycled"


def test_recycle_leaves_what_is_made_afterwards():
    life = Lifecycle()
    life.recycle([], now=50, spread=0, chance=always(0))

    assert life.verdict(idle(life, since=50), now=1e9) is None


def test_recycle_retires_what_was_being_made():
    life = Lifecycle(max_age=1000)
    generation = life.generation
    life.recycle([], now=50, spread=0, chance=always(0))
    entry = made(life, now=60, born=generation)

    assert life.verdict(entry, now=60) == "recycled"


def test_recycle_with_a_spread_gives_each_its_moment():
    life = Lifecycle()
    early, late = idle(life), idle(life)
    life.recycle([early], now=50, spread=10, chance=always(0.2))
    life.recycle([late], now=50, spread=10, chance=always(0.7))

    assert life.verdict(early, now=51.9) is None
    assert life.verdict(early, now=52) == "recycled"
    assert life.verdict(late, now=56.9) is None
    assert life.verdict(late, now=57) == "recycled"
    assert early.trusted_until == 52
    assert late.trusted_until == 57


def test_recycle_never_makes_an_item_live_longer():
    life = Lifecycle(max_age=100, check_after=10)
    entry = idle(life, since=20, now=0)
    life.recycle([entry], now=95, spread=1000, chance=always(0.5))

    assert life.verdict(entry, now=100) == "recycled"
    assert entry.trusted_until == 30


def test_a_second_recycle_may_only_bring_the_end_nearer():
    life = Lifecycle()
    entry = idle(life)
    life.recycle([entry], now=50, spread=10, chance=always(0.1))
    life.recycle([entry], now=50, spread=10, chance=always(0.9))

    assert life.verdict(entry, now=51) == "recycled"


def test_two_recycles_during_one_creation_are_both_seen():
    life = Lifecycle()
    generation = life.generation
    for _ in range(2):
        life.recycle([], now=50, spread=0, chance=always(0))

    assert life.verdict(made(life, now=60, born=generation), now=60) == "recycled"
    assert life.verdict(made(life, now=60, born=generation + 1), now=60) == "recycled"
    assert life.verdict(made(life, now=60, born=generation + 2), now=60) is None


def test_the_next_look_is_at_the_first_deadline():
    life = Lifecycle(max_age=1000, max_idle=100)
    entries = [idle(life, since=10), idle(life, since=60, now=0)]

    assert life.next_look(entries, now=60) == 50  # the first has been idle for 100
    life.recycle([entries[1]], now=60, spread=10, chance=always(0.5))
    assert life.next_look(entries, now=60) == 5


def test_the_next_look_sees_the_age_of_an_item_in_use():
    life = Lifecycle(max_age=1000)
    entry = made(life, now=0)
    entry.state = IN_USE

    assert life.next_look([entry], now=900) == 100


def test_an_item_in_use_has_no_idle_deadline():
    life = Lifecycle(max_idle=100)
    entry = idle(life, since=10)
    entry.state = IN_USE

    assert life.next_look([entry], now=60) == 100


def test_the_next_look_does_not_wait_for_what_is_overdue():
    """One of min_size stays, long after its time: the sweeper must not spin."""
    life = Lifecycle(max_idle=10)

    assert life.next_look([idle(life, since=0)], now=500) == 10


def test_the_next_look_is_in_time_for_what_is_made_just_after():
    for life in (Lifecycle(max_age=100), Lifecycle(max_idle=100)):
        pause = life.next_look([], now=7)
        assert 90 < pause <= 100
        entry = idle(life, since=7, chance=0.999)
        assert life.verdict(entry, now=7 + pause - 0.001) is None


def test_ages_too_short_for_the_clock_are_looked_after():
    """In large numbers 1e-12 s more is the same time: still no error, no look in the past."""
    life = Lifecycle(max_age=1e-12, max_idle=1e-12)
    entry = idle(life, since=1e9)

    assert life.next_look([entry], now=1e9) >= 0
