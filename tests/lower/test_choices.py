"""One entry an op, whatever names the stages use: of representatives, of single blocks, for stages that say different things."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from meshwright.cluster.model import Mesh
from meshwright.errors import Unsupported
from meshwright.graph.blocks import with_runs
from meshwright.graph.capture import capture
from meshwright.graph.ir import Graph
from meshwright.lower import lower
from meshwright.lower.program import Program, StageCode
from meshwright.plan.lookup import recomputes, stage_ops
from meshwright.plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from meshwright.plan.problem import Recipe

SAMPLES, RECIPE = 8, Recipe(8, compute_dtype="float32")


class Chain(nn.Module):
    def __init__(self, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x) if self.residual else layer(x)
        return x.square().mean()


def graph_of(residual: bool) -> Graph:
    graph = with_runs(capture(Chain(residual), {"x": torch.zeros(SAMPLES, 8)}, SAMPLES))
    assert [(r.name, r.count) for r in graph.runs] == [("layers", 4)]
    return graph


GRAPHS: Mapping[bool, Graph] = {residual: graph_of(residual) for residual in (False, True)}


def plan_of(graph: Graph, stages: list[tuple[tuple[int, int], frozenset[str]]], mesh: int = 1) -> Plan:
    """Stages of (blocks, recomputed ops); what is in front of the run and behind it is with the first and the last."""
    (run,) = graph.runs
    names = [op.name for op in graph.ops]
    found = []
    for k, ((a, b), again) in enumerate(stages):
        ops = [f"{run.name}[{a}:{b}]"]
        if k == 0:
            ops = [*names[: run.first], *ops]
        if k == len(stages) - 1:
            ops += names[run.first + run.length * run.count :]
        found.append(Stage(tuple(ops), Mesh(range(k * mesh, (k + 1) * mesh), ("t",), (mesh,)), recompute=again))
    return Plan(graph.digest, SAMPLES, tuple(found), Schedule("gpipe", 1))


def written_out(graph: Graph, stage: Stage) -> Stage:
    """Every op, and every entry, under its own name: read off the definition in plan/lookup."""
    ops = stage_ops(graph, stage)
    again = frozenset(graph.ops[i].name for i in ops if recomputes(graph, stage, i))
    return replace(stage, ops=tuple(graph.ops[i].name for i in ops), recompute=again)


def facts(code: StageCode) -> tuple[float, float, int, int]:
    """(bytes a sample kept, made again), ops run forward, run again."""
    kept = sum(s.count * s.kept.activations[1] for s in code.segments)
    rerun = max(s.kept.rerun[1] for s in code.segments)
    forward = sum(s.count * sum(i.kind == "compute" for i in s.forward) for s in code.segments)
    return kept, rerun, forward, sum(s.count * sum(i.kind == "compute" for i in s.rerun) for s in code.segments)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.randoms(use_true_random=False), st.sampled_from([1, 2, 3]))
def test_folded_is_written_out_whatever_runs_again(residual: bool, rng: random.Random, count: int) -> None:
    """Stages of the same run with recomputations of their own."""
    graph = GRAPHS[residual]
    first = sorted({graph.ops[i].name for i in graph.representative})
    cuts = [0, *sorted(rng.sample([1, 2, 3], count - 1)), 4]
    sets = [frozenset(rng.sample(first, rng.choice([0, 1, 3, len(first)]))) for _ in range(count)]
    if rng.random() < 0.3:
        sets = [sets[0]] * count
    plan = plan_of(graph, [((a, b), again) for a, b, again in zip(cuts, cuts[1:], sets, strict=False)])
    plain = replace(plan, stages=tuple(written_out(graph, s) for s in plan.stages))
    a, b = lower(graph, plan, RECIPE), lower(graph, plain, RECIPE)
    assert [facts(code) for code in a.stages] == [facts(code) for code in b.stages]
    for code, stage in zip(a.stages, plan.stages, strict=True):
        if not stage.recompute:
            assert not any(s.rerun for s in code.segments)


def _sums(program: Program) -> int:
    segments = [s for code in program.stages for s in code.segments]
    return sum(s.count * sum(i.communicates for i in s.forward) for s in segments)


@pytest.mark.parametrize("how", ["folded", "at stage", "by own names", "cut inside of a block"])
def test_an_entry_of_the_first_block_speaks_for_all(how: str) -> None:
    """Each product is cut along what it sums over: one all-reduce a block, however the run is written."""
    graph = GRAPHS[False]
    (run,) = graph.runs
    linear = next(op for op in graph.ops[run.first :] if op.kind == "linear")
    (summed,) = linear.rule.summed()
    plan = plan_of(graph, [((0, 4), frozenset())], mesh=2)
    stage = replace(plan.stages[0], shardings={linear.name: OpSharding({summed: (Cut("t"),)})})
    if how == "at stage":
        block = frozenset(op.name for op in graph.ops[run.first : run.first + run.length])
        stage = replace(stage, recompute=block, recompute_at="stage")
    if how == "by own names":
        stage = replace(stage, recompute=frozenset(op.name for op in graph.ops))
    stages: tuple[Stage, ...] = (stage,)
    if how == "cut inside of a block":
        names = [graph.ops[i].name for i in stage_ops(graph, stage)]
        border = run.first + run.length + 1
        mesh = Mesh((2, 3), ("t",), (2,))
        stages = (replace(stage, ops=tuple(names[:border])), replace(stage, ops=tuple(names[border:]), mesh=mesh))
    program = lower(graph, replace(plan, stages=stages), RECIPE)
    assert _sums(program) == 4
    again = {i.on for code in program.stages for s in code.segments for i in s.rerun}
    if how == "at stage":
        assert len([name for name in again if name.endswith("relu")]) == 4
    if how == "by own names":
        assert again


def test_a_block_says_otherwise_under_its_own_name() -> None:
    graph = GRAPHS[False]
    (run,) = graph.runs
    linear = [op for op in graph.ops[run.first : run.first + run.length * run.count] if op.kind == "linear"]
    (summed,) = linear[0].rule.summed()
    plan = plan_of(graph, [((0, 4), frozenset())], mesh=2)
    cuts = {linear[2].name: OpSharding({}), linear[0].name: OpSharding({summed: (Cut("t"),)})}
    assert _sums(lower(graph, replace(plan, stages=(replace(plan.stages[0], shardings=cuts),)), RECIPE)) == 3


def test_what_the_first_mesh_says_of_its_parameters_need_not_be_possible_on_the_second(
    small: Callable[[str], Graph],
) -> None:
    """A product over heads and their width: eight devices cut the width, two the heads; the state follows the eight."""
    graph = small("llama-3.1-8b")
    (run,) = graph.runs
    name = next(op.name for op in graph.ops if op.name.endswith("o_proj/linear"))
    weight = graph.ops[graph.position[name]].inputs[1]
    rows, (heads, group, width) = 64, (4, 2, 8)
    assert graph.tensor[weight].shape == (rows, heads * group * width)
    dims = (((rows, (Cut("x"),)),), ((heads, ()), (group, ()), (width, (Cut("y"),))))
    names = [op.name for op in graph.ops]
    half = run.count // 2
    first = Stage(
        (*names[: run.first], f"{run.name}[0:{half}]"),
        Mesh(range(16), ("x", "y"), (2, 8)),
        {name: OpSharding({"k": (Cut("y"),)})},
        {},
        {weight: Storage(state=Layout(dims))},
    )
    second = Stage(
        (f"{run.name}[{half}:{run.count}]", *names[run.first + run.length * run.count :]),
        Mesh(range(16, 20), ("x", "y"), (2, 2)),
    )
    plan = Plan(graph.digest, graph.samples, (first, second), Schedule("1f1b", 1))
    program = lower(graph, plan, Recipe(graph.samples))
    held = next(p for p in program.stages[0].params if p.name == weight)
    assert held.elements[0] == rows * heads * group * width / 8 and held.elements[2] == held.elements[0] / 2
    other = replace(first, mesh=Mesh(range(16), ("x", "y"), (8, 2)))
    with pytest.raises(Unsupported, match="rests cut otherwise than what it follows from"):
        lower(graph, replace(plan, stages=(other, second)), Recipe(graph.samples))
