"""Counting switches of greenlets, and files with high numbers."""

import resource

import greenlet
import pytest

__all__ = ["high_fds", "switches"]


class switches:
    """Count how often greenlets switch: `with switches() as count: ...; count()`."""

    def __enter__(self):
        self.seen = 0
        self.before = greenlet.settrace(self.trace)
        return lambda: self.seen

    def trace(self, event, ends):
        self.seen += 1

    def __exit__(self, *error):
        greenlet.settrace(self.before)


@pytest.fixture
def high_fds():
    """Have all files opened from now on get a number beyond those that select() knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("too few files may be open")
    if soft < 2048:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    files = [open("/dev/null")]  # noqa: SIM115
    while files[-1].fileno() < 1024:
        files.append(open("/dev/null"))  # noqa: SIM115
    yield
    for file in files:
        file.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
