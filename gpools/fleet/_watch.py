"""Who holds how many tokens of a fleet pool, and who waits; what `stats` returns."""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

__all__ = ["FleetMember", "FleetStats", "fleet_stats"]

# As the script packs a pool; the rest is strings.
NAMES = ("size", "used", "lease", "grace", "n", "clock", "wall", "born", "learn")
PACKED = struct.Struct(f"<{len(NAMES)}d")

COUNTED = 10_000  # of those who wait; the rest is counted, but not by process


@dataclass(frozen=True)
class FleetMember:
    """A process of the fleet, as the server knows it.

    *lease_left* is in seconds, less than 0 if it is late; *since* is when it
    came, a time of its own clock; *waiting_for* is for how long its oldest
    waiter has waited.
    """

    process: str
    host: str
    pid: int
    machine: str
    since: float
    held: int
    waiting: int
    waiting_for: float
    lease_left: float


@dataclass(frozen=True)
class FleetStats:
    """A fleet pool at one moment; *learning* is for how long nothing is granted yet."""

    name: str
    max_size: int
    used: int
    waiting: int
    waiting_for: float
    lease: float
    grace: float
    learning: float
    members: tuple[FleetMember, ...]

    @property
    def free(self) -> int:
        """How many tokens are free; negative after a shrink."""
        return self.max_size - self.used


def fleet_stats(name: str, answer: list[Any]) -> FleetStats:
    """Make sense of what the script answers to `list`."""
    packed, held, leases, queue, waiting, (seconds, micros) = answer
    numbers = PACKED.unpack_from(packed) if packed else ()
    pool = {key: int(number) for key, number in zip(NAMES, numbers, strict=False)}
    # The clock of the pool stands between calls.
    wall = int(seconds) * 1_000_000 + int(micros)
    now = pool.get("clock", 0) + max(0, wall - pool.get("wall", wall))
    oldest: dict[bytes, int] = {}
    waits: Counter[bytes] = Counter()
    for member, number in _pairs(queue):
        process = member.rpartition(b":")[0]
        waits[process] += 1
        oldest.setdefault(process, int(float(number)))
    ends = {process: int(float(end)) for process, end in _pairs(leases)}
    members = []
    for process, text in _pairs(held):
        count, _, info = text.split(b" ", 2)
        about = _about(info)
        since = oldest.get(process)
        members.append(
            FleetMember(
                process=process.decode(),
                host=str(about.get("host", "")),
                pid=int(about.get("pid", 0)),
                machine=str(about.get("machine", "")),
                since=float(about.get("since", 0.0)),
                held=int(count),
                waiting=waits[process],
                waiting_for=0.0 if since is None else max(0, wall - since) / 1e6,
                lease_left=(ends.get(process, now) - now) / 1e6,
            )
        )
    members.sort(key=lambda member: (-member.held, member.host, member.pid, member.process))
    return FleetStats(
        name=name,
        max_size=pool.get("size", 0),
        used=pool.get("used", 0),
        waiting=int(waiting),
        waiting_for=max(0, wall - min(oldest.values())) / 1e6 if oldest else 0.0,
        lease=pool.get("lease", 0) / 1e6,
        grace=pool.get("grace", 0) / 1e6,
        learning=max(0, pool.get("learn", 0) - now) / 1e6,
        members=tuple(members),
    )


def _about(info: bytes) -> dict[str, Any]:
    try:
        about = json.loads(info)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _pairs(flat: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
