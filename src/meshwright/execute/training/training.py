"""Training under a plan: on ranks of this machine started here, or as one rank under torchrun.

parent ─ batch of step k ─▶ every rank: forward, backward, update ─ losses ─▶ parent (─▶ one process, side by side)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import ExecutionError
from ...graph.source import ModelSource
from ...lower import lower
from ...lower.program import unrolled
from ...plan.model import Plan
from ...plan.problem import Recipe
from ..ops.params import Values
from ..proof.refusal import must_run
from ..proof.scale import fitted
from ..proof.verification import constants_of
from ..ranks.mesh_groups import ranks_of
from ..ranks.pool import Died, Pool
from ..saved import checkpoint
from ..step.endless import check_clip
from ..step.optimizer import AdamW, MakeOptimizer
from .one_process import OneProcess
from .one_rank import as_rank
from .run_record import Run, RunResult, StepReport
from .samples import Samples
from .trainer import MakeScheduler, Setup


def train(
    plan: Plan,
    source: ModelSource,
    *,
    steps: int,
    seq: int = 0,
    seed: int | None = None,
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    clip: float | None = None,
    data: str | None = None,
    folder: str | Path | None = None,
    save_every: int = 0,
    resume: str | Path | None = None,
    reference: bool = False,
    dtype: str = "float32",
    on_step: Callable[[StepReport], None] = lambda report: None,
    timeout: float = 600.0,
) -> RunResult:
    """Trains `source` under `plan` for `steps` steps.

    Under torchrun (RANK and WORLD_SIZE are set) this process is one rank, and only rank 0 calls `on_step`. Otherwise one
    process a device of the plan is started on this machine.

    Args:
        plan: of the graph of `source`, with as many devices as there are ranks.
        seed: of first values, samples and dropout; None = the checkpoint's, else 0.
        optimizer, scheduler: make those of torch for one rank's parts; AdamW and a constant rate without them.
        clip: largest global norm of the gradients.
        folder: where checkpoints go, as step-N, written while training goes on; none without it.
        save_every: steps between checkpoints; 0 = one at the end (if there is a folder).
        resume: a checkpoint written under any plan of the same model.
        reference: train the user's module in this process too, side by side.
        timeout: seconds that one step may take.

    Raises:
        ExecutionError: a rank died or the loss is no number; all others are ended first.
        InputError: no such checkpoint, a text that is too short.
    """
    if seed is None:
        seed = checkpoint.info(resume).seed if resume is not None else 0
    setup, samples, one = prepare(
        plan, source, seq=seq, seed=seed, optimizer=optimizer, scheduler=scheduler, clip=clip, data=data, dtype=dtype,
        reference=reference,
    )  # fmt: skip
    run = Run(steps, Path(folder) if folder else None, save_every, Path(resume) if resume else None, dtype, on_step)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return as_rank(setup, samples, one, run, timeout)
    return _as_parent(setup, samples, one, run, timeout)


def prepare(
    plan: Plan,
    source: ModelSource,
    *,
    seq: int = 0,
    seed: int = 0,
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    clip: float | None = None,
    data: str | None = None,
    dtype: str = "float32",
    reference: bool = False,
) -> tuple[Setup, Samples, OneProcess | None]:
    """The program for one micro-batch, its first values and its samples.

    Raises:
        Unsupported: the plan can be priced but not run, in one sentence.
    """
    seq, count = seq or source.default_seq, max(1, plan.schedule.micro_batches)
    micro_batch = plan.samples // count
    graph = source.graph(micro_batch, seq, dtype)
    plan = fitted(plan, graph)
    must_run(plan, graph)
    check_clip(plan.schedule.weights, clip)
    program = unrolled(lower(graph, plan, Recipe(plan.samples, compute_dtype=dtype)), graph)
    module, _ = source.build(micro_batch, seq, dtype, device="cpu", attention="eager")
    values, rule = Values(seed), optimizer or AdamW()
    setup = Setup(program, graph, plan, values, constants_of(graph, module), rule, seed, scheduler, clip)
    samples = Samples(source, micro_batch, count, seq, seed, data)
    one = OneProcess(graph, module, values, rule, scheduler, clip) if reference else None
    return setup, samples, one


def _as_parent(setup: Setup, samples: Samples, one: OneProcess | None, run: Run, timeout: float) -> RunResult:
    """Starts the ranks here and tells them each step."""
    ranks = len(ranks_of(setup.program))
    run.tidy()
    with Pool(ranks, backend="auto", timeout=timeout) as pool:

        def all_ranks(name: str, payload: Any = None) -> list[Any]:
            return pool.run(f"meshwright.execute.training.trainer:{name}", payload, timeout=timeout)

        try:
            all_ranks("start", setup)
            if run.resume is not None:
                run.begun = int(all_ranks("resume", str(run.resume))[0])
                if one is not None:
                    one.resume(run.resume)
            for k in range(run.begun, run.begun + run.steps):
                batch = samples.batch(k)
                stepped = all_ranks("step", batch)
                run.on_step(run.report(k + 1, stepped, one.step(batch) if one is not None else None))
                target = run.save_at(k + 1)
                if target is not None:
                    all_ranks("save", str(target))
            spent = all_ranks("finish")
        except Died as error:
            raise ExecutionError(error.sentence(f"at step {run.at}") + run.go_on(), hint=error.hint) from error
    return run.result(ranks, spent)
