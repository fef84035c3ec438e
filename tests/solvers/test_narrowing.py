"""Nothing of a frontier is lost: its hull is found, what is in a gap keeps its options, and a share thins it with a guarantee."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.gaps import Weight, gaps_of, unbeaten
from meshwright.solvers.narrowing import narrowed
from meshwright.solvers.tracking import tracked

from .small_graphs import cost_graphs
from .test_pareto import Points, brute


def hull(points: Points) -> Points:
    """Corners of the lower left hull of a front."""
    found: Points = []
    for m, p in points:
        while len(found) > 1 and (found[-1][1] - found[-2][1]) * (m - found[-2][0]) >= (p - found[-2][1]) * (
            found[-1][0] - found[-2][0]
        ):
            found.pop()
        found.append((m, p))
    return found


@settings(max_examples=80, deadline=None)
@given(cost_graphs())
def test_the_hull_is_that_of_all_choices(graph: CostGraph) -> None:
    front = brute(graph)
    known = narrowed(graph).known
    points = list(zip(known.memory.tolist(), known.price.tolist()))
    assert set(hull(front)) <= set(points) <= set(front)
    assert [(graph.bytes(c), graph.cost(c)) for c in known.choices.tolist()] == points


@settings(max_examples=80, deadline=None)
@given(cost_graphs(), st.sampled_from([inf, 10.0, 30.0, 60.0]))
def test_with_and_without_a_limit_it_is_brute_force(graph: CostGraph, cap: float) -> None:
    found = tracked(graph, cap=cap)
    points = list(zip(found.memory.tolist(), found.price.tolist()))
    assert points == brute(graph, cap)
    assert [(graph.bytes(c), graph.cost(c)) for c in found.choices.tolist()] == points


NEGATIVE = CostGraph(
    unary=tuple(map(np.array, ([200.0, -123.0], [276.0, 506.0, 889.0, -838.0], [-915.0], [287.0, 176.0, 1.0, 41.0]))),
    edges=((1, 1), (0, 0), (0, 1)),
    tables=(
        np.array([[-194.0, 606, 201, 300], [-222, -153, 627, -949], [-638, -480, -221, 79], [326, 659, 460, 95]]),
        np.array([[306.0, -370], [164, -392]]),
        np.array([[-425.0, 614, -306, 792], [921, 927, -261, -248]]),
    ),
    memory=tuple(map(np.array, ([0.0, 10.0], [9.0, 6.0, 17.0, 14.0], [7.0], [0.0, 18.0, 2.0, 13.0]))),
)
"""Of prices below 0 the share is that of the point of the frontier, not of the one that is kept."""


@settings(max_examples=80, deadline=None)
@given(cost_graphs(), st.sampled_from([0.02, 0.1, 0.4]), st.sampled_from([inf, 40.0]))
@example(NEGATIVE, 0.4, inf)
def test_every_point_is_within_the_share_of_one_that_is_kept(graph: CostGraph, epsilon: float, cap: float) -> None:
    exact = brute(graph, cap)
    found = tracked(graph, cap=cap, epsilon=epsilon)
    points = list(zip(found.memory.tolist(), found.price.tolist()))
    for choice, (memory, price) in zip(found.choices.tolist(), points, strict=True):
        assert (graph.bytes(choice), graph.cost(choice)) == (memory, price) and memory <= cap
    for memory, price in exact:
        assert any(m <= memory + epsilon * abs(memory) and p <= price + epsilon * abs(price) for m, p in points)
    if exact:
        assert points[0][0] == exact[0][0], "least memory is exact"
        free = brute(graph)
        if free[-1][0] <= cap:
            assert points[-1][1] == exact[-1][1] == found.fastest, "least price is exact"
        assert found.fastest == free[-1][1]


@settings(max_examples=60, deadline=None)
@given(cost_graphs(4, 3), cost_graphs(4, 3), st.sampled_from([0.0, 0.1]))
def test_what_another_graph_beats_is_left_out_and_nothing_else(one: CostGraph, two: CostGraph, epsilon: float) -> None:
    first = tracked(one, epsilon=epsilon)
    second = tracked(two, epsilon=epsilon, elsewhere=(first.memory, first.price) if len(first.memory) else None)
    every = sorted({*brute(one), *brute(two)})
    exact = [every[k] for k in unbeaten(np.array([m for m, _ in every]), np.array([p for _, p in every]))]
    both = [*zip(first.memory.tolist(), first.price.tolist()), *zip(second.memory.tolist(), second.price.tolist())]
    for memory, price in exact:
        assert any(m <= memory + epsilon * abs(memory) and p <= price + epsilon * abs(price) for m, p in both)
    if epsilon == 0.0:
        assert {p for p in both if p in exact} == set(exact)
        assert set(zip(second.memory.tolist(), second.price.tolist())) <= set(exact)


def test_tables_above_the_limit_are_made_smaller_and_that_is_told() -> None:
    rng = np.random.default_rng(5)
    edges = tuple((u, v) for u in range(5) for v in range(u))
    graph = CostGraph(
        tuple(rng.integers(0, 99, 4).astype(float) for _ in range(5)), edges,
        tuple(rng.integers(0, 99, (4, 4)).astype(float) for _ in edges), tuple(rng.integers(0, 99, 4).astype(float) for _ in range(5)),
    )  # fmt: skip
    exact, rough = tracked(graph), tracked(graph, limit=20)
    assert not exact.how.fixed and rough.how.fixed
    for c, m, p in zip(rough.choices.tolist(), rough.memory, rough.price):
        assert (graph.bytes(c), graph.cost(c)) == (m, p)
        assert any(a <= m and b <= p for a, b in zip(exact.memory, exact.price))


def test_gaps_lie_between_neighbours_and_end_at_the_limit() -> None:
    memory, price = np.array([1.0, 4.0, 9.0]), np.array([9.0, 3.0, 1.0])
    open_ended = gaps_of(memory, price, 20.0, 0.0, False)
    assert (open_ended.memory.tolist(), open_ended.price.tolist()) == ([4.0, 9.0, 20.0], [9.0, 3.0, 1.0])
    closed = gaps_of(memory, price, inf, 0.5, True)
    assert (closed.memory.tolist(), closed.price.tolist()) == ([4.0 / 1.5, 6.0], [6.0, 2.0])
    weights = [Weight(1.0, 0.0, 1.0), Weight(1.0, 1.0, 7.0)]
    assert closed.most(weights) == pytest.approx(np.array([[6.0, 6.0 + 4.0 / 1.5], [2.0, 8.0]]))
    assert closed.strictest(weights).tolist() == [1, 1]


def test_points_that_differ_by_the_order_of_a_sum_are_one() -> None:
    memory, price = np.array([3.0, 1.0, 1.0 + 1e-15, 2.0]), np.array([1.0, 5.0, 5.0 - 1e-15, 6.0])
    assert unbeaten(memory, price).tolist() == [2, 0]
