"""Least price of a cost graph within a memory limit, by a price for memory (Lagrange multiplier) and exact elimination.

    price + m · (memory − limit), least over all choices, is a bound for every m ≥ 0

Of two known choices, one too large and one that fits, the line through them gives the next m; either the optimum at that m is
one of them, and the bound is as high as it gets, or it replaces the one on its side. What is found lies on the lower convex
hull of the frontier: where the frontier bends inwards the gap to the bound stays, and is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf

import numpy as np

from .cost_graph import FORBIDDEN, CostGraph, Floats, Found
from .elimination import eliminate

ROUNDS = 50
CLOSE = 1e-12
"""Share by which the bound must rise for another round."""


def eliminate_within(
    graph: CostGraph,
    cap: float,
    solve: Callable[[CostGraph], Found] = eliminate,
    better: Callable[[tuple[int, ...]], None] = lambda choice: None,
) -> Found:
    """A choice of at most `cap` bytes and a bound of the price of all such; `FORBIDDEN` if there is none.

    Args:
        solve: the best choice without a limit, of graphs with the same edges and other prices; what it raises goes through.
        better: called with every better choice that fits.
    """
    free = solve(graph)
    if not free.choice or graph.bytes(free.choice) <= cap:
        return free
    small = solve(_priced(graph, inf))
    if not small.choice or graph.bytes(small.choice) > cap:
        return FORBIDDEN
    large, fits, bound = free.choice, small.choice, free.bound
    best = fits
    better(best)
    for _ in range(ROUNDS):
        saved = graph.bytes(large) - graph.bytes(fits)
        price = (graph.cost(fits) - graph.cost(large)) / saved
        line = graph.cost(large) + price * (graph.bytes(large) - cap)
        answer = solve(_priced(graph, price))
        found = answer.choice
        least = answer.bound - price * cap
        bound = max(bound, least)
        if least >= line - CLOSE * abs(line):
            break
        if graph.bytes(found) > cap:
            large = found
        else:
            fits = found
            if graph.cost(found) < graph.cost(best):
                best = found
                better(best)
    value = graph.cost(best)
    return Found(best, value, min(value, bound), free.width, free.largest)


def _priced(graph: CostGraph, price: float) -> CostGraph:
    """The graph whose prices hold `price` for each byte; inf: bytes alone, of choices that are not forbidden."""
    made: dict[tuple[int, int], Floats] = {}
    unary = []
    for own, memory in zip(graph.unary, graph.memory, strict=True):
        key = (id(own), id(memory))  # equal ops go on sharing their arrays
        if key not in made:
            made[key] = np.where(own < inf, memory, inf) if price == inf else own + price * memory
        unary.append(made[key])
    if price < inf:
        return replace(graph, unary=tuple(unary))
    legal: dict[int, Floats] = {}
    tables = tuple(legal.setdefault(id(t), np.where(t < inf, 0.0, inf)) for t in graph.tables)
    return replace(graph, unary=tuple(unary), tables=tables)
