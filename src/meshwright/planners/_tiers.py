"""A cluster's levels as PipeDream sees them, and the stages of a plan as components of those levels."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from ..cluster.model import Cluster
from ..errors import Unsupported
from ..solvers.replicated_stages import Tier


def tiers_of(cluster: Cluster, planner: str) -> tuple[Tier, ...]:
    """Innermost first, those that join at least two components.

    Raises:
        Unsupported: components that are not equal and contiguous, or mixed devices.
    """
    found = []
    below = 1
    for level in cluster.levels:
        if not level.size:
            raise Unsupported(
                f"{planner} plans for levels of equal components: {level.name} of {cluster.name} has others"
            )
        size = min(level.size, cluster.count)
        if size == below:
            continue
        if size % below or cluster.count % size:
            raise Unsupported(
                f"{planner} plans for levels of equal components: {size} devices of level {level.name} do not divide into "
                f"components of {below}, or {cluster.count} devices into them"
            )
        found.append(Tier(size // below, level.bandwidth))
        below = size
    if below < cluster.count:
        raise Unsupported(f"{planner} needs a level that joins all {cluster.count} devices of {cluster.name}")
    return tuple(found) or (Tier(1, inf),)


def components(devices: Sequence[int], unit: int) -> frozenset[int]:
    """Which components of `unit` devices these devices are in."""
    return frozenset(d // unit for d in devices)
