"""Running statistics of batch norms, trained along: renewed once by each update, of the micro-batches whose gradients it takes.

    forward of a micro-batch ─ mean, variance of its samples in all parts (ops/composites) ─▶ kept
    update ─ those of its micro-batches, from all copies of the stage ─ pooled ─▶ running mean and variance

So a step leaves what one process leaves that sees the whole mini-batch at once, whatever the number of micro-batches (deferred
batch normalization of torchgpipe, arXiv 2004.09910). `each="micro-batch"`: once a micro-batch instead, as in a plain loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from ...graph.ir import Graph
from ...lower.program import Program, StageCode
from ...plan.copies import copies_that_run
from ...plan.model import Layout, Plan
from ..ops.running import RunningPart
from ..ranks.mesh_groups import Groups, Members, MeshView, sharing
from ..saved.parts import Part

Each: TypeAlias = Literal["mini-batch", "micro-batch"]
"""What running statistics are renewed after."""
EACH: tuple[Each, ...] = get_args(Each)


@dataclass(frozen=True, slots=True)
class Held:
    """One tensor of running statistics on this rank."""

    stage: int
    name: str
    """In the user's module."""
    tensor: Tensor
    shape: tuple[int, ...]
    """Of the whole."""
    layout: Layout
    view: MeshView

    @property
    def part(self) -> Part:
        return Part.of(self.tensor, self.shape, self.layout, self.view)


class Statistics:
    """Of all stages of one rank."""

    def __init__(
        self,
        program: Program,
        graph: Graph,
        plan: Plan,
        constants: Mapping[str, Tensor],
        groups: Groups,
        device: torch.device,
        each: Each = "mini-batch",
    ) -> None:
        """`constants`: buffers of the module, whole."""
        self._program, self._graph, self._constants = program, graph, constants
        self._groups, self._device, self._each = groups, device, each
        self._base = [copy.base for copy in copies_that_run(graph, plan)]
        self._views: dict[int, MeshView] = {}
        self.of: dict[int, dict[str, RunningPart]] = {}
        """Stage -> op -> its statistics."""

    def needed(self, ranks: Mapping[int, int]) -> set[Members]:
        """Groups in which copies of a stage meet."""
        found = set()
        for code in self._program.stages:
            stages = self._copies(code.stage)
            if len(stages) > 1 and any(self._normed(code)):
                positions = range(len(code.mesh.devices))
                found |= {sharing(self._program, ranks, stages, position) for position in positions}
        return found

    def hold(self, code: StageCode, view: MeshView) -> Mapping[str, RunningPart]:
        """Those of one stage of this rank, by op, as the module has them."""
        self._views[code.stage] = view
        held = self.of[code.stage] = {}
        shared: dict[str, RunningPart] = {}
        for op, layout in self._normed(code):
            names = self._graph.running[op]
            shape = self._graph.tensor[self._graph.ops[self._graph.position[op]].inputs[0]].shape
            count = self._constants[names.count] if names.count else None
            whole = self._constants[names.mean], self._constants[names.var], count
            part = RunningPart.of(names, whole, layout, view, self._device, prod(shape) // shape[1])
            first = shared.setdefault(names.mean, part)
            part.mean, part.var, part.count = first.mean, first.var, first.count
            held[op] = part
        return held

    def _normed(self, code: StageCode) -> Iterator[tuple[str, Layout]]:
        """(op with running statistics, how its channels lie)."""
        for segment in code.segments:
            for i in segment.forward:
                if i.kind == "compute" and i.on in self._graph.running:
                    yield i.on, Layout((i.operands[0].dims[1],))

    def _copies(self, stage: int) -> tuple[int, ...]:
        return tuple(s for s, base in enumerate(self._base) if base == self._base[stage])

    def renew(self, moments: Sequence[tuple[int, int]]) -> None:
        """An update was made with these micro-batches (step, number), of all copies. Collective over the copies."""
        bases: dict[int, list[int]] = {}
        for stage in sorted(self.of):
            if self.of[stage]:
                bases.setdefault(self._base[stage], []).append(stage)
        for _, stages in sorted(bases.items()):
            self._renew(stages, moments)

    def _renew(self, stages: Sequence[int], moments: Sequence[tuple[int, int]]) -> None:
        """`stages`: copies of one stage that this rank holds."""
        first = self.of[stages[0]]
        widths = [2 * part.mean.numel() for part in first.values()]
        dtype = torch.promote_types(torch.float32, next(iter(first.values())).mean.dtype)
        table = torch.zeros(len(moments), sum(widths), dtype=dtype, device=self._device)
        for stage in stages:
            for column, part in zip(torch.split(table, widths, 1), self.of[stage].values(), strict=True):
                for row, moment in zip(column, moments, strict=True):
                    if (own := part.seen.pop(moment, None)) is not None:
                        row.copy_(torch.cat(own))
        copies = self._copies(stages[0])
        view = self._views[stages[0]]
        members = sharing(self._program, view.ranks, copies, view.position)
        if len(members) > 1:
            with self._groups.clock.span("all_reduce"):
                dist.all_reduce(table, group=self._groups.of(members))
        for stage in stages:
            self._fold(list(self.of[stage].values()), torch.split(table, widths, 1))

    def _fold(self, parts: Sequence[RunningPart], columns: Sequence[Tensor]) -> None:
        if self._each == "mini-batch":
            for part, column in zip(parts, columns, strict=True):
                part.fold(*column.chunk(2, 1), whole=True)
            return
        for row in range(len(columns[0])):
            for part, column in zip(parts, columns, strict=True):
                part.fold(*column[row : row + 1].chunk(2, 1), whole=False)

    def held(self) -> Iterator[Held]:
        """All tensors of this rank, those that ops share once a stage."""
        for stage, parts in self.of.items():
            done: set[str] = set()
            for part in parts.values():
                if part.names.mean in done:
                    continue
                done.add(part.names.mean)
                view = self._views[stage]
                yield Held(stage, part.names.mean, part.mean, part.shape, part.layout, view)
                yield Held(stage, part.names.var, part.var, part.shape, part.layout, view)
                if part.names.count:
                    yield Held(stage, part.names.count, part.count, (), Layout(()), view)
