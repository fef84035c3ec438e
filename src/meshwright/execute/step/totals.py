"""What a step reports: losses and the norm of all gradients, equal on every rank. One small all-reduce a step.

Every element of every parameter counts once in the norm: of equal copies (replicas, tied weights on several stages) one
rank's, the one at coordinate 0 of the axes that do not cut the part, on the lowest stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

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
    """L2 norm of the gradients of all parameters, before clipping."""
    own_losses: tuple[float, ...] = ()
    """Those that this rank computed: where a loss is not finite, they tell which ranks made it so."""

    @property
    def loss(self) -> float:
        """Mean over the micro-batches."""
        return sum(self.losses) / len(self.losses)

    @property
    def finite(self) -> bool:
        return isfinite(self.grad_norm) and all(isfinite(x) for x in self.losses)


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
        last = next(s for s in program.stages if any(graph.loss in i.outputs for g in s.segments for i in g.forward))
        self._loss = last.stage in views and views[last.stage].position == 0

    def of(
        self, losses: Sequence[float], micro_batches: int, grads: Mapping[tuple[int, str], Tensor] | None = None
    ) -> tuple[tuple[float, ...], float]:
        """(losses, norm of the gradients) of all ranks. Collective.

        Args:
            losses: of the micro-batches, where this rank computed them.
            grads: (stage, parameter) -> own part; None: no norm is wanted.
        """
        own = [grads[key] for key in self._counted] if grads is not None else []
        norm = torch.nn.utils.get_total_norm(own).to(torch.float64) if own else torch.zeros((), dtype=torch.float64)
        counted = list(losses) if self._loss else [0.0] * micro_batches
        sums = torch.tensor([0.0, *counted], dtype=torch.float64, device=self._device)
        sums[0] = norm.to(self._device) ** 2
        if not self._alone:
            dist.all_reduce(sums)
        square, *found = sums.tolist()
        return tuple(found), sqrt(square) if square == square else square


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
