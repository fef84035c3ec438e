"""Mesh axes and their sub-axes, in order: the algebra in which shardings are propagated (Shardy's axis lists).

Axis x of size n seen as [pre, size, n / (pre · size)]: its middle is the sub-axis x:(pre)size.

    x of 8            0 1 2 3 4 5 6 7
    x:(1)2            0 0 0 0 1 1 1 1      the major half
    x:(2)4            0 1 2 3 0 1 2 3      what is left of it
    x:(1)2, x:(2)4    adjacent in one dim: the same as x

A list of axes cuts one dim, major first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, prod
from typing import NamedTuple, TypeAlias

from ..cluster.model import Mesh
from ..errors import InputError, Unsupported

_WORD = re.compile(r"(\w[\w.]*)(?::\((\d+)\)(\d+))?")


class Axis(NamedTuple):
    """A part of a mesh axis; the whole axis has pre 1 and its full size."""

    name: str
    pre: int
    size: int

    @property
    def post(self) -> int:
        """Product of all that is major to the rest of the axis."""
        return self.pre * self.size

    def first(self, size: int) -> Axis:
        """Its major part of `size`, which divides it."""
        return Axis(self.name, self.pre, size)

    def after(self, size: int) -> Axis:
        """What `first(size)` leaves."""
        return Axis(self.name, self.pre * size, self.size // size)

    def overlaps(self, other: Axis) -> bool:
        return self == other or (self.name == other.name and self.pre < other.post and other.pre < self.post)

    def begins(self, other: Axis) -> bool:
        """Whether it is the major part of `other`, or all of it."""
        return self.name == other.name and self.pre == other.pre and other.size % self.size == 0


Axes: TypeAlias = tuple[Axis, ...]


def whole(name: str, sizes: Mapping[str, int]) -> Axis:
    return Axis(name, 1, sizes[name])


def clear_of(axis: Axis, others: Iterable[Axis]) -> Axis | None:
    """The longest major part of `axis` that overlaps none of `others`; None if there is none."""
    for other in others:
        if axis.overlaps(other):
            size, odd = divmod(other.pre, axis.pre)
            if size < 2 or odd or axis.size % size:
                return None
            axis = axis.first(size)
    return axis


def merged(axes: Iterable[Axis]) -> Axes:
    """With adjacent sub-axes joined."""
    found: list[Axis] = []
    for axis in axes:
        if found and found[-1].name == axis.name and found[-1].post == axis.pre:
            axis = Axis(axis.name, found[-1].pre, found[-1].size * axis.size)
            found.pop()
        found.append(axis)
    return tuple(found)


def common(left: Axis, right: Axis) -> Axis | None:
    """The longest major part that both begin with."""
    if left.name != right.name or left.pre != right.pre:
        return None
    size = gcd(left.size, right.size)
    return left.first(size) if size > 1 or left.size == right.size else None


def is_prefix(short: Axes, long: Axes) -> bool:
    """Whether `long` refines `short`: it begins with it, the last axis of `short` may be a part of that of `long`."""
    if not short:
        return True
    if len(short) > len(long) or short[:-1] != long[: len(short) - 1]:
        return False
    return short[-1].begins(long[len(short) - 1])


def is_strict_prefix(short: Axes, long: Axes) -> bool:
    return short != long and is_prefix(short, long)


def parts(axes: Iterable[Axis]) -> int:
    """How many pieces the axes cut a dim into."""
    return prod(axis.size for axis in axes)


def word(axis: Axis, sizes: Mapping[str, int]) -> str:
    """ "x", or "x:(1)2" for a part of it."""
    return axis.name if axis == whole(axis.name, sizes) else f"{axis.name}:({axis.pre}){axis.size}"


def words(axes: Sequence[Axis], sizes: Mapping[str, int]) -> str:
    """ "x+y"; "_" for none."""
    return "+".join(word(axis, sizes) for axis in axes) or "_"


def read_axis(text: str, sizes: Mapping[str, int]) -> Axis:
    """The axis that `word` writes so.

    Raises:
        InputError: no such axis, or a part that its size does not have.
    """
    found = _WORD.fullmatch(text)
    if found is None or found[1] not in sizes:
        raise InputError(f'no axis "{text}" in this mesh: it has {", ".join(sizes) or "none"}')
    if found[2] is None:
        return whole(text, sizes)
    return checked(Axis(found[1], int(found[2]), int(found[3])), sizes)


def checked(axis: Axis, sizes: Mapping[str, int]) -> Axis:
    """`axis`, if the mesh has it.

    Raises:
        InputError: no such axis, or pre · size does not divide it.
    """
    if axis.name not in sizes:
        raise InputError(f'no axis "{axis.name}" in this mesh: it has {", ".join(sizes) or "none"}')
    n = sizes[axis.name]
    if axis.pre < 1 or axis.size < 1 or n % axis.post:
        raise InputError(
            f'"{axis.name}:({axis.pre}){axis.size}" is no part of axis "{axis.name}" of {n}: pre · size must divide it'
        )
    return axis


@dataclass(frozen=True, slots=True)
class Refined:
    """A mesh whose axes are split until every part that is used is one axis, named as `word` writes it."""

    mesh: Mesh
    pieces: Mapping[str, Axes]
    sizes: Mapping[str, int]
    """Of the axes before."""

    def names(self, axes: Iterable[Axis]) -> tuple[str, ...]:
        """Axes of the refined mesh that make up `axes`, major first."""
        return tuple(
            word(piece, self.sizes)
            for axis in axes
            for piece in self.pieces[axis.name]
            if axis.pre <= piece.pre < axis.post
        )


def refine(mesh: Mesh, used: Iterable[Axis]) -> Refined:
    """The coarsest refinement of `mesh` in which every axis of `used` is whole axes.

    Raises:
        Unsupported: parts of one axis that cross, such as x:(1)2 and x:(1)3 of 6.
    """
    sizes = {a: mesh.size(a) for a in mesh.axes}
    borders: dict[str, dict[int, Axis]] = {a: {} for a in mesh.axes}
    for axis in used:
        for border in (axis.pre, axis.post):
            borders[axis.name].setdefault(border, axis)
    pieces: dict[str, Axes] = {}
    for name, n in sizes.items():
        marks = sorted({1, n, *borders[name]})
        for low, high in pairwise(marks):
            if high % low:
                first, second = (word(borders[name][m], sizes) for m in (low, high))
                raise Unsupported(
                    f'axis "{name}" of {n} is used as {first} and as {second}, whose borders {low} and {high} cross: use an axis '
                    "of its own for one of them",
                    reason="axes",
                )
        pieces[name] = tuple(Axis(name, low, high // low) for low, high in pairwise(marks)) or (whole(name, sizes),)
    every = [piece for axes in pieces.values() for piece in axes]
    refined = Mesh(mesh.devices, tuple(word(p, sizes) for p in every), tuple(p.size for p in every))
    return Refined(refined, pieces, sizes)
