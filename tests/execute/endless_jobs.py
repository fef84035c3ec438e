"""Pipelines without a flush, fed step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from execute.step_jobs import runtime_of
from meshwright.execute.proof.verification import Task
from meshwright.execute.ranks.worker import Context
from meshwright.execute.saved import checkpoint
from meshwright.execute.step.optimizer import MakeOptimizer


@dataclass(frozen=True)
class Feed:
    task: Task
    optimizer: MakeOptimizer
    batches: Sequence[Sequence[Mapping[str, Tensor]]]
    settle_after: int = 0
    """Steps after which the pipeline is drained once; 0 = at the end only."""


@dataclass
class Fed:
    losses: list[tuple[float, ...]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)
    """Weight versions in memory after each step."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Of this rank's stage, when all is drained."""
    updates: int = 0
    """Calls of `Runtime.updated`."""


def fed(context: Context, feed: Feed) -> Fed:
    runtime = runtime_of(context, feed.task, feed.optimizer)
    found = Fed()

    def updated() -> None:
        found.updates += 1

    runtime.updated = updated
    assert runtime.endless is not None
    for k, batch in enumerate(feed.batches, 1):
        result = runtime.train_step(batch)
        found.losses.append(result.losses)
        found.norms.append(result.grad_norm)
        found.alive.append(len(runtime.endless.versions.alive))
        if k == feed.settle_after:
            runtime.settle()
    runtime.settle()
    for local in runtime.locals.values():
        found.weights |= {name: x.clone() for name, x in local.params.items()}
    return found


def saved(context: Context, payload: tuple[Feed, str]) -> list[tuple[float, ...]]:
    """Losses of the steps after a checkpoint, which is written after `settle_after` steps."""
    feed, folder = payload
    runtime = runtime_of(context, feed.task, feed.optimizer)
    writer, losses = checkpoint.Checkpoints(runtime), []
    for k, batch in enumerate(feed.batches, 1):
        losses.append(runtime.train_step(batch).losses)
        if k == feed.settle_after:
            writer.save(folder)
    runtime.settle()  # what is under way would reach the next job of these ranks
    writer.wait()
    return losses[feed.settle_after :]


def resumed(context: Context, payload: tuple[Feed, str]) -> list[tuple[float, ...]]:
    """The same steps of a run that goes on from the checkpoint."""
    feed, folder = payload
    runtime = runtime_of(context, feed.task, feed.optimizer)
    assert checkpoint.load(runtime, folder).step == runtime.step == feed.settle_after
    losses = [runtime.train_step(batch).losses for batch in feed.batches[feed.settle_after :]]
    runtime.settle()
    return losses
