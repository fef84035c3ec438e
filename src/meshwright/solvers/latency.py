"""Splits of least latency for one sample: CPU nodes start when their inputs are in host memory, any number at a time.

An accelerator runs a convex set of nodes as one call: it starts when all producers outside are done, reads their results,
runs, and writes the results that are read outside; everything in it is done at its end. An accelerator may run several
such blocks, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from .downsets import earliest_first, last_in_first_out
from .mixed_integer import End, Programme, closed, solve
from .placement import Placement, merge, strong_components

Block = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Latency:
    value: float
    split: tuple[int, ...]
    """Device per node; every number from the count of accelerators on is the pool of CPUs."""
    blocks: tuple[tuple[Block, ...], ...]
    """Per accelerator: its calls, in order."""
    bound: float = 0.0


def pieces(graph: Placement, split: Sequence[int]) -> tuple[tuple[Block, ...], ...]:
    """Blocks that the nodes of each accelerator fall into: a node is in a later piece than a path that left the set."""
    before: list[list[int]] = [[] for _ in range(len(graph))]
    for a, b in graph.edges:
        before[b].append(a)
    found = []
    for device in range(graph.accelerators):
        piece = [0] * len(graph)
        for v in range(len(graph)):
            if split[v] == device:
                piece[v] = max([1, *(piece[u] + (split[u] != device) for u in before[v])])
            else:
                piece[v] = max((piece[u] for u in before[v]), default=0)
        own: dict[int, list[int]] = {}
        for v in range(len(graph)):
            if split[v] == device:
                own.setdefault(piece[v], []).append(v)
        found.append(tuple(tuple(own[k]) for k in sorted(own)))
    return tuple(found)


def makespan(graph: Placement, blocks: Sequence[Sequence[Block]], serial: bool = True) -> float:
    """Time until all is done; inf if blocks wait for each other.

    Args:
        serial: blocks of one accelerator run one after another; the study's evaluator of given splits lets them overlap.
    """
    n = len(graph)
    owner = {v: (d, k) for d, own in enumerate(blocks) for k, block in enumerate(own) for v in block}
    units: list[tuple[int, ...]] = [block for own in blocks for block in own]
    first = {(d, k): x for x, (d, k) in enumerate((d, k) for d, own in enumerate(blocks) for k in range(len(own)))}
    home = [0] * n
    for v in range(n):
        if v in owner:
            home[v] = first[owner[v]]
        else:
            home[v] = len(units)
            units.append((v,))
    edges = {(home[a], home[b]) for a, b in graph.edges if home[a] != home[b]}
    if serial:
        edges |= {(first[d, k - 1], first[d, k]) for d, own in enumerate(blocks) for k in range(1, len(own))}
    before: list[list[int]] = [[] for _ in units]
    for a, b in edges:
        before[b].append(a)
    order = last_in_first_out(len(units), sorted(edges))
    if len(order) < len(units):
        return inf
    producers: list[set[int]] = [set() for _ in units]
    leaving: list[set[int]] = [set() for _ in units]
    for a, b in graph.edges:
        if home[a] != home[b]:
            producers[home[b]].add(a)
            leaving[home[a]].add(a)
    done, calls = [0.0] * len(units), len(first)
    for x in order:
        start = max((done[u] for u in before[x]), default=0.0)
        if x < calls:
            moved = sum(graph.cost[u] for u in producers[x]) + sum(graph.cost[u] for u in leaving[x])
            done[x] = start + moved + sum(graph.accelerator[v] for v in units[x])
        else:
            done[x] = start + graph.cpu[units[x][0]]
    return float(max(done))


def critical_path(graph: Placement) -> float:
    """No split is done sooner: the longest path, each node on its faster kind of device, nothing to move."""
    fast = np.minimum(graph.accelerator if graph.accelerators else np.inf, graph.cpu if graph.cpus else np.inf)
    done = np.array(fast, np.float64)
    before: list[list[int]] = [[] for _ in range(len(graph))]
    for a, b in graph.edges:
        before[b].append(a)
    for v in range(len(graph)):  # nodes are in topological order
        done[v] += max((done[u] for u in before[v]), default=0.0)
    return float(done.max(initial=0.0))


def split_latency(graph: Placement, split: Sequence[int], serial: bool = True) -> Latency:
    """A split with the latency of its pieces."""
    blocks = pieces(graph, split)
    return Latency(makespan(graph, blocks, serial), tuple(split), blocks)


def greedy(graph: Placement) -> Latency:
    """Along a topological order fill one accelerator after another; what is too large for any, and the rest, goes to CPUs."""
    home = {v: g for g, own in enumerate(graph.groups) for v in own}
    edges = sorted({(home[a], home[b]) for a, b in graph.edges if home[a] != home[b]})
    parts = strong_components(len(graph.groups), edges)
    groups = merge(graph.groups, parts)
    place = {g: i for i, own in enumerate(parts) for g in own}
    first = [own[0] for own in groups]
    rank = sorted(range(len(groups)), key=first.__getitem__)
    groups, place = tuple(groups[g] for g in rank), {g: rank.index(x) for g, x in place.items()}
    order = earliest_first(len(groups), sorted({(place[a], place[b]) for a, b in edges if place[a] != place[b]}))
    split, device, held = [graph.accelerators] * len(graph), 0, 0.0
    for g in order:
        size = float(sum(graph.size[v] for v in groups[g]))
        capable = all(np.isfinite(graph.accelerator[v]) for v in groups[g])
        if size > graph.memory or not capable:
            continue
        if held + size > graph.memory:
            device, held = device + 1, 0.0
        if device >= graph.accelerators:
            break
        held += size
        for v in groups[g]:
            split[v] = device
    return split_latency(graph, split)


def latency_programme(
    graph: Placement, blocks: int = 1, *, gap: float = 0.01, seconds: float = 3600.0, start: Latency | None = None
) -> tuple[Latency | None, End]:
    """The best split with at most `blocks` calls an accelerator, its proven bound, and what ended the search.

    The original form with the critical path as an extra cut, and the greedy value instead of the sum of all CPU times where
    a constraint is switched off.
    """
    if (unit := graph.unit) != 1.0:
        counted = replace(start, value=start.value / unit, bound=start.bound / unit) if start is not None else None
        found, ended = latency_programme(graph.counted_in(unit), blocks, gap=gap, seconds=seconds, start=counted)
        return (
            replace(found, value=found.value * unit, bound=found.bound * unit) if found is not None else None
        ), ended
    n, calls = len(graph), graph.accelerators * blocks
    # Nothing needs to wait longer than if all ran one after another, each on its slower device, and moved all it makes.
    longest = np.maximum(*(np.where(np.isfinite(x), x, 0.0) for x in (graph.accelerator, graph.cpu)))
    horizon = min(start.value if start else inf, float(longest.sum() + 2 * graph.cost.sum() * max(1, calls)))
    model = Programme()
    x = [[model.binary() for _ in range(calls + 1)] for _ in range(n)]
    fast = np.where(np.isfinite(graph.accelerator), graph.accelerator, 0.0)
    late = [model.column(0.0, horizon) for _ in range(n)]
    path = [model.column(0.0, horizon) for _ in range(n)]
    begin = [model.column(0.0, horizon) for _ in range(calls)]
    end = [model.column(0.0, horizon) for _ in range(calls)]
    top = model.column(critical_path(graph) * (1 - 1e-9), horizon, cost=1.0)
    slow = np.where(np.isfinite(graph.cpu), graph.cpu, horizon)
    for v in range(n):
        model.row(dict.fromkeys(x[v], 1.0), 1.0, 1.0)
        if not np.isfinite(graph.accelerator[v]):
            for m in range(1, calls + 1):
                model.upper[x[v][m]] = 0.0
        if not np.isfinite(graph.cpu[v]):
            model.upper[x[v][0]] = 0.0
        q = float(slow[v])
        # Time on the critical path: p + (q − p) on a CPU.
        model.row({path[v]: 1.0, x[v][0]: -(q - float(fast[v]))}, least=float(fast[v]))
        model.row({late[v]: 1.0, path[v]: -1.0}, least=0.0)
        model.row({late[v]: 1.0, x[v][0]: -q}, least=0.0)
        model.row({top: 1.0, late[v]: -1.0}, least=0.0)
    for u, v in graph.edges:
        q = float(slow[v])
        model.row({path[v]: 1.0, path[u]: -1.0, x[v][0]: -(q - float(fast[v]))}, least=float(fast[v]))
        model.row({late[v]: 1.0, late[u]: -1.0, x[v][0]: -q}, least=0.0)
    for m in range(1, calls + 1):
        _add_call(model, graph, [x[v][m] for v in range(n)], late, begin[m - 1], end[m - 1], fast, horizon)
        if (m - 1) % blocks:
            model.row({begin[m - 1]: 1.0, end[m - 2]: -1.0}, least=0.0)
    room = graph.memory or 1.0
    for i in range(graph.accelerators):
        mine = range(1 + i * blocks, 1 + (i + 1) * blocks)
        if np.isfinite(graph.memory):
            model.row({x[v][m]: float(graph.size[v]) / room for v in range(n) for m in mine}, most=1.0)
        for group in graph.groups:
            for v in group[1:]:
                model.row({x[group[0]][m]: 1.0 for m in mine} | {x[v][m]: -1.0 for m in mine}, 0.0, 0.0)
    first = None
    if start is not None and all(len(own) <= blocks for own in start.blocks):
        first = [inf] * len(model.cost)
        for v in range(n):
            for column in x[v]:
                first[column] = 0.0
            first[x[v][0]] = 1.0
        for i, own in enumerate(start.blocks):
            for k, block in enumerate(own):
                for v in block:
                    first[x[v][0]], first[x[v][1 + i * blocks + k]] = 0.0, 1.0
    solved = solve(model, gap=gap, seconds=seconds, start=first)
    best = start
    if solved.values:
        chosen = [int(np.argmax([solved.values[column] for column in x[v]])) for v in range(n)]
        own_blocks = tuple(
            tuple(
                block for k in range(blocks) if (block := tuple(v for v in range(n) if chosen[v] == 1 + i * blocks + k))
            )
            for i in range(graph.accelerators)
        )
        split = tuple((m - 1) // blocks if m else graph.accelerators for m in chosen)
        value = makespan(graph, own_blocks)
        if best is None or value < best.value:
            best = Latency(value, split, own_blocks)
    if best is None:
        return None, solved.end
    bound = min(best.value, max(solved.bound if solved.bound < inf else best.value, critical_path(graph)))
    return Latency(best.value, best.split, best.blocks, closed(best.value, bound)), solved.end


def _add_call(
    model: Programme, graph: Placement, member: Sequence[int], late: Sequence[int], begin: int, end: int,
    fast: NDArray[np.float64], horizon: float,
) -> None:  # fmt: skip
    """One block: convex, starts after all it reads, ends after reading, running and writing."""
    n = len(graph)
    reach = [model.column(0.0, 1.0) for _ in range(n)]
    length = {end: 1.0, begin: -1.0}
    for v in range(n):
        model.row({reach[v]: 1.0, member[v]: -1.0}, least=0.0)
        if fast[v]:
            length[member[v]] = -float(fast[v])
        model.row({late[v]: 1.0, end: -1.0, member[v]: -horizon}, least=-horizon)
    for u, v in graph.edges:
        model.row({reach[u]: 1.0, reach[v]: -1.0}, least=0.0)
        model.row({reach[v]: 1.0, member[v]: -1.0, member[u]: 1.0}, most=1.0)
    for u, readers in enumerate(graph.readers):
        if not readers:
            continue
        arriving, leaving = model.column(0.0, 1.0), model.column(0.0, 1.0)
        for v in readers:
            model.row({arriving: 1.0, member[v]: -1.0, member[u]: 1.0}, least=0.0)
            model.row({leaving: 1.0, member[u]: -1.0, member[v]: 1.0}, least=0.0)
        model.row({begin: 1.0, late[u]: -1.0, arriving: -horizon}, least=-horizon)
        if graph.cost[u]:
            length[arriving] = -float(graph.cost[u])
            length[leaving] = -float(graph.cost[u])
    model.row(length, 0.0, 0.0)
