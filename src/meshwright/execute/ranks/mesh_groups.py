"""Process groups of mesh axes, and where this rank stands on each mesh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ...cluster.model import Mesh
from ...lower.parameters import STAGES
from ...lower.program import Program
from .clock import Clock

Members = tuple[int, ...]
"""World ranks of one group, in the order of their coordinates."""
Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Channel = tuple[bool, Direction]
"""(whether the receiver's rank is the higher one, what is sent)."""


class Groups:
    """Process groups by their members, made once. Every rank must ask for the same groups in the same order."""

    def __init__(self) -> None:
        self.clock = Clock()
        """Where the time of this rank goes."""
        self._made: dict[Members, dist.ProcessGroup] = {}
        self._channels: dict[Channel, dist.ProcessGroup] = {}
        self._aside: dist.ProcessGroup | None = None
        self._meshes: dict[tuple[object, ...], DeviceMesh] = {}

    def prepare(self, wanted: Iterable[Members]) -> None:
        """Makes those that do not exist yet. Collective over all ranks."""
        for members in sorted({tuple(sorted(m)) for m in wanted if len(m) > 1}):
            if members not in self._made:
                self._made[members] = dist.new_group(list(members))

    def of(self, members: Members) -> dist.ProcessGroup:
        return self._made[tuple(sorted(members))]

    def open_channels(self) -> None:
        """Makes those that do not exist yet. Collective over all ranks."""
        for upwards in (True, False):
            for direction in DIRECTIONS:
                if (upwards, direction) not in self._channels:
                    self._channels[upwards, direction] = dist.new_group()

    def aside(self) -> dist.ProcessGroup | None:
        """All ranks, for what goes on beside the steps on a thread of its own; None without a world. Collective.

        One for all runtimes of these ranks, which write one after the other: a group of gloo has a thread that wakes a
        hundred times a second as long as its process lives.
        """
        if self._aside is None and dist.is_initialized() and dist.get_world_size() > 1:
            self._aside = dist.new_group(backend="gloo")
        return self._aside

    def device_mesh(self, device: str, ranks: Members, axes: Mapping[str, int]) -> DeviceMesh:
        """torch's mesh of `ranks`, row major over `axes`, made once. Collective over all ranks."""
        key = (device, ranks, *axes.items())
        if key not in self._meshes:
            at = torch.tensor(ranks, dtype=torch.int).reshape(tuple(axes.values()))
            self._meshes[key] = DeviceMesh(device, at, mesh_dim_names=tuple(axes))
        return self._meshes[key]

    def channel(self, source: int, target: int, direction: Direction) -> dist.ProcessGroup:
        """The group in which the rank `source` sends values ("forward") or gradients ("backward") to `target`.

        NCCL knows no tags: messages between two ranks of one group run on one stream, in the order in which each end asks
        for them. Two ranks that send to each other, or one that sends values and gradients, would wait for each other
        there. Within a channel both ends follow the schedule, hence one order.
        """
        return self._channels[source < target, direction]


def ranks_of(program: Program) -> Mapping[int, int]:
    """Device -> world rank: the devices that the program uses, in rising order."""
    return {device: rank for rank, device in enumerate(sorted({d for s in program.stages for d in s.mesh.devices}))}


@dataclass(frozen=True)
class MeshView:
    """One mesh seen from one rank."""

    mesh: Mesh
    rank: int
    ranks: Mapping[int, int]
    """Device -> world rank."""
    groups: Groups

    @cached_property
    def position(self) -> int:
        """Index of this rank in `mesh.devices`."""
        return [self.ranks[d] for d in self.mesh.devices].index(self.rank)

    @cached_property
    def coords(self) -> Mapping[str, int]:
        return self.mesh.coordinates(self.position)

    def size(self, axes: Sequence[str]) -> int:
        n = 1
        for axis in axes:
            n *= self.mesh.size(axis)
        return n

    @cached_property
    def _met(self) -> dict[tuple[str, ...], tuple[Members, Members]]:
        """Axes -> members and order: asked for in every collective."""
        return {}

    def _meeting(self, axes: Sequence[str]) -> tuple[Members, Members]:
        key = tuple(axes)
        if key not in self._met:
            found = members(self.mesh, self.ranks, key, self.coords)
            by_rank = sorted(found)
            self._met[key] = found, tuple(by_rank.index(r) for r in found)
        return self._met[key]

    def members(self, axes: Sequence[str]) -> Members:
        """Ranks that differ from this one along `axes` only, by coordinate (first axis major)."""
        return self._meeting(axes)[0]

    def group(self, axes: Sequence[str]) -> dist.ProcessGroup:
        return self.groups.of(self.members(axes))

    def order(self, axes: Sequence[str]) -> tuple[int, ...]:
        """Per coordinate along `axes`: its index inside the process group, whose ranks are sorted."""
        return self._meeting(axes)[1]

    @cached_property
    def prepared(self) -> dict[int, tuple[Any, Any]]:
        """What other modules work out once for an instruction: id -> (the instruction, which lives as long, what it is)."""
        return {}


def members(mesh: Mesh, ranks: Mapping[int, int], axes: tuple[str, ...], coords: Mapping[str, int]) -> Members:
    """Ranks of the group along `axes` through `coords`; axes that the mesh has not count as size 1."""
    found = []
    for index in product(*(range(mesh.size(axis)) for axis in axes)):
        at = {**coords, **dict(zip(axes, index, strict=True))}
        position = 0
        for axis, n in zip(mesh.axes, mesh.shape, strict=True):
            position = position * n + at[axis]
        found.append(ranks[mesh.devices[position]])
    return tuple(found)


def needed_groups(program: Program, joint: Mapping[int, Iterable[tuple[str, ...]]]) -> set[Members]:
    """Every group that some instruction or tied weight of the program works in.

    `joint`: stage -> axes of collectives that stand for several instructions.
    """
    ranks = ranks_of(program)
    found: set[Members] = set()
    tied = {(s.stage, i.on) for s in program.stages for i in s.update if i.communicates and i.axes == (STAGES,)}
    for stage in program.stages:
        segments = (*stage.segments, *stage.keeping)
        used = {i.axes for s in segments for i in (*s.forward, *s.rerun, *s.backward) if i.communicates}
        used |= {i.axes for i in (*stage.grads, *stage.update) if i.communicates and i.axes != (STAGES,)}
        used |= set(joint.get(stage.stage, ()))
        positions = range(len(stage.mesh.devices))
        for axes in used:
            found |= {members(stage.mesh, ranks, axes, stage.mesh.coordinates(p)) for p in positions}
        for param in stage.params:
            if (stage.stage, param.name) in tied:
                found |= {sharing(program, ranks, (stage.stage, *param.shared), p) for p in positions}
    return found


def sharing(program: Program, ranks: Mapping[int, int], stages: Sequence[int], position: int) -> Members:
    """Ranks at one position of the meshes of several stages: they hold the same part of a tied weight."""
    return tuple(dict.fromkeys(ranks[program.stages[s].mesh.devices[position]] for s in sorted(stages)))
