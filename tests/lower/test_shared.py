"""What a stage keeps for its backward is what eager torch saves, each storage once: folded or written out, cut or not."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from meshwright.cluster.model import Mesh
from meshwright.graph.blocks import with_runs
from meshwright.graph.capture import capture
from meshwright.graph.ir import Graph
from meshwright.graph.saved import alias_roots
from meshwright.lower import lower, unrolled
from meshwright.lower.program import Program
from meshwright.plan.lookup import stage_ops
from meshwright.plan.model import Plan, Schedule, Stage
from meshwright.plan.problem import Recipe

SAMPLES, WIDTH = 4, 8
Make = Callable[[], nn.Module]


class Chain(nn.Module):
    """Blocks that end in an op that saves its result and begin with one that saves its operand."""

    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
            if self.view:
                x = x.view(-1, 2, WIDTH // 2).flatten(1)
        return x.square().mean()


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, y: Tensor, memory: Tensor) -> Tensor:
        return self.own(y).tanh() + self.other(memory)


class Attended(nn.Module):
    """Blocks that all read one value, which the first may read twice."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Attending() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        memory = self.first(x).tanh()
        y = memory if self.twice else x.tanh()
        for block in self.blocks:
            y = block(y, memory)
        return y.square().mean()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.b(self.a(x).relu())).relu()


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual() for _ in range(4)))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3))).square().mean()


MODELS: Mapping[str, tuple[Make, tuple[int, ...]]] = {
    "chain": (Chain, (SAMPLES, WIDTH)),
    "views": (lambda: Chain(view=True), (SAMPLES, WIDTH)),
    "attended": (lambda: Attended(twice=False), (SAMPLES, WIDTH)),
    "attended twice": (lambda: Attended(twice=True), (SAMPLES, WIDTH)),
    "resnet": (ResNet, (SAMPLES, 3, 8, 8)),
}


def graph_of(name: str) -> Graph:
    make, shape = MODELS[name]
    with torch.device("meta"):
        return with_runs(capture(make(), {"x": torch.zeros(*shape)}, SAMPLES))


def saved(name: str) -> int:
    """Bytes of the distinct storages that autograd holds, parameters apart."""
    make, shape = MODELS[name]
    module = make()
    rest = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        alive.append(t)  # so that no address is given out twice
        storage = t.untyped_storage()
        if storage.data_ptr() not in rest:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(torch.randn(*shape))
    return sum(found.values())


def plan_of(graph: Graph, stages: int) -> Plan:
    """Stages of about equally many blocks."""
    parts: list[str] = []
    at = 0
    for r in graph.runs:
        parts += [op.name for op in graph.ops[at : r.first]]
        parts += [f"{r.name}[{k}:{k + 1}]" for k in range(r.count)]
        at = r.first + r.length * r.count
    parts += [op.name for op in graph.ops[at:]]
    cuts = [len(parts) * s // stages for s in range(stages + 1)]
    made = [Stage(joined(parts[a:b]), Mesh((s,), ("data",), (1,))) for s, (a, b) in enumerate(pairwise(cuts))]
    return Plan(graph.digest, SAMPLES, tuple(made), Schedule("1f1b", 1))


def written_out(graph: Graph, plan: Plan) -> Plan:
    """The same with the name of each op."""
    stages = (replace(s, ops=tuple(graph.ops[i].name for i in stage_ops(graph, s))) for s in plan.stages)
    return replace(plan, stages=tuple(stages))


def joined(parts: list[str]) -> tuple[str, ...]:
    """Blocks of a run that follow each other as one entry."""
    found: list[str] = []
    for part in parts:
        head, _, span = part.rpartition("[")
        last, _, before = found[-1].rpartition("[") if found else ("", "", "")
        if head and last == head:
            found[-1] = f"{head}[{before.split(':')[0]}:{span.split(':')[1]}"
        else:
            found.append(part)
    return tuple(found)


def kept(program: Program) -> list[float]:
    """Bytes of each stage."""
    found = []
    for stage in program.stages:
        total = 0.0
        for s in stage.segments:
            for fixed, each in (s.kept.activations, s.kept.loss):
                total += s.count * (fixed + each * program.local_samples(stage.mesh, s.samples))
        found.append(total)
    return found


def lowered(graph: Graph, plan: Plan) -> Program:
    return lower(graph, plan, Recipe(plan.samples, compute_dtype="float32", fused=False))


@pytest.mark.parametrize("name", MODELS)
def test_each_storage_is_kept_once(name: str) -> None:
    graph = graph_of(name)
    plan = plan_of(graph, 1)
    for own in (plan, written_out(graph, plan)):
        program = lowered(graph, own)
        assert kept(program) == [saved(name)]
        assert kept(unrolled(program, graph)) == [saved(name)]


def by_stage(graph: Graph, plan: Plan) -> list[float]:
    """Bytes of the distinct storages that the ops of each stage save."""
    root = alias_roots(graph)
    found = []
    for stage in plan.stages:
        storages = {root[t] for i in stage_ops(graph, stage) for t in graph.ops[i].saved}
        found.append(sum(graph.tensor[t].nbytes for t in storages if graph.tensor[t].role != "param"))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_what_a_stage_keeps_of_another_is_its_own(name: str) -> None:
    graph = graph_of(name)
    for stages in (1, 2, 3, 4):
        plan = plan_of(graph, stages)
        folded, by_op = (kept(lowered(graph, own)) for own in (plan, written_out(graph, plan)))
        assert folded == by_op == by_stage(graph, plan)


def test_a_lowered_graph_travels_without_what_lowering_keeps_of_it(small: Callable[[str], Graph]) -> None:
    graph = small("gpt2")
    plan = Plan(graph.digest, 2, (Stage(tuple(op.name for op in graph.ops), Mesh((0,))),))
    lower(graph, plan, Recipe(2))
    assert "_lowering" in graph.__dict__
    other = pickle.loads(pickle.dumps(graph))
    assert "_lowering" not in other.__dict__
    assert other.digest == graph.digest and other.ops == graph.ops
