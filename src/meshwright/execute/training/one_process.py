"""The user's own module, trained in this process: what a plan's run is held against, and where it can go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.utils import clip_grad_norm_

from ...graph.ir import Graph
from ..ops.params import Values
from ..proof.verification import load_values, loss_of
from ..saved import checkpoint
from ..step.optimizer import MakeOptimizer, made
from ..step.runtime import MicroBatch
from .trainer import MakeScheduler


class OneProcess:
    """Starts from the same values and sees the same samples."""

    def __init__(
        self,
        graph: Graph,
        module: nn.Module,
        values: Values,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        clip: float | None = None,
    ) -> None:
        self.module, self.clip = module, clip
        load_values(graph, module, values)
        self._names = {t.name for t in graph.params()}
        self._names |= {name for r in graph.running.values() for name in (r.mean, r.var, r.count) if name}
        self._optimizer = made(optimizer, list(module.parameters()))
        self._scheduler: Any = scheduler(self._optimizer) if scheduler is not None else None

    def resume(self, folder: str | Path) -> checkpoint.Saved:
        """Goes on from a checkpoint that a run wrote under any plan."""
        return checkpoint.load_module(self.module, self._optimizer, folder, self._names, self._scheduler)

    def step(self, batch: Sequence[MicroBatch]) -> float:
        """The mean loss of the micro-batches, before the update."""
        self._optimizer.zero_grad()
        total = 0.0
        for one in batch:
            loss = loss_of(self.module(**one))
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / len(batch)
        if self.clip is not None:
            clip_grad_norm_(self.module.parameters(), self.clip)
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        return total
