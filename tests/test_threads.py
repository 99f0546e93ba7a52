"""A pool belongs to the thread that uses it first; every other one is refused."""

import queue
import threading

import gevent
import pytest
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from gpools import ConnectionPool, HubWouldBlock, Pool, WrongThread
from tests.hostile import Gate, full_check
from tests.waiting import settle, spawn, until

start_new_thread = get_original("_thread", "start_new_thread")
SimpleQueue = get_original("queue", "SimpleQueue")
Thread = get_original("threading", "Thread")


def in_thread(act, name="other"):
    """Run *act* in a thread of its own; return what it returned or raised."""
    answers = SimpleQueue()

    def run():
        try:
            answers.put(act())
        except BaseException as error:
            answers.put(error)
        finally:
            if (hub := gevent._hub_local.get_hub_if_exists()) is not None:
                hub.destroy(destroy_loop=True)

    thread = Thread(target=run, name=name, daemon=True)
    thread.start()
    until(lambda: not answers.empty(), timeout=20)
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    return answers.get_nowait()


def in_threadpool(act):
    """The same in a thread of gevent's."""

    def run():
        try:
            return act()
        except BaseException as error:
            return error

    pool = ThreadPool(1)
    try:
        return pool.spawn(run).get(timeout=20)
    finally:
        pool.kill()


@pytest.fixture(params=[in_thread, in_threadpool])
def elsewhere(request):
    return request.param


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def pool(gate):
    """One item idle, one in use, used by this thread."""
    pool = ConnectionPool(max_size=2, **gate.verbs)
    pool.held = pool.get()
    pool.put(pool.get())
    return pool


USES = {
    "get": lambda pool: pool.get(),
    "get with a timeout": lambda pool: pool.get(timeout=0.01),
    "put": lambda pool: pool.put(pool.held),
    "discard": lambda pool: pool.discard(pool.held),
    "item": lambda pool: pool.item().__enter__(),
    "recycle": lambda pool: pool.recycle(),
    "resize": lambda pool: pool.resize(5),
    "close": lambda pool: pool.close(),
}


@pytest.mark.parametrize("use", USES)
def test_another_thread_is_refused_and_nothing_is_changed(pool, gate, elsewhere, use):
    before = pool.stats(), repr(pool), pool.max_size
    assert isinstance(elsewhere(lambda: USES[use](pool)), WrongThread)
    assert (pool.stats(), repr(pool), pool.max_size) == before
    assert not pool.closed

    pool.put(pool.held)
    full_check(pool, gate)


def test_the_error_names_both_threads(pool):
    error = in_thread(pool.get, name="intruder")
    here = threading.current_thread()
    assert isinstance(error, RuntimeError)
    assert str(error).startswith(
        f"this ConnectionPool belongs to thread {here.name!r} ({here.ident}) "
        "and was used in thread 'intruder' ("
    )
    assert str(error).endswith("make a pool for each thread")


def test_wait_ready_in_another_thread_takes_no_slot(pool, elsewhere):
    pool.resize(4)
    pool.min_size = 3
    assert isinstance(elsewhere(pool.wait_ready), WrongThread)
    assert pool.current_size == 2


def test_a_full_pool_refuses_at_once_too(elsewhere):
    """To wait there would be to wait for ever: nobody could switch to it."""
    pool = ConnectionPool(max_size=1, create=Gate())
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    assert isinstance(elsewhere(pool.get), WrongThread)
    assert pool.waiting() == 1
    pool.put(item)
    settle()
    assert waiter.get(block=False) is item


def test_a_pool_made_here_may_be_used_there(elsewhere):
    """Its first use decides, so that a module may make one for a worker thread."""
    pool = ConnectionPool(max_size=1, create=Gate())
    item = elsewhere(pool.get)
    assert item.number == 1
    with pytest.raises(WrongThread):
        pool.put(item)


def test_a_pool_with_items_made_by_the_constructor_belongs_to_its_thread(elsewhere):
    pool = ConnectionPool(1, 2, create=Gate())
    assert isinstance(elsewhere(pool.get), WrongThread)


def test_what_shows_a_pool_works_from_everywhere(pool, elsewhere):
    """Monitoring runs in threads of its own."""
    look = (pool.stats, pool.free, pool.waiting, pool.__repr__)
    there = elsewhere(lambda: [see() for see in look])
    assert there == [see() for see in look]
    [hold] = elsewhere(pool.holders)
    assert hold.item is pool.held
    assert " by <greenlet 'main'>" in elsewhere(lambda: str(hold))


def test_greenlets_of_one_thread_are_no_threads(pool):
    def use():
        with pool.item() as item:
            item.use()

    users = [spawn(use) for _ in range(5)]
    gevent.joinall(users, timeout=10)
    assert all(user.successful() for user in users)


def test_each_thread_with_a_pool_of_its_own():
    def work():
        own = ConnectionPool(max_size=2, max_creating=1, **Gate().verbs)
        users = [gevent.spawn(use, own) for _ in range(20)]
        gevent.joinall(users, timeout=10)
        return sum(user.value for user in users), own.current_size

    def use(own):
        with own.item(timeout=10) as item:
            item.use(0.0001)
            return 1

    for count, size in [in_thread(work), in_thread(work), in_threadpool(work)]:
        assert count == 20
        assert 1 <= size <= 2


# A plain Pool does not know its thread; it knows who waits.


@pytest.mark.parametrize("times", [1, 5])
def test_a_put_from_another_thread_reaches_who_waits_here(elsewhere, times):
    pool = Pool(max_size=times, create=object)
    items = [pool.get() for _ in range(times)]
    waiters = [spawn(pool.get) for _ in range(times)]
    settle()

    def put_all():
        for item in items:
            pool.put(item)

    assert elsewhere(put_all) is None
    until(lambda: all(waiter.ready() for waiter in waiters))
    assert {id(waiter.get()) for waiter in waiters} == set(map(id, items))
    assert pool.free() == 0
    assert pool.waiting() == 0


def test_a_hub_that_sleeps_is_woken_by_a_put_from_another_thread():
    """Not by its next timer: there is none."""
    pool = Pool(max_size=1, create=object)
    item = pool.get()
    got = SimpleQueue()
    begin = get_original("threading", "Event")()

    def put_later():
        begin.wait(20)
        pool.put(item)

    Thread(target=put_later, daemon=True).start()
    hub = gevent.get_hub()
    hub.loop.run_callback(begin.set)
    with gevent.Timeout(20, AssertionError("never woken")):
        got.put(pool.get())
    assert got.get_nowait() is item


def test_a_get_there_while_greenlets_wait_here_is_refused(elsewhere):
    pool = Pool(max_size=1, create=object)
    item = pool.get()
    waiter = spawn(pool.get)
    settle()
    error = elsewhere(pool.get)
    assert isinstance(error, WrongThread)
    assert "wait for this pool" in str(error)
    assert pool.waiting() == 1
    pool.put(item)
    settle()
    assert waiter.get(block=False) is item


def test_a_get_there_takes_what_is_idle(elsewhere):
    pool = Pool(max_size=2, create=object)
    item = pool.get()
    pool.put(item)
    assert elsewhere(pool.get) is item
    assert pool.current_size == 1


def test_threads_in_turn_wait_for_a_plain_pool():
    """The line belongs to a thread only while somebody stands in it."""
    pool = Pool(max_size=1, create=object)
    item = pool.get()

    def wait_there():
        gevent.spawn(pool.put, item)
        return pool.get(timeout=10)

    assert in_thread(wait_there) is item
    gevent.spawn(pool.put, item)
    assert pool.get(timeout=10) is item


def test_nobody_hangs_where_threads_put_and_greenlets_get():
    pool = Pool(max_size=3, create=object)
    returned, done = SimpleQueue(), []

    def give_back():
        while (item := returned.get()) is not None:
            pool.put(item)

    threads = [Thread(target=give_back, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()

    def user():
        for _ in range(30):
            returned.put(pool.get(timeout=20))
            done.append(1)
            gevent.sleep(0)

    users = [spawn(user) for _ in range(8)]
    gevent.joinall(users, timeout=30)
    for _ in threads:
        returned.put(None)
    for thread in threads:
        thread.join(10)
    settle()
    assert all(user.successful() for user in users)
    assert len(done) == 240
    assert pool.free() == 3
    assert pool.waiting() == 0


def test_the_hub_itself_is_refused_where_it_would_wait(pool):
    held = pool.get()
    answers = queue.SimpleQueue()

    def in_hub():
        try:
            pool.get(timeout=1)
        except HubWouldBlock as error:
            answers.put(error)

    gevent.get_hub().loop.run_callback(in_hub)
    settle()
    assert isinstance(answers.get_nowait(), HubWouldBlock)
    assert pool.waiting() == 0
    pool.put(held)
