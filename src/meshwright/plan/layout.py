"""Layout algebra: which part of a tensor each device of a mesh holds.

A dim is a product of sub-dimensions (atoms), major first; the cuts of a sub-dimension nest: the first cut divides it,
the second divides the part, and so on.

    dim 12 = ((3, ()), (4, (tp,)))  on tp = 2        index = 4·i + j:  device 0 holds j < 2 of every i
    0 1 . . 4 5 . . 8 9 . .                          three boxes, one local dim of 6

All functions take mesh coordinates as {axis: index}; axes that a mesh has not count as size 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..cluster.model import Mesh
from ..errors import InputError
from .model import Cut, Layout, SubDim

Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""(lo, hi): global indices lo <= i < hi per dim."""
Array: TypeAlias = NDArray[Any]


@lru_cache(maxsize=1 << 16)
def part(n: int, index: int, parts: int, weights: tuple[int, ...] = ()) -> tuple[int, int]:
    """(start, length) of part `index` of `n` elements cut into `parts`.

    Without weights: blocks of ceil(n / parts), the last may be short or empty. With: part i ends at
    round(n · sum(weights[: i + 1]) / sum(weights)), halves to even.
    """
    if not weights:
        block = -(-n // parts)
        start = min(n, index * block)
        return start, min(n, start + block) - start
    total = sum(weights)
    if len(weights) != parts or total <= 0 or min(weights) < 0:
        raise InputError(f"weights {weights} do not cut {parts} parts: give {parts} numbers, none below 0, one above")
    start, stop = (_rounded(n * sum(weights[:k]), total) for k in (index, index + 1))
    return start, stop - start


def _rounded(numerator: int, denominator: int) -> int:
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))


@lru_cache(maxsize=1 << 14)
def sizes(n: int, cut: Cut, parts: int) -> tuple[int, ...]:
    """Lengths of all parts of `n` elements cut by `cut`, whose axis has length `parts`."""
    return tuple(part(n, i, parts, cut.weights)[1] for i in range(parts))


def interval(n: int, cuts: Sequence[Cut], mesh: Mesh, coords: Mapping[str, int]) -> tuple[int, int]:
    """(start, length) that the device at `coords` holds of `n` elements under nested `cuts`."""
    start, length = 0, n
    for cut in cuts:
        parts = mesh.size(cut.axis)
        if parts > 1 or cut.weights:
            offset, length = part(length, coords.get(cut.axis, 0), parts, cut.weights)
            start += offset
    return start, length


@lru_cache(maxsize=1 << 16)
def _largest(n: int, cuts: tuple[tuple[Cut, int], ...]) -> int:
    if not cuts:
        return n
    (cut, parts), *rest = cuts
    return max(_largest(m, tuple(rest)) for m in set(sizes(n, cut, parts)))


def largest(n: int, cuts: Sequence[Cut], mesh: Mesh) -> int:
    """Elements of the largest part of `n` under nested `cuts`."""
    return _largest(n, tuple((cut, mesh.size(cut.axis)) for cut in cuts)) if cuts else n


def replicated(shape: Sequence[int]) -> Layout:
    """Every device holds the whole tensor."""
    return Layout(tuple(((n, ()),) for n in shape))


def explicit(layout: Layout, shape: Sequence[int]) -> Layout:
    """The same layout with every sub-dimension's size written out (size 0 = what the others leave of the dim).

    Raises:
        InputError: other rank than the tensor, or sub-dimensions that do not multiply to the dim.
    """
    if len(layout.dims) != len(shape):
        raise InputError(f"a layout of {len(layout.dims)} dims cannot cut a tensor of shape {tuple(shape)}")
    return Layout(tuple(_explicit(d, dim, n) for d, (dim, n) in enumerate(zip(layout.dims, shape))), layout.partial)


@lru_cache(maxsize=1 << 14)
def _explicit(d: int, dim: tuple[SubDim, ...], n: int) -> tuple[SubDim, ...]:
    if not dim:
        return ((n, ()),)
    known = prod(size for size, _ in dim if size)
    free = sum(1 for size, _ in dim if not size)
    if free == 0 and known == n:
        return dim
    if free != 1 or known == 0 or n % known:
        text = " × ".join(str(size) for size, _ in dim)
        raise InputError(f"dim {d} has {n} elements, its sub-dimensions multiply to {text}: they must give {n}")
    return tuple((size or n // known, cuts) for size, cuts in dim)


def cuts_of(layout: Layout) -> tuple[Cut, ...]:
    """All cuts, in the order of dims and sub-dimensions."""
    return tuple(cut for dim in layout.dims for _, cuts in dim for cut in cuts)


def axes_of(layout: Layout) -> tuple[str, ...]:
    """Axes that the layout cuts over, in the order of dims; not the partial ones."""
    return tuple(cut.axis for cut in cuts_of(layout))


def check_layout(layout: Layout, shape: Sequence[int], mesh: Mesh) -> Layout:
    """`explicit`, after checking that `layout` can be laid on `mesh`.

    Raises:
        InputError: unknown axis, an axis used twice, wrong number of weights, or sizes that do not fit the shape.
    """
    seen: set[str] = set()
    for axis in (*axes_of(layout), *layout.partial):
        if axis not in mesh.axes:
            raise InputError(f'no axis "{axis}" in this mesh: it has {", ".join(mesh.axes) or "none"}')
        if axis in seen:
            raise InputError(f'axis "{axis}" is used twice in one layout: each axis cuts or sums once')
        seen.add(axis)
    for cut in cuts_of(layout):
        check_weights(cut, mesh)
    return explicit(layout, shape)


def check_weights(cut: Cut, mesh: Mesh) -> None:
    """Raises InputError unless the weights of `cut` are none or one per part, not all zero."""
    parts = mesh.size(cut.axis)
    if cut.weights and (len(cut.weights) != parts or min(cut.weights) < 0 or sum(cut.weights) <= 0):
        raise InputError(
            f'weights {cut.weights} on axis "{cut.axis}" of length {parts}: give {parts} numbers, none below 0, one above'
        )


def local_shape(layout: Layout, shape: Sequence[int], mesh: Mesh, coords: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of what the device at `coords` holds."""
    return tuple(prod(interval(n, cuts, mesh, coords)[1] for n, cuts in dim) for dim in explicit(layout, shape).dims)


def local_atoms(layout: Layout, shape: Sequence[int], mesh: Mesh, coords: Mapping[str, int]) -> tuple[int, ...]:
    """Local sizes of all sub-dimensions, flat: the shape in which gathers and slices of one sub-dimension work."""
    return tuple(interval(n, cuts, mesh, coords)[1] for dim in explicit(layout, shape).dims for n, cuts in dim)


def largest_local_shape(layout: Layout, shape: Sequence[int], mesh: Mesh) -> tuple[int, ...]:
    """Per dim the largest local size over all devices."""
    return tuple(prod(largest(n, cuts, mesh) for n, cuts in dim) for dim in explicit(layout, shape).dims)


def largest_local_elements(layout: Layout, shape: Sequence[int], mesh: Mesh) -> int:
    """Elements of the fullest device. Exact, because each axis cuts at most one sub-dimension."""
    return prod(largest_local_shape(layout, shape, mesh))


def boxes(layout: Layout, shape: Sequence[int], mesh: Mesh, coords: Mapping[str, int]) -> list[Box]:
    """Index ranges of the whole tensor that the device at `coords` holds, disjoint, in row-major order.

    A cut of a sub-dimension that is not the major one gives several boxes; an empty part gives none.
    """
    per_dim = [part_ranges(dim, mesh, coords) for dim in explicit(layout, shape).dims]
    return [(tuple(lo for lo, _ in pick), tuple(hi for _, hi in pick)) for pick in product(*per_dim)]


def part_ranges(dim: Sequence[SubDim], mesh: Mesh, coords: Mapping[str, int]) -> list[tuple[int, int]]:
    """Index ranges that the device at `coords` holds of one dim (explicit sizes), ascending."""
    return _ranges([(n, *interval(n, cuts, mesh, coords)) for n, cuts in dim])


def _ranges(atoms: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Index ranges in one dim from (size, start, length) of its sub-dimensions, major first."""
    ranges, width = [(0, 1)], 1
    for size, start, length in reversed(atoms):
        if ranges == [(0, width)]:
            ranges = [(start * width, (start + length) * width)] if length else []
        else:
            ranges = [(i * width + lo, i * width + hi) for i in range(start, start + length) for lo, hi in ranges]
        width *= size
    return ranges


def canonical(layout: Layout, mesh: Mesh) -> Layout:
    """A simpler layout that gives every device the same elements in the same order.

    Drops cuts over axes of length 1 and sub-dimensions of size 1; merges neighbours only where the borders of the parts
    stay where they are. (3, ()) (64, (tp,)) stays: as 192 over tp it would lose the borders of its three pieces. Expects
    explicit sizes.
    """
    order = {axis: i for i, axis in enumerate(mesh.axes)}
    partial = sorted((a for a in layout.partial if mesh.size(a) > 1), key=lambda a: order.get(a, len(order)))
    return Layout(tuple(_merged(dim, mesh) for dim in layout.dims), tuple(partial))


def _merged(dim: tuple[SubDim, ...], mesh: Mesh) -> tuple[SubDim, ...]:
    found: list[SubDim] = []
    for size, cuts in dim:
        cuts = tuple(cut for cut in cuts if mesh.size(cut.axis) > 1)
        if size == 1 and not cuts:
            continue
        if found:
            major, above = found[-1]
            parts = prod(mesh.size(cut.axis) for cut in above)
            weighted = any(cut.weights for cut in above)
            whole_blocks = not cuts and not weighted and major % parts == 0
            single = not weighted and major == parts
            if whole_blocks or single:
                found[-1] = (major * size, above + cuts)
                continue
        found.append((size, cuts))
    return tuple(found) or ((1, ()),)


def shard(array: Array, layout: Layout, mesh: Mesh, coords: Mapping[str, int]) -> Array:
    """The part of `array` that the device at `coords` holds; of partial layouts: the whole sum at coordinate 0, else zeros."""
    full = explicit(layout, array.shape)
    atoms = [atom for dim in full.dims for atom in dim]
    cut = array.reshape([n for n, _ in atoms])[
        tuple(slice(s, s + length) for s, length in (interval(n, cuts, mesh, coords) for n, cuts in atoms))
    ]
    own = cut.reshape(local_shape(full, array.shape, mesh, coords))
    return own if all(coords.get(axis, 0) == 0 for axis in layout.partial) else np.zeros_like(own)


def unshard(parts: Sequence[Array], layout: Layout, shape: Sequence[int], mesh: Mesh) -> Array:
    """The whole tensor from its parts, one per position of `mesh.devices`; partial axes are summed, copies read once."""
    full = explicit(layout, shape)
    atoms = [atom for dim in full.dims for atom in dim]
    whole = np.zeros([n for n, _ in atoms], dtype=parts[0].dtype)
    needed = {*axes_of(layout), *layout.partial}
    for position, own in enumerate(parts):
        coords = mesh.coordinates(position)
        if any(index for axis, index in coords.items() if axis not in needed):
            continue
        spans = [interval(n, cuts, mesh, coords) for n, cuts in atoms]
        whole[tuple(slice(s, s + length) for s, length in spans)] += own.reshape([length for _, length in spans])
    return whole.reshape(tuple(shape))
