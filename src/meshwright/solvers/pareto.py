"""All choices of a cost graph that no other beats in both memory and price, by elimination over fronts.

A front is a set of points (memory, price), none of which beats another. Tables hold a front per entry; adding tables means all
sums of their points, taking the least over an option means the union, and after each only points that none beats stay. Memory
and price are sums, so a point that is beaten early is beaten in every sum: nothing of the final front is lost (TensorOpt,
arXiv 2004.10856, section 4). Each point keeps which points and which option it is made of; the choices are found backwards.

Where some of the front is known already (`narrowing`), points go as well that nothing new can come of: whatever completes
them costs so much that the sum lies outside of all gaps (`gaps`, `completions`). What is left are the points in the gaps.

As in `elimination` tables over a variable v are added on two sides, those that hold one neighbour w and those that do not,
and the sums over w, v and the rest never exist all at once; results of the same arrays are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsupported
from .completions import completed
from .cost_graph import CostGraph, Floats
from .elimination import _rows, _sides
from .elimination_order import Order
from .gaps import CLOSE, Gaps, Indices, Weight, weighted

Progress = Callable[[int, int], None]
CHUNK = 1 << 20
"""Pairs of entries in one call of the kernel."""
LIMIT = 30_000_000
"""Entries of a table of fronts, with its points some gigabytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Fronts:
    """Points ptr[i] … ptr[i + 1] − 1 belong to entry i of the table, by memory; price falls as memory grows."""

    ptr: Indices
    memory: Floats
    price: Floats
    option: NDArray[np.int32] | None = None
    """Per point the option of the variable that left; None where none did."""
    left: Indices | None = None
    right: Indices | None = None
    """Per point the points that it is the sum of; None where the table was given."""
    sides: tuple[Fronts, Fronts] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Fronts over some variables, and where their points come from."""

    variables: tuple[int, ...]
    fronts: Fronts
    variable: int = -1
    """The one that left; -1 = the table was given."""
    left: tuple[_Table, ...] = ()
    right: tuple[_Table, ...] = ()
    """Tables that were added up on each side."""


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """By memory, ascending; price falls strictly."""

    memory: Floats
    price: Floats
    choices: NDArray[np.int32]
    """[points, variables]"""
    points: int
    """In all tables together."""
    most: int
    """In one front."""


def frontier(
    graph: CostGraph,
    order: Order,
    *,
    cap: float = inf,
    gaps: Gaps | None = None,
    weights: Sequence[Weight] = (),
    edge_memory: Sequence[Floats] = (),
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> Frontier:
    """Every choice that none beats, one of each (memory, price).

    Args:
        order: of elimination, over all variables.
        cap: memory that no point may pass.
        gaps: the only places where points are wanted; others may be missing.
        weights: along which points are held against the gaps.
        edge_memory: per edge float64 like its table, such as of converted copies that stay; () = none.
        limit: entries of a table.

    Raises:
        Unsupported: a table of more than `limit` entries.
    """
    if order.largest > limit:
        raise Unsupported(
            f"elimination needs a table of fronts of {order.largest:.3g} entries, more than the limit of {limit:.3g}: "
            "restrict the options"
        )
    sizes = [len(u) for u in graph.unary]
    memory = graph.memory or tuple(np.zeros(n) for n in sizes)
    # Memory above the least of each variable: what is dropped above the cap is then dropped as early as can be.
    least = [float(held.min()) for held in memory]
    base = sum(least)
    search = _Search(sizes, cap - base + 1e-12 * abs(cap) if cap < inf else inf)
    holding: dict[int, list[_Table]] = {v: [] for v in order.sequence}
    rank = {v: i for i, v in enumerate(order.sequence)}
    constants: list[_Table] = []

    def put(table: _Table) -> None:
        if table.variables:
            holding[min(table.variables, key=rank.__getitem__)].append(table)
        else:
            constants.append(table)

    shifted: dict[int, Floats] = {}
    for v, own in enumerate(graph.unary):
        put(search.given((v,), own, shifted.setdefault(id(memory[v]), memory[v] - least[v])))
    for e, ((u, v), table) in enumerate(zip(graph.edges, graph.tables, strict=True)):
        extra = edge_memory[e] if edge_memory else None
        if u == v:
            put(search.given((u,), search.diagonal(table), None if extra is None else search.diagonal(extra)))
        else:
            put(search.given((u, v), table, extra))
    reaches: Sequence[_Reach | None] = [None] * len(order.sequence)
    if gaps is not None:
        above = replace(graph, memory=tuple(shifted[id(memory[v])] for v in range(len(sizes))))
        reaches = _reaches(above, order, replace(gaps, memory=gaps.memory - base), list(weights))
    for done, (v, scope) in enumerate(zip(order.sequence, order.scopes, strict=True)):
        put(search.without(v, scope, holding.pop(v), reaches[done]))
        if progress is not None:
            progress(done + 1, len(order.sequence))
    last, _ = search.added(constants)
    count = len(last.memory)
    choices = np.zeros((count, len(sizes)), np.int32)
    _unroll(constants, last, np.arange(count), choices)
    return Frontier(last.memory + base, last.price, choices, search.points, search.most)


def _unroll(tables: Sequence[_Table], total: Fronts, points: Indices, choices: NDArray[np.int32]) -> None:
    """Write the options that `points` of the sum of `tables` are made of."""
    stack = list(zip(tables, _parts(total, points, len(tables)), strict=True))
    while stack:
        table, points = stack.pop()
        if table.variable < 0:
            continue
        fronts = table.fronts
        assert fronts.option is not None and fronts.left is not None and fronts.right is not None and fronts.sides
        choices[:, table.variable] = fronts.option[points]
        for tables, side, own in (
            (table.left, fronts.sides[0], fronts.left),
            (table.right, fronts.sides[1], fronts.right),
        ):
            stack += zip(tables, _parts(side, own[points], len(tables)), strict=True)


def _parts(total: Fronts, points: Indices, count: int) -> list[Indices]:
    """Per table, in the order in which `count` tables were added up to `total`: the points that `points` are sums of."""
    found: list[Indices] = []
    for _ in range(count - 1):
        assert total.left is not None and total.right is not None and total.sides is not None
        found.append(total.right[points])
        points, total = total.left[points], total.sides[0]
    return [*([points] if count else []), *reversed(found)]


@dataclass(frozen=True, slots=True, eq=False)
class _Reach:
    """What decides which points of one table stay."""

    scope: tuple[int, ...]
    outside: Floats
    """[options of the scope…, weights]"""
    of_price: Floats
    of_memory: Floats
    most: Floats
    first: Indices

    def over(self, variables: Sequence[int]) -> Floats:
        """[entries, weights] of a table over the scope in another order."""
        turned = self.outside.transpose([*(self.scope.index(u) for u in variables), len(self.scope)])
        return np.ascontiguousarray(turned).reshape(-1, len(self.of_price))


def _reaches(graph: CostGraph, order: Order, gaps: Gaps, weights: list[Weight]) -> list[_Reach | None]:
    """Per place in the order."""
    if not weights:
        return [None] * len(order.sequence)
    of_price, of_memory = (np.array(x) for x in zip(*((w.of_price, w.of_memory) for w in weights), strict=True))
    found = [completed(weighted(graph, w), order) for w in weights]
    if max(f.value for f in found) == inf:  # every choice is forbidden
        return [None] * len(order.sequence)
    weights = [replace(w, least=f.value) for w, f in zip(weights, found, strict=True)]
    most, first = gaps.most(weights), gaps.strictest(weights)
    return [
        _Reach(scope, np.stack([f.outside[i] for f in found], axis=-1), of_price, of_memory, most, first)
        for i, scope in enumerate(order.scopes)
    ]


class _Search:
    """Tables of fronts, each made once of the same arrays."""

    def __init__(self, sizes: Sequence[int], cap: float) -> None:
        self.sizes, self.cap = sizes, cap
        self.made: dict[object, Fronts] = {}
        self.alive: list[object] = []
        self.diagonals: dict[int, Floats] = {}
        self.points = 0
        self.most = 0

    def diagonal(self, table: Floats) -> Floats:
        self.alive.append(table)
        return self.diagonals.setdefault(id(table), np.diagonal(table))

    def given(self, variables: tuple[int, ...], price: Floats, memory: Floats | None) -> _Table:
        """A table of one point an entry, none where it is forbidden or does not fit."""
        key = ("given", id(price), id(memory))
        if key not in self.made:
            prices = np.array(price, float).ravel()
            held = np.zeros(prices.shape) if memory is None else np.array(memory, float).ravel()
            legal = (prices < inf) & (held <= self.cap)
            ptr = np.concatenate([[0], np.cumsum(legal)])
            self._keep(key, Fronts(ptr, held[legal], prices[legal]), price, memory)
        return _Table(variables, self.made[key])

    def without(self, v: int, scope: Sequence[int], own: Sequence[_Table], reach: _Reach | None) -> _Table:
        """The table over the neighbours of `v` that is left when all its options are tried."""
        w = self._last(v, scope, own)
        left = tuple(t for t in own if w not in t.variables)
        right = tuple(t for t in own if w in t.variables)
        if w < 0:  # no neighbour: one table on the right
            left, right = tuple(own[:-1]), tuple(own[-1:])
        variables = (*(u for u in scope if u != w), *((w,) if w >= 0 else ()))
        local = {u: i for i, u in enumerate((*variables, v))}
        key = (
            "without",
            id(reach),
            *(tuple((id(t.fronts), *(local[u] for u in t.variables)) for t in side) for side in (left, right)),
        )
        if key not in self.made:
            (a, over_a), (b, over_b) = (self.added(side) for side in (left, right))
            of_a, of_b = (_rows(over, (*variables, v), self.sizes) for over in (over_a, over_b))
            self._keep(
                key, self._joined(a, b, of_a, of_b, self.sizes[v], reach, variables), *(t.fronts for t in own), reach
            )
        return _Table(variables, self.made[key], v, left, right)

    def added(self, tables: Sequence[_Table]) -> tuple[Fronts, tuple[int, ...]]:
        """Sums of tables, one after the other, and the variables that they are over."""
        if not tables:
            return Fronts(np.arange(2), np.zeros(1), np.zeros(1)), ()
        total, over = tables[0].fronts, tables[0].variables
        for table in tables[1:]:
            whole = (*over, *(u for u in table.variables if u not in over))
            of_total, of_table = (_rows(own, whole, self.sizes) for own in (over, table.variables))
            total, over = self._joined(total, table.fronts, of_total, of_table), whole
        return total, over

    def _joined(
        self,
        left: Fronts,
        right: Fronts,
        of_left: NDArray[np.uint64],
        of_right: NDArray[np.uint64],
        options: int = 1,
        reach: _Reach | None = None,
        variables: Sequence[int] = (),
    ) -> Fronts:
        """Entry e: what none beats of the sums of points of left[of_left[e, c]] and right[of_right[e, c]] over options c.

        `reach`, of a table over `variables`: points out of reach go.
        """
        from ._pareto_kernels import join

        outside = None if reach is None else reach.over(variables)
        entries = max(1, CHUNK // options)
        parts = []
        for e in range(0, len(of_left) // options, entries):
            rows = slice(e * options, (e + entries) * options)
            part = join(
                left.ptr, left.memory, left.price, right.ptr, right.memory, right.price, of_left[rows], of_right[rows],
                options, self.cap, CLOSE,
            )  # fmt: skip
            if reach is not None and outside is not None:
                part = _in_reach(part, reach, outside[e : e + entries])
            parts.append(part)
        starts = np.cumsum([0, *(len(p[1]) for p in parts)])
        ptr = np.concatenate([[0], *(p[0][1:] + s for p, s in zip(parts, starts))])
        memory, price, option, a, b = (np.concatenate([p[i] for p in parts]) for i in range(1, 6))
        self.points += len(memory)
        self.most = max(self.most, int(np.diff(ptr).max(initial=0)))
        return Fronts(ptr, memory, price, option, a, b, (left, right))

    def _last(self, v: int, scope: Sequence[int], own: Sequence[_Table]) -> int:
        """The neighbour whose tables make the right side, -1 without neighbours."""
        tables = [(t.variables, np.empty(0)) for t in own]

        def entries(w: int) -> int:
            left, right = _sides(v, w, tables)
            return prod(self.sizes[u] for u in left) + prod(self.sizes[u] for u in right)

        return min(scope, key=lambda w: (entries(w), -self.sizes[w]), default=-1)

    def _keep(self, key: object, fronts: Fronts, *of: object) -> None:
        self.made[key] = fronts
        self.alive += of


def _in_reach(part: Any, reach: _Reach, outside: Floats) -> Any:
    """What `join` made, without points that are out of reach."""
    from ._pareto_kernels import reach as within

    ptr, memory, price, *rest = part
    keep = within(ptr, memory, price, outside, reach.of_price, reach.of_memory, reach.most, reach.first)
    ends = np.concatenate([[0], np.cumsum(keep)])
    return ends[ptr], memory[keep], price[keep], *(own[keep] for own in rest)
