"""The scorecard: it is made by one command, and ours lose nothing on it."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo.scorecard.contenders import CONTENDERS, TABLES
from demo.scorecard.page import ROWS, cell, failures, page
from demo.scorecard.run import run
from tests.servers import HttpServer, RedisServer, require_server

ROOT = Path(__file__).resolve().parent.parent

GOOD = {
    "chaos": {
        "got": 70,
        "foreign": 0,
        "failed": 0,
        "stuck": 0,
        "cut off": 30,
        "errors": {},
        "lost": 0,
        "peak": 5,
    },
    "order": {"waiting": 10, "served": list(range(10))},
    "greed": {"others": 50, "greedy": 10},
    "refused": {"why": 3},
    "cost": {"ratio": 1.54},
    "restart": {"errors": 0},
}


def read(text, column):
    """Return the column of a contender, by the labels of the rows."""
    [table] = re.findall(rf"(?:^\|.*{re.escape(column)}.*\n)(?:^\|.*\n)+", text, re.MULTILINE)
    heads, _, *rows = [line.strip("|").split(" | ") for line in table.splitlines()]
    place = [head.strip(" *") for head in heads].index(column)
    return {row[0].strip(): row[place].strip(" *") for row in rows}


def test_two_contenders_make_a_page_on_which_ours_lose_nothing(tmp_path):
    require_server(RedisServer)
    require_server(HttpServer)
    written = tmp_path / "page.md"
    command = [sys.executable, "-m", "demo.scorecard", "--seconds", "1", "--jobs", "2"]
    contenders = ["--only", "OurRedisPool", "OurHttpPool"]
    done = subprocess.run(
        [*command, *contenders, "--page", written],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("RedisPool", "HttpPool"):
        ours = read(written.read_text(), name)
        assert len(ours) == len(ROWS)
        assert ours["foreign answers"] == ours["slots lost, of 5"] == "0"
        assert int(ours["most connections, limit 5"]) <= 5
        assert int(ours["answers got"].split()[0]) > 0
        assert ours["ten in line"] == "in order"
        assert ours["told why, of 3"] == "3"
        assert ours["errors after a restart, of 20"] == "0"


def test_every_contender_has_a_column():
    outcomes = dict.fromkeys(CONTENDERS, GOOD)
    text = page(outcomes, SimpleNamespace(seconds=5, command="this"))

    for classes in TABLES.values():
        assert [cls.ours for cls in classes] == sorted(cls.ours for cls in classes)
        for cls in classes:
            assert f"- {cls.name}: {cls.how}." in text
    assert text.count("70 of 70") == len(CONTENDERS)


@pytest.mark.parametrize(
    ("trial", "outcome", "label", "expected"),
    [
        ("chaos", {**GOOD["chaos"], "foreign": 4, "failed": 6}, "answers got", "70 of 80"),
        ("chaos", {"broken": "Timeout"}, "foreign answers", "broke off"),
        ("order", {"waiting": 10, "served": [1, 0, *range(2, 10)]}, "ten in line", "out of order"),
        ("order", {"waiting": 10, "served": [0, 1]}, "ten in line", "2 of 10 served"),
        ("order", {"waiting": 0, "served": []}, "ten in line", "nobody may wait"),
        ("cost", {"ratio": None}, "cost of a hold", "-"),
    ],
)
def test_what_went_wrong_is_shown(trial, outcome, label, expected):
    outcomes = {**GOOD, trial: outcome}

    assert cell(dict(ROWS)[label], outcomes) == expected
    if "broken" in outcome:
        assert failures(outcomes) == f" {trial} broke off: {outcome['broken']}."


def test_a_hang_of_one_contender_ends_in_time_and_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("demo.scorecard.run.BOUND", 0.0)
    said = []
    console = SimpleNamespace(print=lambda text, **_: said.append(text))
    option = SimpleNamespace(
        only=["OurHttpPool"], jobs=1, seconds=0.2, seed=1, command="", page=tmp_path / "page.md"
    )

    assert run(option, console) == 1
    assert "broke off" in option.page.read_text()
    assert "the process hung" in said[0]


def test_without_a_server_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(RedisServer, "binary", classmethod(lambda cls: None))
    said = []
    console = SimpleNamespace(print=lambda text, **_: said.append(text))

    assert run(SimpleNamespace(only=["OurRedisPool"]), console) == 2
    assert "no redis-server on the PATH" in said[0]
