"""A patched program that uses requests, with our adapter or its own, in a process of its own.

    python -m tests.patched_requests fair|own HTTP_PORT CERT KEY

It prints what happened as a JSON object.
"""

import sys

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import gc
import json
import random
from importlib.metadata import version

import gevent
import requests
from gevent import Timeout
from requests.adapters import HTTPAdapter

from gpools.adapters import FairHTTPAdapter
from tests.tls import TlsServer


def session(**options):
    made = requests.Session()
    made.trust_env = False
    if sys.argv[1] == "own":
        options.pop("pool_timeout", None)
        made.mount("http://", HTTPAdapter(**options))
        made.mount("https://", HTTPAdapter(**options))
    else:
        made.mount("http://", FairHTTPAdapter(**options))
        made.mount("https://", FairHTTPAdapter(**options))
    return made


def crowd(http, url, greenlets=200):
    """Have a crowd ask; return the answers that were somebody else's, and the connections."""

    def user(tag):
        return http.get(url, params={"tag": tag, "delay": "0.002"}).json()

    users = [gevent.spawn(user, str(n)) for n in range(greenlets)]
    gevent.joinall(users, raise_error=True)
    foreign = [user.value["tag"] for n, user in enumerate(users) if user.value["tag"] != str(n)]
    return foreign, len({user.value["connection"] for user in users})


def killed_waiters(http, url):
    """Kill greenlets that wait for the one connection, and see how many are open at once then."""
    held = http.get(url, stream=True)
    for _ in range(3):
        waiter = gevent.spawn(http.get, url)
        gevent.sleep(0.01)
        waiter.kill()
    others = []

    def other():
        others.append(http.get(url, stream=True))

    waiters = [gevent.spawn(other) for _ in range(3)]
    gevent.sleep(0.05)
    at_once = 1 + len(others)
    gevent.killall(waiters)
    for response in [held, *others]:
        try:
            response.close()
        except Exception as error:
            return at_once, type(error).__name__
    return at_once, None


def dropped(http, url):
    """Drop a response unread; tell whether its connection can be had again."""
    http.get(url + "?size=100000", stream=True)
    gc.collect()
    with Timeout(1, False):
        return http.get(url).ok
    return False


def storm(http, url, seconds=2):
    """Kill and time out users; return answers, foreign answers, and whether a slot is lost."""
    chance = random.Random(3)
    answers, foreign = 0, []

    def user(tag):
        nonlocal answers
        query = {"tag": tag} | chance.choice([{}, {"body": "chunked"}, {"size": "3000"}])
        with Timeout(chance.choice([0.002, 0.01, 5]), False):
            response = http.get(url, params=query, stream=chance.random() < 0.5)
            answer = response.json()["tag"]
            answers += 1
            if answer != tag:
                foreign.append(tag)

    names = iter(range(100_000))
    users = []
    with Timeout(seconds, False):
        while True:
            users = [one for one in users if not one.ready()]
            users += [gevent.spawn(user, str(next(names))) for _ in range(20 - len(users))]
            gevent.sleep(0.002)
            chance.choice(users).kill(block=False)
    gevent.killall(users)
    gc.collect()
    taken = []
    with Timeout(2, False):
        while len(taken) < 5:
            taken.append(http.get(url, stream=True))
    for response in taken:
        response.close()
    return answers > 100, foreign, len(taken)


def main():
    url = f"http://127.0.0.1:{sys.argv[2]}/"
    results = {"version": version("requests")}
    with session(pool_maxsize=5) as http:
        results["crowd"] = crowd(http, url)
    with session(pool_maxsize=1, pool_block=True) as http:
        results["killed waiters"] = killed_waiters(http, url)
    with session(pool_maxsize=1, pool_block=True) as http:
        results["dropped"] = dropped(http, url)
    if sys.argv[1] == "fair":
        with session(pool_maxsize=5) as http:
            results["storm"] = storm(http, url)
    with TlsServer(*sys.argv[3:5]) as server, session(pool_maxsize=2) as http:
        http.verify = sys.argv[3]
        users = [gevent.spawn(http.get, f"{server.url}/{n}") for n in range(12)]
        gevent.joinall(users, raise_error=True)
        results["tls"] = [user.value.text for user in users] == [f"/{n}" for n in range(12)]
        results["tls connections"] = len(server.connections)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
