"""A cluster from nodes: levels of equal nodes by size, of unequal ones by membership."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from .model import MOST_DEVICES, Cluster, DeviceType, Level, Link


@dataclass(frozen=True, slots=True)
class Wire:
    """A kind of connection. Bandwidth in bytes/s one way; latency in seconds a hop; pair: see `Level.pair`."""

    name: str
    bandwidth: float
    latency: float
    pair: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """`count` equal nodes of `devices` devices; `nics` wires of kind `nic` leave each node, shared by its devices."""

    device: DeviceType
    devices: int
    count: int
    inside: Wire
    nic: Wire | None = None
    nics: float = 0.0

    @property
    def uplink(self) -> float:
        return self.nic.bandwidth * self.nics if self.nic else 0.0


@dataclass(frozen=True, slots=True)
class Outer:
    """A level above the nodes: `nodes` of them a component (0 = all); `uplink` bytes/s of one component to the next level."""

    name: str
    nodes: int
    wire: Wire
    uplink: float = 0.0


def build(name: str, groups: Sequence[NodeGroup], outer: Sequence[Outer] = (), links: Sequence[Link] = ()) -> Cluster:
    """Devices are numbered node by node in the order of `groups`.

    Without `outer`, all nodes form one level over their fastest NICs. Costs O(1) for equal nodes.

    Raises:
        InputError: more devices than are planned for.
    """
    count = sum(g.devices * g.count for g in groups)
    if count > MOST_DEVICES:
        raise InputError(
            f"{name} has {count:,} devices: clusters of up to {MOST_DEVICES:,} are planned for", where="--cluster"
        )
    nodes = sum(g.count for g in groups)
    nics = sorted((g.nic for g in groups if g.nic is not None), key=lambda w: w.bandwidth)
    if not outer and nodes > 1 and nics:
        outer = (Outer(nics[-1].name, 0, nics[-1]),)
    types = tuple({g.device.name: g.device for g in groups}.values())
    if len(groups) == 1:
        inner = _equal(groups[0], nodes)
        above = _outer_equal(groups[0].devices, count, outer)
        return Cluster(name, types, count, (), (inner, *above), tuple(links))
    index = {t.name: i for i, t in enumerate(types)}
    device = [index[g.device.name] for g in groups for _ in range(g.devices * g.count)]
    node = _node_of(groups)
    levels = [*_inner_unequal(groups, node), *_outer_unequal(node, nodes, outer)]
    return Cluster(name, types, count, tuple(device) if len(types) > 1 else (), tuple(levels), tuple(links))


def _equal(group: NodeGroup, nodes: int) -> Level:
    uplink = group.uplink if nodes > 1 else 0.0
    wire = group.inside
    return Level(wire.name, group.devices, wire.bandwidth, wire.latency, uplink, pair=wire.pair)


def _outer_equal(node: int, count: int, outer: Sequence[Outer]) -> list[Level]:
    return [
        Level(o.name, min(o.nodes * node, count) if o.nodes else count, o.wire.bandwidth, o.wire.latency, o.uplink)
        for o in outer
    ]


def _node_of(groups: Sequence[NodeGroup]) -> list[int]:
    found: list[int] = []
    node = 0
    for g in groups:
        for _ in range(g.count):
            found += [node] * g.devices
            node += 1
    return found


def _inner_unequal(groups: Sequence[NodeGroup], node: list[int]) -> list[Level]:
    """One level per kind of node, smallest uplink first: nodes of later kinds stand there as single devices.

    A level has one uplink figure for all its components. In this order those of later levels never bind an earlier
    kind; a single device of a later kind is no component that leaves by an uplink.
    """
    own = [
        (g.uplink, g.inside.bandwidth, g.inside.latency, g.inside.name, g.inside.pair)
        for g in groups
        for _ in range(g.devices * g.count)
    ]
    kinds = sorted(set(own))
    levels = []
    for k, (uplink, bandwidth, latency, name, pair) in enumerate(kinds):
        joined = set(kinds[: k + 1])
        seen: dict[tuple[str, int], int] = {}
        member = [
            seen.setdefault(("node", n) if own[d] in joined else ("device", d), len(seen)) for d, n in enumerate(node)
        ]
        levels.append(Level(name, 0, bandwidth, latency, uplink, tuple(member), pair))
    return levels


def _outer_unequal(node: list[int], nodes: int, outer: Sequence[Outer]) -> list[Level]:
    return [
        Level(o.name, 0, o.wire.bandwidth, o.wire.latency, o.uplink, tuple(n // (o.nodes or nodes) for n in node))
        for o in outer
    ]
