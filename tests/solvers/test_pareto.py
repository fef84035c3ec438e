"""The frontier = brute force over all choices, point for point, in any order; limits, gaps and shared tables."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import Unsupported
from meshwright.solvers._pareto_kernels import join
from meshwright.solvers.cost_graph import CostGraph, Floats
from meshwright.solvers.elimination import eliminate
from meshwright.solvers.elimination_order import ORDERS, Order, order_of
from meshwright.solvers.gaps import Weight, gaps_of
from meshwright.solvers.pareto import frontier
from meshwright.solvers.tracking import tracking_order

from .small_graphs import cost_graphs

Points = list[tuple[float, float]]


def brute(graph: CostGraph, cap: float = inf, edge_memory: tuple[Floats, ...] = ()) -> Points:
    """Of all choices, those that no other beats in memory and price."""
    found: Points = []
    for choice in product(*(range(len(u)) for u in graph.unary)):
        memory = graph.bytes(choice) + sum(
            float(t[choice[u], choice[v]]) for (u, v), t in zip(graph.edges, edge_memory)
        )
        price = graph.cost(choice)
        if price < inf and memory <= cap:
            found.append((memory, price))
    best: Points = []
    for memory, price in sorted(found):
        if not best or price < best[-1][1]:
            best.append((memory, price))
    return best


def orders(graph: CostGraph) -> list[Order]:
    sizes = [len(u) for u in graph.unary]
    return [*(order_of(sizes, graph.edges, name) for name in ORDERS), tracking_order(sizes, graph.edges, 10**9)[0]]


@settings(max_examples=60, deadline=None)
@given(cost_graphs(), st.integers(0, 3))
def test_it_is_brute_force_with_a_choice_for_every_point(graph: CostGraph, which: int) -> None:
    found = frontier(graph, orders(graph)[which])
    points = list(zip(found.memory.tolist(), found.price.tolist()))
    assert points == brute(graph)
    assert [(graph.bytes(c), graph.cost(c)) for c in found.choices.tolist()] == points


@settings(max_examples=40, deadline=None)
@given(cost_graphs(), st.integers(0, 80))
def test_a_limit_drops_what_is_above_it_and_nothing_else(graph: CostGraph, cap: int) -> None:
    found = frontier(graph, orders(graph)[0], cap=float(cap))
    assert list(zip(found.memory.tolist(), found.price.tolist())) == brute(graph, cap)


@settings(max_examples=30, deadline=None)
@given(cost_graphs(), st.integers(0, 2**32 - 1))
def test_copies_on_edges_count_where_they_are_given(graph: CostGraph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = tuple(rng.integers(0, 9, t.shape).astype(float) for t in graph.tables)
    found = frontier(graph, orders(graph)[3], edge_memory=kept)
    assert list(zip(found.memory.tolist(), found.price.tolist())) == brute(graph, inf, kept)


@settings(max_examples=60, deadline=None)
@given(cost_graphs(), st.integers(0, 3), st.data())
def test_points_in_gaps_are_all_found_and_are_real(graph: CostGraph, which: int, data: st.DataObject) -> None:
    """Whatever part of the front is known, and along whatever lines points are held against its gaps."""
    exact = brute(graph)
    known = [p for k, p in enumerate(exact) if k in (0, len(exact) - 1) or data.draw(st.booleans())]
    memory, price = (np.array([p[k] for p in known]) for k in range(2))
    slopes = data.draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0, 100.0]), max_size=3, unique=True))
    weights = [Weight(1.0, s) for s in slopes] + [Weight(0.0, 1.0)]
    found = frontier(graph, orders(graph)[which], gaps=gaps_of(memory, price, inf, 0.0, True), weights=weights)
    points = list(zip(found.memory.tolist(), found.price.tolist()))
    assert set(exact) - set(known) <= set(points)
    assert [(graph.bytes(c), graph.cost(c)) for c in found.choices.tolist()] == points


@settings(max_examples=40, deadline=None)
@given(cost_graphs())
def test_its_end_is_the_unconstrained_optimum_and_more_memory_never_costs_time(graph: CostGraph) -> None:
    found = frontier(graph, orders(graph)[0])
    optimum = eliminate(graph).value
    assert (found.price[-1] if len(found.price) else inf) == optimum
    assert (np.diff(found.memory) > 0).all() and (np.diff(found.price) < 0).all()


def test_thousands_of_points_outgrow_the_first_scratch_arrays() -> None:
    """Every choice of powers of two is a point of its own: the front doubles with each variable."""
    n = 13
    memory = tuple(np.array([0.0, 2.0**v]) for v in range(n))
    price = tuple(np.array([2.0**v, 0.0]) for v in range(n))
    graph = CostGraph(price, tuple((v, v + 1) for v in range(n - 1)), (np.zeros((2, 2)),) * (n - 1), memory)
    found = frontier(graph, orders(graph)[3])
    assert found.memory.tolist() == list(map(float, range(2**n)))
    assert found.price.tolist() == [2.0**n - 1 - m for m in range(2**n)]
    assert all(graph.bytes(c) == m for c, m in zip(found.choices[::97].tolist(), found.memory[::97]))


def test_a_table_of_too_many_fronts_is_refused() -> None:
    graph = CostGraph((np.zeros(9),) * 3, ((0, 1), (1, 2), (0, 2)), (np.zeros((9, 9)),) * 3)
    with pytest.raises(Unsupported, match="a table of fronts of 729 entries, more than the limit of 100"):
        frontier(graph, orders(graph)[0], limit=100)


def test_the_kernel_keeps_the_first_of_equal_points() -> None:
    one = np.array([0, 3]), np.array([1.0, 1.0, 2.0]), np.array([5.0, 5.0, 5.0])
    ptr, memory, price, option, left, right = join(
        *one, np.array([0, 1]), np.zeros(1), np.zeros(1), [0, 0], [0, 0], 2, inf, 0.0
    )
    assert (ptr.tolist(), memory.tolist(), price.tolist()) == ([0, 1], [1.0], [5.0])
    assert (option.tolist(), left.tolist(), right.tolist()) == ([0], [0], [0])
