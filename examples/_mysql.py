"""A MySQL or MariaDB for the examples: that of MYSQL_URL, else one that ends with the example."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mysql_url():
    if url := os.environ.get("MYSQL_URL"):
        yield url
        return
    sys.path.append(str(Path(__file__).parent.parent))
    from tests.databases import MariadbServer

    if why := MariadbServer.missing():
        sys.exit(f"{why}; set MYSQL_URL to a server of yours")
    with MariadbServer() as server:
        yield f"mysql://root@{server.host}:{server.port}/"
