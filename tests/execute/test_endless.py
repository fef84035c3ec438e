"""Pipelines without a flush compute what a loop over weight versions computes, which is written out in `chain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from execute.chain import Batch, Rule, batches, by_hand, chain_model, chain_plan
from execute.conftest import Model, Pools, model_of
from execute.endless_jobs import Fed, Feed
from execute.step_jobs import Steps
from meshwright.cluster.model import Mesh
from meshwright.errors import Unsupported
from meshwright.execute.ops.params import Values
from meshwright.execute.proof import late
from meshwright.execute.proof.refusal import why_not
from meshwright.execute.ranks.device import Hardware
from meshwright.execute.ranks.mesh_groups import Groups
from meshwright.execute.step.optimizer import SGD, AdamW, MakeOptimizer
from meshwright.execute.step.runtime import Runtime
from meshwright.plan.model import Plan, Schedule, Stage, Weights

RULES = (SGD(0.5), SGD(0.3, momentum=0.9), AdamW(0.05))
CPU = Hardware(torch.device("cpu"), "gloo")
PIPEDREAM = Weights(flush=False, update_every=1)


def newest(depth: int) -> Rule:
    """Stage s has gone back through all but the last depth − 1 − s micro-batches."""
    return lambda s, k: max(0, k - (depth - 1 - s))


def entered(depth: int) -> Rule:
    return lambda s, k: max(0, k - (depth - 1))


def one_behind(m: int) -> Rule:
    return lambda s, k: max(0, k // m - 1)


def _run(model: Model, plan: Plan, rule: MakeOptimizer, given: Sequence[Sequence[Batch]], pools: Pools, settle: int = 0) -> list[Fed]:  # fmt: skip
    assert why_not(plan, model.graph) is None
    ranks = sum(len(stage.mesh.devices) for stage in plan.stages)
    return pools(ranks).run("execute.endless_jobs:fed", Feed(model.task(plan), rule, given, settle))


def _first(model: Model, depth: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    named = {t.name: model.values.whole(t) for t in model.graph.params()}
    return [(named[f"layers.{s}.weight"], named[f"layers.{s}.bias"]) for s in range(depth)]


def _equal(found: Sequence[Fed], hand_losses: Sequence[float], hand_weights: Sequence[tuple[torch.Tensor, torch.Tensor]], places: Sequence[Sequence[int]]) -> None:  # fmt: skip
    """`places`: ranks of each stage."""
    for one in found:
        assert [x for step in one.losses for x in step] == pytest.approx(hand_losses, rel=2e-5)
        assert one.norms == found[0].norms
    for s, ranks in enumerate(places):
        for rank in ranks:
            weight, bias = (found[rank].weights[f"layers.{s}.{name}"] for name in ("weight", "bias"))
            torch.testing.assert_close(weight, hand_weights[s][0], rtol=1e-4, atol=2e-6)
            torch.testing.assert_close(bias, hand_weights[s][1], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{type(r).__name__} {getattr(r, 'momentum', '')}")
@pytest.mark.parametrize("depth", [2, 4])
def test_pipedream_stashes_the_weights_of_each_forward(depth: int, rule: MakeOptimizer, pools: Pools) -> None:
    model = chain_model(depth, 3)
    given = batches(4, 3)
    found = _run(model, chain_plan(model.graph, "pipedream", 3, PIPEDREAM), rule, given, pools)
    hand = by_hand(_first(model, depth), given, newest(depth), [1] * depth, rule)
    _equal(found, hand.losses, [v[-1] for v in hand.versions], [[r] for r in range(depth)])
    for s, one in enumerate(found):
        assert max(one.alive) == depth - s  # warm-up + 1
        assert one.updates == 4
    plain = by_hand(_first(model, depth), given, lambda s, k: k, [1] * depth, rule)
    assert plain.losses[-1] != pytest.approx(hand.losses[-1], rel=1e-3)


@pytest.mark.parametrize("rule", RULES[1:], ids=lambda r: type(r).__name__)
def test_vertical_sync_reads_what_the_input_stage_had(rule: MakeOptimizer, pools: Pools) -> None:
    depth, given = 3, batches(4, 3)
    model = chain_model(depth, 3)
    plan = chain_plan(model.graph, "pipedream", 3, Weights(flush=False, update_every=1, reads="entry"))
    found = _run(model, plan, rule, given, pools)
    hand = by_hand(_first(model, depth), given, entered(depth), [1] * depth, rule)
    _equal(found, hand.losses, [v[-1] for v in hand.versions], [[r] for r in range(depth)])
    assert [max(one.alive) for one in found] == [depth] * depth


@pytest.mark.parametrize("rule", RULES[1:], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(("depth", "m"), [(2, 2), (2, 3), (4, 4)])
def test_2bw_has_two_buffers_and_is_one_update_late(depth: int, m: int, rule: MakeOptimizer, pools: Pools) -> None:
    model, given = chain_model(depth, m), batches(4, m)
    plan = chain_plan(model.graph, "2bw", m, Weights(flush=False, update_every=m, reads="previous"))
    found = _run(model, plan, rule, given, pools)
    hand = by_hand(_first(model, depth), given, one_behind(m), [m] * depth, rule)
    _equal(found, hand.losses, [v[-1] for v in hand.versions], [[r] for r in range(depth)])
    assert [max(one.alive) for one in found] == [2] * depth
    assert [one.updates for one in found] == [4] * depth


def test_without_a_stash_the_way_back_reads_the_newest_weights(pools: Pools) -> None:
    """Activations stay those of the forward."""
    depth, given, rule = 3, batches(4, 3), SGD(0.5, momentum=0.9)
    model = chain_model(depth, 3)
    plan = chain_plan(model.graph, "pipedream", 3, Weights(flush=False, update_every=1, stash=False))
    found = _run(model, plan, rule, given, pools)
    late = lambda s, k: k  # all updates of earlier micro-batches are made when k goes back  # noqa: E731
    hand = by_hand(_first(model, depth), given, newest(depth), [1] * depth, rule, late)
    _equal(found, hand.losses, [v[-1] for v in hand.versions], [[r] for r in range(depth)])
    assert [max(one.alive) for one in found] == [1] * depth
    stashed = by_hand(_first(model, depth), given, newest(depth), [1] * depth, rule)
    assert stashed.losses[-1] != pytest.approx(hand.losses[-1], rel=1e-3)


def test_a_drained_pipeline_begins_anew(pools: Pools) -> None:
    """After a drain all updates are in the weights, and versions are counted from there."""
    depth, m, given, rule = 2, 3, batches(4, 3), SGD(0.5)
    model = chain_model(depth, m)
    found = _run(model, chain_plan(model.graph, "pipedream", m, PIPEDREAM), rule, given, pools, settle=2)
    before = by_hand(_first(model, depth), given[:2], newest(depth), [1] * depth, rule)
    after = by_hand([v[-1] for v in before.versions], given[2:], newest(depth), [1] * depth, rule)
    _equal(found, before.losses + after.losses, [v[-1] for v in after.versions], [[r] for r in range(depth)])


@pytest.mark.parametrize(
    ("replicas", "m", "steps"),
    [((3, 1), 6, 3), ((1, 3), 4, 3), ((2, 2), 4, 3), ((3, 1), 4, 2), ((2, 1, 1), 3, 3)],
    ids=str,
)
def test_replicas_take_turns_and_average_each_round(
    replicas: tuple[int, ...], m: int, steps: int, pools: Pools
) -> None:
    """A round of a stage with r replicas is one update on the mean of r gradients; the last round may be short."""
    depth, rule, given = len(replicas), SGD(0.3, momentum=0.9), batches(steps, m)
    model = chain_model(depth, m)
    found = _run(model, chain_plan(model.graph, "pipedream", m, PIPEDREAM, replicas), rule, given, pools)
    total = sum(replicas)

    def reads(s: int, k: int) -> int:
        warm_up = (total - 1 - sum(replicas[:s])) // replicas[s]
        return max(0, k // replicas[s] - warm_up)

    hand = by_hand(_first(model, depth), given, reads, replicas, rule)
    places = [range(sum(replicas[:s]), sum(replicas[: s + 1])) for s in range(depth)]
    _equal(found, hand.losses, [v[-1] for v in hand.versions], places)
    assert [one.updates for one in found] == [steps] * total


def test_what_cannot_change_without_a_flush_is_refused() -> None:
    model = chain_model(2, 2)
    plan = chain_plan(model.graph, "pipedream", 2, PIPEDREAM)
    for changed, sentence in (
        (replace(plan, schedule=replace(plan.schedule, name="1f1b")), "take pipedream or 2bw"),
        (replace(plan, schedule=replace(plan.schedule, weights=Weights())), "set flush = false"),
        (replace(plan, stages=(plan.stages[0], replace(plan.stages[1], mesh=plan.stages[0].mesh))), "device 0 has several"),
    ):  # fmt: skip
        assert sentence in (why_not(changed, model.graph) or "")


def test_clipping_is_refused(pools: Pools) -> None:
    model = chain_model(2, 2)
    task = model.task(chain_plan(model.graph, "pipedream", 2, PIPEDREAM))
    with pytest.raises(Unsupported, match="leave clip out"):
        pools(2).run("execute.step_jobs:taken", Steps(task, SGD(), 1, clip=1.0))


@pytest.mark.parametrize("name", ["pipedream", "2bw"])
def test_a_run_that_goes_on_from_a_checkpoint_takes_the_same_steps(name: str, pools: Pools, tmp_path: Path) -> None:
    weights = PIPEDREAM if name == "pipedream" else Weights(flush=False, update_every=3, reads="previous")
    model = chain_model(2, 3)
    feed = Feed(model.task(chain_plan(model.graph, name, 3, weights)), AdamW(0.05), batches(5, 3), 2)
    payload = feed, str(tmp_path / "saved")
    went_on = pools(2).run("execute.endless_jobs:saved", payload)
    assert pools(2).run("execute.endless_jobs:resumed", payload) == went_on
    assert len(went_on[0]) == 3


def test_verify_finds_a_version_that_is_read_wrongly(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that reads the newest weights everywhere is not what PipeDream computes."""
    model = chain_model(2, 3)
    plan = chain_plan(model.graph, "pipedream", 3, PIPEDREAM)
    task = replace(model.task(plan), batch=[one for step in batches(3, 3) for one in step])
    assert late.check(task, model.module, pools(2)).problems == ()
    monkeypatch.setattr(late, "version_read", lambda reads, worker, entry, i: i)
    found = late.check(task, model.module, pools(2))
    assert not found.equal and "in update" in found.problems[-1]


class Parabola(nn.Module):
    """f(w) = (w x)² / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((self.w * x).square() / 2).mean()


def test_delayed_descent_of_a_parabola_is_that_of_the_paper() -> None:
    """w(t + 1) = w(t) − 0.1 · w(t − 1) from 1 on."""
    one = {"x": torch.ones(1, 1)}
    with torch.device("meta"):
        module, inputs = Parabola(), {"x": torch.zeros(1, 1)}
    model = model_of(module, inputs, [one], Parabola())
    stage = Stage(tuple(op.name for op in model.graph.ops), Mesh((0,), (), ()))
    weights = Weights(flush=False, update_every=1, reads="previous")
    plan = Plan(model.graph.digest, 1, (stage,), Schedule("2bw", 1, {}, (), weights))
    values = Values(0, given={"w": torch.ones(1)})
    runtime = Runtime(model.program(plan), model.graph, plan, values, {}, SGD(0.1), CPU, Groups())
    found = []
    for _ in range(5):
        runtime.train_step([one])
        found.append(float(runtime.masters[0, "w"].detach()))
    assert found == pytest.approx([0.9, 0.8, 0.71, 0.63, 0.559], rel=1e-6)
