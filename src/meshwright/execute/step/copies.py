"""Sums of gradients over the stages that hold a copy of a weight: tied weights, pipes, replicas that take turns.

    REDUCE in a row ─▶ the stage's gradients, flat ─ all-reduce begins        (its last backward is over)
                              the rest of the row runs meanwhile
    end of the step ─▶ what has not begun, begins; wait; write back

Sums begin in one order on all ranks, that of the latest REDUCE among those who take part, whatever a rank's own row says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ...graph.ir import Graph
from ...lower.program import Program
from ...plan.model import Row
from ..ops.params import master_dtype
from ..ranks.mesh_groups import Groups, Members, MeshView, sharing
from .exchange import exchanged
from .sums import Sums


@dataclass(frozen=True, slots=True)
class Shared:
    """Weights that the same stages hold."""

    stages: tuple[int, ...]
    names: tuple[str, ...]
    members: Members
    own: tuple[int, ...]
    """Those of the stages that are on this rank: their gradients are added here first."""


def shared_of(program: Program, graph: Graph, views: Mapping[int, MeshView], rows: Sequence[Row] = ()) -> list[Shared]:
    """Of one rank, in the order in which all ranks begin them. `views`: of its stages."""
    late = {
        a.on: k for row in rows for k, a in enumerate(row.actions) if not isinstance(a, tuple) and a.kind == "REDUCE"
    }
    apart = exchanged(program)
    found: dict[tuple[tuple[int, ...], torch.dtype, Members], dict[str, list[int]]] = {}
    for stage, view in views.items():
        for p in program.stages[stage].params:
            if p.shared and p.name not in apart and not graph.tensor[p.name].frozen:
                stages = tuple(sorted((stage, *p.shared)))
                first = min(s for s in stages if s in views)
                members = sharing(program, view.ranks, stages, views[first].position)
                key = stages, master_dtype(graph.tensor[p.name]), members
                found.setdefault(key, {}).setdefault(p.name, []).append(stage)
    sums = [
        Shared(stages, tuple(sorted(names)), members, tuple(sorted({s for own in names.values() for s in own})))
        for (stages, _, members), names in found.items()
    ]
    return sorted(sums, key=lambda s: (max(late.get(k, 0) for k in s.stages), s.names))


class CopySums:
    def __init__(self, sums: Mapping[int, Sums], shared: Sequence[Shared], groups: Groups) -> None:
        """`sums`: of each stage of this rank."""
        self._sums, self._shared, self._groups = sums, shared, groups
        self._ready: set[int] = set()
        self._next = 0
        self._under_way: list[tuple[Shared, Tensor, dist.Work | None]] = []

    def ready(self, stage: int) -> None:
        """All gradients of this stage are there."""
        if self._shared:
            self._sums[stage].settle()
            self._ready.add(stage)
            self._launch()

    def finish(self) -> None:
        """All gradients of all stages are there, and become the sums."""
        self._ready.update(self._sums)
        self._launch()
        for shared, flat, work in self._under_way:
            if work is not None:
                with self._groups.clock.span("all_reduce"):
                    work.wait()
            at = 0
            for name in shared.names:
                for stage in shared.own:
                    held = self._sums[stage].held(name)
                    held.copy_(flat[at : at + held.numel()].view(held.shape))
                at += held.numel()
        self._under_way, self._next, self._ready = [], 0, set()

    def _launch(self) -> None:
        while self._next < len(self._shared) and self._ready.issuperset(self._shared[self._next].own):
            shared = self._shared[self._next]
            own = [torch.cat([self._sums[s].held(name).flatten() for name in shared.names]) for s in shared.own]
            flat = own[0] if len(own) == 1 else torch.stack(own).sum(0)
            work = None
            if len(shared.members) > 1:
                work = dist.all_reduce(flat, group=self._groups.of(shared.members), async_op=True)
            self._under_way.append((shared, flat, work))
            self._next += 1
