"""Cost graphs: variables with finite options, a price of each option, a price of each pair of options on an edge.

The one problem behind every planner that decides how operators are cut (DESIGN, "One cost graph"): choose an option per
variable so that the sum of unary and pairwise prices is least. Solvers take a `CostGraph` and return a `Found`:
`elimination` and `pareto` exactly, `message_passing` with a bound, `choice_programme` as an integer programme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CostGraph:
    """Any undirected graph, connected or not. Prices in one unit; inf = forbidden. Tables may be shared between edges."""

    unary: tuple[Floats, ...]
    """Per variable float64[options]."""
    edges: tuple[tuple[int, int], ...] = ()
    """Pairs of variables; parallel edges add up, an edge from a variable to itself prices the option with itself."""
    tables: tuple[Floats, ...] = ()
    """Per edge (u, v) float64[options of u, options of v]."""
    memory: tuple[Floats, ...] = ()
    """Bytes per variable and option; () where nothing asks for them."""

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.tables):
            raise ValueError(f"{len(self.edges)} edges with {len(self.tables)} tables")
        if self.memory and [m.shape for m in self.memory] != [u.shape for u in self.unary]:
            raise ValueError("memory needs one number for each option of each variable")
        for (u, v), table in zip(self.edges, self.tables, strict=True):
            if table.shape != (len(self.unary[u]), len(self.unary[v])):
                raise ValueError(
                    f"edge ({u}, {v}) has a table of {table.shape}, its ends have other numbers of options"
                )

    def cost(self, choice: Sequence[int]) -> float:
        """Price of one option for each variable."""
        total = sum(float(table[c]) for table, c in zip(self.unary, choice, strict=True))
        return total + sum(float(t[choice[u], choice[v]]) for (u, v), t in zip(self.edges, self.tables, strict=True))

    def bytes(self, choice: Sequence[int]) -> float:
        """Sum of the memory of one option for each variable."""
        return sum(float(table[c]) for table, c in zip(self.memory, choice, strict=True))

    def simple(self) -> CostGraph:
        """The same prices with at most one edge (u, v), u < v, between two variables and none from one to itself."""
        unary = list(self.unary)
        tables: dict[tuple[int, int], Floats] = {}
        for (u, v), table in zip(self.edges, self.tables, strict=True):
            if u == v:
                unary[u] = unary[u] + np.diagonal(table)
                continue
            key, oriented = ((u, v), table) if u < v else ((v, u), table.T)
            tables[key] = tables[key] + oriented if key in tables else oriented
        return replace(self, unary=tuple(unary), edges=tuple(tables), tables=tuple(tables.values()))


@dataclass(frozen=True, slots=True)
class Found:
    """What a solver answers. `value` is the price on the FULL graph, by `CostGraph.cost`."""

    choice: tuple[int, ...]
    """One option per variable; () if every choice is forbidden (value inf) or none was found."""
    value: float
    bound: float
    """Proven lower bound of the optimum."""
    width: int = 0
    """Most variables in one table, less one, where the solver has tables."""
    largest: int = 0
    """Entries of the largest table."""

    @property
    def gap(self) -> float:
        """(value − bound) / |value|; 0 = proved optimal."""
        if self.value == self.bound:
            return 0.0
        return (self.value - self.bound) / max(abs(self.value), 1e-300) if self.value < inf else inf


FORBIDDEN = Found((), inf, inf)
"""Every choice is forbidden."""


def restricted(graph: CostGraph, keep: Sequence[NDArray[np.intp]]) -> CostGraph:
    """The graph with these options of each variable only."""
    return CostGraph(
        tuple(own[k] for own, k in zip(graph.unary, keep, strict=True)),
        graph.edges,
        tuple(
            np.ascontiguousarray(t[np.ix_(keep[u], keep[v])])
            for (u, v), t in zip(graph.edges, graph.tables, strict=True)
        ),
        tuple(own[k] for own, k in zip(graph.memory, keep, strict=True)) if graph.memory else (),
    )
