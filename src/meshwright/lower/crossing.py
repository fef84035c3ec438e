"""Who sends what to whom when a value goes from one mesh to another: overlaps of index ranges.

    12 rows, from 3 replicas to 2        sender 0  rows 0-3   ──▶ receiver 0
                                         sender 1  rows 4-7   ──▶ receiver 0 (rows 4, 5), receiver 1 (rows 6, 7)
                                         sender 2  rows 8-11  ──▶ receiver 1

DAPPLE's split and concat are the case of one cut dim. In each dim the parts of both sides are laid over each other, so
that the work grows with the pieces that move, not with pairs of devices. Every receiver gets all of its part. Of senders
that hold the same part it takes from itself, if it is one; otherwise the receivers of a part take its holders in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from ..cluster.model import Mesh
from ..graph.ir import Ints
from ..plan.layout import part_ranges
from ..plan.model import Layout, SubDim

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""(start, length) in one dim of a local tensor, ascending."""


@dataclass(frozen=True, slots=True)
class Message:
    """One piece: what a sender takes of its part, and where a receiver puts it. Shapes of both are equal."""

    peer: int
    """Position in the other mesh."""
    ranges: tuple[Ranges, ...]
    """Per dim, in the own local tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(sum(n for _, n in dim) for dim in self.ranges)


@dataclass(frozen=True, slots=True, eq=False)
class _Dim:
    """One dim: elementary ranges that lie in one part of each side, ascending."""

    lengths: Ints
    """[range]"""
    parts: tuple[Ints, Ints]
    """Per side, [range]: number of the part."""
    starts: tuple[Ints, Ints]
    """Per side, [range]: where it begins in the local tensor."""
    counts: tuple[int, int]
    """Per side: parts, empty ones too."""
    pairs: Ints
    """[pair, 2]: parts that overlap."""
    elements: Ints
    """[pair]"""


class Crossing:
    """All pieces of one value from mesh `a` to mesh `b`."""

    def __init__(self, layouts: tuple[Layout, Layout], meshes: tuple[Mesh, Mesh]) -> None:
        """`layouts`: with explicit sizes, nothing partial; where the value rests on each mesh."""
        self._dims = [_overlaid((a, b), meshes) for a, b in zip(layouts[0].dims, layouts[1].dims, strict=True)]
        own = [
            _part_of_position(layout, mesh, side, self._dims)
            for side, (layout, mesh) in enumerate(zip(layouts, meshes))
        ]
        self._own = own
        pairs, elements = _product(self._dims)
        counts = [dim.counts for dim in self._dims]
        source, target, self.elements = _matched(own, pairs, elements, meshes, counts)
        self.source: Ints = source
        """[message]: position of the sender."""
        self.target: Ints = target
        """[message]: position of the receiver."""

    def sent(self, position: int) -> list[Message]:
        """What the sender at `position` takes of its part, for whom."""
        return self._messages(0, position)

    def received(self, position: int) -> list[Message]:
        """What the receiver at `position` gets, from whom, and where it goes; together they fill its part."""
        return self._messages(1, position)

    def _messages(self, side: int, position: int) -> list[Message]:
        ends = self.source, self.target
        found = []
        for m in np.flatnonzero(ends[side] == position).tolist():
            other = int(ends[1 - side][m])
            parts = [self._own[0][int(self.source[m])], self._own[1][int(self.target[m])]]
            ranges = tuple(_ranges(dim, side, int(a), int(b)) for dim, a, b in zip(self._dims, *parts, strict=True))
            found.append(Message(other, ranges))
        return found


def _ranges(dim: _Dim, side: int, a: int, b: int) -> Ranges:
    here = np.flatnonzero((dim.parts[0] == a) & (dim.parts[1] == b))
    found: list[tuple[int, int]] = []
    for start, n in zip(dim.starts[side][here].tolist(), dim.lengths[here].tolist(), strict=True):
        if found and sum(found[-1]) == start:
            found[-1] = found[-1][0], found[-1][1] + n
        else:
            found.append((start, n))
    return tuple(found)


def _axes(dim: tuple[SubDim, ...], mesh: Mesh) -> tuple[str, ...]:
    """Axes longer than 1 that cut a dim; parts are numbered by them, the first major."""
    return tuple(c.axis for _, cuts in dim for c in cuts if mesh.size(c.axis) > 1)


def _overlaid(dims: tuple[tuple[SubDim, ...], tuple[SubDim, ...]], meshes: tuple[Mesh, Mesh]) -> _Dim:
    tables = []
    counts = []
    for dim, mesh in zip(dims, meshes):
        axes = _axes(dim, mesh)
        shape = tuple(mesh.size(a) for a in axes)
        rows: list[tuple[int, int, int, int]] = []
        for number, index in enumerate(np.ndindex(*shape)):
            local = 0
            for lo, hi in part_ranges(dim, mesh, dict(zip(axes, index, strict=True))):
                rows.append((lo, hi, number, local))
                local += hi - lo
        tables.append(np.array(sorted(rows), np.int64).reshape(len(rows), 4))
        counts.append(prod(shape))
    borders = np.unique(np.concatenate([t[:, :2].ravel() for t in tables]))
    begin = borders[:-1]
    rows_at = [np.searchsorted(t[:, 0], begin, side="right") - 1 for t in tables]
    parts = tuple(t[k, 2] for t, k in zip(tables, rows_at))
    starts = tuple(t[k, 3] + begin - t[k, 0] for t, k in zip(tables, rows_at))
    lengths = np.diff(borders)
    both = np.stack(parts, axis=1)
    pairs, which = np.unique(both, axis=0, return_inverse=True)
    elements = np.zeros(len(pairs), np.int64)
    np.add.at(elements, which.ravel(), lengths)
    return _Dim(lengths, (parts[0], parts[1]), (starts[0], starts[1]), (counts[0], counts[1]), pairs, elements)


def _part_of_position(layout: Layout, mesh: Mesh, side: int, dims: list[_Dim]) -> Ints:
    """[position, dim]: the part that each device holds."""
    coords = np.indices(mesh.shape).reshape(len(mesh.shape), len(mesh.devices))
    found = np.zeros((len(mesh.devices), len(dims)), np.int64)
    for d, dim in enumerate(layout.dims):
        for axis in _axes(dim, mesh):
            found[:, d] = found[:, d] * mesh.size(axis) + coords[mesh.axes.index(axis)]
    return found


def _product(dims: list[_Dim]) -> tuple[tuple[Ints, Ints], Ints]:
    """Pairs of parts of whole tensors that overlap, each as (number [pair] of the part on each side), and their elements."""
    numbers = [np.zeros(1, np.int64), np.zeros(1, np.int64)]
    elements = np.ones(1, np.int64)
    for dim in dims:
        for side in (0, 1):
            numbers[side] = (numbers[side][:, None] * dim.counts[side] + dim.pairs[None, :, side]).ravel()
        elements = (elements[:, None] * dim.elements[None, :]).ravel()
    return (numbers[0], numbers[1]), elements


def _matched(
    own: list[Ints], pairs: tuple[Ints, Ints], elements: Ints, meshes: tuple[Mesh, Mesh], counts: list[tuple[int, int]]
) -> tuple[Ints, Ints, Ints]:
    """(sender, receiver, elements) of all messages: each receiver once a pair. `own`: see `_part_of_position`."""
    number = [np.zeros(len(x), np.int64) for x in own]
    for side in (0, 1):
        for d, count in enumerate(counts):
            number[side] = number[side] * count[side] + own[side][:, d]
    holders = [np.argsort(x, kind="stable").reshape(prod(c[side] for c in counts), -1) for side, x in enumerate(number)]
    target = holders[1][pairs[1]]
    source_part = np.repeat(pairs[0], target.shape[1])
    moved = np.repeat(elements, target.shape[1])
    target = target.ravel()
    order = np.lexsort((target, source_part))
    source_part, target, moved = source_part[order], target[order], moved[order]
    turn = np.arange(len(target)) - np.searchsorted(source_part, source_part)
    source = holders[0][source_part, turn % holders[0].shape[1]]
    at = {device: position for position, device in enumerate(meshes[0].devices)}
    here = np.array([at.get(device, -1) for device in meshes[1].devices], np.int64)[target]
    itself = (here >= 0) & (number[0][here] == source_part)
    return np.where(itself, here, source), target, moved
