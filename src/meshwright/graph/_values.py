"""Arguments of a torch call as plain data and back: enumerations become strings, tensors become slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .ir import Arg, Slot
from .kinds import Spec

PLACES = ("device", "pin_memory", "layout", "generator")
"""Keywords that say where or how bytes lie, which the executor decides."""


def plain(value: object, slot: Callable[[object], Arg]) -> Arg:
    """One argument as data; `slot` turns the nodes of a traced graph into slots or constants."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(plain(v, slot) for v in value)
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return str(value)
    if isinstance(value, torch.device):
        return None
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return float(value) if isinstance(value, torch.SymFloat) else int(value)
    return slot(value)


def real(value: Arg, tensors: Sequence[torch.Tensor]) -> Any:
    """The inverse of `plain`, with `tensors` in the slots."""
    if isinstance(value, Slot):
        return tensors[value.index]
    if isinstance(value, tuple):
        return [real(v, tensors) for v in value]
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."))
    return value


def spec_of(tensor: torch.Tensor) -> Spec:
    return Spec(tuple(int(n) for n in tensor.shape), str(tensor.dtype).removeprefix("torch."))


def is_view(shape: Sequence[int], stride: Sequence[int], wanted: Sequence[int]) -> bool:
    """A tensor of this shape and stride can be reshaped to `wanted` without a copy.

    Runs of dims that lie densely in memory can be cut anywhere; `wanted` must not join two runs.
    """
    if 0 in shape:
        return True
    runs: list[int] = []
    last = 0
    for n, step in zip(reversed(shape), reversed(stride), strict=True):
        if n == 1:
            continue
        if runs and step == last:
            runs[-1] *= n
        else:
            runs.append(n)
        last = step * n
    left = [n for n in reversed(wanted) if n != 1]
    for run in runs:
        product = 1
        while product < run and left:
            product *= left.pop(0)
        if product != run:
            return False
    return not left
