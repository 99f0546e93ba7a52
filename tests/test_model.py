"""The pools against a model of them: plain lists, no greenlets.

hypothesis makes up what is done to a pool, and after each step pool and model
must agree on everything that can be seen, the counters included.  All verbs are
instant here, and time is virtual, so that there is one right answer;
`test_every_interleaving` is for those that switch.
GPOOLS_STRESS_SECONDS=60 tries more, and other, stories for about so long.
"""

import logging
import os
from collections import deque
from contextlib import ExitStack

import gevent
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gpools import ConnectionPool, NotInUse, Pool, PoolClosed, PoolFull, PoolTimeout
from tests.explorer import virtual_time

STRESS_SECONDS = float(os.environ.get("GPOOLS_STRESS_SECONDS", 0))


class Model:
    """What a pool is: numbers stand for items, in the order in which they are made."""

    def __init__(self, max_size, max_waiting, tracked, stacked, max_age=None):
        self.max_size = max_size
        self.max_waiting = max_waiting
        self.tracked = tracked
        self.stacked = stacked
        self.max_age = max_age
        self.now = 0.0
        self.expires = {}  # item: when it is too old
        self.idle = deque()
        self.size = 0
        self.line = []
        self.held = set()
        self.created = 0
        self.destroyed = []
        self.closed = False
        self.failing = {"create": 0, "check": 0, "reset": 0}  # so many calls to come
        self.create_errors = 0
        self.outcomes = {}  # user: number of the item, or type of the error

    def get(self, user):
        if self.closed:
            self.outcomes[user] = PoolClosed
        elif not self.line and (self.idle or self.size < self.max_size):
            self.give(user)
        elif self.max_waiting is not None and len(self.line) >= self.max_waiting:
            self.outcomes[user] = PoolFull
        else:
            self.line.append(user)

    def give(self, user):
        while self.idle:
            item = self.idle.popleft()
            if self.tracked and self.fails("check"):
                self.destroy(item)
            else:
                return self.hold(user, item)
        if self.fails("create"):
            self.create_errors += 1
            self.outcomes[user] = OSError
        else:
            self.size += 1
            self.created += 1
            if self.max_age is not None:
                self.expires[self.created] = self.now + self.max_age
            self.hold(user, self.created)

    def hold(self, user, item):
        self.outcomes[user] = item
        self.held.add(item)

    def put(self, item):
        self.held.discard(item)
        if (
            self.tracked and (self.fails("reset") or self.closed or self.too_old(item))
        ) or self.size > self.max_size:
            self.destroy(item)
        elif self.stacked:
            self.idle.appendleft(item)
        else:
            self.idle.append(item)
        self.serve()

    def discard(self, item):
        self.held.discard(item)
        self.destroy(item)
        self.serve()

    def destroy(self, item):
        self.size -= 1
        self.destroyed.append(item)

    def resize(self, size):
        self.max_size = size
        while self.tracked and self.idle and self.size > size:
            self.destroy(self.idle.pop() if self.stacked else self.idle.popleft())
        self.serve()

    def too_old(self, item):
        return self.expires.get(item, self.now + 1) <= self.now

    def recycle(self):
        self.expires.update(dict.fromkeys([*self.idle, *self.held], self.now))
        self.sweep()

    def sweep(self):
        """Let the idle items go that are too old, in the order in which they grew so."""
        old = [item for item in self.idle if self.too_old(item)]
        for item in sorted(old, key=self.expires.get):
            self.idle.remove(item)
            self.destroy(item)

    def close(self):
        self.closed = True
        while self.line:
            self.outcomes[self.line.pop(0)] = PoolClosed
        while self.idle:
            self.destroy(self.idle.popleft())

    def leave(self, user, error):
        if user in self.line:
            self.line.remove(user)
            self.outcomes[user] = error

    def serve(self):
        while self.line and (self.idle or self.size < self.max_size):
            self.give(self.line.pop(0))

    def fails(self, verb):
        failing = self.failing[verb] > 0
        self.failing[verb] -= failing
        return failing


class Item:
    def __init__(self, number):
        self.number = number


class Factory:
    """The verbs; as many calls fail as it is told, and each failing check in another way."""

    def __init__(self):
        self.items = []
        self.destroyed = []
        self.failing = {"create": 0, "check": 0, "reset": 0}

    def fail(self, verb):
        if self.failing[verb]:
            self.failing[verb] -= 1
            raise OSError(verb)

    def create(self):
        self.fail("create")
        self.items.append(Item(len(self.items) + 1))
        return self.items[-1]

    def check(self, item):
        if self.failing["check"] % 2:
            self.failing["check"] -= 1
            return False
        self.fail("check")
        return True

    def reset(self, item):
        self.fail("reset")

    def destroy(self, item):
        self.destroyed.append(item.number)


class User:
    """A greenlet that gets one item, once."""

    def __init__(self, pool, timeout):
        self.pool = pool
        self.timeout = timeout
        self.outcome = None  # the item's number or the error's type
        self.greenlet = gevent.spawn(self.get)

    def get(self):
        try:
            self.outcome = self.pool.get(timeout=self.timeout).number
        except PoolTimeout:
            self.outcome = PoolTimeout
        except (PoolClosed, PoolFull, OSError, gevent.GreenletExit) as error:
            self.outcome = type(error)


class Machine(RuleBasedStateMachine):
    tracked = False
    stacked = False

    def __init__(self):
        super().__init__()
        self.ended = ExitStack()
        self.loop = self.ended.enter_context(virtual_time())
        self.users = []
        self.deadlines = {}

    @initialize(
        max_size=st.integers(1, 3),
        max_waiting=st.sampled_from([None, None, 0, 2]),
        max_age=st.sampled_from([None, 7.3]),
    )
    def make(self, max_size, max_waiting, max_age):
        self.factory = factory = Factory()
        if self.tracked:
            self.pool = ConnectionPool(
                max_size=max_size,
                order_as_stack=self.stacked,
                max_waiting=max_waiting,
                max_age=max_age,
                create=factory.create,
                check=factory.check,
                reset=factory.reset,
                destroy=factory.destroy,
            )
        else:
            max_waiting = max_age = None
            self.pool = Pool(max_size=max_size, order_as_stack=self.stacked, create=factory.create)
        if max_age is not None:
            max_age *= 0.975  # half of the jitter, in virtual time
        self.model = Model(max_size, max_waiting, self.tracked, self.stacked, max_age)

    @rule(timeouts=st.lists(st.sampled_from([None, 1, 5]), min_size=1, max_size=4))
    def get(self, timeouts):
        for timeout in timeouts:
            user = len(self.users)
            self.users.append(User(self.pool, timeout))
            if timeout is not None:
                self.deadlines[user] = self.loop.time + timeout
            self.model.now = self.loop.time
            self.model.get(user)
        gevent.idle()

    @precondition(lambda self: self.tracked)
    @rule()
    def recycle(self):
        self.pool.recycle()
        self.model.recycle()
        gevent.idle()

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def put(self, data):
        self.put_one(data)
        gevent.idle()

    def put_one(self, data):
        number = data.draw(st.sampled_from(sorted(self.model.held)))
        self.pool.put(self.factory.items[number - 1])
        self.model.put(number)

    @precondition(lambda self: len(self.model.held) > 1)
    @rule()
    def put_all_at_once(self):
        """Several items come back before the hub has its turn."""
        numbers = sorted(self.model.held)
        for number in numbers:
            self.pool.put(self.factory.items[number - 1])
        # Nobody is served in between; with all verbs instant that makes no difference
        # to the line, but to which item is on top of a stack.
        line, self.model.line = self.model.line, []
        for number in numbers:
            self.model.put(number)
        self.model.line = line
        self.model.serve()
        gevent.idle()

    @precondition(lambda self: self.tracked and self.model.held)
    @rule(data=st.data())
    def discard(self, data):
        number = data.draw(st.sampled_from(sorted(self.model.held)))
        self.pool.discard(self.factory.items[number - 1])
        self.model.discard(number)
        gevent.idle()

    @precondition(lambda self: self.tracked and len(self.factory.items) > len(self.model.held))
    @rule(data=st.data())
    def put_what_is_not_out(self, data):
        numbers = set(range(1, len(self.factory.items) + 1)) - self.model.held
        item = self.factory.items[data.draw(st.sampled_from(sorted(numbers))) - 1]
        with pytest.raises(NotInUse):
            self.pool.put(item)
        with pytest.raises(NotInUse):
            self.pool.discard(item)

    @precondition(lambda self: self.model.line)
    @rule(data=st.data())
    def kill_a_waiter(self, data):
        self.model.leave(self.kill_one(data), gevent.GreenletExit)
        gevent.idle()

    def kill_one(self, data):
        user = data.draw(st.sampled_from(self.model.line))
        self.users[user].greenlet.kill(block=False)
        return user

    @precondition(lambda self: self.model.line and self.model.held)
    @rule(data=st.data())
    def kill_a_waiter_then_put(self, data):
        self.model.leave(self.kill_one(data), gevent.GreenletExit)
        self.put_one(data)
        gevent.idle()

    # If the first in line finds create() failing, the kill comes before the second's turn.
    @precondition(
        lambda self: self.model.line and self.model.held and not self.model.failing["create"]
    )
    @rule(data=st.data())
    def put_then_kill_a_waiter(self, data):
        victim = data.draw(st.sampled_from(self.model.line))
        self.put_one(data)
        self.users[victim].greenlet.kill(block=False)
        self.model.leave(victim, gevent.GreenletExit)
        gevent.idle()

    @precondition(lambda self: self.model.line or self.model.max_age)
    @rule(seconds=st.sampled_from([0.5, 2, 10]))
    def let_time_pass(self, seconds):
        gevent.sleep(seconds)
        self.model.now = self.loop.time
        self.model.sweep()
        for user in list(self.model.line):
            if self.deadlines.get(user, self.loop.time + 1) <= self.loop.time:
                self.model.leave(user, PoolTimeout)

    @rule(verb=st.sampled_from(["create", "check", "reset"]), calls=st.integers(1, 3))
    def break_server(self, verb, calls):
        self.factory.failing[verb] = self.model.failing[verb] = calls

    @precondition(lambda self: not self.model.closed)
    @rule(size=st.integers(1, 4))
    def resize(self, size):
        self.pool.resize(size)
        self.model.resize(size)
        gevent.idle()

    @precondition(lambda self: self.tracked and (self.model.line or self.model.closed))
    @rule(one_of_ten=st.integers(0, 9))
    def close(self, one_of_ten):
        if one_of_ten:
            return  # the pool's story ends here, so not too soon
        holds = self.pool.close()
        assert len(holds) == len(self.model.held)
        self.model.close()
        gevent.idle()

    @invariant()
    def agree(self):
        if not self.users:
            return
        pool, model = self.pool, self.model
        assert [user.outcome for user in self.users] == [
            model.outcomes.get(user) for user in range(len(self.users))
        ]
        assert pool.waiting() == len(model.line)
        assert [item.number for item in pool.free_items] == list(model.idle)
        gevent.idle()  # reading free_items has the hub look whether an item was added
        assert pool.current_size == model.size
        assert pool.free() == len(model.idle) + model.max_size - model.size
        assert len(self.factory.items) == model.created
        assert self.factory.failing == model.failing
        if self.tracked:
            assert self.factory.destroyed == model.destroyed
            assert {hold.item.number for hold in pool.holders()} == model.held
            self.agree_on_counters(pool.stats())

    def agree_on_counters(self, stats):
        model = self.model
        assert (stats.size, stats.idle, stats.in_use) == (
            model.size,
            len(model.idle),
            len(model.held),
        )
        assert stats.waiting == len(model.line)
        assert stats.created == model.created
        assert sum(stats.destroyed.values()) == len(model.destroyed)
        assert stats.create_errors == model.create_errors
        assert stats.timeouts == list(model.outcomes.values()).count(PoolTimeout)

    def teardown(self):
        """Break nothing from here on: everybody in line is served, and all slots are there."""
        with self.ended:
            if not self.users:
                return
            for verb in self.factory.failing:
                self.factory.failing[verb] = self.model.failing[verb] = 0
            while self.model.held:
                number = min(self.model.held)
                self.pool.put(self.factory.items[number - 1])
                self.model.put(number)
                gevent.idle()
                self.agree()
            assert not self.model.line
            if not self.model.closed:
                self.get([None] * self.model.max_size)
                self.agree()
                assert self.pool.free() == 0


class Stacked(Machine):
    stacked = True


class Tracked(Machine):
    tracked = True


class TrackedAndStacked(Tracked, Stacked):
    pass


@pytest.mark.timeout(120 + 2 * STRESS_SECONDS)
@pytest.mark.parametrize("machine", [Machine, Stacked, Tracked, TrackedAndStacked])
def test_pool_agrees_with_its_model(machine, caplog):
    caplog.set_level(logging.CRITICAL, "gpools")
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150 + int(STRESS_SECONDS * 10),
            stateful_step_count=40,
            derandomize=not STRESS_SECONDS,
            database=None,
            deadline=None,
        ),
    )
