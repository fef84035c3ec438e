"""Does a plan without a flush compute what a loop over weight versions computes? Several steps, every update's gradient.

one process    for k = 0, 1, …: each stage's weights as the version rule says ─ forward, backward ─ gradients
               after each round of a stage: w(v + 1) = w(v) − rate · mean gradient     (tied weights: of their first stage)
ranks          the same micro-batches, fed step by step, drained at the end
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import Unsupported
from ...plan.copies import copies_of
from ...plan.model import Plan
from ...plan.schedules import workers
from ...plan.schedules.asynchronous import version_read
from ..ops.site import own_part
from ..ranks.mesh_groups import Groups, MeshView, ranks_of
from ..ranks.pool import Pool
from ..step.optimizer import SGD
from ..step.runtime import MicroBatch, Runtime

if TYPE_CHECKING:
    from ..ranks.worker import Context
    from .verification import Task, VerifyResult

STEPS = 3
"""Enough for 2BW's second buffer to be read."""
RATE = 0.1
LIMIT = 1e-4
"""Of a gradient after several updates, relative as in `verification`."""


@dataclass(slots=True)
class Late:
    """What one process or one rank found."""

    losses: dict[int, float] = field(default_factory=dict)
    """By micro-batch, counted through all steps."""
    gradients: dict[tuple[int, str], list[Tensor]] = field(default_factory=dict)
    """(stage, parameter) -> the mean gradient of each update."""


def answer(context: Context, task: Task) -> Late:
    """Runs in each rank."""
    runtime = Runtime(
        task.program, task.graph, task.plan, task.values, task.constants, SGD(lr=RATE), context.hardware, context.groups,
        rank=context.rank, dropout=task.dropout, bucket_bytes=task.bucket_bytes,
    )  # fmt: skip
    found = Late()

    def updated(grads: Mapping[tuple[int, str], Tensor]) -> None:
        for key, grad in grads.items():
            found.gradients.setdefault(key, []).append(grad.detach().cpu().clone())

    assert runtime.endless is not None
    runtime.endless.changed = updated
    m = runtime.micro_batches
    for first in range(0, len(task.batch), m):
        losses = runtime.train_step(task.batch[first : first + m]).losses
        found.losses |= {first + k: loss for k, loss in enumerate(losses)}
    runtime.settle()
    return found


def reference(task: Task, module: nn.Module) -> Late:
    """The loop in this process, with the user's module.

    Raises:
        Unsupported: a backward that reads other weights than its forward, which torch's autograd does not do.
    """
    plan, graph = task.plan, task.graph
    if not plan.schedule.weights.stash:
        raise Unsupported(
            "a backward that reads newer weights than its forward (stash = false) has nothing in one process to be compared "
            "with: set stash = true",
            reason="scale",
        )
    crew = {w.stage: w for w in reversed(workers(plan.schedule, len(plan.stages)))}
    entry, reads = crew[0], plan.schedule.weights.reads
    stage_of = _keeper(task)
    named = dict(module.named_parameters(remove_duplicate=False))
    versions: dict[str, list[Tensor]] = {t.name: [task.values.whole(t).to(named[t.name].dtype)] for t in graph.params()}
    sums = {name: torch.zeros_like(v[0]) for name, v in versions.items()}
    found = Late()
    for k, one in enumerate(task.batch):
        for name, param in named.items():
            if name in versions:
                worker = crew[stage_of[name]]
                turn = replace(worker, replica=k % worker.replicas)
                at = version_read(reads, turn, replace(entry, replica=k % entry.replicas), k // worker.replicas)
                with torch.no_grad():
                    param.copy_(versions[name][at])
        module.zero_grad(set_to_none=True)
        loss = _loss(module, one)
        loss.backward()  # type: ignore[no-untyped-call]
        found.losses[k] = float(loss.detach())
        for name, stage in stage_of.items():
            each = crew[stage].update_every * crew[stage].replicas
            grad = named[name].grad
            if grad is not None:
                sums[name] += grad
            if (k + 1) % each == 0 or k + 1 == len(task.batch):
                mean = sums[name] / (k % each + 1)
                found.gradients.setdefault((stage, name), []).append(mean)
                versions[name].append(versions[name][-1] - RATE * mean)
                sums[name] = torch.zeros_like(mean)
    return found


def _keeper(task: Task) -> dict[str, int]:
    """Parameter -> the stage of the plan that updates it: of tied ones the first."""
    own = [copy.stage for copy in copies_of(task.plan)]
    found: dict[str, int] = {}
    for code in task.program.stages:
        for p in code.params:
            found[p.name] = min(own[code.stage], found.get(p.name, own[code.stage]))
    return found


def _loss(module: nn.Module, one: MicroBatch) -> Tensor:
    from .verification import loss_of

    return loss_of(module(**one))


def compare(task: Task, truth: Late, answers: Sequence[Late]) -> VerifyResult:
    """Every rank's losses and the gradient of each update against the loop's."""
    from .verification import FLOOR, VerifyResult

    problems: list[str] = []
    for rank, a in enumerate(answers):
        for k, loss in a.losses.items():
            if not abs(loss - truth.losses[k]) <= LIMIT * max(1.0, abs(truth.losses[k])):
                problems.append(f"rank {rank} has loss {loss:.7g} in micro-batch {k}, the loop {truth.losses[k]:.7g}")
    largest = max(float(g.abs().max()) for grads in truth.gradients.values() for g in grads if g.numel())
    worst, compared = ("", 0.0), set()
    ranks, own, keeper = ranks_of(task.program), [copy.stage for copy in copies_of(task.plan)], _keeper(task)
    for code in task.program.stages:
        for rank in {ranks[d] for d in code.mesh.devices}:
            view = MeshView(code.mesh, rank, ranks, Groups())
            for p in code.params:
                if own[code.stage] != keeper[p.name]:
                    continue
                wanted = truth.gradients[own[code.stage], p.name]
                got_all = answers[rank].gradients.get((code.stage, p.name), [])
                compared.add(p.name)
                if len(got_all) != len(wanted):
                    problems.append(f"rank {rank} made {len(got_all)} updates of {p.name}, the loop {len(wanted)}")
                for v, (got, whole) in enumerate(zip(got_all, wanted, strict=False)):
                    scale = max(float(whole.abs().max()), FLOOR * largest, 1e-30)
                    part = own_part(whole, p.state, view)
                    error = float((got.to(part.dtype) - part).abs().max()) / scale if part.numel() else 0.0
                    if not error <= worst[1]:
                        worst = (p.name, error)
                    if not error <= LIMIT:
                        problems.append(
                            f"the gradient of {p.name} in update {v + 1} differs by {error:.1e} on rank {rank}, limit {LIMIT:.0e}"
                        )
    found = {k: loss for a in answers for k, loss in a.losses.items()}
    mean = [sum(x.values()) / max(1, len(x)) for x in (truth.losses, found)]
    updates = max(len(grads) for grads in truth.gradients.values())
    return VerifyResult(
        not problems, (mean[0], mean[1]), len(compared), worst, LIMIT, {}, tuple(problems), updates=updates
    )


def check(task: Task, module: nn.Module, pool: Pool) -> VerifyResult:
    """Runs `task`, whose batch is that of several steps, on the pool's ranks, and the loop here."""
    start = time.monotonic()
    truth = reference(task, module)
    answers = pool.run("meshwright.execute.proof.late:answer", task)
    return replace(compare(task, truth, answers), seconds=time.monotonic() - start)


def steps_of(plan: Plan) -> int:
    """Steps that a check of this plan takes."""
    return 1 if plan.schedule.weights.flush else STEPS


__all__ = ["Late", "answer", "check", "compare", "reference", "steps_of"]
