"""Both adapters in a program under gevent.monkey.patch_all(), and in a plain one.

Plain clients block the hub while they wait for a server, but all else holds.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tls import make_certificate

HERE = Path(__file__).parent.parent


def told(library):
    return (
        f"{library} stops all greenlets while it waits for its server; "
        "call gevent.monkey.patch_all() first of all\n"
    )


@pytest.fixture(params=["patched", "plain"])
def results(request, http_server, redis_server, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "tests.patched_user", request.param),
            *(str(http_server.port), str(redis_server.port), *make_certificate(tmp_path)),
        ],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # No other warning, no error that the hub printed.
    expected = "" if request.param == "patched" else told("httplib2") + told("redis-py")
    assert done.stderr == expected
    assert done.returncode == 0
    return request.param, json.loads(done.stdout)


def test_both_adapters_work_patched_and_plain(results, redis_server):
    world, result = results

    assert result["http crowd"] == result["redis crowd"] == [[], 36]
    # Only cooperative clients leave others the time to need a second one.
    used = 3 if world == "patched" else 1
    assert result["http pool"] == f"<HttpPool {used} idle, 0 in use, 0 waiting, max 3>"
    assert result["http interrupted"] == ("Timeout" if world == "patched" else "TimeoutError")
    assert result["redis interrupted"] == ("Timeout" if world == "patched" else "TimeoutError")
    assert result["http next"] == "mine"
    assert result["redis next"] in (["mine", 0], ["mine", "0"])
    assert result["redis check"] is True
    assert result["http switches"] == result["redis switches"] == 0
    assert result["http waits in line"] == result["redis waits in line"] == ["x"] * 5
    assert redis_server.stats()["open"] == 0
    if world == "patched":
        assert result["tls crowd"] == [[], 36]
        assert result["tls connections"] == 2
        assert result["tls switches"] == 0
