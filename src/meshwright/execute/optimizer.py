"""Optimizers on parts: element-wise, so a part is updated as it would be inside the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(slots=True)
class State:
    """The master copy of one part, float32, and what its optimizer remembers."""

    master: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0


class Optimizer(Protocol):
    def update(self, state: State, grad: Tensor) -> None:
        """Changes `state` in place."""
        ...

    def moments(self) -> tuple[str, ...]:
        """Names of the tensors it keeps per parameter, each as big as the master copy."""
        ...

    def prepare(self, state: State) -> None:
        """Makes the moments, zero, if there are none yet."""
        ...


@dataclass(frozen=True, slots=True)
class SGD:
    """w − lr · g."""

    lr: float = 0.1

    def moments(self) -> tuple[str, ...]:
        return ()

    def prepare(self, state: State) -> None:
        """It remembers nothing."""

    def update(self, state: State, grad: Tensor) -> None:
        state.step += 1
        state.master.sub_(grad.to(torch.float32), alpha=self.lr)


@dataclass(frozen=True, slots=True)
class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2, in torch.optim.AdamW's form; defaults are torch's."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def moments(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def prepare(self, state: State) -> None:
        if not state.moments:
            state.moments = {name: torch.zeros_like(state.master) for name in self.moments()}

    def update(self, state: State, grad: Tensor) -> None:
        self.prepare(state)
        grad, (first, second) = grad.to(torch.float32), self.betas
        state.step += 1
        mean, square = state.moments["exp_avg"], state.moments["exp_avg_sq"]
        state.master.mul_(1 - self.lr * self.weight_decay)
        mean.lerp_(grad, 1 - first)
        square.mul_(second).addcmul_(grad, grad, value=1 - second)
        scale = (square.sqrt() / (1 - second**state.step) ** 0.5).add_(self.eps)
        state.master.addcdiv_(mean, scale, value=-self.lr / (1 - first**state.step))
