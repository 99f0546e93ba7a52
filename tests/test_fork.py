"""What a child process does with the pools it inherits: it starts with empty ones.

The parent's items never see a byte of the child's, and the parent is undisturbed.
"""

import gc
import multiprocessing
import os
import pickle
import resource
import select
import selectors
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import gevent
import gevent.os
import pytest
import redis
from gevent import socket
from gevent.event import Event
from gevent.selectors import GeventSelector
from greenlet import greenlet

from gpools import ConnectionPool, HttpPool, NotInUse, PoolTimeout, RedisPool, _creator, _fork
from tests.waiting import settle, spawn, until

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # Python 3.12, of threads
]

ROOT = Path(__file__).resolve().parent.parent


class Child:
    """A forked child that runs *act* and hands back what it returned."""

    def __init__(self, act, fork):
        reader, writer = os.pipe()
        self.pid = fork()
        if self.pid == 0:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(30)
                os.close(reader)
                try:
                    answer = (True, act())
                except BaseException:
                    answer = (False, traceback.format_exc())
                with os.fdopen(writer, "wb") as pipe:
                    pickle.dump(answer, pipe)
            finally:
                os._exit(0)
        os.close(writer)
        self.pipe = os.fdopen(reader, "rb")

    def result(self):
        """Wait for the child's end; raises what it raised."""
        until(lambda: select.select([self.pipe], [], [], 0)[0], timeout=40)
        data = self.pipe.read()
        self.pipe.close()
        with suppress(ChildProcessError):  # gevent's loop may have taken note already
            os.waitpid(self.pid, 0)
        assert data, "the child ended without an answer"
        well, answer = pickle.loads(data)
        assert well, answer
        return answer


FORKS = [pytest.param(os.fork, id="os.fork"), pytest.param(gevent.os.fork, id="gevent.os.fork")]


@pytest.fixture(params=FORKS)
def in_child(request):
    """Run a function in a child, made by either fork, and return what it returned."""
    return lambda act: Child(act, request.param).result()


@pytest.fixture
def in_gevent_child():
    """The same, with a child whose hub is fit to wait."""
    return lambda act: Child(act, gevent.os.fork).result()


class Wire:
    """One end of a socketpair, as an item; the other end is the server's."""

    def __init__(self):
        self.sock, self.server = socket.socketpair()
        self.server.setblocking(False)
        self.fd = self.sock.fileno()

    def ask(self):
        self.sock.sendall(b"ask.")

    def close(self):
        self.sock.sendall(b"goodbye.")
        self.sock.close()

    def __del__(self):
        with suppress(OSError):
            self.sock.sendall(b"goodbye from __del__.")
        self.sock.close()
        self.server.close()

    def heard(self):
        """Return what the server has heard, and "end" at the end."""
        try:
            return self.server.recv(1000) or "end"
        except BlockingIOError:
            return b""


class Wires(list):
    """A factory that remembers what it made."""

    def __init__(self, *events):
        super().__init__()
        self.events = list(events)

    def __call__(self):
        if len(self.events) > len(self) and self.events[len(self)] is not None:
            self.events[len(self)].wait()
        self.append(Wire())
        return self[-1]


def is_null(fd):
    return os.path.samestat(os.fstat(fd), os.stat(os.devnull))


def silent(wires):
    return [wire.heard() for wire in wires] == [b""] * len(wires)


def test_a_child_starts_empty_and_makes_its_own(in_child):
    wires = Wires()
    pool = ConnectionPool(max_size=3, create=wires)
    held, idle = pool.get(), pool.get()
    pool.put(idle)

    def child():
        before = repr(pool), pool.current_size, pool.waiting(), pool.stats()
        with pool.item() as wire:
            wire.ask()
            other = wire is not held and wire is not idle
        return *before, other, wires[-1].heard(), pool.stats()

    face, size, waiting, stats, other, heard, after = in_child(child_safe(child))
    assert face == "<ConnectionPool 0 idle, 0 in use, 0 waiting, max 3>"
    assert (size, waiting, other, heard) == (0, 0, True, b"ask.")
    assert (stats["size"], stats["created"], stats["destroyed"]) == (0, 0, {})
    assert (after["size"], after["idle"], after["created"]) == (1, 1, 1)

    assert silent(wires)
    assert repr(pool) == "<ConnectionPool 1 idle, 1 in use, 0 waiting, max 3>"
    held.ask()
    assert held.heard() == b"ask."
    pool.put(held)
    assert pool.get() is idle


def child_safe(act):
    """Make the Stats among what *act* returns fit for a pipe."""

    def stats_as_dicts():
        return [
            {**vars(a), "destroyed": dict(a.destroyed)} if hasattr(a, "destroyed") else a
            for a in act()
        ]

    return stats_as_dicts


def test_the_descriptors_of_the_parents_items_lead_nowhere_in_a_child(in_child):
    wires = Wires()
    pool = ConnectionPool(max_size=3, create=wires)
    held, idle = pool.get(), pool.get()
    pool.put(idle)
    own = Wire()

    def child():
        inheritable = [os.get_inheritable(wire.fd) for wire in (held, idle)]
        return is_null(held.fd), is_null(idle.fd), is_null(own.fd), inheritable

    assert in_child(child) == (True, True, False, [False, False])
    assert not is_null(held.fd)
    assert not is_null(idle.fd)


def test_nothing_a_child_does_reaches_the_parents_server(in_child):
    """Not a goodbye, not a shutdown, not what a destructor writes."""
    wires = Wires()
    pool = ConnectionPool(max_size=3, create=wires, destroy=Wire.close)
    held, idle = pool.get(), pool.get()
    pool.put(idle)

    def child():
        nonlocal held, idle
        with pytest.raises(OSError, match="non-socket"):
            held.sock.sendall(b"foreign.")
        os.write(held.fd, b"foreign.")
        pool.close()
        pool.recycle()
        held.sock.close()
        wires.clear()
        held = idle = None
        gc.collect()
        return True

    assert in_child(child)
    assert silent(wires)
    pool.put(held)
    pool.close()
    assert [wire.heard() for wire in wires] == [b"goodbye."] * 2


class Hidden:
    """An item that does not show its descriptor, as of a C library."""

    def __init__(self):
        self.wire = Wire()

    def __del__(self):
        self.wire.sock.sendall(b"goodbye.")


def test_an_item_whose_descriptor_nobody_knows_is_not_collected_in_a_child(in_child):
    """It would say goodbye."""
    pool = ConnectionPool(max_size=2, create=Hidden, destroy=lambda item: None)
    held, idle = pool.get(), pool.get()
    wires = [held.wire, idle.wire]
    pool.put(idle)
    del idle

    def child():
        nonlocal held
        held = None
        pool.close()
        gc.collect()
        return True

    assert in_child(child)
    assert silent(wires)
    pool.put(held)


def test_a_fork_costs_no_descriptors(in_child):
    pools = [ConnectionPool(create=Wire) for _ in range(5)]
    before = len(os.listdir("/dev/fd"))
    overhead = in_child(lambda: len(os.listdir("/dev/fd"))) - before
    for pool in pools:
        pool.put(pool.get())
    before = len(os.listdir("/dev/fd"))
    assert in_child(lambda: len(os.listdir("/dev/fd"))) - before == overhead


def test_parents_waiters_are_served_after_a_fork(in_child):
    wires = Wires()
    pool = ConnectionPool(max_size=1, create=wires)
    item = pool.get()
    waiters = [spawn(pool.get), spawn(pool.get)]
    settle()

    assert in_child(lambda: (pool.waiting(), pool.current_size)) == (0, 0)
    assert pool.waiting() == 2
    pool.put(item)
    settle()
    assert waiters[0].get(block=False) is item
    pool.put(item)
    settle()
    assert waiters[1].get(block=False) is item
    assert silent(wires)


def test_a_put_on_its_way_to_a_waiter_stays_the_parents(in_gevent_child):
    """The fork falls between the put and the turn of the hub that hands over."""
    wires = Wires()
    pool = ConnectionPool(max_size=1, create=wires)
    got = []

    def wait():
        with pool.item() as wire:
            got.append(os.getpid())
            wire.ask()

    item = pool.get()
    waiter = spawn(wait)
    settle()
    pool.put(item)

    def child():
        settle()  # the copy of the waiter may go on, with an item of the child's own
        stats = pool.stats()
        assert stats.size == stats.idle + stats.in_use
        return is_null(item.fd), [hold.item is item for hold in pool.holders()].count(True)

    assert in_gevent_child(child) == (True, 0)
    settle()
    assert waiter.successful()
    assert got == [os.getpid()]
    assert wires[0].heard() == b"ask."
    assert wires[0].heard() == b""


def test_a_with_block_around_a_fork_ends_quietly_in_the_child(in_child):
    wires = Wires()
    pool = ConnectionPool(max_size=2, create=wires)

    with pool.item() as item:
        block = pool.item()
        other = block.__enter__()

        def child():
            block.__exit__(None, None, None)
            return pool.current_size, is_null(other.fd)

        assert in_child(child) == (0, True)

        def failing_child():
            return block.__exit__(OSError, OSError("x"), None), pool.current_size

        assert in_child(failing_child) == (None, 0)
        block.__exit__(None, None, None)
        item.ask()

    assert item.heard() == b"ask."
    assert silent(wires)
    assert repr(pool) == "<ConnectionPool 2 idle, 0 in use, 0 waiting, max 2>"


@pytest.mark.parametrize("verb", ["put", "discard"])
def test_the_parents_item_given_back_by_hand_is_refused_in_the_child(in_child, verb):
    wires = Wires()
    pool = ConnectionPool(max_size=2, create=wires, name="inherited")
    item = pool.get()

    def child():
        try:
            getattr(pool, verb)(item)
        except NotInUse as refused:
            return str(refused), pool.current_size
        return None

    text, size = in_child(child)
    assert "has not out" in text
    assert size == 0
    assert silent(wires)
    pool.put(item)


def test_a_creation_copied_into_a_child_does_no_harm(in_gevent_child):
    made = Event()
    wires = Wires(made)
    pool = ConnectionPool(max_size=2, create=wires)
    caller = spawn(pool.get)
    settle()

    def child():
        made.set()
        settle()
        copied = repr(caller.exception)
        size, null = pool.current_size, is_null(wires[0].fd)
        pool.get()
        return copied, size, null, pool.current_size, is_null(wires[1].fd)

    copied, size, null, after, own_is_null = in_gevent_child(child)
    assert "was being made when this process was forked" in copied
    assert (size, null, after, own_is_null) == (0, True, 1, False)

    made.set()
    settle()
    assert caller.get(block=False) is wires[0]
    wires[0].ask()
    assert wires[0].heard() == b"ask."


def read(sock):
    return sock.recv(5)


def select_and_read(sock):
    with GeventSelector() as selector:
        selector.register(sock.fileno(), selectors.EVENT_READ)
        selector.select()
    return sock.recv(5)


@pytest.mark.parametrize("wait", [read, select_and_read])
def test_the_copy_of_a_greenlet_that_connects_hears_nothing_of_the_parents_server(
    in_gevent_child, wait
):
    """It read the greeting, and the parent waited for that for ever."""
    sock, server = socket.socketpair()
    connecting = spawn(_fork.making, lambda: _fork.making(lambda: wait(sock)))
    settle()

    def child():
        until(connecting.ready)
        return type(connecting.exception)

    assert issubclass(in_gevent_child(child), OSError)
    server.sendall(b"hello")
    assert connecting.get(timeout=5) == b"hello"
    assert connecting not in _fork._makers
    sock.close()
    server.close()


def test_a_greenlet_that_is_dropped_while_it_connects_gives_its_slot_back():
    pool = ConnectionPool(max_size=1, create=gevent.get_hub().switch)
    connecting = greenlet(pool.get, gevent.get_hub())
    gevent.get_hub().loop.run_callback(connecting.switch)
    settle()
    assert pool.free() == 0

    del connecting
    gc.collect()
    settle()
    assert pool.free() == 1


@pytest.mark.parametrize("verb", ["create", "_adopt"])
@pytest.mark.parametrize("max_creating", [None, 1])
def test_a_child_hears_nothing_of_what_its_parent_connects(in_gevent_child, verb, max_creating):
    sock, server = socket.socketpair()
    heard = []

    class Greeted(ConnectionPool):
        def create(self):
            return self.greeted(sock, "create")

        def _adopt(self, item):
            self.greeted(item, "_adopt")

        def greeted(self, wire, when):
            if when == verb:
                try:
                    heard.append(wire.recv(5))
                except OSError:
                    heard.append("nothing")
                    raise
            return wire

    pool = Greeted(max_size=1, max_creating=max_creating)
    connecting = spawn(pool.get, timeout=30)
    settle()

    def child():
        until(lambda: heard)
        return heard

    assert in_gevent_child(child) == ["nothing"]
    server.sendall(b"hello")
    assert connecting.get(timeout=5) is sock
    assert heard == [b"hello"]
    pool.put(sock)
    pool.close()
    server.close()


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "scheduled"])
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_creation_in_the_background_copied_into_a_child_does_no_harm(
    in_gevent_child, begun, ends
):
    made = Event()
    wires = Wires(made)

    def create():
        wire = wires()
        if ends == "badly" and os.getpid() != parent:
            raise OSError("the server said no")
        return wire

    parent = os.getpid()
    pool = ConnectionPool(max_size=2, create=create, max_creating=1)
    caller = spawn(pool.get)
    if begun:
        settle()
    else:
        gevent.sleep(0)  # the caller is started, then we go on, then the creation would begin
        assert pool.waiting() == pool.stats().creating == 1
    parents_creator = pool._book.creator

    def child():
        made.set()
        settle()
        first = pool.current_size, pool.stats().idle, pool._book.creator.in_flight
        parents_creator.look()
        nonlocal parent
        parent = os.getpid()
        pool.get(timeout=10)
        stats = pool.stats()
        return first, (stats.size, stats.in_use, stats.creating, stats.create_errors)

    assert in_gevent_child(child) == ((0, 0, 0), (1, 1, 0, 0))
    made.set()
    settle()
    assert caller.get(block=False) is wires[0]
    assert pool.stats().creating == 0


def test_the_dead_alarm_of_the_parent_starts_nothing_in_the_child(in_gevent_child, monkeypatch):
    monkeypatch.setattr(_creator, "FIRST_PAUSE", 0.01)
    tries = []

    def create():
        tries.append(os.getpid())
        raise OSError("the server said no")

    pool = ConnectionPool(create=create, max_creating=1, min_size=1)
    settle()
    assert len(tries) == 1

    def child():
        gevent.sleep(0.1)
        return len(tries), pool._book.creator.failures, pool.current_size

    assert in_gevent_child(child) == (1, 0, 0)
    until(lambda: len(tries) > 2)
    pool.close()


def test_a_destruction_copied_into_a_child_does_no_harm(in_gevent_child):
    """Its goodbye goes nowhere, and it gives back no slot of the child's."""
    leaving = Event()

    def destroy(wire):
        leaving.wait()
        wire.close()

    wires = Wires()
    pool = ConnectionPool(max_size=1, create=wires, destroy=destroy)
    pool.discard(pool.get())
    assert pool.stats().destroying == 1

    def child():
        item = pool.get()
        leaving.set()
        settle()
        stats = pool.stats()
        return is_null(item.fd), stats.size, stats.in_use, dict(stats.destroyed)

    assert in_gevent_child(child) == (False, 1, 1, {})
    assert silent(wires)
    leaving.set()
    settle()
    assert wires[0].heard() == b"goodbye."
    assert pool.current_size == 0


def test_a_check_and_a_reset_copied_into_a_child_do_no_harm(in_gevent_child):
    go_on = Event()

    def slow_verb(wire):
        go_on.wait()
        return True

    wires = Wires()
    pool = ConnectionPool(
        max_size=2, create=wires, check=slow_verb, reset=slow_verb, check_timeout=None
    )
    items = pool.get(), pool.get()
    go_on.set()
    pool.put(items[0])
    go_on.clear()
    gevent.sleep(0.001)
    checking, resetting = spawn(pool.get), spawn(pool.put, items[1])
    settle()
    assert pool.stats().between == 2

    def child():
        go_on.set()
        settle()  # the copy of the getter may go on, with an item of the child's own
        stats = pool.stats()
        assert stats.size == stats.in_use <= 1
        return stats.between, [hold.item in items for hold in pool.holders()].count(True)

    assert in_gevent_child(child) == (0, 0)
    assert silent(wires)
    go_on.set()
    settle()
    assert checking.get(block=False) is items[0]
    assert resetting.successful()


def test_the_sweeper_copied_into_a_child_ends_and_the_child_has_its_own(in_gevent_child):
    wires = Wires()
    pool = ConnectionPool(max_size=2, create=wires, max_idle=0.02)
    pool.put(pool.get())
    settle()

    parents = pool._book.sweeper
    assert running(parents)

    def child():
        gevent.sleep(0.03)
        ended = not running(parents)
        pool.put(pool.get())
        settle()
        own = running(pool._book.sweeper), pool.current_size
        until(lambda: pool.current_size == 0)
        return ended, *own, sum(pool.stats().destroyed.values())

    assert in_gevent_child(child) == (True, True, 1, 1)
    assert wires[0].heard() in (b"", b"goodbye.")
    until(lambda: pool.current_size == 0)
    assert wires[0].heard() in (b"goodbye.", "end")


def running(sweeper):
    """Tell whether a greenlet that has not ended runs *sweeper*."""
    for thing in gc.get_objects():
        if isinstance(thing, greenlet) and not thing.dead:
            frame = thing.gr_frame
            while frame is not None:
                if frame.f_code.co_name == "_run" and frame.f_locals.get("self") is sweeper:
                    return True
                frame = frame.f_back
    return False


def test_a_closed_pool_stays_closed_in_a_child(in_child):
    pool = ConnectionPool(create=Wire)
    pool.close()

    def child():
        try:
            pool.get()
        except Exception as error:
            return type(error).__name__
        return None

    assert in_child(child) == "PoolClosed"


def test_settings_outlive_a_fork(in_gevent_child):
    told = []

    class Told:
        def created(self, pool):
            told.append("created")

    pool = ConnectionPool(
        max_size=1, create=Wire, timeout=0.01, max_waiting=1, max_creating=1, listener=Told()
    )

    def child():
        item = pool.get(timeout=10)
        try:
            pool.get()
        except PoolTimeout as late:
            message = str(late)
        waiter = spawn(pool.get, timeout=10)
        settle()
        full = None
        try:
            pool.get()
        except Exception as error:
            full = type(error).__name__
        pool.put(item)
        waiter.get()
        return message, full, told

    message, full, heard = in_gevent_child(child)
    assert message.startswith("no item came free within 0.01 s (1 of 1 in use")
    assert full == "PoolFull"
    assert heard == ["created"]
    assert told == []


def test_a_child_belongs_to_the_thread_that_uses_it_first(in_child):
    pool = ConnectionPool(create=Wire)
    pool.put(pool.get())
    assert in_child(lambda: pool.put(pool.get())) is None


def test_a_grandchild_starts_empty_too(in_gevent_child):
    wires = Wires()
    pool = ConnectionPool(create=wires)
    pool.put(pool.get())

    def child():
        mine = pool.get()

        def grandchild():
            return pool.current_size, is_null(mine.fd), is_null(wires[0].fd)

        answer = Child(grandchild, gevent.os.fork).result()
        mine.ask()
        return answer, mine.heard(), pool.current_size

    assert in_gevent_child(child) == ((0, True, True), b"ask.", 1)
    assert silent(wires)


def test_a_fork_with_no_descriptor_left_still_empties_the_child(in_child):
    """To open /dev/null takes one."""
    wires = Wires()
    pool = ConnectionPool(create=wires)
    item = pool.get()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def child():
        size = pool.current_size
        return size, is_null(item.fd)

    spare = os.pipe(), os.pipe(), os.pipe()
    top = max(map(max, spare)) + 1
    fill = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 3, hard))
        with suppress(OSError):
            while True:
                fill.append(os.dup(0))
        os.close(fill.pop())
        os.close(fill.pop())  # the pipe of Child, which the child gets full
        child_of = in_child(child)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in [*fill, *sum(spare, ())]:
            os.close(fd)
    assert child_of == (0, True)
    assert silent(wires)


def test_one_pool_that_cannot_be_cut_off_does_not_keep_the_others_from_it(in_child):
    class Odd(ConnectionPool):
        def _filenos(self, item):
            raise RuntimeError("the client library has changed")

    wires = Wires()
    pools = [Odd(create=Wires())] + [ConnectionPool(create=wires) for _ in range(5)]
    try:
        for pool in pools:
            pool.put(pool.get())
        assert in_child(lambda: [pool.current_size for pool in pools[1:]]) == [0] * 5
        assert in_child(lambda: all(is_null(wire.fd) for wire in wires))
    finally:
        del Odd._filenos


# Other ways to fork.


def work_in_multiprocessing(pool, pipe):
    size = pool.current_size
    with pool.item() as wire:
        wire.ask()
        pipe.send((size, wire.heard(), pool.current_size))


def test_multiprocessing():
    wires = Wires()
    pool = ConnectionPool(create=wires, destroy=Wire.close)
    held = pool.get()
    pool.put(pool.get())
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=work_in_multiprocessing, args=(pool, theirs))
    process.start()
    try:
        theirs.close()
        until(ours.poll)
        assert ours.recv() == (0, b"ask.", 1)
        until(ours.poll)
        with pytest.raises(EOFError):  # it has ended, destructors and all
            ours.recv()
    finally:
        with suppress(ChildProcessError):  # gevent's loop may have taken note already
            os.waitpid(process.pid, 0)
        process.join(0)
    assert silent(wires)
    pool.put(held)


def run(script, *arguments):
    """Run *script* in a Python of its own and return its lines."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.splitlines(), done.stderr


EXITS = """
import os, socket, sys
{patch}
from gpools import ConnectionPool

class Wire:
    def __init__(self):
        self.sock, self.server = socket.socketpair()
    def close(self):
        self.sock.sendall(b"goodbye.")
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
    def __del__(self):
        self.close()

servers = []
def create():
    wire = Wire()
    servers.append(wire.server)
    return wire

pool = ConnectionPool(max_size=3, create=create)
held, idle = pool.get(), pool.get()
pool.put(idle)
with pool.item():
    pid = os.fork()
    if pid == 0:
        for server in servers:
            server.close()
        with pool.item() as own:
            pass
        {end}
assert os.waitpid(pid, 0)[1] == 0
for server in servers:
    server.setblocking(False)
    try:
        print("heard", server.recv(100))
    except BlockingIOError:
        print("silent")
print(pool)
os._exit(0)
"""


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"])
@pytest.mark.parametrize("end", ["sys.exit()", "pool.close(); sys.exit()", "del held; sys.exit()"])
def test_a_child_that_ends_normally_says_nothing_on_the_parents_connections(patch, end):
    """Its interpreter runs every destructor there is."""
    lines, _ = run(
        EXITS.format(patch=patch, end=end).replace("os._exit(0)", "sys.stdout.flush();os._exit(0)")
    )
    assert lines == ["silent"] * 2 + ["<ConnectionPool 1 idle, 1 in use, 0 waiting, max 3>"]


PRELOAD = """
from gevent import monkey; monkey.patch_all()
import os, sys
import gevent
import gpools
url, redis_url = sys.argv[1:]
http = gpools.HttpPool(max_size=3, timeout=20)
store = gpools.RedisPool(redis_url, max_size=3)

def work(who, rounds):
    wrong = done = 0
    def one(n):
        nonlocal wrong, done
        tag = f"{who}-{n}"
        with store.item(timeout=20) as client:
            wrong += client.echo(tag) != tag.encode()
        _, body = http.request(f"{url}/echo?tag={tag}")
        wrong += f'"{tag}"'.encode() not in body
        done += 1
    gevent.joinall([gevent.spawn(one, n) for n in range(rounds)], raise_error=True)
    return wrong, done

# The application is imported, and used, before the workers are forked.
assert work("master", 20) == (0, 20), "master"
held = store.get()
http_held = http.get()
pids = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        answer = work(f"child{child}", 60)
        os._exit(0 if answer == (0, 60) else 1)
    pids.append(pid)
assert work("parent", 60) == (0, 60), "parent"
print("held", held.echo("mine"))
store.put(held)
http.put(http_held)
print(*[os.waitpid(pid, 0)[1] for pid in pids])
assert work("after", 20) == (0, 20), "after"
print(store.stats().destroyed, http.stats().destroyed)
sys.stdout.flush()
os._exit(0)
"""


def test_workers_forked_from_a_master_that_has_used_its_pools(redis_server, http_server):
    """As gunicorn --preload does; a naive pool gave 38 to 60 foreign answers of 60."""
    lines, errors = run(PRELOAD, http_server.url, redis_server.url)
    assert lines[:2] == ["held b'mine'", "0 0 0"], errors


def test_the_childs_use_of_an_inherited_redis_client_reaches_no_server(redis_server, in_child):
    pool = RedisPool(redis_server.url)
    held = pool.get()

    def child():
        try:
            held.incr("counter")
        except (redis.RedisError, OSError) as error:
            return type(error).__name__
        return "no error"

    in_child(child)
    sent_by_parent = held.incr("counter")
    assert held.echo("mine") == b"mine"
    assert sent_by_parent in (1, 2)  # redis-py opens a connection of its own in a child
    pool.put(held)
    pool.close()


def test_http_pool_with_an_idle_connection(http_server, in_child):
    pool = HttpPool()
    pool.request(f"{http_server.url}/")
    accepted = http_server.stats()["accepted"]

    def child():
        size = pool.current_size
        response, _ = pool.request(f"{http_server.url}/")
        return size, response.status

    assert in_child(child) == (0, 200)
    assert http_server.stats()["accepted"] == accepted + 1
    response, _ = pool.request(f"{http_server.url}/")
    assert response.status == 200
    assert http_server.stats()["accepted"] == accepted + 1
    pool.close()


def test_an_item_that_cannot_tell_its_descriptor_does_not_spoil_it_for_the_others(in_child):
    class Shut(Wire):
        def fileno(self):
            raise ValueError("I/O operation on closed file")

    wires = Wires()
    pools = [ConnectionPool(create=Shut), ConnectionPool(create=wires)]
    held = [pool.get() for pool in pools]

    assert in_child(lambda: ([pool.current_size for pool in pools], is_null(wires[0].fd))) == (
        [0, 0],
        True,
    )
    assert held[0].server.fileno() > 0


def test_a_pool_whose_adapter_is_wrong_does_not_spoil_it_for_the_others(in_child, caplog):
    class Wrong(ConnectionPool):
        def _filenos(self, item):
            return [2**30]  # no such descriptor

    wires = Wires()
    pools = [ConnectionPool(create=wires), Wrong(create=Wire), ConnectionPool(create=wires)]
    held = [pool.get() for pool in pools]

    def child():
        return [pool.current_size for pool in pools], [is_null(w.fd) for w in wires], caplog.text

    sizes, cut_off, log = in_child(child)
    assert sizes == [0, 0, 0]
    assert cut_off == [True, True]
    assert "<Wrong 0 idle, 0 in use, 0 waiting, max 4> could not be emptied after a fork" in log
    assert len(held) == 3
