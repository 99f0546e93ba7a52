"""psycopg waiting with gevent, for tests that do not patch the whole process."""

import gevent.lock
import gevent.select
import gevent.selectors
import psycopg
import pytest
from gevent import socket

__all__ = ["cooperative_psycopg"]


@pytest.fixture
def cooperative_psycopg(monkeypatch):
    """Have psycopg wait as it does under gevent.monkey.patch_all()."""
    waiting = psycopg.waiting
    monkeypatch.setattr(waiting, "wait", waiting.wait_poll)
    monkeypatch.setattr(waiting, "select", gevent.select)
    monkeypatch.setattr(waiting, "DefaultSelector", gevent.selectors.DefaultSelector)
    monkeypatch.setattr(psycopg._conninfo_attempts, "socket", socket)
    for module in (psycopg.connection, psycopg._acompat):
        monkeypatch.setattr(module, "Lock", gevent.lock.BoundedSemaphore)
