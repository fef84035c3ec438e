"""What three measured steps of a source are worth: what `calibrate --from-steps` learns of them predicts its other rows.

A source may have several stacks: other devices, mixtures of experts, 8 bits. A row is predicted by what those of the three
teach that are of its own; where none is it stays as it was.

A row is priced as the sum over kinds of work that its simulation is worth (`calibration.stack.worth`), so that hundreds of
draws need no simulation of their own; benchmarks/bench_own_steps.py compares a few draws with simulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from ..calibration.stack import TERMS, Prior, Worth, learn, priors
from ..graph.ir import Floats, Ints
from .prediction import Prediction, stack_of

ROWS = 3
DRAWS = 48


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """The rows of one source that were not drawn, in every draw."""

    before: Floats
    """Absolute relative errors [prediction], with nothing learnt."""
    after: Floats
    """The same by what the three teach."""
    own: Ints
    """How many of the three were of the row's own stack."""

    @property
    def mape(self) -> float:
        return float(self.after.mean()) if len(self.after) else nan


@dataclass(frozen=True, slots=True)
class OwnRows:
    """Predictions by three rows of which so many are of the predicted row's own stack. Errors are medians over sources."""

    own: int
    sources: int
    share: float
    """Of all predictions, each source counting alike."""
    before: float
    after: float


def after_three_rows(found: Sequence[Prediction], seed: int = 0) -> Taught:
    """What three rows of one source teach of its others, over draws; empty for three rows or fewer. Of sources with many rows
    those count of which it is known what kinds of work they are (`Prediction.worth`)."""
    told = [p for p in found if p.worth] or list(found)
    if len(told) <= ROWS:
        return Taught(np.empty(0), np.empty(0), np.empty(0, np.int64))
    prior = priors().get(told[0].row.source, priors()["all"])
    rows = Worth(
        np.array([p.seconds for p in told]), np.array([p.worth or np.zeros(len(TERMS)) for p in told], np.float64)
    )
    measured = np.array([p.row.seconds for p in told])
    names = [stack_of(p.row) for p in told]
    stack = np.array([names.index(name) for name in names])
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(told)) for _ in range(DRAWS)]
    rest = np.concatenate([order[ROWS:] for order in orders])
    return Taught(
        before=np.abs(rows.seconds / measured - 1.0)[rest],
        after=np.concatenate([_one(rows, measured, stack, order, prior) for order in orders]),
        own=np.concatenate([(stack[o[ROWS:], None] == stack[o[:ROWS]]).sum(axis=1) for o in orders]),
    )


def _one(rows: Worth, measured: Floats, stack: Ints, order: Ints, prior: Prior) -> Floats:
    """Absolute relative errors of the rows that were not drawn."""
    drawn, rest = order[:ROWS], order[ROWS:]
    seconds = rows.seconds.copy()
    for one in set(stack[drawn].tolist()):
        teachers, others = drawn[stack[drawn] == one], rest[stack[rest] == one]
        taught = rows.of(teachers)
        factors = learn(taught.price, measured[teachers], prior, taught.slopes).values
        seconds[others] = rows.of(others).price(factors)
    found: Floats = np.abs(seconds[rest] / measured[rest] - 1.0)
    return found


def by_own_rows(sources: Sequence[Taught]) -> tuple[OwnRows, ...]:
    """One for every number of rows of the own stack that some source has among its draws."""
    found = []
    for own in range(ROWS + 1):
        known = [(t.own == own, t) for t in sources if (t.own == own).any()]
        if known:
            found.append(
                OwnRows(
                    own=own,
                    sources=len(known),
                    share=sum(float(told.mean()) for told, _ in known) / sum(len(t.own) > 0 for t in sources),
                    before=float(np.median([t.before[told].mean() for told, t in known])),
                    after=float(np.median([t.after[told].mean() for told, t in known])),
                )
            )
    return tuple(found)
