"""How good the predictions are: every row predicted by constants that its source had no part in.

MAPE      mean of |predicted / measured − 1| over the rows of a source; then the mean over sources
baseline  constant efficiency: the median useful FLOP/s of the same device and precision in all OTHER sources
pairs     rows of one source, model, device count and batch: how far the ratio of two plans is off; and the regret,
          measured time of the plan that the model ranks first over the best measured, − 1
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import combinations
from pathlib import Path

import numpy as np

from ..errors import InputError
from .fit import predict, prepare
from .parameters import Values
from .rows import Row, read

NEAR = 1.25
"""Pairs whose measured times differ by more than this ratio need no model to tell apart."""
TYPICAL = 80
"""Percent: errors of devices are stated so that this share of rows stays below."""


@dataclass(frozen=True, slots=True)
class Prediction:
    row: Row
    seconds: float
    baseline: float

    @property
    def error(self) -> float:
        return self.seconds / self.row.seconds - 1.0


@dataclass(frozen=True, slots=True)
class SourceScore:
    """One held-out source. Errors are relative."""

    source: str
    devices: tuple[str, ...]
    rows: int
    mape: float
    bias: float
    """Median of predicted / measured − 1."""
    p90: float
    baseline: float
    """MAPE of the constant-efficiency baseline."""


@dataclass(frozen=True, slots=True)
class Report:
    sources: tuple[SourceScore, ...]
    rows: int
    mape: float
    """Mean over sources."""
    median: float
    """Median over sources."""
    baseline: float
    """Mean over sources."""
    within: Mapping[str, float]
    """Device family -> relative error that 80 % of its held-out rows stay below."""
    steps: Mapping[str, tuple[int, int]]
    """Device family -> (rows, sources)."""
    pairs: int
    pair_error: float
    """Median relative error of the ratio of two plans whose measured times are near each other: closer is a tie."""
    pair_order: float
    """Share of pairs in the right order, of those predicted to differ by more than `pair_error` and at most NEAR."""
    groups: int
    regret: float
    """Mean over groups of plans."""
    refused: Mapping[str, int]
    """Reason -> rows left out."""
    predictions: tuple[Prediction, ...] = field(repr=False, default=())


@cache
def fitted() -> Mapping[str, Values]:
    """ "all" and each source -> constants fitted on all rows, and on all but that source's (fitted.toml, by fit.py)."""
    return tomllib.loads(resources.files(__package__).joinpath("fitted.toml").read_text(encoding="utf-8"))


def validate(
    data_folder: Path,
    source: str | None = None,
    device: str | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Predict the measured rows in `data_folder`/measured, each source by constants fitted without it.

    Args:
        source: only rows of this source.
        device: only rows of this device: a100, h100 or v100.
        progress: called with source, done, total.

    Raises:
        InputError: no rows there, or none of this source and device.
    """
    table = read(data_folder)
    rows, refused = table.rows, table.refused
    chosen = [r for r in rows if source in (None, r.source) and device in (None, r.device)]
    if not chosen:
        names = ", ".join(sorted({r.source for r in rows}))
        raise InputError(
            f"no measured rows of source {source or 'any'} on {device or 'any device'}: sources are {names}"
        )
    base = baseline(rows)
    found: list[Prediction] = []
    for name in sorted({r.source for r in chosen}):
        if progress:
            progress(name, len(found), len(chosen))
        cases = prepare([r for r in chosen if r.source == name])
        seconds = predict(cases, fitted().get(name, fitted()["all"]))
        found += [Prediction(c.row, float(s), base[c.row.id]) for c, s in zip(cases, seconds, strict=True)]
    return report(found, {reason: len(ids) for reason, ids in refused.items()})


def baseline(rows: Sequence[Row]) -> dict[str, float]:
    """Row -> seconds at the median useful FLOP/s per device of the same device and precision in other sources.

    Where no other source has both, the median of the device's other rows, eight bits counted twice; nan where there are none.
    """
    rate = {r.id: r.model.flops * r.batch / r.devices / r.seconds for r in rows}
    found = {}
    for name in {r.source for r in rows}:
        others = [r for r in rows if r.source != name]
        by_kind: dict[tuple[str, bool], list[float]] = {}
        for r in others:
            by_kind.setdefault((r.device, _narrow(r)), []).append(rate[r.id])
        by_device: dict[str, list[float]] = {}
        for r in others:
            by_device.setdefault(r.device, []).append(rate[r.id] / (2.0 if _narrow(r) else 1.0))
        for r in (r for r in rows if r.source == name):
            same = by_kind.get((r.device, _narrow(r)))
            usual = float(np.median(same or by_device.get(r.device) or [np.nan]))
            found[r.id] = r.model.flops * r.batch / r.devices / usual
    return found


def _narrow(row: Row) -> bool:
    return row.precision.startswith("float8")


def report(found: Sequence[Prediction], refused: Mapping[str, int]) -> Report:
    """Scores of predictions."""
    by_source: dict[str, list[Prediction]] = {}
    for p in found:
        by_source.setdefault(p.row.source, []).append(p)
    scores = tuple(_score(name, ps) for name, ps in sorted(by_source.items()))
    devices = sorted({p.row.device for p in found})
    groups = _groups(found)
    pairs = [p for g in groups for p in combinations(g, 2)]
    ratios = [abs(_ratio(a, b)) for a, b in pairs if _times(a.row.seconds, b.row.seconds) < NEAR]
    pair_error = float(np.expm1(np.median(ratios))) if ratios else 0.0
    told = [p for p in pairs if 1 + pair_error < _times(p[0].seconds, p[1].seconds) < NEAR]
    return Report(
        sources=scores,
        rows=len(found),
        mape=float(np.mean([s.mape for s in scores])),
        median=float(np.median([s.mape for s in scores])),
        baseline=float(np.nanmean([s.baseline for s in scores])),
        within={d: _typical([p.error for p in found if p.row.device == d]) for d in devices},
        steps={
            d: (sum(p.row.device == d for p in found), len({p.row.source for p in found if p.row.device == d}))
            for d in devices
        },
        pairs=len(ratios),
        pair_error=pair_error,
        pair_order=float(np.mean([_ordered(a, b) for a, b in told])) if told else 1.0,
        groups=len(groups),
        regret=float(np.mean([_regret(g) for g in groups])) if groups else 0.0,
        refused=dict(sorted(refused.items(), key=lambda item: -item[1])),
        predictions=tuple(found),
    )


def _score(name: str, found: Sequence[Prediction]) -> SourceScore:
    errors = np.array([p.error for p in found])
    base = np.array([p.baseline / p.row.seconds - 1.0 for p in found])
    return SourceScore(
        source=name,
        devices=tuple(sorted({p.row.device for p in found})),
        rows=len(found),
        mape=float(np.abs(errors).mean()),
        bias=float(np.median(errors)),
        p90=float(np.percentile(np.abs(errors), 90)),
        baseline=float(np.nanmean(np.abs(base))),
    )


def _typical(errors: Sequence[float]) -> float:
    return float(np.percentile(np.abs(np.array(errors)), TYPICAL))


def _groups(found: Sequence[Prediction]) -> list[list[Prediction]]:
    """Plans of one problem, where there are at least two."""
    by_problem: dict[tuple[object, ...], list[Prediction]] = {}
    for p in found:
        r = p.row
        by_problem.setdefault((r.source, r.model, r.machine, r.devices, r.batch, r.precision, r.software), []).append(p)
    return [g for g in by_problem.values() if len(g) > 1]


def _times(a: float, b: float) -> float:
    return max(a / b, b / a)


def _ordered(a: Prediction, b: Prediction) -> bool:
    return (a.seconds < b.seconds) == (a.row.seconds < b.row.seconds)


def _ratio(a: Prediction, b: Prediction) -> float:
    """Log of how far the predicted ratio of two steps is from the measured one."""
    return float(np.log(a.seconds / b.seconds) - np.log(a.row.seconds / b.row.seconds))


def _regret(group: Sequence[Prediction]) -> float:
    first = min(group, key=lambda p: p.seconds)
    return first.row.seconds / min(p.row.seconds for p in group) - 1.0


__all__ = ["Prediction", "Report", "SourceScore", "baseline", "fitted", "report", "validate"]
