"""One micro-batch on one stage between its forward and its backward, and when gradients of parameters are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor

from ...lower.program import GRAD, StageCode
from ..ops.site import Moment

Part: TypeAlias = Literal["all", "input", "weight"]
Finished: TypeAlias = Callable[[Mapping[str, Tensor]], None]
"""Told {parameter: its gradient of this micro-batch}, in the layout of the part at rest, once the gradient is complete."""


@dataclass(slots=True)
class Flight:
    moment: Moment
    weights: Mapping[str, Tensor]
    """Parts at rest of the stage's parameters: the version that this micro-batch reads, forward and backward."""
    values: dict[str, Tensor] = field(default_factory=dict)
    """Values that later segments, other stages or the rerun lists read; none carries a gradient of torch."""
    grads: dict[str, Tensor] = field(default_factory=dict)
    """Gradients that entered and that no segment has read yet, and those that the stage gives away."""
    tape: Any = None
    """What the runner of the stage keeps for its backward."""


def completed(code: StageCode) -> list[tuple[str, ...]]:
    """Per segment: the parameters whose gradient is complete once its backward has run, in the order of `code.params`."""
    first: dict[str, int] = {}
    for k, segment in enumerate(code.segments):
        for instr in segment.backward:
            for name in instr.outputs:
                first.setdefault(name, k)
    return [tuple(p.name for p in code.params if first.get(GRAD + p.name) == k) for k in range(len(code.segments))]


def hand_over(names: Iterable[str], flight: Flight, finished: Finished | None) -> None:
    """Gives complete gradients of parameters away; without a taker they stay in the flight."""
    if finished is None:
        return
    found = {name: flight.grads.pop(GRAD + name) for name in names if GRAD + name in flight.grads}
    if found:
        finished(found)


def add_gradient(flight: Flight, name: str, grad: Tensor) -> None:
    old = flight.grads.get(name)
    flight.grads[name] = grad if old is None else old + grad
