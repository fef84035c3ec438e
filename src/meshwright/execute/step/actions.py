"""What a rank does in one step, read off the plan: its schedule row, or micro-batch after micro-batch where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...lower.program import Program
from ...plan.model import Action, Plan, Row
from ...plan.pieces import rows_in_turn
from ...plan.schedules import rows, workers
from ..ranks.mesh_groups import ranks_of


def actions_of(plan: Plan, program: Program, rank: int) -> tuple[Action, ...]:
    """What one rank does, in order: its schedule row, or micro-batch after micro-batch where the plan has no rows.

    `why_not` has refused what no rank can do.
    """
    ranks = ranks_of(program)
    endless = workers(plan.schedule, len(plan.stages))
    if endless:
        return tuple(
            replace(a, on=s.stage)
            for s in program.stages
            if rank in {ranks[d] for d in s.mesh.devices}
            for a in endless[s.stage].table(max(1, plan.schedule.micro_batches))
        )
    mine = {s.stage for s in program.stages if rank in {ranks[d] for d in s.mesh.devices}}
    found: tuple[Row, ...] = rows(plan)
    if not found:
        found = rows_in_turn([s.mesh for s in program.stages], max(1, plan.schedule.micro_batches))
    return tuple(
        replace(a, micro_batch=k, span=1)
        for row in found
        for pair in row.actions
        for a in (pair if isinstance(pair, tuple) else (pair,))
        if a.on in mine
        for k in range(a.micro_batch, a.micro_batch + a.span)
    )


def parted(plan: Plan) -> bool:
    """Whether the backward of some stage comes in two parts."""
    found: tuple[Row, ...] = rows(plan) if plan.schedule.name != "dataflow" else ()
    pairs = (pair if isinstance(pair, tuple) else (pair,) for row in found for pair in row.actions)
    return any(a.kind in ("I", "W") for pair in pairs for a in pair)


def forwards_of(plan: Plan, program: Program) -> Mapping[int, tuple[int, int]]:
    """Stage -> micro-batches that run on it in one step, of several pipes each its share: those that may run ops again,
    and the last ones, of which all is kept (`StageCode.keep_last`)."""
    found: tuple[Row, ...] = rows(plan)
    m = max(1, plan.schedule.micro_batches)
    numbers: dict[int, list[int]] = {}
    if not found:
        numbers = {s.stage: list(range(m)) for s in program.stages}
    for row in found:
        for pair in row.actions:
            for a in pair if isinstance(pair, tuple) else (pair,):
                if a.kind == "F" and isinstance(a.on, int):
                    numbers.setdefault(a.on, []).extend(range(a.micro_batch, a.micro_batch + a.span))
    counts = {}
    for s in program.stages:
        own = numbers.get(s.stage, [])
        kept = sum(k >= m - s.keep_last for k in own)
        counts[s.stage] = len(own) - kept, kept
    return counts
