"""torch's optimizers on parts.

A rank updates the part of each parameter whose state it holds, as float32 master copies. That is the update of the whole
for every optimizer that treats each element alone (SGD, Adam, AdamW, RMSprop, Adagrad, …). One that looks at a whole
matrix (Muon, Adafactor, LAMB's norms) would see parts of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of one rank's parts; picklable where ranks are started for the caller."""


@dataclass(frozen=True, slots=True)
class SGD:
    """torch.optim.SGD; the learning rate is ours, the rest torch's defaults."""

    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __call__(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, **asdict(self))


@dataclass(frozen=True, slots=True)
class AdamW:
    """torch.optim.AdamW (Loshchilov and Hutter 2019, algorithm 2) with torch's defaults."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __call__(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, **asdict(self))


def memory(optimizer: torch.optim.Optimizer, param: nn.Parameter) -> dict[str, Tensor]:
    """What the optimizer remembers of each element of `param`: name -> tensor of its shape."""
    state: dict[str, Any] = optimizer.state.get(param, {})
    return {
        name: x
        for name, x in state.items()
        if name != "step" and isinstance(x, Tensor) and x.shape == param.shape  # of a scalar, "step" has its shape too
    }


def prepare_memory(optimizer: torch.optim.Optimizer) -> None:
    """Makes what the optimizer remembers, as it is before its first step; changes no weight."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if any(optimizer.state.get(p) for p in params):
        return
    rates, grads = [group["lr"] for group in optimizer.param_groups], [p.grad for p in params]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    for state in optimizer.state.values():  # weight decay has left its mark in SGD's momentum
        state.update({name: torch.zeros_like(x) for name, x in state.items() if isinstance(x, Tensor)})
