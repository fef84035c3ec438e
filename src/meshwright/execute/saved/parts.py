"""The boxes of whole tensors that local parts consist of: what is written to and read from files.

A part of a fused or cut-inside dim is several rectangles of the whole tensor; each is a view of the local tensor, so a
reader fills the part in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ...errors import ExecutionError
from ...plan.layout import Box, boxes, local_shape
from ...plan.model import Layout
from ..ranks.mesh_groups import MeshView


@dataclass(frozen=True, slots=True)
class PlacedBox:
    """A rectangle of a tensor, and where it lies in the local part."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    view: Tensor

    @property
    def slices(self) -> tuple[slice, ...]:
        """Of the whole tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offsets, self.sizes, strict=True))


@dataclass(frozen=True, slots=True)
class Part:
    """The local part of one tensor."""

    shape: tuple[int, ...]
    """Of the whole."""
    boxes: tuple[PlacedBox, ...]
    """Those that hold elements."""
    dtype: torch.dtype

    @staticmethod
    def of(local: Tensor, shape: Sequence[int], layout: Layout, view: MeshView) -> Part:
        """`local`: this rank's part of a tensor of `shape` under `layout`; the boxes are views of it."""
        found = boxes(layout, shape, view.mesh, view.coords)
        local = local.view(local_shape(layout, shape, view.mesh, view.coords))
        return Part(tuple(shape), tuple(b for b in _placed(found, local) if b.view.numel()), local.dtype)

    @staticmethod
    def whole(tensor: Tensor) -> Part:
        """A tensor that this rank holds whole."""
        shape = tuple(tensor.shape)
        return Part(shape, (PlacedBox((0,) * len(shape), shape, tensor),), tensor.dtype)

    def staged(self) -> Part:
        """The same in memory of its own on the CPU, which later steps do not change."""
        copies = (b.view.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for b in self.boxes)
        return Part(
            self.shape,
            tuple(PlacedBox(b.offsets, b.sizes, c) for b, c in zip(self.boxes, copies, strict=True)),
            self.dtype,
        )


def _placed(found: Sequence[Box], local: Tensor) -> Iterator[PlacedBox]:
    """Boxes are a product of ranges per dim; a part is those ranges one behind the other."""
    starts = []
    for d in range(local.dim()):
        at, places = 0, {}
        for lo, hi in sorted({(lo[d], hi[d]) for lo, hi in found}):
            places[lo, hi] = at
            at += hi - lo
        starts.append(places)
    if found and math.prod(map(len, starts)) != len(found):
        raise ExecutionError("a part that is no product of ranges cannot be saved")
    for pick in product(*starts) if found else ():
        view = local
        for d, (lo, hi) in enumerate(pick):
            view = view.narrow(d, starts[d][lo, hi], hi - lo)
        yield PlacedBox(tuple(lo for lo, _ in pick), tuple(hi - lo for lo, hi in pick), view)
