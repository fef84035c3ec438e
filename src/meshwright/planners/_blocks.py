"""Models of one repeated block, cut into stages of equally many blocks; and what one stage of them costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cluster.model import Cluster
from ..cluster.topology import shared_level
from ..graph.ir import Graph, Run
from ._profile import Profile


@dataclass(frozen=True, slots=True)
class Part:
    """One stage of a profile of b samples. Seconds and bytes of one device."""

    nodes: tuple[int, ...]
    forward: float
    backward: float
    params: float
    stored: float
    """What the backward of one micro-batch needs."""
    sent: float
    """What goes on to the next stage; 0 for the last."""


def block_ends(profile: Profile) -> tuple[int, ...]:
    """Nodes up to and including each block; what stands before the first block or after the last belongs to it.

    Blocks are those of the graph's runs, and what has the kinds of a block's ops next to them (a first layer that reads data
    computes as the others do, only its input has no gradient); a graph without runs has one a node.
    """
    graph = profile.graph
    n = len(profile)
    starts = {start for run in graph.runs for start in _starts(graph, run)}
    first = [v for v in range(n) if not graph.runs or profile.ops[v][0] in starts]
    return (*first[1:], n) if first else (n,)


def _starts(graph: Graph, run: Run) -> range:
    kinds = [op.kind for op in graph.ops]
    block = kinds[run.first : run.first + run.length]
    first, stop = run.first, run.first + run.length * run.count
    while first >= run.length and kinds[first - run.length : first] == block:
        first -= run.length
    while kinds[stop : stop + run.length] == block:
        stop += run.length
    return range(first, stop, run.length)


def equal_parts(profile: Profile, stages: int) -> tuple[Part, ...] | None:
    """Stages of equally many blocks (without runs the last take what is left over); None where blocks do not divide."""
    ends = block_ends(profile)
    if len(ends) < stages or (profile.graph.runs and len(ends) % stages):
        return None
    each, left = divmod(len(ends), stages)
    sizes = [each + (s >= stages - left) for s in range(stages)]
    found = []
    first = at = 0
    for s, size in enumerate(sizes):
        at += size
        stop = ends[at - 1]
        nodes = tuple(range(first, stop))
        found.append(_part(profile, nodes, last=s == stages - 1))
        first = stop
    return tuple(found)


def _part(profile: Profile, nodes: Sequence[int], *, last: bool) -> Part:
    own = set(nodes)
    crossing = {a for a, b in profile.edges if a <= nodes[-1] < b}
    scale = profile.samples / profile.graph.samples
    return Part(
        tuple(nodes),
        float(sum(profile.forward[v] for v in own)),
        float(sum(profile.backward[v] for v in own)),
        float(sum(profile.params[v] for v in own)),
        _stored(profile.graph, [op for v in nodes for op in profile.ops[v]]) * scale,
        0.0 if last else float(sum(profile.activation[v] for v in crossing)),
    )


def _stored(graph: Graph, ops: Sequence[int]) -> float:
    """Bytes that the backward of these ops needs, each tensor once, at the graph's samples."""
    names = {name for op in ops for name in graph.ops[op].saved if graph.tensor[name].role != "param"}
    return sum(graph.tensor[name].nbytes for name in names) + sum(graph.ops[op].saved_extra for op in ops)


def slowest(cluster: Cluster, devices: Sequence[int]) -> tuple[float, float]:
    """(bytes/s, latency) of the outermost level that these devices cross; free for one device."""
    level = max((shared_level(cluster, devices[0], d) for d in devices[1:]), default=-1)
    if level < 0:
        return float("inf"), 0.0
    return cluster.levels[level].bandwidth, cluster.levels[level].latency


def grids(count: int, width: int, depth: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Two ways to lay `width` replicas of `depth` stages on devices: replicas next to each other, or stages."""
    near = tuple(tuple(range(s * width, (s + 1) * width)) for s in range(depth))
    far = tuple(tuple(range(s, count, depth)) for s in range(depth))
    return (near,) if near == far else (near, far)


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]
