"""Pipelines without a flush, fed step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from execute.step_jobs import runtime_of
from meshwright.execute.proof.verification import Task
from meshwright.execute.ranks.worker import Context
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
