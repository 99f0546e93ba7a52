"""Waiting in tests: for everything to block, or for a claim to come true."""

import weakref

import gevent

__all__ = ["Watched", "settle", "spawn", "until", "watched"]


def settle():
    """Run every other greenlet until all of them are blocked.  Switches.

    Only what happens in this process settles: an answer from another process
    may still be on its way, for that there is `until`.
    """
    for _ in range(5):
        gevent.idle()


def until(claim, timeout=10.0):
    """Wait until *claim*() is true and return what it returned.  Switches.

    *timeout* is the time after which the test is broken, not one to measure by.
    """
    with gevent.Timeout(timeout, AssertionError(f"not so within {timeout} s: {claim}")):
        while not (result := claim()):
            gevent.sleep(0.002)
        return result


watched = weakref.WeakSet()  # all Watched greenlets that are not garbage


class Watched(gevent.Greenlet):
    """A greenlet that knows whether anybody has looked at how it ended.

    The hub prints the error of every greenlet, also of one whose error the
    test expects and asserts on.  conftest lets a test pass only if each error
    printed belongs to a greenlet that was looked at, and kills those that the
    test has left behind.
    """

    looked_at = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        watched.add(self)

    @property
    def exception(self):
        self.looked_at = True
        return super().exception

    @property
    def exc_info(self):
        self.looked_at = True
        return super().exc_info

    def successful(self):
        self.looked_at = True
        return super().successful()

    def get(self, *args, **kwargs):
        self.looked_at = True
        return super().get(*args, **kwargs)


spawn = Watched.spawn
