"""What one conversion instruction does to a local tensor: collectives, slices and pads of one sub-dimension.

The local tensor is seen at its atoms (one dim per sub-dimension of the layout), the instruction works on atom `dim`, and
the result is folded back to the tensor's own dims:

    [rows, 3·8]  --atoms-->  [rows, 3, 8]  --gather atom 2-->  [rows, 3, 16]  --fold-->  [rows, 48]

Uneven parts are padded to the largest inside the collective and cut afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import ExecutionError
from ...lower.program import Instr
from ...plan.layout import interval, local_shape
from ...plan.model import Cut, Layout
from ..ops.halo import exchange
from .mesh_groups import MeshView

Atom = tuple[int, tuple[Cut, ...]]
"""(size over all devices, cuts)."""

REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


def atoms(layout: Layout, shape: Sequence[int]) -> list[Atom]:
    """Sub-dimensions, flat, with sizes written out; a dim without any (of size 1) has no atom."""
    found: list[Atom] = []
    for dim, n in zip(layout.dims, shape, strict=True):
        known = prod(size for size, _ in dim if size)
        found += [(size or n // known, cuts) for size, cuts in dim]
    return found


def apply(instr: Instr, x: Tensor, shape: Sequence[int], view: MeshView) -> Tensor:
    """The value after `instr`; `shape`: of the whole tensor. Never writes into `x`."""
    if instr.kind == "home":
        assert instr.after is not None
        return x.new_zeros(()).expand(local_shape(instr.after, tuple(shape), view.mesh, view.coords))
    if instr.kind == "identity" or view.size(instr.axes) == 1:
        return x
    if instr.kind == "halo":
        return exchange(instr, x, view)
    if instr.kind == "collective" and instr.collective == "all_reduce":
        return all_reduce(x, instr.axes, view)
    shapes = _shapes(instr, tuple(shape), view)
    before, after = shapes.before, shapes.after
    local = x.reshape(shapes.own)
    match instr.kind, instr.collective:
        case "collective", "all_gather":
            moved = _gather(local, instr, before[instr.dim], view)
        case "collective", "reduce_scatter":
            moved = _reduce_scatter(local, instr, after[instr.dim], view)
        case "collective", "all_to_all":
            moved = _all_to_all(local, instr, before[instr.dim], after[instr.dim2], view)
        case "slice", _:
            moved = _slice(local, instr.dim, before, after, view)
        case "pad", _:
            moved = _pad(local, instr.dim, before, after, view)
        case _:
            raise ExecutionError(f"no rule for {instr.kind} {instr.collective} on {instr.on}: the program is damaged")
    return moved.reshape(shapes.result)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """Of one instruction on one rank."""

    whole: tuple[int, ...]
    before: Sequence[Atom]
    after: Sequence[Atom]
    own: Sequence[int]
    """Local sizes of the atoms before it."""
    result: Sequence[int]
    """Local sizes of the dims after it."""


def _shapes(instr: Instr, whole: tuple[int, ...], view: MeshView) -> _Shapes:
    known = view.prepared.get(id(instr))
    if known is None or known[1].whole != whole:
        if instr.before is None or instr.after is None or instr.dim < 0:
            raise ExecutionError(
                f"{instr.kind} on {instr.on} names no layouts or no sub-dimension: the program is damaged"
            )
        before, after = atoms(instr.before, whole), atoms(instr.after, whole)
        own = [interval(n, cuts, view.mesh, view.coords)[1] for n, cuts in before]
        known = instr, _Shapes(whole, before, after, own, folded(after, instr.after, view))
        view.prepared[id(instr)] = known
    shapes: _Shapes = known[1]
    return shapes


def folded(flat: Sequence[Atom], layout: Layout, view: MeshView) -> list[int]:
    """Local shape of a tensor whose atoms are `flat`."""
    sizes = iter(interval(n, cuts, view.mesh, view.coords)[1] for n, cuts in flat)
    return [prod(next(sizes) for _ in dim) for dim in layout.dims]


def all_reduce(x: Tensor, axes: Sequence[str], view: MeshView, reduction: str = "sum") -> Tensor:
    """Of all members along `axes` jointly; x itself where they are alone."""
    if view.size(axes) == 1:
        return x
    out = x.clone(memory_format=torch.contiguous_format)
    with view.groups.clock.span("all_reduce"):
        dist.all_reduce(out, REDUCTIONS[reduction], group=view.group(axes))
    return out


def part_sizes(atom: Atom, axis: str, view: MeshView) -> list[int]:
    """Local sizes of `atom` at each coordinate along `axis`, which must be its last cut.

    Raises:
        ExecutionError: another cut lies inside, so the parts along `axis` are not contiguous.
    """
    n, cuts = atom
    if not cuts or cuts[-1].axis != axis:
        raise ExecutionError(f"{axis} is not the innermost cut of a sub-dimension of {n}: the program is damaged")
    return [interval(n, cuts, view.mesh, {**view.coords, axis: i})[1] for i in range(view.mesh.size(axis))]


def _padded(x: Tensor, n: int) -> Tensor:
    """`x` with zeros after its first dim up to length n."""
    return x if x.shape[0] == n else torch.cat([x, x.new_zeros(n - x.shape[0], *x.shape[1:])])


def _gather(x: Tensor, instr: Instr, atom: Atom, view: MeshView) -> Tensor:
    sizes = part_sizes(atom, instr.axes[0], view)
    even, order = len(set(sizes)) == 1, view.order(instr.axes)
    own = x.contiguous() if even else _padded(x.movedim(instr.dim, 0), max(sizes)).contiguous()
    out = own.new_empty(len(sizes), *own.shape)
    with view.groups.clock.span("all_gather"):
        dist.all_gather_single(out.view(-1), own.view(-1), group=view.group(instr.axes))
    if even and instr.dim == 0 and _in_order(order):
        return out.flatten(0, 1)
    # contiguous, or every op that reads it would make, and save, a copy of its own
    whole = x.new_empty([*x.shape[: instr.dim], sum(sizes), *x.shape[instr.dim + 1 :]])
    places = whole.split(sizes, instr.dim)  # type: ignore[no-untyped-call]
    for place, part, n in zip(places, _by_coordinate(list(out.unbind()), order), sizes, strict=True):
        place.copy_(part if even else part[:n].movedim(0, instr.dim))
    return whole


def _reduce_scatter(x: Tensor, instr: Instr, atom: Atom, view: MeshView) -> Tensor:
    sizes = part_sizes(atom, instr.axes[0], view)
    even, order = len(set(sizes)) == 1, view.order(instr.axes)
    if even and instr.dim == 0 and _in_order(order) and x.is_contiguous():
        blocks = x.view(len(sizes), sizes[0], *x.shape[1:])
    else:
        parts = list(x.split(sizes, instr.dim))  # type: ignore[no-untyped-call]
        parts = parts if even else [_padded(p.movedim(instr.dim, 0), max(sizes)) for p in parts]
        blocks = torch.stack(_by_group_rank(parts, order))
    out = blocks.new_empty(blocks.shape[1:])
    with view.groups.clock.span("reduce_scatter"):
        dist.reduce_scatter_single(out.view(-1), blocks.view(-1), group=view.group(instr.axes))
    if even:
        return out
    return out[: sizes[view.coords[instr.axes[0]]]].movedim(0, instr.dim).contiguous()


def _in_order(order: Sequence[int]) -> bool:
    return tuple(order) == tuple(range(len(order)))


def _all_to_all(x: Tensor, instr: Instr, gathered: Atom, cut: Atom, view: MeshView) -> Tensor:
    """Blocks [largest part of the cut atom, largest part of the gathered atom, rest], one per member."""
    axis = instr.axes[0]
    arriving, leaving = part_sizes(gathered, axis, view), part_sizes(cut, axis, view)
    own = x.movedim((instr.dim2, instr.dim), (0, 1))
    blocks = []
    for piece in own.split(leaving):  # type: ignore[no-untyped-call]
        full = piece.new_zeros(max(leaving), max(arriving), *own.shape[2:])
        full[: piece.shape[0], : piece.shape[1]] = piece
        blocks.append(full)
    order = view.order(instr.axes)
    sent = torch.stack(_by_group_rank(blocks, order))
    received = torch.empty_like(sent)
    with view.groups.clock.span("all_to_all"):
        dist.all_to_all_single(received, sent, group=view.group(instr.axes))
    mine = leaving[view.coords[axis]]
    parts = _by_coordinate(list(received.unbind()), order)
    whole = torch.cat([p[:mine, :n] for p, n in zip(parts, arriving, strict=True)], dim=1)
    return whole.movedim((0, 1), (instr.dim2, instr.dim)).contiguous()


def _offsets(dim: int, outer: Sequence[Atom], inner: Sequence[Atom], view: MeshView) -> tuple[int, int]:
    """(start, length) of the own part of atom `dim` under `inner`, counted inside the own part under `outer`."""
    base, _ = interval(*outer[dim], view.mesh, view.coords)
    start, length = interval(*inner[dim], view.mesh, view.coords)
    return start - base, length


def _slice(x: Tensor, dim: int, before: Sequence[Atom], after: Sequence[Atom], view: MeshView) -> Tensor:
    return x.narrow(dim, *_offsets(dim, before, after, view))


def _pad(x: Tensor, dim: int, before: Sequence[Atom], after: Sequence[Atom], view: MeshView) -> Tensor:
    start, length = _offsets(dim, after, before, view)
    shape = list(x.shape)
    shape[dim] = interval(*after[dim], view.mesh, view.coords)[1]
    out = x.new_zeros(shape)
    out.narrow(dim, start, length).copy_(x)
    return out


def _by_coordinate(parts: list[Tensor], order: Sequence[int]) -> list[Tensor]:
    """Parts in group rank order -> in coordinate order."""
    return [parts[k] for k in order]


def _by_group_rank(parts: list[Tensor], order: Sequence[int]) -> list[Tensor]:
    """Parts in coordinate order -> in group rank order."""
    found: list[Tensor] = list(parts)
    for coordinate, k in enumerate(order):
        found[k] = parts[coordinate]
    return found
