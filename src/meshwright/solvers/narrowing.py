"""The convex hull of a frontier, and the options without which no other point of it is made.

    fastest and leanest choice; then, of two neighbours on the hull, the choice that is best along the line through both,
    widest gap first: it is a point between them, or they are neighbours for good (Aneja and Nair 1979)

Each of these is one exact elimination there and back (`completions`), which tells of every option how good a choice that takes
it can be along that line; where its tables would be too large, messages bound the same from below (`line_bounds`). An option
that stays above every gap along some line goes: graphs of tens of thousands of options shrink to those few that trade memory
for price. The ends of the hull are proved either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import inf

import numpy as np
from numpy.typing import NDArray

from .completions import completed
from .cost_graph import CostGraph, Floats, restricted
from .elimination_order import Order, order_of
from .gaps import Gaps, Weight, gaps_of, unbeaten, weighted
from .line_bounds import Bounded, bounded

Kept = NDArray[np.intp]
MOST = 48
"""Lines that are drawn at most."""
WORK = 4e9
"""Entries of tables in all of these eliminations, about: half a minute. At least three lines are drawn."""
STEEP = 1e9
"""Times that the whole of memory weighs as much as all differences in price, where least memory comes first."""
MESSAGES = 100
"""Entries of tables that messages cost for each entry of an edge, about."""
TABLE = 3_000_000
"""Entries of the largest table above which a line is drawn by messages first: an elimination takes a second then."""
SHRUNK = 0.95
"""Share of the options below which the graph is made anew."""


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """By memory; none beats another."""

    memory: Floats
    price: Floats
    choices: NDArray[np.int32]
    """[points, variables]; −1 where a point is not of this graph."""


@dataclass(frozen=True, slots=True, eq=False)
class Narrowed:
    """What is left to search, and what is known of it."""

    graph: CostGraph
    kept: tuple[Kept, ...]
    """Per variable the options that are left, by their number in the whole graph."""
    known: Points
    """Choices of the whole graph, and points from elsewhere."""
    weights: tuple[Weight, ...]
    gaps: Gaps
    fastest: float
    """The least price of any choice, within the cap or not; inf: none is legal."""


class TooLarge(Exception):
    """Neither end of the hull can be proved: tables are too large, and messages do not meet."""


def narrowed(
    graph: CostGraph,
    cap: float = inf,
    epsilon: float = 0.0,
    elsewhere: tuple[Floats, Floats] | None = None,
    told: Callable[[int], None] = lambda lines: None,
    limit: float = inf,
) -> Narrowed:
    """The graph without options that no new point needs. It has no parallel edges (`CostGraph.simple`).

    Args:
        cap: memory that no point may pass.
        epsilon: share of memory and price within which a point is not new.
        elsewhere: (memory, price) of points that any choice must beat as well, such as those of another mesh.
        told: called with the number of lines drawn; may raise.
        limit: entries of the largest table of an elimination.

    Raises:
        TooLarge: an end of the hull needs a larger one.
    """
    return _Hull(graph, cap, epsilon, elsewhere, told, limit).narrowed()


@dataclass
class _Hull:
    whole: CostGraph
    cap: float
    epsilon: float
    elsewhere: tuple[Floats, Floats] | None
    told: Callable[[int], None]
    limit: float
    graph: CostGraph = field(init=False)
    kept: list[Kept] = field(init=False)
    marginals: list[list[Floats]] = field(init=False, default_factory=list)
    """Per line, per variable, of the options that are left."""
    weights: list[Weight] = field(init=False, default_factory=list)
    points: list[tuple[float, float, tuple[int, ...]]] = field(init=False, default_factory=list)
    """(memory, price, choice of the whole graph) within the cap."""
    operations: float = field(init=False, default=0.0)
    """Of the last elimination."""

    def __post_init__(self) -> None:
        self.graph = self.whole
        self.kept = [np.arange(len(own)) for own in self.whole.unary]

    def narrowed(self) -> Narrowed:
        fast = self._line(1.0, 0.0, end=True)
        if fast is None:
            return self._result(inf)
        least = fast[1]
        lean = self._line(0.0, 1.0, end=True)
        if lean is not None and lean[0] <= self.cap:
            if lean[1] > fast[1] and lean[0]:  # of many of least memory the fastest
                lean = self._line(1.0, STEEP * (lean[1] - fast[1]) / abs(lean[0]), end=True) or lean
            self._between(lean, fast)
        return self._result(least)

    def _between(self, lean: tuple[float, float], fast: tuple[float, float]) -> None:
        """All of the hull between two of its points, as far as points there are within the cap, and count."""
        queue: list[tuple[float, tuple[float, float], tuple[float, float]]] = []

        def put(left: tuple[float, float], right: tuple[float, float]) -> None:
            wide, high = right[0] - left[0], left[1] - right[1]
            scales = abs(right[0]) or 1.0, abs(left[1]) or 1.0
            if wide > self.epsilon * scales[0] and high > self.epsilon * scales[1] and left[0] < self.cap:
                heappush(queue, (-(wide / scales[0]) * (high / scales[1]), left, right))

        put(lean, fast)
        spent, next_narrowing = 0.0, 2
        while queue and len(self.weights) < MOST and (spent < WORK or len(self.weights) < 3):
            if len(self.weights) >= next_narrowing:
                self._narrow()
                next_narrowing = len(self.weights) + max(1, len(self.weights) // 2)
                if min(map(len, self.graph.unary)) == 0:
                    return
            _, left, right = heappop(queue)
            slope = (left[1] - right[1]) / (right[0] - left[0])
            found = self._line(1.0, slope)
            spent += self.operations
            if found is None:
                continue
            line, here = (p[1] + slope * p[0] for p in (left, found))
            if here < line - 1e-9 * (abs(line) + 1e-300) and left[0] <= found[0] <= right[0]:
                put(left, found)
                put(found, right)
        self._narrow()

    def _line(self, of_price: float, of_memory: float, end: bool = False) -> tuple[float, float] | None:
        """(memory, price) of the best choice along a line; None if none is left, or messages met none.

        Args:
            end: of the hull: the choice must be proved to be the best.
        """
        weight = Weight(of_price, of_memory)
        found = self._bounds(weighted(self.graph, weight), end)
        self.weights.append(replace(weight, least=found.least))
        self.marginals.append(list(found.marginals))
        self.told(len(self.weights))
        if not found.choice:
            return None
        choice = tuple(int(own[c]) for own, c in zip(self.kept, found.choice, strict=True))
        point = self.whole.bytes(choice), self.whole.cost(choice)
        if point[0] <= self.cap:
            self.points.append((*point, choice))
        return point

    def _bounds(self, graph: CostGraph, end: bool) -> Bounded:
        order = line_order(graph)
        if order.largest > TABLE:
            self.operations = MESSAGES * sum(map(np.size, graph.tables))
            found = bounded(graph)
            if found.met or not end:
                return found
            if order.largest > self.limit:
                raise TooLarge
        self.operations = order.operations
        exact = completed(graph, order)
        return Bounded(exact.value, exact.choice, exact.value, exact.marginals)

    def _known(self) -> Points:
        memory = np.array([m for m, _, _ in self.points])
        price = np.array([p for _, p, _ in self.points])
        count = len(self.whole.unary)
        choices = np.array([c for *_, c in self.points], np.int32).reshape(-1, count)
        if self.elsewhere is not None:
            memory, price = (np.concatenate(pair) for pair in zip(self.elsewhere, (memory, price), strict=True))
            choices = np.concatenate([np.full((len(memory) - len(choices), count), -1, np.int32), choices])
        best = unbeaten(memory, price)
        return Points(memory[best], price[best], choices[best])

    def _gaps(self, known: Points) -> Gaps:
        fastest = self.weights[0].least
        reached = len(known.price) > 0 and known.price[-1] <= fastest + 1e-9 * abs(fastest)
        return gaps_of(known.memory, known.price, self.cap, self.epsilon, bool(reached) or self.cap == inf)

    def _narrow(self) -> None:
        """Drop the options that no gap needs."""
        gaps = self._gaps(self._known())
        most = gaps.most(self.weights)
        keep = [np.flatnonzero(_any_below(np.stack(own), most)) for own in zip(*self.marginals, strict=True)]
        if sum(map(len, keep)) > SHRUNK * sum(map(len, self.kept)) and min(map(len, keep)):
            return
        self.kept = [own[k] for own, k in zip(self.kept, keep, strict=True)]
        self.marginals = [[own[k] for own, k in zip(line, keep, strict=True)] for line in self.marginals]
        self.graph = restricted(self.graph, keep)

    def _result(self, fastest: float) -> Narrowed:
        known = self._known()
        weights = tuple(w for w in self.weights if w.least < inf)
        return Narrowed(self.graph, tuple(self.kept), known, weights, self._gaps(known), fastest)


def _any_below(marginals: Floats, most: Floats) -> NDArray[np.bool_]:
    """Per option whether along all lines [lines, options] it is at most at some corner [corners, lines]."""
    found = np.zeros(marginals.shape[1], bool)
    for corner in most:
        found |= (marginals <= corner[:, None]).all(axis=0)
    return found


def line_order(graph: CostGraph) -> Order:
    """The order in which a line is drawn."""
    return order_of([len(own) for own in graph.unary], graph.edges)
