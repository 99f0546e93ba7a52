"""Who lacks a client library is told which extra brings it."""

import subprocess
import sys

import pytest

import gpools
from gpools import adapters

# What each needs beyond the dependencies of gpools, and the extra that brings it.
NEEDS = {
    "requests": ("requests", "requests"),
    "urllib3": ("urllib3", "urllib3"),
    "memcached": ("pymemcache", "memcached"),
    "mysql": ("pymysql", "mysql"),
    "postgres": ("psycopg", "postgres"),
    "sqlalchemy": ("sqlalchemy", "sqlalchemy"),
}
OPTIONAL = {name: NEEDS[module] for name, module in adapters._MODULES.items() if module in NEEDS}

WITHOUT = """
import sys
sys.modules[{library!r}] = None  # as if it was not installed
from gpools import *
import gpools
try:
    gpools.{name}
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize("name", OPTIONAL)
def test_the_extra_is_named(name):
    library, extra = OPTIONAL[name]
    program = WITHOUT.format(library=library, name=name)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert f"pip install 'gpools[{extra}]' brings it" in done.stdout
    assert f"{library}" in done.stdout


def test_who_lacks_both_requests_and_urllib3_is_told_of_the_extra_that_brings_both():
    program = WITHOUT.format(library="urllib3", name="FairHTTPAdapter")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert "gpools[requests]" in done.stdout


def test_all_others_come_with_an_import_of_everything():
    assert not OPTIONAL.keys() & set(gpools.__all__)
    assert {"HttpPool", "RedisPool", "SocketPool", "KeyedHttpPool"} <= set(gpools.__all__)


def test_a_prompt_completes_what_is_not_loaded_yet():
    program = "import gpools, sys; print(*dir(gpools)); print('redis' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    *names, redis_is_loaded = done.stdout.split()
    assert set(gpools.__all__) <= set(names)
    assert redis_is_loaded == "False"


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Nonesuch'"):
        gpools.Nonesuch  # noqa: B018
