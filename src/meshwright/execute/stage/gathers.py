"""Parameters that rest cut and are gathered for use (ZeRO-3): in groups, each one collective, one group ahead.

    rest     p₀ ─┐                                  ┌─▶ p₀@1 ─▶ ops …  ─▶ ∂p₀@1 ─┐
             p₁ ─┼─ one all-gather, begun while the ┼─▶ p₁@1 ─▶ ops …  ─▶ ∂p₁@1 ─┼─▶ bucket: one reduce-scatter
             p₂ ─┘  group before computes           └─▶ p₂@1 ─▶ ops …  ─▶ ∂p₂@1 ─┘

A parameter takes part if a single chain of conversions leads to all its readers: the chain is then left out of the segment,
what it ends in enters as a leaf, and the chain's dual goes before what happens to the gradient after each micro-batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ...graph.ir import Graph
from ...lower.joined import joined
from ...lower.program import GRAD, Instr, StageCode
from ..ops.params import dtype_of
from ..ranks.mesh_groups import MeshView
from ..step.rows import Leg, Sent, Step, through
from .moves import LOCAL, Move, moves_of


@dataclass(frozen=True, slots=True)
class Gather:
    """One parameter on its way to its readers."""

    param: str
    value: str
    """What the readers read."""
    segment: int
    steps: tuple[Instr, ...]
    duals: tuple[Instr, ...]
    stands_for: frozenset[str]
    """All values of the chain, and all gradients that its duals read."""


@dataclass(frozen=True, slots=True)
class Group:
    """Gathers of one segment that one collective a step carries out."""

    members: tuple[Gather, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(zip(*(g.steps for g in self.members), strict=True))

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(g.value for g in self.members)


def gathers_of(code: StageCode) -> tuple[Gather, ...]:
    """By segment, in the order of first use."""
    params = {p.name for p in code.params}
    reads: dict[str, int] = {}
    added: dict[str, int] = {}
    for segment in code.segments:
        for instr in segment.forward:
            for name in instr.inputs:
                reads[name] = reads.get(name, 0) + 1
        for instr in segment.backward:
            for name in instr.outputs:
                added[name] = added.get(name, 0) + 1
    found = []
    for k, segment in enumerate(code.segments):
        segment = joined(segment)
        moves = moves_of(segment, {i.on: () for i in segment.forward if i.kind not in LOCAL})
        here = Counter(name for i in segment.forward for name in i.inputs)
        for move in moves.values():
            alone = [move.source, *(i.outputs[0] for i in move.steps[:-1])]
            if (
                move.source in params
                and move.duals
                and any(_gathers(i, code) for i in move.steps)
                and all(reads[name] == 1 for name in alone)
                and reads.get(move.target, 0) == here[move.target]
                and added.get(GRAD + move.source) == 1
            ):
                found.append(_gather(move, k, code))
    return tuple(found)


def _gather(move: Move, segment: int, code: StageCode) -> Gather:
    names = frozenset((*(i.outputs[0] for i in move.steps), *(i.inputs[0] for i in move.duals)))
    return Gather(move.source, move.target, segment, _moving(move.steps, code), _moving(move.duals, code), names)


def _gathers(instr: Instr, code: StageCode) -> bool:
    return instr.collective == "all_gather" and code.mesh.size(instr.axes[0]) > 1


def _moving(instrs: Iterable[Instr], code: StageCode) -> tuple[Instr, ...]:
    return tuple(i for i in instrs if i.kind != "identity" and any(code.mesh.size(axis) > 1 for axis in i.axes))


def groups_of(gathers: Sequence[Gather], graph: Graph, capacity: int) -> tuple[Group, ...]:
    """Alike ones of a segment in their order, up to `capacity` bytes when gathered."""
    groups: list[list[Gather]] = []
    filling: dict[object, list[Gather]] = {}
    for g in gathers:
        dtype = dtype_of(graph.tensor[g.param])
        key = g.segment, dtype, tuple((i.kind, i.collective, i.axes) for i in g.steps)
        if key not in filling:
            filling[key] = []
            groups.append(filling[key])
        filling[key].append(g)
        if sum(prod(graph.tensor[m.param].shape) for m in filling[key]) * dtype.itemsize >= capacity:
            del filling[key]
    return tuple(Group(tuple(members)) for members in groups)


def again(gathers: Sequence[Gather], code: StageCode) -> tuple[Gather, ...]:
    """Those that rerun lists make again, in the order of the backward."""
    made = [{n for i in segment.rerun for n in i.outputs} for segment in code.segments]
    return tuple(g for k in reversed(range(len(made))) for g in gathers if g.segment == k and g.value in made[k])


def without(code: StageCode, gathers: Sequence[Gather]) -> StageCode:
    """The stage without the conversions that gathers stand for; rerun lists stay."""
    gone = {name for g in gathers for name in g.stands_for}
    return replace(
        code,
        segments=tuple(
            replace(
                s,
                forward=tuple(i for i in s.forward if i.kind in LOCAL or i.outputs[0] not in gone),
                backward=tuple(i for i in s.backward if i.kind in LOCAL or i.inputs[0] not in gone),
            )
            for s in code.segments
        ),
    )


class Gathered:
    """What a stage's gathers mean for its segments."""

    def __init__(self, code: StageCode, graph: Graph, capacity: int) -> None:
        gathers = gathers_of(code)
        self.groups = groups_of(gathers, graph, capacity)
        """In the order of the forward."""
        self.again = groups_of(again(gathers, code), graph, capacity)
        """In the order of the backward."""
        self.left = without(code, gathers)
        self.stands_for = frozenset(name for g in gathers for name in g.stands_for)
        self.group_of = {value: k for k, group in enumerate(self.groups) for value in group.values}

    def first_read(self, inputs: Sequence[Sequence[str]]) -> dict[int, tuple[int, ...]]:
        """`inputs`: of each unit of a segment. Unit -> the groups that none before it reads."""
        seen: set[int] = set()
        found: dict[int, tuple[int, ...]] = {}
        for u, names in enumerate(inputs):
            new = sorted({self.group_of[n] for n in names if n in self.group_of} - seen)
            if new:
                found[u] = tuple(new)
                seen.update(new)
        return found

    def again_in(self, segment: int) -> tuple[int, ...]:
        return tuple(k for k, group in enumerate(self.again) if group.members[0].segment == segment)


class Gathering:
    """Carries groups out on one rank, always in the order in which they are given."""

    def __init__(self, groups: Sequence[Group], graph: Graph, view: MeshView) -> None:
        self.groups = groups
        self._dtypes = [dtype_of(graph.tensor[g.members[0].param]) for g in groups]
        self._legs = [group_legs(g, graph, view) for g in groups]
        self._under_way: dict[int, Sent] = {}

    def take(self, k: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values of group k. The next group's collective begins before this one's is waited for.

        `weights`: parts at rest, the same ones until the last group is taken.
        """
        with torch.no_grad():
            self._start(k, weights)
            if k + 1 < len(self.groups):
                self._start(k + 1, weights)
            first = self._under_way.pop(k).received()
            values = through(self._legs[k][1:], first, self._dtypes[k])
        return dict(zip(self.groups[k].values, values, strict=True))

    def _start(self, k: int, weights: Mapping[str, Tensor]) -> None:
        if k not in self._under_way:
            own = [weights[g.param] for g in self.groups[k].members]
            self._under_way[k] = self._legs[k][0].start(own, self._dtypes[k])


def group_legs(group: Group, graph: Graph, view: MeshView) -> list[Leg]:
    """The steps of a group on one rank."""
    shapes = [graph.tensor[g.param].shape for g in group.members]
    return [Leg(step, shapes, view) for step in group.steps]
