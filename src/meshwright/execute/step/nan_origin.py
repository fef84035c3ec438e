"""Where a NaN comes from: the forward once more, on every rank, each looking for what made one out of numbers.

A NaN spreads over collectives at once, so the loss tells no rank from another; only where it arose is a result NaN whose
operands are not. Infinities are no fault by themselves: masks hold them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .runtime import Given, Runtime
from .shares import Rows


def origin_of_nan(runtime: Runtime, batch: Sequence[Given]) -> str:
    """What this rank holds or computes that is NaN of its own; "" if nothing, as in a backward. Collective."""
    watch = _Watch()
    with watch:
        runtime.evaluate(batch, training=True)
    for local in runtime.locals.values():
        for name, part in local.params.items():
            if _nan(part):
                return f"parameter {name}"
    for one in batch:
        for name, given in one.items():
            if _nan(given.own if isinstance(given, Rows) else given):
                return f"input {name}"
    return watch.found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the first operator that made a NaN out of operands without one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: str = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        operands = list(_tensors((args, kwargs)))
        clean = not self.found and bool(operands) and func.namespace == "aten" and "empty" not in func.name()
        clean = clean and not any(map(_nan, operands))  # before the call, which may write in place
        out = func(*args, **(kwargs or {}))
        if clean and any(map(_nan, _tensors(out))):
            self.found = f"operator {func.name().removeprefix('aten::').partition('.')[0]}"
        return out


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def _nan(x: Tensor) -> bool:
    return x.is_floating_point() and bool(torch.isnan(x).any())
