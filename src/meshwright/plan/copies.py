"""Stages that stand several times: in pipes (Chimera, DualPipe), or as replicas that take turns (PipeDream's `deal`).

    pipes    stages 0 … D − 1 are pipe 0, D … 2D − 1 pipe 1       each holds a copy of the whole model
    deal     a stage of r replicas is r copies; copy q runs the micro-batches q, q + r, … whole

All copies of a stage compute alike, on meshes of their own, and share its parameters: a plan with copies is the plan of
one copy (`one_copy`), and where the others stand (`copies_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from ..cluster.model import Mesh
from ..errors import Unsupported
from ..graph.ir import Graph
from .model import Plan, Stage
from .pieces import in_pieces


@dataclass(frozen=True, slots=True)
class Copy:
    """One of the stages that run."""

    stage: int
    """Of the plan."""
    base: int
    """Of the plan of one copy."""
    mesh: Mesh
    pipe: int = 0
    replica: int = 0
    replicas: int = 1

    def meets(self, other: Copy) -> bool:
        """Whether some micro-batch runs on both."""
        if self.pipe != other.pipe:
            return False
        return (self.replica - other.replica) % gcd(self.replicas, other.replicas) == 0  # Chinese remainders


def has_copies(plan: Plan) -> bool:
    return any(s.pipe != plan.stages[0].pipe or s.deal for s in plan.stages)


def copies_of(plan: Plan) -> tuple[Copy, ...]:
    """Of pipes in the order of the plan's stages; of replicas stage after stage, as `asynchronous.pipedream` counts workers.

    Raises:
        Unsupported: pipes that differ in more than their devices; pipes and turns at once.
    """
    pipes = sorted({s.pipe for s in plan.stages})
    dealt = [k for k, s in enumerate(plan.stages) if s.deal]
    if len(pipes) > 1 and dealt:
        raise Unsupported(
            f"stage {dealt[0]} deals micro-batches to replicas inside one of several pipes: cut its samples instead",
            reason="schedule",
        )
    if len(pipes) > 1:
        own = [[k for k, s in enumerate(plan.stages) if s.pipe == pipe] for pipe in pipes]
        found = {}
        for pipe, stages in zip(pipes, own, strict=True):
            if len(stages) != len(own[0]):
                raise Unsupported(_unlike(pipe, pipes[0], "another number of stages"), reason="schedule")
            for base, (k, first) in enumerate(zip(stages, own[0], strict=True)):
                _check_alike(plan.stages[first], plan.stages[k], pipe, pipes[0])
                found[k] = Copy(k, base, plan.stages[k].mesh, pipe)
        return tuple(found[k] for k in range(len(plan.stages)))
    return tuple(
        Copy(k, k, mesh, 0, replica, len(meshes))
        for k, stage in enumerate(plan.stages)
        for meshes in (dealt_meshes(stage, k),)
        for replica, mesh in enumerate(meshes)
    )


def copies_that_run(graph: Graph, plan: Plan) -> tuple[Copy, ...]:
    """One for each stage of the program: `copies_of`, or the pieces of stages that feed each other (`in_pieces`).

    Raises:
        Unsupported: what `copies_of` raises.
    """
    return copies_of(plan if has_copies(plan) else in_pieces(graph, plan))


def one_copy(plan: Plan) -> Plan:
    """The stages of the first pipe, each as its first replica."""
    first = min(s.pipe for s in plan.stages)
    stages = tuple(
        replace(s, mesh=dealt_meshes(s, k)[0], pipe=0, deal="") for k, s in enumerate(plan.stages) if s.pipe == first
    )
    return replace(plan, stages=stages)


def dealt_meshes(stage: Stage, k: int) -> tuple[Mesh, ...]:
    """The mesh of each replica: the stage's, without the length of the axis that deals.

    Raises:
        Unsupported: that axis also cuts something.
    """
    mesh, axis = stage.mesh, stage.deal
    if not axis:
        return (mesh,)
    for name, sharding in stage.shardings.items():
        said = (sharding.cuts, *sharding.backward.values())
        if any(c.axis == axis for own in said for cuts in own.values() for c in cuts):
            raise Unsupported(
                f'stage {k} deals whole micro-batches over axis "{axis}", which also cuts {name}: leave one out',
                reason="schedule",
            )
    shape = tuple(1 if a == axis else n for a, n in zip(mesh.axes, mesh.shape, strict=True))
    at: list[list[int]] = [[] for _ in range(mesh.size(axis))]
    for position, device in enumerate(mesh.devices):
        at[mesh.coordinates(position)[axis]].append(device)
    return tuple(Mesh(tuple(devices), mesh.axes, shape) for devices in at)


def _check_alike(first: Stage, other: Stage, pipe: int, of: int) -> None:
    same: Sequence[tuple[str, bool]] = (
        ("other ops", first.ops == other.ops),
        ("another mesh", (first.mesh.axes, first.mesh.shape) == (other.mesh.axes, other.mesh.shape)),
        ("other cuts", first.shardings is other.shardings or first.shardings == other.shardings),
        ("other layouts", first.layouts is other.layouts or first.layouts == other.layouts),
        ("gradients that rest otherwise", first.gradients == other.gradients),
        ("other storage", first.storage is other.storage or first.storage == other.storage),
        ("other recomputed ops", _again(first) == _again(other)),
        ("another keep_last", first.keep_last == other.keep_last),
    )
    for what, alike in same:
        if not alike:
            raise Unsupported(_unlike(pipe, of, what), reason="schedule")


def _again(stage: Stage) -> tuple[object, ...]:
    return stage.recompute, stage.recompute_at, stage.recompute_blocks


def _unlike(pipe: int, of: int, what: str) -> str:
    return f"pipe {pipe} has {what} than pipe {of}: all pipes of a plan are copies that differ in their devices only"
