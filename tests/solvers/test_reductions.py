"""Reductions keep the optimum, and what is restored reaches it."""

from __future__ import annotations

from math import inf

import numpy as np
from hypothesis import given, settings

from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.reductions import reduced

from .small_graphs import cost_graphs, optimum


@given(cost_graphs())
@settings(max_examples=300, deadline=None)
def test_the_best_of_what_is_left_is_the_best_of_the_graph(graph: CostGraph) -> None:
    best = optimum(graph)
    for eliminate in (True, False):
        small = reduced(graph, eliminate=eliminate)
        assert small.constant + (optimum(small.graph) if small.constant < inf else 0.0) == best
        if best < inf:
            every = small.graph.unary
            choice = min(np.ndindex(*map(len, every)), key=small.graph.cost)
            assert graph.cost(small.restored(choice)) == best


@given(cost_graphs())
@settings(max_examples=200, deadline=None)
def test_what_is_left_has_neither_forbidden_options_nor_variables_of_degree_two(graph: CostGraph) -> None:
    small = reduced(graph)
    degree = np.zeros(len(small.graph.unary), int)
    for (u, v), table in zip(small.graph.edges, small.graph.tables, strict=True):
        degree[[u, v]] += 1
        assert np.isfinite(table).any(axis=0).all() and np.isfinite(table).any(axis=1).all()
    assert (degree >= 3).all()
    assert all(np.isfinite(prices).all() for prices in small.graph.unary)


def test_a_chain_a_cycle_and_equal_variables_leave_nothing() -> None:
    rng = np.random.default_rng(0)
    n, k = 200, 7
    ring = tuple((i, (i + 1) % n) for i in range(n))
    equal = np.where(np.eye(k, dtype=bool), 0.0, inf)
    twins = tuple((i, n + i) for i in range(0, n, 10))
    fans = tuple((n + i, n) for i in range(10, n, 10))
    unary = tuple(rng.random(k) for _ in range(2 * n))
    tables = tuple(rng.random((k, k)) for _ in ring)
    graph = CostGraph(unary, ring + twins + fans, tables + (equal,) * (len(twins) + len(fans)))
    small = reduced(graph)
    assert not small.graph.unary
    choice = small.restored(())
    assert np.isclose(graph.cost(choice), small.constant, rtol=1e-12)
    assert len({choice[i] for i in range(0, n, 10)}) == 1


def test_equal_layers_share_their_tables() -> None:
    rng = np.random.default_rng(1)
    k, layers = 5, 50
    own, table = rng.random(k), rng.random((k, k))
    across = rng.random((k, k))
    unary, edges, tables = [], [], []
    for layer in range(layers):
        base = 4 * layer
        unary += [own.copy() for _ in range(4)]
        ends = [(base + i, base + j) for i in range(4) for j in range(i)]
        if layer:
            ends += [(base + i, base - 4 + j) for i in range(4) for j in range(4)]
        edges += ends
        tables += [table.copy() if u // 4 == v // 4 else across.copy() for u, v in ends]
    small = reduced(CostGraph(tuple(unary), tuple(edges), tuple(tables)))
    assert len(small.graph.unary) == 4 * layers
    assert len({id(t) for t in small.graph.tables}) <= 4
