"""One rank's part of a run: the runtime, its learning-rate scheduler and its checkpoints. Also as jobs of a pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ...graph.ir import Graph
from ...lower.program import Program
from ...plan.model import Plan
from ..ops.params import Values
from ..ranks.device import hardware
from ..ranks.mesh_groups import Groups
from ..saved import checkpoint
from ..step.nan_origin import origin_of_nan
from ..step.optimizer import MakeOptimizer
from ..step.runtime import Given, Runtime
from ..step.statistics import Each

if TYPE_CHECKING:
    from ..ranks.worker import Context

MakeScheduler: TypeAlias = Callable[[torch.optim.Optimizer], Any]
"""Makes a scheduler of torch.optim.lr_scheduler; picklable where ranks are started for the caller."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What each rank needs once."""

    program: Program
    graph: Graph
    plan: Plan
    values: Values
    constants: Mapping[str, Tensor]
    optimizer: MakeOptimizer
    seed: int
    scheduler: MakeScheduler | None = None
    clip: float | None = None
    """Largest global norm of the gradients."""
    compile: str | None = None
    """A backend of torch.compile for what a stage does between its collectives."""
    batch_norm: Each = "mini-batch"
    """What running statistics are renewed after."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one rank says of one step."""

    losses: tuple[float, ...]
    """One a micro-batch; equal on every rank."""
    grad_norm: float
    """L2 norm of all gradients, before clipping; equal on every rank."""
    seconds: float
    own_losses: tuple[float, ...] = ()
    """Those that this rank computed."""
    origin: str = ""
    """What on this rank made a NaN, where the loss is no number."""

    @property
    def finite(self) -> bool:
        return isfinite(self.grad_norm) and all(map(isfinite, self.losses))


class Trainer:
    """Makes the runtime of one rank and takes its steps. All ranks of the group do alike."""

    def __init__(self, setup: Setup, rank: int, groups: Groups) -> None:
        self.runtime = Runtime(
            setup.program, setup.graph, setup.plan, setup.values, setup.constants, setup.optimizer, hardware(), groups,
            rank=rank, seed=setup.seed, compile=setup.compile,
            batch_norm=setup.batch_norm,
        )  # fmt: skip
        self.clip = setup.clip
        self.scheduler: Any = setup.scheduler(self.runtime.optimizer) if setup.scheduler is not None else None
        if self.scheduler is not None:
            self.runtime.updated = self.scheduler.step
        self.checkpoints = checkpoint.Checkpoints(self.runtime, setup.plan, self.scheduler)
        self._taken = 0
        self._spent: dict[str, float] = {}

    def resume(self, folder: str | Path) -> checkpoint.Saved:
        return checkpoint.load(self.runtime, folder, self.scheduler)

    def step(self, batch: Sequence[Given]) -> Stepped:
        """Forward, backward and update on this rank's parts of the micro-batches.

        Where the loss is no number nothing is updated, and every rank looks for what made it so.
        """
        self.runtime.clock.taken()  # what an evaluation or a checkpoint took is no part of a step
        began = time.perf_counter()
        result = self.runtime.train_step(batch, self.clip)
        if not result.finite:
            origin = origin_of_nan(self.runtime, batch)
            return Stepped(result.losses, result.grad_norm, time.perf_counter() - began, result.own_losses, origin)
        took, spans = time.perf_counter() - began, self.runtime.clock.taken()
        if self._taken:
            for name, seconds in {**spans, "step": took}.items():
                self._spent[name] = self._spent.get(name, 0.0) + seconds
        self._taken += 1
        return Stepped(result.losses, result.grad_norm, took, result.own_losses)

    @property
    def timed(self) -> int:
        """Steps that `spent` tells of."""
        return max(0, self._taken - 1)

    def spent(self) -> dict[str, float]:
        """Seconds by what this rank did ("step": all of it), over all steps but the first, which warms up."""
        return dict(self._spent)


# ---------------------------------------------------------- jobs of the ranks


def start(context: Context, setup: Setup) -> None:
    context.kept["trainer"] = Trainer(setup, context.rank, context.groups)


def resume(context: Context, folder: str) -> int:
    return _of(context).resume(folder).step


def step(context: Context, batch: Sequence[Given]) -> Stepped:
    return _of(context).step(batch)


def save(context: Context, folder: str) -> None:
    """Begins to write."""
    _of(context).checkpoints.save(folder)


def finish(context: Context, payload: None) -> dict[str, float]:
    """Waits for what is being written. Returns the seconds of this rank by what it did."""
    trainer = _of(context)
    trainer.checkpoints.wait()
    return trainer.spent()


def _of(context: Context) -> Trainer:
    return context.kept["trainer"]  # type: ignore[no-any-return]
