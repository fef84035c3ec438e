"""Alpa's own space: the whole-graph objectives that its authors assert, its conversion prices, and the plans behind them."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest
import torch

from meshwright.graph.capture import capture
from meshwright.graph.ir import Graph
from meshwright.planners._alpa_space import AlphaBeta, Space, _Builder, alpa_space, split_biases
from meshwright.solvers.certified import certified

from .conv_nets import Net


def layers(count: int, batch: int, width: int, *, bias: bool) -> Graph:
    """Square layers with a ReLU between, squared errors as loss."""
    net = Net(batch)
    x = net.tensor("x", (batch, width), "input")
    for k in range(count):
        x = net.linear(f"fc{k}", x, width)
        if bias:
            b = net.tensor(f"fc{k}.bias", (width,), "param")
            x = net.call(f"fc{k}.bias", "add", (x, b), (), (batch, width))
        if k < count - 1:
            x = net.relu(f"act{k}", x)
    target = net.tensor("target", (batch, width), "input")
    return net.graph(net.call("loss", "mse_loss", (x, target), (), ()))


def solved(space: Space) -> tuple[float, tuple[int, ...]]:
    found = certified(space.graph)
    assert found.gap <= 1e-9
    return found.value, found.choice


@pytest.mark.parametrize("shape", [(4, 1), (1, 4)])
def test_data_parallel_wins_with_many_samples(shape: tuple[int, int]) -> None:
    """6 · (AR(4096) + AR(128)) and 3 for each of 37 tensors that every device has whole; ours has no step counter."""
    space = alpa_space(layers(6, 256, 32, bias=True), AlphaBeta(shape, (1.0, 1.0), (1.0, 1.0)))
    cost, choice = solved(space)
    assert cost == pytest.approx(38139.1, rel=0.01)
    assert space.kept_whole(choice) == {t.name for t in space.step.params()}
    for k in range(6):
        at = space.step.position[f"fc{k}/linear"]
        assert space.strategies[at][choice[at]].results == ((0,),)


def test_tensor_parallel_wins_with_wide_layers() -> None:
    """5 · AR(32768): kernels alternate column and row."""
    space = alpa_space(layers(6, 32, 256, bias=False), AlphaBeta((4, 1), (1.0, 1.0), (1.0, 1.0)))
    cost, choice = solved(space)
    assert cost == pytest.approx(245765.05, rel=0.01)
    cut = [
        space.strategies[space.step.position[f"fc{k}/linear"]][choice[space.step.position[f"fc{k}/linear"]]]
        for k in range(6)
    ]
    sums = [bool(s.partial[0]) for s in cut]
    assert sums == [False, True] * 3
    assert not space.kept_whole(choice)


def test_two_axes_are_used_for_both() -> None:
    """6 · (AR0(2048) + AR0(128)) + 5 · AR1(16384): samples on axis 0, column and row on axis 1."""
    space = alpa_space(layers(6, 256, 32, bias=True), AlphaBeta((2, 2), (1.0, 1.0), (1.0, 0.1)))
    cost, choice = solved(space)
    assert cost == pytest.approx(21265.2, rel=0.01)
    for k in range(6):
        at = space.step.position[f"fc{k}/linear"]
        strategy = space.strategies[at][choice[at]]
        assert strategy.operands[0][0] == 0 and strategy.operands[1][0] == -1
        assert bool(strategy.partial[0]) == bool(k % 2)


class Block(torch.nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (torch.nn.Linear(width, width) for _ in range(4))
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, s, _ = x.shape
        q, k, v = (f(x).view(n, s, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.first(x + self.out(y.transpose(1, 2).reshape(n, s, -1)))
        return self.second(x + self.down(torch.nn.functional.gelu(self.up(x))))


class Encoder(torch.nn.Module):
    def __init__(self, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x.mean()


def encoder(depth: int = 2) -> Graph:
    """Two layers of BERT: 8 sequences of 8, hidden 128, 8 heads."""
    with torch.device("meta"):
        return capture(Encoder(depth, 128, 8), {"x": torch.zeros(8, 8, 128, device="meta")}, 8)


def test_layers_of_bert_are_cut_by_column_and_row() -> None:
    """(4 · 2 − 1) · AR(32768)."""
    space = alpa_space(encoder(), AlphaBeta((4, 1), (1.0, 1.0), (1.0, 1.0)))
    cost, choice = solved(space)
    assert cost == pytest.approx(344071.1, rel=0.01)
    for k in range(2):
        for name, row in (("q", False), ("k", False), ("v", False), ("out", True), ("up", False), ("down", True)):
            at = space.step.position[f"blocks.{k}.{name}/linear"]
            assert bool(space.strategies[at][choice[at]].partial[0]) == row, name


def test_biases_are_sums_of_their_own() -> None:
    graph = encoder(1)
    made = split_biases(graph)
    assert sum(op.flops for op in made.ops) == sum(op.flops for op in graph.ops)
    assert all(len(op.inputs) == 2 for op in made.ops if op.kind == "linear")
    assert {t for op in made.ops for t in op.outputs} >= {t for op in graph.ops for t in op.outputs}


def test_conversions_cost_what_the_formulas_say() -> None:
    mesh = AlphaBeta((4, 1), (2.0, 9.0), (0.5, 9.0))
    line = _Builder(layers(1, 8, 8, bias=False), mesh, "adam", False, False)
    assert line.moving(100.0, (0,), (0,)) == line.moving(100.0, (-1,), (1,)) == 0.0
    assert line.moving(100.0, (0,), (-1,)) == pytest.approx(2.0 + 0.5 * 3 / 4 * 100 + 0.1)
    assert line.moving(100.0, (0,), (1,)) == pytest.approx(2.0 + 0.5 * 3 / 16 * 100 * 2 + 0.001)
    plane = _Builder(layers(1, 8, 8, bias=False), AlphaBeta((2, 4), (1.0, 2.0), (1.0, 3.0)), "adam", False, False)
    assert plane.moving(64.0, (0, 1), (1, 1)) == inf
    # One after the other, bytes growing: axis 0 while axis 1 still cuts by 4.
    both = (1.0 + 1 / 2 * 16 + 0.1) + (2.0 + 3 * 3 / 4 * 64 + 0.1)
    assert plane.moving(64.0, (0, 1), (-1, -1)) == pytest.approx(both)


@pytest.mark.parametrize("shape", [(4, 1), (2, 2)])
def test_the_optimum_is_at_most_data_parallel_and_that_of_every_plan_tried(shape: tuple[int, int]) -> None:
    space = alpa_space(layers(2, 64, 16, bias=False), AlphaBeta(shape, (1.0, 1.0), (1.0, 0.5)))
    best, _ = solved(space)
    rng = np.random.default_rng(0)
    for _ in range(300):
        choice = [int(rng.integers(len(prices))) for prices in space.graph.unary]
        assert space.graph.cost(choice) >= best - 1e-9
    forced = alpa_space(layers(2, 64, 16, bias=False), AlphaBeta(shape, (1.0, 1.0), (1.0, 0.5)), batch_first=True)
    assert solved(forced)[0] >= best - 1e-9
    for op, strategies in zip(forced.step.ops, forced.strategies, strict=True):
        samples = {f.name for f in op.rule.factors if f.samples}
        assert all(s.factors[0] in (samples or {""}) for s in strategies)


def test_products_use_every_axis() -> None:
    space = alpa_space(layers(2, 64, 16, bias=False), AlphaBeta((2, 2), (1.0, 1.0), (1.0, 1.0)))
    for op, strategies in zip(space.step.ops, space.strategies, strict=True):
        if op.kind == "linear":
            own = [f.name for f in op.rule.factors]
            assert len(own) == 3
            assert {s.factors for s in strategies} == {p for p in product(own, own) if p[0] != p[1]}
