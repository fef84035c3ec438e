"""How far a measured step may lie from a prediction: 80 % intervals from errors of sources that the constants never saw.

Of one device family and kind of model, the errors log(measured / predicted) of all held-out rows have an 80 % range, each
source weighing the square root of its rows. The range is then widened (or narrowed) by the same on both sides until it does
what it says for a source that it has not seen: made without a source and laid over that source's rows, all sources in turn,
it covers 80 % of the rows (conformal quantile regression, Romano et al., arXiv 1905.03222, with sources for folds). Fewer than `FEWEST` independent sources say nothing about the next one: no interval.

Peaks of memory likewise, of whatever device: bytes do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp, log, nan

import numpy as np

from ..graph.ir import Floats
from .prediction import Prediction

SHARE = 0.80
FEWEST = 3
CAMPAIGNS: Mapping[str, str] = {
    "vtrain-single": "vtrain", "vtrain-multi": "vtrain",
    "megatron-jan2021": "megatron-sc21",
    "megatron-bridge-cards": "megatron-bridge",
    "torchtitan-quant": "torchtitan",
}  # fmt: skip
"""Sources of one team with one software on one machine -> their common name: they are one witness."""


@dataclass(frozen=True, slots=True)
class Interval:
    """For one device family and kind of model. `low` and `high` are measured over predicted; nan where none is given."""

    family: str
    """Empty: of all devices."""
    kind: str
    rows: int
    sources: int
    """Independent ones."""
    low: float = nan
    high: float = nan
    covered: float = nan
    """Share of rows inside the interval, equally widened, that was made without their source."""
    covered_unseen: float = nan
    """The same with the widening decided without their source, too; nan with three sources, where two would decide it."""


def intervals(found: Sequence[Prediction]) -> tuple[Interval, ...]:
    """One for each device family and kind of model that was measured, with or without a range."""
    return _intervals((p.row.device, p.kind, p.row.source, p.row.seconds / p.seconds) for p in found)


def memory_intervals(found: Sequence[Prediction]) -> tuple[Interval, ...]:
    """One for each kind of model whose allocated peak was measured."""
    return _intervals(
        ("", p.kind, p.row.source, p.row.memory / p.memory)
        for p in found
        if p.row.memory and p.row.memory_kind == "allocated"
    )


def campaign_of(source: str) -> str:
    """What counts as one independent source (see `CAMPAIGNS`)."""
    return CAMPAIGNS.get(source, source)


def _intervals(ratios: Iterable[tuple[str, str, str, float]]) -> tuple[Interval, ...]:
    """From (family, kind, source, measured over predicted)."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for family, kind, source, ratio in ratios:
        cells.setdefault((family, kind), {}).setdefault(campaign_of(source), []).append(log(ratio))
    return tuple(
        _interval(family, kind, {source: np.array(errors) for source, errors in cell.items()})
        for (family, kind), cell in sorted(cells.items())
    )


def _interval(family: str, kind: str, errors: Mapping[str, Floats]) -> Interval:
    rows = sum(map(len, errors.values()))
    if len(errors) < FEWEST:
        return Interval(family, kind, rows, len(errors))
    needs = _needs(errors)
    widening = _widening(needs)
    low, high = _range(errors)
    return Interval(
        family,
        kind,
        rows,
        len(errors),
        exp(low - widening),
        exp(high + widening),
        float((_joined(needs) <= widening).mean()),
        _unseen(errors, needs) if len(errors) > FEWEST else nan,
    )


def _needs(errors: Mapping[str, Floats]) -> dict[str, Floats]:
    """Per source: by how much the range of the other sources must be widened to reach each of its rows."""
    found = {}
    for name, own in errors.items():
        low, high = _range({other: e for other, e in errors.items() if other != name})
        found[name] = np.maximum(low - own, own - high)
    return found


def _widening(needs: Mapping[str, Floats]) -> float:
    """The smallest that covers `SHARE` of the rows; below 0 where the range is wider than need be."""
    sorted_ = np.sort(_joined(needs))
    return float(sorted_[ceil(SHARE * len(sorted_)) - 1])


def _unseen(errors: Mapping[str, Floats], needs: Mapping[str, Floats]) -> float:
    covered = [
        needs[name] <= _widening(_needs({other: e for other, e in errors.items() if other != name})) for name in errors
    ]
    return float(np.concatenate(covered).mean())


def _range(errors: Mapping[str, Floats]) -> tuple[float, float]:
    """(low, high) of the middle `SHARE` of the weight."""
    values = _joined(errors)
    weights = np.concatenate([np.full(len(e), len(e) ** -0.5) for e in errors.values()])
    order = np.argsort(values)
    reached = (np.cumsum(weights[order]) - 0.5 * weights[order]) / weights.sum()
    low, high = np.interp([(1 - SHARE) / 2, (1 + SHARE) / 2], reached, values[order])
    return float(low), float(high)


def _joined(values: Mapping[str, Floats]) -> Floats:
    return np.concatenate(list(values.values()))
