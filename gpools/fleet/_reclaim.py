"""Give up the tokens of processes of this machine that have died without a word."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gevent import Timeout, sleep

from gpools.fleet._watch import fleet_stats

if TYPE_CHECKING:
    from gpools.fleet._member import Member

__all__ = ["bury_the_dead"]


def bury_the_dead(member: Member) -> None:
    """Look around every now and then while somebody waits here, as long as *member* lives."""
    from gpools.fleet._member import machine

    here = machine()
    while here and not member.abandoned and member.refusal is None:
        sleep(max(0.05, min(0.5, member.lease / 10)))
        if not member.waiters or not member.ready:
            continue
        with suppress(Exception, Timeout), Timeout(member.lease / 3):
            answer: Any = member.ask("list", 1).get()  # of the line, which may be long, one
            stats = fleet_stats(member.settings.name, answer)
            for other in stats.members:
                if other.machine == here and other.held and _dead(other.pid):
                    # Refused by the server while the process listens.
                    member.ask("bury", other.process).get()


def _dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
