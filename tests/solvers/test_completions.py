"""Marginals and completions = brute force over all choices."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.solvers.completions import completed
from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.elimination_order import ORDERS, OrderName, order_of

from .small_graphs import cost_graphs, optimum


@settings(max_examples=80, deadline=None)
@given(cost_graphs(), st.sampled_from(ORDERS))
def test_the_least_with_each_option_is_that_of_all_choices_that_take_it(graph: CostGraph, name: OrderName) -> None:
    sizes = [len(u) for u in graph.unary]
    found = completed(graph, order_of(sizes, graph.edges, name))
    assert found.value == optimum(graph)
    assert (graph.cost(found.choice) if found.choice else inf) == found.value
    best = [np.full(n, inf) for n in sizes]
    for choice in product(*map(range, sizes)):
        for v, c in enumerate(choice):
            best[v][c] = min(best[v][c], graph.cost(choice))
    for ours, true in zip(found.marginals, best, strict=True):
        assert ours.tolist() == true.tolist()


@settings(max_examples=60, deadline=None)
@given(cost_graphs(5, 3, forbidden=False), st.sampled_from(ORDERS))
def test_a_table_and_what_completes_it_are_the_least_of_a_whole_choice(graph: CostGraph, name: OrderName) -> None:
    """What has left by a place is inside of its table; the rest is outside."""
    sizes = [len(u) for u in graph.unary]
    order = order_of(sizes, graph.edges, name)
    outside = completed(graph, order).outside
    below: dict[int, set[int]] = {}
    for i, (v, scope) in enumerate(zip(order.sequence, order.scopes, strict=True)):
        below[i] = {v} | {
            u
            for j in range(i)
            if v in order.scopes[j] and _parent(order.sequence, order.scopes[j]) == i
            for u in below[j]
        }
        assert outside[i].shape == tuple(sizes[u] for u in scope)
        least = np.full(outside[i].shape, inf)
        for choice in product(*map(range, sizes)):
            at = tuple(choice[u] for u in scope)
            least[at] = min(least[at], _without(graph, choice, below[i]))
        assert outside[i] == pytest.approx(least)


def _parent(sequence: tuple[int, ...], scope: tuple[int, ...]) -> int:
    return min((sequence.index(u) for u in scope), default=-1)


def _without(graph: CostGraph, choice: tuple[int, ...], gone: set[int]) -> float:
    """Price of a choice without what touches variables that are gone."""
    own = sum(float(u[c]) for v, (u, c) in enumerate(zip(graph.unary, choice)) if v not in gone)
    return own + sum(
        float(t[choice[u], choice[v]]) for (u, v), t in zip(graph.edges, graph.tables) if not {u, v} & gone
    )
