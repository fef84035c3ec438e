"""All plans of a simple kind for a small problem: nobody may prove a bound above the best of them.

Consecutive stages of whole layers and whole blocks of a run, each on as many devices as the others, samples cut over those; gpipe or 1f1b; every
number of micro-batches that divides the batch; recompute none or all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

from ..cluster.model import Mesh
from ..graph.ir import Graph
from ..plan.lookup import stage_ops
from ..plan.model import Cut, OpSharding, Plan, Schedule, Stage
from ..plan.problem import Problem
from ..planners._layers import Layers, layers_of


def all_plans(problem: Problem) -> Iterator[Plan]:
    """Every plan of the family, in a fixed order."""
    graph, samples, count = problem.graph, problem.recipe.samples, problem.cluster.count
    layers = _whole_blocks(layers_of(graph))
    shardings = _by_samples(graph)
    for depth in range(1, min(count, len(layers)) + 1):
        copies = count // depth
        if copies * depth != count or samples % copies:
            continue
        per_copy = samples // copies
        for cut in combinations(range(1, len(layers)), depth - 1):
            bare = _stages(layers, (*cut, len(layers)), copies, shardings)
            again = [_recomputed(graph, stage) for stage in bare]
            for m, name, stages in product(range(1, per_copy + 1), ("gpipe", "1f1b"), (bare, again)):
                # One rank runs both schedules in the order of 1f1b or holds more for nothing: one of them is enough.
                if per_copy % m == 0 and (depth > 1 or name == "1f1b"):
                    yield Plan(graph.digest, samples, tuple(stages), Schedule(name, m))


def _whole_blocks(layers: Layers) -> Layers:
    """Layers that end inside a block of a run are joined: planners of equal blocks do not cut them."""
    graph = layers.graph

    def inside(end: int) -> bool:
        return any(
            run.first < end < run.first + run.length * run.count and (end - run.first) % run.length
            for run in graph.runs
        )

    ends = tuple(end for end in layers.ends if not inside(end))
    flops = tuple(sum(op.flops for op in graph.ops[a:b]) for a, b in zip((0, *ends), ends))
    return Layers(graph, ends, flops)


def _stages(layers: Layers, ends: tuple[int, ...], copies: int, shardings: dict[str, OpSharding]) -> list[Stage]:
    stages = []
    for s, (first, stop) in enumerate(zip((0, *ends), ends)):
        devices = range(s * copies, (s + 1) * copies)
        mesh = Mesh(devices, ("dp",), (copies,)) if copies > 1 else Mesh(devices, ("dp",), (1,))
        stages.append(Stage(layers.entries(first, stop), mesh, shardings))
    return stages


def _by_samples(graph: Graph) -> dict[str, OpSharding]:
    found = {}
    for op in graph.ops:
        factor = next((factor.name for factor in op.rule.factors if factor.samples), None)
        if factor is not None:
            found[op.name] = OpSharding({factor: (Cut("dp"),)})
    return found


def _recomputed(graph: Graph, stage: Stage) -> Stage:
    ops = frozenset(graph.ops[graph.representative[i]].name for i in stage_ops(graph, stage))
    return Stage(stage.ops, stage.mesh, stage.shardings, recompute=ops)
