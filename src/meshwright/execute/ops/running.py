"""Running statistics of a batch norm on one rank: its own channels of them, and what micro-batches have left for the next update."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...graph.ir import Running
from ...plan.model import Layout
from ..ranks.mesh_groups import MeshView
from .site import Moment, own_part


@dataclass(slots=True)
class RunningPart:
    """Of one op. Ops that share buffers share the tensors."""

    names: Running
    shape: tuple[int, ...]
    """[channels], all of them."""
    layout: Layout
    mean: Tensor
    var: Tensor
    """[own channels], of the type of the buffers."""
    count: Tensor
    """[], int64: updates so far."""
    elements: int
    """Of one channel in one micro-batch, in all parts."""
    seen: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """(step, micro-batch) -> mean and unbiased variance of the own channels. A forward that runs again says the same."""

    @staticmethod
    def of(
        names: Running,
        whole: tuple[Tensor, Tensor, Tensor | None],
        layout: Layout,
        view: MeshView,
        device: torch.device,
        elements: int,
    ) -> RunningPart:
        """`whole`: mean, variance and count as the module has them. `layout`: of the [channels] tensors."""
        mean, var, count = whole
        parts = [own_part(x.detach(), layout, view).to(device, copy=True) for x in (mean, var)]
        number = count.detach().cpu().clone() if count is not None else torch.zeros((), dtype=torch.int64)
        return RunningPart(names, tuple(mean.shape), layout, parts[0], parts[1], number, elements)

    def record(self, moment: Moment, mean: Tensor, var: Tensor) -> None:
        """Of one micro-batch. `var`: unbiased, as torch keeps it."""
        self.seen[int(moment.step), int(moment.micro_batch)] = mean.detach(), var.detach()

    def scratch(self) -> tuple[Tensor, Tensor]:
        """Room for the statistics of one micro-batch."""
        return torch.zeros_like(self.mean), torch.ones_like(self.var)

    def fold(self, means: Tensor, variances: Tensor, *, whole: bool) -> None:
        """One update with what K micro-batches of equal size left, [K, own channels] each.

        `whole`: as one batch of all samples (torchgpipe, section 3.2 of arXiv 2004.09910: "deferred batch
        normalization"); else as K batches one after the other.
        """
        if whole:
            self._renew(*self._pooled(means, variances))
            return
        for mean, var in zip(means, variances, strict=True):
            self._renew(mean, var)

    def _renew(self, mean: Tensor, var: Tensor) -> None:
        self.mean.lerp_(mean.to(self.mean.dtype), self.names.momentum)
        self.var.lerp_(var.to(self.var.dtype), self.names.momentum)
        self.count += 1

    def _pooled(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """Chan, Golub, LeVeque (1979): squares within the parts, and those between their means."""
        k, n = len(means), self.elements
        mean = means.mean(0)
        squares = (n - 1) * variances.sum(0) + n * (means - mean).square().sum(0)
        return mean, squares / (k * n - 1)
