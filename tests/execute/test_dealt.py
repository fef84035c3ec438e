"""Replicas that take turns in a step with a flush compute what one process computes: losses, gradients, weights after a step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from execute.chain import chain_model, chain_plan
from execute.conftest import Pools, zoo_model
from execute.layouts import Layout, plan_of
from meshwright.cluster.model import Mesh
from meshwright.execute.proof.refusal import why_not
from meshwright.execute.proof.scale import scaled
from meshwright.graph.source import resolve
from meshwright.plan.model import Schedule, Weights


@pytest.mark.parametrize(
    ("replicas", "m"), [((2, 1), 4), ((1, 2), 3), ((2, 2), 4), ((3, 2), 6), ((2, 3), 5), ((1, 3, 2), 5), ((2, 1, 1), 3)], ids=str
)  # fmt: skip
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_replicas_take_turns_and_meet_at_the_flush(
    schedule: str, replicas: tuple[int, ...], m: int, pools: Pools
) -> None:
    model = chain_model(len(replicas), m)
    plan = chain_plan(model.graph, schedule, m, Weights(), replicas)
    plan = replace(plan, schedule=Schedule(schedule, m))
    assert why_not(plan, model.graph) is None
    result = model.check(plan, pools(sum(replicas)))
    assert result.problems == ()
    assert result.gradients == 2 * len(replicas)
    assert result.collectives["all_reduce"][0] > 0


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_weight_that_is_tied_over_unlike_numbers_of_replicas(first: int, second: int, pools: Pools) -> None:
    """GPT-2's embedding is in the first and in the last stage; each rank also cuts features over tp."""
    model = zoo_model("gpt2")
    base = plan_of(model.graph, Layout(pp=2, tp=2), 2)
    stages, at = [], 0
    for stage, n in zip(base.stages, (first, second), strict=True):
        mesh = Mesh(range(at, at + 2 * n), ("turn", *stage.mesh.axes), (n, *stage.mesh.shape))
        stages.append(replace(stage, mesh=mesh, deal="turn" if n > 1 else ""))
        at += 2 * n
    assert model.check(replace(base, stages=tuple(stages)), pools(6)).problems == ()


def test_many_replicas_are_verified_on_few_ranks() -> None:
    source = resolve("gpt2")
    graph = source.graph(1, 64, "float32")
    base = plan_of(graph, Layout(pp=2), 12)
    meshes = (Mesh(range(4), ("dp",), (4,)), Mesh(range(4, 10), ("dp",), (6,)))
    stages = tuple(replace(s, mesh=mesh, deal="dp") for s, mesh in zip(base.stages, meshes, strict=True))
    small = scaled(replace(base, stages=stages), graph, source, 64)
    assert [s.mesh.size("dp") for s in small.plan.stages] == [2, 2] and small.plan.schedule.name == "1f1b"
    assert why_not(small.plan, small.graph) is None
