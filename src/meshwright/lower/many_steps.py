"""`convert.steps` of many pairs of layouts at once: what planners price by the hundred thousand.

A layout is a row of numbers: per axis of the mesh the atom that it cuts, −1 for none. That says all where axes that cut one
atom stand in the order of the mesh, as planners have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .convert import Axes, Do

Where = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """One step that some of the conversions take along one axis."""

    rows: Where
    """Which conversions."""
    forward: Do
    backward: Do
    axis: int
    before: Where
    """[rows, axes] their layouts."""
    after: Where


def where_of(layouts: Sequence[Axes], axes: Sequence[str]) -> Where:
    """[layouts, axes] the atom that each axis cuts."""
    place = {x: k for k, x in enumerate(axes)}
    found = np.full((len(layouts), len(axes)), -1, np.int64)
    for row, layout in zip(found, layouts, strict=True):
        for atom, cut in enumerate(layout):
            for x in cut:
                row[place[x]] = atom
    return found


def many_steps(src: Where, dst: Where, summed: Mask, may_pad: Mask, axes: Sequence[str]) -> Iterator[Round]:
    """Steps from layouts `src` to `dst`, all [conversions, axes]; each conversion's in the order in which it takes them.

    Args:
        summed: axes over which the gradient of what is converted is a partial sum.
        may_pad: axes on which the gradient may stay a partial sum.
    """
    now = src.copy()
    wanted = dst >= 0
    for atom in range(int(max(src.max(initial=-1), dst.max(initial=-1))) + 1):
        differs = (now == atom) != (dst == atom)
        removed = np.logical_or.accumulate(differs, axis=1) & (now == atom)
        for x in reversed(range(len(axes))):  # remove what is not wanted, minor axis first
            rows = np.flatnonzero(removed[:, x])
            if not len(rows):
                continue
            into = dst[rows, x]
            goal = (into >= 0) & (into != atom)
            for y in range(len(axes)):
                there = now[rows, y] == into
                goal &= there == (dst[rows, y] == into) if y < x else ~there | (y == x)
            sums = summed[rows, x] & ~wanted[rows, x]
            yield from _round(now, rows[goal], "all_to_all", "all_to_all", x, into[goal])
            yield from _round(now, rows[~goal & sums], "all_gather", "reduce_scatter", x, -1)
            yield from _round(now, rows[~goal & ~sums], "all_gather", "slice", x, -1)
    for atom in range(int(dst.max(initial=-1)) + 1):
        for x in range(len(axes)):  # replicated -> cut
            rows = np.flatnonzero((dst[:, x] == atom) & (now[:, x] != atom))
            pads = may_pad[rows, x]
            yield from _round(now, rows[pads], "slice", "pad", x, atom)
            yield from _round(now, rows[~pads], "slice", "all_gather", x, atom)
    copies = summed & ~wanted & (src < 0)
    for x in sorted(range(len(axes)), key=lambda x: axes[x]):  # copies whose gradients are parts of a sum
        yield from _round(now, np.flatnonzero(copies[:, x]), "identity", "all_reduce", x, -1)


def _round(now: Where, rows: Where, forward: Do, backward: Do, axis: int, atom: Where | int) -> Iterator[Round]:
    """Take one step."""
    if len(rows):
        before = now[rows]
        now[rows, axis] = atom
        yield Round(rows, forward, backward, axis, before, now[rows])
