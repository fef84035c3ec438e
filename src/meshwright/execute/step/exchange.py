"""Gradients of tied weights whose copies rest on stages of unequal meshes.

Copies that rest alike are summed by one collective, position by position (runtime). Here each stage first completes its own
gradient; then every stage sends its own to every other, in the pieces that their parts have in common, and adds what it got
in the order of stages, so that all copies stay equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ...graph.ir import Graph
from ...lower.crossing import Crossing
from ...lower.program import Program
from ...plan.layout import local_shape
from ..ops.params import master_dtype
from ..ranks.mesh_groups import MeshView
from .transfers import put, taken


def exchanged(program: Program) -> dict[str, tuple[int, ...]]:
    """Tied weight -> stages that hold a copy of it unlike the others."""
    found: dict[str, set[int]] = {}
    for code in program.stages:
        for instr in code.update:
            if instr.kind == "exchange":
                found.setdefault(instr.on, set()).add(code.stage)
    return {name: tuple(sorted(stages)) for name, stages in sorted(found.items())}


@dataclass(frozen=True, slots=True)
class _Way:
    """The gradient of one weight from one stage to another."""

    name: str
    source: int
    target: int
    crossing: Crossing
    tag: int


class Exchange:
    """All tied weights that stages hold unlike, on one rank."""

    def __init__(self, program: Program, graph: Graph, views: Mapping[int, MeshView], device: torch.device) -> None:
        """`views`: of the stages that this rank holds."""
        self._program, self._graph, self._views, self._device = program, graph, views, device
        self._state = {(code.stage, p.name): p.state for code in program.stages for p in code.params}
        self._stages = {name: s for name, s in exchanged(program).items() if views.keys() & set(s)}
        self._ways: list[_Way] = []
        for n, (name, stages) in enumerate(exchanged(program).items()):
            for a in stages:
                for b in stages:
                    if a != b and (a in views or b in views):
                        meshes = program.stages[a].mesh, program.stages[b].mesh
                        layouts = self._state[a, name], self._state[b, name]
                        tag = (n * len(program.stages) + a) * len(program.stages) + b + 1
                        self._ways.append(_Way(name, a, b, Crossing(layouts, meshes), tag))

    def add(self, grads: dict[tuple[int, str], Tensor]) -> None:
        """(stage, parameter) -> complete gradient in the layout of its state: of tied weights becomes the sum of all copies.

        Collective over the ranks that hold one.
        """
        if not self._stages:
            return
        view = next(iter(self._views.values()))
        rank, ranks, groups = view.rank, view.ranks, view.groups
        sent: list[tuple[dist.Work, Tensor]] = []
        mail: dict[int, Tensor] = {}
        for way in self._ways:
            if way.source not in self._views:
                continue
            devices = self._program.stages[way.target].mesh.devices
            for message in way.crossing.sent(self._views[way.source].position):
                peer = ranks[devices[message.peer]]
                x = taken(grads[way.source, way.name], message).contiguous()
                if peer == rank:
                    mail[way.tag] = x
                    continue
                work = dist.isend(x, peer, group=groups.channel(rank, peer, "backward"), tag=way.tag)
                if work is not None:
                    sent.append((work, x))
        parts: dict[tuple[int, str], dict[int, Tensor]] = {}
        with groups.clock.span("all_reduce"):
            for way in self._ways:
                if way.target in self._views:
                    key = way.target, way.name
                    parts.setdefault(key, {way.target: grads[key]})[way.source] = self._received(way, rank, ranks, mail)
            for work, _ in sent:
                work.wait()
        for key, own in parts.items():
            grads[key] = torch.stack([own[s] for s in sorted(own)]).sum(0)

    def _received(self, way: _Way, rank: int, ranks: Mapping[int, int], mail: dict[int, Tensor]) -> Tensor:
        """This rank's part of what a stage has."""
        view = self._views[way.target]
        described, dtype = self._graph.tensor[way.name], master_dtype(self._graph.tensor[way.name])
        shape = local_shape(self._state[way.target, way.name], described.shape, view.mesh, view.coords)
        found = torch.empty(shape, dtype=dtype, device=self._device)
        devices = self._program.stages[way.source].mesh.devices
        for message in way.crossing.received(view.position):
            peer = ranks[devices[message.peer]]
            if peer == rank:
                x = mail.pop(way.tag)
            else:
                x = torch.empty(message.shape, dtype=dtype, device=self._device)
                dist.recv(x, peer, group=view.groups.channel(peer, rank, "backward"), tag=way.tag)
            put(found, message, x)
        return found
