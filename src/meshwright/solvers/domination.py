"""Options of a cost graph that another option of the same variable beats whatever its neighbours choose.

Option a of a variable goes if an option b needs no more memory and price[b] − price[a] + the sum over its edges of the most by
which b costs more than a is at most 0. Neither the optimum nor any point of the frontier of memory and price is lost, up to
choices that are equal in both. Options that are forbidden with every option of a neighbour go first.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from .cost_graph import CostGraph, Floats

SAMPLES = 8
"""Options of each neighbour that a pair is tried with before it is looked at in full."""
ROUNDS = 3
"""What goes at one variable may let more go at its neighbours."""

Kept = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Thinned:
    """A smaller graph over the same variables."""

    graph: CostGraph
    kept: tuple[Kept, ...]
    """Per variable the options that are left, by their number in the whole graph."""

    def restored(self, choice: NDArray[np.int32]) -> NDArray[np.int32]:
        """Choices [n, variables] of the smaller graph as those of the whole one."""
        return np.stack([own[choice[:, v]] for v, own in enumerate(self.kept)], axis=1).astype(np.int32)


def thinned(graph: CostGraph) -> Thinned:
    """The graph without beaten options; one that has no legal choice may be left with variables of no option."""
    small = graph.simple()
    kept: list[Kept] = [np.arange(len(u)) for u in small.unary]
    tables = list(small.tables)
    unary, memory = list(small.unary), list(small.memory or (np.zeros(len(u)) for u in small.unary))
    near: list[list[tuple[int, bool]]] = [[] for _ in unary]
    for e, (u, v) in enumerate(small.edges):
        near[u].append((e, False))
        near[v].append((e, True))
    for _ in range(ROUNDS):
        before = sum(map(len, kept))
        for v in range(len(unary)):
            rows = [np.ascontiguousarray(tables[e].T if turned else tables[e]) for e, turned in near[v]]
            keep = _legal(unary[v], rows)
            keep = keep[_unbeaten(unary[v][keep], memory[v][keep], [r[keep] for r in rows])]
            if len(keep) < len(unary[v]):
                unary[v], memory[v], kept[v] = unary[v][keep], memory[v][keep], kept[v][keep]
                for e, turned in near[v]:
                    tables[e] = tables[e][:, keep] if turned else tables[e][keep]
        if sum(map(len, kept)) == before:
            break
    contiguous = tuple(np.ascontiguousarray(t) for t in tables)
    return Thinned(CostGraph(tuple(unary), small.edges, contiguous, tuple(memory)), tuple(kept))


def _legal(unary: Floats, rows: list[Floats]) -> Kept:
    fine = unary < inf
    for table in rows:
        fine &= (table < inf).any(axis=1)
    return np.flatnonzero(fine)


def _unbeaten(unary: Floats, memory: Floats, rows: list[Floats]) -> Kept:
    """Options that stay, of those of one variable."""
    count = len(unary)
    least = unary[None, :] - unary[:, None]
    may = memory[None, :] <= memory[:, None]
    np.fill_diagonal(may, False)
    for table in rows:
        some = table[:, np.unique(np.linspace(0, table.shape[1] - 1, SAMPLES).astype(int))] if table.shape[1] else table
        gap = np.full((count, count), -inf)
        for column in some.T:
            both = np.where(column < inf, column, 0.0)
            step = both[None, :] - both[:, None]
            step[:, column == inf] = inf
            step[column == inf, :] = -inf
            np.maximum(gap, step, out=gap)
        least = least + np.where(gap == -inf, np.minimum(0.0, -_span(table)), gap)
    worse, better = np.nonzero(may & (least <= 0.0))
    if not len(worse):
        return np.arange(count)
    from ._pareto_kernels import worst_gaps

    total = unary[better] - unary[worse]
    for table in rows:
        total = worst_gaps(table, better, worse, total)
    beaten: dict[int, list[int]] = {}
    for a, b in zip(worse[total <= 0.0].tolist(), better[total <= 0.0].tolist(), strict=True):
        beaten.setdefault(a, []).append(b)
    alive = np.ones(count, bool)
    for a in sorted(beaten, reverse=True):  # of equals the lowest stays
        alive[a] = not alive[beaten[a]].any()
    return np.flatnonzero(alive)


def _span(table: Floats) -> float:
    """No difference of two finite prices of the table is larger."""
    finite = table[table < inf]
    return float(finite.max() - finite.min()) if finite.size else 0.0
