"""A run's part of one process that torchrun, or another launcher that sets its variables, started."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import torch.distributed as dist

from ...errors import ExecutionError, InputError, MeshwrightError
from ..ranks.device import hardware
from ..ranks.lost import lost
from ..ranks.mesh_groups import Groups, ranks_of
from .one_process import OneProcess
from .run_record import Run, RunResult, another_ended
from .samples import Samples
from .trainer import Setup, Trainer

PATIENCE = 2.0
"""Seconds that the other ranks leave rank 0 to say what happened, before the launcher stops it because they ended."""


class _Stopped(BaseException):
    """The launcher asks this process to end: another rank did."""


def as_rank(setup: Setup, samples: Samples, one: OneProcess | None, run: Run, timeout: float) -> RunResult:
    """Takes the steps of this rank; joins the group first unless the caller did.

    Raises:
        ExecutionError: on rank 0 what ended the run early; other ranks leave with exit code 1.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    needed = len(ranks_of(setup.program))
    if world != needed:
        raise InputError(f"torchrun started {world} ranks, the plan has {needed} devices: start {needed}")
    joined = not dist.is_initialized()
    if joined:
        join(timeout)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        result = _steps(setup, samples, one, run, rank, world)
    except (KeyboardInterrupt, SystemExit):
        signal.signal(signal.SIGTERM, before)
        raise
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the last words are said first, whoever says them
        _end(rank, error, run)
    signal.signal(signal.SIGTERM, before)
    if joined:
        dist.destroy_process_group()
    return result


def _steps(setup: Setup, samples: Samples, one: OneProcess | None, run: Run, rank: int, world: int) -> RunResult:
    if rank == 0:
        run.tidy()
    trainer = Trainer(setup, rank, Groups())  # its groups are made by all together: what follows finds a tidy folder
    if run.resume is not None:
        run.begun = trainer.resume(run.resume).step
        if one is not None:
            one.resume(run.resume)
    for k in range(run.begun, run.begun + run.steps):
        batch = samples.batch(k)
        shared: list[Any] = [None] * world
        dist.all_gather_object(shared, trainer.step(batch))
        try:
            report = run.report(k + 1, shared, one.step(batch) if one is not None and rank == 0 else None)
        except ExecutionError:
            if rank == 0:
                raise
            time.sleep(PATIENCE)
            raise SystemExit(1) from None
        if rank == 0:
            run.on_step(report)
        target = run.save_at(k + 1)
        if target is not None:
            trainer.checkpoints.save(target)
    trainer.checkpoints.wait()
    spent: list[Any] = [None] * world
    dist.all_gather_object(spent, trainer.spent())
    return run.result(world, spent)


def join(timeout: float) -> None:
    """The world's process group, as the launcher's variables describe it.

    Raises:
        ExecutionError: the port of the meeting place is taken, or the others did not come within `timeout` seconds.
    """
    place, port = hardware(), os.environ.get("MASTER_PORT", "")
    try:
        dist.init_process_group(place.backend, timeout=timedelta(seconds=timeout))
    except (dist.DistError, RuntimeError) as error:
        host = os.environ.get("MASTER_ADDR", "this machine")
        if "EADDRINUSE" in str(error):
            text = f"port {port} of {host} is in use: give another one (torchrun: --master-port; else MASTER_PORT)"
        else:
            text = f"rank {os.environ['RANK']} met no other at port {port} of {host} within {timeout:.0f} s: {error}"
        raise ExecutionError(text) from error


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _Stopped


def _end(rank: int, error: BaseException, run: Run) -> NoReturn:
    """Rank 0 says what to do; a rank that failed by itself says how."""
    if isinstance(error, MeshwrightError):  # says it already
        raise error
    if not (isinstance(error, _Stopped) or lost(error)):
        text = f"rank {rank} failed at step {run.at}: {type(error).__name__}: {error}"
        raise ExecutionError(text + run.go_on()) from error
    if rank != 0:
        time.sleep(PATIENCE)
        raise SystemExit(1) from error
    raise another_ended(run.at, run.how) from error
