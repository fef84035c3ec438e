"""Values that stages send to each other, and their gradients on the way back, position by position of equal meshes.

Sends never block: a value is kept until its gradient comes back, all else until the end of the step. Receives wait.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from ...graph.ir import Graph
from ...lower.program import Program, Transfer
from ...plan.layout import local_shape
from ..ops.params import dtype_of
from ..ranks.clock import TRANSFER
from ..ranks.mesh_groups import Direction, MeshView


class Transfers:
    def __init__(
        self, program: Program, graph: Graph, views: Mapping[int, MeshView], micro_batches: int, device: torch.device
    ) -> None:
        """`views`: of the stages that this rank holds."""
        self._program, self._graph, self._views, self._device = program, graph, views, device
        self._micro_batches = micro_batches
        self._number = {id(t): k for k, t in enumerate(program.transfers)}
        self._sent: dict[int, tuple[dist.Work, Tensor]] = {}
        """By tag."""
        self._mail: dict[int, Tensor] = {}

    def arriving(self, stage: int) -> list[Transfer]:
        return [t for t in self._program.transfers if t.dst == stage]

    def leaving(self, stage: int) -> list[Transfer]:
        return [t for t in self._program.transfers if t.src == stage]

    def _tag(self, t: Transfer, k: int, direction: Direction) -> int:
        return (self._number[id(t)] * self._micro_batches + k) * 2 + (direction == "backward") + 1

    def _other_end(self, t: Transfer, sender: bool, direction: Direction) -> tuple[int, int]:
        """(this rank, the one at its position of the other stage's mesh)."""
        source, target = (t.src, t.dst) if direction == "forward" else (t.dst, t.src)
        here, there = (source, target) if sender else (target, source)
        view = self._views[here]
        return view.rank, view.ranks[self._program.stages[there].mesh.devices[view.position]]

    def send(self, t: Transfer, k: int, direction: Direction, x: Tensor) -> None:
        """The value of micro-batch k ("forward") or its gradient ("backward")."""
        own, peer = self._other_end(t, True, direction)
        tag = self._tag(t, k, direction)
        x = x.detach().contiguous()
        if peer == own:
            self._mail[tag] = x
            return
        groups = self._view(t).groups
        with groups.clock.span(TRANSFER):
            work = dist.isend(x, peer, group=groups.channel(own, peer, direction), tag=tag)
        if work is not None:
            self._sent[tag] = work, x

    def receive(self, t: Transfer, k: int, direction: Direction) -> Tensor:
        own, peer = self._other_end(t, False, direction)
        tag = self._tag(t, k, direction)
        if peer == own:
            return self._mail.pop(tag)
        x = self.empty(t)
        groups = self._view(t).groups
        with groups.clock.span(TRANSFER):
            dist.recv(x, peer, group=groups.channel(peer, own, direction), tag=tag)
        if direction == "backward" and (sent := self._sent.pop(self._tag(t, k, "forward"), None)):
            sent[0].wait()  # whoever has its gradient has the value
        return x

    def finish(self) -> None:
        """Waits until all that was sent has arrived."""
        for work, _ in self._sent.values():
            work.wait()
        self._sent = {}

    def empty(self, t: Transfer) -> Tensor:
        """Room for the value or its gradient at this rank's position."""
        stage = self._program.stages[t.src]
        described = self._graph.tensor[t.value]
        shape = local_shape(t.layout, described.shape, stage.mesh, self._view(t).coords)
        return torch.empty(shape, dtype=dtype_of(described), device=self._device)

    def _view(self, t: Transfer) -> MeshView:
        return self._views[t.src if t.src in self._views else t.dst]
