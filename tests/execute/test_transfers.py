"""Messages between stages: within one process group both ends ask for them in one order, as NCCL, without tags, demands."""

from __future__ import annotations

import pytest

from execute.conftest import Pools, zoo_model
from execute.layouts import Layout, plan_of

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
    task = model.task(plan_of(model.graph, layout, MICRO_BATCHES))
    answers = pools(layout.ranks).run("execute.transfer_jobs:messages", task)
    sent = [m for out, _ in answers for m in out]
    received = [m for _, into in answers for m in into]
    assert sorted(sent) == sorted(received) and len(sent) >= 2 * MICRO_BATCHES
    for pair in {(m[0], m[1], m[2]) for m in sent}:
        assert [m for m in sent if m[:3] == pair] == [m for m in received if m[:3] == pair]
    for source, target, group, _ in sent:  # nothing goes the other way in it
        assert not any(m[0] == target and m[1] == source and m[2] == group for m in sent)
