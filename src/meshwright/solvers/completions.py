"""What the rest of a choice costs at least, for every table of an elimination: bucket elimination there and back.

    there   as `elimination`: tables that hold a variable are added up, the least over its options is left to its neighbours
    back    what the table that a variable left is completed by: of its neighbour's sum and what that one is completed by,
            the least over all that the table is not over

So no choice with some entry of a table costs less than the entry and what completes it, and some choice costs just that
(min-marginals, as in a junction tree: Lauritzen and Spiegelhalter 1988, over (min, +)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from .cost_graph import CostGraph, Floats
from .elimination import Table, _summed
from .elimination_order import Order

KEPT = 20_000_000
"""Entries of all sums together up to which they are kept for the way back; of more, each is made twice."""


@dataclass(frozen=True, slots=True, eq=False)
class Completed:
    """Of all choices of one graph."""

    value: float
    """The least price; inf: every choice is forbidden."""
    choice: tuple[int, ...]
    """One of that price; () if there is none."""
    marginals: tuple[Floats, ...]
    """Per variable and option: the least of all choices that take it."""
    outside: tuple[Floats, ...]
    """Per place in the order, over its scope: the least of all that is not in the table that is left there."""


def completed(graph: CostGraph, order: Order) -> Completed:
    """Both ways through the elimination of all variables in this order; arrays of up to `order.largest` entries."""
    sizes = [len(own) for own in graph.unary]
    rank = {v: i for i, v in enumerate(order.sequence)}
    holding: list[list[tuple[Table, int]]] = [[] for _ in order.sequence]
    roots: dict[int, float] = {}

    def put(table: Table, place: int) -> None:
        """`place`: of the variable that left it, -1 for one of the graph's own."""
        if table[0]:
            holding[min(rank[u] for u in table[0])].append((table, place))
        else:
            roots[place] = float(table[1])

    for v, own in enumerate(graph.unary):
        put(((v,), own), -1)
    for (u, v), prices in zip(graph.edges, graph.tables, strict=True):
        put(((u,), np.ascontiguousarray(np.diagonal(prices))) if u == v else ((u, v), prices), -1)
    kept: dict[int, Floats] = {}

    def summed(i: int) -> Floats:
        axes = (*order.scopes[i], order.sequence[i])
        return kept.pop(i) if i in kept else _summed([table for table, _ in holding[i]], axes, sizes)

    for i, scope in enumerate(order.scopes):
        found = summed(i)
        put((scope, found.min(axis=-1)), i)
        if order.operations <= KEPT:
            kept[i] = found
    value = sum(roots.values())
    if value == inf:
        return Completed(inf, (), tuple(np.full(n, inf) for n in sizes), ())
    marginals: list[Floats] = [np.zeros(0)] * len(sizes)
    outside: list[Floats] = [np.array(value - roots.get(i, 0.0)) for i in range(len(order.scopes))]
    choice = [0] * len(sizes)
    for i in reversed(range(len(order.scopes))):
        v, scope = order.sequence[i], order.scopes[i]
        found = summed(i)
        choice[v] = int(found[tuple(choice[u] for u in scope)].argmin())
        whole = found + outside[i][..., None]
        marginals[v] = whole.reshape(-1, sizes[v]).min(axis=0)
        for (variables, prices), place in holding[i]:
            if place >= 0:
                outside[place] = _without(whole, (*scope, v), variables, prices)
    return Completed(value, tuple(choice), tuple(marginals), tuple(outside))


def _without(whole: Floats, over: Sequence[int], variables: tuple[int, ...], prices: Floats) -> Floats:
    """Per entry of `prices`, a table over some of the variables of `whole`: the least of all the rest of the sum."""
    least = whole.min(axis=tuple(k for k, u in enumerate(over) if u not in variables))
    kept = [u for u in over if u in variables]
    turned = least.transpose([kept.index(u) for u in variables])
    legal = prices < inf
    found: Floats = np.where(legal, turned, inf) - np.where(legal, prices, 0.0)
    return found
