"""Jobs that tests send to ranks."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
from meshwright.execute.ops.site import own_part
from meshwright.execute.proof.counting import Counting
from meshwright.execute.proof.verification import Answer, Task, answered, runtime_of
from meshwright.execute.ranks.collectives import apply
from meshwright.execute.ranks.mesh_groups import MeshView, members
from meshwright.execute.ranks.worker import Context
from meshwright.execute.step.optimizer import MakeOptimizer, made
from meshwright.execute.step.runtime import Runtime
from meshwright.lower.program import Instr


@dataclass(frozen=True)
class Move:
    mesh: Mesh
    instr: Instr
    whole: Tensor


def moved(context: Context, moves: list[Move]) -> list[tuple[bool, str]]:
    """Per move: whether the own part after it is what the layouts say. Partial layouts: rank r holds (r + 1) · part."""
    found = []
    for move in moves:
        ranks = {d: d for d in move.mesh.devices}
        coords = [move.mesh.coordinates(p) for p in range(len(move.mesh.devices))]
        context.groups.prepare(members(move.mesh, ranks, move.instr.axes, c) for c in coords)
        view = MeshView(move.mesh, context.rank, ranks, context.groups)
        before, after = move.instr.before, move.instr.after
        assert before is not None and after is not None
        x = own_part(move.whole, before, view)
        scale = 1
        if before.partial:
            x = x * (context.rank + 1)
            scale = sum(r + 1 for r in view.members(before.partial))
        got = apply(move.instr, x, move.whole.shape, view)
        want = own_part(move.whole, after, view) * scale
        found.append((got.shape == want.shape and torch.equal(got, want), str(tuple(got.shape))))
    return found


def killed(context: Context, rank: int) -> None:
    """One rank dies while the others wait for it."""
    if context.rank == rank:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def left(context: Context, code: int) -> None:
    """Rank 0 ends by itself."""
    if context.rank == 0:
        os._exit(code)
    dist.barrier()


def drawn(context: Context, payload: None) -> tuple[float, float]:
    """What user code draws without a seed of its own."""
    return random.random(), float(np.random.rand())


def failing(context: Context, rank: int) -> None:
    if context.rank == rank:
        raise InputError("this rank cannot go on")
    dist.barrier()


def echoed(context: Context, value: Any) -> Any:
    context.event(("event of", context.rank))
    return context.rank, context.world, value


def counted(context: Context, payload: None) -> dict[Any, int]:
    with Counting() as counting:
        dist.all_reduce(torch.ones(3))
        dist.all_reduce(torch.ones(3))
        out = torch.empty(context.world * 2)
        dist.all_gather_single(out, torch.ones(2))
        dist.reduce_scatter_single(torch.empty(2), torch.ones(context.world * 2))
        dist.all_to_all_single(torch.empty(context.world), torch.ones(context.world))
        with torch.inference_mode():
            dist.all_reduce(torch.ones(4))
    dist.all_reduce(torch.ones(3))
    return dict(counting.calls)


@dataclass(frozen=True)
class Training:
    """Several steps: `task` without its batch, and the micro-batches of each step."""

    task: Task
    optimizer: MakeOptimizer
    batches: Sequence[Sequence[Mapping[str, Tensor]]]
    seed: int = 0


@dataclass
class Trained:
    losses: list[tuple[float, ...]]
    """Per step, of the micro-batches whose loss this rank computed."""
    weights: dict[tuple[int, str], Tensor]
    """(stage, parameter) -> own part at rest after the last step."""


def proven_and_trained(context: Context, job: Training) -> tuple[Answer, Trained]:
    """The counted plain step that verifies a plan; then, from the same first weights, the steps of `job`.

    The first of them has the gradients of the plain step, which do not depend on the optimizer: it is left out of the losses.
    """
    runtime = runtime_of(context, job.task)
    before = {key: master.detach().clone() for key, master in runtime.masters.items()}
    first = answered(runtime, job.batches[0])
    first.gradients = {key: x.clone() for key, x in first.gradients.items()}
    first.updated = {key: x.clone() for key, x in first.updated.items()}
    runtime.optimizer = made(job.optimizer, list(runtime.masters.values()) or [nn.Parameter(torch.empty(0))])
    with torch.no_grad():
        for key, master in runtime.masters.items():
            master.copy_(before[key])
            master.grad = first.gradients[key].clone() if key in first.gradients else None
    runtime.optimizer.step()
    runtime.optimizer.zero_grad()
    runtime.spread()
    return first, _trained(runtime, job.batches[1:])


def trained(context: Context, job: Training) -> Trained:
    task = job.task
    runtime = Runtime(
        task.program, task.graph, task.plan, task.values, task.constants, job.optimizer, context.hardware, context.groups,
        rank=context.rank, seed=job.seed, dropout=task.dropout,
    )  # fmt: skip
    return _trained(runtime, job.batches)


def _trained(runtime: Runtime, batches: Sequence[Sequence[Mapping[str, Tensor]]]) -> Trained:
    losses = [tuple(runtime.train_step(batch).losses) for batch in batches]
    weights = {(s, name): x.detach().clone() for s, own in runtime.locals.items() for name, x in own.params.items()}
    return Trained(losses, weights)
