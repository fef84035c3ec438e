"""Elimination = brute force on small graphs, whatever the order; ties, forbidden choices, hubs and limits."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError, Unsupported
from meshwright.solvers import elimination
from meshwright.solvers._cost_kernels import min_plus
from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.elimination import brute_force, eliminate
from meshwright.solvers.elimination_order import ORDERS, OrderName, order_of

from .small_graphs import cost_graphs


@settings(max_examples=100, deadline=None)
@given(cost_graphs(), st.sampled_from(ORDERS))
def test_it_finds_what_brute_force_finds(graph: CostGraph, order: OrderName) -> None:
    found, truth = eliminate(graph, order), brute_force(graph)
    assert (found.value, found.bound) == (truth.value, truth.value)
    if found.value < inf:
        assert graph.cost(found.choice) == found.value
    else:
        assert found.choice == ()


@settings(max_examples=60, deadline=None)
@given(cost_graphs(), st.integers(1, 300))
def test_hubs_that_are_conditioned_on_change_nothing_and_keep_tables_small(graph: CostGraph, limit: int) -> None:
    found = eliminate(graph, limit=limit)
    assert found.value == brute_force(graph).value
    assert found.largest <= limit


@settings(max_examples=40, deadline=None)
@given(cost_graphs(), st.randoms(use_true_random=False))
def test_names_of_variables_and_order_of_options_do_not_matter(graph: CostGraph, random: Callable[..., float]) -> None:
    n = len(graph.unary)
    names = list(range(n))
    random.shuffle(names)  # type: ignore[attr-defined]
    places = [list(range(len(u))) for u in graph.unary]
    for own in places:
        random.shuffle(own)  # type: ignore[attr-defined]
    back = {v: i for i, v in enumerate(names)}
    other = CostGraph(
        tuple(graph.unary[v][places[v]] for v in names),
        tuple((back[u], back[v]) for u, v in graph.edges),
        tuple(t[np.ix_(places[u], places[v])] for (u, v), t in zip(graph.edges, graph.tables, strict=True)),
    )
    assert eliminate(other).value == eliminate(graph).value


@settings(max_examples=40, deadline=None)
@given(cost_graphs(), st.integers(-100, 100), st.integers(-5, 20))
def test_a_constant_is_added_to_the_optimum_and_one_more_option_never_raises_it(
    graph: CostGraph, constant: int, price: int
) -> None:
    before = eliminate(graph).value
    raised = CostGraph((graph.unary[0] + constant, *graph.unary[1:]), graph.edges, graph.tables)
    assert eliminate(raised).value == before + constant
    rng = np.random.default_rng(0)

    def grown(table: np.ndarray, axis: int) -> np.ndarray:
        more = rng.integers(-5, 20, [1 if a == axis else n for a, n in enumerate(table.shape)])
        return np.concatenate([table, more], axis)

    tables = []
    for (u, v), table in zip(graph.edges, graph.tables, strict=True):
        table = grown(table, 0) if u == 0 else table
        tables.append(grown(table, 1) if v == 0 else table)
    more = CostGraph((np.append(graph.unary[0], price), *graph.unary[1:]), graph.edges, tuple(tables))
    assert eliminate(more).value <= before


def test_equals_take_the_lowest_option() -> None:
    flat = CostGraph((np.zeros(3), np.zeros(4), np.zeros(2)), ((0, 1), (1, 2)), (np.zeros((3, 4)), np.zeros((4, 2))))
    assert eliminate(flat).choice == (0, 0, 0) == brute_force(flat).choice


def test_equal_blocks_that_share_tables_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    own, table = rng.random(6), rng.random((6, 6))
    n = 400
    chain = CostGraph((own,) * n, tuple((v, v + 1) for v in range(n - 1)), (table,) * (n - 1))
    calls: list[int] = []
    summed = elimination._summed
    monkeypatch.setattr(elimination, "_summed", lambda *a: calls.append(1) or summed(*a))
    found = eliminate(chain, "min_degree")
    separate = CostGraph(tuple(own.copy() for _ in range(n)), chain.edges, tuple(table.copy() for _ in range(n - 1)))
    assert found.value == pytest.approx(eliminate(separate, "breadth_first").value, rel=1e-12)
    # Along a chain each table differs from the one before; where the middle leaves first, halves are alike.
    halves = CostGraph((own,) * n, tuple((v, v + 1) for v in range(0, n - 1, 2)), (table,) * (n // 2))
    calls.clear()
    assert eliminate(halves).value == pytest.approx(n / 2 * eliminate(CostGraph((own, own), ((0, 1),), (table,))).value)
    assert len(calls) < 10


def test_a_table_above_the_limit_is_refused_with_its_size() -> None:
    rng = np.random.default_rng(2)
    n, k = 8, 30
    edges = tuple((u, v) for u in range(n) for v in range(u))
    dense = CostGraph(tuple(rng.random(k) for _ in range(n)), edges, tuple(rng.random((k, k)) for _ in edges))
    with pytest.raises(Unsupported, match=r"needs a table of 6.56e\+11 entries, more than the limit of 1e\+04"):
        eliminate(dense, limit=10_000)
    with pytest.raises(InputError, match='no elimination order "random": there are min_weight, min_degree'):
        eliminate(dense, "random")  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="too many to look at"):
        brute_force(dense)


def test_width_and_largest_table_are_those_of_the_order() -> None:
    # A cycle of four: two neighbours when the first leaves, none more than two later.
    ring = CostGraph(
        tuple(np.zeros(k) for k in (2, 3, 4, 5)), ((0, 1), (1, 2), (2, 3), (3, 0)),
        (np.zeros((2, 3)), np.zeros((3, 4)), np.zeros((4, 5)), np.zeros((5, 2))),
    )  # fmt: skip
    found = eliminate(ring)
    order = order_of([2, 3, 4, 5], ring.edges)
    assert (found.width, found.largest) == (order.width, order.largest) == (2, 40)
    assert order.sequence[:2] == (1, 3) and order.scopes[:2] == ((0, 2), (0, 2))


def test_what_the_progress_raises_ends_the_search_and_it_counts_every_variable() -> None:
    rng = np.random.default_rng(4)
    chain = CostGraph(
        tuple(rng.random(2) for _ in range(9)), tuple((v, v + 1) for v in range(8)), (rng.random((2, 2)),) * 8
    )
    seen: list[tuple[int, int]] = []
    eliminate(chain, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(1, 10)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eliminate(chain, progress=stop)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 130), st.integers(0, 10**6))
def test_the_compiled_product_is_the_plain_one(rows: int, options: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.random((3, options)), rng.random((2, options, columns))
    left[rng.random(left.shape) < 0.2] = inf
    a, b = rng.integers(0, 3, rows).astype(np.uint64), rng.integers(0, 2, rows).astype(np.uint64)
    plain = (left[a][:, :, None] + right[b]).min(axis=1)
    assert np.array_equal(min_plus(left, right, a, b), plain)


def test_large_tables_go_through_the_kernel_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    sizes = (40, 41, 42, 43)
    edges = tuple((u, v) for u in range(4) for v in range(u))
    graph = CostGraph(
        tuple(rng.integers(0, 99, k).astype(float) for k in sizes), edges,
        tuple(rng.integers(0, 99, (sizes[u], sizes[v])).astype(float) for u, v in edges),
    )  # fmt: skip
    assert prod(sizes) < elimination.ALL
    truth = brute_force(graph)
    assert eliminate(graph).value == truth.value
    monkeypatch.setattr(elimination, "CHUNK", 10_000)
    assert eliminate(graph).value == truth.value
