"""Messages between stages: within one process group both ends ask for them in one order, as NCCL, without tags, demands."""

from __future__ import annotations

import random

import pytest

from execute.conftest import Model, Pools, zoo_model
from execute.layouts import Layout, plan_of
from execute.test_placements import placed
from execute.unequal import unequal_plan
from meshwright.plan.model import Plan

MICRO_BATCHES = 4
LAYOUTS = (
    Layout(pp=2, schedule="gpipe"),
    Layout(pp=2),
    Layout(pp=2, schedule="interleaved", chunks=2),
    Layout(pp=2, schedule="bfs", chunks=2),
    Layout(pp=2, schedule="zb-h1"),
    Layout(pp=4),
    Layout(pp=4, schedule="interleaved", chunks=2),
    Layout(pp=4, schedule="bfs", chunks=2),
    Layout(pp=4, schedule="zb-h1"),
    Layout(pp=2, tp=2, sequence=True),
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_both_ends_of_a_channel_agree_on_the_order_of_messages(layout: Layout, pools: Pools) -> None:
    """More ops than blocks: values skip stages, and several values go from one stage to the next."""
    model = zoo_model("gpt2", blocks=4, micro_batches=MICRO_BATCHES)
    _agree(model, plan_of(model.graph, layout, MICRO_BATCHES), pools)


@pytest.mark.parametrize("seed", range(2))
def test_both_ends_agree_where_single_ops_are_placed(seed: int, pools: Pools) -> None:
    """What is sent first is not always wanted first."""
    model = zoo_model("gpt2", blocks=4, micro_batches=MICRO_BATCHES)
    rng = random.Random(seed)
    _agree(model, placed(model.graph, [rng.randrange(3) for _ in model.graph.ops], MICRO_BATCHES), pools)


@pytest.mark.parametrize("schedule", ["1f1b", "dataflow"])
def test_both_ends_agree_between_unequal_meshes(schedule: str, pools: Pools) -> None:
    model = zoo_model("gpt2", blocks=4, micro_batches=MICRO_BATCHES)
    shapes = ((("dp", 1), ("tp", 1)), (("dp", 2), ("tp", 1)), (("dp", 1), ("tp", 1)))
    _agree(model, unequal_plan(model.graph, shapes, MICRO_BATCHES, schedule), pools)


def _agree(model: Model, plan: Plan, pools: Pools) -> None:
    task = model.task(plan)
    ranks = len({d for s in plan.stages for d in s.mesh.devices})
    answers = pools(ranks).run("execute.transfer_jobs:messages", task)
    sent = [m for out, _ in answers for m in out]
    received = [m for _, into in answers for m in into]
    assert sorted(sent) == sorted(received) and len(sent) >= 2 * MICRO_BATCHES
    for pair in {(m[0], m[1], m[2]) for m in sent}:
        assert [m for m in sent if m[:3] == pair] == [m for m in received if m[:3] == pair]
    for source, target, group, _ in sent:  # nothing goes the other way in it
        assert not any(m[0] == target and m[1] == source and m[2] == group for m in sent)
