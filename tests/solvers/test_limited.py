"""A memory limit: what is found fits, the bound is one, and nothing is missed where the frontier is convex."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.limited import eliminate_within

from .small_graphs import cost_graphs


@settings(max_examples=80, deadline=None)
@given(cost_graphs(variables=5), st.integers(0, 60))
def test_it_fits_and_the_optimum_lies_between_bound_and_value(graph: CostGraph, cap: int) -> None:
    found = eliminate_within(graph, float(cap))
    prices = [graph.cost(c) for c in product(*(range(len(u)) for u in graph.unary)) if graph.bytes(c) <= cap]
    optimum = min(prices, default=inf)
    if optimum == inf:
        assert found.choice == () and found.value == inf
        return
    assert graph.bytes(found.choice) <= cap and graph.cost(found.choice) == found.value
    assert found.bound <= optimum + 1e-9 * abs(optimum) <= found.value + 2e-9 * abs(optimum)


def test_on_a_convex_frontier_it_is_exact_and_tells_each_better_choice() -> None:
    """Every variable may save its bytes at a price that rises from variable to variable."""
    n = 12
    graph = CostGraph(
        tuple(np.array([0.0, float(v + 1)]) for v in range(n)), tuple((v, v + 1) for v in range(n - 1)),
        (np.zeros((2, 2)),) * (n - 1), tuple(np.array([10.0, 0.0]) for _ in range(n)),
    )  # fmt: skip
    for kept in range(n + 1):
        told: list[tuple[int, ...]] = []
        found = eliminate_within(graph, 10.0 * kept, better=told.append)
        assert found.value == found.bound == sum(range(1, n - kept + 1))
        assert not told or told[-1] == found.choice
