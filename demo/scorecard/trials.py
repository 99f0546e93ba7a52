"""What each contender goes through.  Every trial is bounded in time."""

from collections import Counter
from contextlib import suppress
from random import Random
from time import perf_counter

import gevent
from gevent import GreenletExit, Timeout
from gevent.event import Event
from gevent.server import StreamServer

from demo.scorecard.contenders import LARGE, QUICK, SLOW
from demo.scorecard.slow_link import SlowLink

SIZE = 5  # connections of a pool
GREENLETS = 25  # in front of it
THINK = 0.02  # seconds between two commands of a greenlet
WAIT = 1.0  # seconds that a caller waits for a connection
STUCK = 3.0  # seconds after which a command is given up

IDLE = 20  # connections that a restart finds idle
TURNS = 60  # counted between a greedy user and five others
CALLERS = 3  # of a server to which nobody can connect


class Users:
    """Greenlets that ask and ask, and are cut off now and then, for *seconds*."""

    def __init__(self, contender, seed):
        self.contender = contender
        self.seed = seed
        self.over = False
        self.tags = iter(range(1000, 1 << 40))
        self.count = Counter()
        self.errors = Counter()
        self.greenlets = set()
        self.asking = 0  # of them

    def run(self, seconds):
        for index in range(GREENLETS):
            self.start(Random(f"{self.seed}/{index}"))
        gevent.sleep(seconds)
        self.over = True
        gevent.joinall(list(self.greenlets), timeout=STUCK + 1)
        count = dict(self.count, stuck=self.asking)
        gevent.killall(list(self.greenlets), timeout=1)
        return count

    def start(self, random):
        greenlet = gevent.spawn(self.live, random)
        self.greenlets.add(greenlet)

        def ended(greenlet):
            self.greenlets.discard(greenlet)
            if isinstance(greenlet.value, GreenletExit):
                self.count["cut off"] += 1
                if not self.over:
                    self.start(random)

        greenlet.rawlink(ended)

    def live(self, random):
        while not self.over:
            self.request(random)
            gevent.sleep(random.expovariate(1 / THINK))

    def request(self, random):
        kind = random.choices([QUICK, SLOW, LARGE], [70, 20, 10])[0]
        fate = random.choices([None, "timeout", "kill"], [65, 22, 13])[0]
        after = random.uniform(0, 0.03)
        limit = Timeout(after if fate == "timeout" else STUCK)
        killer = None
        if fate == "kill":
            killer = gevent.spawn_later(after, gevent.getcurrent().kill, block=False)
        self.asking += 1
        try:
            with limit:
                own = self.contender.ask(kind, str(next(self.tags)))
        except Timeout:
            self.count["cut off" if fate == "timeout" else "failed"] += 1
            if fate != "timeout":
                self.errors["stuck"] += 1
        except Exception as error:
            self.count["failed"] += 1
            self.errors[type(error).__name__] += 1
        else:
            self.count["got" if own else "foreign"] += 1
        finally:
            self.asking -= 1
            if killer is not None:
                killer.kill(block=False)


def chaos(make, server, seed, seconds):
    """Cut off a third of all commands; count answers, and the slots left in the end."""
    link = SlowLink(server.address, delay=0.004, seed=seed)
    contender = make(link.address, SIZE, WAIT)
    users = Users(contender, seed)
    count = users.run(seconds)
    gevent.sleep(0.2)
    free = held_at_once(contender, SIZE)
    return {
        **{name: count.get(name, 0) for name in ("cut off", "got", "foreign", "failed", "stuck")},
        "errors": dict(users.errors.most_common(3)),
        "lost": SIZE - free,
        "peak": link.peak,
    }


def held_at_once(contender, size, bound=3.0):
    """Count how many of *size* connections can be held at the same time."""
    enough, held = Event(), []

    def hold():
        with suppress(Exception), contender.hold() as item:
            held.append(item)
            if len(held) == size:
                enough.set()
            enough.wait()

    holders = [gevent.spawn(hold) for _ in range(size)]
    enough.wait(bound)
    count = len(held)
    enough.set()
    gevent.joinall(holders, timeout=1)
    gevent.killall(holders, timeout=1)
    return count


def order(make, server, seed, seconds):
    """Let ten greenlets wait for one connection, one after the other."""
    contender = make(server.address, 1, 5.0)
    served = []

    def wait(index):
        with suppress(Exception), contender.hold():
            served.append(index)

    with contender.hold():
        waiters = []
        for index in range(10):
            waiters.append(gevent.spawn(wait, index))
            gevent.sleep(0.005)
        waiting = sum(not waiter.ready() for waiter in waiters)
    gevent.joinall(waiters, timeout=STUCK)
    gevent.killall(waiters, timeout=1)
    return {"waiting": waiting, "served": served}


def greed(make, server, seed, seconds):
    """Let one greenlet ask again and again for what five others wait for."""
    # Without a link some servers answer before anybody else can get in line.
    link = SlowLink(server.address, delay=0.004, seed=seed)
    contender = make(link.address, 1, WAIT)
    turns, over = Counter(), Event()

    def use(name):
        with suppress(Exception):
            while not over.is_set():
                contender.ask(QUICK, str(sum(turns.values())))
                if not over.is_set():
                    turns[name] += 1
                if sum(turns.values()) >= TURNS:
                    over.set()

    contender.ask(QUICK, "1")
    users = [gevent.spawn(use, name) for name in ("greedy", *range(5))]
    over.wait(STUCK)
    over.set()
    gevent.joinall(users, timeout=1)
    gevent.killall(users, timeout=1)
    return {"others": sum(turns[name] for name in range(5)), "greedy": turns["greedy"]}


def restart(make, server, seed, seconds):
    """Kill the server under idle connections; ask when it is back."""
    contender = make(server.address, IDLE, 5.0)
    idle = held_at_once(contender, IDLE, bound=5.0)
    server.kill9()
    server.start()
    make.prepare(server)
    errors, waits = Counter(), []

    def ask(index):
        began = perf_counter()
        try:
            with Timeout(6):
                own = contender.ask(QUICK, str(index))
        except (Exception, Timeout) as error:
            errors[type(error).__name__] += 1
        else:
            errors["foreign"] += not own
        waits.append(perf_counter() - began)

    gevent.joinall([gevent.spawn(ask, index) for index in range(IDLE)], timeout=8)
    errors["stuck"] = IDLE - len(waits)
    return {"idle": idle, "errors": errors.total(), "kinds": dict(+errors), "slowest": max(waits)}


def refused(make, server, seed, seconds):
    """Have three greenlets ask where every connection ends after 0.1 s."""

    def hang_up(sock, _):
        gevent.sleep(0.1)
        sock.close()

    liar = StreamServer(("127.0.0.1", 0), hang_up)
    liar.start()
    contender = make(liar.address, 1, WAIT)
    told, kinds = Counter(), []

    def ask(index):
        try:
            with Timeout(4):
                contender.ask(QUICK, str(index))
        except Timeout:
            told["stuck"] += 1
        except Exception as error:
            told["no room" if contender.no_room(error) else "why"] += 1
            kinds.append(type(error).__name__)

    gevent.joinall([gevent.spawn(ask, index) for index in range(CALLERS)], timeout=6)
    return {**told, "kinds": kinds}


def cost(make, server, seed, seconds):
    """Compare a command for which an item is taken with one on an item that is held."""
    contender = make(server.address, 1, WAIT)
    if contender.ask_on is None:
        return {"ratio": None}
    pooled, held = [], []
    for turn in range(25):
        began = perf_counter()
        for tag in range(10):
            contender.ask(QUICK, str(tag))
        between = perf_counter()
        with contender.hold() as item:
            contender.ask_on(item, QUICK, str(turn))
            gevent.sleep(0)
            middle = perf_counter()
            for tag in range(10):
                contender.ask_on(item, QUICK, str(tag))
            held.append(perf_counter() - middle)
        pooled.append(between - began)
    return {"ratio": min(pooled) / min(held)}


TRIALS = [chaos, order, greed, refused, cost, restart]
