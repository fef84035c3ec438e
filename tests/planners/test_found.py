"""Found, not told: planners that search every cut of every op find the experts' layouts, or what the simulator prices lower."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import inf, prod

import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cluster.model import Mesh
from meshwright.cost.analytic import Analytic
from meshwright.errors import InputError
from meshwright.export.outcome import export
from meshwright.export.registry import load
from meshwright.graph.ir import Graph
from meshwright.plan.lookup import stage_ops
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.plan.problem import Limits, Problem, Recipe
from meshwright.planners import _alpa_model, registry
from meshwright.planners.alpa import Alpa
from meshwright.planners.grid import Grid
from meshwright.simulate import simulate
from meshwright.simulate.fits import fits

SEARCHERS = ("alpa", "pase", "tensoropt")
STATE = 18.0
"""Bytes of a parameter: bf16 weight, float32 gradient, master copy and two moments."""


@lru_cache(maxsize=2)
def graph(name: str, seq: int, blocks: int) -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    return resolve(name).graph(
        batch=2, seq=seq, dtype="bfloat16", shrink=Shrink(blocks=blocks, dropout=0.0), cache=False
    )


def seconds(problem: Problem, **fix: int) -> float:
    """The best expert layout of one kind, as simulated; inf if there is none or none fits."""
    try:
        found = Grid(fix={"pp": 1, **fix}, allow={"recompute": ["none"]}, top=1).plan(problem)
    except InputError:
        return inf
    return found.objective if found.plan is not None else inf


@pytest.mark.parametrize("name", SEARCHERS)
def test_one_sequence_on_one_node_is_cut_as_megatron_cuts_it_or_better(name: str) -> None:
    """A batch of one cannot be cut over samples, and the whole state does not fit."""
    gpt = graph("gpt2-medium", 1024, 1)
    cluster = cluster_of("h100x8")
    state = STATE * sum(prod(t.shape) for t in gpt.params())
    memory = (0.7 * state + Analytic().workspace(cluster.types[0])) / 0.9
    problem = Problem(gpt, cluster, Analytic(), Recipe(1), limits=Limits(memory=memory, keep_free=0.1 * memory))
    assert seconds(problem, tp=1) == inf
    plan = registry.load(name).plan(problem).plan
    assert plan is not None
    assert fits(problem, plan) is None
    assert simulate(problem, plan, detail=False).step_seconds <= seconds(problem, tp=8) * (1 + 1e-9)


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_layout_that_is_found_is_written_for_a_trainer_as_if_it_had_been_asked_for(name: str) -> None:
    """Whatever they call their axes, and though they speak of every op of every block."""
    llama = graph("llama-3.1-8b", 1024, 2)
    problem = Problem(llama, cluster_of("h100x8"), Analytic(), Recipe(1))
    plan = registry.load(name).plan(problem).plan
    assert plan is not None
    assert "tp" not in plan.stages[0].mesh.axes
    found = export(load("megatron"), problem, plan)
    assert found.runs.point.words() == "tp8"
    assert found.level == "exact", found.sentences
    assert simulate(problem, plan, detail=False).step_seconds == pytest.approx(seconds(problem, tp=8), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHERS)
def test_experts_are_dealt_where_that_is_best_by_far(name: str) -> None:
    moe = graph("mixtral-8x7b", 1024, 2)
    problem = Problem(moe, cluster_of("h100x8"), Analytic(), Recipe(8))
    experts = seconds(problem, ep=8)
    assert 1.05 * experts <= min(seconds(problem, tp=8), seconds(problem, dp=8))
    plan = registry.load(name).plan(problem).plan
    assert plan is not None
    assert simulate(problem, plan, detail=False).step_seconds <= experts * (1 + 1e-9)


@pytest.mark.slow
def test_alpa_is_no_slower_than_the_solution_that_its_authors_stored_for_a_wide_resnet() -> None:
    """4 billion parameters on two hosts of eight V100, 32 micro-batches, 16 layers: 5, 4 and 7 of them on 4, 4 and 8 devices,
    the batch cut over each (methods file, stored solutions). Both priced by the simulator; recomputation is in neither."""
    torch = pytest.importorskip("torch")
    from meshwright.graph.capture import capture
    from meshwright.graph.zoo._wide_resnet_net import WideResNet

    with torch.device("meta"):
        net = WideResNet(depths=(3, 4, 6, 3), widen=2, stem=496, classes=1024).train()
    data = {
        "pixel_values": torch.zeros(2, 3, 224, 224, device="meta"),
        "labels": torch.zeros(2, dtype=torch.int64, device="meta"),
    }
    net50 = capture(net, data, 2)
    recipe = Recipe(1536, param_dtype="float32", compute_dtype="float32")
    problem = Problem(net50, cluster_of("v100x16"), Analytic(), recipe)
    layers = _alpa_model.layers_of(net50, _alpa_model.Choices(16, 32, "all", 0.5, 1.0))
    stages = []
    for (first, stop), devices in zip(((0, 5), (5, 9), (9, 16)), (range(4), range(4, 8), range(8, 16)), strict=True):
        stage = Stage(layers.entries(first, stop), Mesh(devices, ("data",), (len(devices),)))
        cuts = {
            op.name: OpSharding({f.name: (Cut("data"),)})
            for op in (net50.ops[i] for i in stage_ops(net50, stage))
            for f in op.rule.factors[:1]
            if f.samples
        }
        stages.append(replace(stage, shardings=cuts))
    stored = Plan(net50.digest, 1536, tuple(stages), Schedule("1f1b", 32))
    found = Alpa(layers=16, micro_batches=32).plan(problem).plan
    assert found is not None
    seconds = [simulate(problem, plan, detail=False).step_seconds for plan in (found, stored)]
    assert seconds[0] <= seconds[1]
