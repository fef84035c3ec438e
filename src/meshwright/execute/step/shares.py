"""Which samples each rank is given, and its part of what it was given.

A rank needs the samples that its stages' inputs are cut to. Ranks whose samples overlap form one share and are given the
same ones: tensor-parallel ranks, the stages of a pipeline.

    dp2 tp2 pp2     ranks 0 1 4 5 share samples 0 … n/2 − 1, ranks 2 3 6 7 the others     (of every micro-batch)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError, Unsupported
from ...graph.ir import Graph
from ...graph.samples import inputs_like
from ...lower.program import Program
from ...plan.layout import boxes, local_shape
from ...plan.model import Layout
from ..ops.site import own_part
from ..ranks.mesh_groups import Groups, MeshView, ranks_of


@dataclass(frozen=True, slots=True)
class Rows:
    """What a rank was given of one input: elements `start` … of dim 0 of a whole of `shape`."""

    own: Tensor
    start: int
    shape: tuple[int, ...]

    def part(self, layout: Layout, view: MeshView) -> Tensor:
        """This rank's part of the whole; the rows that it has not are not needed for it."""
        found = boxes(layout, self.shape, view.mesh, view.coords)
        x = self.own
        if not found:
            return x.new_empty(local_shape(layout, self.shape, view.mesh, view.coords))
        for dim in range(len(self.shape)):
            ranges = sorted({(lo[dim], hi[dim]) for lo, hi in found})
            first = self.start if dim == 0 else 0
            pieces = [x.narrow(dim, lo - first, hi - lo) for lo, hi in ranges]
            x = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
        return x


def own_input(x: Tensor | Rows, layout: Layout, view: MeshView) -> Tensor:
    """This rank's part of an input that was given whole or in rows."""
    return x.part(layout, view) if isinstance(x, Rows) else own_part(x, layout, view)


@dataclass(frozen=True, slots=True)
class Share:
    """The samples of one rank."""

    rank: int
    """Number of the share: `rank` of `world` for a sampler."""
    world: int
    first: int
    """Of its samples in each micro-batch."""
    count: int
    """Samples in each micro-batch."""

    def rows(self, named: Mapping[str, Tensor], graph: Graph, micro_batches: int) -> list[dict[str, Tensor | Rows]]:
        """The micro-batches of a batch of this share's samples: sample k·count … of it belong to micro-batch k.

        Raises:
            InputError: another number of samples, shape or dtype than the graph was captured for.
        """
        found: list[dict[str, Tensor | Rows]] = [{} for _ in range(micro_batches)]
        for name, (like, dtype) in inputs_like(graph).items():
            x = named[name]
            per_sample = -like[0] if like and like[0] < 0 else 0
            want = tuple(-n * self.count * micro_batches if n < 0 else n for n in like)
            wanted = getattr(torch, dtype)
            numbers = x.is_floating_point() and wanted.is_floating_point  # of any width: those are cast
            if tuple(x.shape) != want or not (numbers or x.dtype == wanted):
                raise InputError(
                    f'the batch has "{name}" of shape {tuple(x.shape)} and dtype {str(x.dtype).removeprefix("torch.")}, this '
                    f"rank takes {want} of {dtype}: {self.count * micro_batches} samples a step"
                )
            x = x.to(wanted)
            whole = graph.tensor[name].shape
            for k, batch in enumerate(found):
                rows = self.count * per_sample
                batch[name] = Rows(x[k * rows : (k + 1) * rows], self.first * per_sample, whole) if per_sample else x
        return found


def shares(program: Program, graph: Graph) -> dict[int, Share]:
    """Rank -> its samples.

    Raises:
        Unsupported: inputs whose samples are not in dim 0.
    """
    needed = _needed(program, graph)
    groups: list[tuple[int, int]] = []
    for lo, hi in sorted({span for span in needed.values() if span is not None}):
        if groups and lo < groups[-1][1]:
            groups[-1] = groups[-1][0], max(hi, groups[-1][1])
        else:
            groups.append((lo, hi))
    if not groups:
        groups = [(0, graph.samples)]
    found = {}
    for rank, span in needed.items():
        number = 0 if span is None else next(k for k, (lo, hi) in enumerate(groups) if lo <= span[0] and span[1] <= hi)
        lo, hi = groups[number]
        found[rank] = Share(number, len(groups), lo, hi - lo)
    return found


def _needed(program: Program, graph: Graph) -> dict[int, tuple[int, int] | None]:
    """Rank -> (first, last + 1) of the samples of a micro-batch that it reads; None: it reads no input.

    A rank of a stage without inputs stands with the rank at its position of a stage that has some.
    """
    ranks = ranks_of(program)
    like = inputs_like(graph)
    odd = next((n for n, (shape, _) in like.items() if any(k < 0 for k in shape[1:])), None)
    if odd is not None:
        raise Unsupported(f'the samples of the input "{odd}" are not in its dim 0: swap its dims')
    spans: dict[int, tuple[int, int] | None] = dict.fromkeys(sorted(ranks.values()))
    by_position: dict[int, tuple[int, int]] = {}
    for code in program.stages:
        for position, device in enumerate(code.mesh.devices):
            rank = ranks[device]
            view = MeshView(code.mesh, rank, ranks, Groups())
            for name, layout in code.inputs:
                shape = graph.tensor[name].shape
                if not like[name][0] or like[name][0][0] >= 0:
                    continue
                found = boxes(layout, shape, view.mesh, view.coords)
                if found:
                    each = -like[name][0][0]
                    span = min(lo[0] for lo, _ in found) // each, -(-max(hi[0] for _, hi in found) // each)
                    old = spans[rank] or span
                    spans[rank] = by_position[position] = min(span[0], old[0]), max(span[1], old[1])
    for code in program.stages:
        for position, device in enumerate(code.mesh.devices):
            if spans[ranks[device]] is None:
                spans[ranks[device]] = by_position.get(position)
    return spans
