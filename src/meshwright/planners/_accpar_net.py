"""What AccPar sees of a graph: layers that multiply by weights, joins of several results, and the tensors between them.

All sizes are per half of the array so far: cutting a layer by its type shrinks one of its three dims (`shrunk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..cost.accpar_elements import COLUMNS, ROWS, TYPE_I, TYPE_II, TYPE_III
from ..graph.ir import Floats


@dataclass(frozen=True, slots=True)
class Sizes:
    """float64[layers] each. A join has no kernel, and as many columns out as in."""

    samples: Floats
    """B: rows of F."""
    columns_in: Floats
    """Di"""
    columns_out: Floats
    """Do"""
    map_in: Floats
    """Elements of F for a row and a column: the area of the map that a convolution reads."""
    map_out: Floats
    kernel: Floats
    """Weights for a column in and a column out: the area of a kernel; 0 of a join."""

    @property
    def inputs(self) -> Floats:
        """|F| = |E|"""
        return self.samples * self.columns_in * self.map_in

    @property
    def outputs(self) -> Floats:
        """|F'|"""
        return self.samples * self.columns_out * self.map_out

    @property
    def weights(self) -> Floats:
        """|W|"""
        return self.columns_in * self.columns_out * self.kernel

    @property
    def flops(self) -> Floats:
        """Of the three products; every output element of a convolution is an inner product over the area of its kernel,
        every weight one over that of the output map."""
        forward = self.outputs * (2 * self.columns_in * self.kernel - 1)
        backward = self.inputs * (2 * self.columns_out * self.kernel - 1)
        gradient = self.weights * (2 * self.samples * self.map_out - 1)
        return np.where(self.kernel > 0, forward + backward + gradient, 0.0)

    def shrunk(self, types: Sequence[int], share: Floats | float = 0.5) -> Sizes:
        """The sizes of one half, which does `share` of each layer."""
        t = np.asarray(types)
        share = np.broadcast_to(np.asarray(share, np.float64), t.shape)
        rows = (t == TYPE_I) | (t == ROWS)
        return replace(
            self,
            samples=np.where(rows, self.samples * share, self.samples),
            columns_in=np.where((t == TYPE_II) | (t == COLUMNS), self.columns_in * share, self.columns_in),
            columns_out=np.where((t == TYPE_III) | (t == COLUMNS), self.columns_out * share, self.columns_out),
        )


class Parts(Protocol):
    """How often, and where, each type can still cut each layer."""

    def types(self, layer: int) -> tuple[int, ...]:
        """Types that a layer may have at this level, ascending; (COPIES,) if nothing can be cut."""

    def halved(self, types: Sequence[int]) -> Parts:
        """The same at the next level."""


@dataclass(frozen=True)
class Net:
    """Layers and joins in program order. Edges go forward; that from the layer before, if any, is the first of a layer."""

    names: tuple[str, ...]
    conv: tuple[bool, ...]
    join: tuple[bool, ...]
    sizes: Sizes
    edges: tuple[tuple[int, int], ...]
    parts: Parts

    def __len__(self) -> int:
        return len(self.names)

    @property
    def reads(self) -> list[list[int]]:
        """Per layer what it reads, the nearest first."""
        found: list[list[int]] = [[] for _ in self.names]
        for u, v in self.edges:
            found[v].append(u)
        return [sorted(us, reverse=True) for us in found]


@dataclass(frozen=True, slots=True)
class AnyParts:
    """Of a description: every type cuts every layer, whatever is left of it, as the original program has it."""

    joins: tuple[bool, ...]

    def types(self, layer: int) -> tuple[int, ...]:
        return (TYPE_I, TYPE_II, TYPE_III)

    def halved(self, types: Sequence[int]) -> AnyParts:
        return self
