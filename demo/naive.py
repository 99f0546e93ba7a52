"""The pools that everybody writes: a queue of clients, made as they are needed.

Both are fair, never make more than *max_size*, and are as fast as gpools while
nothing goes wrong.  They differ from each other only in what they do with a
client after an error, and each is wrong in its own way.
"""

from contextlib import contextmanager

from gevent.queue import Empty, Queue


class NaivePool:
    def __init__(self, max_size, create):
        self.max_size = max_size
        self.create = create
        self.made = 0
        self.idle = Queue()

    def get(self, timeout=None):
        try:
            return self.idle.get_nowait()
        except Empty:
            if self.made < self.max_size:
                self.made += 1
                return self.create()  # connects when it is used: cannot fail here
            return self.idle.get(timeout=timeout)

    def put(self, client):
        self.idle.put(client)

    def close(self):
        """Nothing to do: the clients close with the program."""


class FinallyPool(NaivePool):
    """Whatever happens, the client goes back: no slot is ever lost.

    But after a kill or a Timeout it goes back in the middle of a request.
    """

    @contextmanager
    def item(self, timeout=None):
        client = self.get(timeout)
        try:
            yield client
        finally:
            self.put(client)


class ExceptPool(NaivePool):
    """After an error the client is dropped: nobody gets one with a past.

    But a kill and a gevent.Timeout are no `Exception`.
    """

    @contextmanager
    def item(self, timeout=None):
        client = self.get(timeout)
        try:
            yield client
        except Exception:
            self.made -= 1
            raise
        else:
            self.put(client)
