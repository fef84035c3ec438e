"""Plans of accpar and double_recursive on captured models, run on four ranks: loss and every gradient are those of one process."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from execute.cells import FAMILIES
from execute.conftest import Model, Pools, model_of, zoo_model
from execute.matrix import small
from meshwright.cluster.model import Cluster
from meshwright.execute import why_not
from meshwright.planners import Planner
from meshwright.planners.accpar import AccPar, Ratio
from meshwright.planners.double_recursive import DoubleRecursive
from meshwright.simulate.simulator import simulate
from meshwright.testing.tiny import problem_of

SAMPLES = 8


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


class Convolutions(nn.Module):
    """A strided stem, two paths that are added, a pool, and a linear layer on all that is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, stride=2, padding=1, bias=False)
        self.near = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.far = nn.Conv2d(16, 16, 1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16 * 4 * 4, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.near(x) + self.far(x))
        return self.head(self.pool(x).flatten(1)).square().mean()


@cache
def built(name: str) -> Model:
    if name in ("gpt2", "llama-3.1-8b"):
        return zoo_model(name, micro_batches=1)
    module: nn.Module = MLP() if name == "mlp" else Convolutions()
    shape = (SAMPLES, 32) if name == "mlp" else (SAMPLES, 4, 16, 16)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return model_of(module, {"x": x}, [{"x": x}], module)


PLANNERS: dict[str, Planner] = {
    "accpar": AccPar(),
    "hypar": AccPar(method="hypar"),
    "one weird trick": AccPar(method="owt"),
    "double_recursive": DoubleRecursive(),
    "double_recursive 2.10": DoubleRecursive(order="topological"),
    "double_recursive, all cuts of convolutions": DoubleRecursive(conv=("batch", "out", "in")),
}


@pytest.mark.parametrize("model", ["mlp", "convolutions", "gpt2", "llama-3.1-8b"])
@pytest.mark.parametrize("name", PLANNERS)
def test_what_a_planner_finds_trains_as_one_process_does(name: str, model: str, pools: Pools) -> None:
    made = built(model)
    found = PLANNERS[name].plan(problem_of(made.graph, "a100x4", samples=made.graph.samples))
    assert found.plan is not None
    assert why_not(found.plan, made.graph) is None
    result = made.check(found.plan, pools(4))
    assert result.equal, result.problems[:5]


@pytest.mark.parametrize("model", ["mlp", "convolutions", "gpt2", "llama-3.1-8b"])
@pytest.mark.parametrize("ratio", ["layer", "group"])
def test_unequal_halves_train_as_one_process_does(ratio: Ratio, model: str, pools: Pools) -> None:
    made = built(model)
    problem = problem_of(made.graph, "a100x2", samples=made.graph.samples)
    other = problem_of(made.graph, "h100x2", samples=made.graph.samples).cluster
    mixed = Cluster(
        "mixed", (*problem.cluster.types, *other.types), 4, (0, 0, 1, 1),
        tuple(replace(level, size=4) for level in problem.cluster.levels),
    )  # fmt: skip
    problem = replace(problem, cluster=mixed, recipe=replace(problem.recipe, compute_dtype="bfloat16"))
    found = AccPar(ratio=ratio).plan(problem)
    assert found.plan is not None and found.unit == "s"
    first = [cut for s in found.plan.stages[0].shardings.values() for cuts in s.cuts.values() for cut in cuts]
    assert any(cut.axis == "h0" and cut.weights for cut in first)
    assert all(cut.axis == "h0" or not cut.weights for cut in first)
    assert why_not(found.plan, made.graph) is None
    assert simulate(problem, found.plan).step_seconds > 0
    equal = AccPar(ratio="equal").plan(problem)
    assert equal.plan is not None and equal.unit == "s"
    assert equal.objective > found.objective or (model, ratio) != ("mlp", "layer")
    for plan in (found.plan, equal.plan):
        result = made.check(plan, pools(4))
        assert result.equal, result.problems[:5]


@pytest.mark.slow
@pytest.mark.parametrize("family", [f.name for f in FAMILIES])
@pytest.mark.parametrize("name", PLANNERS)
def test_plans_of_every_family_train_as_one_process_does(name: str, family: str, pools: Pools) -> None:
    made = small(family, 4, 1).model
    found = PLANNERS[name].plan(problem_of(made.graph, "a100x4", samples=made.graph.samples))
    assert found.plan is not None
    assert why_not(found.plan, made.graph) is None
    result = made.check(found.plan, pools(4))
    assert result.equal, result.problems[:5]
