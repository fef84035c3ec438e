"""The exchange of rows with both neighbours along the axes of a cut (lower/halo.py), and its dual.

One all-to-all with unequal parts: only neighbours send something to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ...cluster.model import Mesh
from ...lower.halo import WRAP
from ...lower.program import Instr
from ..ranks.mesh_groups import MeshView


def exchange(instr: Instr, x: Tensor, view: MeshView) -> Tensor:
    """Forward: `x` between the rows of its neighbours. Backward: the gradient of `x` from that of the wider tensor."""
    lower, upper = rows_of(instr)
    rows = x.movedim(instr.dim, 0)
    if instr.op == WRAP:
        return _around(instr, rows, lower, upper, view).movedim(0, instr.dim)
    if instr.phase == "forward":
        below, above = _swap(instr, rows[:upper], rows[len(rows) - lower :], lower, upper, view)
        fill = float("-inf") if instr.op == "lowest" else 0.0
        ends = [x.new_full((n, *rows.shape[1:]), fill) for n in (lower, upper)]
        parts = [p if p is not None else end for p, end in zip((below, above), ends, strict=True)]
        return torch.cat([parts[0], rows, parts[1]]).movedim(0, instr.dim)
    own = rows[lower : len(rows) - upper].clone()
    below, above = _swap(instr, rows[:lower], rows[len(rows) - upper :], upper, lower, view)
    if below is not None:
        own[:upper] += below
    if above is not None:
        own[len(own) - lower :] += above
    return own.movedim(0, instr.dim)


def _around(instr: Instr, rows: Tensor, lower: int, upper: int, view: MeshView) -> Tensor:
    """The same in a ring, with rows of one neighbour: of the one below, or of the one above."""
    n, up = lower + upper, lower > 0
    if instr.phase == "forward":
        got = _passed(instr, rows[-n:] if up else rows[:n], 1 if up else -1, view)
        return torch.cat([got, rows] if up else [rows, got])
    own, returned = (rows[n:], rows[:n]) if up else (rows[:-n], rows[-n:])
    own = own.clone()
    got = _passed(instr, returned, -1 if up else 1, view)
    if up:
        own[-n:] += got
    else:
        own[:n] += got
    return own


def _passed(instr: Instr, rows: Tensor, by: int, view: MeshView) -> Tensor:
    """Of the member that is `by` places below, while ours go as far up."""
    n, me, order = view.size(instr.axes), place(instr.axes, view.mesh, view.coords), view.order(instr.axes)
    sizes, arriving = [0] * n, [0] * n
    sizes[order[(me + by) % n]] = arriving[order[(me - by) % n]] = len(rows)
    received = rows.new_empty(rows.shape)
    with view.groups.clock.span("all_to_all"):
        dist.all_to_all_single(received, rows.contiguous(), arriving, sizes, group=view.group(instr.axes))
    return received


def rows_of(instr: Instr) -> tuple[int, int]:
    """Rows that a member gets from its lower and from its upper neighbour."""
    return int(instr.sizes[0]), int(instr.sizes[1])


def place(axes: Sequence[str], mesh: Mesh, coords: Mapping[str, int]) -> int:
    """Number of a member's part of what is cut over `axes`, major first."""
    found = 0
    for axis in axes:
        found = found * mesh.size(axis) + coords.get(axis, 0)
    return found


def _swap(
    instr: Instr, down: Tensor, up: Tensor, from_below: int, from_above: int, view: MeshView
) -> tuple[Tensor | None, Tensor | None]:
    """Sends `down` and `up` to the neighbours; what comes from them, None where there is none."""
    n, me, order = view.size(instr.axes), place(instr.axes, view.mesh, view.coords), view.order(instr.axes)
    sending: list[Tensor] = [down[:0]] * n
    arriving = [0] * n
    if me > 0:
        sending[order[me - 1]], arriving[order[me - 1]] = down, from_below
    if me < n - 1:
        sending[order[me + 1]], arriving[order[me + 1]] = up, from_above
    sent = torch.cat(sending)
    received = sent.new_empty(sum(arriving), *sent.shape[1:])
    with view.groups.clock.span("all_to_all"):
        dist.all_to_all_single(
            received, sent.contiguous(), arriving, [len(s) for s in sending], group=view.group(instr.axes)
        )
    parts = received.split(arriving)  # type: ignore[no-untyped-call]
    below = parts[order[me - 1]] if me > 0 else None
    return below, parts[order[me + 1]] if me < n - 1 else None
