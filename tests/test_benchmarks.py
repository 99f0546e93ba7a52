"""The benchmarks run; how fast anything is, no test says.

`python -m benchmarks --smoke` runs one round of each row.  Peers that are not
installed are named by it, and left out.
"""

import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from benchmarks import harness, instructions, page
from benchmarks.__main__ import main, measure
from benchmarks.harness import Contender, Results, quartiles, run
from benchmarks.page import Section, better, goal, goals_table
from benchmarks.peers import LIBRARIES
from benchmarks.plots import bars, lines
from tests.databases import PostgresServer
from tests.servers import HttpServer, RedisServer, require_server

ROOT = Path(__file__).resolve().parent.parent
SERVERS = {"redis_get": RedisServer, "http_get": HttpServer, "sql": PostgresServer}


def smoke(*themes):
    command = [sys.executable, "-m", "benchmarks", "--smoke", *themes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [*re.findall(r"^(\w+): (?:1 rounds|once)", done.stdout, re.MULTILINE)] == [*themes]
    return done.stdout


def rows(text):
    """Return the cells of each row, by its first without the stars."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|"]
    return {cells[0].strip("*`"): cells[1:] for cells in found}


def numbers(cells):
    """Read what cells begin with; "-" is none."""
    return [float(cell.split()[0].replace(",", "")) for cell in cells if cell != "-"]


@pytest.mark.parametrize("theme", ["uncontended", "handover", "waiters"])
def test_every_pool_has_numbers(theme):
    text = smoke(theme)

    found = rows(text)
    left_out = re.findall("without (.+): not installed", text)
    for name in ("Pool", "ConnectionPool", "gevent.queue recipe", "eventlet.pools", "psycopg_pool"):
        missing = LIBRARIES[name].missing()
        assert (name in found) != bool(missing)
        assert all(module in left_out[0] for module in missing)
        assert all(number > 0 for number in numbers(found.get(name, [])))
    for name in ("Pool", "ConnectionPool"):
        assert len(numbers(found[name])) == len(found[name])


def test_fairness_is_a_count():
    found = rows(smoke("fairness"))

    for name in ("Pool", "ConnectionPool"):
        assert numbers(found[name])[2] >= 0.95
    assert numbers(found["gevent.queue recipe"])[2] < 0.5


def test_the_spike_ends_with_few_items():
    found = rows(smoke("creating"))

    spent, items, _ = numbers(found["ConnectionPool, max_creating=2"])
    assert items <= 5 + 2 * (1 + spent // 150)  # two more for each connect that it lasted
    assert 5 < numbers(found["gevent.queue recipe"])[1] <= 50


@pytest.mark.parametrize(
    ("theme", "ours"),
    [
        ("redis_get", ["RedisPool", "FairConnectionPool"]),
        ("http_get", ["HttpPool", "requests with FairHTTPAdapter", "urllib3 with FairPoolManager"]),
        ("sql", ["PostgresPool", "SQLAlchemy with FairPool"]),
    ],
)
def test_clients_of_a_real_server_have_numbers(theme, ours):
    require_server(SERVERS[theme])
    found = rows(smoke(theme))

    for name in ours:
        assert len(numbers(found[name])) == len(found[name])
        assert numbers(found[name])[0] > 0
        if theme != "sql":
            assert numbers(found[name])[-1] == 20  # connections opened, as the server counts


def test_import_of_gpools_loads_no_client_library():
    text = smoke("importing")

    assert numbers(rows(text)["import gpools"])[0] > 0
    assert "| none loaded | **met** |" in text


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_are_counted():
    found = rows(smoke("instructions"))

    assert numbers(found["floor"])[1] == 1
    assert all(number > 0 for number in numbers(found["Pool"]))


def test_instructions_are_not_counted_where_valgrind_is_not(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)

    section = instructions.report(instructions.measure(quick=True))

    assert "valgrind is not installed" in section.text
    assert [each.met for each in section.goals] == [None]


def theme_of(**contenders):
    """A theme whose contenders a worker finds in `benchmarks.fairness`."""
    return SimpleNamespace(__name__="benchmarks.fairness", contenders=lambda: contenders)


def test_who_is_not_installed_is_named_and_left_out():
    theme = theme_of(Pool=Contender(None), Other=Contender(None, missing=("no_such_module",)))

    results = run(theme, 0, {"quick": True})

    assert results.names == ["Pool"]
    assert results.missing == {"Other": ("no_such_module",)}
    assert results.ratios("Other", "Pool", "least") is None


def test_a_contender_that_fails_ends_the_run_with_its_name_and_error():
    theme = theme_of(Unheard=Contender(None))

    with pytest.raises(RuntimeError, match=r"(?s)Unheard: Traceback.*KeyError"):
        run(theme, 0, {"quick": True})


def test_a_contender_that_hangs_ends_the_run(monkeypatch):
    monkeypatch.setattr(harness, "HANG", 0.0)

    with pytest.raises(RuntimeError, match="Pool hung for 0 s"):
        run(theme_of(Pool=Contender(None)), 0, {"quick": True})


def test_rounds_go_on_until_the_time_is_over_and_what_they_count_is_added_up():
    ticks = count()

    results = run(theme_of(Pool=Contender(None)), 0, {"quick": False}, lambda: next(ticks))

    assert len(results.rounds) == 3
    assert sum(results.all("Pool", "counted")) == 4  # one of them from setting up


def test_ratios_are_taken_within_rounds():
    results = Results([{"a": {"ns": 2}, "b": {"ns": 1}}, {"a": {"ns": 80}, "b": {"ns": 20}}], {})

    assert results.ratios("a", "b", "ns") == (3, 2.5, 3.5)
    assert quartiles([7]) == (7, 7, 7)


def test_goals_say_whether_they_are_met():
    goals = [
        goal("small", (1.25, 1.2, 1.4), 1.3),
        goal("large", (3.0, 2, 4), least=4),
        goal("not there", None, 1),
    ]

    assert goals_table(goals).splitlines()[2:] == [
        "| small | 1.25 (1.20 to 1.40) | **met** |",
        "| large | 3.00 (2.00 to 4.00) | not met |",
        "| not there | not measured | - |",
    ]


def test_others_that_are_ahead_are_named():
    values = [("ours", 5, True), ("slow", 9, False), ("quick", 2, False)]

    assert better("A get", values, "us") == ("A get, us: quick (2); ours at best 5 (ours)",)
    assert better("A rate", values, "/s", more=True) == (
        "A rate, /s: slow (9); ours at best 5 (ours)",
    )
    assert better("A get", values[:2], "us") == ()


@pytest.mark.parametrize(
    "picture",
    [
        bars("A <title>", "unit of x", [("one", 3.5, True), ("two", 700, False)], ("goal", 9)),
        lines(
            "A <title>",
            "x",
            "unit of x",
            {"one": ([(10, 1), (99, 2)], True), "two": ([(10, 3.5), (99, 700)], False)},
        ),
    ],
)
def test_plots_can_be_read_on_their_own(picture):
    root = ElementTree.fromstring(picture)
    words = [element.text for element in root.iter() if element.text and element.text.strip()]

    assert words.count("A <title>") == 2  # its name, and what is shown
    assert {"unit of x", "one", "two"} <= {*words}


def test_page_is_written_in_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "benchmarks.md")
    goals = [goal("fast", (1, 1, 1), 2), goal("faster", (3, 3, 3), 2)]
    section = Section("Speed", "Text.\n", goals, {"speed": "<svg/>"}, ("A get: quick",))

    page.write({"date": "today"}, {"speed": (section, "4 rounds")})

    text = (tmp_path / "benchmarks.md").read_text()
    for line in (
        "- date: today",
        "1 of 2 are met.",
        "## Speed",
        "- A get: quick",
        "- speed: 4 rounds",
    ):
        assert line in text
    assert "![Speed](benchmarks/speed.svg)" in text
    assert (tmp_path / "benchmarks" / "speed.svg").read_text() == "<svg/>"


def test_a_part_that_breaks_off_is_told_and_the_others_go_on(monkeypatch, capsys):
    def measure(name, smoke):
        if name == "fairness":
            raise RuntimeError("no greenlets\nand more")
        return Section("Others", "Text.", [], {}), "2 rounds"

    monkeypatch.setattr("benchmarks.__main__.measure", measure)

    assert main(["--smoke", "fairness", "sql"]) == 1
    said = capsys.readouterr().out
    assert "This part broke off: no greenlets\n\nfairness: broke off\n" in said
    assert "sql: 2 rounds" in said


def test_a_server_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(RedisServer, "binary", classmethod(lambda cls: None))

    with pytest.raises(RuntimeError, match="no redis-server on the PATH"):
        measure("redis_get", smoke=True)


def test_the_page_is_not_written_from_a_part():
    command = [sys.executable, "-m", "benchmarks", "--write", "fairness"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "whole run" in done.stderr
