"""What playing a step begins and ends with, whoever plays it: the order of its actions, their prices, how it ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..cost.base import CostModel
from ..graph.ir import Floats
from ..lower.program import Program
from ..plan.model import Plan
from ..plan.pieces import rows_in_turn
from ..plan.schedules.rows import GENERATORS
from ..plan.schedules.rows import rows as rows_of_plan
from .estimate import Step, Work, action_seconds, finish
from .pipeline import WEIGHT_GRAD, Orders, orders
from .price import Pricer, StagePrice
from .tasks import PipelineTasks, Sends


def is_free(plan: Plan) -> bool:
    """Whether stages run as soon as what they read is there, in no schedule's order."""
    return plan.schedule.name == "dataflow" and not plan.schedule.rows and len(plan.stages) > 1


def ordered(plan: Plan, program: Program) -> Orders:
    """Who runs what when, in steps that end.

    Raises:
        InputError: a schedule that does not suit the stages.
    """
    rows = () if plan.schedule.name in GENERATORS else plan.schedule.rows
    if any(s.deal for s in plan.stages):
        rows = rows_of_plan(plan)
    if is_free(plan):
        rows = rows_in_turn([code.mesh for code in program.stages], plan.schedule.micro_batches)
    order = orders(plan.schedule, len(program.stages), rows)
    if any(code.keep_last for code in program.stages):
        order = replace(order, keep_last=np.array([code.keep_last for code in program.stages], np.int32))
    return order


def priced(
    order: Orders, program: Program, pricer: Pricer, columns: int = 1
) -> tuple[list[StagePrice], list[StagePrice]]:
    """Stages, and as they are in the last micro-batches if some of these keep what others make again.

    columns: how often the micro-batch stands in each price.
    """
    split, micro = bool((order.kind == WEIGHT_GRAD).any()), [program.micro_batch] * columns
    last = [code.last or code for code in program.stages] if len(order.keep_last) else []
    first = [pricer.stage(code, micro, split=split) for code in program.stages]
    return first, [pricer.stage(code, micro, split=split) for code in last]


def durations(work: Work, sends: Sends, rank: NDArray[np.int32]) -> Floats:
    """Seconds [kind, row] of actions. What stages of one lane send to each other, as their meshes differ, waits for nobody
    else: it lengthens the action that reads it."""
    seconds = action_seconds(work)
    own = rank[sends.src] == rank[sends.dst]
    for first in range(0, seconds.shape[1], len(rank)):
        np.add.at(seconds[0], first + sends.dst[own], sends.forward[own])
        np.add.at(seconds[1], first + sends.src[own], sends.backward[own])
    return seconds


def devices_of(program: Program) -> list[int]:
    """Every device that some stage uses, once."""
    return sorted({d for code in program.stages for d in code.mesh.devices})


def ending(
    order: Orders,
    tasks: PipelineTasks,
    start: Floats,
    work: Work,
    rank: NDArray[np.int32],
    cost: CostModel,
    devices: int,
) -> Step:
    """How a step ends whose tasks start at `start`, on so many devices."""
    ended = ends(order, tasks, start)
    ready = _ready(order, tasks, start, ended, rank)
    return finish(work, rank, ended, cost.overlap("data"), cost.step_overhead(devices), ready)


def ends(order: Orders, tasks: PipelineTasks, start: Floats) -> Floats:
    """End [rank] of each rank's last action."""
    last = np.searchsorted(order.task_rank, np.arange(1, order.ranks + 1)) - 1
    found: Floats = start[last] + tasks.fixed.duration[last]
    return found


def _ready(order: Orders, tasks: PipelineTasks, start: Floats, ended: Floats, rank: NDArray[np.int32]) -> Floats | None:
    """Seconds [stage] at which rows say that its gradients may be summed over its copies."""
    if not len(order.reduced):
        return None
    done = start[: tasks.actions] + tasks.fixed.duration[: tasks.actions]
    found: Floats = np.where(order.reduced >= 0, done[order.reduced], ended[rank])
    return found
