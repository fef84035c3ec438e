"""Balanced parts of an undirected graph with a small cut: what a general graph partitioner does with a placement problem.

Stands for the Scotch baseline of the placement study: vertex weights are times, edge weights the transfers between two
groups; direction and memory are ignored. Multilevel: heavy edges are contracted, the coarse graph is cut along a walk, and
on the way back vertices move by gain (Fiduccia and Mattheyses) under balance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .downsets import last_in_first_out
from .placement import Placement

BALANCE = 1.05
"""Heaviest part over the mean, unless one vertex is heavier than that."""
PASSES = 20
ATTEMPTS = 10
COARSE = 12
"""Vertices a part at which contraction stops."""
SHARE = 0.25
"""Of a part's mean that a contracted vertex may weigh."""


@dataclass(frozen=True, slots=True)
class _Level:
    weight: NDArray[np.float64]
    beside: list[dict[int, float]]
    """Neighbour -> weight of the edge."""


def balanced_parts(graph: Placement, rng: np.random.Generator) -> tuple[int, ...]:
    """Accelerator of each node: of some attempts the one with the smallest cut, whatever load it gives."""
    attempts = [_attempt(graph, rng) for _ in range(ATTEMPTS)]
    return min(attempts, key=lambda found: found[0])[1]


def _attempt(graph: Placement, rng: np.random.Generator) -> tuple[float, tuple[int, ...]]:
    """(weight of the cut, accelerator of each node)."""
    groups, parts = graph.groups, graph.accelerators
    home = {v: g for g, own in enumerate(groups) for v in own}
    beside: list[dict[int, float]] = [{} for _ in groups]
    for u, readers in enumerate(graph.readers):
        a = home[u]
        for b in {home[v] for v in readers} - {a}:
            beside[a][b] = beside[a].get(b, 0.0) + float(graph.cost[u])
            beside[b][a] = beside[b].get(a, 0.0) + float(graph.cost[u])
    weight = np.array([sum(graph.accelerator[v] for v in own) for own in groups], np.float64)
    levels, maps = [_Level(weight, beside)], []
    mean = float(weight.sum()) / parts
    while len(levels[-1].weight) > COARSE * parts:
        coarse, into = _contracted(levels[-1], SHARE * mean, rng)
        if len(coarse.weight) > 0.95 * len(levels[-1].weight):
            break
        levels.append(coarse)
        maps.append(into)
    rank = _walk(graph, home, len(groups))
    for into in maps:
        first = np.full(into.max() + 1, len(groups), np.int64)
        np.minimum.at(first, into, rank)
        rank = first
    part = _along(levels[-1].weight, rank, parts)
    ceiling = max(BALANCE * mean, float(weight.max(initial=0.0)))
    for k in range(len(levels) - 1, -1, -1):
        part = _refined(levels[k], part, parts, ceiling, rng)
        if k:
            part = part[maps[k - 1]]
    cut = sum(cost for v, own in enumerate(beside) for u, cost in own.items() if part[v] != part[u])
    return cut / 2, tuple(int(part[home[v]]) for v in range(len(graph)))


def _contracted(level: _Level, most: float, rng: np.random.Generator) -> tuple[_Level, NDArray[np.int64]]:
    """Each vertex joined with the neighbour of its heaviest edge that is still free, up to weight `most`."""
    n = len(level.weight)
    into = np.full(n, -1, np.int64)
    count = 0
    for v in rng.permutation(n):
        if into[v] >= 0:
            continue
        free = [
            (cost, -u)
            for u, cost in level.beside[v].items()
            if into[u] < 0 and level.weight[u] + level.weight[v] <= most
        ]
        into[v] = count
        if free:
            into[-max(free)[1]] = count
        count += 1
    weight = np.bincount(into, weights=level.weight, minlength=count).astype(np.float64)
    beside: list[dict[int, float]] = [{} for _ in range(count)]
    for v in range(n):
        a = int(into[v])
        for u, cost in level.beside[v].items():
            b = int(into[u])
            if a != b:
                beside[a][b] = beside[a].get(b, 0.0) + cost
    return _Level(weight, beside), into


def _walk(graph: Placement, home: dict[int, int], n: int) -> NDArray[np.int64]:
    """Place of each group along a walk over the forward nodes."""
    forward = [(a, b) for a, b in graph.edges if not graph.backward[a] and not graph.backward[b]]
    order = dict.fromkeys(home[v] for v in last_in_first_out(len(graph), forward) if not graph.backward[v])
    rank = np.full(n, n, np.int64)
    rank[list(order)] = np.arange(len(order))
    return rank


def _along(weight: NDArray[np.float64], rank: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """Parts of equal weight along the walk."""
    part, done, total = np.zeros(len(weight), np.int64), 0.0, float(weight.sum()) or 1.0
    for g in np.argsort(rank, kind="stable"):
        part[g] = min(parts - 1, int(parts * (done + weight[g] / 2) / total))
        done += weight[g]
    return part


def _refined(
    level: _Level, part: NDArray[np.int64], parts: int, ceiling: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Single moves that make the cut smaller, or an overfull part lighter, until none is left."""
    part, weight = part.copy(), level.weight
    load = np.bincount(part, weights=weight, minlength=parts)
    for _ in range(PASSES):
        moved = False
        for g in rng.permutation(len(weight)):
            ties = np.zeros(parts)
            for other, cost in level.beside[g].items():
                ties[part[other]] += cost
            a, best, gain = int(part[g]), -1, 0.0
            for b in range(parts):
                after = load[b] + weight[g]
                if b == a or (after > ceiling and after >= load[a]):
                    continue
                better = ties[b] - ties[a]
                # Balance decides between equal cuts, and comes before the cut where a part is overfull.
                lighter = load[a] > ceiling and after < load[a]
                if better > gain + 1e-12 or (best < 0 and (lighter or (better >= 0 and after < load[a] - 1e-12))):
                    best, gain = b, better
            if best >= 0:
                load[a] -= weight[g]
                load[best] += weight[g]
                part[g] = best
                moved = True
        if not moved:
            break
    return part
