"""Plans without rows: ops anywhere, in any number of sets, on devices that hold several of them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execute.cells import FAMILIES
from execute.conftest import Pools, zoo_model
from execute.matrix import small
from execute.unequal import unequal_plan
from meshwright.cluster.model import Mesh
from meshwright.execute import why_not
from meshwright.graph.ir import Graph
from meshwright.plan.model import Plan, Schedule, Stage
from meshwright.planners.dnn_partitioning import DnnPartitioning
from meshwright.testing.tiny import problem_of


def placed(graph: Graph, devices: list[int], micro_batches: int) -> Plan:
    """One set of ops a device: op i on devices[i]."""
    stages = [
        Stage(tuple(op.name for op, d in zip(graph.ops, devices, strict=True) if d == k), Mesh((k,)))
        for k in sorted(set(devices))
    ]
    return Plan(graph.digest, graph.samples * micro_batches, tuple(stages), Schedule("dataflow", micro_batches))


def _right(plan: Plan, family: str, pools: Pools) -> None:
    made = small(family, 4, 2).model
    assert why_not(plan, made.graph) is None
    result = made.check(plan, pools(len({d for s in plan.stages for d in s.mesh.devices})))
    assert result.equal, (family, result.problems[:5])


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.integers(0, 10**6))
def test_single_ops_on_three_devices(pools: Pools, seed: int) -> None:
    """Sets that feed each other in both directions, tied embeddings among them."""
    graph = small("gpt2", 4, 2).model.graph
    rng = random.Random(seed)
    _right(placed(graph, [rng.randrange(3) for _ in graph.ops], 2), "gpt2", pools)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", [f.name for f in FAMILIES])
def test_single_ops_of_every_family(family: str, seed: int, pools: Pools) -> None:
    graph = small(family, 4, 2).model.graph
    rng = random.Random(seed)
    _right(placed(graph, [rng.randrange(3) for _ in graph.ops], 2), family, pools)


def test_a_device_is_left_and_entered_again(pools: Pools) -> None:
    """Not contiguous: thirds of the ops on devices 0, 1 and 0."""
    graph = small("gpt2", 4, 2).model.graph
    n = len(graph.ops)
    _right(placed(graph, [1 if n // 3 <= i < 2 * n // 3 else 0 for i in range(n)], 2), "gpt2", pools)


def test_stages_of_several_devices_without_rows(pools: Pools) -> None:
    """dp3, then one device, then dp2 on devices of which the first stage has one."""
    made = zoo_model("gpt2")
    shapes = ((("dp", 3), ("tp", 1)), (("dp", 1), ("tp", 1)), (("dp", 2), ("tp", 1)))
    plan = unequal_plan(made.graph, shapes, 2, "dataflow")
    last = plan.stages[2]
    moved = Stage(last.ops, Mesh((2, 3), ("dp", "tp"), (2, 1)), last.shardings, last.layouts, last.storage)
    plan = Plan(plan.graph, plan.samples, (*plan.stages[:2], moved), plan.schedule)
    assert why_not(plan, made.graph) is None
    result = made.check(plan, pools(4))
    assert result.equal, result.problems[:5]


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_plan_of_least_latency_of_a_captured_model(blocks: int, pools: Pools) -> None:
    """Placed by its forward pass: as the same graph without a backward is; it trains as one process does."""
    graph = small("gpt2", 4, 2).model.graph
    planner = DnnPartitioning(objective="latency", blocks=blocks, seconds=20)
    problem = problem_of(graph, "a100x4", samples=2 * graph.samples)
    found = planner.plan(problem)
    alone = planner.plan(replace(problem, graph=replace(graph, training="none")))
    assert found.plan is not None and alone.plan is not None
    assert found.objective == pytest.approx(alone.objective, rel=1e-3)
    plan = replace(found.plan, schedule=Schedule("dataflow", 2))
    _right(plan, "gpt2", pools)
