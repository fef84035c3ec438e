"""Whole steps on ranks: what they report, what they leave, and in which order they do it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import ProfilerActivity, profile

from meshwright.execute.proof.verification import Task
from meshwright.execute.ranks.worker import Context
from meshwright.execute.step.optimizer import SGD, MakeOptimizer
from meshwright.execute.step.runtime import Runtime
from meshwright.execute.step.sums import LAUNCH
from meshwright.execute.step.totals import StepResult


@dataclass(frozen=True)
class Steps:
    task: Task
    optimizer: MakeOptimizer
    count: int
    clip: float | None = None
    decay: float = 1.0
    """Of the learning rate, per step."""


@dataclass
class Left:
    results: list[StepResult] = field(default_factory=list)
    before: tuple[float, ...] = ()
    """Losses of an evaluation before the first step."""
    after: tuple[float, ...] = ()
    weights: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    """(stage, parameter) -> part at rest."""


def runtime_of(context: Context, task: Task, optimizer: MakeOptimizer) -> Runtime:
    return Runtime(
        task.program, task.graph, task.plan, task.values, task.constants, optimizer, context.hardware, context.groups,
        rank=context.rank, dropout=task.dropout, bucket_bytes=task.bucket_bytes,
    )  # fmt: skip


def taken(context: Context, steps: Steps) -> Left:
    runtime = runtime_of(context, steps.task, steps.optimizer)
    scheduler = LambdaLR(runtime.optimizer, lambda k: steps.decay**k)
    left = Left(before=runtime.evaluate(steps.task.batch))
    for _ in range(steps.count):
        left.results.append(runtime.train_step(steps.task.batch, steps.clip))
        scheduler.step()
    left.after = runtime.evaluate(steps.task.batch)
    for stage, local in runtime.locals.items():
        left.weights |= {(stage, name): x.clone() for name, x in local.params.items()}
    return left


def traced(context: Context, task: Task) -> tuple[list[float], list[float]]:
    """(when buckets began, when backward functions began), µs, in one step."""
    runtime = runtime_of(context, task, SGD())
    runtime.train_step(task.batch)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        runtime.train_step(task.batch)
    found: dict[bool, list[float]] = {True: [], False: []}
    for event in trace.events():
        if event.name == LAUNCH or event.name.startswith("autograd::engine::evaluate_function"):
            found[event.name == LAUNCH].append(event.time_range.start)
    return sorted(found[True]), sorted(found[False])
