"""A cost graph as an integer programme (Alpa's form): one binary column per option, one column per pair of options.

Source: Zheng et al., "Alpa" (OSDI 2022), section 4.2, equations 1 to 4, with the pairs continuous: a pair's columns sum up,
row by row and column by column, to the binaries of its ends, so that they are whole wherever these are. It is the local
polytope, whose bound is that of message passing, and it takes rows that no other solver here takes: bytes alive at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from .cost_graph import FORBIDDEN, CostGraph, Floats, Found
from .mixed_integer import Arrays, Bools, Ints, closed, solve_arrays

LARGEST = 1e5
"""Costs are scaled so that the largest is this: solvers lose precision on objectives of 1e12."""
EXACT = 1e-10
"""Relative gap at which a programme counts as solved."""


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """Σ of bytes over some variables ≤ most, such as what is alive at one time."""

    variables: tuple[int, ...]
    bytes: tuple[Floats, ...]
    """Per variable of `variables` and option."""
    most: float

    def over(self, choice: Sequence[int]) -> float:
        """Share by which a choice exceeds it; rounding of the sum does not count."""
        total = sum(float(b[choice[v]]) for v, b in zip(self.variables, self.bytes, strict=True))
        return max(0.0, total / self.most - 1.0 - 1e-12) if self.most > 0 else inf * (total > 0) if total else 0.0


def choose(
    graph: CostGraph,
    rooms: Sequence[Room] = (),
    *,
    seconds: float = 1200.0,
    start: Sequence[int] | None = None,
    below: float = inf,
    seed: int = 0,
    better: Callable[[tuple[int, ...]], None] = lambda choice: None,
) -> Found:
    """The best choice, with its bound; `Found.choice` is () if none was found: value and bound inf say that there is none.

    Ctrl-C is raised again, after `better` was called with what was found.

    Args:
        start: a choice to begin with.
        below: choices that cost more are not looked for, unless there is no cheaper one.
    """
    for room in rooms:
        if room.most < 0:
            return FORBIDDEN
    graph = graph.simple()
    if not all(np.isfinite(prices).any() for prices in graph.unary):
        return FORBIDDEN
    columns = _Columns(graph, below)
    slack = [0.0] * len(rooms)
    bound = -inf
    while True:
        solved = solve_arrays(
            columns.programme(rooms, slack), gap=EXACT, seconds=seconds, seed=seed, start=columns.values(start)
        )
        bound = max(bound, columns.price(solved.bound))
        if not solved.values:
            if solved.end == "interrupt":
                raise KeyboardInterrupt
            return FORBIDDEN if solved.finished and bound == inf else Found((), inf, bound)
        choice = columns.choice(solved.values)
        over = [room.over(choice) for room in rooms]
        if solved.end == "interrupt":
            if not any(over):
                better(choice)
            raise KeyboardInterrupt
        if not any(over):
            value = graph.cost(choice)
            return Found(choice, value, closed(value, min(value, bound)))
        # Within the solver's tolerance, but over: asked again with that much less.
        slack = [max(s, 2.0 * o) for s, o in zip(slack, over, strict=True)]


class _Columns:
    """Columns of a simple graph: options that have a price, then pairs that have one, edge by edge."""

    def __init__(self, graph: CostGraph, below: float) -> None:
        self.graph = graph
        self.live = [np.flatnonzero(np.isfinite(prices)) for prices in graph.unary]
        sizes = np.array([len(live) for live in self.live], np.int64)
        self.first = np.concatenate(([0], np.cumsum(sizes)))
        costs = [prices[live] for prices, live in zip(graph.unary, self.live, strict=True)]
        least = [float(c.min()) for c in costs]
        self.pairs: list[tuple[Ints, Ints]] = []
        pair_costs = []
        for (u, v), table in zip(graph.edges, graph.tables, strict=True):
            narrow = table[np.ix_(self.live[u], self.live[v])]
            a, b = np.nonzero(np.isfinite(narrow))
            self.pairs.append((a, b))
            pair_costs.append(narrow[a, b])
            least.append(float(narrow[a, b].min()) if len(a) else 0.0)
        self.constant = sum(least)
        everything = [*costs, *pair_costs]
        raw = np.concatenate([c - low for c, low in zip(everything, least, strict=True)] or [np.zeros(0)])
        self.raw = raw
        # Nothing costs less than its least, so a column above what is left of `below` is in no choice that is wanted.
        room = below - self.constant
        self.upper = np.where(raw <= room * (1 + 1e-9) + 1e-300, 1.0, 0.0) if np.isfinite(room) else np.ones(len(raw))
        largest = float(raw[self.upper > 0].max(initial=0.0))
        self.scale = LARGEST / largest if largest > 0 else 1.0

    def programme(self, rooms: Sequence[Room], slack: Sequence[float]) -> Arrays:
        """One choice per variable; a pair's columns sum up to its ends; rooms."""
        n, total = int(self.first[-1]), len(self.raw)
        row: list[Ints] = [np.repeat(np.arange(len(self.live)), np.diff(self.first))]
        column: list[Ints] = [np.arange(n)]
        coefficient: list[Floats] = [np.ones(n)]
        least, most = [np.ones(len(self.live))], [np.ones(len(self.live))]
        rows, at = len(self.live), n
        for (u, v), (a, b) in zip(self.graph.edges, self.pairs, strict=True):
            for end, of in ((u, a), (v, b)):
                k = len(self.live[end])
                row += (rows + of, rows + np.arange(k))
                column += (at + np.arange(len(of)), self.first[end] + np.arange(k))
                coefficient += (np.ones(len(of)), -np.ones(k))
                least.append(np.zeros(k))
                most.append(np.zeros(k))
                rows += k
            at += len(a)
        for room, less in zip(rooms, slack, strict=True):
            unit = 1e3 / max(room.most, 1e-300)
            for v, held in zip(room.variables, room.bytes, strict=True):
                row.append(np.full(len(self.live[v]), rows))
                column.append(self.first[v] + np.arange(len(self.live[v])))
                coefficient.append(held[self.live[v]] * unit)
            least.append(np.full(1, -inf))
            most.append(np.full(1, room.most * (1.0 - less) * unit))
            rows += 1
        rows_of, columns_of = np.concatenate(row), np.concatenate(column)
        order = np.lexsort((columns_of, rows_of))
        whole: Bools = np.arange(total) < n
        return Arrays(
            self.raw * self.scale * (self.upper > 0), np.zeros(total), self.upper, whole, rows_of[order],
            columns_of[order], np.concatenate(coefficient)[order], np.concatenate(least), np.concatenate(most),
        )  # fmt: skip

    def price(self, cost: float) -> float:
        """What a cost of the programme is worth in the graph's unit."""
        return cost / self.scale + self.constant

    def choice(self, values: Sequence[float]) -> tuple[int, ...]:
        one = np.asarray(values)
        return tuple(
            int(live[np.argmax(one[a : a + len(live)])]) for live, a in zip(self.live, self.first[:-1], strict=True)
        )

    def values(self, choice: Sequence[int] | None) -> list[float] | None:
        """All columns of a choice; None if it is forbidden."""
        if choice is None:
            return None
        found = np.zeros(len(self.raw))
        taken = [np.flatnonzero(live == c) for live, c in zip(self.live, choice, strict=True)]
        if not all(len(t) for t in taken):
            return None
        for a, t in zip(self.first[:-1], taken, strict=True):
            found[a + t[0]] = 1.0
        at = int(self.first[-1])
        for (u, v), (a, b) in zip(self.graph.edges, self.pairs, strict=True):
            pair = np.flatnonzero((a == taken[u][0]) & (b == taken[v][0]))
            if not len(pair):
                return None
            found[at + pair[0]] = 1.0
            at += len(a)
        return list(found.tolist())
