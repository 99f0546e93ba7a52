"""FairLifoQueue, alone and inside the libraries that take one."""

import json
import math
import queue
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from gevent import Timeout
from hypothesis import given
from hypothesis import strategies as st

from gpools.queues import FairLifoQueue
from tests.servers import RedisServer
from tests.waiting import settle, spawn

HERE = Path(__file__).parent.parent


def getters(q, names, served, **options):
    """Have greenlets wait for an item each; they note in *served* who got one, in order."""

    def get(name):
        served.append((name, q.get(**options)))

    waiting = [spawn(get, name) for name in names]
    settle()
    return waiting


def test_getters_are_served_in_the_order_they_came():
    q, served = FairLifoQueue(), []
    getters(q, range(100), served)
    for item in range(100):
        q.put(item)
        settle()
    assert served == [(n, n) for n in range(100)]


def test_last_in_is_first_out_when_many_wait():
    q, served = FairLifoQueue(), []
    getters(q, "abc", served)
    for item in range(3):
        q.put(item)
    settle()
    assert served == [("a", 2), ("b", 1), ("c", 0)]


def test_get_that_need_not_wait_does_not_overtake_those_who_do():
    q, served = FairLifoQueue(), []
    getters(q, ["first"], served)
    q.put("item")
    with pytest.raises(queue.Empty):
        q.get_nowait()
    assert q.qsize() == 1
    settle()
    assert served == [("first", "item")]


def test_greedy_getter_starves_nobody():
    q, served = FairLifoQueue(), []
    q.put("item")

    def greedy(name):
        for _ in range(5):
            item = q.get()
            served.append(name)
            gevent.sleep(0)
            q.put(item)

    gevent.joinall([spawn(greedy, name) for name in "abc"], timeout=10)
    assert "".join(served) == "abc" * 5


@pytest.mark.parametrize("how", ["kill", "timeout", "killed just before the put", "just after"])
def test_getter_that_dies_takes_nobodys_turn(how):
    q, served = FairLifoQueue(), []
    (first,) = getters(q, "a", served, timeout=0.01 if how == "timeout" else None)
    getters(q, "b", served)
    if how == "kill":
        first.kill()
    elif how == "timeout":
        first.join()
        assert isinstance(first.exception, queue.Empty)
    elif how == "killed just before the put":
        first.kill(block=False)
    q.put("item")
    if how == "just after":
        first.kill(block=False)
    settle()
    assert [item for _, item in served] == ["item"]
    assert how == "just after" or served[0][0] == "b"
    assert q.empty()


def test_item_put_just_before_the_only_getter_is_killed_is_not_lost():
    q = FairLifoQueue()
    (getter,) = getters(q, "a", [])
    getter.kill(block=False)
    q.put("item")
    settle()
    assert q.get_nowait() == "item"


def test_putters_are_served_in_the_order_they_came():
    q = FairLifoQueue(1)
    q.put("x")
    putters = [spawn(q.put, n) for n in range(5)]
    settle()
    putters[1].kill()
    with pytest.raises(queue.Full):
        q.put("late", timeout=0.001)
    assert repr(q) == "<FairLifoQueue 1 items, 0 getting, 4 putting, max 1>"
    got = []
    for _ in range(4):
        got.append(q.get_nowait())
        with pytest.raises(queue.Full):  # the place is theirs who wait
            q.put_nowait("newcomer")
        settle()
    assert [*got, q.get_nowait()] == ["x", 0, 2, 3, 4]


def test_timeouts_and_nonsense_are_those_of_the_standard_queue():
    q = FairLifoQueue(1)
    for wrong in (lambda: q.get(timeout=-1), lambda: q.put(1, timeout=-1), q.task_done):
        with pytest.raises(ValueError, match=r"timeout is -1|task_done"):
            wrong()
    with pytest.raises(queue.Empty):
        q.get(timeout=0)
    q.put(None)
    with pytest.raises(queue.Full):
        q.put(1, timeout=0)
    assert q.get(timeout=0) is None


def test_timeout_of_the_callers_own_is_not_taken_for_the_queues():
    q = FairLifoQueue()
    mine = Timeout(0.01)
    with pytest.raises(Timeout) as caught, mine:
        q.get(timeout=5)
    assert caught.value is mine


def test_join_waits_for_all_tasks():
    q = FairLifoQueue()
    q.join()
    q.put(1)
    q.put(2)
    joiner = spawn(q.join)
    q.get()
    q.task_done()
    settle()
    assert not joiner.ready()
    q.get()
    q.task_done()
    settle()
    assert joiner.successful()


def test_items_taken_out_by_hand_make_room():
    """kombu does so when a pool shrinks."""
    q = FairLifoQueue(1)
    q.put(1)
    q.queue.pop()
    q.put_nowait(2)
    assert q.full()


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "put_nowait"]), st.one_of(st.none(), st.integers(0, 9))),
        st.tuples(st.sampled_from(["get", "get_nowait", "task_done", "qsize", "empty", "full"])),
    ),
    max_size=40,
)


def perform(q, operation, *arguments):
    options = {"timeout": 0} if operation in ("put", "get") else {}
    try:
        return getattr(q, operation)(*arguments, **options)
    except (queue.Empty, queue.Full, ValueError) as error:
        return type(error)


@given(st.integers(-1, 4), OPERATIONS)
def test_single_greenlet_sees_the_standard_queue(maxsize, operations):
    ours, theirs = FairLifoQueue(maxsize), queue.LifoQueue(maxsize)
    for operation in operations:
        assert perform(ours, *operation) == perform(theirs, *operation)
        assert (ours.qsize(), ours.full()) == (theirs.qsize(), theirs.full())


@pytest.mark.parametrize(("maxsize", "holds"), [(2.5, 3), (math.inf, 100)])
def test_size_need_not_be_whole(maxsize, holds):
    for q in (FairLifoQueue(maxsize), queue.LifoQueue(maxsize)):
        for item in range(holds):
            assert not q.full()
            q.put_nowait(item)
        assert q.full() is (holds > maxsize)


@given(st.lists(st.sampled_from("gptk"), max_size=60), st.integers(0, 3))
def test_nothing_is_lost_when_getters_and_putters_die(steps, maxsize):
    """Getters, putters, time-outs and kills in any order: items out are items in, in turn."""
    q, got, put, crowd = FairLifoQueue(maxsize), [], [], []
    for number, step in enumerate(steps):
        if step == "g":
            crowd.append(spawn(lambda: got.append(q.get())))
        elif step == "t":
            crowd.append(spawn(lambda: got.append(q.get(timeout=0))))
        elif step == "p":
            crowd.append(spawn(lambda n: (q.put(n), put.append(n)), number))
        elif crowd:
            crowd[number % len(crowd)].kill(block=False)
        gevent.sleep(0)
    settle()
    waiting = len(q._getters.waiters), len(q._putters.waiters)
    assert not (waiting[0] and q.qsize()), "somebody waits beside an item"
    assert not (waiting[1] and not q.full()), "somebody waits beside a free place"
    assert sorted([*got, *q.queue]) == sorted(put)
    for greenlet in crowd:
        greenlet.kill()
        greenlet.successful()


# In real libraries, each in a patched process of its own.


@pytest.fixture(params=["redis", "urllib3", "kombu"])
def user(request, start_server, http_server):
    def run(kind):
        port = http_server.port if request.param == "urllib3" else start_server(RedisServer).port
        done = subprocess.run(
            [sys.executable, "-m", "tests.queue_user", request.param, kind, str(port)],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run.library = request.param
    return run


def test_libraries_serve_in_order_with_a_fair_queue(user):
    result = user("fair")
    assert result["order"] == sorted(result["order"]) == list(range(20))
    assert result["waiters served while a greedy one uses the pool"] == 5
    assert result["after kills"] == "all served"
    assert result["foreign"] == []


def test_libraries_starve_waiters_with_their_own_queue(user):
    """The negative control, under gevent's patching."""
    assert user("theirs")["waiters served while a greedy one uses the pool"] == 0
