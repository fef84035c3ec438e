"""Cost graphs: prices of choices, and the simple form of one with parallel edges."""

from __future__ import annotations

from itertools import product

import numpy as np

from meshwright.solvers.cost_graph import CostGraph


def test_the_simple_form_prices_every_choice_alike() -> None:
    rng = np.random.default_rng(3)
    sizes = (2, 3, 2)
    edges = ((0, 1), (1, 0), (2, 2), (1, 2), (1, 2))
    graph = CostGraph(
        tuple(rng.random(k) for k in sizes),
        edges,
        tuple(rng.random((sizes[u], sizes[v])) for u, v in edges),
    )
    simple = graph.simple()
    assert sorted(simple.edges) == [(0, 1), (1, 2)]
    for choice in product(*(range(k) for k in sizes)):
        assert np.isclose(graph.cost(choice), simple.cost(choice))
