"""Gradients of products cut otherwise than their ops, at random: loss, gradients and collectives are those of one process."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from execute.conftest import Model, Pools, model_of, zoo_model
from execute.layouts import Layout, plan_of
from execute.random_plans import random_plan, random_rest, random_storage, with_gradients
from meshwright.execute import refusals, why_not
from meshwright.lower.program import Program
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage

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
    return with_gradients(replace(plan, stages=(stage,)), model.graph, seed, uneven=uneven)


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


@pytest.mark.parametrize("family", ["gpt2", "llama-3.1-8b"])
def test_of_whole_models(family: str, pools: Pools) -> None:
    """Blocks that are written out, and blocks that stand once."""
    model = zoo_model(family)
    layouts = [Layout(dp=2, tp=2), Layout(dp=2, tp=2, zero=3, recompute="full"), Layout(dp=4, zero=2)]
    plans = [with_gradients(plan_of(model.graph, layout, 2), model.graph, k) for k, layout in enumerate(layouts)]
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
                torch.testing.assert_close(grad, islands.gradients[key], rtol=2e-5, atol=2e-7)


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


def test_what_cannot_be_computed_apart_is_refused_in_a_sentence() -> None:
    model = products(16, 8)
    graph = model.graph
    base = random_plan(graph, (2,), ("x",), 2, 0)
    (stage,) = base.stages

    def said(op: str, own: OpSharding) -> list[str]:
        plan = replace(base, stages=(Stage(stage.ops, stage.mesh, {op: own}),))
        return [r.sentence for r in refusals(plan, graph) if r.reason == "backward"]

    soft = next(op for op in graph.ops if "softmax" in op.kind)
    free = next(f.name for f in soft.rule.factors if f.kind == "free")
    (sentence,) = said(soft.name, OpSharding(backward={0: {free: (Cut("x"),)}}))
    assert f'"{soft.name}" ({soft.kind}) is no product, so its gradients cannot be computed apart' in sentence
    assert said(soft.name, OpSharding({free: (Cut("x"),)}, backward={0: {free: (Cut("x"),)}})) == []  # that is the dual
    conv = next(op for op in graph.ops if op.kind.startswith("conv"))
    window = next(f.name for f in conv.rule.factors if f.kind == "halo")
    batch = next(f.name for f in conv.rule.factors if f.kind == "free")
    (sentence,) = said(conv.name, OpSharding({batch: (Cut("x"),)}, backward={1: {window: (Cut("x"),)}}))
    assert f'has a gradient cut along "{window}", a window' in sentence
    (sentence,) = said(conv.name, OpSharding({window: (Cut("x"),)}, backward={1: {batch: (Cut("x"),)}}))
    assert "is cut along its windows" in sentence
