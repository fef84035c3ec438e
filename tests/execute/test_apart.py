"""Gradients cut otherwise than their ops, and at rest otherwise than their values: loss, gradients and collectives are those
of one process."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from execute.conftest import Model, Pools, model_of, zoo_model
from execute.layouts import Layout, plan_of
from execute.random_plans import random_plan, random_rest, random_storage, wild_plan, with_gradients
from execute.test_halo import window_model
from execute.test_twins import Pictures, Statistics, image_batch, text_batch, trained
from meshwright.execute import refusals, why_not
from meshwright.graph.ir import Graph
from meshwright.lower.program import Program
from meshwright.plan.lookup import span_entry
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.plan.model import Layout as Layout_

BATCH = 8


class Products(nn.Module):
    """Each kind of product, with and without what is added, of values read twice and of a weight read twice."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, wide), nn.Linear(wide, width, bias=False)
        self.conv = nn.Conv1d(width, wide, 3, padding=1, bias=False)
        self.grouped = nn.Conv1d(wide, 2 * wide, 1, groups=2)
        self.tied = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.ones(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[samples, positions, width]"""
        x = x + self.second(torch.relu(self.first(x)))
        scores = torch.bmm(x, x.transpose(1, 2))
        x = torch.matmul(scores.softmax(-1), x) + torch.einsum("bsd,de->bse", x, self.scale)
        x = self.tied(torch.tanh(self.tied(x)))
        x = self.grouped(self.conv(x.transpose(1, 2)))
        return x.square().mean()


@cache
def products(width: int, wide: int) -> Model:
    generator = torch.Generator().manual_seed(0)
    batch = [{"x": torch.randn(BATCH, 4, width, generator=generator)} for _ in range(2)]
    module = Products(width, wide)
    return model_of(module, batch[0], batch, module)


def apart(program: Program) -> int:
    """Gradients that are computed apart, the duals among them left out."""
    found = 0
    for stage in program.stages:
        for s in stage.segments:
            own = {i.on: i.cuts for i in s.forward if i.kind == "compute"}
            found += sum(bool(i.within) and i.kind == "compute" and i.cuts != own[i.on] for i in s.backward)
    return found


def drawn(model: Model, shape: tuple[int, ...], seed: int, *, uneven: bool) -> Plan:
    """Cuts of ops and gradients, rest of activations and parameters, and what runs again, all at random."""
    rng = random.Random(seed)
    plan = random_plan(model.graph, shape, ("x", "y")[: len(shape)], len(model.batch), seed, uneven=uneven)
    (stage,) = plan.stages
    layouts = {
        t.name: random_rest(t.shape, stage.mesh, rng, uneven)
        for t in model.graph.tensors
        if t.role == "activation" and t.shape and rng.random() < 0.3
    }
    storage = {
        t.name: random_storage(t.shape, stage.mesh, rng, uneven) for t in model.graph.params() if rng.random() < 0.5
    }
    again = frozenset(op.name for op in model.graph.ops if rng.random() < 0.3) if rng.random() < 0.5 else frozenset()
    stage = replace(stage, layouts=layouts, storage=storage, recompute=again)
    return with_gradients(replace(plan, stages=(stage,)), model.graph, seed, uneven=uneven, rest=rng.choice((0.0, 0.4)))


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
@pytest.mark.parametrize("shape", [(2,), (4,), (2, 2)], ids=str)
def test_random_gradients_are_those_of_one_process(shape: tuple[int, ...], uneven: bool, pools: Pools) -> None:
    model = products(15, 10) if uneven else products(16, 8)
    ran = made = 0
    for seed in range(8):
        plan = drawn(model, shape, seed, uneven=uneven)
        if why_not(plan, model.graph) is not None:
            continue
        program = model.program(plan)
        result = model.check(plan, pools(2 if shape == (2,) else 4), program)
        assert result.equal, (seed, result.problems[:5])
        ran, made = ran + 1, made + apart(program)
    assert ran >= 6 and made >= 6 * ran


def at_home_between_stages(plan: Plan, graph: Graph) -> Plan:
    """Without the gradients that are refused: of values that cross from stage to stage, or from block to block otherwise."""
    while wrong := {n for s in sentences(plan, graph) for n in REFUSED.findall(s)} & plan.stages[0].gradients.keys():
        stages = (replace(s, gradients={t: x for t, x in s.gradients.items() if t not in wrong}) for s in plan.stages)
        plan = replace(plan, stages=tuple(stages))
    return plan


REFUSED = re.compile(r'^the gradient of "([^"]+)"')


@pytest.mark.parametrize("name", ["gpt2", "statistics"])
def test_in_pipelines_of_any_schedule(name: str, pools: Pools) -> None:
    model = MODELS[name]()
    ran = stages = 0
    for seed in range(300, 308):
        plan = with_gradients(wild_plan(model.graph, 4, len(model.batch), seed), model.graph, seed, share=0.4, rest=0.3)
        own = plan.stages[0].gradients
        plan = replace(plan, stages=tuple(replace(s, gradients=own) for s in plan.stages))
        plan = at_home_between_stages(plan, model.graph)
        if refusals(plan, model.graph):
            continue
        result = model.check(plan, pools(4))
        assert result.equal, (seed, result.problems[:5])
        ran, stages = ran + 1, max(stages, len(plan.stages))
    assert ran >= 6 and stages >= 4


@pytest.mark.parametrize("family", ["gpt2", "llama-3.1-8b"])
def test_of_whole_models(family: str, pools: Pools) -> None:
    """Blocks that are written out, and blocks that stand once."""
    model = zoo_model(family)
    layouts = [Layout(dp=2, tp=2), Layout(dp=2, tp=2, zero=3, recompute="full"), Layout(dp=4, zero=2)]
    plans = [
        at_home_between_stages(with_gradients(plan_of(model.graph, layout, 2), model.graph, k, rest=0.3), model.graph)
        for k, layout in enumerate(layouts)
    ]
    assert all(len(plan.stages[0].gradients) > 10 for plan in plans)
    for seed, plan in enumerate([drawn(model, (2, 2), 0, uneven=False), *plans]):
        assert why_not(plan, model.graph) is None
        program = model.program(plan)
        assert apart(program) > 5
        result = model.check(plan, pools(4), program)
        assert result.equal, (seed, result.problems[:5])


def test_both_ways_of_running_a_stage_agree(pools: Pools) -> None:
    """Op by op on a tape, whose backward comes in two parts, and islands under autograd."""
    model = products(16, 8)
    for seed in range(4):
        plan = drawn(model, (2, 2), seed, uneven=False)
        for single, islands in pools(4).run("execute.stage_jobs:both", model.task(plan)):
            assert single.losses.keys() == islands.losses.keys()
            assert single.calls == single.promised and islands.calls == islands.promised
            assert single.gradients.keys() == islands.gradients.keys()
            for key, grad in single.gradients.items():
                torch.testing.assert_close(grad, islands.gradients[key], rtol=2e-5, atol=2e-6)


def test_a_pipeline_whose_backward_comes_in_two_parts(pools: Pools) -> None:
    model = products(16, 8)
    graph = model.graph
    base = drawn(model, (2,), 3, uneven=False)
    (own,) = base.stages
    names = [op.name for op in graph.ops]
    half = len(names) // 2
    stages = tuple(
        replace(own, ops=tuple(part), mesh=replace(own.mesh, devices=range(2 * k, 2 * k + 2)), recompute=frozenset())
        for k, part in enumerate((names[:half], names[half:]))
    )
    plan = Plan(graph.digest, base.samples, stages, Schedule("zb-h1", len(model.batch)))
    assert why_not(plan, graph) is None and apart(model.program(plan)) > 0
    result = model.check(plan, pools(4))
    assert result.equal, result.problems[:5]


MODELS: dict[str, Callable[[], Model]] = {
    "windows": window_model,
    "statistics": lambda: trained(Statistics, text_batch()),
    "pictures": lambda: trained(Pictures, image_batch()),
    **{
        name: partial(zoo_model, name)
        for name in ("gpt2", "llama-3.1-8b", "mixtral-8x7b", "gnmt-8", "t5-large", "bert-large", "vit-l16", "dlrm", "deepseek-v3")
    },
}  # fmt: skip
QUICK = ("windows", "statistics", "pictures", "gpt2", "gnmt-8", "mixtral-8x7b")


def anything(graph: Graph, micro_batches: int, seed: int) -> Plan:
    """Cuts of windows and statistics, of all gradients, rest of values, gradients and weights, what runs again."""
    rng = random.Random(f"anything {seed}")
    shape, legal = rng.choice([(2, 2), (4,), (2,)]), ("free", "stat", "halo")
    plan = random_plan(graph, shape, ("x", "y")[: len(shape)], micro_batches, seed, legal=legal)
    (stage,) = plan.stages
    layouts = {
        t.name: random_rest(t.shape, stage.mesh, rng, False)
        for t in graph.tensors
        if t.role == "activation" and t.shape and rng.random() < 0.2
    }
    storage = {t.name: random_storage(t.shape, stage.mesh, rng, False) for t in graph.params() if rng.random() < 0.4}
    again = frozenset(op.name for op in graph.ops if rng.random() < 0.3) if rng.random() < 0.4 else frozenset()
    plan = replace(plan, stages=(replace(stage, layouts=layouts, storage=storage, recompute=again),))
    return with_gradients(plan, graph, seed, share=rng.choice((0.2, 0.7)), rest=rng.choice((0.0, 0.3)), legal=legal)


@pytest.mark.parametrize(
    ("name", "seeds"),
    [(name, range(1, 4)) for name in QUICK] + [pytest.param(n, range(4, 14), marks=pytest.mark.slow) for n in MODELS],
    ids=str,
)
def test_every_kind_of_op_may_have_gradients_cut_otherwise(name: str, seeds: range, pools: Pools) -> None:
    model = MODELS[name]()
    ran = 0
    for seed in seeds:
        plan = anything(model.graph, len(model.batch), seed)
        refused = refusals(plan, model.graph)
        assert {r.reason for r in refused} <= {"halo"}, refused  # parts smaller than what a neighbour reads
        if not refused:
            result = model.check(plan, pools(len(plan.stages[0].mesh.devices)))
            assert result.equal, (seed, result.problems[:5])
            ran += 1
    assert ran > len(seeds) / 2


def sentences(plan: Plan, graph: Graph) -> list[str]:
    return [r.sentence for r in refusals(plan, graph) if r.reason == "backward"]


def test_what_cannot_be_computed_apart_is_refused_in_a_sentence() -> None:
    model = trained(Pictures, image_batch())
    graph = model.graph
    (stage,) = random_plan(graph, (2,), ("x",), 2, 0).stages

    def said(op: str, own: OpSharding) -> list[str]:
        return sentences(Plan(graph.digest, 8, (Stage(stage.ops, stage.mesh, {op: own}),), Schedule("gpipe", 2)), graph)

    bias = next(op for op in graph.ops if op.kind == "view" and graph.tensor[op.inputs[0]].role == "param")
    wide = next(f.name for f in bias.rule.factors if f.kind == "free")
    (sentence,) = said(bias.name, OpSharding(backward={0: {wide: (Cut("x"),)}}))
    assert f'"{bias.name}" (view) is made of parameters alone, so its gradients cannot be computed apart' in sentence
    assert said(bias.name, OpSharding({wide: (Cut("x"),)}, backward={0: {wide: (Cut("x"),)}})) == []  # that is the dual
    added = next(op for op in graph.ops if op.kind == "add" and all(t in graph.producer for t in op.inputs))
    free = next(f.name for f in added.rule.factors if f.kind == "free")
    (sentence,) = said(added.name, OpSharding(backward={0: {free: (Cut("x"),)}}))
    assert sentence == f'"{added.name}" (add) makes all of its gradients at once: cut those of operands 0, 1 alike'
    assert said(added.name, OpSharding(backward={k: {free: (Cut("x"),)} for k in (0, 1)})) == []


def test_where_gradients_cannot_rest_is_refused_in_a_sentence() -> None:
    """Of a value that another stage takes; of what the next block reads in its place, otherwise."""
    graph = zoo_model("gpt2").graph
    (stage,) = random_plan(graph, (2,), ("x",), 2, 0).stages
    run = graph.runs[0]
    into, out = graph.ops[run.first].inputs[0], graph.ops[run.first + run.length - 1].outputs[0]
    cut, whole = (Layout_(tuple(((0, (Cut("x"),) if d == k else ()),) for d in range(3))) for k in (2, 3))
    head, tail = graph.ops[: run.first], graph.ops[run.first + run.length * run.count :]
    names = [*(op.name for op in head), span_entry(run, 0, run.count), *(op.name for op in tail)]

    def said(gradients: dict[str, Layout_], border: int = 0) -> list[str]:
        parts = [names[:border], names[border:]] if border else [names]
        meshes = [replace(stage.mesh, devices=range(2 * k, 2 * k + 2)) for k in range(len(parts))]
        stages = tuple(Stage(tuple(ops), m, gradients=gradients) for ops, m in zip(parts, meshes, strict=True))
        return sentences(Plan(graph.digest, 8, stages, Schedule("gpipe", 2)), graph)

    assert said({into: cut, out: cut}) == said({out: cut}) == []
    (sentence,) = said({into: whole, out: cut})
    assert sentence == (
        f'the gradient of "{into}" rests otherwise than that of "{out}", which the next block reads in its place: say both alike'
    )
    (sentence,) = said({into: cut, out: cut}, run.first)
    assert (
        sentence
        == f'the gradient of "{into}" goes to another stage, so it rests as the value does: leave its gradients out'
    )
