"""Experts with dispatched tokens run as they are priced: with room for all, they give what a process alone gives."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from execute.conftest import Model, Pools, model_of
from execute.layouts import Layout, plan_of
from meshwright.graph.source import ConfigSource, resolve
from meshwright.graph.zoo import Shrink

SHRINK = Shrink(blocks=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=32, seq=8, experts=4, dropout=0.0)


@cache
def mixtral() -> Model:
    """Two of four experts a token, so that twice the even share is room for every token."""
    source = resolve("mixtral-8x7b")
    assert isinstance(source, ConfigSource)
    module, inputs = replace(source, capacity=2.0).build(4, SHRINK.seq, "float32", shrink=SHRINK)
    real, _ = source.build(4, SHRINK.seq, "float32", device="cpu", shrink=SHRINK, attention="eager")
    generator = torch.Generator().manual_seed(0)
    batch = [source.random_inputs(4, SHRINK.seq, generator, shrink=SHRINK) for _ in range(2)]
    return model_of(module, inputs, batch, real)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(dp=2),
        Layout(ep=2),
        Layout(tp=2, sequence=True),
        Layout(tp=2, sequence=True, whole_experts=True),
        Layout(ep=2, tp=2, sequence=True, whole_experts=True),
        Layout(dp=2, ep=2, zero=1),
    ],
    ids=str,
)
def test_dispatched_experts_give_the_loss_and_every_gradient(layout: Layout, pools: Pools) -> None:
    model = mixtral()
    assert any(op.kind == "moe_dispatch" for op in model.graph.ops)
    result = model.check(plan_of(model.graph, layout, 2), pools(layout.ranks))
    assert result.equal, result.problems[:5]
    assert result.gradients == len(list(model.graph.params()))
