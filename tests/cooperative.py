"""redis-py and httplib2 on gevent's sockets, for tests that do not patch the whole process."""

import gevent.socket
import gevent.ssl
import httplib2
import pytest
import redis.connection

__all__ = ["cooperative"]


@pytest.fixture
def cooperative(monkeypatch):
    """Have the client libraries switch greenlets where they wait for a socket."""
    for module in (redis.connection, httplib2):
        monkeypatch.setattr(module, "socket", gevent.socket)
        monkeypatch.setattr(module, "ssl", gevent.ssl)
