"""Parts of many tensors in one buffer, so that one collective moves them all.

    buffer [members, width]       rows in the order of ranks in the group
    member 0   a₀ ──── b₀ ── c₀ ─        part of a, of b, of c that member 0 holds cut
    member 1   a₁ ──── b₁ ── ── ·        uneven parts: rows are as long as the longest

A reduce-scatter reads all rows and gives the own one, an all-gather reads the own row and gives all. What is summed whole
(all-reduce) lies in a single row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from ...lower.program import Instr
from ...plan.layout import interval, local_shape
from ..ranks.collectives import apply, atoms, part_sizes
from ..ranks.mesh_groups import MeshView

Step = tuple[Instr, ...]
"""One instruction of the same kind, collective and axes for each tensor of a bucket."""


class Rows:
    """Where the parts of the tensors of one step lie. Arithmetic only, until a buffer is given.

    "Whole" is a tensor's local part on the side where `axes` do not cut it, "own" its part on the side where they do.
    """

    def __init__(self, step: Step, shapes: Sequence[Sequence[int]], view: MeshView) -> None:
        """`shapes`: of the whole tensors over all devices."""
        self.collective, self.axes, self.view = step[0].collective, step[0].axes, view
        self.whole: list[list[int]] = []
        """Per tensor: lengths of its sub-dimensions on the uncut side."""
        self.dims: list[int] = []
        self.sizes: list[list[int]] = []
        """Per tensor: lengths of the parts of its cut sub-dimension, by coordinate."""
        self.own: list[tuple[int, ...]] = []
        """Per tensor: local shape on the cut side."""
        self.uncut: list[tuple[int, ...]] = []
        """Per tensor: local shape on the uncut side."""
        scattered = self.collective in ("reduce_scatter", "all_gather")
        self.order = view.order(self.axes) if scattered else (0,)
        self.coordinate = view.coords[self.axes[0]] if scattered else 0
        for instr, shape in zip(step, shapes, strict=True):
            before, after = instr.before, instr.after
            assert before is not None and after is not None
            wide, narrow = (after, before) if self.collective == "all_gather" else (before, after)
            whole = [interval(n, cuts, view.mesh, view.coords)[1] for n, cuts in atoms(wide, shape)]
            if scattered:
                self.whole.append(whole)
                self.dims.append(instr.dim)
                self.sizes.append(part_sizes(atoms(narrow, shape)[instr.dim], self.axes[0], view))
            else:
                self.whole.append([prod(whole)])
                self.dims.append(0)
                self.sizes.append([prod(whole)])
            self.own.append(local_shape(narrow, shape, view.mesh, view.coords))
            self.uncut.append(local_shape(wide, shape, view.mesh, view.coords))
        lengths = [
            [n * prod(whole[:d]) * prod(whole[d + 1 :]) for n in sizes]
            for whole, d, sizes in zip(self.whole, self.dims, self.sizes, strict=True)
        ]
        ends = [list(accumulate(each)) for each in zip(*lengths, strict=True)]
        self.starts = [[end[k] - lengths[k][c] for c, end in enumerate(ends)] for k in range(len(lengths))]
        """Per tensor: where its part begins in the row of each coordinate."""
        self.width: int = max(end[-1] for end in ends)
        self._even = [
            len(set(sizes)) == len(set(starts)) == 1 and self.order == tuple(range(len(self.order)))
            for sizes, starts in zip(self.sizes, self.starts, strict=True)
        ]

    @property
    def members(self) -> int:
        return len(self.order)

    @property
    def elements(self) -> int:
        """Of all rows."""
        return self.members * self.width

    def _pairs(self, k: int, x: Tensor, buffer: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(part of tensor k, its place in the buffer) of each member; x: [whole]."""
        whole, dim, starts, sizes = self.whole[k], self.dims[k], self.starts[k], self.sizes[k]
        x = x.view(whole)
        if self._even[k]:
            part = (*whole[:dim], sizes[0], *whole[dim + 1 :])
            place = buffer[:, starts[0] : starts[0] + prod(part)].view(len(sizes), *part)
            split = [*whole[:dim], len(sizes), sizes[0], *whole[dim + 1 :]]
            yield x.view(split).movedim(dim, 0), place
            return
        at = 0
        for coordinate, (start, n) in enumerate(zip(starts, sizes, strict=True)):
            part = (*whole[:dim], n, *whole[dim + 1 :])
            row = buffer[self.order[coordinate]]
            yield x.narrow(dim, at, n), row[start : start + prod(part)].view(part)
            at += n

    def put(self, k: int, x: Tensor, buffer: Tensor, *, add: bool = False) -> None:
        """Tensor k, whole, into all rows of `buffer` [members, width]."""
        for part, place in self._pairs(k, x.contiguous(), buffer):
            if add:
                place.add_(part)
            else:
                place.copy_(part)

    def take(self, k: int, buffer: Tensor, into: Tensor) -> None:
        """Tensor k, whole, out of all rows; `into`: contiguous."""
        for part, place in self._pairs(k, into, buffer):
            part.copy_(place)

    def parts(self, row: Tensor) -> list[Tensor]:
        """Own parts: views of the own row [width]."""
        found = []
        for shape, starts in zip(self.own, self.starts, strict=True):
            start = starts[self.coordinate]
            found.append(row[start : start + prod(shape)].view(shape))
        return found

    def buffer(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What is sent, zero: all rows [members, width]; of a gather the own one [1, width]."""
        count = 1 if self.collective == "all_gather" else self.members
        return torch.zeros(count, self.width, dtype=dtype, device=device)

    def launch(self, buffer: Tensor) -> tuple[dist.Work | None, Tensor]:
        """Begins the collective.

        Returns:
            What to wait for, and what will then hold the result: the own row [1, width], or all rows after a gather.
        """
        if not self.width:
            return None, buffer[:1] if self.collective != "all_gather" else buffer.expand(self.members, 0)
        group = self.view.group(self.axes)
        match self.collective:
            case "all_reduce":
                return dist.all_reduce(buffer, group=group, async_op=True), buffer
            case "reduce_scatter":
                own = buffer.new_empty(1, self.width)
                return dist.reduce_scatter_single(own.view(-1), buffer.view(-1), group=group, async_op=True), own
            case _:
                rows = buffer.new_empty(self.members, self.width)
                return dist.all_gather_single(rows.view(-1), buffer.view(-1), group=group, async_op=True), rows


class Leg:
    """One step of the way of all tensors of a bucket: a collective on rows, or local work on each tensor."""

    def __init__(self, step: Step, shapes: Sequence[Sequence[int]], view: MeshView) -> None:
        """`shapes`: of the whole tensors over all devices."""
        self.step, self.shapes, self.view = step, shapes, view
        self.rows = Rows(step, shapes, view) if step[0].kind == "collective" else None

    def start(self, xs: Sequence[Tensor], dtype: torch.dtype) -> Sent:
        """Begins it with tensors that may be anywhere."""
        if self.rows is None:
            return Sent(None, [self.local(k, x) for k, x in enumerate(xs)])
        buffer = self.rows.buffer(dtype, xs[0].device)
        if self.rows.collective == "all_gather":
            for part, x in zip(self.rows.parts(buffer[0]), xs, strict=True):
                part.copy_(x)
        else:
            for k, x in enumerate(xs):
                self.rows.put(k, x, buffer)
        return self.send(buffer)

    def local(self, k: int, x: Tensor) -> Tensor:
        """Local work on tensor k alone."""
        return apply(self.step[k], x, self.shapes[k], self.view)

    def send(self, buffer: Tensor) -> Sent:
        """Begins it with all tensors in their places."""
        assert self.rows is not None
        return Sent(self.rows, [buffer], *self.rows.launch(buffer))


class Sent:
    """A step under way."""

    def __init__(
        self, rows: Rows | None, held: list[Tensor], work: dist.Work | None = None, result: Tensor | None = None
    ) -> None:
        self._rows, self._held, self._work, self._result = rows, held, work, result

    def received(self, into: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Waits. `into`: where gathered tensors are to go; without, new ones are made."""
        rows, result = self._rows, self._result
        if rows is None or result is None:
            if into is None:
                return self._held
            for x, target in zip(self._held, into, strict=True):
                target.copy_(x)
            return list(into)
        if self._work is not None:
            with rows.view.groups.clock.span(str(rows.collective)):
                self._work.wait()
        if rows.collective != "all_gather":
            return rows.parts(result[0])
        targets = list(into) if into is not None else [result.new_empty(shape) for shape in rows.uncut]
        for k, target in enumerate(targets):
            rows.take(k, result, target)
        return targets


def through(legs: Sequence[Leg], xs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors after all legs, one after the other."""
    found = list(xs)
    for leg in legs:
        found = leg.start(found, dtype).received()
    return found
