"""A PostgreSQL for the examples: that of POSTGRES_URL, else one that ends with the example."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def postgres_url():
    if url := os.environ.get("POSTGRES_URL"):
        yield url
        return
    sys.path.append(str(Path(__file__).parent.parent))
    from tests.databases import PostgresServer  # finds postgres on the PATH or in a package

    if why := PostgresServer.missing():
        sys.exit(f"{why}; set POSTGRES_URL to a server of yours")
    with PostgresServer() as server:
        yield server.url
