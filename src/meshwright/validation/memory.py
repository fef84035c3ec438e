"""Predicted against measured memory. What was measured differs by source, so every kind is scored by itself.

allocated     peak of the framework's allocator: what the simulator counts
resting       allocated between steps
nvidia-smi    the whole process: predicted plus the driver's context
reserved      what the allocator took from the driver: never less than allocated, so only predictions above it are wrong
unknown       a figure without its kind
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from ..graph.ir import Floats
from .prediction import Prediction

KINDS = ("allocated", "resting", "nvidia-smi", "reserved", "unknown")
ONE_SIDED = frozenset({"reserved"})


@dataclass(frozen=True, slots=True)
class MemoryScore:
    """Errors are relative; of a one-sided kind only what is predicted above the measured counts."""

    kind: str
    rows: int
    mape: float
    median: float
    """Signed."""
    p90: float


@dataclass(frozen=True, slots=True)
class Fits:
    """Whether plans that ran, and plans that ran out of memory, are told apart."""

    ran: int
    false_oom: float
    """Share of the plans that ran that were predicted not to fit."""
    failed: tuple[Prediction, ...]
    """Plans that ran out of memory."""
    false_fit: float
    """Share of plans that ran out of memory among those predicted to fit."""

    @property
    def recognised(self) -> int:
        """Plans that ran out of memory and were predicted not to fit."""
        return sum(not p.fits for p in self.failed)


def memory_scores(found: Sequence[Prediction]) -> tuple[MemoryScore, ...]:
    """One for each kind that was measured."""
    scores = []
    for kind in KINDS:
        errors = np.array([e for p in found if (e := memory_error(p, kind)) is not None])
        if errors.size:
            scores.append(_score(kind, errors))
    return tuple(scores)


def memory_error(p: Prediction, kind: str) -> float | None:
    """Relative, signed; None where this kind was not measured."""
    if kind == "resting":
        return p.allocated / p.row.allocated - 1.0 if p.row.allocated else None
    return p.memory / p.row.memory - 1.0 if p.row.memory and p.row.memory_kind == kind else None


def _score(kind: str, errors: Floats) -> MemoryScore:
    counted = np.maximum(errors, 0.0) if kind in ONE_SIDED else np.abs(errors)
    return MemoryScore(
        kind, len(errors), float(counted.mean()), float(np.median(errors)), float(np.percentile(counted, 90))
    )


def fits_of(ran: Sequence[Prediction], failed: Sequence[Prediction]) -> Fits:
    """Both as predicted."""
    fitting = sum(p.fits for p in ran)
    missed = sum(p.fits for p in failed)
    return Fits(
        len(ran),
        1.0 - fitting / len(ran) if ran else nan,
        tuple(failed),
        missed / (fitting + missed) if fitting + missed else nan,
    )
