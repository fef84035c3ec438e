"""Message passing, the integer programme, and both together: equal to trying everything, bounds below, limits kept."""

from __future__ import annotations

from itertools import pairwise, product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.solvers import certified as module
from meshwright.solvers.certified import certified
from meshwright.solvers.choice_programme import Room, choose
from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.message_passing import message_passing, pass_messages
from meshwright.solvers.reductions import reduced

from .small_graphs import cost_graphs, optimum


@given(cost_graphs())
@settings(max_examples=150, deadline=None)
def test_message_passing_brackets_the_optimum(graph: CostGraph) -> None:
    best = optimum(graph)
    found = message_passing(graph)
    slack = 1e-9 * max(1.0, abs(best)) if best < inf else 0.0
    assert found.bound <= best + slack
    assert found.value >= best
    assert found.value == inf or found.value == graph.cost(found.choice)


@given(cost_graphs(variables=8, forbidden=False))
@settings(max_examples=80, deadline=None)
def test_the_bound_never_falls_and_is_the_optimum_on_trees(graph: CostGraph) -> None:
    n = len(graph.unary)
    edges = tuple((v // 2, v) for v in range(1, n))
    rng = np.random.default_rng(n)
    tables = tuple(rng.random((len(graph.unary[u]), len(graph.unary[v]))) for u, v in edges)
    tree = CostGraph(graph.unary, edges, tables)
    bounds: list[float] = []
    passed = pass_messages(tree, progress=lambda sweeps, value, bound: bounds.append(bound))
    assert np.isclose(passed.bound, optimum(tree), rtol=1e-9, atol=1e-9)
    assert all(b >= a - 1e-9 for a, b in pairwise(bounds))
    assert len(bounds) <= 2


@given(cost_graphs(variables=7))
@settings(max_examples=60, deadline=None)
def test_options_are_dropped_only_where_no_better_plan_has_them(graph: CostGraph) -> None:
    ready = reduced(graph, eliminate=False)
    if ready.constant == inf or not ready.graph.unary:
        return
    left = ready.graph
    passed = pass_messages(left, sweeps=3)
    least = [np.full(len(prices), inf) for prices in left.unary]
    for choice in product(*(range(len(u)) for u in left.unary)):
        price = left.cost(choice)
        for v, c in enumerate(choice):
            least[v][c] = min(least[v][c], price)
    for above, truth in zip(passed.above, least, strict=True):
        assert (passed.before + above <= truth + 1e-6).all()


@given(cost_graphs(variables=5, options=3))
@settings(max_examples=40, deadline=None)
def test_the_integer_programme_is_exact(graph: CostGraph) -> None:
    best = optimum(graph)
    found = choose(graph)
    assert np.isclose(found.value, best, rtol=1e-9, atol=1e-9)
    assert np.isclose(found.bound, best, rtol=1e-7, atol=1e-5)


@given(cost_graphs(variables=7))
@settings(max_examples=80, deadline=None)
def test_what_is_certified_is_the_optimum(graph: CostGraph) -> None:
    best = optimum(graph)
    told: list[float] = []
    offered: list[tuple[int, ...]] = []
    found = certified(graph, progress=lambda phase, steps, value, bound: told.append(bound), better=offered.append)
    assert np.isclose(found.value, best, rtol=1e-9, atol=1e-9)
    assert found.gap <= 1e-7
    assert all(bound <= best + 1e-9 * max(1.0, abs(best)) for bound in told if bound < inf)
    assert all(graph.cost(choice) >= best for choice in offered)


@given(cost_graphs(variables=5, options=3), st.data())
@settings(max_examples=40, deadline=None)
def test_limits_of_bytes_are_kept_and_the_rest_is_exact(graph: CostGraph, data: st.DataObject) -> None:
    held = [
        np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(u), max_size=len(u))), float) for u in graph.unary
    ]
    n = len(held)
    some = data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1))
    rooms = (
        Room(tuple(range(n)), tuple(held), data.draw(st.integers(1, 9 * n))),
        Room(tuple(some), tuple(held[v] for v in some), data.draw(st.integers(1, 9))),
    )
    fits = [
        graph.cost(c)
        for c in product(*(range(len(u)) for u in graph.unary))
        if all(sum(b[c[v]] for v, b in zip(r.variables, r.bytes, strict=True)) <= r.most for r in rooms)
    ]
    found = certified(graph, rooms)
    assert np.isclose(found.value, min(fits, default=inf), rtol=1e-9, atol=1e-9)
    assert found.value == inf or all(room.over(found.choice) == 0 for room in rooms)


def test_a_frustrated_graph_is_left_to_elimination_or_the_integer_programme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd cycles of variables that want to differ: the relaxation is loose, and no degree is below 3."""
    n = 7
    differ = np.array([[1.0, 0.0], [0.0, 1.0]])
    edges = tuple((i, j) for j in range(n) for i in range(j))
    graph = CostGraph(tuple(np.zeros(2) for _ in range(n)), edges, (differ,) * len(edges))
    assert message_passing(graph).bound == 0.0
    phases: set[str] = set()
    assert certified(graph, progress=lambda phase, *rest: phases.add(phase)).bound == 9.0
    assert "elimination" in phases
    monkeypatch.setattr(module, "ENTRIES", 0)
    found = certified(graph, progress=lambda phase, steps, value, bound: phases.add(phase))
    assert "integer programme" in phases
    assert found.value == found.bound == optimum(graph) == 9.0
    monkeypatch.setattr(module, "choose", lambda *args, **given: module.Found((), inf, 0.0))
    assert certified(graph).bound == 0.0
