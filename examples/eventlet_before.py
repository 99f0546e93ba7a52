"""Moving from eventlet, before: bob waits beside a free slot because ann could not connect."""

from eventlet import GreenPool as Crowd
from eventlet import Timeout, sleep
from eventlet.pools import Pool


def connect():
    calls.append(None)
    sleep(0.01)
    if len(calls) == 1:
        raise OSError("the database refused the first connection")
    return "a connection"


def ask(name):
    try:
        with Timeout(0.5), pool.item() as connection:
            return f"{name} has {connection}"
    except (OSError, Timeout) as error:
        return f"{name}: {error}"


calls = []
pool = Pool(max_size=1, create=connect)
for answer in Crowd(10).imap(ask, ["ann", "bob"]):
    print(answer)
print(f"free: {pool.free()}, waiting: {pool.waiting()}")
