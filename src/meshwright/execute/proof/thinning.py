"""How much of a plan stays when it is scaled down: pipeline ranks, axes, blocks, samples and the sizes of the model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import lcm, prod

from ...cluster.model import Mesh
from ...errors import Unsupported
from ...graph.ir import Graph, Run
from ...graph.zoo import Shrink
from ...lower.summa import SUMMA
from ...plan.lookup import entry_range
from ...plan.model import Plan, Stage

SEQUENCE, WIDTH, HEADS, FFN, VOCABULARY, EXPERTS, IMAGE = 16, 64, 8, 96, 128, 4, 64
"""Sizes that divide by 2 and 4; each is made odd where the model's own size does not divide by the plan's degree."""
MOST_RANKS = 16


def pipeline(plan: Plan) -> tuple[int, int]:
    """(pipeline ranks, chunks a rank)."""
    chunks = int(plan.schedule.args.get("v", 1)) if plan.schedule.name != "custom" else 1
    if plan.schedule.name == "custom" and len(plan.stages) > 1:
        raise Unsupported(
            "a schedule written out row by row cannot be scaled down: verify this plan at full size", reason="scale"
        )
    return len(plan.stages) // chunks, chunks


def alike(plan: Plan) -> bool:
    """Whether the stages are those of a pipeline over equal meshes, so that some can stand for all."""
    meshes = {(s.mesh.axes, s.mesh.shape) for s in plan.stages}
    return len(meshes) == 1 and (len(plan.stages) == 1 or plan.schedule.name != "dataflow")


def thinned(depth: int, chunks: int) -> list[int]:
    """Stages of the first and the last rank, of the first and the last chunk."""
    return [c * depth + r for c in sorted({0, chunks - 1}) for r in sorted({0, depth - 1})]


def shapes(plan: Plan, ranks: int) -> list[tuple[int, ...]]:
    """New lengths of the axes of stages that are not alike: as they are, if there are no more devices than ranks; otherwise 2
    for the shortest that is cut, and 4 or 3 for others, as they are multiples of it or not."""
    if len({d for s in plan.stages for d in s.mesh.devices}) <= ranks:
        return [s.mesh.shape for s in plan.stages]
    least = min((n for s in plan.stages for n in s.mesh.shape if n > 1), default=1)

    def length(n: int) -> int:
        return min(n, 2) if n <= least else min(n, 3 if n % least else 4)

    return [tuple(map(length, s.mesh.shape)) for s in plan.stages]


def placed(meshes: Sequence[Mesh], shapes: Sequence[tuple[int, ...]]) -> list[Mesh]:
    """Smaller meshes side by side; those of the same devices stay on the same ones."""
    sizes: dict[tuple[int, ...], int] = {}
    for mesh, shape in zip(meshes, shapes, strict=True):
        devices = tuple(mesh.devices)
        sizes[devices] = max(sizes.get(devices, 0), prod(shape))
    first, at = {}, 0
    for devices in sorted(sizes):
        first[devices] = at
        at += sizes[devices]
    found = []
    for mesh, shape in zip(meshes, shapes, strict=True):
        start = first[tuple(mesh.devices)]
        found.append(Mesh(range(start, start + prod(shape)), mesh.axes, shape))
    return found


def lengths(stage: Stage, ranks: int) -> tuple[int, ...]:
    """New lengths of the axes: 2 where longer, then doubled from the first axis on while `ranks` allows. The grids of SUMMA
    stay square."""
    mesh = stage.mesh
    square = {own[-1].axis for x in stage.shardings.values() if x.variant == SUMMA for own in x.cuts.values() if own}
    new = [min(n, 2) for n in mesh.shape]
    for k, n in enumerate(mesh.shape):
        while mesh.axes[k] not in square and new[k] * 2 <= n and n % (new[k] * 2) == 0 and prod(new) * 2 <= ranks:
            new[k] *= 2
    return tuple(new)


def blocks(graph: Graph, stage: Stage, run: Run | None) -> int:
    """Blocks of the run that a stage holds."""
    if run is None:
        return 0
    inside = range(run.first, run.first + run.length * run.count)
    return sum(1 for entry in stage.ops for i in entry_range(graph, entry) if i in inside) // run.length


def whole_blocks(graph: Graph, stage: Stage, run: Run) -> bool:
    """Whether a stage holds blocks of the run whole, one behind the other."""
    inside = range(run.first, run.first + run.length * run.count)
    held = [i for entry in stage.ops for i in entry_range(graph, entry) if i in inside]
    return len(held) % run.length == 0 and (not held or held == list(range(held[0], held[0] + len(held))))


def thin(count: int, counts: Sequence[int]) -> int:
    """0 stays 0; the fewest become 1; whoever has more has 2: the unevenness stays."""
    least = min((n for n in counts if n), default=0)
    return 0 if count == 0 else 1 if count == least else 2


def batch(plan: Plan, shapes: Sequence[tuple[int, ...]], depth: int, new_depth: int) -> tuple[int, int]:
    """(samples of a micro-batch, micro-batches). Samples that do not divide over some mesh still do not."""
    m = max(1, plan.schedule.micro_batches)
    samples = -(-plan.samples // m)
    meshes = [s.mesh for s in plan.stages]
    even = all(samples % prod(x.shape) == 0 or samples % x.shape[0] == 0 for x in meshes if x.shape)
    replicas = max(prod(shape) for shape in shapes)
    common = lcm(*(prod(shape) for shape in shapes))
    new = max(2, (common if even and common <= 2 * MOST_RANKS else replicas) if samples > 1 else 2)
    fewer = min(m, 2 * new_depth)
    if plan.schedule.name == "interleaved" and depth > 1:
        fewer = max(new_depth, fewer // new_depth * new_depth)
    return new if even else new + 1, fewer


def shrink(graph: Graph, plan: Plan, blocks: int) -> Shrink:
    longest: dict[str, int] = {}
    for mesh in (s.mesh for s in plan.stages):
        for axis, n in zip(mesh.axes, mesh.shape, strict=True):
            longest[axis] = max(n, longest.get(axis, 1))
    degree = max((n for axis, n in longest.items() if _cuts_features(graph, plan, axis)), default=1)
    heads, kv = _heads(graph)
    odd = {"ffn": 1 if _uneven(graph, "ffn", degree) else 0, "vocab": 1 if _uneven(graph, "vocabulary", degree) else 0}
    new_heads = HEADS if degree == 1 or heads % degree == 0 else 3
    new_kv = 0
    if kv and kv != heads:
        new_kv = new_heads // 4 if kv % degree == 0 and new_heads % 4 == 0 else 1
    return Shrink(
        blocks=blocks,
        width=WIDTH if new_heads != 3 else 48,
        heads=new_heads if heads else 0,
        kv_heads=new_kv,
        ffn=FFN + odd["ffn"],
        vocab=VOCABULARY + odd["vocab"],
        seq=SEQUENCE,
        experts=EXPERTS if any("expert" in t.name for t in graph.params()) else 0,
        image=IMAGE if any(len(graph.tensor[t].shape) == 4 for t in graph.inputs) else 0,
        dropout=0.0,
    )


def _cuts_features(graph: Graph, plan: Plan, axis: str) -> bool:
    """Whether an axis cuts anything but samples in some op."""
    for stage in plan.stages:
        for name, sharding in stage.shardings.items():
            rule = graph.ops[graph.position[name]].rule if name in graph.position else None
            for factor, cuts in chain(sharding.cuts.items(), *(own.items() for own in sharding.backward.values())):
                if any(c.axis == axis for c in cuts) and (rule is None or not rule.factor(factor).samples):
                    return True
    return False


def _heads(graph: Graph) -> tuple[int, int]:
    """(query heads, key-value heads) of the first attention; zeros without one."""
    for op in graph.ops:
        if "attention" in op.kind:
            return graph.tensor[op.inputs[0]].shape[-3], graph.tensor[op.inputs[1]].shape[-3]
    return 0, 0


def _uneven(graph: Graph, what: str, degree: int) -> bool:
    for op in graph.ops:
        if what == "vocabulary" and op.kind == "embedding":
            return graph.tensor[op.inputs[0]].shape[0] % degree != 0
        if what == "ffn" and op.kind in ("linear", "mm") and ("mlp" in op.module or "ffn" in op.module):
            return max(graph.tensor[op.inputs[1]].shape) % degree != 0
    return False
