"""torch's optimizers on parts.

A rank updates the part of each parameter whose state it holds, as float32 master copies. That is the update of the whole
for every optimizer that treats each element alone (SGD, Adam, AdamW, RMSprop, Adagrad, …). One that looks at a whole
matrix (Muon, Adafactor, LAMB's norms) would see parts of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeAlias

import torch
from torch import nn

from ...errors import InputError

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of one rank's parts; picklable where ranks are started for the caller."""


def made(make: MakeOptimizer, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of exactly these parameters.

    Raises:
        InputError: `make` gives something else, or an optimizer of other parameters, which would train none of these.
    """
    right = "give a function of the parameters, such as lambda p: torch.optim.AdamW(p, 3e-4)"
    if not callable(make):
        raise InputError(f"optimizer= is {_called(make)}, not a function: {right}")
    optimizer = make(params)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer= made {_called(optimizer)}, not an optimizer of torch.optim: {right}")
    given, held = {id(p) for p in params}, [id(p) for group in optimizer.param_groups for p in group["params"]]
    missing, odd = len(given - set(held)), len(set(held) - given)
    if missing or odd:
        raise InputError(
            f"optimizer= left out {missing} of the {len(given)} parameters that it was given and took {odd} others, which a job "
            f"does not train: {right}"
        )
    return optimizer


def _called(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


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
