"""From a plan back to the point that it is a plan of, by building that and comparing: what differs is said, not dropped.

Trainers and people speak of layouts as a `Point` does. A plan that says more (another placement of one op, stages of unequal
meshes, weights of several versions) is not of this kind; the first place where it says more is named. Planners that name the
axes of their meshes otherwise, or spell out what a layout leaves open, are understood (`meaning`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, combinations, pairwise, product

import numpy as np

from ..cluster.model import Mesh
from ..errors import Unsupported
from ..graph.ir import Graph
from ..plan.lookup import entry_range, representative_tensor, stage_ops
from ..plan.model import Cut, OpSharding, Plan, Schedule, Storage, Weights
from ..plan.schedules import chunks_of, conditions, home
from .again import FIRST, MODULES, WORDS
from .build import plan_of
from .expert import Expert, expert_of
from .meaning import Names, meaning_of, namings
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
    """The point of which this is the plan, on whatever devices, whatever the axes of its mesh are called.

    Raises:
        Unsupported: no point has it; the sentence names the first thing that it says and no point says.
    """
    if plan.graph and plan.graph != graph.digest:
        raise Unsupported("it is a plan of another model")
    _simple(plan)
    if plan.schedule.name == "dataflow" and len(plan.stages) == 1:  # one micro-batch after the other
        plan = replace(plan, schedule=replace(plan.schedule, name="1f1b"))
    ranks = _ranks(plan)
    _schedule(plan, len(ranks))
    expert = expert_of(graph)
    units = Units(expert.atoms.folded)
    parts = _parts(units, plan)
    nearest: list[tuple[int, str]] = []
    for point, names, differs in _tried(expert, units, plan, parts, len(ranks)):
        if not differs[0]:
            devices = tuple(_along(mesh, names) for mesh in ranks)
            return Recognised(point, parts, plan.schedule, devices, plan.samples)
        nearest.append(differs)
    if nearest:
        raise Unsupported(min(nearest, key=lambda found: found[0])[1])
    if odd := _odd(ranks[0]):
        raise Unsupported(f'its mesh has an axis "{odd}", which cuts as none of {", ".join(AXES)} does')
    raise Unsupported("its degrees do not cut its batch into whole micro-batches")


def _tried(
    expert: Expert, units: Units, plan: Plan, parts: tuple[int, ...], pp: int
) -> Iterator[tuple[Point, Names, tuple[int, str]]]:
    """Points of the plan's degrees, which axes of its mesh they take for which of theirs, and how far the plan is from theirs:
    in so many places, the first in words. Entry by entry first; where that does not do, by what the entries come to.
    """

    def built(point: Point) -> Plan:
        return plan_of(expert, units, point, parts, plan.samples, plan.schedule)

    mesh = plan.stages[0].mesh
    if not _odd(mesh):
        own = {a: a for a in AXES if mesh.size(a) > 1}
        for point in _candidates(expert, plan, own, pp, _zero(plan)):
            found = _differences(expert.graph, plan, built(point))
            yield point, own, (len(found), found[0] if found else "")
    spans = (units.ops(a, b) for a, b in pairwise(accumulate(parts, initial=0)))
    whole = replace(plan, stages=tuple(replace(s, ops=ops) for s, ops in zip(plan.stages, spans, strict=True)))
    meaning = meaning_of(expert, whole)
    if meaning is None:
        return
    for names in namings(meaning, mesh):
        mine = meaning.named(names)
        for point in _candidates(expert, plan, names, pp, meaning.zero):
            theirs = meaning_of(expert, built(point))
            if theirs is not None:
                yield point, names, mine.difference(theirs)


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
            (f"stage {s} keeps parameters apart", any(x.home or x.resident != 1.0 for x in stage.storage.values())),
            (f"stage {s} runs again as one group", stage.recompute_at != "block"),
            (
                f"stage {s} cuts gradients of products otherwise than their duals",
                any(map(_apart, stage.shardings.values())),
            ),
        )
    found = next((words for words, is_so in wrong if is_so), "")
    if found:
        raise Unsupported(found)


def _apart(sharding: OpSharding) -> bool:
    return any(_said(own) != _said(sharding.cuts) for own in sharding.backward.values())


def _said(cuts: Mapping[str, tuple[Cut, ...]]) -> Mapping[str, tuple[Cut, ...]]:
    return {factor: own for factor, own in cuts.items() if own}


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


def _ranks(plan: Plan) -> list[Mesh]:
    """The mesh of each pipeline rank, all of the same axes and lengths."""
    first = plan.stages[0].mesh
    for s, stage in enumerate(plan.stages):
        if (stage.mesh.axes, stage.mesh.shape) != (first.axes, first.shape):
            raise Unsupported(f"stage {s} has another mesh than stage 0 ({_mesh(stage.mesh)}, not {_mesh(first)})")
    ranks = {tuple(stage.mesh.devices): stage.mesh for stage in plan.stages}
    if len({d for rank in ranks for d in rank}) != sum(map(len, ranks)):
        raise Unsupported("stages on different meshes share devices")
    place = {rank: k for k, rank in enumerate(ranks)}
    for s, stage in enumerate(plan.stages):
        wanted = home(plan.schedule, len(ranks), s)
        if place[tuple(stage.mesh.devices)] != wanted:
            raise Unsupported(f"stage {s} is not on pipeline rank {wanted}, where schedule {plan.schedule.name} has it")
    return list(ranks.values())


def _odd(mesh: Mesh) -> str:
    """The first axis that has no name of a layout's; "" if there is none."""
    return next((a for a, n in zip(mesh.axes, mesh.shape, strict=True) if a not in AXES and n > 1), "")


def _along(mesh: Mesh, names: Names) -> tuple[int, ...]:
    """Devices along the axes of `Point.mesh`, row major."""
    order = [mesh.axes.index(names[name]) for name in AXES if name in names]
    order += [k for k in range(len(mesh.axes)) if k not in order]
    grid = np.asarray(mesh.devices).reshape(mesh.shape)
    return tuple(int(d) for d in grid.transpose(order).ravel())


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


def _candidates(expert: Expert, plan: Plan, names: Names, pp: int, zero: int) -> Iterator[Point]:
    """Points of the plan's degrees: which of the ways that a mesh does not tell apart it is."""
    first = plan.stages[0]
    size = {a: first.mesh.size(names[a]) if a in names else 1 for a in AXES}
    dp, m = size[OUTER] * size[DP], plan.schedule.micro_batches
    whole, odd = divmod(plan.samples, dp * size[EP] * m)
    if odd or not whole:
        return
    keep = any(x.kept for x in first.shardings.values())
    sequences = [False, True] if size[TP] > 1 else [False]
    contexts = CONTEXTS if size[CP] > 1 else CONTEXTS[:1]
    experts = [False, True] if size[TP] > 1 and expert.experts else [False]
    for sequence, context, whole_experts in product(sequences, contexts, experts):
        yield Point(
            dp, size[TP], pp, sequence, len(plan.stages) // pp, whole, zero, _again(expert, plan), plan.schedule.name,
            size[CP], size[EP], context, whole_experts, size[OUTER], not keep,
        )  # fmt: skip


def _zero(plan: Plan) -> int:
    """The ZeRO stage of which there are entries."""
    stored = [s for stage in plan.stages for s in stage.storage.values()]
    rests = ((3, (s.param for s in stored)), (2, (s.grad for s in stored)), (1, (s.state for s in stored)))
    return next((zero for zero, layouts in rests if any(layouts)), 0)


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
        tables = ((stage.shardings, stage.layouts, stage.gradients, stage.storage) for stage in (mine, other))
        key = tuple(id(x) for own in tables for x in own)
        if key in seen:
            continue
        seen.add(key)
        for name, word in (
            (_first_other(mine.shardings, other.shardings, op_of.__getitem__), "is cut"),
            (_first_other(mine.layouts, other.layouts, tensor_of), "rests"),
            (_first_other(mine.gradients, other.gradients, tensor_of), "has a gradient that rests"),
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
        cuts = _said(entry.cuts)
        return (cuts, entry.variant, frozenset(entry.kept)) if cuts or entry.variant or entry.kept else None
    return None if entry == Storage() else entry
