"""Thinned graphs have the same frontier and the same optimum; what is left, no option beats."""

from __future__ import annotations

from math import inf

import numpy as np
from hypothesis import given, settings

from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.domination import thinned
from meshwright.solvers.elimination import eliminate
from meshwright.solvers.elimination_order import order_of
from meshwright.solvers.pareto import frontier

from .small_graphs import cost_graphs
from .test_pareto import brute


@settings(max_examples=120, deadline=None)
@given(cost_graphs())
def test_neither_the_frontier_nor_the_optimum_changes(graph: CostGraph) -> None:
    found = thinned(graph)
    small = found.graph
    assert all(len(k) <= len(u) for k, u in zip(found.kept, graph.unary))
    if min(map(len, small.unary)) == 0:
        assert eliminate(graph).value == inf
        return
    assert eliminate(small).value == eliminate(graph).value
    front = frontier(small, order_of([len(u) for u in small.unary], small.edges))
    assert list(zip(front.memory.tolist(), front.price.tolist())) == brute(graph)
    for choice, memory, price in zip(found.restored(front.choices).tolist(), front.memory, front.price):
        assert (graph.bytes(choice), graph.cost(choice)) == (memory, price)


def test_an_option_goes_only_if_it_loses_with_every_neighbour() -> None:
    table = np.array([[0.0, 9.0], [1.0, 9.0], [5.0, 0.0]])
    graph = CostGraph((np.zeros(3), np.zeros(2)), ((0, 1),), (table,), (np.zeros(3), np.zeros(2)))
    assert [k.tolist() for k in thinned(graph).kept] == [[0, 2], [0, 1]]
    saving = CostGraph((np.zeros(3), np.zeros(2)), ((0, 1),), (table,), (np.array([2.0, 1.0, 2.0]), np.zeros(2)))
    assert thinned(saving).kept[0].tolist() == [0, 1, 2]


def test_of_equal_options_the_lowest_stays() -> None:
    graph = CostGraph((np.zeros(4), np.zeros(2)), ((0, 1),), (np.zeros((4, 2)),), (np.zeros(4), np.zeros(2)))
    assert [k.tolist() for k in thinned(graph).kept] == [[0], [0]]
