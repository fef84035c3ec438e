"""Where points of a frontier may still be, given some of its points and what sums of price and memory are at least.

    price                       known points ●: what is above and right of one is beaten by it
      ●- - - -+                 gaps: the boxes between neighbours, below the price of the left one and left of the right one
      |  gap  |                 a point with price + w · memory ≥ s lies above a line; where all lines of a choice that is
      |       ●- - +            not finished pass above the outer corner + of each gap, nothing that it may become is new
               | gap |
                     ●   memory

With a share ε > 0 gaps end that much earlier on both sides: then for every point (memory, price) of the frontier there is a
known or found one of at most memory + ε · |memory| and price + ε · |price|.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from .cost_graph import CostGraph, Floats

SLACK = 1e-10
"""Share by which sums of the same numbers in another order may differ, with room to spare."""
CLOSE = 1e-13
"""Share by which two numbers may differ that are equal but for the order of their sums."""
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Weight:
    """`of_price` · price + `of_memory` · memory of every choice is at least `least`."""

    of_price: float
    of_memory: float
    least: float = -inf


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """Outer corners of the boxes where points may still be; none: there are no more."""

    memory: Floats
    price: Floats

    def most(self, weights: list[Weight]) -> Floats:
        """[corners, weights] sums at the corners: what is above one of its row is not in that gap."""
        if not len(self.memory) or not weights:
            return np.zeros((len(self.memory), len(weights)))
        a, b = (np.array(x) for x in zip(*((w.of_price, w.of_memory) for w in weights), strict=True))
        prices, bytes_ = self.price[:, None] * a, self.memory[:, None] * b
        found: Floats = prices + bytes_ + SLACK * (np.abs(prices) + np.abs(bytes_))
        return found

    def strictest(self, weights: list[Weight]) -> Indices:
        """Per corner the weight whose line passes nearest below it: the one that is most likely to rule the gap out."""
        least = np.array([w.least for w in weights])
        most = self.most(weights)
        size = np.maximum(np.abs(most), np.abs(least)) + 1e-300
        return np.asarray(((most - least) / size).argmin(axis=1), np.int64)


def gaps_of(memory: Floats, price: Floats, cap: float, epsilon: float, fastest: bool) -> Gaps:
    """Gaps of known points, sorted by memory, none of which beats another; the first is known to have the least memory.

    Args:
        cap: memory that counts at most.
        fastest: no choice is faster than the last point.
    """
    right, below = _less(memory[1:], epsilon), _less(price, epsilon)
    if fastest or not len(price):
        return Gaps(right, below[:-1])
    return Gaps(np.append(right, cap), below)


def _less(numbers: Floats, epsilon: float) -> Floats:
    """The least x with x + ε · |x| ≥ each of the numbers."""
    found: Floats = numbers / (1.0 + epsilon * np.sign(numbers))
    return found


def unbeaten(memory: Floats, price: Floats) -> Indices:
    """Which points none beats, by memory; of points that are equal but for the order of sums, the first."""
    found: list[int] = []
    order = np.lexsort((np.arange(len(memory)), price, memory))
    fastest = inf
    k = 0
    while k < len(order):
        best = int(order[k])
        end = memory[best] + CLOSE * abs(memory[best])
        while k < len(order) and memory[order[k]] <= end:
            if price[order[k]] < price[best]:
                best = int(order[k])
            k += 1
        if price[best] < fastest - CLOSE * abs(fastest) or (not found and price[best] < inf):
            fastest = float(price[best])
            found.append(best)
    return np.array(found, np.int64)


def weighted(graph: CostGraph, weight: Weight) -> CostGraph:
    """The graph whose prices are of_price · price + of_memory · memory; what is forbidden stays so."""
    a, b = weight.of_price, weight.of_memory
    unary = tuple(
        np.where(own < inf, (a * own if a else 0.0) + b * memory, inf)
        for own, memory in zip(graph.unary, graph.memory, strict=True)
    )
    made: dict[int, Floats] = {}
    for table in graph.tables:
        if id(table) not in made:
            made[id(table)] = table if a == 1.0 else np.where(table < inf, a * table if a else 0.0, inf)
    return CostGraph(unary, graph.edges, tuple(made[id(t)] for t in graph.tables))
