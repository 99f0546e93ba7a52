"""FairPool under monkey.patch_all(), as it is used; the cases are in tests/sqlalchemy_cases.py."""

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


# SQLAlchemy leaves a server-side cursor to go with its connection; psycopg complains of it.
FILTERS = r"""filterwarnings=
    error
    ignore:.*was deleted while still open:ResourceWarning
"""


@pytest.mark.timeout(300)
def test_fair_pool_on_real_servers():
    for server_class in (PostgresServer, MariadbServer):
        require_server(server_class)
    done = subprocess.run(
        [sys.executable, "-c", PATCHED_PYTEST, "-q", "-o", FILTERS, "tests/sqlalchemy_cases.py"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20000:]
