"""Dropout belongs to elements: sharding, pipelining of micro-batches and recomputation give the same masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from execute.conftest import Model, Pools
from execute.layouts import Layout, plan_of
from execute.matrix import SMALL, small
from execute.random_plans import random_plan
from meshwright.execute.ops.params import Values
from meshwright.execute.proof.verification import Answer, Reference, Task, compare, constants_of
from meshwright.graph.blocks import with_runs
from meshwright.graph.capture import capture
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.plan.model import Plan


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.heads = nn.Linear(8, 24)
        self.out = nn.Linear(8, 16)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = nn.functional.dropout(self.embed(tokens), 0.2)
        q, k, v = (h.unflatten(2, (2, 4)).transpose(1, 2) for h in self.heads(x).chunk(3, 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.2)
        x = x + nn.functional.dropout(y.transpose(1, 2).flatten(2), 0.5)
        return nn.functional.cross_entropy(self.out(x).flatten(0, 1), labels.flatten())


def _answers(model: Model, plan: Plan, ranks: int, pools: Pools) -> tuple[Task, list[Answer]]:
    task = replace(model.task(plan), dropout=True)
    return task, pools(ranks).run("meshwright.execute.proof.verification:answer", task)


def dropping_model() -> Model:
    g = torch.Generator().manual_seed(0)
    batch = [{n: torch.randint(0, 16, (4, 8), generator=g) for n in ("tokens", "labels")} for _ in range(2)]
    with torch.device("meta"):
        module = Dropping().train()
    graph = with_runs(capture(module, batch[0], 4))
    real, values = Dropping(), Values(0, "uneven")
    return Model(graph, real, values, constants_of(graph, real), tuple(batch), Reference((), {}, {}, values))


def test_masks_are_the_same_on_one_rank_and_on_four(pools: Pools) -> None:
    model = dropping_model()
    graph, values = model.graph, model.values
    _, (alone,) = _answers(model, plan_of(graph, Layout(), 2), 1, pools)
    grads = {name: g for (_, name), g in alone.gradients.items()}
    truth = Reference(tuple(alone.losses.values()), grads, dict.fromkeys(grads, 0.0), values)
    for seed in range(4):
        task, answers = _answers(model, random_plan(graph, (2, 2), ("x", "y"), 2, seed), 4, pools)
        assert compare(task, truth, answers).problems == ()
    without = pools(1).run("meshwright.execute.proof.verification:answer", model.task(plan_of(graph, Layout(), 2)))[0]
    assert abs(without.losses[0] - alone.losses[0]) > 1e-3


LAYOUTS = (
    Layout(dp=2, zero=2, recompute="light"),
    Layout(tp=2, sequence=True, recompute="full"),
    Layout(pp=2, schedule="zb-h1"),
    Layout(dp=2, tp=2, zero=3),
    Layout(cp=2, pp=2, schedule="interleaved", chunks=2),
)


@pytest.mark.parametrize(
    "layout", [pytest.param(x, id=str(x), marks=() if k == 1 else pytest.mark.slow) for k, x in enumerate(LAYOUTS)]
)
def test_gpt2_drops_the_same_elements_under_every_layout(layout: Layout, pools: Pools) -> None:
    """Against the same lowering on one rank; without dropout the losses are others."""
    source, shrink = resolve("gpt2"), Shrink(**SMALL, dropout=0.1)
    graph = source.graph(4, shrink.seq, "float32", shrink=shrink, cache=False)
    real, _ = source.build(4, shrink.seq, "float32", device="cpu", shrink=shrink, attention="eager")
    values, batch = Values(0, "uneven"), small("gpt2", 4, 2).batches[0]
    model = Model(graph, real, values, constants_of(graph, real), batch, Reference((), {}, {}, values))
    _, (alone,) = _answers(model, plan_of(graph, Layout(), 2), 1, pools)
    grads = {name: g for (_, name), g in alone.gradients.items()}
    truth = Reference(tuple(alone.losses.values()), grads, dict.fromkeys(grads, 0.0), values)
    task, answers = _answers(model, plan_of(graph, layout, 2), layout.ranks, pools)
    assert compare(task, truth, answers).problems == ()
    (without,) = pools(1).run("meshwright.execute.proof.verification:answer", model.task(plan_of(graph, Layout(), 2)))
    assert abs(without.losses[0] - alone.losses[0]) > 1e-3
