"""Pools that are wrong in one way are found: the tests can fail."""

import pytest

import gpools
from tests.explorer import explore, replay
from tests.mutants import MUTANTS, StaleMutant, load
from tests.test_every_interleaving import LONG, SCENARIOS

SCENARIO = {scenario.name: scenario for scenario in SCENARIOS + LONG}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_found(mutant):
    broken = load(mutant)
    scenario = SCENARIO[mutant.scenario]
    result = explore(scenario, broken)

    assert result.failure, f"{mutant.name}: not found by {result}"
    print(f"{mutant.name}: found by {scenario.name!r} after {result.schedules} schedules")
    print(f"    {result.failure}")
    assert replay(scenario, result.key, broken).failure == result.failure
    assert replay(scenario, result.key).failure is None


def test_a_mutant_leaves_gpools_itself_alone():
    broken = load(MUTANTS[0])

    assert broken is not gpools
    assert broken.Pool is not gpools.Pool
    assert __import__("gpools") is gpools
    from gpools.pool import Pool

    assert Pool is gpools.Pool


def test_a_stale_mutant_says_which_it_is():
    with pytest.raises(StaleMutant, match=r"'a put wakes nobody' is stale: .* stands 0 times"):
        next(m for m in MUTANTS if m.name == "a put wakes nobody").apply("")


def test_mutants_have_names_of_their_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 80
