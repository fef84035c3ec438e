"""Several pipes (Chimera, DualPipe) compute what one process computes: losses, every gradient, the weights after a step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from execute.chain import chain_model, pipes_plan
from execute.conftest import Pools, zoo_model
from execute.layouts import Layout, plan_of
from meshwright.cluster.model import Mesh
from meshwright.errors import Unsupported
from meshwright.execute.proof.refusal import why_not
from meshwright.lower import lower
from meshwright.plan.model import Plan, Schedule
from meshwright.plan.problem import Recipe

CASES = [
    # schedule, stages, micro-batches, width, f, form
    ("chimera", 2, 2, 1, 1, "direct"),
    ("chimera", 2, 4, 1, 1, "direct"),
    ("chimera", 2, 4, 1, 1, "doubling"),
    ("chimera", 2, 4, 1, 1, "halving"),
    ("chimera", 2, 2, 2, 1, "direct"),
    ("chimera", 4, 3, 1, 1, "direct"),
    ("chimera", 4, 4, 1, 2, "direct"),
    ("chimera", 4, 8, 1, 1, "doubling"),
    ("chimera", 4, 8, 1, 1, "halving"),
    ("dualpipe", 2, 4, 1, 1, ""),
    ("dualpipe", 4, 8, 1, 1, ""),
    ("dualpipe", 4, 10, 1, 1, ""),
]


@pytest.mark.parametrize(("schedule", "depth", "m", "width", "f", "form"), CASES)
def test_pipes_compute_what_one_process_computes(
    schedule: str, depth: int, m: int, width: int, f: int, form: str, pools: Pools
) -> None:
    model = chain_model(depth, m)
    plan = pipes_plan(model.graph, schedule, m, width, f, form)
    assert why_not(plan, model.graph) is None
    result = model.check(plan, pools(depth * width))
    assert result.problems == ()
    assert result.gradients == 2 * depth
    assert result.collectives["all_reduce"][0] > 0


@pytest.mark.parametrize("layout", [Layout(pp=2), Layout(pp=2, tp=2), Layout(pp=2, dp=2, zero=2)], ids=str)
def test_pipes_of_a_model_with_tied_embeddings(layout: Layout, pools: Pools) -> None:
    """Each rank holds the embedding twice, in two stages of different pipes."""
    model = zoo_model("gpt2")
    plan = mirrored(plan_of(model.graph, layout, 2))
    assert model.check(plan, pools(layout.ranks)).problems == ()


def mirrored(plan: Plan) -> Plan:
    """The same stages in two pipes, there and back, under chimera."""
    meshes = [s.mesh for s in plan.stages]
    up = tuple(replace(s, mesh=mesh, pipe=1) for s, mesh in zip(plan.stages, reversed(meshes), strict=True))
    return replace(plan, stages=(*plan.stages, *up), schedule=Schedule("chimera", plan.schedule.micro_batches))


def test_pipes_that_are_no_copies_are_refused() -> None:
    model = chain_model(2, 2)
    plan = pipes_plan(model.graph, "chimera", 2)
    first, second, third, fourth = plan.stages
    moved = replace(third, ops=third.ops[:-1]), replace(fourth, ops=(third.ops[-1], *fourth.ops))
    for stages, what in (
        ((first, second, *moved), "other ops"),
        ((first, second, replace(third, mesh=Mesh((0, 1), ("data",), (2,))), fourth), "another mesh"),
        ((first, second, third), "another number of stages"),
    ):
        with pytest.raises(Unsupported, match=f"pipe 1 has {what} than pipe 0"):
            lower(model.graph, replace(plan, stages=stages), Recipe(plan.samples))
