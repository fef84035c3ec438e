"""The short name of any plan's layout, read from the plan itself: degrees, where state rests, micro-batches."""

from __future__ import annotations

from math import prod

from ..graph.ir import Graph
from ..graph.kinds import kind_of
from ..layouts.style import CP, DP, EP, OUTER, TP
from ..plan.model import Plan, Stage
from .cut_words import axes_of


def layout_words(plan: Plan) -> str:
    """ "dp32 cp4+kv tp2+sp pp2×4 z1": mesh axes, how attention sees what cp cuts, sequence parallelism, pipeline depth ×
    chunks a device, ZeRO stage; "dp32 z3/8": copies of what groups of 8 replicas share.

    Stages of different meshes give the number of stages and devices instead: "8 stages on 8 devices".
    """
    if not plan.stages:
        return "empty"
    shapes = {(s.mesh.axes, s.mesh.shape) for s in plan.stages}
    devices = {d for s in plan.stages for d in s.mesh.devices}
    if len(shapes) > 1 or (plan.schedule.name == "dataflow" and len(plan.stages) > 1):
        return f"{len(plan.stages)} stages on {len(devices)} devices"
    mesh = plan.stages[0].mesh
    sizes = dict(zip(mesh.axes, mesh.shape, strict=True))
    copies = sizes.pop(OUTER, 1)
    within = f"/{sizes[DP]}" if copies > 1 and DP in sizes else ""
    if within:
        sizes[DP] *= copies
    words = [
        f"{axis}{'×' if axis[-1:].isdigit() else ''}{size}"
        + ("+sp" if axis == TP and _sequence_parallel(plan) else _context(plan) if axis == CP else "")
        for axis, size in sizes.items()
        if size > 1
    ]
    chunks = len(plan.stages) * prod(mesh.shape) // max(1, len(devices))
    depth = len(plan.stages) // max(1, chunks)
    if depth > 1:
        words.append(f"pp{depth}" + (f"×{chunks}" if chunks > 1 else ""))
    level = max(zero_level(stage) for stage in plan.stages)
    if level:
        words.append(
            f"z{level}{within}" + ("+keep" if any(x.kept for s in plan.stages for x in s.shardings.values()) else "")
        )
    return " ".join(words) or "1 device"


def _sequence_parallel(plan: Plan) -> bool:
    """Some activation rests cut over "tp"."""
    return any(TP in axes_of(layout) for stage in plan.stages for layout in stage.layouts.values())


def _context(plan: Plan) -> str:
    """What "cp" cuts besides samples: of attentions queries (keys and values are gathered) or heads (Ulysses), of windows rows."""
    cut = {
        factor
        for stage in plan.stages
        for sharding in stage.shardings.values()
        for factor, cuts in sharding.cuts.items()
        if factor in ("queries", "heads", "group", "s0") and any(c.axis == "cp" for c in cuts)
    }
    return "+kv" if "queries" in cut else "+ul" if cut - {"s0"} else "+halo" if cut else ""


def zero_level(stage: Stage) -> int:
    """0 … 3: what of the parameters rests cut over an axis along which samples are replicated (3 also the weights)."""
    level = 0
    for storage in stage.storage.values():
        for here, layout in ((1, storage.state), (2, storage.grad), (3, storage.param)):
            if layout is not None and axes_of(layout) & _sample_axes(stage):
                level = max(level, here)
    return level


def _sample_axes(stage: Stage) -> set[str]:
    return {axis for axis in stage.mesh.axes if axis.startswith((DP, EP, "data", "fsdp"))}


def recompute_words(plan: Plan, graph: Graph) -> str:
    """ "none", "full", "light" (only element-wise ops and norms run again), or how many ops of a block run again."""
    again = {name for stage in plan.stages for name in stage.recompute}
    if not again:
        return "none"
    first = {graph.ops[r].name for r in graph.representative}
    inside = {
        graph.ops[graph.representative[i]].name for run in graph.runs for i in range(run.first, run.first + run.length)
    }
    again = {graph.ops[graph.representative[graph.position[n]]].name for n in again if n in graph.position}
    if (inside and inside <= again) or again >= first:
        some = {s.recompute_blocks for s in plan.stages} - {0}
        return f"first {max(some)}" if some else "full"
    kinds = {graph.ops[graph.position[n]].kind for n in again if n in graph.position}
    light = all((kind := kind_of(k)) is not None and kind.light for k in kinds)
    attention = all("attention" in k for k in kinds)
    return "light" if light else "attention" if attention else f"{len(again)} ops"


def micro_batch_words(plan: Plan) -> tuple[int, int]:
    """(samples of one micro-batch on one replica, micro-batches a step)."""
    m = max(1, plan.schedule.micro_batches)
    mesh = plan.stages[0].mesh
    replicas = prod(mesh.size(axis) for axis in _sample_axes(plan.stages[0]))
    return max(1, round(plan.samples / m / replicas)), m
