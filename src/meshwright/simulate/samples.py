"""How many samples of a micro-batch lie on the fullest device, and what grows with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod
from typing import TypeAlias

import numpy as np

from ..cluster.model import Mesh
from ..graph.ir import Floats, Ints, Op
from ..lower.parts import MARK, local_count, over_largest
from ..lower.program import Instr

At: TypeAlias = Mapping[str, Collection[int]]
"""Axis -> the coordinates of some devices of a mesh."""


class Samples:
    """Samples [n] of a micro-batch on the fullest device, by the axes that cut them."""

    def __init__(self, mesh: Mesh, usual: tuple[str, ...], micro: Ints, at: At | None = None) -> None:
        """`usual`: axes of most ops of a segment, and of those that say nothing. `at`: the fullest device of these alone."""
        self.n = len(micro)
        self._mesh, self._usual, self._micro, self._at = mesh, usual, micro, at
        self._known: dict[tuple[str, ...], Ints] = {}

    def over(self, axes: tuple[str, ...]) -> Ints:
        if axes not in self._known:
            self._known[axes] = local_samples(self._mesh, axes, self._micro, self._at)
        return self._known[axes]

    def of(self, instr: Instr) -> Ints:
        """Of one op: experts see the samples of all devices that share them."""
        return self.over(self._usual if instr.samples is None else instr.samples)


def local_samples(mesh: Mesh, axes: tuple[str, ...], micro: Ints, at: At | None = None) -> Ints:
    """Samples [n] on the fullest device of micro-batches that are cut over `axes`."""
    if not any(MARK in a for a in axes):
        equal: Ints = -(-micro // prod(mesh.size(a) for a in axes))
        return equal
    return np.array([local_count(n, axes, mesh, at) for n in micro.tolist()], np.int64)


def affine(columns: tuple[float, float], local: Ints) -> Floats:
    """Fixed bytes, and bytes per local sample -> bytes [n]."""
    found: Floats = columns[0] + columns[1] * local.astype(np.float64)
    return found


def own_sizes(instr: Instr, op: Op, at: At | None) -> Instr:
    """The same with the sizes of the largest parts at these coordinates, where cuts have weights."""
    if at is None or not any(c.weights for _, cuts in instr.cuts for c in cuts):
        return instr
    share = {
        name: prod(over_largest(c, at[c.axis]) for c in cuts) for name, cuts in instr.cuts if not op.rule.factor(name).samples
    }  # fmt: skip
    sizes = tuple(n * share.get(f.name, 1.0) for n, f in zip(instr.sizes, op.rule.factors, strict=True))
    return replace(instr, sizes=sizes)


def sizes_of(instr: Instr, op: Op, local: Ints) -> Ints:
    """Local factor sizes [n, factors] at `local` samples."""
    per_sample = np.array([f.samples for f in op.rule.factors], bool)
    sizes = np.array(instr.sizes, np.float64)
    found: Ints = np.ceil(np.where(per_sample, sizes * local[:, None], sizes) - 1e-9).astype(np.int64)
    return found
