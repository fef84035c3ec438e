"""DAPPLE's three ways to choose devices, and what its planner charges for transfers and sums between device sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

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


Counts: TypeAlias = tuple[int, ...]
"""Devices in use by server. Policies take the first free ones of a server, so this says which they are."""


def counts_of(servers: Servers, devices: Iterable[int]) -> Counts:
    """Of devices that fill their servers from the first on."""
    found = [0] * servers.count
    for d in devices:
        found[d // servers.size] += 1
    return tuple(found)


def fresh_first(servers: Servers, used: Counts, n: int) -> Counts:
    """n more, from servers with no device in use, then from the others; () where there are not as many."""
    return _filled(servers, used, n, sorted(range(servers.count), key=lambda s: used[s] > 0))


def append_first(servers: Servers, used: Counts, n: int) -> Counts:
    """From servers that are partly in use, then from the others."""
    return _filled(servers, used, n, sorted(range(servers.count), key=lambda s: used[s] in (0, servers.size)))


def scatter_first(servers: Servers, used: Counts, n: int) -> Counts:
    """One from every server with free ones, in turn."""
    found = list(used)
    while n > 0 and any(x < servers.size for x in found):
        for s in range(servers.count):
            if n > 0 and found[s] < servers.size:
                found[s], n = found[s] + 1, n - 1
    return tuple(found) if n == 0 else ()


def _filled(servers: Servers, used: Counts, n: int, order: Sequence[int]) -> Counts:
    found = list(used)
    for s in order:
        more = min(n, servers.size - found[s])
        found[s], n = found[s] + more, n - more
    return tuple(found) if n == 0 else ()


POLICIES: Mapping[str, Callable[[Servers, Counts, int], Counts]] = {
    "fresh": fresh_first,
    "append": append_first,
    "scatter": scatter_first,
}


def placements(servers: Servers, used: Counts, n: int, rounds: int = 1) -> tuple[Counts, ...]:
    """What is in use after rounds · n more devices: the policies applied `rounds` times in turn in all combinations.

    Devices of one server are alike, so each number of devices by server counts once.
    """
    found: dict[Counts, None] = {used: None}
    for _ in range(rounds):
        found = dict.fromkeys(more for have in found for more in _each(servers, have, n))
    return tuple(found)


@lru_cache(maxsize=1 << 18)
def _each(servers: Servers, used: Counts, n: int) -> tuple[Counts, ...]:
    return tuple(more for policy in POLICIES.values() if (more := policy(servers, used, n)))


@lru_cache(maxsize=1 << 16)
def between(servers: Servers, before: Counts, after: Counts) -> Devices:
    """The devices that come into use."""
    return tuple(
        d
        for s, (a, b) in enumerate(zip(before, after, strict=True))
        for d in range(s * servers.size + a, s * servers.size + b)
    )
