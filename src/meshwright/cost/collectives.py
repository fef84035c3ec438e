"""Seconds of collectives: the best of ring, tree and hierarchical, over the levels that a group spans.

A step of an algorithm costs its level's latency. Protocols trade latency for bandwidth, as NCCL's do; latencies,
ratios and step counts follow NCCL's tuning model (NVIDIA/nccl, src/graph/tuning.cc), which is also where the presets'
latencies are from.

    flat ring     N − 1 steps (all-reduce 2(N − 1)), those between nodes at the outer latency; all at the rate of the
                  slowest link that the group's rings cross
    tree          chains inside nodes, a binary tree between them: 2 · (n − 1 + log2 nodes) steps at .9 of the rate
    exchange      levels side by side; of k copies of a token that go to random members of G nodes, G (1 − (1 − 1/G)^k)
                  nodes get one (DeepEP, HybridEP: one copy crosses to a node, and is spread there)
    hierarchical  rings inside each node first, then between equal members of the nodes on 1/n of the bytes

Besides what crosses links, each round costs `Family.fill` of the bytes at the rate of the innermost level: the buffer
passes through the members' own memory, and a ring fills and drains. Two members thus reach less of a link than eight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np

from ..cluster.model import Cluster, Mesh
from ..cluster.topology import GroupShape, group_shape
from ..errors import InputError
from ..graph.ir import Floats
from .base import Collective, Group
from .constants import Family

PROTOCOLS = ((1.0, 1.0), (0.5, 0.92), (0.19, 0.25))
"""(share of the latency, share of the bandwidth) of Simple, LL128 and LL."""
TREE_RATE = 0.9
TREE_LATENCY = 1.2
"""A tree step costs 4.0 us against a ring step's 3.4 us on NVLink; 14 against 14 us on the network."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One level that a group spans, as its members meet it."""

    fanout: int
    """Parts (devices, then nodes, …) that meet here."""
    ring: float
    """Bytes/s of one group's rings through this level."""
    member: float
    """Bytes/s of one member's own connection when all members talk at once."""
    latency: float
    """Seconds of a step."""
    chain: bool
    """Whether trees pass through its parts one after the other (a node) instead of as a binary tree (nodes)."""


@dataclass(frozen=True, slots=True)
class Line:
    """A candidate algorithm: seconds = fixed + bytes · per_byte."""

    fixed: float
    per_byte: float


def tiers(cluster: Cluster, shape: GroupShape, family: Family) -> tuple[Tier, ...]:
    """Levels at which parts of a group meet, innermost first, with bandwidth after sharing and losses.

    A group whose members lie in components of level l gets of each component's uplink its share among the groups that
    meet there, and never more than its members' own connections.

    Raises:
        InputError: members that no level joins.
    """
    found: list[Tier] = []
    parts = shape.size
    inside_before, group_limit, member_limit = 1, float("inf"), float("inf")
    for k, level in enumerate(cluster.levels):
        spans = shape.spans[k]
        fanout = ceil(parts / spans)
        if fanout > 1:
            share = (
                family.inner if group_limit == float("inf") and k < max(1, len(cluster.levels) - 1) else family.outer
            )
            bandwidth = min(level.bandwidth, (fanout - 1) * level.pair) if level.pair else level.bandwidth
            ring = min(inside_before * bandwidth, group_limit)
            member = min(bandwidth, member_limit)
            found.append(Tier(fanout, ring * share, member * share, level.latency, k == 0))
        parts, inside_before = spans, shape.inside[k]
        if level.uplink and shape.crowd[k]:
            group_limit = min(group_limit, level.uplink / shape.sharing[k])
            member_limit = min(member_limit, level.uplink / shape.crowd[k])
        if parts == 1:
            break
    if parts > 1:
        raise InputError(
            f"cluster {cluster.name}: a group of {shape.size} devices is in {parts} parts that no level joins: "
            "add a level that holds them all",
            where="levels",
        )
    return tuple(found)


def lines(kind: Collective, group: Sequence[Tier], family: Family, copies: int = 1) -> tuple[Line, ...]:
    """Candidate algorithms for one collective of a group; the fastest one counts."""
    start = family.start
    size = 1
    for tier in group:
        size *= tier.fanout
    if size == 1:
        return (Line(0.0, 0.0),)
    found: list[Line] = []
    for slow, rate in PROTOCOLS:
        if kind == "all_to_all":
            found.append(_exchange(group, size, start, slow, rate * family.exchange, copies))
            continue
        found.append(_ring(kind, group, size, start, slow, rate))
        if kind in ("all_reduce", "broadcast", "reduce"):
            found.append(_tree(kind, group, start, slow, rate))
        if len(group) > 1 and kind in ("all_reduce", "all_gather", "reduce_scatter"):
            found.append(_hierarchical(kind, group, start, slow, rate))
    rounds = 2 if kind == "all_reduce" else 1
    fill = rounds * family.fill / group[0].member if kind != "all_to_all" else 0.0
    return tuple(Line(line.fixed, line.per_byte + fill) for line in found)


def _ring(kind: Collective, group: Sequence[Tier], size: int, start: float, slow: float, rate: float) -> Line:
    bandwidth = min(tier.ring for tier in group)
    if kind == "permute":
        return Line(start + slow * max(t.latency for t in group), 1.0 / (rate * min(t.member for t in group)))
    rounds = 2 if kind == "all_reduce" else 1
    # Of the steps of the slowest chain through the ring, one per outer part crosses that outer level.
    steps, outer = 0.0, 1
    for tier in reversed(group):
        steps += (tier.fanout - 1) * outer * tier.latency
        outer *= tier.fanout
    share = 1.0 if kind in ("broadcast", "reduce") else rounds * (size - 1) / size
    return Line(start + slow * rounds * steps, share / (rate * bandwidth))


def _tree(kind: Collective, group: Sequence[Tier], start: float, slow: float, rate: float) -> Line:
    bandwidth = min(tier.ring for tier in group) * TREE_RATE
    rounds = 2 if kind == "all_reduce" else 1
    steps = sum((t.fanout - 1) * TREE_LATENCY * t.latency for t in group if t.chain)
    steps += sum(ceil(log2(t.fanout)) * t.latency for t in group if not t.chain)
    return Line(start + slow * rounds * steps, rounds / (rate * bandwidth))


def _hierarchical(kind: Collective, group: Sequence[Tier], start: float, slow: float, rate: float) -> Line:
    rounds = 2 if kind == "all_reduce" else 1
    fixed, per_byte, below = 0.0, 0.0, 1
    for tier in group:
        share = (tier.fanout - 1) / tier.fanout / below
        # Between nodes an all-reduce of the parts may itself be a tree: fewer steps at full rate of one member.
        hops: float = tier.fanout - 1
        if kind == "all_reduce" and not tier.chain:
            hops = min(hops, 2.0 * ceil(log2(tier.fanout)))
        fixed += rounds * hops * tier.latency
        per_byte += rounds * share / tier.member
        below *= tier.fanout
    # One start per phase: inside, between, and back.
    phases = 2 * len(group) - 1 if kind == "all_reduce" else len(group)
    return Line(start * phases + slow * fixed, per_byte / rate)


def _exchange(group: Sequence[Tier], size: int, start: float, slow: float, rate: float, copies: int) -> Line:
    """Every member sends 1/size of its bytes to every other; levels work side by side, peers in turn."""
    slowest, fixed, below = 0.0, 0.0, 1
    for tier in group:
        reach = below * tier.fanout
        parts = size // below
        once = parts * (1.0 - (1.0 - 1.0 / parts) ** copies) / copies if below > 1 else 1.0
        slowest = max(slowest, once * (reach - below) / size / tier.member)
        fixed += (reach - below) * tier.latency * 0.19
        below = reach
    return Line(start + slow * max(fixed, max(t.latency for t in group)), slowest / rate)


def link_lines(kind: Collective, cluster: Cluster, devices: Sequence[int], family: Family) -> Line | None:
    """The ring over explicit links where two neighbours of a group have one; None if none of them has."""
    found = [cluster.link_between[p] for p in zip(devices, [*devices[1:], devices[0]]) if p in cluster.link_between]
    if not found or len(devices) < 2:
        return None
    rounds = 2 if kind == "all_reduce" else 1
    size = len(devices)
    share = 1.0 if kind in ("broadcast", "reduce", "permute") else rounds * (size - 1) / size
    steps = rounds * (size - 1) * max(link.latency for link in found)
    return Line(family.start + steps, share / (family.inner * min(link.bandwidth for link in found)))


class CollectivePrices:
    """Lines of (kind, group) pairs, worked out once per mesh, axes and cluster."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Line, ...]] = {}
        self._pinned: dict[int, object] = {}

    def seconds(self, kind: Collective, nbytes: Floats, group: Group, family: Family) -> Floats:
        """Per entry of `nbytes`; 0 where it is 0."""
        candidates = self.lines(kind, group, family)
        if len(nbytes) <= 4:
            return np.array([min(c.fixed + b * c.per_byte for c in candidates) if b > 0 else 0.0 for b in nbytes])
        best = np.min([c.fixed + nbytes * c.per_byte for c in candidates], axis=0)
        return np.asarray(np.where(nbytes > 0, best, 0.0), dtype=np.float64)

    def lines(self, kind: Collective, group: Group, family: Family) -> tuple[Line, ...]:
        """The algorithms among which the fastest is taken."""
        mesh = group.mesh
        devices: object = mesh.devices
        if not isinstance(devices, range):
            devices = self._pin(devices)
        key = (
            kind,
            self._pin(group.cluster),
            devices,
            mesh.axes,
            mesh.shape,
            group.axes,
            group.at_zero,
            group.copies,
            self._pin(family),
        )
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._work_out(kind, group, family)
        return found

    def _pin(self, value: object) -> int:
        """An identity that stays valid: the object is kept alive."""
        self._pinned.setdefault(id(value), value)
        return id(value)

    def _work_out(self, kind: Collective, group: Group, family: Family) -> tuple[Line, ...]:
        shape = group_shape(group.cluster, group.mesh, group.axes, group.at_zero)
        found = list(lines(kind, tiers(group.cluster, shape, family), family, group.copies))
        if group.cluster.links:
            explicit = [link_lines(kind, group.cluster, m, family) for m in _groups(group.mesh, group.axes)]
            slowest = [line for line in explicit if line is not None]
            if slowest:
                found = [Line(max(x.fixed for x in slowest), max(x.per_byte for x in slowest))]
        return tuple(found)


def _groups(mesh: Mesh, axes: Sequence[str]) -> list[list[int]]:
    """Devices of each group along `axes`."""
    grid = np.asarray(mesh.devices, dtype=np.int64).reshape(mesh.shape)
    used = [k for k, axis in enumerate(mesh.axes) if axis in axes]
    other = [k for k, axis in enumerate(mesh.axes) if axis not in axes]
    size = int(np.prod([mesh.shape[k] for k in used], dtype=np.int64))
    rows: list[list[int]] = grid.transpose([*other, *used]).reshape(-1, size).tolist()
    return rows
