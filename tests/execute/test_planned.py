"""Plans of planners whose stages are unequal or have no rows, found on a captured model, run on ranks."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from execute.conftest import Pools
from execute.tiny import tiny_source
from meshwright.execute import verify
from meshwright.graph.ir import Graph
from meshwright.graph.source import ModelSource
from meshwright.plan.model import Plan
from meshwright.plan.problem import Problem
from meshwright.planners._piper_layers import machine, seen
from meshwright.planners.base import Planner
from meshwright.planners.dapple import Dapple
from meshwright.planners.dnn_partitioning import DnnPartitioning
from meshwright.planners.piper import Piper
from meshwright.simulate import simulate
from meshwright.solvers.staged_partition import Staged, evaluate
from meshwright.testing.tiny import problem_of

SEQ, SAMPLES = 32, 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return tiny_source(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def graph(source: ModelSource) -> Graph:
    return source.graph(SAMPLES, SEQ, "float32", cache=False)


def _right(plan: Plan, graph: Graph, source: ModelSource, pools: Pools, *, whole: bool) -> None:
    ranks = len({d for s in plan.stages for d in s.mesh.devices})
    result = verify(plan, graph, source, seq=SEQ, ranks=ranks, whole=whole, pool=pools(ranks) if whole else None)
    assert result.equal, result.problems[:5]
    assert result.gradients == len(list(graph.params()))


def _problem(graph: Graph, devices: int = 4) -> Problem:
    return problem_of(graph, f"a100x{devices}", samples=SAMPLES)


@pytest.mark.parametrize(
    "planner",
    [
        Dapple(micro_batch=2),
        Dapple(objective="paper", micro_batch=2),
        DnnPartitioning(),
        DnnPartitioning(method="contiguous", seconds=10),
        DnnPartitioning(method="noncontiguous", seconds=10),
        DnnPartitioning(method="local_search"),
        DnnPartitioning(method="one_device"),
        Piper(),
    ],
    ids=["dapple", "dapple paper", "chain", "contiguous", "noncontiguous", "local search", "one device", "piper"],
)
def test_what_a_planner_finds_trains_as_one_process_does(
    planner: Planner, graph: Graph, source: ModelSource, pools: Pools
) -> None:
    problem = _problem(graph)
    plan = planner.plan(problem).plan
    assert plan is not None
    assert simulate(problem, plan, detail=False).step_seconds > 0
    _right(plan, graph, source, pools, whole=True)


@pytest.mark.parametrize("replicas", [(2, 1), (1, 2)], ids=str)
def test_pipers_uneven_replicas(
    replicas: tuple[int, int], graph: Graph, source: ModelSource, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages of other numbers of replicas cut the same micro-batches; the plan is read back at its own price."""
    problem, planner = _problem(graph, 3), Piper(uneven=True)
    found = seen(problem, planner._batch(problem))
    half = len(found.ops) // 2
    parts = (tuple(range(half)), tuple(range(half, len(found.ops))))
    stages = tuple(Staged(p, d, 1, (0,) * len(p)) for p, d in zip(parts, replicas, strict=True))
    plan = planner._plan(problem, found, stages)
    assert [s.mesh.size("dp") for s in plan.stages] == list(replicas) and not any(s.deal for s in plan.stages)
    where = replace(machine(problem, planner._batch(problem)), memory=inf)
    assert planner.objective(problem, plan) == pytest.approx(evaluate(found.layers, where, stages))
    assert simulate(problem, plan, detail=False).step_seconds > 0
    _right(plan, graph, source, pools, whole=True)


def test_dapples_unequal_replicas(graph: Graph, source: ModelSource, pools: Pools) -> None:
    """Split over three devices, then one: a candidate of the search, whatever its latency."""
    from meshwright.planners._dapple_states import Candidate, sums_of

    problem = _problem(graph)
    planner, sums = Dapple(micro_batch=6), sums_of(problem)
    last = len(sums) - 1
    plan = planner._plan(problem, sums, Candidate((last // 2, last), ((0, 1, 2), (3,)), 1, twice=False))
    assert [len(s.mesh.devices) for s in plan.stages] == [3, 1]
    assert simulate(problem, plan).step_seconds > 0
    _right(plan, graph, source, pools, whole=True)


def test_unequal_replicas_are_verified_scaled_down(graph: Graph, source: ModelSource, pools: Pools) -> None:
    """Fifteen replicas and one stay unequal."""
    from meshwright.planners._dapple_states import Candidate, sums_of

    problem = _problem(graph, 16)
    planner, sums = Dapple(micro_batch=6), sums_of(problem)
    last = len(sums) - 1
    plan = planner._plan(problem, sums, Candidate((last // 2, last), (tuple(range(15)), (15,)), 1, twice=False))
    result = verify(plan, graph, source, seq=SEQ, ranks=4)
    assert result.equal, result.problems[:5]
    assert "dp15:1 to dp2:1" in result.scaled


def test_placements_are_verified_scaled_down(graph: Graph, source: ModelSource) -> None:
    """Every set of ops stays on its device."""
    plan = DnnPartitioning(method="local_search").plan(_problem(graph)).plan
    assert plan is not None and plan.schedule.name == "dataflow"
    result = verify(plan, graph, source, seq=SEQ, ranks=4)
    assert result.equal, result.problems[:5]
