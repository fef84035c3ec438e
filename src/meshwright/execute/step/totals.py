"""What a step reports: losses and the norm of all gradients, equal on every rank. One small all-reduce a step.

Every element of every parameter counts once in the norm: of equal copies (replicas, tied weights on several stages) one
rank's, the one at coordinate 0 of the axes that do not cut the part, on the lowest stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from ...graph.ir import Graph
from ...lower.program import Param, Program
from ...plan.layout import axes_of
from ..ranks.mesh_groups import MeshView


@dataclass(frozen=True, slots=True)
class StepResult:
    losses: tuple[float, ...]
    """One a micro-batch."""
    grad_norm: float
    """L2 norm of the gradients of all parameters, before clipping. Without a flush: of each stage's last update."""
    own_losses: tuple[float, ...] = ()
    """Those that this rank computed: where a loss is not finite, they tell which ranks made it so."""

    @property
    def loss(self) -> float:
        """Mean over the micro-batches."""
        return sum(self.losses) / len(self.losses)

    @property
    def finite(self) -> bool:
        return isfinite(self.grad_norm) and all(isfinite(x) for x in self.losses)


Losses: TypeAlias = Mapping[tuple[int, int], float]
"""(stage, micro-batch) -> loss."""


class Totals:
    """Adds up over all ranks what each counts."""

    def __init__(self, program: Program, graph: Graph, views: Mapping[int, MeshView], device: torch.device) -> None:
        """`views`: of the stages that this rank holds."""
        self._device, self._alone = device, len(program.stages) == 1 and len(program.stages[0].mesh.devices) == 1
        self._counted = [
            (stage, p.name)
            for stage, view in views.items()
            for p in program.stages[stage].params
            if _counts(p, stage, view)
        ]
        self._loss = {
            s.stage
            for s in program.stages
            if s.stage in views
            and views[s.stage].position == 0
            and any(graph.loss in i.outputs for g in s.segments for i in g.forward)
        }

    def square(self, grads: Mapping[tuple[int, str], Tensor]) -> Tensor:
        """float64 []: squares of the elements that this rank counts. `grads`: (stage, parameter) -> own part."""
        own = [grads[key] for key in self._counted]
        norm = torch.nn.utils.get_total_norm(own).to(torch.float64) if own else torch.zeros((), dtype=torch.float64)
        return norm**2

    def of(self, losses: Losses, micro_batches: int, square: Tensor | None = None) -> tuple[tuple[float, ...], float]:
        """(losses, norm of the gradients) of all ranks. Collective.

        Args:
            losses: those that this rank computed.
            square: what `square` gave; None: no norm is wanted.
        """
        counted = [0.0] * (micro_batches + 1)
        for (stage, k), loss in losses.items():
            if stage in self._loss:
                counted[k + 1] = loss
        sums = torch.tensor(counted, dtype=torch.float64, device=self._device)
        if square is not None:
            sums[0] = square.to(self._device)
        if not self._alone:
            dist.all_reduce(sums)
        total, *found = sums.tolist()
        return tuple(found), sqrt(total) if total == total else total


def _counts(p: Param, stage: int, view: MeshView) -> bool:
    cut = set(axes_of(p.state))
    first = all(view.coords[axis] == 0 for axis in view.mesh.axes if axis not in cut)
    return first and stage == min((stage, *p.shared))


def clipped(grads: Iterable[Tensor], norm: float, limit: float) -> None:
    """Scales gradients whose common norm is `norm`, such that it is at most `limit`: torch.nn.utils.clip_grad_norm_'s rule."""
    scale = limit / (norm + 1e-6)
    if not scale >= 1.0:
        for grad in grads:
            grad.mul_(scale)
