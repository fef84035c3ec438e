"""OptCNN's eliminations: a cost graph shrinks to a few variables whose choices still say all others (Jia et al. 2018, §5.2).

    node    i ── j ── k           ->  i ── k     table[a, c] = min over b of  x_ij[a, b] + t_j[b] + x_jk[b, c]
    edge    i ══ j                ->  i ── j     tables are added
    leaf    i ── j, j no other    ->  i          t_i[a] += min over b of  x_ij[a, b] + t_j[b]

The paper has the first two, the first for one edge in and one out: edges (u, v) go from u to v. Where these leave more
than two variables, leaves go too, and then any variable with two neighbours, since directions do not matter to the sums.
All of this keeps the optimum; undone in reverse order, each removed variable takes the lowest option that is best for its
neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .cost_graph import FORBIDDEN, CostGraph, Floats, Found

Ints = NDArray[np.int32]
CHUNK = 1 << 22
"""Entries of one piece of a (min, +) product."""
ENTRIES = 30_000_000
"""Joint choices of what is left that may be enumerated."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One elimination. `table` is what it made: of the new or summed edge, or the leaf's part of its neighbour's prices."""

    kind: Literal["node", "edge", "leaf"]
    ends: tuple[int, ...]
    """(i, k), axes of the table: u < v for edges; (i,) of a leaf."""
    table: Floats
    removed: int = -1
    best: Ints | None = None
    """[options of the ends]: option of the removed variable."""


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """What is left of a cost graph, and how to get back."""

    unary: tuple[Floats, ...]
    """Of all variables; those of removed ones no longer count."""
    edges: dict[tuple[int, int], Floats]
    """(u, v), u < v, among the variables that are left."""
    left: tuple[int, ...]
    kernel: int
    """Variables that the paper's two eliminations alone leave: its K."""
    steps: tuple[Step, ...]

    def undo(self, choice: dict[int, int]) -> tuple[int, ...]:
        """Options of all variables from those of `left`."""
        found = dict(choice)
        for step in reversed(self.steps):
            if step.best is not None:
                found[step.removed] = int(step.best[tuple(found[v] for v in step.ends)])
        return tuple(found[v] for v in range(len(self.unary)))

    def rest(self) -> CostGraph:
        """The variables of `left`, numbered in that order."""
        at = {v: k for k, v in enumerate(self.left)}
        return CostGraph(
            tuple(self.unary[v] for v in self.left),
            tuple((at[u], at[v]) for u, v in self.edges),
            tuple(self.edges.values()),
        )


class _Graph:
    """A cost graph that shrinks."""

    def __init__(self, graph: CostGraph) -> None:
        self.unary = list(graph.unary)
        self.edges: dict[tuple[int, int], Floats] = {}
        self.heads: dict[tuple[int, int], set[int]] = {}
        self.near: list[set[int]] = [set() for _ in graph.unary]
        self.alive = set(range(len(graph.unary)))
        self.steps: list[Step] = []
        for (u, v), table in zip(graph.edges, graph.tables, strict=True):
            if u == v:
                self.unary[u] = self.unary[u] + np.diagonal(table)
            else:
                self.add(u, v, table)

    def table(self, u: int, v: int) -> Floats:
        """[options of u, options of v]"""
        return self.edges[u, v] if u < v else self.edges[v, u].T

    def add(self, u: int, v: int, table: Floats) -> None:
        self.heads.setdefault((min(u, v), max(u, v)), set()).add(v)
        if u > v:
            u, v, table = v, u, table.T
        if (u, v) in self.edges:
            self.edges[u, v] = self.edges[u, v] + table
            self.steps.append(Step("edge", (u, v), self.edges[u, v]))
        else:
            self.edges[u, v] = table
            self.near[u].add(v)
            self.near[v].add(u)

    def node(self, j: int) -> None:
        """Removes a variable with two neighbours."""
        i, k = sorted(self.near[j])
        if j not in self.heads[_key(i, j)]:
            i, k = k, i
        table, best = min_plus(self.table(i, j), self.unary[j][:, None] + self.table(j, k))
        self._drop(j)
        self.steps.append(Step("node", (i, k), table, j, best))
        self.add(i, k, table)

    def leaf(self, j: int) -> None:
        """Removes a variable with one neighbour."""
        (i,) = self.near[j]
        sums = self.table(i, j) + self.unary[j]
        self._drop(j)
        part = sums.min(axis=1)
        self.unary[i] = self.unary[i] + part
        self.steps.append(Step("leaf", (i,), part, j, sums.argmin(axis=1).astype(np.int32)))

    def _drop(self, j: int) -> None:
        for i in self.near[j]:
            self.near[i].discard(j)
            del self.edges[_key(i, j)], self.heads[_key(i, j)]
        self.near[j] = set()
        self.alive.discard(j)

    def shrink(self, leaves: bool) -> None:
        """Removes variables with one edge in and one out until there is none; `leaves`: with one or two neighbours."""
        queue = deque(sorted(self.alive))
        while queue:
            j = queue.popleft()
            around = sorted(self.near[j])
            if j not in self.alive or not around:
                continue
            if len(around) == 2 and (leaves or self._straight(j, *around)):
                self.node(j)
            elif len(around) == 1 and leaves:
                self.leaf(j)
            else:
                continue
            queue.extend(around)

    def _straight(self, j: int, i: int, k: int) -> bool:
        """Is one edge of j an edge in, the other an edge out?"""
        a, b = self.heads[_key(i, j)], self.heads[_key(j, k)]
        return (a == {j} and b == {k}) or (a == {i} and b == {j})


def reduce(
    graph: CostGraph, *, leaves: bool = True, progress: Callable[[int, int], None] = lambda done, total: None
) -> Reduced:
    """Eliminates nodes and edges, then leaves too, until nothing can go.

    Args:
        leaves: False = the paper's two eliminations alone.
        progress: called with (variables gone, variables).
    """
    own = _Graph(graph)
    own.shrink(leaves=False)
    kernel = len(own.alive)
    progress(len(graph.unary) - kernel, len(graph.unary))
    if leaves:
        own.shrink(leaves=True)
    progress(len(graph.unary) - len(own.alive), len(graph.unary))
    return Reduced(tuple(own.unary), own.edges, tuple(sorted(own.alive)), kernel, tuple(own.steps))


def enumerate_rest(graph: CostGraph) -> Found:
    """The best of all joint choices, one connected part after the other; the lowest of equals.

    Raises:
        ValueError: more than `ENTRIES` joint choices in one part; says how many.
    """
    graph = graph.simple()
    choice, value = [0] * len(graph.unary), 0.0
    largest = 0
    for part in _parts(graph):
        shape = tuple(len(graph.unary[v]) for v in part)
        if prod(shape) > ENTRIES:
            digits = len(str(prod(shape))) - 1
            raise ValueError(
                f"{len(part)} variables of up to {max(shape)} options, more than 10^{digits} joint choices"
            )
        sums = np.zeros(shape)
        for k, v in enumerate(part):
            sums = sums + graph.unary[v].reshape([-1 if j == k else 1 for j in range(len(part))])
        for (u, v), table in zip(graph.edges, graph.tables, strict=True):
            if u in part:
                a, b = part.index(u), part.index(v)
                oriented = table if a < b else table.T
                sums = sums + oriented.reshape([n if j in (a, b) else 1 for j, n in enumerate(shape)])
        best = int(sums.argmin())
        value += float(sums.flat[best])
        largest = max(largest, sums.size)
        for v, c in zip(part, np.unravel_index(best, shape), strict=True):
            choice[v] = int(c)
    return Found(tuple(choice), value, value, len(graph.unary) - 1, largest) if value < np.inf else FORBIDDEN


def node_edge(graph: CostGraph, rest: Callable[[CostGraph], Found] = enumerate_rest) -> tuple[Found, Reduced]:
    """The optimum: eliminations, then `rest` on what they leave.

    Raises:
        ValueError: `rest` refuses what is left.
    """
    reduced = reduce(graph)
    found = rest(reduced.rest())
    if not found.choice and reduced.left:
        return FORBIDDEN, reduced
    choice = reduced.undo(dict(zip(reduced.left, found.choice, strict=True)))
    value = graph.cost(choice)
    if not value < np.inf:
        return FORBIDDEN, reduced
    exact = found.bound >= found.value
    return Found(choice, value, value if exact else found.bound, max(found.width, 2), found.largest), reduced


def _key(u: int, v: int) -> tuple[int, int]:
    return (u, v) if u < v else (v, u)


def min_plus(a: Floats, b: Floats) -> tuple[Floats, Ints]:
    """table[i, k] = min over j of a[i, j] + b[j, k], and the lowest j that reaches it."""
    rows, columns = len(a), b.shape[1]
    table, best = np.empty((rows, columns)), np.empty((rows, columns), np.int32)
    step = max(1, CHUNK // max(1, b.size))
    turned = np.ascontiguousarray(b.T)
    for start in range(0, rows, step):
        sums = a[start : start + step, None, :] + turned[None, :, :]
        best[start : start + step] = sums.argmin(axis=2)
        table[start : start + step] = sums.min(axis=2)
    return table, best


def _parts(graph: CostGraph) -> list[list[int]]:
    """Connected variables, ascending."""
    root = list(range(len(graph.unary)))

    def find(v: int) -> int:
        while root[v] != v:
            root[v] = root[root[v]]
            v = root[v]
        return v

    for u, v in graph.edges:
        a, b = sorted((find(u), find(v)))
        root[b] = a
    parts: dict[int, list[int]] = {}
    for v in range(len(graph.unary)):
        parts.setdefault(find(v), []).append(v)
    return list(parts.values())
