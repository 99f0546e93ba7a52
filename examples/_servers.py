"""A server for an example: one of yours, named in the environment, else one that ends with it."""

import os
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path


@contextmanager
def place_of(server_class, module, variable, place):
    if yours := os.environ.get(variable):
        yield yours
        return
    sys.path.append(str(Path(__file__).parent.parent))
    server_class = getattr(import_module(module), server_class)  # finds its binary on the PATH
    if why := server_class.missing():
        sys.exit(f"{why}; set {variable} to a server of yours")
    with server_class() as server:
        yield place.format(server=server)


def redis_url():
    return place_of("RedisServer", "tests.servers", "REDIS_URL", "{server.url}")


def postgres_url():
    return place_of("PostgresServer", "tests.databases", "POSTGRES_URL", "{server.url}")


def mysql_url():
    url = "mysql://root@{server.host}:{server.port}/"
    return place_of("MariadbServer", "tests.databases", "MYSQL_URL", url)


def memcached_server():
    place = "{server.host}:{server.port}"
    return place_of("MemcachedServer", "tests.databases", "MEMCACHED", place)
