"""OptCNN's eliminations: the worked example step by step, small graphs against brute force, graphs that reduce fully."""

from __future__ import annotations

import json
from itertools import product
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.node_edge import enumerate_rest, min_plus, node_edge, reduce


def tables(*rows: list[list[float]]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(table, float) for table in rows)


DIAMOND = CostGraph(
    tuple(np.array(u, float) for u in ([7, 1], [5, 4], [5, 9], [9, 7], [1, 8])),
    ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4)),
    tables([[0, 3], [7, 0]], [[0, 7], [1, 0]], [[0, 7], [1, 0]], [[0, 7], [2, 0]], [[0, 1], [1, 0]]),
)
"""Layers 1 to 5 of the worked example are variables 0 to 4."""


def test_the_worked_diamond_step_by_step() -> None:
    reduced = reduce(DIAMOND, leaves=False)
    assert [step.kind for step in reduced.steps] == ["node", "node", "edge", "node"]
    two, three, merged, four = reduced.steps
    assert (two.removed, two.ends) == (1, (0, 3)) and two.table.tolist() == [[5, 7], [5, 4]]
    assert (three.removed, three.ends) == (2, (0, 3)) and three.table.tolist() == [[5, 12], [6, 9]]
    assert merged.table.tolist() == [[10, 19], [11, 13]]
    assert (four.removed, four.ends) == (3, (0, 4)) and four.table.tolist() == [[19, 20], [20, 20]]
    assert reduced.left == (0, 4) and reduced.kernel == 2
    sums = reduced.unary[0][:, None] + reduced.edges[0, 4] + reduced.unary[4]
    assert sums.tolist() == [[27, 35], [22, 29]]
    assert reduced.undo({0: 1, 4: 0}) == (1, 1, 0, 0, 0)


def test_the_worked_diamond_has_optimum_22() -> None:
    found, reduced = node_edge(DIAMOND)
    assert (found.value, found.bound, found.choice) == (22, 22, (1, 1, 0, 0, 0))
    assert reduced.kernel == 2
    every = sorted((DIAMOND.cost(c), c) for c in product((0, 1), repeat=5))
    assert every[0] == (22, (1, 1, 0, 0, 0)) and every[1] == (23, (1, 1, 1, 1, 0))
    assert DIAMOND.cost((0,) * 5) == 27 and DIAMOND.cost((1,) * 5) == 29 and DIAMOND.cost((1, 1, 0, 1, 0)) == 27


def test_layers_without_transfers_each_choose_their_own_best() -> None:
    zero = np.zeros((3, 3))
    chain = CostGraph((np.array([4.0, 1.0, 2.0]),) * 6, tuple((i, i + 1) for i in range(5)), (zero,) * 5)
    found, _ = node_edge(chain)
    assert found.choice == (1,) * 6 and found.value == 6


def test_one_configuration_each_is_no_choice() -> None:
    one = CostGraph((np.array([3.0]),) * 4, ((0, 1), (1, 2), (2, 3)), (np.array([[2.0]]),) * 3)
    assert node_edge(one)[0].value == 18


@st.composite
def graphs(draw: st.DrawFn) -> CostGraph:
    n = draw(st.integers(1, 6))
    sizes = [draw(st.integers(1, 3)) for _ in range(n)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pairs = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=9))

    def prices(*shape: int) -> np.ndarray:
        table = rng.integers(0, 9, shape).astype(float)
        table[rng.random(shape) < 0.1] = inf
        return table

    return CostGraph(tuple(prices(k) for k in sizes), tuple(pairs), tuple(prices(sizes[u], sizes[v]) for u, v in pairs))


@settings(deadline=None, max_examples=150)
@given(graphs())
def test_it_finds_what_brute_force_finds(graph: CostGraph) -> None:
    """Parallel edges, edges to oneself, several components, forbidden options and pairs."""
    best = min(graph.cost(c) for c in product(*(range(len(u)) for u in graph.unary)))
    found, reduced = node_edge(graph)
    assert found.value == best
    assert (graph.cost(found.choice) if found.choice else inf) == best
    assert enumerate_rest(graph).value == best
    # Edges merged while the graph was read never were between two variables of a simple graph.
    assert sum(step.kind != "leaf" for step in reduced.steps) <= max(len(graph.edges), 1) * 2


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_two_variables_are_left_of_any_series_parallel_graph(seed: int, splits: int) -> None:
    """Made from one edge by cutting edges in two and doubling them."""
    rng = np.random.default_rng(seed)
    pairs, n = [(0, 1)], 2
    for _ in range(splits):
        k = int(rng.integers(len(pairs)))
        if rng.random() < 0.6:
            u, v = pairs.pop(k)
            pairs += [(u, n), (n, v)]
            n += 1
        else:
            pairs.append(pairs[k])
    graph = CostGraph(
        tuple(rng.integers(0, 9, 2).astype(float) for _ in range(n)),
        tuple(pairs),
        tuple(rng.integers(0, 9, (2, 2)).astype(float) for _ in pairs),
    )
    reduced = reduce(graph, leaves=False)
    assert reduced.kernel == 2 and reduced.left == (0, 1)
    assert len(reduced.steps) <= len(pairs)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_variables_does_not_change_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(5)
    at = np.argsort(order)
    shuffled = CostGraph(
        tuple(DIAMOND.unary[v] for v in order),
        tuple((int(at[u]), int(at[v])) for u, v in DIAMOND.edges),
        DIAMOND.tables,
    )
    assert node_edge(shuffled)[0].value == 22


def test_a_min_plus_product_in_pieces_is_that_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((40, 30)), rng.random((30, 20))
    whole = min_plus(a, b)
    monkeypatch.setattr("meshwright.solvers.node_edge.CHUNK", 1000)
    pieces = min_plus(a, b)
    assert (whole[0] == pieces[0]).all() and (whole[1] == pieces[1]).all()
    assert (whole[0] == (a[:, :, None] + b[None]).min(1)).all()


# Least price, and whether eliminations leave one variable a component.
SMALL = {
    "chain6": (120, True), "diamond": (116, True), "multi-edge": (56, True), "two-diamonds": (150, True),
    "residual-tower": (200, True), "star7": (113, True), "k4": (82, False), "grid3x3": (226, False),
}  # fmt: skip


@pytest.mark.parametrize("name", [*SMALL, "long-skip", "forest"])
def test_small_graphs(data_folder: Path, name: str) -> None:
    every = json.loads((data_folder / "intra-op-instances" / "small-factor-graphs.json").read_text())
    found = next(g for g in every if g["name"] == name)
    edges = found["edges"]
    graph = CostGraph(
        tuple(np.array(t, float) for t in found["node_time"]),
        tuple((e["src"], e["dst"]) for e in edges),
        tuple(np.array(e["time"], float) for e in edges),
    )
    least, fully = SMALL.get(name, (None, True))
    answer, reduced = node_edge(graph)
    assert answer.value == enumerate_rest(graph).value
    if least is not None:
        assert answer.value == least
    assert (not reduced.edges) == fully


@pytest.mark.parametrize(("file", "least"), [("alexnet_8", 97098296512.0), ("inception3_4", 986757044608.0)])
def test_the_tables_of_pase_reduce_fully(data_folder: Path, file: str, least: float) -> None:
    """AlexNet on 8 devices and Inception-v3 on 4."""
    data = np.load(data_folder / "pase" / f"{file}_costs.npz")
    pairs = [tuple(map(int, pair)) for pair in data["edges"]]
    count = sum(name.startswith("node_cost_") for name in data.files)
    graph = CostGraph(
        tuple(data[f"node_cost_{i}"] for i in range(count)),
        tuple(pairs),  # type: ignore[arg-type]
        tuple(data[f"edge_cost_{k}"] for k in range(len(pairs))),
    )
    found, reduced = node_edge(graph)
    assert found.value == least
    assert not reduced.edges and reduced.kernel == 2
