"""From a point and the units of each stage to a plan."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan.model import Plan, Schedule, Stage
from ..plan.schedules import GENERATORS, home
from .again import FIRST
from .expert import Expert
from .point import Point
from .units import Units


def plan_of(
    expert: Expert, units: Units, point: Point, parts: Sequence[int], samples: int, schedule: Schedule | None = None
) -> Plan:
    """The plan of a point.

    Args:
        parts: units of each stage, in order; which rank holds it is the schedule's.
        samples: of one step, all replicas together.
        schedule: in place of the point's name of one: with arguments, or rows of its own.
    """
    choices = expert.choices(point.style)
    meshes = [point.mesh(rank) for rank in range(point.pp)]
    first = int(point.recompute.removeprefix(FIRST)) if point.recompute.startswith(FIRST) else 0
    if schedule is None:
        schedule = schedule_of(point, samples // (point.replicas * point.micro_batch))
    stages, at = [], 0
    for s, n in enumerate(parts):
        ops = units.ops(at, at + n)
        stages.append(
            Stage(
                ops, meshes[home(schedule, point.pp, s)], choices.shardings, choices.layouts, choices.storage, choices.recompute,
                recompute_blocks=first if first < units.blocks_in(at, at + n) else 0,
            )
        )  # fmt: skip
        at += n
    return Plan(expert.graph.digest, samples, tuple(stages), schedule)


def schedule_of(point: Point, micro_batches: int) -> Schedule:
    """The schedule that a point names; chunks are said where the name leaves them open."""
    kind = GENERATORS.get(point.schedule)
    args = {"v": point.chunks} if point.chunks > 1 and (kind is None or not kind.chunks) else {}
    return Schedule(point.schedule, micro_batches, args)
