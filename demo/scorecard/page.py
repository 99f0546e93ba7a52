"""How the results read: docs/scorecard.md."""

import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from demo.scorecard.contenders import TABLES
from demo.scorecard.trials import CALLERS, GREENLETS, IDLE, SIZE, TURNS
from tests.databases import MariadbServer, MemcachedServer, PostgresServer
from tests.servers import RedisServer

HERE = Path(__file__).parent
NUMBER = r"\d+\.\d+(\.\d+)?"


def answers(outcome):
    right = outcome["chaos"]
    wanted = sum(right[name] for name in ("got", "foreign", "failed", "stuck"))
    return f"{right['got']} of {wanted}"


def in_line(outcome):
    order = outcome["order"]
    if not order["waiting"]:
        return "nobody may wait"
    if len(order["served"]) < order["waiting"]:
        return f"{len(order['served'])} of {order['waiting']} served"
    return "in order" if order["served"] == sorted(order["served"]) else "out of order"


def greedy(outcome):
    greed = outcome["greed"]
    if not outcome["order"]["waiting"]:
        return "nobody may wait"
    return str(greed["others"])


def ratio(outcome):
    found = outcome["cost"]["ratio"]
    return "-" if found is None else f"{found:.1f}"


ROWS = [
    ("answers got", answers),
    ("cut off", lambda outcome: outcome["chaos"]["cut off"]),
    ("foreign answers", lambda outcome: outcome["chaos"]["foreign"]),
    (f"slots lost, of {SIZE}", lambda outcome: outcome["chaos"]["lost"]),
    (f"most connections, limit {SIZE}", lambda outcome: outcome["chaos"]["peak"]),
    ("ten in line", in_line),
    (f"beside a greedy user, of {TURNS}", greedy),
    (f"told why, of {CALLERS}", lambda outcome: outcome["refused"].get("why", 0)),
    (f"errors after a restart, of {IDLE}", lambda outcome: outcome["restart"]["errors"]),
    ("cost of a hold", ratio),
]


def cell(read, outcome):
    """Return what *read* makes of an outcome; a trial may have broken off, or hung."""
    try:
        return str(read(outcome))
    except KeyError:
        return "broke off"


def table(classes, outcomes):
    """Yield the lines of the table of the *classes*."""
    names = [f"**{cls.name}**" if cls.ours else cls.name for cls in classes]
    yield f"| | {' | '.join(names)} |"
    yield "| --- " * (len(classes) + 1) + "|"
    for label, read in ROWS:
        yield f"| {label} | {' | '.join(cell(read, outcomes[cls.__name__]) for cls in classes)} |"
    yield ""
    for cls in classes:
        yield f"- {cls.name}: {cls.how}.{failures(outcomes[cls.__name__])}"
    yield ""


def failures(outcome):
    """Say what users of a pool saw in the chaos, and which trials broke off."""
    errors = outcome.get("chaos", {}).get("errors", {})
    said = [f"{number} times `{name}` in the chaos" for name, number in errors.items()]
    said += [f"{name} broke off: {o['broken']}" for name, o in outcome.items() if "broken" in o]
    return "".join(f" {words}." for words in said)


def page(outcomes, option):
    """Write the page for the *outcomes* of contenders, by name."""
    head = (
        (HERE / "head.md")
        .read_text()
        .format(
            seconds=option.seconds,
            greenlets=GREENLETS,
            size=SIZE,
            turns=TURNS,
            fair=TURNS * 5 // 6,
            callers=CALLERS,
            idle=IDLE,
        )
    )
    lines = [head]
    for title, classes in TABLES.items():
        present = [cls for cls in classes if cls.__name__ in outcomes]
        if present:
            lines += [f"## {title}", "", *table(present, outcomes)]
    lines += ["## Better elsewhere", "", (HERE / "better_elsewhere.md").read_text()]
    lines += ["## Made with", "", *made_with(outcomes, option)]
    return "\n".join(lines).rstrip() + "\n"


def made_with(outcomes, option):
    classes = [cls for table in TABLES.values() for cls in table if cls.__name__ in outcomes]
    libraries = dict.fromkeys(library for cls in classes for library in cls.libraries)
    versions = [f"{name} {version(name)}" for name in ("gpools", "gevent", *libraries)]
    servers = dict.fromkeys(server_version(cls.server_class) for cls in classes)
    yield f"- {datetime.now(timezone.utc):%d %B %Y}, `{option.command}`"
    yield f"- {platform.python_implementation()} {platform.python_version()}, {', '.join(versions)}"
    yield f"- {'; '.join(servers)}"
    yield f"- {platform.system()} {platform.release()}, {processor()}"


def server_version(server_class):
    """Return the version of a server, as its program tells it."""
    program = {
        RedisServer: RedisServer.binary,
        PostgresServer: lambda: PostgresServer.binary("postgres"),
        MariadbServer: lambda: MariadbServer._binary("mariadbd"),
        MemcachedServer: lambda: "memcached",
    }.get(server_class)
    if program is None:
        return "tests/http_server.py for HTTP"
    command = [str(program()), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"{Path(command[0]).name} {re.search(NUMBER, done.stdout)[0]}"


def processor():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()
