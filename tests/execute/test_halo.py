"""Images cut by rows compute what one device computes: windows get rows of their neighbours, statistics are over all."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from execute.conftest import Model, Pools, model_of
from execute.layouts import Layout, plan_of
from meshwright.cluster.model import Mesh
from meshwright.errors import Unsupported
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage

SHRINK = Shrink(blocks=1, width=64, heads=4, kv_heads=2, ffn=48, vocab=10, image=64, dropout=0.0)


@cache
def images(name: str) -> Model:
    source = resolve(name)
    module, inputs = source.build(2, 0, "float32", shrink=SHRINK)
    real, _ = source.build(2, 0, "float32", device="cpu", shrink=SHRINK)
    generator = torch.Generator().manual_seed(0)
    return model_of(module, inputs, [source.random_inputs(2, 0, generator, shrink=SHRINK) for _ in range(2)], real)


ROWS = Layout(cp=2, context="halo")
LAYOUTS = (
    ROWS,
    replace(ROWS, recompute="full"),
    replace(ROWS, dp=2, zero=3),
    replace(ROWS, dp=2, zero=1, recompute="light"),
    replace(ROWS, pp=2),
    replace(ROWS, cp=4),
)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(n, x, id=f"{n} {x}", marks=() if (k + m) % 3 == 0 else pytest.mark.slow)
        for m, n in enumerate(("resnet-50", "wrn-50-2", "unet"))
        for k, x in enumerate(LAYOUTS)
    ],
)
def test_rows_of_images_give_the_loss_and_every_gradient_of_one_process(
    name: str, layout: Layout, pools: Pools
) -> None:
    model = images(name)
    result = model.check(plan_of(model.graph, layout, len(model.batch)), pools(layout.ranks))
    assert result.equal, result.problems[:5]
    assert result.gradients == len(list(model.graph.params()))
