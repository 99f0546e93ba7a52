"""A pool of tokens that all processes of a fleet share, on Redis; see docs/fleet.md."""

from gpools.fleet._member import Token
from gpools.fleet._watch import FleetMember, FleetStats
from gpools.fleet.pool import DistributedTokenPool

__all__ = ["DistributedTokenPool", "FleetMember", "FleetStats", "Token"]
