"""python -m demo [--seconds 22] [--greenlets 100] [--seed 1] [--plain]

The exit status is 0 if gpools kept its promises, 1 if not, 2 if the demo could
not run.  Nothing that it starts outlives it.
"""

import argparse
import contextlib
import signal
import sys
from statistics import median
from time import monotonic

import gevent

from demo.screen import Screen
from demo.storm import MAX_SIZE, PHASES, Contender, HttpSide, RedisSide, Weather
from demo.verdict import verdict
from tests.servers import RedisServer


def options():
    parser = argparse.ArgumentParser(prog="python -m demo", description="gpools in a storm")
    parser.add_argument("--seconds", type=float, default=22, help="length of the load")
    parser.add_argument("--greenlets", type=int, default=100, help="in front of each pool")
    parser.add_argument("--seed", type=int, default=1, help="of what is asked and cut off when")
    parser.add_argument("--plain", action="store_true", help="plain lines, even on a terminal")
    option = parser.parse_args()
    if option.seconds <= 0 or option.greenlets < 1:
        parser.error("--seconds and --greenlets must be more than 0")
    return option


def start(contenders, stack):
    """Start all servers at the same time; *stack* stops them."""
    servers = [contender.side.server for contender in contenders]
    for server in servers:
        stack.callback(server.stop)
    starting = [gevent.spawn(server.start) for server in servers]
    stack.callback(gevent.killall, starting)  # before the servers are stopped
    gevent.joinall(starting, raise_error=True)
    for contender in contenders:
        contender.prepare()


def weather_the_storm(contenders, option, screen, stack):
    """Run all phases and the full check; return the results."""

    def results():
        return [contender.result() for contender in contenders]

    weather = Weather()
    for contender in contenders:
        contender.set_off(option.greenlets, option.seed, weather)
        stack.callback(contender.stop)
    began = monotonic()
    for number, phase in enumerate(PHASES, 1):
        screen.headline(number, len(PHASES), phase.headline)
        weather.stormy = phase.stormy
        seconds, phase_began = option.seconds * phase.share, monotonic()
        rates = []  # of all contenders, in each moment
        deed = gevent.spawn(phase.deed, contenders, seconds)
        stack.callback(deed.kill)
        while monotonic() < phase_began + seconds or not deed.ready() or len(rates) < 4:
            screen.progress(monotonic() - began, option.seconds, results())
            moment, done = monotonic(), [contender.tally.done for contender in contenders]
            gevent.sleep(min(0.25, seconds / 4))
            passed = monotonic() - moment
            now = (contender.tally.done for contender in contenders)
            rates.append([(n - before) / passed for n, before in zip(now, done, strict=True)])
        deed.get()
        for contender, rate in zip(contenders, zip(*rates, strict=True), strict=True):
            # Not the mean: a moment in which the machine stands still says nothing of a pool.
            if phase is PHASES[0]:
                contender.before = median(rate)
            if phase is PHASES[-1]:
                contender.after = median(rate)
        screen.passage(monotonic() - began, results())
    weather.over.set()
    gevent.joinall([gevent.spawn(c.come_to_rest) for c in contenders], raise_error=True)
    gevent.joinall([gevent.spawn(c.full_check) for c in contenders], raise_error=True)
    return results()


def run(option):
    """Run the demo; return its exit status."""
    if reason := RedisServer.missing():
        print(f"the demo cannot run: {reason}", file=sys.stderr)
        return 2
    contenders = [
        Contender(side(), recipe)
        for side in (HttpSide, RedisSide)
        for recipe in ("gpools", "finally", "except")
    ]
    screen = Screen(option.plain)
    screen.say(
        f"{len(contenders)} pools of {MAX_SIZE} clients, each with a real server of its own and "
        f"{option.greenlets} greenlets that want one"
    )
    with contextlib.ExitStack() as stack:
        start(contenders, stack)
        with screen:
            results = weather_the_storm(contenders, option, screen, stack)
    screen.end(results)
    return verdict(results)[0]


def main():
    option = options()
    sys.stdout.reconfigure(errors="replace")
    # A plain kill must stop the servers too.  Python's own way to raise
    # KeyboardInterrupt may meet a finalizer, and end there.
    me = gevent.getcurrent()
    gevent.signal_handler(signal.SIGINT, gevent.kill, me, SystemExit(130))
    gevent.signal_handler(signal.SIGTERM, gevent.kill, me, SystemExit(143))
    sys.exit(run(option))
