"""A limit on the items of several pools together: `ConnectionPool(limiter=)`."""

import gc
import random
import time
from functools import partial
from types import SimpleNamespace

import gevent
import pytest
from gevent.event import Event

from gpools import ConnectionPool, PoolTimeout, TokenPool
from gpools.fleet import DistributedTokenPool
from tests.test_fork import Child, Wires
from tests.waiting import settle, spawn, until


class Item:
    pass


@pytest.fixture(params=["local", "fleet"])
def limiter(request):
    """A limit of two."""
    if request.param == "local":
        yield TokenPool(max_size=2)
        return
    server = request.getfixturevalue("redis_server")
    with DistributedTokenPool(server.url, request.node.name, 2, lease=5.0, grace=0) as pool:
        yield pool


def pool_of(limiter, create=Item, **settings):
    return ConnectionPool(max_size=5, create=create, limiter=limiter, **settings)


def all_free(limiter):
    """Take all tokens and put them back: none is lost, and there are no others."""
    tokens = [limiter.get(timeout=2) for _ in range(2)]
    with pytest.raises(PoolTimeout):
        limiter.get(timeout=0.05)
    for token in tokens:
        limiter.put(token)
    return True


def test_two_pools_share_the_limit(limiter):
    one, two = pool_of(limiter), pool_of(limiter)
    a, b = one.get(), two.get()
    with pytest.raises(PoolTimeout):
        two.get(timeout=0.05)
    waiter = spawn(two.get)
    settle()
    one.discard(a)
    two.discard(waiter.get(timeout=2))
    two.discard(b)
    assert all_free(limiter)


def test_an_idle_item_keeps_its_token_and_goes_out_without_another(limiter):
    one, two = pool_of(limiter), pool_of(limiter)
    one.put(one.get())
    two.put(two.get())
    with one.item(), two.item():
        pass
    with pytest.raises(PoolTimeout):
        limiter.get(timeout=0.05)
    one.close(), two.close()
    assert all_free(limiter)


def test_who_waits_for_the_limit_and_is_alone_waits_for_the_sweep_of_another_pool():
    """In a thread of its own, whose hub has nothing else to do."""

    def alone():
        limiter = TokenPool(max_size=1)
        one, two = pool_of(limiter, max_idle=0.01), pool_of(limiter)
        one.put(one.get())
        two.put(two.get())
        gevent.get_hub().destroy(destroy_loop=True)
        return one.current_size, two.current_size

    assert gevent.get_hub().threadpool.apply(alone) == (0, 1)


def test_the_token_is_taken_before_create_and_comes_back_when_it_fails(limiter):
    seen = []

    def create():
        seen.append(limiter.free())
        raise OSError("no")

    pool = pool_of(limiter, create)
    limiter.put(limiter.get())
    with pytest.raises(OSError, match="no"):
        pool.get()
    assert seen == [1]
    assert all_free(limiter)


def test_a_kill_while_waiting_for_the_limit_leaves_slot_and_token(limiter):
    pool = pool_of(limiter)
    held = [limiter.get(), limiter.get()]
    waiters = [spawn(pool.get) for _ in range(3)]
    settle()
    gevent.killall(waiters)
    for token in held:
        limiter.put(token)
    assert pool.current_size == 0
    assert all_free(limiter)


def test_a_kill_in_create_gives_the_token_back(limiter):
    gate = Event()
    pool = pool_of(limiter, gate.wait)
    makers = [spawn(pool.get) for _ in range(2)]
    until(lambda: not limiter.free())
    gevent.killall(makers)
    assert pool.current_size == 0
    assert all_free(limiter)


def test_a_token_comes_back_only_when_the_item_is_gone(limiter):
    gate = Event()
    pool = pool_of(limiter, destroy=lambda item: gate.wait())
    a, b = pool.get(), pool.get()
    pool.discard(a), pool.discard(b)
    with pytest.raises(PoolTimeout):
        limiter.get(timeout=0.05)
    gate.set()
    assert all_free(limiter)


def test_a_pool_that_is_dropped_without_close_gives_its_tokens_back(limiter):
    """They went with the pool, and nobody ever had them again."""
    pool = pool_of(limiter)
    idle, held = pool.get(), pool.get()
    pool.put(idle)
    del pool, idle
    gc.collect()
    token = limiter.get(timeout=2)
    with pytest.raises(PoolTimeout):
        limiter.get(timeout=0.05)
    limiter.put(token)

    assert held is not None
    del held
    gc.collect()
    assert all_free(limiter)


def test_a_dropped_pool_that_had_the_limit_by_a_wrapper_of_its_own_gives_its_tokens_back(limiter):
    """Nobody else has the wrapper, so it must last as long as the items."""
    bounded = SimpleNamespace(get=partial(limiter.get, timeout=2), put=limiter.put)
    pool = pool_of(bounded)
    held = pool.get()
    pool.put(pool.get())
    del pool, bounded
    gc.collect()
    assert held is not None
    del held
    gc.collect()
    assert all_free(limiter)


def test_items_that_nothing_can_refer_to_weakly_have_tokens_too(limiter):
    pool = pool_of(limiter, list)
    pool.put(pool.get())
    pool.close()
    assert all_free(limiter)


def test_a_limiter_that_takes_no_token_of_a_dropped_pool_is_logged(caplog):
    class Broken(TokenPool):
        def put(self, token):
            raise OSError("the limiter is gone")

    pool = pool_of(Broken(max_size=2))
    pool.put(pool.get())
    del pool
    gc.collect()
    settle()
    assert "limiter.put failed: OSError" in caplog.text


def test_a_collected_item_gives_its_token_back(limiter):
    pool = pool_of(limiter)
    pool.get(), pool.get()
    gc.collect()
    until(lambda: pool.current_size == 0)
    assert all_free(limiter)


def test_creations_in_the_background_let_a_returned_item_come_first(limiter):
    pool = pool_of(limiter, max_creating=2)
    a, b = pool.get(), pool.get()
    waiter = spawn(pool.get)
    settle()
    pool.put(a)
    assert waiter.get(timeout=2) is a
    pool.discard(a), pool.discard(b)
    until(lambda: pool.stats().creating == 0)
    pool.close()
    assert all_free(limiter)


def test_a_limiter_that_fails_costs_no_slot(caplog):
    class Broken:
        get = object

        def put(self, token):
            raise OSError("down")

    pool = pool_of(Broken())
    pool.discard(pool.get())
    settle()
    assert pool.current_size == 0
    assert "limiter.put failed" in caplog.text


def test_what_is_no_limiter_is_refused():
    with pytest.raises(TypeError, match="pool of tokens"):
        pool_of(5)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_begins_with_all_tokens_of_a_local_limiter():
    wires = Wires()
    limiter = TokenPool(max_size=2)
    pool = pool_of(limiter, wires)
    held = pool.get()
    pool.put(pool.get())

    def child():
        return len([pool.get(timeout=1) for _ in range(2)]), limiter.free()

    assert Child(child, gevent.os.fork).result() == (2, 0)
    assert limiter.free() == 0
    pool.put(held)
    pool.close()
    assert limiter.free() == 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_writes_nothing_on_the_connection_of_a_fleets_limiter(redis_server):
    """The child gave its items' tokens back to it, which with a lapsed lease tells the server."""
    with DistributedTokenPool(redis_server.url, "of a child", 2, lease=0.3, grace=0) as limiter:
        pool = pool_of(limiter, Wires())
        pool.put(pool.get())
        limiter.stats()
        member, said = limiter._member(), []
        time.sleep(0.4)  # not gevent's: the lease ends
        link_of_parent = member.link
        link_of_parent.run, run = lambda *words: said.append(words), link_of_parent.run
        child = Child(lambda: len(said), gevent.os.fork)
        link_of_parent.run = run
        assert child.result() == 0
        assert len(limiter.stats().members) == 1
        pool.close()


def test_aborted_at_random_moments_no_token_leaks(limiter):
    rng = random.Random(5)

    def create():
        gevent.sleep(rng.random() * 0.001)
        if rng.random() < 0.2:
            raise OSError("no")
        return Item()

    def destroy(item):
        gevent.sleep(rng.random() * 0.001)

    pools = [pool_of(limiter, create, destroy=destroy) for _ in range(3)]

    def user(pool):
        for _ in range(60):
            try:
                with gevent.Timeout(rng.random() * 0.006), pool.item():
                    gevent.sleep(rng.random() * 0.002)
                    if rng.random() < 0.3:
                        raise ValueError
            except (OSError, ValueError, gevent.Timeout):
                pass

    gevent.joinall([spawn(user, pool) for pool in pools for _ in range(6)], raise_error=True)
    for pool in pools:
        pool.close()
    until(lambda: all(pool.current_size == 0 for pool in pools))
    assert all_free(limiter)
