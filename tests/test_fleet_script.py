"""The script of the fleet pool against a model in Python, on a real redis-server.

The clock, the id and the uptime of the server are the test's.
"""

import re
from hashlib import sha1
from struct import pack

import pytest
from gevent import socket
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpools.fleet import _script
from gpools.fleet._resp import Push, Replies, ServerError, packed
from gpools.fleet._watch import PACKED

SECOND = 1_000_000
LEASE = 9 * SECOND
START = 1_700_000_000 * SECOND

REPLACED = {
    b"call('TIME')\nlocal wall": b"call('LRANGE', 'test:time', 0, -1)\nlocal wall",
    b"server:match('run_id:(%w+)')": b"call('GET', 'test:run')",
    b"server:match('uptime_in_seconds:(%d+)')": b"call('GET', 'test:up')",
}


def with_clock_of_test(source=_script.SOURCE):
    for real, ours in REPLACED.items():
        assert source.count(real) == 1
        source = source.replace(real, ours)
    return source


class Wire:
    """A connection in RESP3 that listens on one channel."""

    def __init__(self, server, channel):
        self.socket = socket.create_connection(server.address, timeout=10)
        self.parser, self.replies, self.pushes = Replies(), [], []
        self.call("HELLO", 3)
        self.socket.sendall(packed("SUBSCRIBE", channel))
        while not self.pushes:
            self.read()
        self.pushes.clear()

    def read(self):
        for reply in self.parser.feed(self.socket.recv(65536)):
            (self.pushes if isinstance(reply, Push) else self.replies).append(reply)

    def call(self, *words):
        self.socket.sendall(packed(*words))
        while not self.replies:
            self.read()
        reply = self.replies.pop(0)
        if isinstance(reply, ServerError):
            raise reply
        return reply

    def heard(self):
        """Return what was pushed to it before now."""
        self.call("PING")
        pushes, self.pushes = self.pushes, []
        return [message for _, _, message in pushes]

    def close(self):
        self.socket.close()


class Reply:
    def __init__(self, text, wants, sync):
        words = text.decode().split()
        self.status = words[0]
        if self.status == "ok" and len(words) > 1:
            self.held, self.used, self.queued, self.soon, self.base = map(int, words[1:6])
            direct, self.found, self.size, self.lease, self.grace = map(int, words[6:11])
            self.epoch = self.learning = None
            if sync:
                self.epoch, self.knew, self.learning = words[11], *map(int, words[12:14])
            numbers = list(map(int, words[14 if sync else 11 :]))
            self.grants = [(wid, self.base + i) for i, wid in enumerate(wants[:direct])]
            self.grants += zip(numbers[::2], numbers[1::2], strict=True)


class Script:
    """Calls the script with a clock of its own."""

    def __init__(self, server, name="model", source=_script.SOURCE, up=10**6):
        self.server, self.name, self.wires = server, name, []
        self.source = with_clock_of_test(source)
        self.sha = sha1(self.source).hexdigest()
        self.control = Wire(server, "unused")
        self.control.call("SCRIPT", "LOAD", self.source)
        self.now = START
        self.control.call("SET", "test:up", up)
        self.control.call("SET", "test:run", "run1")
        self.set_clock(START)

    def set_clock(self, now):
        self.now = now
        self.control.call("DEL", "test:time")
        self.control.call("RPUSH", "test:time", now // SECOND, now % SECOND)

    def key(self, kind=""):
        return f"gp:{{{self.name}}}" + (f":{kind}" if kind else "")

    def wire(self, process):
        self.wires.append(Wire(self.server, f"{self.key()}:c:{process}"))
        return self.wires[-1]

    def __call__(self, wire, *words):
        keys = [self.key(), self.key("q"), self.key("s"), self.key("t")]
        return wire.call("EVALSHA", self.sha, 4, *keys, words[0], "PUBLISH", *words[1:])

    def sync(
        self,
        wire,
        process,
        generation,
        held=0,
        *tail,
        size=2,
        lease=LEASE,
        grace=LEASE,
        known="",
        top=0,
    ):
        settings = (size, lease, grace, known, top, "info of it")
        return self.hear(wire, ("sync", process, generation, held, *settings), tail)

    def step(self, wire, process, generation, released=0, *tail):
        return self.hear(wire, ("step", process, generation, released), tail)

    def hear(self, wire, words, tail):
        _, _, cancels, *rest = tail = tail or ("", "", 0)
        wants = [int(re.match(r"\d+", str(want))[0]) for want in rest[cancels:]]
        return Reply(self(wire, *words, *tail), wants, words[0] == "sync")

    def used(self):
        return int(PACKED.unpack_from(self.control.call("GET", self.key()))[1])

    def close(self):
        for wire in (self.control, *self.wires):
            wire.close()


@pytest.fixture
def make_script(redis_server):
    scripts = []

    def make(**settings):
        scripts.append(Script(redis_server, **settings))
        return scripts[-1]

    yield make
    for script in scripts:
        script.close()


@pytest.fixture
def script(make_script):
    return make_script()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_replies_are_cut_out_of_any_pieces(size):
    stream = (
        b"+OK\r\n$5\r\nab\r\nc\r\n>3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$0\r\n\r\n:-7\r\n*2\r\n_\r\n#t\r\n"
        b"-NOSCRIPT no\r\n%1\r\n+a\r\n,1.5\r\n$-1\r\n*-1\r\n=6\r\ntxt:hm\r\n~1\r\n:0\r\n"
    )
    parser, replies = Replies(), []
    for i in range(0, len(stream), size):
        replies += parser.feed(stream[i : i + size])
    error = replies.pop(5)
    assert (type(error), str(error)) == (ServerError, "NOSCRIPT no")
    assert type(replies[2]) is Push
    expected = [b"OK", b"ab\r\nc", [b"message", b"x", b""], -7, [None, True]]
    assert replies == [*expected, {b"a": 1.5}, None, None, b"hm", [0]]


def test_a_long_reply_is_read_once_however_it_is_cut(monkeypatch):
    """With each piece it was read again from its beginning: seconds for 10,000 members."""
    read, one = [], Replies._one
    monkeypatch.setattr(Replies, "_one", lambda parser: read.append(1) or one(parser))
    stream = packed(*["word"] * 500, *[packed("x")] * 500)
    parser, pieces = Replies(), range(0, len(stream), 50)
    [reply] = [one for i in pieces for one in parser.feed(stream[i : i + 50])]
    assert len(reply) == 1000
    assert len(read) <= 1001 + len(pieces)


def wanting(*wids):
    return ("", "", 0, *wids)


def test_grants_what_is_free_and_queues_the_rest(script):
    wire = script.wire("a")
    assert script.sync(wire, "a", 1).grants == []
    reply = script.step(wire, "a", 1, 0, *wanting(1, 2, 3))
    assert [wid for wid, _ in reply.grants] == [1, 2]
    assert (reply.used, reply.queued, reply.held) == (2, 1, 2)


def test_a_released_token_is_pushed_to_the_first_in_line(script):
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1, size=1), script.sync(b, "b", 1, size=1)
    [(_, fence)] = script.step(a, "a", 1, 0, *wanting(1)).grants
    assert script.step(b, "b", 1, 0, *wanting(7)).grants == []
    assert script.step(a, "a", 1, 1, *wanting(2)).grants == []
    [message] = b.heard()
    generation, wid, other = map(int, message.split())
    assert (generation, wid) == (1, 7)
    assert other > fence


def test_who_does_not_listen_is_passed_over_and_counts_for_nothing(script):
    a, b, c = script.wire("a"), script.wire("b"), script.wire("c")
    for wire, process in ((a, "a"), (b, "b"), (c, "c")):
        script.sync(wire, process, 1, size=1)
    script.step(a, "a", 1, 0, *wanting(1))
    script.step(b, "b", 1, 0, *wanting(2))
    script.step(c, "c", 1, 0, *wanting(3))
    b.close()
    script.control.call("PING")
    reply = script.step(a, "a", 1, 1)
    assert [m.split()[1] for m in c.heard()] == [b"3"]
    assert (reply.used, reply.queued) == (1, 0)


def cut_off_in_line(script):
    """Cut off b, which waits before a; return who has the next token."""
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1, size=1), script.sync(b, "b", 1, size=1)
    script.step(a, "a", 1, 0, *wanting(1))
    place = script.step(b, "b", 1, 0, *wanting(7)).base
    script.step(a, "a", 1, 0, *wanting(2))
    b.close()
    script.control.call("PING")
    assert [wid for wid, _ in script.step(a, "a", 1, 1).grants] == [2]
    script.step(a, "a", 1, 0, *wanting(3))
    b = script.wire("b")
    script.sync(b, "b", 2, 0, "", "", 0, f"7:{place}")
    return [wid for wid, _ in script.step(a, "a", 1, 1).grants], b.heard()


def test_who_was_passed_over_comes_back_to_its_old_place(script):
    mine, heard = cut_off_in_line(script)
    assert mine == []
    assert [m.split()[1] for m in heard] == [b"7"]


def test_without_its_number_who_was_passed_over_is_last(make_script):
    """The negative control of the test above."""
    guard = b"asked == '' and int(base + i - first) or asked:sub(2)"
    assert guard in _script.SOURCE
    script = make_script(source=_script.SOURCE.replace(guard, b"int(base + i - first)"))
    assert cut_off_in_line(script) == ([3], [])


def test_tokens_of_the_dead_come_back_when_their_lease_is_over(script):
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1), script.sync(b, "b", 1)
    script.step(a, "a", 1, 0, *wanting(1, 2))
    for third in range(1, 4):
        script.set_clock(START + third * LEASE // 3)
        reply = script.step(b, "b", 1, 0, *(wanting(5) if third == 1 else ()))
        assert len(reply.grants) == (third == 3)
    assert script.step(a, "a", 1).status == "gone"


@pytest.mark.parametrize("step", [3600, -3600, 30, -30])
def test_a_step_of_the_clock_ends_no_lease(script, step):
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1), script.sync(b, "b", 1)
    script.step(a, "a", 1, 0, *wanting(1, 2))
    script.set_clock(START + step * SECOND)
    assert script.step(b, "b", 1, 0, *wanting(3)).grants == []
    assert script.step(a, "a", 1).status == "ok"


def test_without_the_pool_clock_a_step_ends_them(make_script):
    """The negative control of the test above."""
    guard = b"math.min(wall - pool.wall, math.floor(pool.lease / 2))"
    assert guard in _script.SOURCE
    script = make_script(source=_script.SOURCE.replace(guard, b"wall - pool.wall"))
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1), script.sync(b, "b", 1)
    script.step(a, "a", 1, 0, *wanting(1, 2))
    script.set_clock(START + 3600 * SECOND)
    assert len(script.step(b, "b", 1, 0, *wanting(3)).grants) == 1


@pytest.mark.parametrize("lost", ["", "s", "t"])
def test_a_lost_key_is_noticed_and_learned_from(script, lost):
    """The first to come back must not be granted what others still hold."""
    a, b = script.wire("a"), script.wire("b")
    epoch = script.sync(a, "a", 1).epoch
    script.sync(b, "b", 1)
    script.step(a, "a", 1, 0, *wanting(1, 2))
    script.control.call("DEL", script.key(lost))
    assert script.step(b, "b", 1, 0, *wanting(3)).status == "gone"
    assert script.sync(b, "b", 2, 0, *wanting(3), known=epoch).grants == []
    assert script.sync(a, "a", 2, 2, known=epoch).used == 2
    script.set_clock(START + LEASE // 2)
    script.step(a, "a", 2), script.step(b, "b", 2)
    script.set_clock(START + LEASE)
    assert script.step(b, "b", 2).used == 2
    assert len(script.step(a, "a", 2, 1).grants) == 0
    assert [m.split()[1] for m in b.heard()][-1:] == [b"3"]


def test_a_member_removed_by_hand_is_noticed_and_learned_from(script):
    a, b = script.wire("a"), script.wire("b")
    epoch = script.sync(b, "b", 1).epoch
    script.sync(a, "a", 1)
    script.step(a, "a", 1, 0, *wanting(1, 2))
    script.control.call("HDEL", script.key("t"), "a")
    script.set_clock(START + LEASE // 3)
    assert script.step(b, "b", 1, 0, *wanting(3)).status == "gone"
    assert script.sync(b, "b", 2, 0, *wanting(3), known=epoch).grants == []


def test_flushed_learns_when_somebody_who_knew_comes(script):
    a, b = script.wire("a"), script.wire("b")
    epoch = script.sync(a, "a", 1).epoch
    script.control.call("DEL", *map(script.key, ("", "q", "s", "t")))
    reply = script.sync(b, "b", 1)  # new, so it starts at once
    assert (reply.learning, reply.epoch != epoch) == (0, True)
    assert script.sync(a, "a", 2, 2, known=epoch).learning == LEASE


@pytest.mark.parametrize(("up", "learning"), [(8, LEASE), (9, 0)])
def test_a_server_younger_than_grace_learns_first(make_script, up, learning):
    script = make_script(up=up)
    assert script.sync(script.wire("a"), "a", 1).learning == learning


def test_another_server_with_the_same_data_learns(script):
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1)
    script.control.call("SET", "test:run", "run2")
    assert script.sync(b, "b", 1).learning == LEASE


def test_a_late_sync_changes_nothing(script):
    a = script.wire("a")
    script.sync(a, "a", 2, 1)
    assert script.sync(a, "a", 1, 2).status == "late"
    assert script.used() == 1


def test_a_sync_replaces_what_the_process_had(script):
    a = script.wire("a")
    script.sync(a, "a", 1)
    script.step(a, "a", 1, 0, *wanting(1, 2))
    assert script.sync(a, "a", 2, 1).used == 1
    assert script.step(a, "a", 1, 1).status == "gone"


def test_numbers_rise_over_a_loss_of_data_and_a_clock_set_back(script):
    a = script.wire("a")
    epoch = script.sync(a, "a", 1).epoch
    [(_, fence)] = script.step(a, "a", 1, 0, *wanting(1)).grants
    script.control.call("DEL", *map(script.key, ("", "q", "s", "t")))
    script.set_clock(START - 3600 * SECOND)
    script.sync(a, "a", 2, 0, known=epoch, top=fence, grace=0)
    [(_, later)] = script.step(a, "a", 2, 0, *wanting(2)).grants
    assert later > fence


def test_a_count_changed_by_hand_is_mended_within_a_third_of_a_lease(script):
    a = script.wire("a")
    script.sync(a, "a", 1)
    script.step(a, "a", 1, 0, *wanting(1))
    script.control.call("SETRANGE", script.key(), 8, pack("<d", 77))
    script.set_clock(START + LEASE // 3)
    assert script.step(a, "a", 1).used == 1


def test_a_new_constructor_sets_the_size_when_nobody_else_is_alive(script):
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1, size=2)
    assert script.sync(b, "b", 1, size=5).size == 2
    script(a, "leave", "a", 1), script(b, "leave", "b", 1)
    assert script.sync(b, "c", 1, size=5).size == 5
    assert script.step(b, "c", 1, 0, "", 7, 0).size == 7
    script(b, "leave", "c", 1)
    assert script.sync(a, "d", 1, size=5).size == 7


def test_the_living_are_not_buried(script):
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1), script.sync(b, "b", 1)
    script.step(a, "a", 1, 0, *wanting(1, 2))
    assert script(b, "bury", "a") == b"alive"
    a.close()
    script.control.call("PING")
    assert script(b, "bury", "a") == b"ok"
    assert script.used() == 0


def test_without_the_look_who_listens_the_living_are_buried(make_script):
    """The negative control of the test above."""
    guard = b"call('PUBSUB', counted, channel(me))[2] > 0"
    assert guard in _script.SOURCE
    script = make_script(source=_script.SOURCE.replace(guard, b"false"))
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1), script.sync(b, "b", 1)
    script.step(a, "a", 1, 0, *wanting(1, 2))
    assert script(b, "bury", "a") == b"ok"
    assert len(script.step(b, "b", 1, 0, *wanting(3, 4)).grants) == 2


def test_who_does_not_wait_is_not_queued(script):
    a = script.wire("a")
    script.sync(a, "a", 1, size=1)
    assert len(script.step(a, "a", 1, 0, "", "", 0, "1-").grants) == 1
    reply = script.step(a, "a", 1, 0, "", "", 0, "2-")
    assert (reply.grants, reply.queued) == ([], 0)


def test_at_most_500_are_granted_in_one_call(script):
    a = script.wire("a")
    script.sync(a, "a", 1, size=600)
    reply = script.step(a, "a", 1, 0, *wanting(*range(600)))
    assert (len(reply.grants), reply.queued, reply.soon) == (500, 100, 0)
    assert [wid for wid, _ in script.step(a, "a", 1).grants] == list(range(500, 600))


def test_at_most_500_of_the_dead_are_passed_over_in_one_call(script):
    """10,000 of them took the server 300 ms, in which it did nothing else."""
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1, size=1), script.sync(b, "b", 1)
    script.step(a, "a", 1, 0, *wanting(1))
    script.step(b, "b", 1, 0, *wanting(*range(600)))
    assert script.step(a, "a", 1, 0, *wanting(2)).queued == 601
    b.close()
    script.control.call("PING")
    reply = script.step(a, "a", 1, 1)
    assert (reply.grants, reply.queued, reply.soon) == ([], 101, 0)
    assert [wid for wid, _ in script.step(a, "a", 1).grants] == [2]


@pytest.mark.parametrize("size", [300, 700])
def test_who_leaves_gives_all_that_it_held_to_those_in_line(script, size):
    """Nobody would go on where it stopped: some waited for a third of a lease."""
    a, b = script.wire("a"), script.wire("b")
    script.sync(a, "a", 1, size=size), script.sync(b, "b", 1)
    halves = range(size // 2), range(size // 2, size)
    for wire, process in ((a, "a"), (b, "b")):
        for half in halves:
            script.step(wire, process, 1, 0, *wanting(*half))
    assert script(a, "leave", "a", 1) == b"ok"
    assert sum(len(message.split()) // 2 for message in b.heard()) == size


def test_who_looks_for_the_dead_reads_no_line(script):
    """With fast_reclaim every process that waits looks twice a second."""
    a = script.wire("a")
    script.sync(a, "a", 1, size=1)
    script.step(a, "a", 1, 0, *wanting(*range(101)))
    assert len(script(a, "list")[3]) == 200
    assert len(script(a, "list", 1)[3]) == 2


PROCESSES = ["a", "b", "c"]
process = st.sampled_from(PROCESSES)


class Model(RuleBasedStateMachine):
    """What the script must do, told in lists and dictionaries."""

    script = None

    def __init__(self):
        super().__init__()
        script = self.script
        script.control.call("FLUSHDB")
        script.control.call("SET", "test:up", 10**6)
        script.control.call("SET", "test:run", "run1")
        script.set_clock(START)
        self.size, self.run = 2, 1
        self.clock = self.learn = 0  # pool time since the epoch began
        self.wires, self.generation = {}, dict.fromkeys(PROCESSES, 0)
        self.alive = {}  # process -> when its lease ends, as the server knows it
        self.held = {}  # as the server counts them
        self.queue = []  # (number, process, wid), in order
        self.places = {process: {} for process in PROCESSES}  # wid -> number, as they know
        self.wid, self.top, self.top_after, self.begun = 0, 0, 0, False

    def teardown(self):
        for wire in self.wires.values():
            wire.close()

    # What should be granted, and to whom.

    def used(self):
        return sum(self.held.values())

    def line_up(self, process, wants, base):
        """Return who need not stand in line; *wants* are pairs of a wid and its number.

        That is 0 for a new one, and None for one that does not wait.
        """
        free = self.size - self.used() if not self.queue and self.clock >= self.learn else 0
        direct = [wid for wid, _ in wants[: max(0, free)]]
        for i, (wid, number) in enumerate(wants):
            self.top_after = base + i
            if number is not None:
                number = number or base + i
                self.places[process][wid] = number
                if wid not in direct and (number, process, wid) not in self.queue:
                    self.queue.append((number, process, wid))
        self.queue.sort()
        return [(process, wid) for wid in direct]

    def granted(self, direct):
        grants = list(direct)
        for process, _ in direct:
            self.held[process] += 1
        while self.queue and self.used() < self.size and self.clock >= self.learn:
            _, process, wid = self.queue.pop(0)
            if process in self.alive and process in self.wires:
                self.held[process] += 1
                grants.append((process, wid))
        return grants

    def reap(self):
        for process in [p for p, end in self.alive.items() if end <= self.clock]:
            del self.alive[process], self.held[process]

    def expect(self, process, reply, direct=()):
        """Compare what came, in the reply and by push, with what should have come."""
        expected = self.granted(direct)
        for other, wid in expected:
            self.places[other].pop(wid, None)
        came = [(process, wid, fence) for wid, fence in reply.grants] if reply else []
        for other, wire in self.wires.items():
            for message in wire.heard():
                generation, *numbers = map(int, message.split())
                assert generation == self.generation[other]
                came += [(other, w, f) for w, f in zip(numbers[::2], numbers[1::2], strict=True)]
        came.sort(key=lambda grant: grant[2])
        assert [grant[:2] for grant in came] == expected  # I3, and I2 by the model
        for _, _, fence in came:
            assert fence > self.top  # I6
            self.top = fence
        self.top = max(self.top, self.top_after)
        if reply:
            assert (reply.size, reply.used) == (self.size, self.used())  # I1
            assert reply.queued == len(self.queue)
            assert reply.held == self.held[process]
            assert reply.learning in (None, max(0, self.learn - self.clock))

    def step(self, process, released=0, new_size="", cancels=(), wants=()):
        words = (f"{wid}-" if number is None else wid for wid, number in wants)
        tail = ("", f"{new_size}", len(cancels), *cancels, *words)
        number = self.generation[process]
        reply = self.script.step(self.wires[process], process, number, released, *tail)
        if process not in self.alive:
            assert reply.status == "gone"
            return
        assert reply.status == "ok"
        self.alive[process] = self.clock + LEASE
        self.held[process] -= released
        self.reap()
        self.queue = [w for w in self.queue if w[1] != process or w[2] not in cancels]
        self.size = new_size or self.size
        assert reply.base > self.top or not wants
        for wid in cancels:
            self.places[process].pop(wid, None)
        self.expect(process, reply, self.line_up(process, wants, reply.base))

    connected = precondition(lambda self: self.wires)
    free_of_learning = precondition(lambda self: self.begun)

    @initialize(process=process)
    def first(self, process):
        self.connect(process)

    @rule(process=process)
    def connect(self, process):
        """Connect, again if need be, and say how things are."""
        if process in self.wires:
            self.wires.pop(process).close()
            self.script.control.call("PING")
        self.wires[process] = wire = self.script.wire(process)
        self.generation[process] += 1
        held = self.held.get(process, 0)
        wants = list(self.places[process].items())
        tail = ("", "", 0, *(f"{wid}:{number}" for wid, number in wants))
        reply = self.script.sync(wire, process, self.generation[process], held, *tail)
        assert reply.status == "ok"
        if not self.begun:
            self.begun = True
        elif self.run_of_server != self.run:
            self.learn = self.clock + LEASE
        self.run_of_server = self.run
        self.reap()
        self.held[process] = held
        self.alive[process] = self.clock + LEASE
        if list(self.alive) == [process] and not getattr(self, "resized", False):
            self.size = 2
        self.expect(process, reply, self.line_up(process, wants, reply.base))

    @connected
    @rule(data=st.data(), count=st.integers(1, 3))
    def want(self, data, count):
        process = data.draw(st.sampled_from(sorted(self.wires)))
        wids = list(range(self.wid + 1, self.wid + 1 + count))
        self.wid += count
        numbers = data.draw(st.lists(st.sampled_from([0, 0, None]), min_size=count, max_size=count))
        released = data.draw(st.integers(0, self.held.get(process, 0)))
        self.step(process, released, wants=list(zip(wids, numbers, strict=True)))

    @connected
    @rule(data=st.data())
    def put(self, data):
        process = data.draw(st.sampled_from(sorted(self.wires)))
        held = self.held.get(process, 0)
        self.step(process, released=data.draw(st.integers(min(1, held), held)))

    @connected
    @rule(data=st.data())
    def cancel(self, data):
        process = data.draw(st.sampled_from(sorted(self.wires)))
        mine = list(self.places[process])
        self.step(process, cancels=data.draw(st.lists(st.sampled_from(mine))) if mine else [0])

    @connected
    @rule(data=st.data(), size=st.integers(1, 5))
    def resize(self, data, size):
        process = data.draw(st.sampled_from(sorted(self.wires)))
        if process in self.alive:
            self.resized = True
        self.step(process, new_size=size)

    @connected
    @rule(data=st.data())
    def disconnect(self, data):
        self.wires.pop(data.draw(st.sampled_from(sorted(self.wires)))).close()
        self.script.control.call("PING")

    @connected
    @rule(data=st.data())
    def leave(self, data):
        process = data.draw(st.sampled_from(sorted(self.wires)))
        waits = list(self.places[process])
        answer = self.script(
            self.wires[process], "leave", process, self.generation[process], *waits
        )
        if process not in self.alive:
            assert answer == b"late"
            return
        assert answer == b"ok"
        del self.alive[process], self.held[process]
        self.queue = [w for w in self.queue if w[1] != process]
        self.places[process].clear()
        self.reap()
        self.expect(process, None)

    @free_of_learning
    @rule(seconds=st.sampled_from([1, 3, 4, 10, 3600, -1, -10, -3600]))
    def time_passes(self, seconds):
        """Or the clock is set; the pool cannot tell, and takes at most half a lease of it."""
        self.script.set_clock(self.script.now + seconds * SECOND)
        self.clock += max(0, min(seconds * SECOND, LEASE // 2))
        # Its time is that of its calls: have one made.
        wire = next(iter(self.wires.values()), None) or self.script.control
        self.script(wire, "bury", "nobody")
        self.reap()
        self.expect(None, None)

    @free_of_learning
    @rule()
    def another_server(self):
        self.run += 1
        self.script.control.call("SET", "test:run", f"run{self.run}")

    @invariant()
    def counts_agree(self):
        if self.begun:
            assert self.script.used() == self.used()  # I1


def test_does_what_the_model_does(redis_server):
    class Machine(Model):
        script = Script(redis_server)

    try:
        Machine.TestCase.settings = settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        Machine.TestCase("runTest").runTest()
    finally:
        Machine.script.close()
