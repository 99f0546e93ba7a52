"""FairPool under monkey.patch_all(), as it is used; the cases are in
tests/sqlalchemy_cases.py and tests/sqlalchemy_chaos.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.databases import MariadbServer, PostgresServer
from tests.servers import require_server

PATCHED_PYTEST = """
from gevent import monkey
monkey.patch_all()
import sys, pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


# SQLAlchemy leaves a server-side cursor to go with its connection; the drivers complain of it.
FILTERS = r"""filterwarnings=
    error
    ignore:.*was deleted while still open:ResourceWarning
    ignore:.*SSCursor.close:pytest.PytestUnraisableExceptionWarning
    ignore:.*MySQLResult.__del__:pytest.PytestUnraisableExceptionWarning
"""


def run(cases):
    for server_class in (PostgresServer, MariadbServer):
        require_server(server_class)
    done = subprocess.run(
        [sys.executable, "-c", PATCHED_PYTEST, "-q", "-o", FILTERS, f"tests/{cases}"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20000:]


@pytest.mark.timeout(300)
def test_fair_pool_on_real_servers():
    run("sqlalchemy_cases.py")


@pytest.mark.timeout(300)
def test_fair_pool_in_chaos():
    """At every byte, half replies, frozen, black hole, refused, idle for too long, forks."""
    run("sqlalchemy_chaos.py")
