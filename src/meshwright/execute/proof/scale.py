"""A plan for many devices becomes a plan of the same structure for a few CPU ranks, on a model of the same structure.

Every mesh axis longer than one keeps length 2 or more; pipeline ranks, chunks and blocks are thinned out; the schedule,
placements, rest layouts, storage, recomputation, and what does not divide evenly stay as they are. What cannot stay is
listed, to be printed as not verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm, prod
from typing import TypeVar

from ...cluster.model import Mesh
from ...errors import Unsupported
from ...graph.ir import Graph, Run
from ...graph.source import ModelSource
from ...graph.zoo import Shrink
from ...lower.atoms import refine
from ...lower.fold import fold
from ...lower.summa import SUMMA
from ...plan.copies import has_copies, one_copy
from ...plan.lookup import entry_range, span_entry
from ...plan.model import Cut, Layout, Plan, Schedule, Stage, Storage

T = TypeVar("T")
SEQUENCE, WIDTH, HEADS, FFN, VOCABULARY, EXPERTS, IMAGE = 16, 64, 8, 96, 128, 4, 64
"""Sizes that divide by 2 and 4; each is made odd where the model's own size does not divide by the plan's degree."""
MOST_RANKS = 16


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
    depth, chunks = _pipeline(plan)
    alike = _alike(plan)
    kept = _thinned(depth, chunks) if alike else list(range(len(plan.stages)))
    new_depth, new_chunks = (min(depth, 2), min(chunks, 2)) if alike else (depth, chunks)
    shapes = [_lengths(plan.stages[0], max(1, ranks // new_depth))] * len(kept) if alike else _shapes(plan, ranks)
    meshes = _placed([plan.stages[s].mesh for s in kept], shapes)
    count = len({d for mesh in meshes for d in mesh.devices})
    if count > MOST_RANKS:
        raise Unsupported(
            f"{count} ranks are needed to keep every axis of this plan, {MOST_RANKS} are the most",
            reason="scale",
        )
    run = max(graph.runs, key=lambda r: r.length * r.count, default=None)
    if run is not None and not all(_whole_blocks(graph, s, run) for s in plan.stages):
        run = None  # stages that end inside a block: all blocks stay, op by op
    counts = [_blocks(graph, s, run) for s in plan.stages]
    thin = [_thin(counts[s], counts) for s in kept]
    if run is not None and sum(thin) < 2:
        thin[thin.index(max(thin))] = 2
    micro_batch, micro_batches = _batch(plan, shapes, depth, new_depth)
    shrink = _shrink(graph, plan, sum(thin) if run is not None else 0)
    shrink = replace(shrink, seq=source.sequence(SEQUENCE))
    small, shrink, found = _small(source, graph, run, shrink, micro_batch)
    whole = found is not None and run is not None and found.count == run.count and sum(thin) != run.count
    if found is not None and not whole and found.count != sum(thin):
        raise Unsupported(
            f"{source.name} cannot be built with {sum(thin)} blocks: verify this plan at full size", reason="scale"
        )
    spans = _assigned(plan, graph, small, run, kept, counts if whole else None, thin)
    casts = frozenset(name for op in graph.ops if op.kind in CASTS for name in (op.name, *op.outputs))
    stages = _stages(plan, small, found, kept, spans, meshes, casts)
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
    args = {"replicas": ",".join(map(str, replicas))}
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


def _pipeline(plan: Plan) -> tuple[int, int]:
    """(pipeline ranks, chunks a rank)."""
    chunks = int(plan.schedule.args.get("v", 1)) if plan.schedule.name != "custom" else 1
    if plan.schedule.name == "custom" and len(plan.stages) > 1:
        raise Unsupported(
            "a schedule written out row by row cannot be scaled down: verify this plan at full size", reason="scale"
        )
    return len(plan.stages) // chunks, chunks


def _alike(plan: Plan) -> bool:
    """Whether the stages are those of a pipeline over equal meshes, so that some can stand for all."""
    meshes = {(s.mesh.axes, s.mesh.shape) for s in plan.stages}
    return len(meshes) == 1 and (len(plan.stages) == 1 or plan.schedule.name != "dataflow")


def _thinned(depth: int, chunks: int) -> list[int]:
    """Stages of the first and the last rank, of the first and the last chunk."""
    return [c * depth + r for c in sorted({0, chunks - 1}) for r in sorted({0, depth - 1})]


def _shapes(plan: Plan, ranks: int) -> list[tuple[int, ...]]:
    """New lengths of the axes of stages that are not alike: as they are, if there are no more devices than ranks; otherwise 2
    for the shortest that is cut, and 4 or 3 for others, as they are multiples of it or not."""
    if len({d for s in plan.stages for d in s.mesh.devices}) <= ranks:
        return [s.mesh.shape for s in plan.stages]
    least = min((n for s in plan.stages for n in s.mesh.shape if n > 1), default=1)

    def length(n: int) -> int:
        return min(n, 2) if n <= least else min(n, 3 if n % least else 4)

    return [tuple(map(length, s.mesh.shape)) for s in plan.stages]


def _placed(meshes: Sequence[Mesh], shapes: Sequence[tuple[int, ...]]) -> list[Mesh]:
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


def _lengths(stage: Stage, ranks: int) -> tuple[int, ...]:
    """New lengths of the axes: 2 where longer, then doubled from the first axis on while `ranks` allows. The grids of SUMMA
    stay square."""
    mesh = stage.mesh
    square = {own[-1].axis for x in stage.shardings.values() if x.variant == SUMMA for own in x.cuts.values() if own}
    new = [min(n, 2) for n in mesh.shape]
    for k, n in enumerate(mesh.shape):
        while mesh.axes[k] not in square and new[k] * 2 <= n and n % (new[k] * 2) == 0 and prod(new) * 2 <= ranks:
            new[k] *= 2
    return tuple(new)


def _blocks(graph: Graph, stage: Stage, run: Run | None) -> int:
    """Blocks of the run that a stage holds."""
    if run is None:
        return 0
    inside = range(run.first, run.first + run.length * run.count)
    return sum(1 for entry in stage.ops for i in entry_range(graph, entry) if i in inside) // run.length


def _whole_blocks(graph: Graph, stage: Stage, run: Run) -> bool:
    """Whether a stage holds blocks of the run whole, one behind the other."""
    inside = range(run.first, run.first + run.length * run.count)
    held = [i for entry in stage.ops for i in entry_range(graph, entry) if i in inside]
    return len(held) % run.length == 0 and (not held or held == list(range(held[0], held[0] + len(held))))


def _thin(count: int, counts: Sequence[int]) -> int:
    """0 stays 0; the fewest become 1; whoever has more has 2: the unevenness stays."""
    least = min((n for n in counts if n), default=0)
    return 0 if count == 0 else 1 if count == least else 2


def _batch(plan: Plan, shapes: Sequence[tuple[int, ...]], depth: int, new_depth: int) -> tuple[int, int]:
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


def _shrink(graph: Graph, plan: Plan, blocks: int) -> Shrink:
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
            for factor, cuts in sharding.cuts.items():
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


# --------------------------------------------------------------------- stages


def _assigned(
    plan: Plan,
    graph: Graph,
    small: Graph,
    run: Run | None,
    kept: Sequence[int],
    counts: Sequence[int] | None,
    thin: Sequence[int],
) -> list[tuple[list[str], int, int]]:
    """Per kept stage: (its loose ops, first block, blocks). What a dropped stage held goes to the kept one before it.

    Blocks of other runs that the small model has not are left out: the first block stands for them.
    """
    inside = range(run.first, run.first + run.length * run.count) if run is not None else range(0)
    found: list[tuple[list[str], int, int]] = []
    at = 0
    for k, first in enumerate(kept):
        stop = kept[k + 1] if k + 1 < len(kept) else len(plan.stages)
        loose = [
            graph.ops[i].name
            for s in plan.stages[first:stop]
            for entry in s.ops
            for i in entry_range(graph, entry)
            if i not in inside and (graph.representative[i] == i or graph.ops[i].name in small.position)
        ]
        n = thin[k] if counts is None else sum(counts[first:stop])
        found.append((loose, at, n))
        at += n
    return found


@dataclass(frozen=True, slots=True)
class _Stages:
    stages: tuple[Stage, ...]
    dropped: tuple[str, ...]


def _stages(
    plan: Plan,
    small: Graph,
    run: Run | None,
    kept: Sequence[int],
    spans: Sequence[tuple[list[str], int, int]],
    meshes: Sequence[Mesh],
    casts: frozenset[str],
) -> _Stages:
    atoms = refine(fold(small, frozenset(r.name for r in small.runs)))  # a plan may speak of every block
    dropped: dict[str, None] = {}
    memo: dict[int, object] = {}

    def once(mapping: Mapping[str, T], convert: object) -> Mapping[str, T]:
        """The same mapping object stays one object: lowering knows equal stages by it."""
        if id(mapping) not in memo:
            memo[id(mapping)] = convert(mapping)  # type: ignore[operator]
        return memo[id(mapping)]  # type: ignore[return-value]

    def layout(name: str, given: Layout | None) -> Layout | None:
        return None if given is None else _layout(small, atoms.size, atoms.dims, name, given, dropped)

    def layouts(given: Mapping[str, Layout]) -> dict[str, Layout]:
        return {n: new for n, x in given.items() if _known(small, n, casts, dropped) and (new := layout(n, x))}

    def storage(given: Mapping[str, Storage]) -> dict[str, Storage]:
        return {
            n: replace(x, param=layout(n, x.param), grad=layout(n, x.grad), state=layout(n, x.state))
            for n, x in given.items()
            if _known(small, n, casts, dropped)
        }

    stages = []
    for s, mesh, (loose, first, count) in zip(kept, meshes, spans, strict=True):
        old = plan.stages[s]
        ops = [name for name in loose if name in small.position]
        dropped.update(
            dict.fromkeys(f"op {name}" for name in loose if name not in small.position and name not in casts)
        )
        if run is not None and count:
            head = [n for n in ops if small.position[n] < run.first]
            ops = [*head, span_entry(run, first, first + count), *ops[len(head) :]]
        stages.append(
            replace(
                old,
                ops=tuple(ops),
                mesh=mesh,
                shardings=once(
                    old.shardings, lambda m: {n: x for n, x in m.items() if _known(small, n, casts, dropped)}
                ),
                layouts=once(old.layouts, layouts),
                storage=once(old.storage, storage),
                recompute=frozenset(n for n in old.recompute if n in small.position),
            )
        )
    return _Stages(tuple(stages), tuple(dropped))


def _known(small: Graph, name: str, casts: frozenset[str], dropped: dict[str, None]) -> bool:
    if name in small.position or name in small.tensor:
        return True
    if name not in casts:
        dropped[f"what the plan says of {name}"] = None
    return False


def _layout(
    small: Graph,
    sizes: Mapping[str, tuple[int, ...]],
    counts: Mapping[str, tuple[int, ...]],
    name: str,
    given: Layout,
    dropped: dict[str, None],
) -> Layout | None:
    """`given` at the sizes of the small model: sub-dimension by sub-dimension, where both have as many."""
    if name not in sizes or len(given.dims) != len(counts[name]):
        dropped[f"the layout of {name}"] = None
        return None
    dims: list[tuple[tuple[int, tuple[Cut, ...]], ...]] = []
    at = 0
    for subs, count in zip(given.dims, counts[name], strict=True):
        mine = sizes[name][at : at + count]
        at += count
        cut = [k for k, (_, cuts) in enumerate(subs) if cuts]
        if len(subs) == count:
            dims.append(tuple((n, cuts) for n, (_, cuts) in zip(mine, subs, strict=True)))
        elif not cut:
            dims.append(((0, ()),))
        elif cut == [0]:
            dims.append(((0, subs[0][1]),))
        else:
            dropped[f"the layout of {name}"] = None
            return None
    return Layout(tuple(dims), given.partial)


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
