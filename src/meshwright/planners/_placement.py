"""DAPPLE's three ways to choose devices, and what its planner charges for transfers and sums between device sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..cluster.model import Cluster
from ..errors import Unsupported

Devices = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Servers:
    """Equal servers of `size` devices. Bytes/s: inside a server, between servers point to point and in collectives."""

    size: int
    count: int
    inside: float
    between: float
    collective: float

    def free(self, occupied: frozenset[int]) -> list[list[int]]:
        """Free devices of each server."""
        return [[d for d in range(s * self.size, (s + 1) * self.size) if d not in occupied] for s in range(self.count)]

    def transfer(self, src: Sequence[int], dst: Sequence[int], nbytes: float) -> float:
        """Seconds."""
        homes = {d // self.size for d in dst}
        if len(homes) > 1:
            return nbytes / self.collective
        outside = sum(d // self.size not in homes for d in src)
        return nbytes * outside / len(src) / self.between if outside else nbytes / self.inside

    def all_reduce(self, devices: Sequence[int], nbytes: float) -> float:
        """Seconds; inside a server ⌊n / 2⌋ rings run at once."""
        n = len(devices)
        if n == 1:
            return 0.0
        volume = 2.0 * nbytes * (n - 1) / n
        across = len({d // self.size for d in devices}) > 1
        return volume / self.collective if across else volume / self.inside / (n // 2)


NCCL_GAIN = 3.0
"""Collectives over Ethernet reach 3e9 bytes/s where point to point has 1e9: the constants of the public planner."""


def servers_of(cluster: Cluster, *, gain: float) -> Servers:
    """The innermost level of a cluster as its servers.

    Raises:
        Unsupported: servers that are not equal.
    """
    levels = cluster.levels
    size = min(levels[0].size or 0, cluster.count) if levels else cluster.count
    if size < 1 or cluster.count % size:
        raise Unsupported(f"dapple plans for servers of equal size: {cluster.name} has others")
    inside = levels[0].bandwidth if levels else float("inf")
    between = levels[-1].bandwidth if len(levels) > 1 else inside
    return Servers(size, cluster.count // size, inside, between, between * gain)


def fresh_first(servers: Servers, occupied: frozenset[int], n: int) -> Devices:
    """From servers with no occupied device, then from the others."""
    return _take(sorted(servers.free(occupied), key=lambda own: len(own) < servers.size), n)


def append_first(servers: Servers, occupied: frozenset[int], n: int) -> Devices:
    """From servers that are partly occupied, then from the others."""
    return _take(sorted(servers.free(occupied), key=lambda own: len(own) in (0, servers.size)), n)


def scatter_first(servers: Servers, occupied: frozenset[int], n: int) -> Devices:
    """One from every server with free ones, in turn."""
    free = servers.free(occupied)
    found: list[int] = []
    for turn in range(servers.size):
        found += [own[turn] for own in free if turn < len(own)]
    return tuple(sorted(found[:n])) if len(found) >= n else ()


def _take(groups: Sequence[Sequence[int]], n: int) -> Devices:
    found = [d for own in groups for d in own][:n]
    return tuple(sorted(found)) if len(found) == n else ()


POLICIES: Mapping[str, Callable[[Servers, frozenset[int], int], Devices]] = {
    "fresh": fresh_first,
    "append": append_first,
    "scatter": scatter_first,
}


def placements(servers: Servers, occupied: frozenset[int], n: int, rounds: int = 1) -> tuple[Devices, ...]:
    """Sets of rounds · n devices: the policies applied `rounds` times in turn in all combinations, each set once."""
    sets: dict[Devices, None] = {(): None}
    for _ in range(rounds):
        longer: dict[Devices, None] = {}
        for have in sets:
            for policy in POLICIES.values():
                more = policy(servers, occupied | frozenset(have), n)
                if more:
                    longer[tuple(sorted(have + more))] = None
        sets = longer
    # Devices of one server are alike: one set for each number of devices by server.
    alike: dict[tuple[int, ...], Devices] = {}
    for found in sets:
        alike.setdefault(tuple(sum(d // servers.size == s for d in found) for s in range(servers.count)), found)
    return tuple(alike.values())
