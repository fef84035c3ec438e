"""Plans that cut every op its own way, found on captured nets, run on four ranks: loss and every gradient are one process's."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from execute.conftest import Model, Pools, model_of, zoo_model
from meshwright.execute import why_not
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.planners._optcnn_layers import layers_of
from meshwright.planners.optcnn import OptCNN
from meshwright.planners.tofu import Tofu
from meshwright.simulate import simulate
from meshwright.testing.tiny import problem_of

SHRINK = Shrink(blocks=1, width=64, heads=4, kv_heads=2, ffn=48, vocab=10, image=64, dropout=0.0)


class AlexNet(nn.Module):
    """Convolutions, pools and two wide layers; a layer of each kind that OptCNN cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 16, 5, padding=2)
        self.second = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.third = nn.Conv2d(16, 32, 3, padding=1)
        self.wide = nn.Linear(32 * 16, 64)
        self.last = nn.Linear(64, 16)

    def forward(self, images: Tensor, goal: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(images)), 2)
        x = F.relu(self.second(x))
        x = F.max_pool2d(F.relu(self.third(x)), 2)
        return F.cross_entropy(self.last(F.relu(self.wide(x.flatten(1)))), goal)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=False) for n, m in ((32, 64), (64, 16), (16, 32)))

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = layer(x) if k == 0 else layer(F.relu(x))
        return F.mse_loss(x, goal)


def _captured(kind: type[nn.Module], batch: dict[str, Tensor]) -> Model:
    with torch.device("meta"):
        module = kind().train()
    torch.manual_seed(0)
    return model_of(module, batch, [batch], kind().train())


@cache
def model(name: str) -> Model:
    g = torch.Generator().manual_seed(0)
    if name == "gpt2":
        return zoo_model("gpt2", 2, 1)
    if name == "alexnet":
        images, goal = torch.randn(8, 4, 32, 32, generator=g), torch.randint(0, 16, (8,), generator=g)
        return _captured(AlexNet, {"images": images, "goal": goal})
    if name == "perceptron":
        return _captured(Perceptron, {"x": torch.randn(16, 32, generator=g), "goal": torch.randn(16, 32, generator=g)})
    source = resolve(name)
    module, inputs = source.build(4, 0, "float32", shrink=SHRINK)
    real, _ = source.build(4, 0, "float32", device="cpu", shrink=SHRINK)
    return model_of(module, inputs, [source.random_inputs(4, 0, g, shrink=SHRINK)], real)


@pytest.mark.parametrize("name", ["alexnet", "perceptron", "gpt2", pytest.param("resnet-50", marks=pytest.mark.slow)])
def test_optcnns_plan_is_right(name: str, pools: Pools) -> None:
    made = model(name)
    problem = problem_of(made.graph, "a100x4", samples=made.graph.samples)
    planner = OptCNN()
    result = planner.plan(problem)
    assert result.plan is not None and result.status == "optimal"
    assert planner.objective(problem, result.plan) == pytest.approx(result.objective, rel=1e-12)
    assert why_not(result.plan, made.graph) is None
    assert made.check(result.plan, pools(4)).equal


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 20), marks=pytest.mark.slow)], ids=str)
def test_any_choice_of_optcnns_configurations_is_right(seeds: range, pools: Pools) -> None:
    """Every layer on its own number of devices, its tiles cut along samples, channels, rows and columns."""
    made = model("alexnet")
    problem = problem_of(made.graph, "a100x4", samples=made.graph.samples)
    layers = layers_of(made.graph, made.graph.samples, 4)
    for seed in seeds:
        rng = random.Random(seed)
        plan = OptCNN()._plan(problem, layers, tuple(rng.randrange(len(x.degrees)) for x in layers))
        assert len(plan.stages) > 1
        assert simulate(problem, plan, detail=False).step_seconds > 0
        assert why_not(plan, made.graph) is None, seed
        result = made.check(plan, pools(4))
        assert result.equal, (seed, result.problems[:5])


@pytest.mark.parametrize("method", ["tofu", "icml18", "equalchop", pytest.param("spartan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["alexnet", "perceptron", "gpt2", pytest.param("resnet-50", marks=pytest.mark.slow)])
def test_tofus_plan_is_right(name: str, method: str, pools: Pools) -> None:
    """Parameters, activations and data rest split over all four ranks."""
    made = model(name)
    problem = problem_of(made.graph, "a100x4", samples=made.graph.samples)
    planner = Tofu(method=method)  # type: ignore[arg-type]
    result = planner.plan(problem)
    assert result.plan is not None
    assert planner.objective(problem, result.plan) == result.objective
    assert simulate(problem, result.plan, detail=False).step_seconds > 0
    assert why_not(result.plan, made.graph) is None
    found = made.check(result.plan, pools(4))
    assert found.equal, found.problems[:5]
