"""Every way for each verb to go wrong, times every other, while users are killed.

deadpool tests the combinations of a few outcomes; here are six for each of
four verbs, 1,296 in all, each with users that are killed or timed out while
each of the verbs runs for them.  It runs on virtual time, so the default
timeouts are what cuts a verb that never ends, and no test waits for them.
GPOOLS_STRESS_SECONDS=60 runs it with more seeds, for about so long.
"""

import logging
import os
from itertools import product

import gevent
import pytest
from greenlet import getcurrent

from gpools import ConnectionPool, PoolTimeout
from tests.explorer import virtual_time
from tests.hostile import Gate, error, full_check, killed, never, ok, slow, timed_out

STRESS_SECONDS = float(os.environ.get("GPOOLS_STRESS_SECONDS", 0))

OUTCOMES = (ok, error, slow, never, timed_out, killed)
VERBS = ("create", "check", "reset", "destroy")


class CuttingGate(Gate):
    """A Gate that has users killed or timed out as a verb begins to run for them."""

    def __init__(self, **behaviours):
        super().__init__(*behaviours.pop("create"), **behaviours)
        self.plans = {}  # user: (verb, how)
        self.cut = set()  # the plans that came true

    def _behave(self, verb):
        user = self._user()
        planned, how = self.plans.get(user, (None, None))
        if planned == verb:
            how(user)
            self.cut.add(self.plans.pop(user))
        return super()._behave(verb)

    def _user(self):
        # destroy() runs in a greenlet of the pool's, a child of its user's at first.
        user = getcurrent()
        while user is not None and user not in self.plans:
            user = user.parent
        return user


def kill(user):
    user.kill(block=False)


def time_out(user):
    """Have a Timeout hit *user* while a slow verb is half way."""
    timer = gevent.get_hub().loop.timer(0.002)
    timer.start(user.throw, gevent.Timeout())


class Oops(Exception):
    """An error of the user's own, after which the item is destroyed."""


def use(pool, gate):
    """Use the pool a few times, or until the plan for this user has come true."""
    planned = getcurrent() in gate.plans
    for turn in range(100 if planned else 10):
        try:
            with gevent.Timeout(20), pool.item(timeout=3):
                gevent.sleep(0.001)
                if turn % 3 == 2:
                    raise Oops
        except (Oops, PoolTimeout, OSError, gevent.Timeout, gevent.GreenletExit):
            if planned and getcurrent() not in gate.plans:
                return


def run(seed, create, check, reset, destroy):
    """Let users loose on a pool whose verbs behave so; it must be as good as new after."""
    gate = CuttingGate(
        # Half of the calls only: a pool that never gets an item never calls the others.
        create=(ok, create),
        check=(ok, check),
        reset=(ok, reset),
        destroy=(destroy,),
        seed=seed,
    )
    pool = ConnectionPool(max_size=2, **gate.verbs)
    plans = list(product(VERBS, (kill, time_out)))
    users = [gevent.Greenlet(use, pool, gate) for _ in range(len(plans) + 2)]
    gate.plans.update(zip(users, plans, strict=False))  # and two users that nobody disturbs
    for user in users:
        user.start()
    gevent.sleep(10_000)

    stuck = [user for user in users if not user.ready()]
    assert not stuck, f"{len(stuck)} users hang: {pool} {gate}"
    spared = [f"{how.__name__} in {verb}" for verb, how in plans if (verb, how) not in gate.cut]
    assert not spared, f"never happened: {spared}"
    assert gate.peak <= pool.max_size, f"{gate.peak} items at once: {gate}"
    full_check(pool, gate)


@pytest.mark.parametrize("seed", range(1, 2 + int(STRESS_SECONDS / 5)))
@pytest.mark.parametrize("check", OUTCOMES)
@pytest.mark.parametrize("create", OUTCOMES)
def test_no_combination_of_failures_costs_a_slot(create, check, seed, caplog):
    caplog.set_level(logging.CRITICAL, "gpools")
    wrong = {}
    for reset, destroy in product(OUTCOMES, OUTCOMES):
        verbs = {"create": create, "check": check, "reset": reset, "destroy": destroy}
        with virtual_time():
            try:
                run(seed, **verbs)
            except AssertionError as failure:
                wrong[", ".join(f"{v}: {b.__name__}" for v, b in verbs.items())] = str(failure)
    assert wrong == {}
