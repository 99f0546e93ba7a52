"""Chaos on a real server: the same scenes for the pool of every client library."""

import gc
import random
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import gevent
import gevent.os
import pytest
from gevent import Timeout

from gpools import _fork
from tests.proxy import REQUEST, black_hole, hang, passing
from tests.test_byte_boundaries import live
from tests.test_fork import Child
from tests.waiting import settle, spawn, until

__all__ = [
    "KillStorm",
    "Subject",
    "children_born_while_it_connects",
    "closed_when_idle",
    "cut_in_every_reply",
    "frozen",
    "in_a_black_hole",
    "in_block",
    "killed_and_back",
    "swallowed",
    "three_children",
]


class Subject:
    """What users use: the items of a pool, or one client that all of them share.

    *core* is the `ConnectionPool`, *client* the shared client, if there is one;
    *ask* has the server say a tag.
    """

    def __init__(self, core, server, ask, client=None):
        self.core = core
        self.server = server
        self.ask = ask
        self.item = core.item if client is None else lambda: nullcontext(client)
        self.max_size = core.max_size  # for an Ordeal

    def user(self, tag):
        """Be a user: ask once, and return whether the answer was his own."""
        with self.item() as client:
            return self.ask(client, tag) == tag

    def fill(self):
        """Have all connections that there may be, idle."""
        items = [self.core.get(timeout=5) for _ in range(self.core.max_size)]
        assert self.core.free() == 0
        for item in items:
            self.core.put(item)
        assert self.core.free() == self.core.current_size == self.core.max_size

    def whole(self):
        """Assert that all slots are there, all connections answer, and the server sees no more."""
        size = self.core.max_size
        settle()
        assert self.core.holders() == []
        self.fill()
        users = [spawn(self.user, f"whole-{n}") for n in range(2 * size)]
        gevent.joinall(users, timeout=20, raise_error=True)
        assert all(user.value for user in users)
        until(lambda: self.server.stats()["open"] <= size)
        assert (self.core.current_size, self.core.free()) == (size, size)


class KillStorm:
    """20 greenlets that ask tagged questions within Timeouts, while some are killed.

    `once` is given the storm and a tag, and tells `hear` each answer.
    `chance` is the dice.
    """

    def __init__(self, seed, once, patience=(0.0005, 0.002, 5)):
        self.chance = random.Random(seed)
        self.once = once
        self.patience = patience
        self.answers = self.kills = 0
        self.foreign = []  # (tag asked for, answer)

    def hear(self, tag, answer):
        self.answers += 1
        if answer != tag:
            self.foreign.append((tag, answer))

    def impatience(self):
        """Return a Timeout that goes no further, short perhaps."""
        return Timeout(self.chance.choice(self.patience), False)

    def user(self, name):
        for turn in range(self.chance.randrange(1, 20)):
            with self.impatience():
                self.once(self, f"{name}-{turn}")

    def rage(self, core, answers, kills):
        """Go on until so many have happened; then assert that none was for another."""
        names, users = iter(range(100_000)), []
        while self.answers < answers or self.kills < kills:
            users = [user for user in users if not user.ready()]
            users += [spawn(self.user, next(names)) for _ in range(20 - len(users))]
            gevent.sleep(0.001)
            for victim in self.chance.sample(users, 3):
                victim.kill(block=False)
                self.kills += 1
            assert core.current_size <= core.max_size
        gevent.killall(users)
        settle()
        gc.collect()  # what was killed twice may have left a cycle
        settle()
        assert self.foreign == []
        assert core.holders() == []


def in_block(pool, ask, once_more):
    """Return a `once` of users that ask in a block, and may go on in it after a Timeout."""

    def once(storm, tag):
        with pool.item() as client:
            with storm.impatience():
                storm.hear(tag, ask(storm.chance, client, tag))
            if storm.chance.random() < 0.5:  # and goes on, or leaves
                storm.hear(f"{tag}-more", once_more(client, f"{tag}-more"))

    return once


def killed_and_back(subject):
    """Kill the server of idle connections and start it again: none of 100 users notices."""
    subject.fill()
    subject.server.kill9()
    subject.server.start()
    users = [spawn(subject.user, str(n)) for n in range(100)]
    gevent.joinall(users, timeout=20, raise_error=True)
    assert all(user.value for user in users)
    subject.whole()


def closed_when_idle(server, subjects):
    """Wait until the server has closed all idle connections: no user notices."""
    for subject in subjects:
        subject.fill()
        assert subject.user("connects")  # where a client connects when it is used
    until(lambda: server.stats()["open"] == 0, timeout=20)
    for subject in subjects:
        for n in range(subject.core.max_size):
            assert subject.user(str(n))
        assert subject.core.free() == subject.core.max_size


def cut_in_every_reply(subject, proxy, exchange, how, gone):
    """End the connection *how* after each byte of a reply: that is *gone*, and costs no slot."""
    assert subject.user("first")
    link = live(proxy)[-1]
    before = len(link.reply)
    with subject.item() as client:
        exchange(client, "000000")
    length = len(link.reply) - before
    assert length > 5  # else this tests nothing
    for k in range(length):
        assert subject.user("connects")
        link = live(proxy)[-1]
        link.fault = how(len(link.reply) + k)
        with pytest.raises(gone), subject.item() as client:
            exchange(client, f"{k:06}")
        assert subject.user(f"mine-{k}")
    subject.whole()


def stuck(subject, seconds=30):
    """Be a user who waits no longer than *seconds* for the server."""
    with Timeout(seconds):
        subject.user("x")


def frozen(subject, full, connected=True):
    """Freeze the server of two connections: who waits for one too long gets *full*.

    That is less than half a second.  Without *connected* they are still to be made.
    """
    if connected:
        subject.fill()
    subject.server.freeze()
    try:
        users = [spawn(stuck, subject, 0.6 if connected else 30) for _ in range(2)]
        settle()
        late = [spawn(subject.user, "y") for _ in range(5)]
        gevent.joinall(users + late, timeout=10)
    finally:
        subject.server.thaw()
    for user in users:
        assert isinstance(user.exception, Timeout if connected else full)
    for user in late:
        assert isinstance(user.exception, full)
    subject.whole()


def in_a_black_hole(subject, proxy, timeout, killed=False):
    """Ask in vain, until *timeout* is raised or a kill comes; then let the network answer."""
    users = [spawn(stuck, subject, 0.05 if timeout is Timeout else 30) for _ in range(6)]
    if killed:
        settle()
        gevent.killall(users)
    gevent.joinall(users, timeout=10)
    assert {type(user.exception) for user in users} == {type(None) if killed else timeout}
    proxy.fault = hang(10**6)

    def answered():
        with suppress(timeout):  # it may be shorter than this machine needs
            return subject.user("x")

    until(answered)
    assert subject.core.holders() == []
    assert subject.core.free() == subject.core.max_size
    until(lambda: subject.server.stats()["open"] <= subject.core.max_size)


@contextmanager
def swallowed(proxy, where):
    """Have the network swallow all: of new connections, or from the next request on."""
    if where == "in a query":
        for link in proxy.links:
            link.fault = hang(len(link.request), REQUEST)
    proxy.fault = black_hole
    if where == "before it accepts":
        proxy.refuse()
        proxy.never_accept()
    yield
    if where == "before it accepts":
        proxy.refuse()
        proxy.listen()
    proxy.fault = passing
    proxy.settled()


def children_born_while_it_connects(server, use):
    """Fork while a greenlet that does *use* is in the handshake with a frozen server.

    The children have a copy of it, which could read the parent's.  *use* is given
    a tag, and tells whether the server said it.
    """
    server.freeze()
    try:
        connecting = spawn(use, "parent")
        until(lambda: any(list(_fork._sockets_of(maker)) for maker in _fork._makers))
        settle()
        children = [Child(partial(use, f"child{n}"), gevent.os.fork) for n in range(3)]
    finally:
        server.thaw()
    assert connecting.get(timeout=10)
    assert [child.result() for child in children] == [True] * 3


def three_children(subject):
    """Have three children and their parent at work: every connection sees one process only."""
    held = subject.core.get()
    subject.core.put(subject.core.get())

    def work(who):
        return [n for n in range(60) if not subject.user(f"{who}-{n}")]

    children = [Child(partial(work, f"child-{n}"), gevent.os.fork) for n in range(3)]
    assert work("parent") == []
    assert [child.result() for child in children] == [[], [], []]
    subject.core.put(held)
    assert not subject.core.stats().destroyed
    subject.whole()
