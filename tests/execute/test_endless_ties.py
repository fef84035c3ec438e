"""A weight that several stages hold, without a flush: every use reads the version of the first stage's rule. The truth is a loop
over lists of versions, written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from execute.chain import SAMPLES, WIDTH, Batch, Chain, batches, chain_plan, layers
from execute.conftest import Model, Pools, model_of, zoo_model
from execute.endless_jobs import Fed, Feed
from execute.layouts import Layout, plan_of
from meshwright.cluster.model import Mesh
from meshwright.execute.proof import late
from meshwright.execute.proof.refusal import why_not
from meshwright.execute.step.optimizer import SGD, AdamW, MakeOptimizer
from meshwright.plan.model import Plan, Stage, Weights
from meshwright.planners._profile import by_samples

DEPTH, TIED = 3, "layers.0.weight"
PIPEDREAM = Weights(flush=False, update_every=1)


class Tied(Chain):
    """The last layer multiplies with the first one's matrix."""

    def __init__(self) -> None:
        super().__init__(DEPTH)
        self.layers[-1].weight = self.layers[0].weight


@cache
def _model(micro_batches: int) -> Model:
    (batch,) = batches(1, micro_batches)
    with torch.device("meta"):
        module, inputs = Tied(), {n: torch.zeros(SAMPLES, WIDTH) for n in ("x", "t")}
    return model_of(module, inputs, list(batch), Tied())


@dataclass
class Hand:
    losses: list[float]
    weights: dict[str, Tensor]


def _by_hand(model: Model, steps: Sequence[Sequence[Batch]], reads: Callable[[int, int], int], every: Sequence[int], rule: MakeOptimizer) -> Hand:  # fmt: skip
    """`reads`: (stage, micro-batch) -> version; `every`: micro-batches of an update, a stage."""
    stage = {f"layers.{s}.bias": s for s in range(DEPTH)} | {f"layers.{s}.weight": s for s in range(DEPTH - 1)}
    masters = {n: nn.Parameter(model.values.whole(model.graph.tensor[n]).clone()) for n in stage}
    optimizers = {n: rule([p]) for n, p in masters.items()}
    versions = {n: [p.detach().clone()] for n, p in masters.items()}
    sums = {n: torch.zeros_like(p) for n, p in masters.items()}
    stream, losses = [one for step in steps for one in step], []
    for k, one in enumerate(stream):
        w = {n: versions[n][reads(s, k)].clone().requires_grad_() for n, s in stage.items()}
        x = one["x"]
        for s in range(DEPTH):
            x = torch.tanh(x @ w[TIED if s == DEPTH - 1 else f"layers.{s}.weight"].T + w[f"layers.{s}.bias"])
        loss = (x - one["t"]).square().mean()
        losses.append(float(loss.detach()))
        for n, grad in zip(w, torch.autograd.grad(loss, list(w.values())), strict=True):
            sums[n] += grad
            if (k + 1) % every[stage[n]] == 0 or k + 1 == len(stream):
                masters[n].grad = sums[n] / (k % every[stage[n]] + 1)
                optimizers[n].step()
                versions[n].append(masters[n].detach().clone())
                sums[n] = torch.zeros_like(masters[n])
    return Hand(losses, {n: v[-1] for n, v in versions.items()})


def _equal(found: Sequence[Fed], hand: Hand) -> None:
    seen = set()
    for one in found:
        assert [x for step in one.losses for x in step] == pytest.approx(hand.losses, rel=2e-5)
        assert one.norms == found[0].norms
        for name, x in one.weights.items():
            seen.add(name)
            torch.testing.assert_close(x, hand.weights[name], rtol=1e-4, atol=2e-6)
    assert seen == hand.weights.keys()
    assert sum(TIED in one.weights for one in found) > 1


def _run(model: Model, plan: Plan, rule: MakeOptimizer, given: Sequence[Sequence[Batch]], pools: Pools) -> list[Fed]:
    assert why_not(plan, model.graph) is None
    ranks = len({d for stage in plan.stages for d in stage.mesh.devices})
    return pools(ranks).run("execute.endless_jobs:fed", Feed(model.task(plan), rule, given))


CASES = {
    "newest": ("pipedream", 3, PIPEDREAM, (1, 1, 1), lambda s, k: max(0, k - (DEPTH - 1 - s))),
    "entry": ("pipedream", 3, replace(PIPEDREAM, reads="entry"), (1, 1, 1), lambda s, k: max(0, k - (DEPTH - 1))),
    "2bw": ("2bw", 3, Weights(flush=False, update_every=3, reads="previous"), (3, 3, 3), lambda s, k: max(0, k // 3 - 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_all_uses_read_the_version_of_the_first_stage(name: str, pools: Pools) -> None:
    schedule, m, weights, every, reads = CASES[name]
    model, given, rule = _model(m), batches(4, m), AdamW(0.05)
    found = _run(model, chain_plan(model.graph, schedule, m, weights), rule, given, pools)
    _equal(found, _by_hand(model, given, reads, every, rule))
    if name == "newest":  # the last stage's own rule would read its newest matrix, which is another one
        wrong = _by_hand(model, given, lambda s, k: k, every, rule)
        assert wrong.losses[-1] != pytest.approx(found[0].losses[-1][-1], rel=1e-3)


def test_replicas_of_both_stages_take_turns(pools: Pools) -> None:
    """Rounds of two micro-batches on the first and the last stage, of one in the middle."""
    replicas, m, rule = (2, 1, 2), 4, SGD(0.3, momentum=0.9)
    model, given = _model(m), batches(3, m)
    warm_up = [(sum(replicas) - 1 - sum(replicas[:s])) // n for s, n in enumerate(replicas)]
    found = _run(model, chain_plan(model.graph, "pipedream", m, PIPEDREAM, replicas), rule, given, pools)
    hand = _by_hand(model, given, lambda s, k: max(0, k // replicas[s] - warm_up[s]), replicas, rule)
    _equal(found, hand)
    assert sum(TIED in one.weights for one in found) == 4


def test_stages_of_unequal_meshes_hold_it(pools: Pools) -> None:
    m, rule = 3, SGD(0.3)
    model, given = _model(m), batches(3, m)
    plan = chain_plan(model.graph, "pipedream", m, PIPEDREAM)
    cut = by_samples(model.graph, "data")
    own = layers(model.graph)
    stages = (Stage(own[0], Mesh((0, 1), ("data",), (2,)), cut), *(Stage(own[s], Mesh((s + 1,), ("data",), (1,)), cut) for s in (1, 2)))  # fmt: skip
    found = _run(model, replace(plan, stages=stages), rule, given, pools)
    _equal(found, _by_hand(model, given, lambda s, k: max(0, k - (DEPTH - 1 - s)), (1, 1, 1), rule))


def test_a_run_goes_on_from_a_checkpoint(pools: Pools, tmp_path: Path) -> None:
    """Its optimizer state is that of the stage that keeps the weight."""
    model = _model(3)
    feed = Feed(model.task(chain_plan(model.graph, "pipedream", 3, PIPEDREAM)), AdamW(0.05), batches(5, 3), 2)
    payload = feed, str(tmp_path / "saved")
    went_on = pools(3).run("execute.endless_jobs:saved", payload)
    assert pools(3).run("execute.endless_jobs:resumed", payload) == went_on


def test_tied_embeddings_are_verified(pools: Pools) -> None:
    model = zoo_model("gpt2", micro_batches=6)
    plan = plan_of(model.graph, Layout(pp=2), 2)
    plan = replace(plan, schedule=replace(plan.schedule, name="pipedream", weights=PIPEDREAM))
    assert why_not(plan, model.graph) is None
    assert late.check(model.task(plan), model.module, pools(2)).problems == ()


def test_unequal_numbers_of_replicas_are_refused() -> None:
    model = _model(4)
    plan = chain_plan(model.graph, "pipedream", 4, PIPEDREAM, (2, 1, 1))
    assert why_not(plan, model.graph) == (
        "layers.0.weight is in stages 0 and 2, whose 2 and 1 replicas change it after other numbers of micro-batches without "
        "a flush: give them equally many, or one stage"
    )
