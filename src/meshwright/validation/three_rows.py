"""What three measured steps of a source are worth at least: their median bias is taken from all its other rows.

`calibrate --from-steps` learns more of the same three, what kind of work takes longer (`calibration.stack`); it prices each
row nine times again, with which this table would take a quarter of an hour. benchmarks/bench_own_steps.py measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np

from ..graph.ir import Floats, Ints
from .prediction import Prediction

ROWS = 3
DRAWS = 200


def after_three_rows(found: Sequence[Prediction], seed: int = 0) -> float:
    """Mean absolute relative error of the rows that were not drawn, averaged over draws; nan for three rows or fewer."""
    if len(found) <= ROWS:
        return nan
    errors = np.log([p.seconds / p.row.seconds for p in found])
    generator = np.random.default_rng(seed)
    return float(np.mean([_one(errors, generator.permutation(len(errors))) for _ in range(DRAWS)]))


def _one(errors: Floats, order: Ints) -> float:
    drawn, rest = order[:ROWS], order[ROWS:]
    return float(np.abs(np.expm1(errors[rest] - np.median(errors[drawn]))).mean())
