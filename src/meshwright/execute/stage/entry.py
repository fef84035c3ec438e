"""Where values enter an autograd graph without their history, and where their gradients come out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


class Entry(torch.autograd.Function):
    """`Entry.apply(token, *values)`: the values as leaves, without the graph holding them. `token` requires a gradient."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.detach() for x in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * (len(grads) + 1)


@dataclass(frozen=True, slots=True)
class Entered:
    """One value that entered: the edge at which its gradient comes out, and what that looks like."""

    edge: GradientEdge
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(x: Tensor) -> Entered:
        """`x`: what `Entry` made."""
        return Entered(get_gradient_edge(x), x.shape, x.dtype, x.device)

    def zeros(self) -> Tensor:
        """The gradient where none flowed."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)
