"""How good the predictions are: every row predicted by constants that its source had no part in.

mape      mean of |predicted / measured − 1|
median    of predicted / measured − 1, signed
p90       90th percentile of |predicted / measured − 1|
baseline  mape of constant efficiency, from other sources on the same device; `own_baseline`: from the source itself

Rows that are bound by the host or ran on a shared one, rows of experts whose router chose by what it had learned, and rows
that do not say their precision (`Row.flags`) are strata of their own and count nowhere else.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from math import nan

import numpy as np

from ..errors import InputError
from ..graph.ir import Floats
from .baseline import Efficiency
from .intervals import Interval, intervals, memory_intervals
from .memory import Fits, MemoryScore, fits_of, memory_scores
from .order import Order, PairError, order_of, pair_error
from .parameters import Values
from .prediction import Prediction, predictions
from .rows import Table
from .settings import LEARNED, NOISY, SMALL, UNSTATED
from .three_rows import OwnRows, Taught, after_three_rows, by_own_rows

LARGE = 512
"""Devices; runs on more are a stratum."""
FLAGGED, ROUTED, GUESSED = "small or noisy", "learned routing", "precision not stated"


@dataclass(frozen=True, slots=True)
class Score:
    """One source, device or stratum. Errors are relative."""

    name: str
    rows: int
    sources: tuple[str, ...]
    devices: tuple[str, ...]
    mape: float
    median: float
    p90: float
    baseline: float
    own_baseline: float
    taught: tuple[Taught, ...] = field(repr=False)
    """What three rows of each source teach of its others (`three_rows`)."""
    order: Order
    memory: tuple[MemoryScore, ...]
    flagged: bool = False
    """All its rows stand apart (`settings.ASIDE`): not part of any mean over sources."""

    @property
    def after_three(self) -> float:
        """mape of the other rows when three are learnt from, mean over draws and over the sources."""
        return _mean([t.mape for t in self.taught])


@dataclass(frozen=True, slots=True)
class Report:
    sources: tuple[Score, ...]
    devices: tuple[Score, ...]
    strata: tuple[Score, ...]
    rows: int
    """With a step time."""
    mape: float
    """Mean over sources."""
    median: float
    """Median over sources."""
    baseline: float
    """Mean over sources."""
    own_baseline: float
    after_three: float
    """Median over sources."""
    own_rows: tuple[OwnRows, ...]
    """The same by how many of the three were of the row's own stack."""
    pairs: PairError
    intervals: tuple[Interval, ...]
    memory: tuple[MemoryScore, ...]
    memory_intervals: tuple[Interval, ...]
    fits: Fits
    refused: Mapping[str, int]
    """Reason -> rows left out."""
    predictions: tuple[Prediction, ...] = field(repr=False, default=())


@cache
def fitted() -> Mapping[str, Values]:
    """ "all" and each source -> constants fitted on all rows, and on all but that source's (fitted.toml, by fit.py)."""
    return tomllib.loads(resources.files(__package__).joinpath("fitted.toml").read_text(encoding="utf-8"))


def constants_without(source: str) -> Values:
    """Constants that no row of the source took part in; those of all where the fit did not know it."""
    return fitted().get(source, fitted()["all"])


def validate(
    table: Table,
    source: str | None = None,
    device: str | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Predict measured rows, each source by constants fitted without it.

    Args:
        source: only rows of this source.
        device: only rows of this device (`Row.device`).
        progress: called with source, done, total.

    Raises:
        InputError: no rows of this source and device.
    """
    chosen = [r for r in table.rows if source in (None, r.source) and device in (None, r.device)]
    if not chosen:
        known = sorted({r.source if source is not None else r.device for r in table.rows})
        raise InputError(
            f"no measured rows of source {source or 'any'} on {device or 'any device'}: "
            f"{'sources' if source is not None else 'devices'} are {', '.join(known)}"
        )
    failed = [r for r in table.failed if source in (None, r.source) and device in (None, r.device)]
    efficiency = Efficiency(table.rows)
    ran = predictions(chosen, constants_without, efficiency, progress)
    out = predictions(failed, constants_without, efficiency)
    found = report(ran, out, {reason: len(ids) for reason, ids in table.refused.items()})
    # One source says nothing about the next.
    return found if source is None else replace(found, intervals=(), memory_intervals=())


def report(ran: Sequence[Prediction], failed: Sequence[Prediction] = (), refused: Mapping[str, int] = {}) -> Report:
    """Scores of predictions."""
    plain = [p for p in ran if not p.flagged]
    sources = tuple(
        _of_source(name, [p for p in ran if p.row.source == name]) for name in sorted({p.row.source for p in ran})
    )
    counted = [s for s in sources if not s.flagged] or list(sources)
    return Report(
        sources=sources,
        devices=tuple(
            score(name, [p for p in plain if p.row.device == name]) for name in sorted({p.row.device for p in plain})
        ),
        strata=tuple(score(name, found) for name, found in strata(ran).items()),
        rows=len(ran),
        mape=_mean([s.mape for s in counted]),
        median=float(np.median([s.mape for s in counted])),
        baseline=_mean([s.baseline for s in counted]),
        own_baseline=_mean([s.own_baseline for s in counted]),
        after_three=_middle([s.after_three for s in counted]),
        own_rows=by_own_rows([t for s in counted for t in s.taught]),
        pairs=pair_error(plain),
        intervals=intervals(plain),
        memory=memory_scores(ran),
        memory_intervals=memory_intervals(plain),
        fits=fits_of(ran, failed),
        refused=dict(sorted(refused.items(), key=lambda item: (-item[1], item[0]))),
        predictions=tuple(ran),
    )


def _of_source(name: str, found: Sequence[Prediction]) -> Score:
    plain = [p for p in found if not p.flagged]
    return score(name, plain or found, flagged=not plain)


def strata(found: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Name -> rows, those that have any. Rows on many devices also stand in the stratum of their kind."""
    named = {
        "dense": [p for p in found if not p.flagged and p.kind == "dense"],
        "MoE": [p for p in found if not p.flagged and p.kind == "MoE"],
        "low precision": [p for p in found if not p.flagged and p.kind == "low precision"],
        f"over {LARGE} devices": [p for p in found if not p.flagged and p.row.devices > LARGE],
        FLAGGED: [p for p in found if {SMALL, NOISY} & set(p.row.flags)],
        ROUTED: [p for p in found if LEARNED in p.row.flags],
        GUESSED: [p for p in found if UNSTATED in p.row.flags],
    }
    return {name: rows for name, rows in named.items() if rows}


def score(name: str, found: Sequence[Prediction], *, flagged: bool = False) -> Score:
    """Of at least one prediction."""
    errors = np.array([p.error for p in found])
    measured = np.array([p.row.seconds for p in found])
    sources = sorted({p.row.source for p in found})
    return Score(
        name=name,
        rows=len(found),
        sources=tuple(sources),
        devices=tuple(sorted({p.row.device for p in found})),
        mape=float(np.abs(errors).mean()),
        median=float(np.median(errors)),
        p90=float(np.percentile(np.abs(errors), 90)),
        baseline=_off(np.array([p.baseline for p in found]), measured),
        own_baseline=_off(np.array([p.own_baseline for p in found]), measured),
        taught=tuple(after_three_rows([p for p in found if p.row.source == s]) for s in sources),
        order=order_of(found),
        memory=memory_scores(found),
        flagged=flagged,
    )


def _off(predicted: Floats, measured: Floats) -> float:
    """Mean absolute relative error of the rows that have a prediction."""
    return _mean(list(np.abs(predicted / measured - 1.0)))


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if v == v]
    return float(np.mean(known)) if known else nan


def _middle(values: Sequence[float]) -> float:
    known = [v for v in values if v == v]
    return float(np.median(known)) if known else nan
