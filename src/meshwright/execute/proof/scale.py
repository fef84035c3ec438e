"""A plan for many devices becomes a plan of the same structure for a few CPU ranks, on a model of the same structure.

Every mesh axis longer than one keeps length 2 or more; pipeline ranks, chunks and blocks are thinned out; the schedule,
placements, rest layouts, storage, recomputation, and what does not divide evenly stay as they are. What cannot stay is
listed, to be printed as not verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

from ...cluster.model import Mesh
from ...errors import Unsupported
from ...graph.ir import Graph, Run
from ...graph.source import ModelSource
from ...graph.zoo import Shrink
from ...plan.copies import has_copies, one_copy
from ...plan.model import Plan, Schedule
from . import thinning
from .small_stages import assigned, small_stages

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scaled:
    plan: Plan
    graph: Graph
    """float32, captured for one micro-batch of `plan`."""
    shrink: Shrink | None
    seq: int
    ranks: int
    words: str
    """"2 of 32 blocks, width 4,096 to 64, dp64 to dp2"; empty if nothing was scaled."""
    not_verified: tuple[str, ...]
    dtype: str = "float32"
    """Of all arithmetic."""


KINKED = frozenset(
    {
        "relu", "relu6", "leaky_relu", "prelu", "threshold", "hardtanh", "hardswish", "hardsigmoid", "max_pool1d",
        "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
    }
)  # fmt: skip


def exact(graph: Graph) -> str:
    """What to compute in so that plans can be told from rounding. In float32 rounding moves some of millions of values over
    a kink, and one process with inputs changed by 1e-7 has a gradient that is off by 1e-2 (Wide-ResNet-101-8)."""
    return "float64" if any(op.kind in KINKED for op in graph.ops) else "float32"


def full_size(plan: Plan, graph: Graph, source: ModelSource, seq: int) -> Scaled:
    """The plan as it is, on its own model in float32 or float64."""
    micro_batches = max(1, plan.schedule.micro_batches)
    own = source.graph(plan.samples // micro_batches, seq, exact(graph))
    used = {d for s in plan.stages for d in s.mesh.devices}
    return Scaled(fitted(plan, own), own, None, seq, len(used), "", _untested(plan, graph), exact(graph))


def fitted(plan: Plan, graph: Graph) -> Plan:
    """`plan` for the same model captured in another precision or batch: casts and copies that the graph does not have, as
    they would change nothing, are left out."""

    def there(name: str) -> bool:
        kind = name.rpartition("/")[2].partition(".")[0].partition(":")[0]
        return kind not in {*CASTS, "contiguous"} or name in graph.position or name in graph.tensor

    memo: dict[int, object] = {}

    def kept(mapping: Mapping[str, T]) -> Mapping[str, T]:
        """The same mapping object stays one object: lowering knows equal stages by it."""
        if id(mapping) not in memo:
            memo[id(mapping)] = {name: x for name, x in mapping.items() if there(name)}
        return memo[id(mapping)]  # type: ignore[return-value]

    stages = tuple(
        replace(
            s,
            ops=tuple(filter(there, s.ops)),
            shardings=kept(s.shardings),
            layouts=kept(s.layouts),
            gradients=kept(s.gradients),
            recompute=frozenset(filter(there, s.recompute)),
        )
        for s in plan.stages
    )
    return replace(plan, graph=graph.digest, stages=stages)


def scaled(plan: Plan, graph: Graph, source: ModelSource, seq: int, ranks: int = 4) -> Scaled:
    """A plan of the same structure for about `ranks` ranks (2 to the number of axes if that is more).

    Raises:
        Unsupported: a model without a scaled-down form of the same structure.
    """
    if any(s.deal for s in plan.stages):
        return _dealt(plan, graph, source, seq, ranks)
    if has_copies(plan):
        return _pipes(plan, graph, source, seq, ranks)
    depth, chunks = thinning.pipeline(plan)
    alike = thinning.alike(plan)
    kept = thinning.thinned(depth, chunks) if alike else list(range(len(plan.stages)))
    new_depth, new_chunks = (min(depth, 2), min(chunks, 2)) if alike else (depth, chunks)
    shapes = (
        [thinning.lengths(plan.stages[0], max(1, ranks // new_depth))] * len(kept)
        if alike
        else thinning.shapes(plan, ranks)
    )
    meshes = thinning.placed([plan.stages[s].mesh for s in kept], shapes)
    count = len({d for mesh in meshes for d in mesh.devices})
    if count > thinning.MOST_RANKS:
        raise Unsupported(
            f"{count} ranks are needed to keep every axis of this plan, {thinning.MOST_RANKS} are the most",
            reason="scale",
        )
    run = max(graph.runs, key=lambda r: r.length * r.count, default=None)
    if run is not None and not all(thinning.whole_blocks(graph, s, run) for s in plan.stages):
        run = None  # stages that end inside a block: all blocks stay, op by op
    counts = [thinning.blocks(graph, s, run) for s in plan.stages]
    thin = [thinning.thin(counts[s], counts) for s in kept]
    if run is not None and sum(thin) < 2:
        thin[thin.index(max(thin))] = 2
    micro_batch, micro_batches = thinning.batch(plan, shapes, depth, new_depth)
    shrink = thinning.shrink(graph, plan, sum(thin) if run is not None else 0)
    shrink = replace(shrink, seq=source.sequence(thinning.SEQUENCE))
    small, shrink, found = _small(source, graph, run, shrink, micro_batch)
    whole = found is not None and run is not None and found.count == run.count and sum(thin) != run.count
    if found is not None and not whole and found.count != sum(thin):
        raise Unsupported(
            f"{source.name} cannot be built with {sum(thin)} blocks: verify this plan at full size", reason="scale"
        )
    spans = assigned(plan, graph, small, run, kept, counts if whole else None, thin)
    casts = frozenset(name for op in graph.ops if op.kind in CASTS for name in (op.name, *op.outputs))
    stages = small_stages(plan, small, found, kept, spans, meshes, casts)
    args = {**plan.schedule.args, "v": new_chunks} if "v" in plan.schedule.args else plan.schedule.args
    weights = plan.schedule.weights
    if weights.update_every == plan.schedule.micro_batches:
        weights = replace(weights, update_every=micro_batches)
    schedule = Schedule(plan.schedule.name, micro_batches, args, (), weights)
    dropped = _untested(plan, graph)
    new = Plan(small.digest, micro_batch * micro_batches, stages.stages, schedule, plan.frozen & set(small.tensor))
    words = _words(graph, small, [plan.stages[s].mesh for s in kept], meshes, depth, new_depth)
    left_out = (*dropped, *stages.dropped)
    return Scaled(new, small, shrink, shrink.seq, count, words, left_out, exact(graph))


def _dealt(plan: Plan, graph: Graph, source: ModelSource, seq: int, ranks: int) -> Scaled:
    """One replica of each stage scaled down, then two where there were several."""
    one, schedule = one_copy(plan), plan.schedule
    small = scaled(replace(one, schedule=Schedule("1f1b", schedule.micro_batches)), graph, source, seq, ranks)
    ends = (plan.stages[0], plan.stages[-1])[: len(small.plan.stages)]
    stages, replicas, at = [], [], 0
    for stage, end in zip(small.plan.stages, ends, strict=True):
        n = min(2, end.mesh.size(end.deal)) if end.deal else 1
        shape = tuple(n if a == end.deal else k for a, k in zip(stage.mesh.axes, stage.mesh.shape, strict=True))
        stages.append(replace(stage, mesh=Mesh(range(at, at + prod(shape)), stage.mesh.axes, shape), deal=end.deal))
        replicas.append(n)
        at += prod(shape)
    args = {"replicas": ",".join(map(str, replicas))} if schedule.name == "pipedream" else {}
    own = Schedule(schedule.name, small.plan.schedule.micro_batches, args, (), schedule.weights)
    return replace(small, plan=replace(small.plan, stages=tuple(stages), schedule=own), ranks=at)


def _pipes(plan: Plan, graph: Graph, source: ModelSource, seq: int, ranks: int) -> Scaled:
    """One pipe scaled down, then there and back: two pipes of two stages stand for any number."""
    schedule = plan.schedule
    if schedule.name not in ("chimera", "dualpipe"):
        raise Unsupported(
            f"several pipes under schedule {schedule.name} cannot be scaled down: verify this plan at full size",
            reason="scale",
        )
    one = one_copy(plan)
    small = scaled(replace(one, schedule=Schedule("1f1b", schedule.micro_batches)), graph, source, seq, ranks)
    down = small.plan.stages
    up = tuple(replace(s, mesh=mesh, pipe=1) for s, mesh in zip(down, reversed([s.mesh for s in down]), strict=True))
    whole = schedule.name == "chimera" and schedule.micro_batches <= len(one.stages)
    m = len(down) if whole else 2 * len(down)
    each = small.plan.samples // small.plan.schedule.micro_batches
    args = {"f": 1, "form": schedule.args.get("form", "direct")} if schedule.name == "chimera" else {}
    return replace(
        small,
        plan=replace(small.plan, samples=each * m, stages=(*down, *up), schedule=Schedule(schedule.name, m, args)),
    )


# ------------------------------------------------------------------ structure

CASTS = frozenset({"to", "_to_copy", "float", "type_as"})
"""Gone in float32 and float64, where they change nothing."""


def _small(
    source: ModelSource, graph: Graph, run: Run | None, shrink: Shrink, micro_batch: int
) -> tuple[Graph, Shrink, Run | None]:
    """The scaled-down graph whose blocks are those of `graph`: with fewer blocks if the model can have fewer, else all."""
    for tried in dict.fromkeys((shrink, replace(shrink, blocks=0))):
        small = source.graph(micro_batch, tried.seq, exact(graph), shrink=tried)
        found = next((r for r in small.runs if run is not None and r.name == run.name), None)
        if run is None:
            return small, tried, found
        if (
            found is None
            or (tried.blocks and found.count != tried.blocks)
            or _kinds(graph, run) != _kinds(small, found)
        ):
            continue
        if all(_first_block(graph, r) <= small.position.keys() for r in graph.runs):
            return small, tried, found
    raise Unsupported(
        f"{source.name} scaled down has other blocks than at full size: verify this plan at full size", reason="scale"
    )


def _first_block(graph: Graph, run: Run) -> set[str]:
    """Names of its ops, casts left out."""
    return {op.name for op in graph.ops[run.first : run.first + run.length] if op.kind not in CASTS}


def _kinds(graph: Graph, run: Run) -> list[str]:
    """Kinds of one block, casts left out."""
    return [op.kind for op in graph.ops[run.first : run.first + run.length] if op.kind not in CASTS]


# ---------------------------------------------------------------------- words


def _untested(plan: Plan, graph: Graph) -> tuple[str, ...]:
    """What a check in float32 or float64 on CPU ranks cannot say anything about."""
    found = []
    types = {t.dtype for t in graph.params()} - {"float32", "float64"}
    if types:
        found.append(f"arithmetic in {', '.join(sorted(types))} (checked in {exact(graph)})")
    if any("dropout" in op.kind for op in graph.ops):
        found.append("dropout (off while comparing)")
    if any(s.offload for s in plan.stages):
        found.append("offloading")
    return tuple(found)


def _words(graph: Graph, small: Graph, old: Sequence[Mesh], new: Sequence[Mesh], depth: int, new_depth: int) -> str:
    counts = {r.name: r.count for r in small.runs}
    fewer = [(r, counts.get(r.name, r.count)) for r in graph.runs if counts.get(r.name, r.count) != r.count]
    parts = [f"{n} of {r.count} blocks" + (f" of {r.name}" if len(fewer) > 1 else "") for r, n in fewer]
    wide, narrow = _width(graph), _width(small)
    if wide != narrow:
        parts.append(f"width {wide:,} to {narrow:,}")
    for axis in dict.fromkeys(axis for mesh in old for axis in mesh.axes):
        a, b = (":".join(dict.fromkeys(str(mesh.size(axis)) for mesh in meshes)) for meshes in (old, new))
        parts += [f"{axis}{a} to {axis}{b}"] if a != b else []
    parts += [f"pp{depth} to pp{new_depth}"] if depth != new_depth else []
    return ", ".join(parts)


def _width(graph: Graph) -> int:
    """Features of the first product's input."""
    for op in graph.ops:
        if op.kind in ("linear", "mm", "addmm", "conv2d"):
            return graph.tensor[op.inputs[1]].shape[-1 if op.kind == "linear" else 0]
    return 0
