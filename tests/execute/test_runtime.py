"""Steps under a plan report and do what a loop on one process does: clipping, norms, schedulers, evaluation; sums overlap."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from execute.conftest import Model, Pools, model_of, zoo_model
from execute.layouts import Layout, plan_of
from execute.step_jobs import Left, Steps
from execute.test_dropout import Dropping
from meshwright.execute.ops.site import own_part
from meshwright.execute.proof.verification import load_values, loss_of
from meshwright.execute.ranks.mesh_groups import Groups, MeshView, ranks_of
from meshwright.execute.step.buckets import buckets_of
from meshwright.execute.step.optimizer import SGD, AdamW, MakeOptimizer

LAYOUTS = (
    Layout(dp=2),
    Layout(tp=2, sequence=True),
    Layout(dp=2, zero=1),
    Layout(dp=2, zero=2),
    Layout(dp=2, zero=3),
    Layout(pp=2),
)
MORE = (Layout(dp=2, tp=2, zero=1), Layout(dp=2, pp=2, zero=2), Layout(dp=2, tp=2, sequence=True, zero=3))
COUNT, CLIP, DECAY = 3, 0.5, 0.5


def _alone(model: Model, optimizer: MakeOptimizer, clip: float | None) -> tuple[list[float], list[float], nn.Module]:
    """(losses, norms, the module afterwards) of a plain loop."""
    module = copy.deepcopy(model.module)
    load_values(model.graph, module, model.values)
    rule = optimizer(list(module.parameters()))
    scheduler = LambdaLR(rule, lambda k: DECAY**k)
    losses, norms = [], []
    for _ in range(COUNT):
        rule.zero_grad()
        found = [loss_of(module(**one)) for one in model.batch]
        torch.stack(found).mean().backward()
        limit = float("inf") if clip is None else clip
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), limit)))
        losses.append(sum(float(x.detach()) for x in found) / len(found))
        rule.step()
        scheduler.step()
    return losses, norms, module


def _weights_equal(left: Sequence[Left], model: Model, layout: Layout, module: nn.Module) -> None:
    program = model.program(plan_of(model.graph, layout, len(model.batch)))
    named = dict(module.named_parameters(remove_duplicate=False))
    for code in program.stages:
        for device in code.mesh.devices:
            rank = ranks_of(program)[device]
            view = MeshView(code.mesh, rank, ranks_of(program), Groups())
            for p in code.params:
                want = own_part(named[p.name].detach(), p.rest, view)
                torch.testing.assert_close(left[rank].weights[code.stage, p.name], want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("layout", "rule", "clip"),
    [
        pytest.param(layout, rule, clip, id=f"{layout} {type(rule).__name__} {clip}", marks=marks)
        for layouts, marks in ((LAYOUTS, ()), (MORE, pytest.mark.slow))
        for k, layout in enumerate(layouts)
        for rule, clip in (((SGD(0.1, momentum=0.9), CLIP), (AdamW(1e-3), None)) if k % 2 else ((SGD(0.1, momentum=0.9), CLIP),))
    ],
)  # fmt: skip
def test_steps_are_those_of_a_plain_loop(layout: Layout, rule: MakeOptimizer, clip: float | None, pools: Pools) -> None:
    """GPT-2: its token embedding is tied to the head, so that pp2 holds it on both stages."""
    model = zoo_model("gpt2")
    losses, norms, module = _alone(model, rule, clip)
    if clip is not None:
        assert max(norms) > 2 * clip
    task = model.task(plan_of(model.graph, layout, len(model.batch)))
    left = pools(layout.ranks).run("execute.step_jobs:taken", Steps(task, rule, COUNT, clip, DECAY))
    for one in left:
        assert [(r.losses, r.grad_norm) for r in one.results] == [(r.losses, r.grad_norm) for r in left[0].results]
        assert all(r.finite for r in one.results)
        assert [r.loss for r in one.results] == pytest.approx(losses, rel=1e-4)
        assert [r.grad_norm for r in one.results] == pytest.approx(norms, rel=1e-3)
        assert one.results[0].grad_norm == pytest.approx(norms[0], rel=1e-5)
    if isinstance(rule, SGD):  # AdamW takes a full step where a gradient is zero but for rounding
        _weights_equal(left, model, layout, module)


def test_an_evaluation_drops_nothing_and_changes_nothing(pools: Pools) -> None:
    g = torch.Generator().manual_seed(0)
    batch = [{n: torch.randint(0, 16, (4, 8), generator=g) for n in ("tokens", "labels")} for _ in range(2)]
    with torch.device("meta"):
        module = Dropping().train()
    model = model_of(module, batch[0], batch, Dropping())
    load_values(model.graph, model.module, model.values)
    quiet = copy.deepcopy(model.module)
    for layer in quiet.modules():
        layer.eval()
    exact = [float(nn.functional.cross_entropy(_quiet(quiet, one), one["labels"].flatten())) for one in batch]
    for layout in (Layout(dp=2), Layout(tp=2)):
        task = replace(model.task(plan_of(model.graph, layout, 2)), dropout=True)
        left = pools(2).run("execute.step_jobs:taken", Steps(task, SGD(0.0), 1))
        for one in left:
            assert one.before == one.after == pytest.approx(exact, rel=1e-5)
            assert abs(one.results[0].loss - sum(exact) / 2) > 1e-3


def _quiet(module: nn.Module, one: dict[str, torch.Tensor]) -> torch.Tensor:
    x = module.embed(one["tokens"])
    q, k, v = (h.unflatten(2, (2, 4)).transpose(1, 2) for h in module.heads(x).chunk(3, 2))
    y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return module.out(x + y.transpose(1, 2).flatten(2)).flatten(0, 1)


def test_sums_begin_while_the_backward_runs(pools: Pools) -> None:
    """In a trace: all buckets but those of the first layers begin before the last backward functions do."""
    model = zoo_model("gpt2")
    for layout in (Layout(dp=2), Layout(dp=2, zero=1)):
        plan = plan_of(model.graph, layout, len(model.batch))
        task = model.task(plan)
        count = len(buckets_of(task.program.stages[0], model.graph, task.bucket_bytes))
        assert count > 3
        for buckets, backward in pools(2).run("execute.step_jobs:traced", task):
            last = buckets[-count:]  # of the last micro-batch
            assert sum(start < backward[-1] for start in last) >= count - 2
            assert sum(end > last[0] for end in backward) > len(backward) / len(model.batch) / 4


class Shifted(nn.Module):
    """A sum of a parameter and an activation of one shape: torch hands both the same gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.shift = nn.Linear(4, 4), nn.Parameter(torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.inner(x).tanh().sin() + self.shift).square().mean()


def test_a_gradient_that_is_sent_is_not_accumulated_into(pools: Pools) -> None:
    """Both stages on one rank: what the second sends is read after its next micro-batch."""
    g = torch.Generator().manual_seed(0)
    batch = [{"x": torch.randn(1, 4, generator=g)} for _ in range(3)]
    with torch.device("meta"):
        module, inputs = Shifted(), {"x": torch.zeros(1, 4)}
    model = model_of(module, inputs, batch, Shifted())
    plan = plan_of(model.graph, Layout(chunks=2, schedule="bfs"), 3)
    assert plan.stages[1].ops[0] == "add"
    assert model.check(plan, pools(1)).problems == ()
