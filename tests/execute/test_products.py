"""1D, 2D, 2.5D and 3D on ranks, in float64: outputs and gradients as on one process to 1e-10, collectives as promised."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from execute.conftest import Model, Pools, model_of
from execute.tiny import tiny_source
from meshwright.cost.volumes import Scheme as Name
from meshwright.execute import verify
from meshwright.execute.ops.params import Values
from meshwright.execute.proof.verification import reference
from meshwright.graph.source import ModelSource, resolve
from meshwright.layouts.expert import Expert
from meshwright.layouts.point import Point
from meshwright.layouts.style import Style
from meshwright.layouts.units import Units
from meshwright.lower.summa import SUMMA
from meshwright.plan.model import Plan, Schedule, Stage
from meshwright.planners._products import Scheme, choices_on
from meshwright.planners.base import Planner
from meshwright.planners.cube_3d import Cube3D
from meshwright.planners.megatron import Megatron
from meshwright.planners.summa_2d import Summa2D
from meshwright.planners.tesseract_2_5d import Tesseract
from meshwright.testing import problem_of
from meshwright.testing.linear import linear_graph, linear_plan

EXACT = 1e-10


class _Held(nn.Module):
    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(*shape)))


class Layer(nn.Module):
    """What `linear_graph` says."""

    def __init__(self, m: int, k: int, n: int) -> None:
        super().__init__()
        self.shift, self.gain, self.fc = _Held("shift", m, k), _Held("gain", m, n), nn.Linear(k, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(x + self.shift.shift) * self.gain.gain).mean()


@cache
def layer(m: int, k: int, n: int) -> Model:
    graph, module = linear_graph(m, k, n, "float64"), Layer(m, k, n).double()
    batch = ({"x": torch.randn(m, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0))},)
    values = Values(0, "uneven")
    return Model(graph, module, values, {}, batch, reference(graph, module, batch, values))


@pytest.mark.parametrize("sizes", [(32, 16, 64), (40, 13, 71)], ids=str)
@pytest.mark.parametrize(
    ("scheme", "devices", "depth"),
    [("1d-column", 4, 1), ("1d-row", 4, 1), ("1d-row-sequence", 4, 1), ("2d", 4, 1), ("2.5d", 8, 2), ("3d", 8, 1)],
)
def test_a_linear_layer(scheme: Name, devices: int, depth: int, sizes: tuple[int, int, int], pools: Pools) -> None:
    """The gradient of the shift is dX, that of the gain is Y."""
    model = layer(*sizes)
    result = model.check(linear_plan(model.graph, scheme, devices, depth), pools(devices))
    assert result.equal, result.problems[:5]
    assert result.worst[1] < EXACT


@pytest.mark.parametrize(("scheme", "devices", "depth"), [("2d", 4, 1), ("2.5d", 8, 2), ("3d", 8, 1)])
def test_ranks_may_stand_anywhere_on_the_grid(scheme: Name, devices: int, depth: int, pools: Pools) -> None:
    model = layer(32, 16, 64)
    plan = linear_plan(model.graph, scheme, devices, depth)
    (stage,) = plan.stages
    order = tuple(random.Random(devices).sample(range(devices), devices))
    result = model.check(
        replace(plan, stages=(replace(stage, mesh=replace(stage.mesh, devices=order)),)), pools(devices)
    )
    assert result.equal, result.problems[:5]
    assert result.worst[1] < EXACT


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, h = x.shape
        q, k, v = (y.transpose(1, 2) for y in self.qkv(x).view(b, s, 3, self.heads, h // self.heads).unbind(2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, s, h))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.second, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Embeddings of tokens and positions, two blocks, a classifier, tied or not, and its loss; all of it in one dtype."""

    def __init__(self, vocabulary: int, tied: bool, width: int = 16, heads: int = 4, seq: int = 6) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(seq, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@cache
def transformer(vocabulary: int, tied: bool) -> Model:
    samples, seq = 8, 6
    generator = torch.Generator().manual_seed(1)

    def inputs() -> dict[str, Tensor]:
        ids, labels = (torch.randint(0, vocabulary, (samples, seq), generator=generator) for _ in range(2))
        return {"ids": ids, "labels": labels}

    module = Transformer(vocabulary, tied).double()
    batch = [inputs() for _ in range(2)]
    return model_of(module, batch[0], list(batch), module)


def on_a_grid(model: Model, scheme: Scheme, replicas: int = 1, recompute: str = "none") -> Plan:
    expert = Expert(model.graph)
    choices = choices_on(model.graph, expert, scheme, recompute)
    ops = Units(expert.atoms.folded).ops(0, len(Units(expert.atoms.folded)))
    stage = Stage(ops, scheme.mesh(replicas), choices.shardings, choices.layouts, choices.storage, choices.recompute)
    micro_batches = len(model.batch)
    return Plan(model.graph.digest, model.graph.samples * micro_batches, (stage,), Schedule("1f1b", micro_batches))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("vocabulary", [64, 67])
@pytest.mark.parametrize(
    ("scheme", "replicas", "recompute"),
    [
        (Scheme("2d", 2), 1, "none"),
        (Scheme("2d", 2), 2, "full"),
        (Scheme("2.5d", 2, 2), 1, "none"),
        (Scheme("3d", 2), 1, "none"),
        (Scheme("3d", 2, keeps=False), 1, "light"),
    ],
    ids=lambda x: x.words(1) if isinstance(x, Scheme) else str(x),
)
def test_a_transformer_on_a_grid(
    scheme: Scheme, replicas: int, recompute: str, vocabulary: int, tied: bool, pools: Pools
) -> None:
    model = transformer(vocabulary, tied)
    plan = on_a_grid(model, scheme, replicas, recompute)
    if scheme.name != "3d":  # per block qkv, out, up, down; the classifier
        stepped = sum(x.variant == SUMMA for x in plan.stages[0].shardings.values())
        assert stepped == 4 * (1 if model.graph.runs else 2) + 1
    result = model.check(plan, pools(scheme.size * replicas))
    assert result.equal, result.problems[:5]
    assert result.worst[1] < EXACT


@pytest.mark.parametrize("sequence", [False, True])
def test_a_transformer_in_one_dimension(sequence: bool, pools: Pools) -> None:
    model = transformer(64, True)
    expert = Expert(model.graph)
    choices, point = expert.choices(Style(4, sequence, 0, "none")), Point(1, 4, 1, sequence, 1, 1, 0, "none", "1f1b")
    ops = Units(expert.atoms.folded).ops(0, len(Units(expert.atoms.folded)))
    stage = Stage(ops, point.mesh(0), choices.shardings, choices.layouts, choices.storage, choices.recompute)
    plan = Plan(model.graph.digest, 16, (stage,), Schedule("1f1b", 2))
    result = model.check(plan, pools(4))
    assert result.equal, result.problems[:5]
    assert result.worst[1] < EXACT


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_stages_of_a_pipeline_are_grids(schedule: str, pools: Pools) -> None:
    """Under zb-h1 a backward comes in two parts: a product that fetches runs whole in the first."""
    model = transformer(64, False)
    plan = on_a_grid(model, Scheme("2d", 2))
    (whole,) = plan.stages
    ops = [op.name for op in model.graph.ops]
    half = next(k for k, name in enumerate(ops) if name.startswith("blocks.1"))
    stages = tuple(
        replace(whole, ops=tuple(part), mesh=replace(whole.mesh, devices=range(4 * s, 4 * s + 4)))
        for s, part in enumerate((ops[:half], ops[half:]))
    )
    result = model.check(replace(plan, stages=stages, schedule=Schedule(schedule, 2)), pools(8))
    assert result.equal, result.problems[:5]
    assert result.worst[1] < EXACT


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return tiny_source(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("planner", "devices"),
    [
        (Megatron(tensor=2, sequence=True), 4),
        (Summa2D(), 4),
        (Tesseract(d=2), 8),
        (Cube3D(), 8),
        (Cube3D(keep=False), 8),
    ],
    ids=["megatron", "summa", "tesseract", "cube", "cube, gathered again"],
)
def test_what_a_planner_finds_trains_as_one_process_does(
    planner: Planner, devices: int, source: ModelSource, pools: Pools
) -> None:
    graph = source.graph(8, 32, "float32", cache=False)
    plan = planner.plan(problem_of(graph, f"a100x{devices}", samples=8)).plan
    assert plan is not None
    result = verify(plan, graph, source, seq=32, whole=True, pool=pools(devices))
    assert result.equal, result.problems[:5]
    assert result.gradients == len(list(graph.params()))


def test_a_grid_of_many_devices_is_verified_scaled_down() -> None:
    gpt2 = resolve("gpt2")
    graph = gpt2.graph(8, 64, "float32")
    plan = Summa2D(q=4).plan(problem_of(graph, "a100x16", samples=8)).plan
    assert plan is not None
    result = verify(plan, graph, gpt2, seq=64, ranks=8)  # 4 × 2 ranks would be no grid
    assert result.equal, result.problems[:5]
    assert "row4 to row2" in result.scaled and "column4 to column2" in result.scaled, result.scaled
    assert result.collectives["broadcast"][0] > 0


def test_matrices_rest_over_the_whole_grid() -> None:
    """Over a depth, and nowhere else, they are copies."""
    from meshwright.lower.volumes import resting

    model = transformer(64, False)
    for scheme, copies in ((Scheme("2d", 2), 1), (Scheme("2.5d", 2, 2), 2), (Scheme("3d", 2), 1)):
        program = model.program(on_a_grid(model, scheme))
        for t in model.graph.params():
            if len(t.shape) == 2:
                assert resting(program, t.name) == copies * t.shape[0] * t.shape[1], (scheme.name, t.name)
