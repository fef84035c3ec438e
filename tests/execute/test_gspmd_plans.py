"""Plans of propagated annotations compute what one process computes: every recipe, and annotations drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from execute.conftest import Model, Pools, model_of, zoo_model
from meshwright.cluster import resolve as cluster_of
from meshwright.cluster.model import Mesh
from meshwright.cost import Analytic
from meshwright.execute import verify
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve
from meshwright.plan.model import Cut, Layout, Plan
from meshwright.plan.problem import Annotation, Problem, Recipe
from meshwright.planners.gspmd import GSPMD


def planned(graph: Graph, axes: Mapping[str, int], *annotations: Annotation, **options: object) -> Plan:
    n = prod(axes.values())
    problem = Problem(
        graph, cluster_of(f"localx{n}"), Analytic(precision="float32"), Recipe(2 * graph.samples, compute_dtype="float32"),
        mesh=Mesh(range(n), tuple(axes), tuple(axes.values())), annotations=annotations,
    )  # fmt: skip
    result = GSPMD(micro_batches=2, **options).plan(problem)  # type: ignore[arg-type]
    assert result.plan is not None, result.reason
    return result.plan


RECIPES: list[tuple[str, dict[str, int], dict[str, object]]] = [
    ("dp", {"x": 4}, {}),
    ("fsdp", {"x": 4}, {}),
    ("megatron", {"x": 2, "y": 2}, {}),
    ("2d-attempt", {"x": 2, "y": 2}, {}),
    ("2d", {"x": 2, "y": 2}, {}),
    ("megatron", {"stage": 2, "y": 2}, {"pipeline": "stage"}),
]


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b"])
@pytest.mark.parametrize(("recipe", "axes", "options"), RECIPES, ids=lambda v: v if isinstance(v, str) else None)
def test_a_recipe_computes_what_one_process_computes(
    name: str, recipe: str, axes: dict[str, int], options: dict[str, object], pools: Pools
) -> None:
    model = zoo_model(name)
    result = model.check(planned(model.graph, axes, recipe=recipe, **options), pools(4))
    assert result.equal, result.problems[:3]


def test_experts_compute_what_one_process_computes(pools: Pools) -> None:
    model = zoo_model("mixtral-8x7b")
    result = model.check(planned(model.graph, {"x": 2}, recipe="moe"), pools(2))
    assert result.equal, result.problems[:3]


def test_rows_of_images_exchange_borders_and_compute_the_same(pools: Pools) -> None:
    source = resolve("unet")
    net = source.graph(2, 0, "bfloat16")
    result = verify(planned(net, {"x": 2}, recipe="spatial"), net, source, ranks=2, pool=pools(2))
    assert result.equal, result.problems[:3]


# ---- annotations at random


class Mixed(nn.Module):
    """Products, a reshape that splits and one that merges dims, a softmax, a norm, a sum of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 24)
        self.norm = nn.LayerNorm(24)
        self.qkv = nn.Linear(24, 3 * 24)
        self.out = nn.Linear(24, 24)
        self.wide = nn.Linear(24, 40)
        self.narrow = nn.Linear(40, 24)
        self.head = nn.Linear(24, 16, bias=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.table(ids)
        b, s, m = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, s, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        seen = torch.softmax(q @ k.transpose(-1, -2) / 6**0.5, -1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(b, s, m))
        x = x + self.narrow(torch.relu(self.wide(x)))
        return nn.functional.cross_entropy(self.head(x).view(-1, 16), labels.view(-1))


@cache
def mixed() -> Model:
    torch.manual_seed(0)
    real = Mixed()
    with torch.device("meta"):
        module = Mixed()
    example = {name: torch.zeros(4, 8, dtype=torch.int64, device="meta") for name in ("ids", "labels")}
    generator = torch.Generator().manual_seed(1)
    batch: list[Mapping[str, Tensor]] = [
        {name: torch.randint(16, (4, 8), generator=generator) for name in ("ids", "labels")} for _ in range(2)
    ]
    return model_of(module, example, batch, real)


def drawn(graph: Graph, axes: tuple[str, ...], seed: int) -> tuple[Annotation, ...]:
    """A third of the tensors with axes on random dims, some dims open."""
    rng = np.random.default_rng(seed)
    found = []
    for t in graph.tensors:
        if not t.shape or t.role == "buffer" or t.dtype == "bool" or rng.random() > 0.3:
            continue
        cuts: list[tuple[Cut, ...]] = [() for _ in t.shape]
        for axis in rng.permutation(axes):
            d = int(rng.integers(len(t.shape)))
            if rng.random() < 0.6 and t.shape[d] >= 8 // len(axes):
                cuts[d] = (*cuts[d], Cut(str(axis)))
        opened = tuple(d for d in range(len(t.shape)) if rng.random() < 0.5)
        found.append(Annotation(t.name, Layout(tuple(((0, own),) for own in cuts)), opened))
    return tuple(found)


@pytest.mark.parametrize(
    ("axes", "seed"),
    [
        ({"x": 1}, 0),
        ({"x": 2}, 1),
        ({"x": 3}, 2),
        ({"x": 2, "y": 2}, 3),
        ({"x": 4}, 4),
        ({"x": 2, "y": 4}, 5),
        ({"x": 8}, 6),
    ],
    ids=str,
)
def test_annotations_at_random_compute_what_one_process_computes(axes: dict[str, int], seed: int, pools: Pools) -> None:
    model = mixed()
    plan = planned(model.graph, axes, *drawn(model.graph, tuple(axes), seed))
    result = model.check(plan, pools(prod(axes.values())))
    assert result.equal, result.problems[:3]
    assert bool(result.collectives) == (prod(axes.values()) > 1)
