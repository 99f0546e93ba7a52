"""The demo: it judges rightly, says so, and leaves nothing behind."""

import contextlib
import signal
import subprocess
import sys
from argparse import Namespace
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
from gevent import socket

from demo import run, screen
from demo.storm import HttpSide, RedisSide
from demo.verdict import PROMISES, Result, broken, verdict
from tests.servers import HttpServer, RedisServer, require_server
from tests.waiting import settle, spawn, until

ROOT = Path(__file__).resolve().parent.parent

GOOD = Result(
    side="HTTP",
    recipe="gpools",
    max_size=5,
    done=1000,
    before=140.0,
    after=139.0,
    p50=0.001,
    p99=0.02,
    timed_out=100,
    killed=50,
    server_gone=7,
    peak=5,
    opened=300,
    lost=0,
    stuck=0,
)
BREACHES = {
    "an answer went to another": ("strange", {"strange": 1}, "1 answers to somebody"),
    "a wrong database answered": ("astray", {"astray": 2}, "2 answers from somebody else's"),
    "a slot was lost": ("lost", {"lost": 1}, "lost 1 of its 5 slots"),
    "nobody counted the slots": ("lost", {"lost": None}, r"lost \? of its 5 slots"),
    "a greenlet hangs": ("stuck", {"stuck": 3}, "left 3 greenlets hanging"),
    "nobody waited for the greenlets": ("stuck", {"stuck": None}, r"left \? greenlets"),
    "one connection too many": ("peak", {"peak": 6}, "6 connections open at once"),
    "the server saw nobody": ("peak", {"peak": 0}, "0 connections open at once"),
    "an error of its own": ("unexpected", {"unexpected": {"NotInUse": 2}}, "NotInUse x 2"),
    "nothing works after the storm": ("after", {"after": 0.0}, "0 requests a second"),
    "hardly anything does": ("after", {"after": 30.0}, "30 requests a second"),
    "nothing worked before it": ("after", {"before": 0.0}, "0 before it"),
    "no Timeout hit": ("cut_off", {"timed_out": 0}, "0 Timeouts"),
    "no kill hit": ("cut_off", {"killed": 0}, "0 kills"),
}


def test_all_promises_kept_is_exit_status_0():
    assert verdict([GOOD, replace(GOOD, side="Redis")]) == (0, [])


@pytest.mark.parametrize("breach", BREACHES)
def test_each_broken_promise_is_exit_status_1_by_itself(breach):
    row, change, words = BREACHES[breach]
    bad = replace(GOOD, **change)

    assert list(broken(bad)) == [row]
    status, complaints = verdict([replace(GOOD, side="Redis"), bad])
    assert status == 1
    [complaint] = complaints
    assert complaint.startswith("HttpPool ")
    with pytest.raises(ValueError, match=words):
        raise ValueError(complaint)


def test_every_promise_has_a_breach_among_the_tests():
    assert {row for row, _, _ in PROMISES} == {row for row, _, _ in BREACHES.values()}


def test_what_a_naive_pool_breaks_is_shown_and_not_held_against_gpools():
    naive = replace(GOOD, recipe="finally", strange=9, lost=5)

    assert set(broken(naive)) == {"strange", "lost"}
    assert verdict([GOOD, naive]) == (0, [])


def test_without_gpools_nothing_is_proved():
    assert verdict([replace(GOOD, recipe="finally")])[0] == 1
    assert verdict([])[0] == 1


def test_every_promise_about_the_pool_is_a_row_of_the_table():
    shown = {row[1] for row in screen.rows(5) if row}
    assert shown - {None} == {row for row, _, _ in PROMISES} - {"cut_off"}


def test_a_broken_promise_is_said_in_the_last_lines():
    last = [str(line) for line in screen.closing([replace(GOOD, strange=1, lost=2)])]

    assert last == [
        "PROMISE BROKEN: HttpPool gave 1 answers to somebody who had not asked",
        "PROMISE BROKEN: HttpPool lost 2 of its 5 slots",
        "gpools did NOT keep its promises",
    ]


def test_without_a_redis_server_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(RedisServer, "binary", classmethod(lambda cls: None))

    assert run.run(Namespace(plain=True, greenlets=1)) == 2
    assert "no redis-server on the PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("side_class", "request_"),
    [(HttpSide, b"GET / HTTP/1.1\r\n\r\n"), (RedisSide, b"WAIT 1 20\r\n")],
)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_server_slow_to_see_a_hang_up_does_not_count_too_many(side_class, request_, before):
    """A starved server finds the new connection, the end of the old and our question at once."""
    side = side_class()
    require_server(type(side.server))

    def replace_oldest():
        open_ones.popleft().close()
        open_ones.append(socket.create_connection(side.server.address))
        open_ones[-1].sendall(request_)

    with side.server:
        open_ones = deque(socket.create_connection(side.server.address) for _ in range(5))
        for _ in range(20):
            side.watch()
            side.server.freeze()
            for _ in range(before):
                replace_oldest()
            question = spawn(side.watch)
            settle()
            replace_oldest()
            side.server.thaw()
            question.get()
        until(lambda: side.watch() or side.peak >= 5)
        assert side.peak == 5
        for connection in open_ones:
            connection.close()


class Demo:
    """A demo running by itself, and all that it has started."""

    def __init__(self, *options, code="import demo.__main__"):
        require_server(RedisServer)
        require_server(HttpServer)
        patched = f"from gevent import monkey; monkey.patch_all()\n{code}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", patched, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # by which its family is known
            # Where pytest runs in the background, Ctrl-C may be ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def end(self):
        """Wait for its end; return its status and what it printed."""
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output

    def family(self):
        """List the pids of it and of its descendants, orphans too."""
        if not Path("/proc/self/stat").exists():
            pytest.skip("sees the processes of others by /proc only")
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found


def test_a_short_run_shows_the_table_and_leaves_no_process_behind():
    with Demo("--seconds", "4", "--greenlets", "30") as demo:
        until(lambda: len(demo.family()) == 7)  # itself, 3 HTTP servers, 3 redis-servers
        status, output = demo.end()

        assert status == 0, output
        assert demo.family() == []
    lines = output.splitlines()
    for label, *_ in filter(None, screen.rows(5)):
        assert any(label in line for line in lines), label
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in output
    assert "Traceback" not in output
    assert lines[-1].startswith("gpools kept its promises: ")


IMPOSTORS = {
    "HttpSide": ("FinallyPool", "PROMISE BROKEN: HttpPool gave "),
    "RedisSide": ("ExceptPool", "PROMISE BROKEN: RedisPool lost "),
}


@pytest.mark.parametrize("side", IMPOSTORS)
def test_a_naive_pool_that_passes_for_gpools_is_found_out(side):
    naive, complaint = IMPOSTORS[side]
    code = (
        "from demo import naive, storm\n"
        f"storm.{side}.gpools = lambda self: naive.{naive}(storm.MAX_SIZE, self.client)\n"
        "import demo.__main__"
    )

    with Demo("--seconds", "4", "--greenlets", "30", code=code) as demo:
        status, output = demo.end()

    assert status == 1, output
    assert complaint in output
    assert output.splitlines()[-1] == "gpools did NOT keep its promises"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
@pytest.mark.parametrize("when", ["starting", "running"])
def test_interrupted_it_leaves_no_process_behind(number, status, when):
    with Demo("--seconds", "30", "--greenlets", "30") as demo:
        until(lambda: len(demo.family()) > 3)
        if when == "running":
            assert "pools of" in demo.process.stdout.readline()
            assert "All is well" in demo.process.stdout.readline()
        demo.process.send_signal(number)
        ended, output = demo.end()

        assert ended == status, output
        assert "Traceback" not in output
        until(lambda: demo.family() == [])
