"""Random ways of gradients and updated parameters, run in buckets and parameter by parameter on each rank."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from meshwright.cluster.model import Mesh
from meshwright.execute.ops.params import Values
from meshwright.execute.proof.counting import Counting, bucketed
from meshwright.execute.ranks.collectives import apply
from meshwright.execute.ranks.mesh_groups import MeshView, members
from meshwright.execute.ranks.worker import Context
from meshwright.execute.step.buckets import buckets_of, joint_axes
from meshwright.execute.step.masters import Masters
from meshwright.execute.step.sums import Sums
from meshwright.lower.program import Instr, Param, Segment, StageCode
from meshwright.plan.layout import local_shape
from meshwright.plan.model import Cut, Layout

MICRO_BATCHES = 2
AXES = ("x", "y")


@dataclass(frozen=True)
class Case:
    code: StageCode
    graph: Any
    capacity: int


def case(seed: int) -> Case:
    """Parameters of any shape (empty parts too), each with its own way over a mesh of 2 × 2; segments in any order."""
    rng = random.Random(seed)
    mesh = Mesh(range(4), AXES, (2, 2))
    shapes, dtypes, params, grads, update = {}, {}, [], [], []
    style = rng.choice(
        (None, None, ("every", "every"), ("once", "once"), ("once", "none"), ("every", "sum"), ("slice", "sum"))
    )
    for k in range(rng.randint(1, 9)):
        name = f"p{k}"
        shapes[name] = tuple(rng.choice((0, 1, 2, 3, 4, 5, 8)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3))))
        dtypes[name] = rng.choice(("float32", "float32", "bfloat16"))
        param, every, once = _way(name, shapes[name], rng, style)
        params.append(param)
        grads += every
        update += once
    names = [p.name for p in params]
    rng.shuffle(names)
    cuts = sorted(rng.randint(0, len(names)) for _ in range(2))
    groups = names[: cuts[0]], names[cuts[0] : cuts[1]], names[cuts[1] :]
    segments = tuple(
        Segment("", 0, 0, 0, 1, (), (), (Instr("compute", "op", "backward", (), tuple("∂" + n for n in group)),))
        for group in groups
    )
    code = StageCode(0, mesh, segments, tuple(params), tuple(grads), tuple(update))
    described = {n: SimpleNamespace(name=n, shape=shapes[n], dtype=dtypes[n]) for n in shapes}
    return Case(code, SimpleNamespace(tensor=described), rng.choice((1, 60, 200, 10_000)))


def _layout(shape: tuple[int, ...], cuts: list[list[str]]) -> Layout:
    return Layout(tuple(((n, tuple(map(Cut, own))),) for n, own in zip(shape, cuts, strict=True)))


def _way(
    name: str, shape: tuple[int, ...], rng: random.Random, style: tuple[str, str] | None
) -> tuple[Param, list[Instr], list[Instr]]:
    cuts: list[list[str]] = [[] for _ in shape]
    left = list(AXES) if style else rng.sample(AXES, 2)
    while left and shape and not style and rng.random() < 0.3:
        cuts[rng.randrange(len(shape))].append(left.pop())
    """`style`: what is done over each axis, where it is not drawn."""
    rest, value = _layout(shape, cuts), "∂" + name
    every: list[Instr] = []
    once: list[Instr] = []
    further: list[tuple[int, str]] = []
    states = [rest]
    sums = []
    for axis in left:
        kinds = ("every", "once", "slice", "sum", "sum", "none") if shape else ("sum", "none")
        what = style[AXES.index(axis)] if style and shape else rng.choice(kinds)
        if what == "sum":
            sums.append(axis)
        if what not in ("every", "once", "slice"):
            continue
        dim = rng.randrange(len(shape))
        before = _layout(shape, cuts)
        cuts[dim].append(axis)
        after = _layout(shape, cuts)
        further.append((dim, axis))
        kind, out = ("slice", "once") if what == "slice" else ("collective", what)
        if out == "every" and once:
            out = "once"
        instr = Instr(kind, name, "update", (value,), (f"{value}.{axis}",), None if what == "slice" else "reduce_scatter",
                      (axis,), dim, -1, before, after)  # fmt: skip
        (every if out == "every" else once).append(instr)
        value = instr.outputs[0]
        states.append(after)
    state = _layout(shape, cuts)
    for axis in sums:
        once.append(Instr("collective", name, "update", (value,), (f"{value}+{axis}",), "all_reduce", (axis,), -1, -1, state, state))  # fmt: skip
        value = once[-1].outputs[0]
    once.append(Instr("update", name, "update", (value,), (name + "@new",), before=state, after=state))
    value = name + "@new"
    for dim, axis in reversed(further):
        before = _layout(shape, cuts)
        cuts[dim].pop()
        after = _layout(shape, cuts)
        once.append(Instr("collective", name, "update", (value,), (f"{value}.{axis}",), "all_gather", (axis,), dim, -1, before, after))  # fmt: skip
        value = once[-1].outputs[0]
    size = float(prod(shape))
    grad = states[len(every)]
    return Param(name, 1, rest, grad, state, tuple(sums), (size, size, size)), every, once


def _gradient(name: str, shape: tuple[int, ...], dtype: str, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed * 7919 + int(name[1:]))
    return torch.randint(-8, 9, shape, generator=g).to(getattr(torch, dtype))  # sums of these are exact


def compared(context: Context, seeds: list[int]) -> list[str]:
    """What differs between buckets and single parameters: sums, updated weights, promised and counted collectives."""
    return [f"seed {seed}: {words}" for seed in seeds for words in _compared(context, seed)]


def _compared(context: Context, seed: int) -> list[str]:
    found = case(seed)
    code, graph = found.code, found.graph
    ranks = {d: d for d in code.mesh.devices}
    coords = [code.mesh.coordinates(p) for p in range(4)]
    together = (("x",), ("y",), *joint_axes(code))
    context.groups.prepare(members(code.mesh, ranks, axes, c) for c in coords for axes in together)
    view = MeshView(code.mesh, context.rank, ranks, context.groups)
    buckets = buckets_of(code, graph, found.capacity)
    problems = [] if sorted(n for b in buckets for n in b.names) == sorted(p.name for p in code.params) else ["names"]
    rng = random.Random(seed * 31 + 5)
    sums = Sums(buckets, graph, view, torch.device("cpu"))
    whole = {p.name: torch.randn(p and graph.tensor[p.name].shape, generator=torch.Generator().manual_seed(seed)) for p in code.params}  # fmt: skip
    values = Values(0, given=whole)
    weights = Masters(code, buckets, graph, view, values, torch.device("cpu"))
    for step in range(2):
        one_by_one: dict[str, Tensor] = {}
        with Counting() as counting:
            sums.begin_step()
            batches = []
            for k in range(MICRO_BATCHES):
                sums.begin(last=k == MICRO_BATCHES - 1)
                grads = {}
                for p in code.params:
                    shape = local_shape(p.rest, graph.tensor[p.name].shape, view.mesh, view.coords)
                    number = (seed * 4 + step * 2 + k) * 4 + context.rank
                    grads[p.name] = _gradient(p.name, shape, graph.tensor[p.name].dtype, number)
                batches.append(grads)
                names = random.Random(seed + k).sample(sorted(grads), len(grads))
                left_out = set(names[:1]) if rng.random() < 0.3 and k == 0 else set()
                for name in left_out:
                    grads[name].zero_()
                for name in names:
                    if name not in left_out:
                        sums.add({name: grads[name].clone()})
                sums.end()
            got = sums.gradients()
            with torch.no_grad():
                for name, grad in got.items():
                    weights.masters[name].sub_(grad)
            weights.publish()
        promised = bucketed(code, graph, view, MICRO_BATCHES, found.capacity)
        if dict(promised) != dict(counting.calls):
            problems.append(f"promised {dict(promised)}, ran {dict(counting.calls)}")
        for p in code.params:
            one_by_one[p.name] = _alone(p.name, [b[p.name] for b in batches], code, graph, view)
            if got[p.name].dtype != torch.float32 or not torch.equal(got[p.name], one_by_one[p.name]):
                problems.append(f"step {step}: sum of {p.name}: {got[p.name]}, not {one_by_one[p.name]}")
            rest = weights.masters[p.name].detach().to(weights.params[p.name].dtype)
            for i in _after(code, p.name):
                rest = apply(i, rest, graph.tensor[p.name].shape, view)
            if not torch.equal(weights.params[p.name], rest):
                problems.append(f"step {step}: {p.name} at rest: {weights.params[p.name]}, not {rest}")
    return problems


def _alone(name: str, grads: list[Tensor], code: StageCode, graph: Any, view: MeshView) -> Tensor:
    """The instructions of the program, one parameter at a time."""
    shape = graph.tensor[name].shape
    total: Tensor | None = None
    for grad in grads:
        x = grad.to(torch.float32)
        for i in code.grads:
            if i.on == name:
                x = apply(i, x, shape, view)
        total = x if total is None else total + x
    assert total is not None
    for i in code.update:
        if i.kind == "update" and i.on == name:
            break
        if i.on == name:
            total = apply(i, total, shape, view)
    return total


def _after(code: StageCode, name: str) -> list[Instr]:
    own = [i for i in code.update if i.on == name]
    at = next(k for k, i in enumerate(own) if i.kind == "update")
    return own[at + 1 :]
