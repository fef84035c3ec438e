"""Ranks that hold the runtimes of many plans at once, so that their steps can be timed in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.distributed as dist

from meshwright.execute.step.runtime import Given
from meshwright.execute.training.trainer import Setup, Trainer

if TYPE_CHECKING:
    from meshwright.execute.ranks.worker import Context


def start(context: Context, ask: tuple[int, Setup]) -> None:
    number, setup = ask
    context.kept[f"plan {number}"] = Trainer(setup, context.rank, context.groups)


def step(context: Context, ask: tuple[int, Sequence[Given]]) -> tuple[float, float, float]:
    """(seconds, seconds of this process on a core, loss) of one step; all ranks begin together."""
    number, batch = ask
    trainer: Trainer = context.kept[f"plan {number}"]
    dist.barrier()
    began, used = time.perf_counter(), time.process_time()
    stepped = trainer.step(batch)
    return time.perf_counter() - began, time.process_time() - used, sum(stepped.losses) / len(stepped.losses)
