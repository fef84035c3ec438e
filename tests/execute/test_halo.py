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
from execute.random_plans import random_plan
from meshwright.cluster.model import Mesh
from meshwright.execute.proof.refusal import refusals
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.lower import lower
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.plan.problem import Recipe

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


class Windows(nn.Module):
    """Strides, dilation, padding in words, groups, averages that count padding, overlapping maxima, one and three dims."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 5, padding=2)
        self.spread = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=2)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.rows = nn.Conv1d(8, 8, 3, padding=1)
        self.cube = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, images: Tensor, goal: Tensor) -> Tensor:
        x = F.relu(self.first(images))
        x = x + self.spread(x)
        x = F.max_pool2d(self.norm(self.down(x)), 3, 1, 1) + F.avg_pool2d(x, 4, 2, 1)
        y = self.rows(x.mean(3))
        z = self.cube(x.unsqueeze(1)).square().mean((1, 2, 4))
        return F.mse_loss(y.mean(1) + z, goal)


@cache
def window_model() -> Model:
    g = torch.Generator().manual_seed(0)
    batch = [
        {"images": torch.randn(4, 4, 16, 16, generator=g), "goal": torch.randn(4, 8, generator=g)} for _ in range(2)
    ]
    with torch.device("meta"):
        module = Windows().train()
    torch.manual_seed(0)
    return model_of(module, batch[0], batch, Windows().train())


class Rolls(nn.Module):
    """Shifts either way, of one dim and of two, of few elements and of many, over all as one."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        """[samples, 32, 16]"""
        y = torch.roll(self.mix(x), 3, 1)
        y = y * torch.roll(x, (-2, 1), (1, 2)) + torch.roll(y, 31, 1)
        y = torch.tanh(torch.roll(y, (11, -1), (1, -1))) + torch.roll(y, 5)
        return F.mse_loss(torch.roll(y, (1, 1), (1, 1)), goal)


@cache
def rolling_model() -> Model:
    g = torch.Generator().manual_seed(0)
    batch = [{name: torch.randn(4, 32, 16, generator=g) for name in ("x", "goal")} for _ in range(2)]
    with torch.device("meta"):
        module = Rolls().train()
    torch.manual_seed(0)
    return model_of(module, batch[0], batch, Rolls().train())


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
@pytest.mark.parametrize("shape", [(2,), (4,), (2, 2)], ids=str)
def test_rolls_along_cut_dims_pass_rows_to_one_neighbour(shape: tuple[int, ...], uneven: bool, pools: Pools) -> None:
    model = rolling_model()
    passed = 0
    for seed in range(6):
        plan = random_plan(
            model.graph, shape, ("x", "y")[: len(shape)], 2, seed, legal=("free", "stat", "halo"), uneven=uneven
        )
        program = model.program(plan)
        passed += sum(i.op == "wrap" for s in program.stages[0].segments for i in (*s.forward, *s.backward))
        result = model.check(plan, pools(len(plan.stages[0].mesh.devices)), program)
        assert result.equal, (seed, result.problems[:5])
    assert passed >= 12


@pytest.mark.parametrize("seeds", (range(4), pytest.param(range(4, 24), marks=pytest.mark.slow)), ids=str)
def test_windows_cut_at_random_give_the_loss_and_every_gradient(seeds: range, pools: Pools) -> None:
    """Over one axis or both, one dim or two."""
    model = window_model()
    for seed in seeds:
        plan = random_plan(model.graph, (2, 2), ("x", "y"), 2, seed, legal=("free", "stat", "halo"))
        result = model.check(plan, pools(4))
        assert result.equal, (seed, result.problems[:5])


def test_parts_smaller_than_what_a_neighbour_reads_are_refused_in_one_sentence() -> None:
    graph = window_model().graph
    conv = next(op for op in graph.ops if op.kind == "conv2d")
    mesh = Mesh(range(16), ("x",), (16,))
    stage = Stage(tuple(op.name for op in graph.ops), mesh, {conv.name: OpSharding({"s0": (Cut("x"),)})})
    (found,) = refusals(Plan(graph.digest, 8, (stage,), Schedule("gpipe", 2)), graph)
    assert found.reason == "halo"
    assert found.sentence == (
        'window "s0" of "first/conv2d" cannot be cut in 16 parts, of which the least has 0 rows: it needs 2 of a neighbour'
    )


def test_an_exchange_moves_the_rows_that_neighbours_read_and_no_more() -> None:
    """The first convolution of ResNet-50 reads 3 rows below and 2 above of 112 rows of 3 colours and 224 columns."""
    graph = resolve("resnet-50").graph(batch=2, seq=0, dtype="float32")
    program = lower(graph, plan_of(graph, replace(ROWS, cp=4), 1), Recipe(2))
    first = next(i for s in program.stages[0].segments for i in s.forward if i.kind == "halo")
    assert (first.collective, first.sizes[:2], first.nbytes, first.samples) == (
        "permute",
        (3, 2),
        3 * 224 * 5 * 4,
        (),
    )
