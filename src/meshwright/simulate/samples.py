"""How many samples of a micro-batch lie on the fullest device, and what grows with them."""

from __future__ import annotations

from math import prod

import numpy as np

from ..cluster.model import Mesh
from ..graph.ir import Floats, Ints, Op
from ..lower.program import Instr


class Samples:
    """Samples [n] of a micro-batch on the fullest device, by the axes that cut them."""

    def __init__(self, mesh: Mesh, usual: tuple[str, ...], micro: Ints) -> None:
        """`usual`: axes of most ops of a segment, and of those that say nothing."""
        self.n = len(micro)
        self._mesh, self._usual, self._micro = mesh, usual, micro
        self._known: dict[tuple[str, ...], Ints] = {}

    def over(self, axes: tuple[str, ...]) -> Ints:
        if axes not in self._known:
            self._known[axes] = local_samples(self._mesh, axes, self._micro)
        return self._known[axes]

    def of(self, instr: Instr) -> Ints:
        """Of one op: experts see the samples of all devices that share them."""
        return self.over(self._usual if instr.samples is None else instr.samples)


def local_samples(mesh: Mesh, axes: tuple[str, ...], micro: Ints) -> Ints:
    """Samples [n] on the fullest device of micro-batches that are cut over `axes`."""
    parts = prod(mesh.size(a) for a in axes)
    found: Ints = -(-micro // parts)
    return found


def affine(columns: tuple[float, float], local: Ints) -> Floats:
    """Fixed bytes, and bytes per local sample -> bytes [n]."""
    found: Floats = columns[0] + columns[1] * local.astype(np.float64)
    return found


def sizes_of(instr: Instr, op: Op, local: Ints) -> Ints:
    """Local factor sizes [n, factors] at `local` samples."""
    per_sample = np.array([f.samples for f in op.rule.factors], bool)
    sizes = np.array(instr.sizes, np.float64)
    found: Ints = np.ceil(np.where(per_sample, sizes * local[:, None], sizes) - 1e-9).astype(np.int64)
    return found
