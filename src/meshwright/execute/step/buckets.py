"""Which gradient sums, and which gathers of updated parameters, are carried out together.

A program names the way of each parameter's gradient: after each micro-batch (`grads`), at the end of the step (`update`,
before its optimizer), and the way of the updated parameter back (`update`, after it). Of a parameter that is gathered for
use, the sum that goes with the gather comes first (gathers.py). Parameters whose ways are alike
share buckets, in the order in which the backward completes their gradients. A bucket is full when it holds `capacity`
bytes of gradients (as in Li et al. 2020, "PyTorch Distributed", section 4.2). One collective a bucket and step of its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from ...graph.ir import Graph
from ...lower.parameters import STAGES
from ...lower.program import Instr, Param, StageCode
from ..ops.params import master_dtype
from ..ranks.mesh_groups import MeshView
from ..stage.flight import completed
from ..stage.gathers import gathers_of
from .rows import Leg, Step

CAPACITY = 25 * 2**20
"""Bytes: torch's DistributedDataParallel's default."""


@dataclass(frozen=True, slots=True)
class Way:
    """What happens to one parameter's gradient and to the updated parameter."""

    every: tuple[Instr, ...]
    """After each micro-batch."""
    sums: tuple[Instr, ...]
    """Once a step, before the optimizer."""
    gathers: tuple[Instr, ...]
    """After it."""
    tied: bool
    """A sum over the stages that hold a copy goes before `sums`."""

    def like(self) -> object:
        """Equal for ways that can share a bucket."""
        return self.tied, *(
            tuple((i.kind, i.collective, i.axes) for i in instrs) for instrs in (self.every, self.sums, self.gathers)
        )


@dataclass(frozen=True, slots=True)
class Bucket:
    params: tuple[Param, ...]
    every: tuple[Step, ...]
    sums: tuple[Step, ...]
    gathers: tuple[Step, ...]
    tied: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.params)


def ways(code: StageCode, *, parted: bool = False) -> dict[str, Way]:
    """By parameter. Instructions that move nothing are left out. `parted`: the backward comes in two parts."""
    every: dict[str, list[Instr]] = {p.name: [] for p in code.params}
    for gather in () if parted else gathers_of(code):
        every[gather.param] += gather.duals
    sums: dict[str, list[Instr]] = {p.name: [] for p in code.params}
    gathers: dict[str, list[Instr]] = {p.name: [] for p in code.params}
    tied: set[str] = set()
    updated: set[str] = set()
    for instr in code.grads:
        if _moves(instr, code):
            every[instr.on].append(instr)
    for instr in code.update:
        if instr.axes == (STAGES,) and instr.kind == "collective":
            tied.add(instr.on)
        elif instr.kind == "update":
            updated.add(instr.on)
        elif _moves(instr, code):
            (gathers if instr.on in updated else sums)[instr.on].append(instr)
    return {n: Way(tuple(every[n]), _joint(sums[n]), tuple(gathers[n]), n in tied) for n in every}


def _joint(instrs: Sequence[Instr]) -> tuple[Instr, ...]:
    """Sums over one axis after the other are one sum over all of them."""
    found: list[Instr] = []
    for instr in instrs:
        last = found[-1] if found else None
        both = last is not None and last.collective == instr.collective == "all_reduce"
        if last is not None and both and not set(last.axes) & set(instr.axes):
            found[-1] = replace(last, axes=(*last.axes, *instr.axes), outputs=instr.outputs)
        else:
            found.append(instr)
    return tuple(found)


def joint_axes(code: StageCode, *, parted: bool = False) -> set[tuple[str, ...]]:
    """Axes of the collectives that stand for several instructions."""
    return {i.axes for way in ways(code, parted=parted).values() for i in way.sums if len(i.axes) > 1}


def _moves(instr: Instr, code: StageCode) -> bool:
    return instr.kind != "identity" and any(code.mesh.size(axis) > 1 for axis in instr.axes)


def buckets_of(
    code: StageCode,
    graph: Graph,
    capacity: int = CAPACITY,
    *,
    parted: bool = False,
    apart: Mapping[str, object] = MappingProxyType({}),
) -> tuple[Bucket, ...]:
    """The buckets of one stage, in the order in which their last gradients are completed; the same on every rank.

    `apart`: parameter -> with what it may share a bucket: parameters of an equal value only.
    """
    way, params = ways(code, parted=parted), {p.name: p for p in code.params}
    order = [name for names in reversed(completed(code)) for name in names]
    order += [name for name in params if name not in set(order)]
    place = {name: k for k, name in enumerate(order)}
    filling: dict[object, list[str]] = {}
    full: list[list[str]] = []
    for name in order:
        key = way[name].like(), graph.tensor[name].dtype, apart.get(name)
        names = filling.setdefault(key, [])
        names.append(name)
        if sum(params[n].elements[1] for n in names) * master_dtype(graph.tensor[name]).itemsize >= capacity:
            full.append(filling.pop(key))
    full += filling.values()
    return tuple(_bucket([params[n] for n in names], way) for names in sorted(full, key=lambda names: place[names[-1]]))


def _bucket(params: Sequence[Param], way: Mapping[str, Way]) -> Bucket:
    own = [way[p.name] for p in params]
    return Bucket(
        tuple(params),
        tuple(zip(*(w.every for w in own), strict=True)),
        tuple(zip(*(w.sums for w in own), strict=True)),
        tuple(zip(*(w.gathers for w in own), strict=True)),
        own[0].tied,
    )


def legs(steps: Iterable[Step], bucket: Bucket, graph: Graph, view: MeshView) -> list[Leg]:
    """The steps of a bucket on one rank."""
    shapes = [graph.tensor[name].shape for name in bucket.names]
    return [Leg(step, shapes, view) for step in steps]
