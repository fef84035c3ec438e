"""TensorOpt on captured models: the frontier of several meshes is that of all choices on each, and its ends are proved."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cost.analytic import Analytic
from meshwright.graph.ir import Graph
from meshwright.plan.model import Plan
from meshwright.plan.problem import Limits, Problem, Recipe
from meshwright.planners._captured import CapturedOptions, meshes_of
from meshwright.planners.pase import PaSE
from meshwright.planners.tensoropt import TensorOpt
from meshwright.planners.types import Result
from meshwright.simulate import simulate
from meshwright.solvers import narrowing
from meshwright.solvers.certified import certified
from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.domination import thinned
from meshwright.solvers.gaps import unbeaten
from meshwright.solvers.narrowing import line_order
from meshwright.solvers.pareto import LIMIT
from meshwright.solvers.tracking import tracked
from meshwright.testing.tiny import chain, problem_of


@lru_cache(maxsize=2)
def small(model: str = "gpt2") -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    shrink = Shrink(blocks=2, width=256, heads=8, ffn=1024, vocab=1024, seq=128, dropout=0.0)
    return resolve(model).graph(batch=2, seq=128, dtype="bfloat16", shrink=shrink, cache=False)


def points(result: Result) -> list[tuple[float, float]]:
    return [(c.memory, c.objective) for c in result.frontier]


def every_choice(graph: CostGraph) -> list[tuple[float, float]]:
    """The front of all choices, each looked at."""
    sizes = [len(u) for u in graph.unary]
    memory, price = np.zeros(sizes), np.zeros(sizes)

    def along(array: Any, *variables: int) -> Any:
        shape = [1] * len(sizes)
        for v in variables:
            shape[v] = sizes[v]
        return (array if list(variables) == sorted(variables) else array.T).reshape(shape)

    for v, (own, held) in enumerate(zip(graph.unary, graph.memory)):
        price += along(own, v)
        memory += along(held, v)
    for (u, v), table in zip(graph.edges, graph.tables):
        price += along(np.diagonal(table), u) if u == v else along(table, u, v)
    legal = price.ravel() < np.inf
    memories, prices = memory.ravel()[legal], price.ravel()[legal]
    best = unbeaten(memories, prices)
    return list(zip(memories[best].tolist(), prices[best].tolist()))


@pytest.mark.parametrize("layers", [1, 2])
def test_two_axes_at_once_are_all_choices(layers: int) -> None:
    problem = problem_of(chain([1e9] * layers, width=64), "a100x4")
    fronts = []
    for mesh in meshes_of(problem, 4):
        graph = CapturedOptions(problem, mesh).graph
        found = tracked(graph)
        fronts += every_choice(graph)
        ours = list(zip(found.memory.tolist(), found.price.tolist()))
        assert ours == [pytest.approx(p, rel=1e-9) for p in every_choice(graph)]
        assert [(graph.bytes(c), graph.cost(c)) for c in found.choices.tolist()] == [pytest.approx(p) for p in ours]
    union = [fronts[k] for k in unbeaten(*(np.array([p[i] for p in fronts]) for i in range(2)))]
    result = TensorOpt().plan(problem)
    assert points(result) == [pytest.approx(p, rel=1e-9) for p in union]
    assert result.carry["exact"] and result.status == "optimal"  # type: ignore[call-overload,index]


@pytest.mark.parametrize(("cluster", "shapes"), [("h100x8", ["8", "2×4"]), ("h100x16", ["16", "2×8", "4×4", "8×2"])])
def test_meshes_are_the_logical_shapes_and_their_union_is_no_slower_than_any(cluster: str, shapes: list[str]) -> None:
    problem = Problem(small(), cluster_of(cluster), Analytic(), Recipe(16))
    result = TensorOpt().plan(problem)
    told: Any = result.carry
    assert [search["mesh"] for search in told["frontiers"][0]["searches"]] == shapes
    assert told["exact"] and told["epsilon"] == 0.0 and "notes" not in told
    assert sum(search["points"] for search in told["frontiers"][0]["searches"]) == len(result.frontier)
    assert result.status == "optimal"
    whole = points(result)
    assert whole == sorted(whole) and all(a[1] > b[1] for a, b in pairwise(whole))
    for mesh in meshes_of(problem, problem.cluster.count):
        axes = mesh.shape
        fastest = PaSE(axes=axes).plan(problem)
        assert whole[-1][1] <= fastest.objective * (1 + 1e-9)
        alone = points(TensorOpt(axes=axes).plan(problem))
        assert alone[-1][1] == pytest.approx(fastest.objective, rel=1e-9), "its fastest end is the optimum"
        for memory, time in alone:
            assert any(m <= memory * (1 + 1e-9) and t <= time * (1 + 1e-9) for m, t in whole)


def test_bounds_by_messages_lose_nothing_of_two_axes() -> None:
    problem = Problem(small(), cluster_of("h100x8"), Analytic(), Recipe(16))
    by_tables = TensorOpt(axes=(2, 4)).plan(problem)
    with patch.object(narrowing, "TABLE", 0):
        by_messages = TensorOpt(axes=(2, 4)).plan(problem)
    assert by_messages.status == "optimal" and len(by_tables.frontier) > 1
    assert points(by_messages) == [pytest.approx(p, rel=1e-9) for p in points(by_tables)]


@pytest.mark.slow
def test_two_axes_are_exact_where_the_tables_of_all_options_would_be_too_large() -> None:
    """Rotary positions and gated products: their ops have hundreds of options, and more neighbours than those of GPT-2."""
    problem = Problem(small("llama-3.1-8b"), cluster_of("h100x8"), Analytic(), Recipe(16))
    graph = thinned(CapturedOptions(problem, meshes_of(problem, 8, (2, 4))[0]).graph).graph
    limit = line_order(graph).largest // 2
    result = TensorOpt(axes=(2, 4), limit=limit).plan(problem)
    told: Any = result.carry
    assert told["exact"] and "off" not in told and result.status == "optimal"
    assert points(result)[-1][1] == pytest.approx(certified(graph).value, rel=1e-9)


def test_how_far_a_frontier_may_be_off_is_told_where_ops_were_fixed() -> None:
    problem = Problem(small(), cluster_of("h100x8"), Analytic(), Recipe(16))
    exact, rough = (TensorOpt(axes=(2, 4), limit=limit).plan(problem) for limit in (LIMIT, 12))
    told: Any = rough.carry
    assert not told["exact"] and "is not proved: no plan is more than" in told["notes"][-1]
    off = told["off"]
    for memory, time in points(exact):
        known = [t for m, t in points(rough) if m <= memory]
        assert not known or min(known) * (1 - off["faster"]) <= time * (1 + 1e-9)
    assert points(rough)[0][0] * (1 - off["smaller"]) <= points(exact)[0][0] * (1 + 1e-9)


def test_a_share_thins_the_frontier_of_two_axes_and_is_told() -> None:
    problem = Problem(small(), cluster_of("h100x8"), Analytic(), Recipe(16))
    rough, exact = (TensorOpt(axes=(2, 4), epsilon=e).plan(problem) for e in (0.02, 0.0))
    told: Any = rough.carry
    assert not told["exact"] and told["epsilon"] == 0.02 and "within 2.0 %" in told["notes"][0]
    assert len(rough.frontier) < len(exact.frontier)
    for memory, time in points(exact):
        assert any(m <= 1.02 * memory and t <= 1.02 * time for m, t in points(rough))
    for end in (0, -1):
        assert points(rough)[end] == pytest.approx(points(exact)[end])


@pytest.mark.parametrize("planner", (TensorOpt, PaSE))
def test_a_batch_that_fits_at_no_cut_is_taken_in_micro_batches_one_after_the_other(
    planner: type[TensorOpt] | type[PaSE],
) -> None:
    def within(memory: float, micro_batches: int | None) -> Plan | None:
        limits = Limits(memory=memory, keep_free=0.0)
        problem = Problem(small(), cluster_of("h100x4"), Analytic(), Recipe(64), limits=limits)
        return planner(micro_batches=micro_batches, axes=(4,)).plan(problem).plan

    memory, plan = 1e15, within(1e15, 1)
    while plan is not None:
        problem = Problem(small(), cluster_of("h100x4"), Analytic(), Recipe(64))
        memory = 0.99 * float(simulate(problem, plan, detail=False).peak.max())
        plan = within(memory, 1)
    found = within(memory, None)
    assert found is not None
    assert found.schedule.micro_batches > 1
