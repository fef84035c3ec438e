"""The short name of any plan's layout, read from the plan itself: degrees, where state rests, micro-batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

from ..graph.ir import Graph, Op
from ..graph.kinds import kind_of
from ..layouts.style import CP, DP, EP, OUTER, TP
from ..plan.lookup import sharding_of, storage_of
from ..plan.model import Layout, OpSharding, Plan, Stage, Storage


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


CUT_WORDS = (
    "s48 c12 r12 w1: products cut by samples, by columns of the weight, by its rows, and computed whole everywhere; s48/x0: "
    "over that axis; z1 90%: the optimizer state of that share of the parameters rests cut over devices that compute with "
    "copies, z3: the weights, too"
)


def op_words(plan: Plan, graph: Graph) -> str:
    """How many products are cut by what over which axes, and how much of the parameters rests cut, where no axis of the mesh
    says it: "s48/x0 c12/x1 r12/x1 w1 z1 90%" (see `CUT_WORDS`); the axis is left out where there is one.

    "" for meshes whose axes are called after what they cut, and for several stages.
    """
    if not chosen_by_op(plan):
        return ""
    stage = plan.stages[0]
    found: dict[tuple[str, tuple[str, ...]], int] = {}
    for i, op in enumerate(graph.ops):
        if op.flops:
            for way in cut_ways(op, sharding_of(graph, stage, i)) or [("w", ())]:
                found[way] = found.get(way, 0) + 1
    words = [
        way + str(found[way, axes]) + over(axes, stage)
        for way, axes in sorted(found, key=lambda w: ("scrw".index(w[0]), -len(w[1]), w[1]))
    ]
    return " ".join([*words, *_resting(graph, stage)])


def chosen_by_op(plan: Plan) -> bool:
    """Whether its mesh has axes that are called x0, x1, …: what they cut is said op by op."""
    return (
        len(plan.stages) == 1
        and plan.rewritten is None
        and all(re.fullmatch(r"x\d*", axis) for axis in plan.stages[0].mesh.axes)
    )


def cut_ways(op: Op, sharding: OpSharding | None) -> list[tuple[str, tuple[str, ...]]]:
    """By what an op is cut, and over which axes: ("s", axes) samples, ("c", …) what is neither, ("r", …) what is summed."""
    if sharding is None:
        return []
    summed = op.rule.summed()
    found: dict[str, tuple[str, ...]] = {}
    for f in op.rule.factors:
        if cuts := sharding.cuts.get(f.name):
            way = "s" if f.samples else "r" if f.name in summed else "c"
            found[way] = (*found.get(way, ()), *(c.axis for c in cuts))
    return [(way, tuple(sorted(axes))) for way, axes in found.items()]


def over(axes: Sequence[str], stage: Stage) -> str:
    """ "/x0", "/x0+x1"; "" on a mesh of one axis."""
    return f"/{'+'.join(axes)}" if axes and len(stage.mesh.axes) > 1 else ""


def rest_level(storage: Storage | None) -> int:
    """What of a parameter rests cut: 0 what its op computes with, 1 optimizer state and gradient sums, 3 the weights."""
    if storage is None:
        return 0
    if storage.param is not None and _axes(storage.param):
        return 3
    return 1 if any(x is not None and _axes(x) for x in (storage.state, storage.grad)) else 0


def _resting(graph: Graph, stage: Stage) -> list[str]:
    """ "z1 90%", "z3 10%": shares of the elements of all parameters; "z1" where it is all of them."""
    sizes = {1: 0.0, 3: 0.0}
    total = 0.0
    for t in graph.params():
        total += prod(t.shape)
        level = rest_level(storage_of(graph, stage, t.name))
        if level:
            sizes[level] += prod(t.shape)
    shares = {level: n / total for level, n in sizes.items() if n}
    return [
        f"z{level}" if share == 1 else f"z{level} {max(1, min(99, round(100 * share)))}%"
        for level, share in shares.items()
    ]


def _sequence_parallel(plan: Plan) -> bool:
    """Some activation rests cut over "tp"."""
    return any(TP in _axes(layout) for stage in plan.stages for layout in stage.layouts.values())


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
            if layout is not None and _axes(layout) & _sample_axes(stage):
                level = max(level, here)
    return level


def _axes(layout: Layout) -> set[str]:
    return {cut.axis for dim in layout.dims for _, cuts in dim for cut in cuts}


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
