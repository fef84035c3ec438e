"""What a layout scheme is said to cost is what its program asks for; where SUMMA cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.cost.volumes import Scheme, linear_volume, loss_volume, norm_volume
from meshwright.errors import Unsupported
from meshwright.lower import lower
from meshwright.lower.program import Instr, Program
from meshwright.lower.summa import SUMMA
from meshwright.lower.volumes import received, resting
from meshwright.plan.model import Cut, OpSharding, Plan, Stage
from meshwright.plan.problem import Recipe
from meshwright.testing.linear import LINEAR, W, X, linear_graph, linear_plan, linear_program, linear_received

GRIDS: tuple[tuple[Scheme, int, int], ...] = (
    ("1d-column", 4, 1),
    ("1d-row", 4, 1),
    ("1d-row-sequence", 8, 1),
    ("2d", 4, 1),
    ("2d", 9, 1),
    ("2.5d", 4, 1),
    ("2.5d", 8, 2),
    ("2.5d", 18, 2),
    ("3d", 8, 1),
    ("3d", 27, 1),
)
"""(scheme, devices, depth)."""


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_the_program_receives_what_the_table_says(m: int, k: int, n: int) -> None:
    for scheme, devices, depth in GRIDS:
        sizes = 216 * m, 216 * k, 216 * n
        said = linear_volume(scheme, *sizes, devices, depth)
        assert linear_received(scheme, *sizes, devices, depth) == pytest.approx(said.received, rel=1e-12), scheme
        _, program = linear_program(scheme, *sizes, devices, depth)
        copies = depth if scheme == "2.5d" else 1
        assert resting(program, W) == copies * sizes[1] * sizes[2] == said.weight * devices


def test_summa_fetches_blocks_and_never_gathers() -> None:
    _, program = linear_program("2d", 36, 18, 27, 9)
    (segment,) = program.stages[0].segments
    on_layer = [i for i in (*segment.forward, *segment.backward) if i.communicates and i.on in (LINEAR, X, W)]
    assert {i.kind for i in on_layer} == {"panel"}
    kinds = [(i.phase, i.collective) for i in on_layer]
    assert kinds.count(("forward", "broadcast")) == 2 * 3
    assert kinds.count(("backward", "broadcast")) == kinds.count(("backward", "reduce")) == 2 * 3


def test_three_dimensions_need_six_collectives() -> None:
    graph, program = linear_program("3d", 32, 16, 64, 8)
    (segment,) = program.stages[0].segments
    names = {LINEAR, X, W, graph.ops[1].outputs[0]}
    assert segment.rerun == ()
    assert sum(i.communicates and i.on in names for i in (*segment.forward, *segment.backward)) == 6


def test_the_depth_sums_weight_gradients_once_a_step() -> None:
    _, program = linear_program("2.5d", 32, 16, 64, 8, 2)
    (weight,) = (p for p in program.stages[0].params if p.name == W)
    assert weight.deferred == ("depth",)


def test_two_micro_batches_receive_twice_and_sum_once() -> None:
    graph, program = linear_program("2.5d", 32, 16, 64, 8, 2)
    once, twice = (received(program, graph, m, {LINEAR, X, W}) for m in (1, 2))
    assert twice - once == 3 * (2 - 1) / 4 * (32 * 16 / 2 + 16 * 64)


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        ({"b": ("row",)}, "not what is summed: it is cut over row and none"),
        ({"b": ("row",), "n": ("wide",)}, "on 2 × 4 members"),
        ({"b": ("row",), "k": ("column",)}, "cut over row and none"),
    ],
)
def test_a_grid_that_is_not_one_is_refused(cuts: dict[str, tuple[str, ...]], words: str) -> None:
    graph = linear_graph(32, 16, 64)
    plan = linear_plan(graph, "2d", 4)
    (stage,) = plan.stages
    mesh = replace(stage.mesh, devices=range(16), axes=("row", "column", "wide"), shape=(2, 2, 4))
    own = OpSharding({f: tuple(map(Cut, axes)) for f, axes in cuts.items()}, SUMMA)
    wrong = replace(plan, stages=(replace(stage, mesh=mesh, shardings={LINEAR: own}, layouts={}, storage={}),))
    with pytest.raises(Unsupported, match=words):
        lower(graph, wrong, Recipe(32))


def test_only_products_run_as_summa() -> None:
    graph = linear_graph(32, 16, 64)
    plan = linear_plan(graph, "2d", 4)
    (stage,) = plan.stages
    wrong = {**stage.shardings, "gain/mul": replace(stage.shardings["gain/mul"], variant=SUMMA)}
    with pytest.raises(Unsupported, match="no product of rows with one matrix"):
        lower(graph, replace(plan, stages=(replace(stage, shardings=wrong),)), Recipe(32))


@pytest.mark.parametrize("p", [4, 8])
def test_norms_and_losses_receive_their_statistics(p: int) -> None:
    """32 tokens of 16 features and of 64 classes, both cut over p."""
    import torch
    from torch import Tensor, nn

    from meshwright.graph.capture import capture

    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 64, bias=False)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.head(self.norm(self.first(x))), labels)

    inputs = {"x": torch.zeros(32, 8), "labels": torch.zeros(32, dtype=torch.int64)}
    graph = capture(Tail(), inputs, 32)
    cuts: dict[str, OpSharding] = {}
    for op in graph.ops:
        name = next((f.name for f in op.rule.factors if f.kind == "stat"), "n" if op.kind == "linear" else "")
        if name:
            cuts[op.name] = OpSharding({name: (Cut("tp"),)})
    stage = Stage(tuple(op.name for op in graph.ops), Mesh(range(p), ("tp",), (p,)), cuts)
    program = lower(graph, Plan(graph.digest, 32, (stage,)), Recipe(32, compute_dtype="float32"))
    (norm,) = [op.name for op in graph.ops if op.kind == "layer_norm"]
    (loss,) = [op.name for op in graph.ops if op.kind == "cross_entropy_loss"]
    inside = _statistics_alone(program)
    assert received(inside, graph, 1, {norm}) == norm_volume(32, p) == {4: 192, 8: 224}[p]
    assert received(inside, graph, 1, {loss}) == loss_volume(32, p) == {4: 144, 8: 168}[p]


def _statistics_alone(program: Program) -> Program:
    def kept(instrs: tuple[Instr, ...]) -> tuple[Instr, ...]:
        return tuple(i for i in instrs if i.kind == "stat")

    (code,) = program.stages
    segments = tuple(
        replace(s, forward=kept(s.forward), rerun=kept(s.rerun), backward=kept(s.backward)) for s in code.segments
    )
    return replace(program, stages=(replace(code, segments=segments, grads=(), update=()),))
