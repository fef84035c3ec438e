"""A task run by both ways of running a stage, on the ranks of a pool."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor

from meshwright.execute.proof.counting import Call, Counting, expected
from meshwright.execute.proof.verification import Task
from meshwright.execute.ranks.worker import Context
from meshwright.execute.step import runtime
from meshwright.execute.step.optimizer import SGD
from meshwright.execute.step.totals import Losses


@dataclass
class Ran:
    losses: Losses
    gradients: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    calls: Counter[Call] = field(default_factory=Counter)
    promised: Counter[Call] = field(default_factory=Counter)
    order: dict[int, list[str]] = field(default_factory=dict)
    """Stage -> parameters of the first micro-batch in the order in which their gradients were complete."""


def _ran(context: Context, task: Task, compile: str | None = None, *, count: bool = True, parted: bool = False) -> Ran:
    """`count`: not while torch compiles, which it does not do under a dispatch mode."""
    made = runtime.Runtime(
        task.program, task.graph, task.plan, task.values, task.constants, SGD(), context.hardware, context.groups,
        rank=context.rank, dropout=task.dropout, compile=compile,
    )  # fmt: skip
    found = Ran({})

    def seen(stage: int, name: str, grad: Tensor) -> None:
        found.gradients[stage, name] = grad.clone()

    made.seen = seen
    for stage, local in made.locals.items():
        _listen(local.runner, found.order.setdefault(stage, []))
    if count:
        with Counting() as counting:
            found.losses = made.gradients(task.batch)
            made.update()
        found.calls = Counter({call: n for call, n in counting.calls.items() if call[0] not in ("send", "recv")})
        count_of = task.plan.schedule.micro_batches
        found.promised = expected(task.program, task.graph, count_of, context.rank, parted=parted)
    else:
        found.losses = made.gradients(task.batch)
    return found


def _listen(runner: Any, order: list[str]) -> None:
    original, backwards = runner.backward, []

    def backward(flight: Any, part: str, finished: Any) -> None:
        backwards.append(flight)

        def heard(grads: dict[str, Tensor]) -> None:
            if len(backwards) == 1:
                order.extend(grads)
            finished(grads)

        original(flight, part, finished=heard)

    runner.backward = backward


def both(context: Context, task: Task) -> tuple[Ran, Ran]:
    """(op by op on our own tape, islands under torch's autograd)"""

    with mock.patch.object(runtime, "parted", lambda plan: True):
        single = _ran(context, task, parted=True)
    return single, _ran(context, task)


def compiled(context: Context, payload: tuple[Task, str]) -> tuple[Ran, Ran]:
    """(islands as they are, islands compiled by a backend)"""
    task, backend = payload
    return _ran(context, task, count=False), _ran(context, task, backend, count=False)
