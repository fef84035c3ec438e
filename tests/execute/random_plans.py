"""Random legal plans: each op and each axis a random legal cut."""

from __future__ import annotations

import random
from math import prod

from meshwright.cluster.model import Mesh
from meshwright.graph.ir import Graph, Op
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage

LEGAL = ("free", "stat")


def random_sharding(op: Op, mesh: Mesh, rng: random.Random, uneven: bool) -> OpSharding:
    left = {f.name: f.size for f in op.rule.factors if f.kind in LEGAL}
    cuts: dict[str, tuple[Cut, ...]] = {}
    for axis in rng.sample(mesh.axes, len(mesh.axes)):
        n = mesh.size(axis)
        fit = [name for name, size in left.items() if (size >= n if uneven else size % n == 0)]
        if fit and rng.random() < 0.8:
            name = rng.choice(fit)
            left[name] = -(-left[name] // n)
            cuts[name] = (*cuts.get(name, ()), Cut(axis))
    return OpSharding(cuts)


def random_plan(
    graph: Graph, shape: tuple[int, ...], axes: tuple[str, ...], micro_batches: int, seed: int, *, uneven: bool = False
) -> Plan:
    rng = random.Random(seed)
    mesh = Mesh(range(prod(shape)), axes, shape)
    shardings = {op.name: random_sharding(op, mesh, rng, uneven) for op in graph.ops}
    stage = Stage(tuple(op.name for op in graph.ops), mesh, shardings)
    return Plan(graph.digest, graph.samples * micro_batches, (stage,), Schedule("gpipe", micro_batches))
