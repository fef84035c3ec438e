"""Weights that several stages of a pipeline without a flush hold, such as tied embeddings.

The first of the stages, which runs furthest ahead, keeps the weight for all: the others send it their gradients, and get each
updated weight back before the forward in front of which the keeper has it. So all of them read the version that the version
rule gives the keeper, and copies never part.

    keeper   F0 F1 F2 B0 u1 F3 B1 u2 …         u1 adds the gradients of micro-batch 0 from all stages, one optimizer step
                     ▲ ∂   │ w
    other    F0 B0 ──┘     └──▶ F3 B3 …        its own weights changed after B0; this one reads version 1 from F3 on
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...graph.ir import Graph
from ...lower.crossing import Crossing
from ...lower.parameters import STAGES
from ...lower.program import Program, StageCode
from ...plan.copies import Copy
from ...plan.layout import local_shape
from ..ops.params import master_dtype
from ..ranks.mesh_groups import Direction, MeshView
from .transfers import put, taken

What: TypeAlias = Literal["gradient", "weight"]


def keepers(program: Program, copies: Sequence[Copy]) -> dict[str, tuple[int, ...]]:
    """Weight that several stages of the plan hold -> those stages (of one copy), the keeper first."""
    found: dict[str, set[int]] = {}
    for code in program.stages:
        for p in code.params:
            found.setdefault(p.name, set()).update(copies[s].base for s in (code.stage, *p.shared))
    return {name: tuple(sorted(bases)) for name, bases in found.items() if len(bases) > 1}


def untied(program: Program, copies: Sequence[Copy]) -> Program:
    """The program without sums of tied weights over stages; those over copies of one stage stay."""
    return replace(program, stages=tuple(_untied(code, copies) for code in program.stages))


def _untied(code: StageCode, copies: Sequence[Copy]) -> StageCode:
    own = copies[code.stage].base
    params = tuple(replace(p, shared=tuple(s for s in p.shared if copies[s].base == own)) for p in code.params)
    alone = {p.name for p in params if not p.shared}
    update = tuple(i for i in code.update if i.axes != (STAGES,) or i.on not in alone)
    return replace(code, params=params, update=update)


@dataclass(frozen=True, slots=True)
class _Way:
    """One tied weight between its keeper and one of the others."""

    name: str
    keeper: int
    other: int
    """Stages that run."""
    number: int


class Ties:
    """Those of one stage on one rank."""

    def __init__(
        self,
        program: Program,
        graph: Graph,
        copies: Sequence[Copy],
        view: MeshView,
        stage: int,
        masters: Mapping[str, nn.Parameter],
        in_flight: int,
    ) -> None:
        """`program`: with its ties. `masters`: of the stage. `in_flight`: micro-batches that are under way at most."""
        self._program, self._graph, self._view, self._stage = program, graph, view, stage
        self._masters, self._in_flight = masters, in_flight
        self._first_tag = 2 * len(program.transfers) * in_flight + 2
        """Behind those of transfers, which use the same channels."""
        self._ways: list[_Way] = []
        self._crossings: dict[tuple[int, What], Crossing] = {}
        self._sent: dict[int, list[tuple[dist.Work, Tensor]]] = {}
        own, number = copies[stage], 0
        for name, bases in sorted(keepers(program, copies).items()):
            at = {c.base: s for s, c in enumerate(copies) if c.replica == own.replica and c.base in bases}
            for base in bases[1:]:
                if stage in (at[bases[0]], at[base]):
                    self._ways.append(_Way(name, at[bases[0]], at[base], number))
                number += 1
        self.late = frozenset(w.name for w in self._ways if w.other == stage)
        """Weights that another stage keeps."""
        self.keeper = {w.name: w.keeper for w in self._ways}
        """Weight -> the stage that keeps it."""

    def collect(self, version: int) -> None:
        """Gradients of the update that makes `version`: own ones of late weights go to their keepers, whose sums become those of
        all stages. Late weights are left without a gradient, so that no optimizer changes them here."""
        for way in self._ways:
            master = self._masters[way.name]
            assert master.grad is not None
            if way.other == self._stage:
                self._send(way, "gradient", version, master.grad)
                master.grad = None
            else:
                master.grad.add_(self._received(way, "gradient", version))

    def publish(self, version: int) -> None:
        """Updated weights of this stage's keeping go to the others."""
        for way in self._ways:
            if way.keeper == self._stage:
                self._send(way, "weight", version, self._masters[way.name].detach())

    def take(self, keeper: int, version: int) -> None:
        """Late weights of this keeper become what it made of them in the update of `version`."""
        for way in self._ways:
            if (way.keeper, way.other) == (keeper, self._stage):
                with torch.no_grad():
                    self._masters[way.name].copy_(self._received(way, "weight", version))

    def finish(self) -> None:
        """Waits until all that was sent has arrived."""
        for messages in self._sent.values():
            for work, _ in messages:
                work.wait()
        self._sent = {}

    # ------------------------------------------------------------- messages

    def _ends(self, way: _Way, what: What) -> tuple[int, int]:
        return (way.other, way.keeper) if what == "gradient" else (way.keeper, way.other)

    def _crossing(self, way: _Way, what: What) -> Crossing:
        key = way.number, what
        if key not in self._crossings:
            codes = [self._program.stages[s] for s in self._ends(way, what)]
            states = [next(p.state for p in code.params if p.name == way.name) for code in codes]
            self._crossings[key] = Crossing((states[0], states[1]), (codes[0].mesh, codes[1].mesh))
        return self._crossings[key]

    def _tag(self, way: _Way, version: int) -> int:
        return self._first_tag + way.number * self._in_flight + version % self._in_flight

    def _send(self, way: _Way, what: What, version: int, x: Tensor) -> None:
        view, tag, direction = self._view, self._tag(way, version), _direction(what)
        devices = self._program.stages[self._ends(way, what)[1]].mesh.devices
        for earlier, _ in self._sent.pop(tag, []):
            earlier.wait()  # of so many versions ago
        for message in self._crossing(way, what).sent(view.position):
            peer = view.ranks[devices[message.peer]]
            part = taken(x, message).clone()  # the memory changes before it has arrived
            work = dist.isend(part, peer, group=view.groups.channel(view.rank, peer, direction), tag=tag)
            if work is not None:
                self._sent.setdefault(tag, []).append((work, part))

    def _received(self, way: _Way, what: What, version: int) -> Tensor:
        view, tag = self._view, self._tag(way, version)
        own = next(p for p in self._program.stages[self._stage].params if p.name == way.name)
        described = self._graph.tensor[way.name]
        shape = local_shape(own.state, described.shape, view.mesh, view.coords)
        device, dtype = self._masters[way.name].device, master_dtype(described)
        found = torch.empty(shape, dtype=dtype, device=device)
        devices = self._program.stages[self._ends(way, what)[0]].mesh.devices
        with view.groups.clock.span("all_reduce"):
            for message in self._crossing(way, what).received(view.position):
                peer = view.ranks[devices[message.peer]]
                x = torch.empty(message.shape, dtype=dtype, device=device)
                dist.recv(x, peer, group=view.groups.channel(peer, view.rank, _direction(what)), tag=tag)
                put(found, message, x)
        return found


def _direction(what: What) -> Direction:
    return "backward" if what == "gradient" else "forward"
