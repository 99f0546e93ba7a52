"""A memcached for the examples: that of MEMCACHED (host:port), else one that ends with them."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memcached_server():
    if address := os.environ.get("MEMCACHED"):
        yield address
        return
    sys.path.append(str(Path(__file__).parent.parent))
    from tests.databases import MemcachedServer  # finds memcached on the PATH

    if why := MemcachedServer.missing():
        sys.exit(f"{why}; set MEMCACHED to a server of yours")
    with MemcachedServer() as server:
        yield f"{server.host}:{server.port}"
