"""redis-py and httplib2 on gevent's sockets, for tests that do not patch the whole process."""

import gevent.socket
import gevent.ssl
import httplib2
import pytest
import redis.connection
import urllib3

__all__ = ["cooperative", "cooperative_urllib3"]


@pytest.fixture
def cooperative(monkeypatch):
    """Have the client libraries switch greenlets where they wait for a socket."""
    for module in (redis.connection, httplib2):
        monkeypatch.setattr(module, "socket", gevent.socket)
        monkeypatch.setattr(module, "ssl", gevent.ssl)


@pytest.fixture
def cooperative_urllib3(monkeypatch):
    """Have urllib3, and requests with it, switch greenlets where it waits for a socket."""
    monkeypatch.setattr(urllib3.util.connection, "socket", gevent.socket)
    monkeypatch.setattr(urllib3.util.ssl_, "SSLContext", gevent.ssl.SSLContext)
