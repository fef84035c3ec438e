"""Frontier tracking: the frontier of memory and price of a cost graph, with a choice for every point.

options that others beat go (`domination`), then those that no new point needs: on the way the convex hull of the frontier
is found (`narrowing`)
what is left is eliminated in the order of the smallest tables where that by kinds of elimination needs too large ones; if
they still are, variables with the most neighbours keep their option of least price, and how far the
points may then be from the frontier is bounded (`line_bounds`)
what is left is eliminated over fronts (`pareto`), by the eliminations of TensorOpt (arXiv 2004.10856, section 4)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from .cost_graph import CostGraph, Floats, restricted
from .domination import thinned
from .elimination_order import Order, OrderName, counted, order_of
from .gaps import unbeaten
from .line_bounds import NONE, Off, off
from .narrowing import TooLarge, narrowed
from .pareto import LIMIT, frontier

SMALL: tuple[OrderName, ...] = ("min_weight", "min_degree")
"""Orders that are tried where one by kinds of elimination needs too large a table."""
Progress = Callable[[str, int, int], None]
"""(phase, done, of how many); what it raises ends the search."""


@dataclass(frozen=True, slots=True)
class How:
    """Eliminations of each kind."""

    node: int = 0
    branch: int = 0
    edge: int = 0
    linear: int = 0
    fixed: tuple[int, ...] = ()
    """Variables that were eliminated heuristically."""


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """By memory, ascending; price falls strictly."""

    memory: Floats
    price: Floats
    choices: NDArray[np.int32]
    """[points, variables]"""
    how: How = How()
    points: int = 0
    """In all tables of fronts together."""
    most: int = 0
    """In one front."""
    lines: int = 0
    """Along which the hull was looked for."""
    fastest: float = inf
    """The least price of all choices, whatever memory they need; inf: none is legal."""
    off: Off = NONE
    """Where variables were fixed: how far these points, and those from elsewhere, may be from the frontier."""


def tracked(
    graph: CostGraph,
    *,
    cap: float = inf,
    epsilon: float = 0.0,
    limit: int = LIMIT,
    elsewhere: tuple[Floats, Floats] | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> Tracked:
    """Every choice that none beats, one of each (memory, price).

    Args:
        cap: memory that no point may pass.
        epsilon: of every point of the frontier one is returned, or is elsewhere, that has no more than its memory and
            price and this share of each; least memory and least price are exact. 0: all points.
        limit: entries of a table, above which variables are fixed.
        elsewhere: (memory, price) of points that beat those of this graph, too, such as those of another mesh.
    """
    count = len(graph.unary)
    small = thinned(graph)
    rest, kept, fixed = small.graph, small.kept, set[int]()
    nothing = Tracked(np.zeros(0), np.zeros(0), np.zeros((0, count), np.int32))
    if min(map(len, rest.unary)) == 0:
        return nothing
    try:
        narrow = narrowed(rest, cap, epsilon, elsewhere, lambda lines: progress("lines", lines, 0), limit)
    except TooLarge:
        rest, kept, _, _ = _small_enough(rest, kept, limit, fixed)
        narrow = narrowed(rest, cap, epsilon, elsewhere, lambda lines: progress("lines", lines, 0))
    known, lines = narrow.known, len(narrow.weights)
    memory, price, choices = [known.memory], [known.price], [_restored(kept, known.choices)]
    found = replace(nothing, how=How(fixed=tuple(sorted(fixed))), lines=lines, fastest=narrow.fastest)
    if len(narrow.gaps.price) and min(map(len, narrow.graph.unary)):
        kept = tuple(own[k] for own, k in zip(kept, narrow.kept, strict=True))
        rest, kept, order, how = _small_enough(narrow.graph, kept, limit, fixed)
        front = frontier(
            rest, order, cap=cap, gaps=narrow.gaps, weights=narrow.weights, limit=limit,
            progress=lambda done, total: progress("ops", done, total),
        )  # fmt: skip
        found = replace(found, how=how, points=front.points, most=front.most)
        memory, price = [*memory, front.memory], [*price, front.price]
        choices.append(_restored(kept, front.choices))
    memories, prices, every = np.concatenate(memory), np.concatenate(price), np.concatenate(choices)
    best = unbeaten(memories, prices)
    if fixed and len(best):
        found = replace(found, off=off(small.graph, memories[best], prices[best], cap))
    best = best[(every[best] >= 0).all(axis=1)]
    return replace(found, memory=memories[best], price=prices[best], choices=every[best])


def _restored(kept: Sequence[NDArray[np.intp]], choices: NDArray[np.int32]) -> NDArray[np.int32]:
    """Choices [points, variables] of the options that are left as those of the whole graph; −1 stays."""
    found = [np.where(choices[:, v] < 0, -1, own[choices[:, v]]) for v, own in enumerate(kept)]
    return np.stack(found, axis=1).astype(np.int32) if found else choices


def _small_enough(
    graph: CostGraph, kept: Sequence[NDArray[np.intp]], limit: int, fixed: set[int]
) -> tuple[CostGraph, tuple[NDArray[np.intp], ...], Order, How]:
    """(graph, kept, order, how): variables keep one option, and are added to `fixed`, until no table passes the limit."""
    while True:
        sizes = [len(own) for own in graph.unary]
        order, how = tracking_order(sizes, graph.edges, limit)
        if how.fixed:
            order = min((order_of(sizes, graph.edges, name) for name in SMALL), key=lambda o: (o.largest, o.operations))
            if order.largest <= limit:
                how = _kinds(order, how.edge)
        if not how.fixed:
            return graph, tuple(kept), order, replace(how, fixed=tuple(sorted(fixed)))
        fixed |= set(how.fixed)
        only = [
            np.array([own.argmin()]) if v in how.fixed else np.arange(len(own)) for v, own in enumerate(graph.unary)
        ]
        graph = _folded(restricted(graph, only), set(how.fixed))
        kept = tuple(own[k] for own, k in zip(kept, only, strict=True))


def _kinds(order: Order, edge: int) -> How:
    """Eliminations of an order that is not by kind."""
    linear, node = (sum(len(scope) in degrees for scope in order.scopes) for degrees in ((0, 1), (2,)))
    return How(node, len(order.scopes) - linear - node, edge, linear)


def _folded(graph: CostGraph, single: set[int]) -> CostGraph:
    """Tables of variables that have one option become prices of their neighbours."""
    unary, edges, tables = list(graph.unary), [], []
    for (u, v), table in zip(graph.edges, graph.tables, strict=True):
        if (u in single) == (v in single):
            edges.append((u, v))
            tables.append(table)
        elif u in single:
            unary[v] = unary[v] + table[0]
        else:
            unary[u] = unary[u] + table[:, 0]
    return CostGraph(tuple(unary), tuple(edges), tuple(tables), graph.memory)


def tracking_order(sizes: Sequence[int], edges: Sequence[tuple[int, int]], limit: int) -> tuple[Order, How]:
    """The order in which frontier tracking takes ops out, and by which kind of elimination.

    Ops at ends of what hangs on the rest leave first; then those between two others inside a cycle, whose ends meet in
    parallel tables at last; then the op of a cycle that leaves the smallest table. Of equals, the lowest.
    """
    import networkx as nx

    near: list[set[int]] = [set() for _ in sizes]
    for u, v in edges:
        if u != v:
            near[u].add(v)
            near[v].add(u)
    counts = {"node": 0, "branch": 0, "linear": 0, "edge": len(edges) - sum(map(len, near)) // 2}
    sequence: list[int] = []
    scopes: list[tuple[int, ...]] = []
    fixed: list[int] = []
    left = set(range(len(sizes)))

    def leave(v: int, kind: str) -> None:
        scope = tuple(sorted(near[v]))
        counts[kind] += 1
        if kind == "node" and scope[1] in near[scope[0]]:
            counts["edge"] += 1
        for u in scope:
            near[u] |= near[v]
            near[u] -= {u, v}
        near[v] = set()
        sequence.append(v)
        scopes.append(scope)
        left.discard(v)

    def weight(v: int) -> int:
        return prod(sizes[u] for u in (*near[v], v))

    while left:
        ends = sorted(v for v in left if len(near[v]) <= 1 and weight(v) <= limit)
        while ends:
            v = heappop(ends)
            if v in left:
                around = list(near[v])
                leave(v, "linear")
                for u in around:
                    if len(near[u]) <= 1 and weight(u) <= limit:
                        heappush(ends, u)
        if not left:
            break
        graph = nx.Graph((u, v) for u in left for v in near[u])
        bridges = {frozenset(e) for e in nx.bridges(graph)}
        inside = [
            v
            for v in sorted(left)
            if len(near[v]) == 2 and weight(v) <= limit and not any(frozenset((u, v)) in bridges for u in near[v])
        ]
        if inside:
            for v in inside:
                if len(near[v]) == 2 and weight(v) <= limit:
                    leave(v, "node")
            continue
        cyclic = [v for v in left if any(frozenset((u, v)) not in bridges for u in near[v])]
        least, v = min(((weight(v), v) for v in cyclic), default=(inf, -1))
        if least <= limit:
            leave(v, "branch")
            continue
        hub = max(left, key=lambda v: (len(near[v]), sizes[v], -v))
        fixed.append(hub)
        for u in near[hub]:
            near[u].discard(hub)
        near[hub] = set()
        left.discard(hub)
    order = counted(sequence, scopes, sizes)
    return order, How(counts["node"], counts["branch"], counts["edge"], counts["linear"], tuple(sorted(fixed)))
