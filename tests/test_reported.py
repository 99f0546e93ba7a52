"""What a reader who tried to break the pools has broken, each kept as a test."""

import gc
import os
import weakref
from contextlib import suppress

import pytest

from gpools import CoDel, ConnectionPool, PoolClosed
from tests.hostile import Gate
from tests.waiting import settle


def test_an_error_of_the_block_is_not_hidden_where_fit_after_discards_the_item():
    pool = ConnectionPool(create=object)
    pool.fit_after = lambda item, error: pool.discard(item)
    with pytest.raises(KeyError, match="mine"), pool.item():
        raise KeyError("mine")

    assert pool.current_size == 0


def test_one_item_that_cannot_name_its_descriptor_does_not_leave_the_others_to_the_child():
    readers = [os.pipe() for _ in range(2)]

    class Item:
        def __init__(self):
            self.fd = readers.pop()[0]

        def fileno(self):
            return self.fd

    class Mute(ConnectionPool):
        def _filenos(self, item):
            if item is first:
                raise RuntimeError("no idea")
            return super()._filenos(item)

    pool = Mute(create=Item)
    first, second = pool.get(), pool.get()
    pid = os.fork()
    if pid == 0:
        target = ""
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{second.fd}")
        os._exit(0 if target == "/dev/null" and pool.current_size == 0 else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_closed_pool_dies_at_once():
    gc.disable()
    try:
        pool = ConnectionPool(create=object)
        pool.put(pool.get())
        pool.close()
        with pytest.raises(PoolClosed, match="is closed"):
            pool.get()
        settle()
        gone = weakref.ref(pool)
        del pool
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"shed": CoDel}, "shed must be a CoDel"),
        ({"shed": True}, "shed must be a CoDel"),
        ({"max_creating": 1.5}, "max_creating must be a whole number"),
        ({"max_waiting": 1.5}, "max_waiting must be a whole number"),
        ({"timeout": "5"}, "timeout must be a number, or None, not '5'"),
        ({"max_age": "5"}, "max_age must be a number"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named_at_once(setting, says):
    gate = Gate()
    with pytest.raises(TypeError, match=says):
        ConnectionPool(min_size=1, create=gate.create, **setting)

    assert gate.created == 0
