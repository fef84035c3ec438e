"""From a plan back to the point that it is a plan of, by building that and comparing: what differs is said, not dropped.

Trainers and people speak of layouts as a `Point` does. A plan that says more (another placement of one op, stages of unequal
meshes, weights of several versions) is not of this kind; the first place where it says more is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product

import numpy as np

from ..cluster.model import Mesh
from ..errors import Unsupported
from ..graph.ir import Graph
from ..plan.lookup import entry_range, representative_tensor, stage_ops
from ..plan.model import OpSharding, Plan, Schedule, Storage, Weights
from ..plan.schedules import chunks_of, conditions, home
from .again import FIRST, MODULES, WORDS
from .build import plan_of
from .expert import Expert, expert_of
from .point import Point
from .style import CONTEXTS, CP, DP, EP, OUTER, TP
from .units import Units

AXES = (OUTER, DP, EP, CP, TP)
"""Mesh axes of a point, outer first."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """A plan in words."""

    point: Point
    parts: tuple[int, ...]
    """Units of each stage, in order."""
    schedule: Schedule
    """With its arguments, or rows of its own; `point.schedule` is its name."""
    devices: tuple[tuple[int, ...], ...]
    """Of each pipeline rank, along the axes of `Point.mesh`, row major."""
    samples: int
    """Of one step, all replicas together."""

    @property
    def micro_batches(self) -> int:
        return self.schedule.micro_batches

    def plan(self, expert: Expert) -> Plan:
        """The plan again."""
        units = Units(expert.atoms.folded)
        plan = plan_of(expert, units, self.point, self.parts, self.samples, self.schedule)
        meshes = [self.point.mesh(rank) for rank in range(self.point.pp)]
        if all(tuple(mesh.devices) == own for mesh, own in zip(meshes, self.devices, strict=True)):
            return plan
        own = {mesh: replace(mesh, devices=d) for mesh, d in zip(meshes, self.devices, strict=True)}
        return replace(plan, stages=tuple(replace(s, mesh=own[s.mesh]) for s in plan.stages))


def recognise(graph: Graph, plan: Plan) -> Recognised:
    """The point of which this is the plan, on whatever devices.

    Raises:
        Unsupported: no point has it; the sentence names the first thing that it says and no point says.
    """
    if plan.graph and plan.graph != graph.digest:
        raise Unsupported("it is a plan of another model")
    _simple(plan)
    plan, devices = _in_axes(plan)
    _schedule(plan, len(devices))
    expert = expert_of(graph)
    units = Units(expert.atoms.folded)
    parts = _parts(units, plan)
    nearest: tuple[int, str] | None = None
    for point in _candidates(expert, plan, len(devices)):
        why = _differences(graph, plan, plan_of(expert, units, point, parts, plan.samples, plan.schedule))
        if not why:
            return Recognised(point, parts, plan.schedule, devices, plan.samples)
        if nearest is None or len(why) < nearest[0]:
            nearest = len(why), why[0]
    raise Unsupported(nearest[1] if nearest else "its degrees do not cut its batch into whole micro-batches")


def _simple(plan: Plan) -> None:
    """Refuse what no point has, whatever its stages say."""
    weights = plan.schedule.weights
    wrong: tuple[tuple[str, bool], ...] = (
        ("it has no stages", not plan.stages),
        ("it trains a rewritten graph", plan.rewritten is not None),
        ("it leaves parameters untrained", bool(plan.frozen)),
        ("it caches what it computes", bool(plan.cached)),
        ("its weights have several versions (no flush)", weights != Weights()),
    )
    for s, stage in enumerate(plan.stages):
        wrong += (
            (f"stage {s} deals micro-batches over {stage.deal}", bool(stage.deal)),
            (f"stage {s} belongs to a second pipe", stage.pipe > 0),
            (f"stage {s} keeps activations in host memory", bool(stage.offload)),
            (f"stage {s} says how its sums are carried out", bool(stage.sums)),
            (f"stage {s} recomputes nothing of its last {stage.keep_last} micro-batches", stage.keep_last > 0),
            (f"stage {s} runs again as one group", stage.recompute_at != "block"),
        )
    found = next((words for words, is_so in wrong if is_so), "")
    if found:
        raise Unsupported(found)


def _schedule(plan: Plan, pp: int) -> None:
    """Refuse a schedule that has no rows for these ranks."""
    schedule, v = plan.schedule, chunks_of(plan.schedule)
    if schedule.name == "custom":
        return
    if schedule.name == "dataflow" or len(plan.stages) != pp * v:
        raise Unsupported(
            f"schedule {schedule.name} has {v} stages a rank, but {pp} ranks have {len(plan.stages)} stages"
        )
    rest = {name: value for name, value in schedule.args.items() if name != "v"}
    if words := conditions(schedule.name, pp, schedule.micro_batches, v, rest):
        raise Unsupported(words)


def _in_axes(plan: Plan) -> tuple[Plan, tuple[tuple[int, ...], ...]]:
    """The plan with meshes whose axes are in the order of `Point.mesh`, and the devices of each pipeline rank."""
    first = plan.stages[0].mesh
    for s, stage in enumerate(plan.stages):
        if (stage.mesh.axes, stage.mesh.shape) != (first.axes, first.shape):
            raise Unsupported(f"stage {s} has another mesh than stage 0 ({_mesh(stage.mesh)}, not {_mesh(first)})")
    odd = [a for a, n in zip(first.axes, first.shape, strict=True) if a not in AXES and n > 1]
    if odd:
        raise Unsupported(f'its mesh has an axis "{odd[0]}", which is none of {", ".join(AXES)}')
    meshes = {id(s.mesh): _ordered(s.mesh) for s in plan.stages}
    stages = tuple(replace(s, mesh=meshes[id(s.mesh)]) for s in plan.stages)
    ranks: dict[tuple[int, ...], int] = {}
    for stage in stages:
        ranks.setdefault(tuple(stage.mesh.devices), len(ranks))
    devices = list(ranks)
    if len({d for rank in devices for d in rank}) != sum(map(len, devices)):
        raise Unsupported("stages on different meshes share devices")
    for s, stage in enumerate(stages):
        wanted = home(plan.schedule, len(devices), s)
        if ranks[tuple(stage.mesh.devices)] != wanted:
            raise Unsupported(f"stage {s} is not on pipeline rank {wanted}, where schedule {plan.schedule.name} has it")
    return replace(plan, stages=stages), tuple(devices)


def _ordered(mesh: Mesh) -> Mesh:
    """The same devices along the same axes, in the order of `AXES`; axes of one member that is none of them are dropped."""
    sizes = dict(zip(mesh.axes, mesh.shape, strict=True))
    axes = [a for a in AXES if a in sizes]
    other = [a for a in mesh.axes if a not in AXES]
    grid = np.asarray(mesh.devices).reshape(mesh.shape)
    grid = grid.transpose([mesh.axes.index(a) for a in (*axes, *other)])
    return Mesh(tuple(int(d) for d in grid.ravel()), tuple(axes), tuple(sizes[a] for a in axes))


def _mesh(mesh: Mesh) -> str:
    return " × ".join(f"{a} {n}" for a, n in zip(mesh.axes, mesh.shape, strict=True)) or "one device"


def _parts(units: Units, plan: Plan) -> tuple[int, ...]:
    """Units of each stage.

    Raises:
        Unsupported: a stage that takes parts of a block, or units out of order.
    """
    graph = units.folded.graph
    ends, at = [], 0
    for u in range(len(units)):
        at += sum(len(entry_range(graph, entry)) for entry in units.ops(u, u + 1))
        ends.append(at)
    parts, at, done = [], 0, 0
    for s, stage in enumerate(plan.stages):
        held = sorted(stage_ops(graph, stage))
        stop = done + len(held)
        if held != list(range(done, stop)) or stop not in ends:
            raise Unsupported(f"stage {s} is not a row of whole blocks in the order of the model")
        parts.append(ends.index(stop) + 1 - at)
        at, done = ends.index(stop) + 1, stop
    if at != len(units):
        raise Unsupported(f"its stages leave out {graph.ops[done].name} and what follows")
    return tuple(parts)


def _candidates(expert: Expert, plan: Plan, pp: int) -> Iterator[Point]:
    """Points of the plan's degrees: which of the ways that a mesh does not tell apart it is."""
    first = plan.stages[0]
    size = {a: first.mesh.size(a) for a in AXES}
    dp, m = size[OUTER] * size[DP], plan.schedule.micro_batches
    whole, odd = divmod(plan.samples, dp * size[EP] * m)
    if odd or not whole:
        return
    stored = [s for stage in plan.stages for s in stage.storage.values()]
    zero = (
        3
        if any(s.param for s in stored)
        else 2
        if any(s.grad for s in stored)
        else 1
        if any(s.state for s in stored)
        else 0
    )
    keep = any(x.kept for x in first.shardings.values())
    sequences = [False, True] if size[TP] > 1 else [False]
    contexts = CONTEXTS if size[CP] > 1 else CONTEXTS[:1]
    experts = [False, True] if size[TP] > 1 and expert.experts else [False]
    for sequence, context, whole_experts in product(sequences, contexts, experts):
        yield Point(
            dp, size[TP], pp, sequence, len(plan.stages) // pp, whole, zero, _again(expert, plan), plan.schedule.name,
            size[CP], size[EP], context, whole_experts, size[OUTER], not keep,
        )  # fmt: skip


def _again(expert: Expert, plan: Plan) -> str:
    """The word for what runs again; "none" where there is no word: then the plan differs from what it is compared with."""
    blocks = {s.recompute_blocks for s in plan.stages}
    again = {s.recompute for s in plan.stages}
    if blocks != {0}:
        return f"{FIRST}{max(blocks)}"
    each = [f"{word}+" for word in MODULES]
    words = (*WORDS, *("".join(some) for n in (1, 2) for some in combinations(sorted(each), n)))
    return next((word for word in words if again == {expert.recomputed(word)}), "none")


def _differences(graph: Graph, plan: Plan, built: Plan) -> list[str]:
    """What a plan says that the plan of a point does not say, or says otherwise."""
    op_of = {op.name: graph.ops[graph.representative[i]].name for i, op in enumerate(graph.ops)}
    tensor_of = partial(representative_tensor, graph)
    found: dict[str, None] = {}
    seen: set[tuple[int, ...]] = set()
    for s, (mine, other) in enumerate(zip(plan.stages, built.stages, strict=True)):
        if (mine.recompute, mine.recompute_blocks) != (other.recompute, other.recompute_blocks):
            found[f"stage {s} recomputes {len(mine.recompute)} ops for which there is no word"] = None
        key = tuple(id(x) for stage in (mine, other) for x in (stage.shardings, stage.layouts, stage.storage))
        if key in seen:
            continue
        seen.add(key)
        for name, word in (
            (_first_other(mine.shardings, other.shardings, op_of.__getitem__), "is cut"),
            (_first_other(mine.layouts, other.layouts, tensor_of), "rests"),
            (_first_other(mine.storage, other.storage, tensor_of), "is stored"),
        ):
            if name:
                found[f"{name} {word} otherwise than in any layout of these degrees"] = None
    return list(found)


def _first_other(mine: Mapping[str, object], other: Mapping[str, object], stands_for: Callable[[str], str]) -> str:
    """The first name of which two tables say different things; no entry is that of the representative, else the default."""
    if mine is other:
        return ""
    for name in (*mine, *(n for n in other if n not in mine)):
        first = stands_for(name)
        a, b = (_plain(table.get(name, table.get(first))) for table in (mine, other))
        if a != b:
            return name
    return ""


def _plain(entry: object) -> object:
    """An entry that says nothing is none."""
    if isinstance(entry, OpSharding):
        cuts = {f: own for f, own in entry.cuts.items() if own}
        said = cuts or entry.variant or entry.kept or entry.backward
        return (cuts, entry.variant, frozenset(entry.kept), entry.backward) if said else None
    return None if entry == Storage() else entry
