"""The local calls of a segment's ops on one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from ...graph.ir import Graph
from ...lower.program import Instr, Segment
from ..ranks.mesh_groups import MeshView
from .running import RunningPart
from .site import Local, Site
from .twins import localise


@dataclass(frozen=True, slots=True)
class Place:
    """What the local form of every op of a stage depends on."""

    graph: Graph
    view: MeshView
    device: torch.device
    seed: int = 0
    dropout: bool = True
    running: Mapping[str, RunningPart] = field(default_factory=dict)
    """Op -> statistics that it renews, or reads while evaluating."""
    evaluating: bool = False


def calls_of(segment: Segment, place: Place) -> dict[str, Local]:
    """Op -> its call on local operands; collectives inside an op are carried out by its call."""
    return {site.op.name: localise(site) for site in sites_of(segment, place)}


def sites_of(segment: Segment, place: Place) -> Iterator[Site]:
    """What the local form of each op of a segment depends on."""
    inner: dict[tuple[str, str], list[Instr]] = {}
    around: dict[tuple[str, str], list[Instr]] = {}
    for phase, instrs in (("forward", segment.forward), ("backward", segment.backward)):
        for instr in instrs:
            if instr.carrier:
                into = around if instr.within else inner
                into.setdefault((instr.carrier, phase), []).append(instr)
    for instr in segment.forward:
        if instr.kind == "compute":
            yield Site(
                op=place.graph.ops[place.graph.position[instr.on]],
                instr=instr,
                graph=place.graph,
                view=place.view,
                device=place.device,
                forward=tuple(inner.get((instr.on, "forward"), ())),
                backward=tuple(inner.get((instr.on, "backward"), ())),
                completes=tuple(around.get((instr.on, "forward"), ())),
                apart=tuple(around.get((instr.on, "backward"), ())),
                seed=place.seed,
                dropout=place.dropout,
                running=place.running.get(instr.on),
                evaluating=place.evaluating,
            )
