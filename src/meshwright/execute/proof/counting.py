"""Counts what torch.distributed is really asked to do, below our own code: each c10d operator that is dispatched.

Expected counts come from the program alone: its instructions, their layouts, and how often a schedule runs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from math import prod
from typing import Any

import torch

from ...graph.ir import Graph
from ...lower.halo import WRAP
from ...lower.program import GRAD, INSIDE, Instr, Program, StageCode
from ...plan.layout import interval, local_shape
from ..ops.halo import place
from ..ops.params import dtype_of, master_dtype
from ..ranks.collectives import Atom, atoms
from ..ranks.mesh_groups import Groups, Members, MeshView, ranks_of
from ..stage.gathers import Gather, again, gathers_of, group_legs, groups_of, without
from ..step.buckets import CAPACITY, buckets_of, legs
from ..step.copies import shared_of
from ..step.rows import Leg
from ..torch_compat import group_members, watched

Call = tuple[str, int, Members]
"""(kind, bytes, world ranks in rising order). Bytes: held per member before; of an all-gather after; of a send its message."""


class Counting(AbstractContextManager["Counting"]):
    """While active, every collective of this rank is counted in `calls`."""

    def __init__(self) -> None:
        self.calls: Counter[Call] = Counter()
        self._watch = ExitStack()

    def __enter__(self) -> Counting:
        self._watch.enter_context(watched(self._seen))
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.close()

    def _seen(self, kind: str, args: tuple[Any, ...]) -> None:
        group = next(a for a in args if isinstance(a, torch.ScriptObject) and _is_group(a))
        # outputs come first: of a gather the outputs count, of all others the inputs
        tensors = [list(_tensors(a)) for a in args[:2]]
        held = tensors[0] if kind in ("all_gather", "all_reduce", "send", "recv") else (tensors[1] or tensors[0])
        nbytes = sum(t.numel() * t.element_size() for t in held)
        self.calls[kind, nbytes, tuple(sorted(group_members(group)))] += 1


def _is_group(value: Any) -> bool:
    return "ProcessGroup" in str(value._type())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _tensors(v)


def expected(
    program: Program,
    graph: Graph,
    micro_batches: int | Mapping[int, tuple[int, int]],
    rank: int,
    bucket_bytes: int = CAPACITY,
    *,
    parted: bool = False,
) -> Counter[Call]:
    """What one rank must be asked for in one step of an unrolled program, transfers and reported totals left out.

    `micro_batches`: of all stages, which run ops again alike, or by stage as in `forwards_of`. `parted`: the schedule's
    backward comes in two parts.
    """
    ranks = ranks_of(program)
    found = _over_stages(program, graph, rank)
    for stage in program.stages:
        places = [ranks[d] for d in stage.mesh.devices]
        if rank not in places:
            continue
        view = MeshView(stage.mesh, rank, ranks, Groups())
        rerunning, kept = (micro_batches, 0) if isinstance(micro_batches, int) else micro_batches[stage.stage]
        found.update(bucketed(stage, graph, view, rerunning + kept, bucket_bytes, parted=parted))
        found.update(_per_micro_batch(stage, graph, view, rerunning, bucket_bytes, parted=parted))
        if kept:
            found.update(_per_micro_batch(stage.last or stage, graph, view, kept, bucket_bytes, parted=parted))
    return found


def _per_micro_batch(
    stage: StageCode, graph: Graph, view: MeshView, count: int, bucket_bytes: int, *, parted: bool
) -> Counter[Call]:
    """What `count` micro-batches of one stage ask for, sums of gradients left out."""
    found: Counter[Call] = Counter()
    gathers = () if parted else gathers_of(stage)
    for times, instr, reader in _occurrences(stage, gathers, count):
        who = view.members(instr.axes)
        if len(who) > 1:
            size = (
                _inside(instr, reader, stage, graph, view.coords)
                if reader
                else nbytes(instr, stage, graph, view.coords)
            )
            kind = "all_to_all" if instr.kind == "halo" else str(instr.collective)
            if size or instr.kind != "panel":  # blocks without elements stay where they are
                found[kind, size, tuple(sorted(who))] += times
    for group in groups_of(gathers, graph, bucket_bytes) + groups_of(again(gathers, stage), graph, bucket_bytes):
        item = dtype_of(graph.tensor[group.members[0].param]).itemsize
        _add(found, group_legs(group, graph, view), count, item, view)
    return found


def _add(found: Counter[Call], steps: Iterable[Leg], times: int, item: int, view: MeshView) -> None:
    """The collectives of legs whose elements have `item` bytes."""
    for leg in steps:
        if leg.rows is not None and leg.rows.width:
            who = tuple(sorted(view.members(leg.rows.axes)))
            found[str(leg.rows.collective), leg.rows.elements * item, who] += times


def _over_stages(program: Program, graph: Graph, rank: int) -> Counter[Call]:
    """Sums over the stages that hold copies of weights: one a set of stages."""
    ranks, groups = ranks_of(program), Groups()
    views = {
        s.stage: MeshView(s.mesh, rank, ranks, groups)
        for s in program.stages
        if rank in {ranks[d] for d in s.mesh.devices}
    }
    found: Counter[Call] = Counter()
    for shared in shared_of(program, graph, views):
        stage = shared.own[0]
        layout = {p.name: p.grad for p in program.stages[stage].params}
        held = sum(
            prod(local_shape(layout[n], graph.tensor[n].shape, views[stage].mesh, views[stage].coords))
            for n in shared.names
        )
        if len(shared.members) > 1:
            size = held * master_dtype(graph.tensor[shared.names[0]]).itemsize
            found["all_reduce", size, tuple(sorted(shared.members))] += 1
    return found


def bucketed(
    stage: StageCode, graph: Graph, view: MeshView, micro_batches: int, bucket_bytes: int, *, parted: bool = False
) -> Counter[Call]:
    """Sums of gradients and gathers of updated parameters."""
    found: Counter[Call] = Counter()
    for bucket in buckets_of(stage, graph, bucket_bytes, parted=parted):
        described = graph.tensor[bucket.names[0]]
        item, summed = dtype_of(described).itemsize, master_dtype(described).itemsize
        for steps, times, size in (
            (bucket.every, micro_batches, summed),
            (bucket.sums, 1, summed),
            (bucket.gathers, 1, item),
        ):
            _add(found, legs(steps, bucket, graph, view), times, size, view)
    return found


def _occurrences(
    stage: StageCode, gathers: Sequence[Gather], micro_batches: int
) -> Iterator[tuple[int, Instr, Instr | None]]:
    """(times in a step, communicating instruction of a segment, the op that carries it out, if one does)."""
    gone = {name for g in gathers for name in g.stands_for if not name.startswith(GRAD)}
    for s in without(stage, gathers).segments:
        reader = {i.on: i for i in s.forward if i.kind == "compute"}
        apart = reader | {i.on: i for i in s.backward if i.kind == "compute" and i.within}
        for readers, instrs in ((reader, (*s.forward, *s.rerun)), (apart, s.backward)):
            for i in instrs:
                if i.communicates and not gone.intersection(i.outputs):
                    yield s.count * micro_batches, i, readers[i.on] if i.kind in INSIDE else None


def _inside(instr: Instr, reader: Instr, stage: StageCode, graph: Graph, coords: Mapping[str, int]) -> int:
    """A statistic, or a block of an operand as it lies at the member that it comes from or goes to."""
    if instr.kind == "stat":
        return _statistic(instr, reader, stage, graph, coords)
    tensor = graph.tensor[graph.ops[graph.position[instr.on]].inputs[instr.dim2]]
    at = {**coords, instr.axes[0]: instr.dim}
    return prod(local_shape(reader.operands[instr.dim2], tensor.shape, stage.mesh, at)) * dtype_of(tensor).itemsize


def _statistic(instr: Instr, reader: Instr, stage: StageCode, graph: Graph, coords: Mapping[str, int]) -> int:
    """Statistics in float32 or wider, one per element of the op's first operand without its stat dims; an int64 count."""
    if instr.op == "count":
        return torch.empty(0, dtype=torch.int64).element_size()
    op = graph.ops[graph.position[instr.on]]
    flat = local_shape(reader.operands[0], graph.tensor[op.inputs[0]].shape, stage.mesh, coords)
    kinds = {f.name: f.kind for f in op.rule.factors}
    cut = dict(reader.cuts)
    rows = 1
    for n, names in zip(flat, op.rule.operands[0], strict=True):
        kept = [op.rule.factor(name) for name in names if kinds[name] != "stat"]
        if len(kept) == len(names):
            rows *= n
        else:
            rows *= prod(interval(f.size, cut.get(f.name, ()), stage.mesh, coords)[1] for f in kept)
    return rows * master_dtype(graph.tensor[op.inputs[0]]).itemsize


def nbytes(instr: Instr, stage: StageCode, graph: Graph, coords: Mapping[str, int]) -> int:
    """Bytes of one collective on the member at `coords`, from its layouts; parts padded to the largest."""
    if instr.before is None or instr.after is None:
        return 0
    tensor = graph.tensor[instr.on]
    before, after = atoms(instr.before, tensor.shape), atoms(instr.after, tensor.shape)
    sizes = [interval(n, cuts, stage.mesh, coords)[1] for n, cuts in before]
    item = torch.empty(0, dtype=dtype_of(tensor)).element_size()
    axis = instr.axes[0]
    if instr.kind == "halo":
        return _exchanged(instr, local_shape(instr.before, tensor.shape, stage.mesh, coords), stage, coords) * item
    if instr.collective in ("all_gather", "reduce_scatter"):
        atom = (before if instr.collective == "all_gather" else after)[instr.dim]
        sizes[instr.dim] = _largest(atom, axis, stage, coords) * stage.mesh.size(axis)
    elif instr.collective == "all_to_all":
        sizes[instr.dim] = _largest(before[instr.dim], axis, stage, coords)
        sizes[instr.dim2] = _largest(after[instr.dim2], axis, stage, coords) * stage.mesh.size(axis)
    return prod(sizes) * item


def _exchanged(instr: Instr, own: Sequence[int], stage: StageCode, coords: Mapping[str, int]) -> int:
    """Elements that one member sends to its neighbours: rows that they read, or gradients of the rows that it read."""
    lower, upper, *more = map(int, instr.sizes)
    down, up = (upper, lower) if instr.phase == "forward" else (lower, upper)
    at, last = place(instr.axes, stage.mesh, coords), prod(map(stage.mesh.size, instr.axes)) - 1
    rows = down * (at > 0) + up * (at < last) if instr.op != WRAP else down + up
    return rows * prod(n + m for k, (n, m) in enumerate(zip(own, more, strict=True)) if k != instr.dim)


def _largest(atom: Atom, axis: str, stage: StageCode, coords: Mapping[str, int]) -> int:
    n, cuts = atom
    return max(interval(n, cuts, stage.mesh, {**coords, axis: i})[1] for i in range(stage.mesh.size(axis)))
