"""Plans whose stages have meshes of different axes and lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import prod

from execute.random_plans import random_rest, random_sharding, random_storage
from meshwright.cluster.model import Mesh
from meshwright.graph.ir import Graph
from meshwright.layouts.expert import Expert
from meshwright.layouts.point import Point
from meshwright.plan.model import OpSharding, Plan, Schedule, Stage
from meshwright.plan.schedules import conditions

Shape = tuple[tuple[str, int], ...]
"""(axis, length), major first."""


def meshes_of(shapes: Sequence[Shape]) -> list[Mesh]:
    """Side by side on devices 0 …"""
    found, at = [], 0
    for shape in shapes:
        n = prod(length for _, length in shape)
        found.append(Mesh(range(at, at + n), tuple(a for a, _ in shape), tuple(length for _, length in shape)))
        at += n
    return found


def cut_ops(graph: Graph, parts: int) -> list[tuple[str, ...]]:
    """The ops in equal consecutive parts."""
    n = len(graph.ops)
    return [tuple(op.name for op in graph.ops[k * n // parts : (k + 1) * n // parts]) for k in range(parts)]


def unequal_plan(graph: Graph, shapes: Sequence[Shape], micro_batches: int, schedule: str = "1f1b") -> Plan:
    """Stages of equal parts of the ops, sharded as an expert would over the axes "dp" and "tp" that each has."""
    stages = []
    for ops, mesh in zip(cut_ops(graph, len(shapes)), meshes_of(shapes), strict=True):
        size = {"dp": mesh.size("dp"), "tp": mesh.size("tp")}
        choices = Expert(graph).choices(Point(size["dp"], size["tp"], 1, False, 1, 1, 0, "none", "1f1b").style)
        stages.append(Stage(ops, mesh, choices.shardings, choices.layouts, choices.storage))
    return Plan(graph.digest, graph.samples * micro_batches, tuple(stages), Schedule(schedule, micro_batches))


def wild_meshes_plan(graph: Graph, ranks: int, micro_batches: int, seed: int) -> Plan:
    """Everything at random, a mesh of its own for every stage: lengths, order and names of axes, cuts, what rests how."""
    rng = random.Random(f"meshes/{seed}/{ranks}")
    uneven = rng.random() < 0.4
    count = rng.choice([d for d in (2, 2, 3) if d <= ranks])
    shapes: list[Shape] = []
    left = ranks
    for k in range(count):
        size = rng.choice([n for n in (1, 2, 3, 4) if n <= left - (count - 1 - k)])
        left -= size
        shape = rng.choice({1: [(1,)], 2: [(2,), (2, 1)], 3: [(3,)], 4: [(4,), (2, 2)]}[size])
        shapes.append(tuple(zip(rng.sample("xyz", len(shape)), shape, strict=True)))
    schedule = rng.choice([s for s in ("gpipe", "1f1b", "zb-h1") if not conditions(s, count, micro_batches, 1)])
    borders = [0, *sorted(rng.sample(range(1, len(graph.ops)), count - 1)), len(graph.ops)]
    stages = []
    for k, mesh in enumerate(meshes_of(shapes)):
        own = graph.ops[borders[k] : borders[k + 1]]
        shardings: dict[str, OpSharding] = {op.name: random_sharding(op, mesh, rng, uneven) for op in own}
        reads = {t for op in own for t in (*op.inputs, *op.outputs)}
        layouts = {
            t.name: random_rest(t.shape, mesh, rng, uneven)
            for t in graph.tensors
            if t.name in reads and t.role == "activation" and t.shape and rng.random() < 0.15
        }
        held = [t for t in graph.params() if t.name in reads and rng.random() < 0.5]
        storage = {t.name: random_storage(t.shape, mesh, rng, uneven) for t in held}
        recompute = frozenset(op.name for op in own if rng.random() < rng.choice((0.0, 0.3)))
        stages.append(Stage(tuple(op.name for op in own), mesh, shardings, layouts, storage, recompute))
    return Plan(graph.digest, graph.samples * micro_batches, tuple(stages), Schedule(schedule, micro_batches))
