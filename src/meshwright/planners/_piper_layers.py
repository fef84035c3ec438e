"""What Piper's search sees of a problem: layers with their configurations, from a profile or from a captured model.

A captured model has two configurations a layer, one part each: keep what its ops save, or compute it again from the input
of the layer. Degrees above one need a profile, because only a profile says how a layer is split and what that costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..cost.choices import Profile
from ..errors import Unsupported
from ..graph.ir import ITEM_BYTES, Op
from ..plan.lookup import stage_ops
from ..plan.model import Plan, Stage
from ..plan.problem import Problem
from ..solvers.staged_partition import Layers, Machine, Staged, Way
from ._layers import layers_of

PLAIN, AGAIN = "vanilla", "activation recomp"
"""Configurations, as the public profiles name them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Items of the search and what they stand for."""

    layers: Layers
    ops: tuple[range, ...]
    """Per item: its ops in the graph."""
    names: tuple[dict[int, tuple[str, ...]], ...]
    """Per item and degree: names of its configurations."""
    kinds: tuple[str, ...]
    """Per item: the name that its profile gives it."""
    profiled: bool

    def entries(self, problem: Problem, items: Sequence[int]) -> tuple[str, ...]:
        """Entries of `Stage.ops`; neighbouring items of a captured model are joined, so that whole blocks stay short."""
        if self.profiled:
            return tuple(problem.graph.ops[i].name for v in items for i in self.ops[v])
        return layers_of(problem.graph).entries(items[0], items[-1] + 1)


def seen(problem: Problem, micro_batches: int) -> Seen:
    """The layers of a problem, at micro-batches of recipe.samples / micro_batches samples.

    Raises:
        Unsupported: a graph without a derived backward.
    """
    if isinstance(problem.cost, Profile):
        return _profiled(problem, problem.cost)
    if problem.graph.training != "derived":
        raise Unsupported("piper plans training: it takes a captured model or a profile with its configurations")
    return _captured(problem, micro_batches)


def machine(problem: Problem, micro_batches: int) -> Machine:
    """Devices, memory, bandwidth and micro-batches. The bandwidth is that of the last level that all devices share."""
    cluster = problem.cluster
    count = problem.limits.devices or cluster.count
    if isinstance(problem.cost, Profile):
        # The replicas of all stages are at most the micro-batches, each on as many devices as the profile has degrees.
        count = min(count, micro_batches * max(max(by) for by in problem.cost.choices.values()))
    return Machine(count, problem.limits.usable(cluster.types[0].memory), _bandwidth(problem), micro_batches)


def _bandwidth(problem: Problem) -> float:
    """Bytes/s between the two devices that are farthest apart, by the cost model."""
    cluster = problem.cluster
    if isinstance(problem.cost, Profile):
        return cluster.levels[-1].bandwidth
    if cluster.count < 2:
        return float("inf")
    probe = 2.0**28
    return probe / float(problem.cost.transfer(np.array([probe]), 0, cluster.count - 1, cluster)[0])


def _profiled(problem: Problem, cost: Profile) -> Seen:
    graph = problem.graph
    index = graph.position
    ways = tuple(
        {
            t: tuple(
                Way(
                    c.seconds, c.weights, c.stashed, c.fixed,
                    {index[k]: v for k, v in c.arriving.items()}, {index[k]: v for k, v in c.leaving.items()},
                )
                for c in choices
            )
            for t, choices in cost.choices[op.name].items()
        }
        for op in graph.ops
    )  # fmt: skip
    # In the order of the file, which orders the walk of a baseline.
    edges = {(graph.producer[name], index[reader]): record.nbytes for (name, reader), record in cost.transfers.items()}
    names = tuple({t: tuple(c.name for c in cs) for t, cs in cost.choices[op.name].items()} for op in graph.ops)
    kinds = tuple(str(dict(op.kwargs).get("name", "")) for op in graph.ops)
    return Seen(Layers(ways, edges), tuple(range(i, i + 1) for i in range(len(graph.ops))), names, kinds, True)


def _captured(problem: Problem, micro_batches: int) -> Seen:
    graph, recipe, cost = problem.graph, problem.recipe, problem.cost
    found = layers_of(graph)
    device = problem.cluster.types[0]
    samples = recipe.samples / micro_batches
    use, grads, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
    copy = master if recipe.param_dtype != recipe.compute_dtype else 0
    ways: list[dict[int, tuple[Way, ...]]] = []
    edges: dict[tuple[int, int], float] = {}
    ops = []
    for v, (first, stop) in enumerate(zip((0, *found.ends), found.ends)):
        forward = backward = kept = 0.0
        for op in graph.ops[first:stop]:
            sizes = _local(op, samples / graph.samples)
            forward += float(cost.compute(op, sizes, device, "forward")[0])
            backward += float(cost.compute(op, sizes, device, "backward")[0])
            kept += float(cost.memory(op, sizes).kept[0])
        own = {
            graph.aliases.get(t, t)
            for op in graph.ops[first:stop]
            for t in op.inputs
            if graph.tensor[t].role == "param"
        }
        elements = sum(graph.tensor[t].nbytes / ITEM_BYTES.get(graph.tensor[t].dtype, 4) for t in own)
        state = elements * (use + grads + copy + recipe.state_bytes)
        arriving = _arriving(problem, first, stop) * samples / graph.samples
        if v:
            edges[v - 1, v] = arriving
        plain = Way(forward + backward, elements * grads, kept, state)
        again = Way(2 * forward + backward, elements * grads, min(arriving, kept), state + kept)
        ways.append({1: (plain, again)})
        ops.append(range(first, stop))
    names: dict[int, tuple[str, ...]] = {1: (PLAIN, AGAIN)}
    return Seen(Layers(tuple(ways), edges), tuple(ops), (names,) * len(ways), ("",) * len(ways), False)


def _arriving(problem: Problem, first: int, stop: int) -> float:
    """Bytes at `Graph.samples` of the values made before op `first` and read by the ops of one layer."""
    graph = problem.graph
    names = {
        name
        for op in graph.ops[first:stop]
        for name in op.inputs
        if graph.producer.get(name, stop) < first or graph.tensor[name].role == "input"
    }
    return float(sum(graph.tensor[name].nbytes for name in names))


def _local(op: Op, share: float) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array([[max(1, round(f.size * share)) if f.samples else f.size for f in op.rule.factors]], np.int64)


def staged(problem: Problem, plan: Plan, found: Seen) -> tuple[Staged, ...]:
    """The stages of a plan as the search writes them.

    Raises:
        Unsupported: a stage that is no union of layers, an axis other than dp and tp, a layer recomputed in part.
    """
    home = {i: v for v, ops in enumerate(found.ops) for i in ops}
    stages = []
    for s, stage in enumerate(plan.stages):
        ops = stage_ops(problem.graph, stage)
        items = tuple(sorted({home[i] for i in ops}))
        if sum(len(found.ops[v]) for v in items) != len(ops):
            raise Unsupported(f"stage {s} cuts through a layer: piper prices stages of whole layers")
        d, t = stage.mesh.size("dp"), stage.mesh.size("tp")
        if d * t != len(stage.mesh.devices):
            raise Unsupported(f"stage {s} has mesh axes {', '.join(stage.mesh.axes)}: piper prices dp and tp")
        if any(t not in found.layers.ways[v] for v in items):
            raise Unsupported(f"stage {s} splits its layers in {t} parts, which not all of them have a price for")
        stages.append(Staged(items, d, t, tuple(_choice(problem, found, stage, v, t, s) for v in items)))
    return tuple(stages)


def _choice(problem: Problem, found: Seen, stage: Stage, v: int, t: int, s: int) -> int:
    graph = problem.graph
    if found.profiled:
        sharding = stage.shardings.get(graph.ops[found.ops[v][0]].name)
        names = found.names[v][t]
        return names.index(sharding.variant) if sharding is not None and sharding.variant in names else 0
    again = {
        i: graph.ops[i].name in stage.recompute or graph.ops[graph.representative[i]].name in stage.recompute
        for i in found.ops[v]
    }
    if any(again.values()) != all(again.values()):
        raise Unsupported(
            f"stage {s} computes layer {v} again in part: piper prices layers kept or computed again whole"
        )
    return int(any(again.values()))
