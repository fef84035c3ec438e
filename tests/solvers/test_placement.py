"""Splits against the hand cases of the method, and against enumeration on random graphs."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.solvers.downsets import lattice_of
from meshwright.solvers.graph_partition import balanced_parts
from meshwright.solvers.latency import critical_path, greedy, latency_programme, makespan, pieces, split_latency
from meshwright.solvers.max_load import biconnected, chain_optimum, linear_optimum, local_search, lower_bound
from meshwright.solvers.placement import Placement, items_of, strong_components
from meshwright.solvers.placement_ip import chain_programme, split_programme


def graph(edges, p, q, c, k, l, memory, size=None, color=None, backward=None) -> Placement:  # type: ignore[no-untyped-def]  # noqa: E741
    n = len(p)
    return Placement(
        np.array(p, float), np.array(q, float), np.array(size or [1] * n, float), np.array(c, float),
        tuple(color or range(n)), tuple(backward or [False] * n), tuple(edges), k, l, memory,
    )  # fmt: skip


DIAMOND = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]
P, C = (2, 3, 4, 3, 2), (1, 0.5, 2, 0.25, 0)
Q_LATENCY = (4, 6, 8, 6, 4)


def diamond(k: int, l: int, memory: float, q: tuple[float, ...] = tuple(10.0 * p for p in P)) -> Placement:  # noqa: E741
    return graph(DIAMOND, P, q, C, k, l, memory)


@pytest.mark.parametrize(
    ("k", "l", "memory", "chain", "any_split"),
    [(2, 0, 100, 10.5, 8.75), (2, 1, 100, 10.5, 8.75), (3, 0, 100, 7.5, 7.5), (2, 1, 2, 20, 20)],
)
def test_the_published_diamond(k: int, l: int, memory: float, chain: float, any_split: float) -> None:  # noqa: E741
    given_graph = diamond(k, l, memory)
    assert chain_optimum(given_graph).value == pytest.approx(chain)  # type: ignore[union-attr]
    assert chain_programme(given_graph)[0].value == pytest.approx(chain)  # type: ignore[union-attr]
    assert split_programme(given_graph, "noncontiguous", gap=1e-9)[0].value == pytest.approx(any_split)  # type: ignore[union-attr]


def test_the_published_case_where_contiguous_is_less_than_a_chain() -> None:
    given_graph = graph([(0, 1), (0, 2), (2, 4), (3, 4)], (2, 6, 6, 4, 2), [0] * 5, (1, 2, 0, 0, 1), 2, 0, 100)
    assert chain_optimum(given_graph).value == 13  # type: ignore[union-attr]
    found, end = split_programme(given_graph, "contiguous", gap=1e-9)
    assert found is not None
    assert end == "gap"
    assert found.value == pytest.approx(11)
    assert len({found.split[0], found.split[2], found.split[4]}) == 1
    assert makespan(given_graph, pieces(given_graph, found.split)) == inf


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e9])
def test_integer_programmes_know_no_unit_of_time(unit: float) -> None:
    # Costs of either end of what a file may hold, against the tolerances of the solver, which are absolute.
    p, c = [x * unit for x in (6.15, 1.08, 3.97, 2.07)], [x * unit for x in (5.53, 1.4, 2.095, 0)]
    placed = graph([(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)], p, [10 * x for x in p], c, 3, 0, 5, size=[0, 3, 0, 2])
    chain = chain_optimum(placed)
    assert chain is not None
    assert chain.value == pytest.approx(12.65 * unit)
    any_split, end = split_programme(placed, "noncontiguous", gap=0.0, start=chain)
    ordered, _ = chain_programme(placed, gap=0.0)
    assert any_split is not None
    assert ordered is not None
    assert end == "gap"
    assert any_split.value == pytest.approx(12.175 * unit)
    assert any_split.bound == pytest.approx(12.175 * unit)
    assert ordered.value == pytest.approx(12.65 * unit)


@pytest.mark.parametrize(
    ("k", "memory", "expected"), [(1, 5, 14), (1, 3, 19.25), (2, 3, 17), (2, 2, 18.5), (1, 2, 19.5)]
)
def test_the_published_latencies(k: int, memory: float, expected: float) -> None:
    given_graph = diamond(k, 1, memory, Q_LATENCY)
    found, end = latency_programme(given_graph, gap=1e-9)
    assert found is not None
    assert end == "gap"
    assert found.value == pytest.approx(expected)
    assert found.bound == pytest.approx(expected)
    assert critical_path(given_graph) <= expected
    assert greedy(given_graph).value >= expected * (1 - 1e-9)


def test_more_calls_an_accelerator_never_hurt() -> None:
    values = [latency_programme(diamond(1, 1, 3, Q_LATENCY), q, gap=1e-9)[0].value for q in (1, 2, 3)]  # type: ignore[union-attr]
    assert values == sorted(values, reverse=True)


def chains(g: Placement) -> float:
    """Least largest load over splits whose devices have an order in which values go forwards only."""
    best = inf
    groups = g.groups
    items = items_of(g)
    home = {v: x for x, own in enumerate(items.groups) for v in own}
    for choice in product(range(g.accelerators + g.cpus), repeat=len(groups)):
        split = [0] * len(g)
        for own, device in zip(groups, choice):
            for v in own:
                split[v] = device
        if g.overfull(split) > 0:
            continue
        place: dict[int, int] = {}
        if any(place.setdefault(home[v], split[v]) != split[v] for v in range(len(g))):
            continue
        flows = sorted({(place[a], place[b]) for a, b in items.edges if place[a] != place[b]})
        if len(strong_components(g.accelerators + g.cpus, flows)) == g.accelerators + g.cpus:
            best = min(best, g.max_load(split))
    return best


@st.composite
def small_graphs(draw: st.DrawFn) -> Placement:
    n = draw(st.integers(1, 6))
    half = draw(st.booleans()) and n >= 2
    number = st.integers(1, 8).map(float)
    forward = [True] * n if not half else [v < (n + 1) // 2 for v in range(n)]
    edges = [(a, b) for b in range(n) for a in range(b) if draw(st.booleans())]
    color = list(range(n))
    if half:
        for v in range(n):
            if not forward[v] and draw(st.booleans()):
                color[v] = n - 1 - v
    p = [draw(number) for _ in range(n)]
    cpus = draw(st.integers(0, 1))
    return graph(
        edges, p, [2 * x for x in p], [draw(st.integers(0, 3)) for _ in range(n)], draw(st.integers(1, 3)), cpus,
        draw(st.sampled_from([2.0, 4.0, 100.0])), color=color, backward=[not f for f in forward],
    )  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(small_graphs())
def test_the_chain_optimum_is_that_of_all_chains(g: Placement) -> None:
    found = chain_optimum(g)
    assert (found.value if found else inf) == pytest.approx(chains(g))
    if found is not None:
        assert g.max_load(found.split) == pytest.approx(found.value)
        assert g.overfull(found.split) == 0
        assert lower_bound(g) <= found.value * (1 + 1e-9)
        linear = linear_optimum(g)
        assert linear is None or linear.value >= found.value * (1 - 1e-9)


@settings(max_examples=15, deadline=None)
@given(small_graphs())
def test_any_split_is_at_most_the_contiguous_is_at_most_the_chain(g: Placement) -> None:
    chain = chain_optimum(g)
    any_split, end = split_programme(g, "noncontiguous", gap=1e-9)
    best = min(
        (g.max_load(s) for s in product(range(g.accelerators + g.cpus), repeat=len(g)) if _legal(g, s)), default=inf
    )
    assert end == "gap"
    assert (any_split.value if any_split else inf) == pytest.approx(best)
    if chain is not None:
        contiguous, _ = split_programme(g, "contiguous", gap=1e-9, start=chain)
        assert contiguous is not None
        assert best * (1 - 1e-9) <= contiguous.value <= chain.value * (1 + 1e-9)
        form, _ = chain_programme(g)
        assert form is not None
        assert form.value == pytest.approx(chain.value)


def _legal(g: Placement, split: tuple[int, ...]) -> bool:
    return g.overfull(split) <= 0 and all(len({split[v] for v in own}) == 1 for own in g.groups)


@settings(max_examples=30, deadline=None)
@given(small_graphs())
def test_local_search_ends_where_no_move_of_a_colour_gains(g: Placement) -> None:
    found = local_search(g, np.random.default_rng(1))
    assert g.max_load(found.split) == pytest.approx(found.value)
    for own, device in product(g.groups, range(g.accelerators)):
        moved = list(found.split)
        for v in own:
            moved[v] = device
        assert g.max_load(moved) >= found.value - 1e-4


def test_the_partition_is_balanced_and_cuts_a_chain_of_clusters_between_them() -> None:
    edges = [(a, b) for block in range(4) for a in range(5 * block, 5 * block + 5) for b in range(a + 1, 5 * block + 5)]
    edges += [(5 * block + 4, 5 * block + 5) for block in range(3)]
    g = graph(edges, [1] * 20, [10] * 20, [1] * 20, 4, 0, 100)
    split = balanced_parts(g, np.random.default_rng(0))
    assert sorted(split.count(d) for d in range(4)) == [5] * 4
    assert all(len(set(split[5 * b : 5 * b + 5])) == 1 for b in range(4))


def test_biconnected_components_of_two_triangles_at_a_bridge() -> None:
    edges = [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (4, 5), (3, 5)]
    assert sorted(biconnected(6, edges)) == [[0, 1, 2], [3], [4, 5, 6]]


def test_a_path_has_as_many_downsets_as_prefixes_and_free_items_all_subsets() -> None:
    assert len(lattice_of(70, [(i, i + 1) for i in range(69)])) == 71  # type: ignore[arg-type]
    free = lattice_of(10, [])
    assert free is not None
    assert len(free) == 1024
    assert free.pairs() == 3**10 - 2**10
    assert lattice_of(20, [], limit=1000) is None


def test_a_lattice_too_large_to_hold_still_gives_a_chain_with_a_bound() -> None:
    n = 12
    g = graph([], [1.0] * n, [10.0] * n, [0.0] * n, 4, 0, 100)
    found = chain_optimum(g, limit=100)
    assert found is not None
    assert found.value == 3
    assert found.bound == pytest.approx(3)


def test_a_set_that_a_path_leaves_runs_as_two_calls() -> None:
    g = graph([(0, 1), (1, 2)], (1, 1, 1), (5, 5, 5), (1, 1, 0), 1, 1, 100)
    found = split_latency(g, (0, 1, 0))
    assert found.blocks == (((0,), (2,)),)
    assert found.value == (1 + 1) + 5 + (1 + 1)


def test_the_lower_bound_counts_groups_that_must_share_an_accelerator() -> None:
    line = [(v, v + 1) for v in range(6)]
    # Seven equal nodes on three accelerators: one has three of them, whatever they average.
    assert lower_bound(graph(line, [5.0] * 7, [0.0] * 7, [0.0] * 7, 3, 0, 100)) == pytest.approx(15.0)
    # A CPU that needs 8 for one takes one within 10, so that two each are left.
    assert lower_bound(graph(line, [5.0] * 7, [8.0] * 7, [0.0] * 7, 3, 1, 100)) == pytest.approx(10.0)
    # Where it needs 12 for one, taking any costs more than leaving three together would, but less than four.
    assert lower_bound(graph(line, [5.0] * 7, [12.0] * 7, [0.0] * 7, 3, 1, 100)) == pytest.approx(12.0)
