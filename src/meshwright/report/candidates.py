"""A priced layout as a row of a table, and which rows cannot be told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import nan

from ..plan.model import Plan


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layout that was priced. Bytes are of the fullest device."""

    layout: str
    """Degrees and where state rests: "dp32 pp2 z1"."""
    micro_batch: int
    """Samples of one micro-batch on one data-parallel replica."""
    micro_batches: int
    """Micro-batches a step."""
    recompute: str = "none"
    schedule: str = ""
    """Empty where there is no pipeline."""
    step_s: float = nan
    tokens_per_s_per_device: float = nan
    """Samples instead of tokens for models without sequences."""
    mfu: float = nan
    memory_bytes: float = nan
    over_bytes: float = 0.0
    """Above what a device may be filled with; 0 = it fits."""
    tie: bool = False
    """Closer to the best than the error of the model on pairs."""
    plan: Callable[[], Plan] | None = field(default=None, repr=False)
    """Builds the full plan."""

    @property
    def fits(self) -> bool:
        return self.over_bytes <= 0


def ties(steps: Sequence[float], pair_error: float) -> list[int]:
    """Per row of ascending step times: the first row that it cannot be told from, or -1.

    >>> ties([15.6, 15.9, 16.6], 0.025)
    [-1, 0, -1]
    """
    found = []
    for i, step in enumerate(steps):
        near = next((k for k in range(i) if step <= steps[k] * (1 + pair_error)), -1)
        found.append(near)
    return found
