"""What the README and docs/ say is so: their code runs, their names and links exist.

All blocks of a page marked ``python`` run in one process, in order.  A block
marked ``text`` right after one is what it prints; ``...`` stands for anything.
"""

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from enum import Enum
from itertools import pairwise
from pathlib import Path

import pytest

import gpools
from gpools import adapters, fleet

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

RUN_BLOCKS = """
import json, sys
page, blocks = json.load(sys.stdin)
names = {"__name__": "__main__"}
for line, source in blocks:
    print(f"<<{line}>>", flush=True)
    exec(compile("\\n" * line + source, page, "exec"), names)
"""


def blocks(text):
    """List (line, language, source) of the fenced blocks of a page."""
    return [
        (text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in FENCE.finditer(text)
    ]


def runnable(text):
    return [(line, source) for line, language, source in blocks(text) if language == "python"]


@pytest.mark.parametrize(
    "name", [name for name, path in PAGES.items() if runnable(path.read_text())]
)
def test_page_runs_and_prints_what_it_says(name, request):
    text = PAGES[name].read_text()
    for port, server in (
        ("8080", "http_server"),
        ("6379", "redis_server"),
        ("11211", "memcached_server"),
        ("5432", "postgres_server"),
        ("2222", "ssh_server"),
        ("3306", "mariadb_server"),
    ):
        if re.search(rf'127.0.0.1(:|", ){port}', text):
            actual = str(request.getfixturevalue(server).port)
            text = re.sub(rf'(127.0.0.1(?::|", )){port}', rf"\g<1>{actual}", text)
    done = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS],
        input=json.dumps([name, runnable(text)]),
        cwd=ROOT / "examples",
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # where gpools is not installed
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    _, *parts = re.split(r"^<<(\d+)>>\n", done.stdout, flags=re.MULTILINE)
    printed = dict(zip(map(int, parts[::2]), parts[1::2], strict=True))
    for (line, language, _), (_, following, expected) in pairwise([*blocks(text), (0, "", "")]):
        if language == "python":
            said = expected if following == "text" else ""
            # Who was held for 0.1 s may have been held for 0.2.
            parts = re.split(r"\.\.\.|\d+\.\d(?= s by )", said.strip())
            pattern = ".*".join(map(re.escape, parts))
            assert re.fullmatch(pattern, printed[line].strip()), (
                f"{name}:{line} printed\n{printed[line]}and says\n{said}"
            )


def anchors(text):
    """List what a link can name in a page: its headings, as they are written in addresses."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("name", PAGES)
def test_links_of_page_lead_somewhere(name):
    page = PAGES[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            there = page.parent / file if file else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there.read_text()), target


def named_tests(text):
    """List the tests after "Test:" and in the last column of a table."""
    return re.findall(r"(?:Test:|^\|.*\|) `(\w+_\w+)`", text, re.MULTILINE)


@pytest.mark.parametrize(("name", "least"), [("README.md", 3), ("docs/from-eventlet.md", 13)])
def test_tests_that_page_names_exist(name, least):
    code = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    named = named_tests(PAGES[name].read_text())
    assert len(named) >= least
    assert [test for test in named if f"def {test}(" not in code] == []


def test_hazards_page_names_a_test_for_each_hazard():
    table = re.findall(r"^\| (.+) \| (.*) \| (.+) \|$", PAGES["docs/hazards.md"].read_text(), re.M)
    hazards = [row for row in table if row[0] not in ("hazard", "---")]
    assert len(hazards) > 80
    for hazard, _, proof in hazards:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", proof)
        assert named, hazard
        for name, test in named:
            assert f"\ndef {test}(" in (ROOT / "tests" / name).read_text(), (hazard, name, test)


def test_readme_begins_with_five_lines_that_run():
    _, language, source = blocks(PAGES["README.md"].read_text())[0]
    assert language == "python"
    assert len([line for line in source.splitlines() if line]) == 5


# api.md: `## Pool(...)` begins a class, `### get(...)` is one of its names.


def as_written(signature):
    """Write a signature as api.md does: no annotations, self or /, ... for what is left out."""
    parameters = [
        parameter.replace(
            kind=parameter.kind or parameter.POSITIONAL_OR_KEYWORD,  # from POSITIONAL_ONLY, 0
            annotation=parameter.empty,
            default=... if isinstance(parameter.default, Enum) else parameter.default,
        )
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    text = str(inspect.Signature(parameters))
    return text.replace("Ellipsis", "...")


def written(name, value):
    """Write the heading of a public name."""
    if isinstance(value, type) and (issubclass(value, BaseException) or not made_by_users(value)):
        return name
    if isinstance(value, type) and value.__init__ is object.__init__:
        return f"{name}()"
    if isinstance(value, type):
        return name + as_written(inspect.signature(value.__init__))
    if callable(value):
        return name + as_written(inspect.signature(value))
    return name


def made_by_users(value):
    return not dataclasses.is_dataclass(value) and not getattr(value, "_is_protocol", False)


def public(owner):
    owners = [base for base in owner.__bases__ if base.__module__ == "gpools._fast"] + [owner]
    every = {name: None for owner in owners for name in vars(owner).get("__annotations__", ())}
    every |= {name: value for owner in owners for name, value in vars(owner).items()}
    names = {name: value for name, value in every.items() if not name.startswith("_")}
    if dataclasses.is_dataclass(owner):
        names |= {field.name: None for field in dataclasses.fields(owner)}
    return names


# Kin of a ready-made pool that stands in api.md; docs/memcached.md, redis.md and http.md tell.
ON_A_PAGE_OF_THEIR_OWN = {
    *("ClientPool", "ClientPoolTimeout", "FairHashClient", "FairPooledClient"),
    *("FairConnectionPool", "FairSentinelConnectionPool", "SharedConnectionPool"),
    *("FairHTTPConnectionPool", "FairHTTPSConnectionPool", "FairProxyManager"),
}


def test_api_page_has_every_name_with_its_signature():
    expected = {}
    for name in {*gpools.__all__, *adapters.__all__} - ON_A_PAGE_OF_THEIR_OWN:
        value = getattr(gpools, name)
        if not issubclass(value, gpools.PoolError):
            expected[written(name, value)] = [written(*pair) for pair in public(value).items()]
    expected["Errors"] = [name for name in gpools.__all__ if name in vars(gpools.errors)]

    headings = re.findall(r"^(##+) `?(.+?)`?$", PAGES["docs/api.md"].read_text(), re.MULTILINE)
    found = {}
    for level, heading in headings:
        if level == "##":
            names = found[heading] = []
        else:
            names.append(heading)
    for heading, names in expected.items():
        assert heading in found
        assert sorted(found[heading]) == sorted(names), heading
    assert found.keys() == expected.keys()


@pytest.mark.parametrize("name", [*sorted(ON_A_PAGE_OF_THEIR_OWN), *fleet.__all__])
def test_api_page_leads_to_the_page_of_all_other_names(name):
    [page] = re.findall(
        rf"^\| .*`{name}`.*\]\((\w+\.md)\) \|$", PAGES["docs/api.md"].read_text(), re.M
    )
    assert name in PAGES[f"docs/{page}"].read_text()


def test_a_subclass_may_call_what_its_verbs_are_given_what_it_likes():
    """A type checker refuses the ``check(self, client)`` of docs/write-an-adapter.md else."""
    pools = [getattr(gpools, name) for name in {*gpools.__all__, *adapters.__all__}]
    verbs = [
        inspect.signature(verb)
        for pool in pools
        if issubclass(pool, gpools.ConnectionPool)
        for name, verb in vars(pool).items()
        if name in ("check", "reset", "destroy", "fit_after")
        if verb.__module__ != "gpools._fast"  # which connection.py tells type checkers of
    ]
    assert len(verbs) > 20
    for verb in verbs:
        _, *given = verb.parameters.values()
        assert {parameter.kind for parameter in given} == {inspect.Parameter.POSITIONAL_ONLY}, verb


def test_api_page_says_of_every_call_whether_it_may_switch():
    text = PAGES["docs/api.md"].read_text()
    for heading, body in re.findall(r"^### `(.+?)`\n(.*?)(?=^##|\Z)", text, re.M | re.DOTALL):
        if "(" in heading:
            assert "witch" in body, heading
