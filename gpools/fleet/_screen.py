"""``python -m gpools fleet URL NAME``: who holds how many, who waits, since when."""

from __future__ import annotations

import argparse
import time
from functools import partial

import redis

from gpools.adapters._extra import extra
from gpools.fleet._member import keys_of
from gpools.fleet._script import SOURCE
from gpools.fleet._watch import FleetStats, fleet_stats

with extra("fleet"):
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Show a pool, refreshing until interrupted, or once."""
    parser = argparse.ArgumentParser(
        "python -m gpools fleet", description="Show who holds and who waits in a fleet pool."
    )
    parser.add_argument("url", help="of the Redis server, as redis://host:port/db")
    parser.add_argument("name", help="of the pool")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--once", action="store_true", help="print it and end")
    told = parser.parse_args(arguments)
    console = Console()
    try:
        client = redis.Redis.from_url(told.url, socket_timeout=5)
        if told.once:
            console.print(screen(ask(client, told.name)))
            return 0
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(screen(ask(client, told.name)), refresh=True)
                time.sleep(told.every)
    except KeyboardInterrupt:
        return 0
    except (redis.RedisError, ValueError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        return 1


def ask(client: redis.Redis, name: str) -> FleetStats:
    """Read the state of a pool; changes nothing."""
    keys = keys_of(name)
    call = partial(client.eval, SOURCE.decode(), len(keys), *keys, "list", "PUBLISH")
    try:
        answer = call()
    except redis.exceptions.MovedError as moved:  # a node of a cluster, which names the owner
        pool = client.connection_pool
        pool.connection_kwargs |= {"host": moved.host, "port": moved.port}
        pool.disconnect()
        pool.reset()
        answer = call()
    stats = fleet_stats(name, answer)
    if not stats.max_size:
        raise ValueError(f"there is no fleet pool {name!r} on this server")
    return stats


def screen(stats: FleetStats) -> Group:
    """Draw it."""
    head = Text.assemble(
        (stats.name, "bold"),
        f"  {stats.used} of {stats.max_size} in use, {stats.waiting} waiting",
        f" (for {stats.waiting_for:.1f} s)" if stats.waiting else "",
        f"  lease {stats.lease:g} s",
        (f"  learning for {stats.learning:.1f} s more", "yellow") if stats.learning else "",
    )
    table = Table("host", "pid", "process", "holds", "waits", "waits for", "here for", "lease left")
    for column in table.columns[3:]:
        column.justify = "right"
    for member in stats.members:
        table.add_row(
            member.host,
            str(member.pid),
            member.process,
            str(member.held),
            str(member.waiting),
            f"{member.waiting_for:.1f} s" if member.waiting else "",
            f"{max(0.0, time.time() - member.since):.0f} s",
            f"{member.lease_left:.1f} s",
            style="red" if member.lease_left < stats.lease / 3 else "",
        )
    return Group(head, table)
