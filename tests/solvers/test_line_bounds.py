"""Bounds by messages are below all choices, frontiers found with them are those of all choices, and how far off they are holds."""

from __future__ import annotations

from itertools import product
from math import inf
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.solvers import narrowing
from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.domination import thinned
from meshwright.solvers.gaps import Weight, weighted
from meshwright.solvers.line_bounds import bounded, off
from meshwright.solvers.narrowing import TooLarge, narrowed
from meshwright.solvers.tracking import tracked, tracking_order

from .small_graphs import cost_graphs
from .test_pareto import brute


@settings(max_examples=80, deadline=None)
@given(cost_graphs(), st.sampled_from([(1.0, 0.0), (0.0, 1.0), (1.0, 3.0)]))
def test_no_choice_costs_less_than_the_bounds_of_it_and_of_its_options(
    whole: CostGraph, line: tuple[float, float]
) -> None:
    graph = weighted(whole.simple(), Weight(*line))
    found = bounded(graph)
    every = [(graph.cost(c), c) for c in product(*(range(len(u)) for u in graph.unary))]
    assert found.least <= min(every)[0] + 1e-9
    for cost, choice in every:
        if cost < inf:
            for v, c in enumerate(choice):
                assert found.marginals[v][c] <= cost + 1e-9 * max(1.0, abs(cost))
    if found.choice:
        assert graph.cost(found.choice) == pytest.approx(found.value, abs=1e-9)
    if found.met and found.least < inf:
        assert found.value == pytest.approx(min(every)[0], abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(cost_graphs(), st.sampled_from([inf, 10.0, 30.0, 60.0]))
def test_a_frontier_found_by_messages_is_brute_force(graph: CostGraph, cap: float) -> None:
    with patch.object(narrowing, "TABLE", 0):
        found = tracked(graph, cap=cap)
    points = list(zip(found.memory.tolist(), found.price.tolist()))
    assert points == brute(graph, cap) and found.how.fixed == ()
    assert [(graph.bytes(c), graph.cost(c)) for c in found.choices.tolist()] == points


@settings(max_examples=80, deadline=None)
@given(cost_graphs(variables=7), st.sampled_from([8, 20]), st.sampled_from([inf, 40.0]))
def test_where_ops_are_fixed_the_frontier_is_no_further_off_than_said(graph: CostGraph, limit: int, cap: float) -> None:
    with patch.object(narrowing, "TABLE", 0):
        found = tracked(graph, cap=cap, limit=limit)
    exact = brute(graph, cap)
    points = list(zip(found.memory.tolist(), found.price.tolist()))
    if not found.how.fixed:
        assert points == exact and (found.off.faster, found.off.smaller) == (0.0, 0.0)
        return
    if not points:
        return
    if found.off.smaller < inf:
        assert points[0][0] * (1 - found.off.smaller) <= exact[0][0] + 1e-6
    for memory, price in exact:
        known = [p for m, p in points if m <= memory]
        if known and found.off.faster < inf:
            assert min(known) - found.off.faster * abs(min(known)) <= price + 1e-6 * max(1.0, abs(price))


def test_a_proved_frontier_is_not_far_off_and_a_worse_one_is_told_as_that() -> None:
    rng = np.random.default_rng(3)
    edges = tuple((u, v) for u in range(6) for v in range(u))
    graph = CostGraph(
        tuple(rng.uniform(5, 9, 3) for _ in range(6)), edges, tuple(rng.uniform(0, 1, (3, 3)) for _ in edges),
        tuple(rng.uniform(1, 9, 3) for _ in range(6)),
    )  # fmt: skip
    small = thinned(graph).graph
    exact = tracked(graph)
    near, far = (off(small, exact.memory, k * exact.price) for k in (1.0, 2.0))
    assert near.smaller == pytest.approx(0.0, abs=1e-9) and near.faster < 0.5 < far.faster
    assert off(small, exact.memory[-1:], exact.price[-1:]).smaller > 0.1
    with patch.object(narrowing, "TABLE", 0), patch.object(narrowing, "bounded", lambda g: bounded(g, 1)):
        with pytest.raises(TooLarge):
            narrowed(small, limit=10)
        fixed = tracked(graph, limit=10)
    assert fixed.how.fixed and 0.0 < fixed.off.faster < 1.0


def test_an_order_of_small_tables_is_taken_before_an_op_is_fixed() -> None:
    """A wheel whose hub has few options: by kinds the rim comes first, by size the hub."""
    sizes = [2, *[9] * 8]
    edges = [(0, v) for v in range(1, 9)] + [(v, v + 1) for v in range(1, 8)] + [(8, 1)]
    order, how = tracking_order(sizes, edges, 1500)
    assert not how.fixed and order.largest <= 2 * 9**3
