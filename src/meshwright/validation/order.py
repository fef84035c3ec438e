"""Does the model rank plans as measuring them did? Only plans of one problem are compared.

Rows of one plan (other releases, other submitters) are one plan, as fast as they are in the geometric mean.

pairs    of plans whose measured steps differ by more than `APART`, and the share in the right order
tau      Kendall's, over all pairs of a group: right minus wrong order, over their number
regret   measured step of the plan that the model ranks first over the best measured one, − 1
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import nan
from typing import Any

import numpy as np

from ..graph.ir import Floats
from .prediction import Prediction
from .rows import Row

APART = 0.08
"""Relative: nearer than this, repeated measurements of one plan already disagree."""
NEAR = 1.25
"""Pairs whose measured times differ by more than this ratio need no model to tell apart."""


@dataclass(frozen=True, slots=True)
class Order:
    groups: int
    pairs: int
    """That are more than `APART` apart."""
    ordered: float
    """Share of them in the right order; nan without any."""
    tau: float
    """Over all pairs of all groups; nan without any."""
    tau_model: float
    """The same inside groups of one model whatever the batch."""
    regret: float
    """Mean over groups; nan without any."""
    worst_regret: float


def order_of(found: Sequence[Prediction]) -> Order:
    """Of the plans of equal source, model, machine, devices, batch, precision with its scaling, software and kernel of attention."""
    groups = groups_of(found)
    measured, predicted, _ = _pairs_of(groups)
    far = np.abs(measured) > np.log1p(APART)
    regrets = [g.regret for g in groups]
    return Order(
        groups=len(groups),
        pairs=int(far.sum()),
        ordered=float((measured * predicted > 0)[far].mean()) if far.any() else nan,
        tau=_tau(groups),
        tau_model=_tau(_grouped(found, _model_key)),
        regret=float(np.mean(regrets)) if regrets else nan,
        worst_regret=max(regrets, default=nan),
    )


@dataclass(frozen=True, slots=True)
class PairError:
    """How far the predicted ratio of two plans of one problem is from the measured one."""

    pairs: int
    """Whose measured steps are within `NEAR` of each other."""
    error: float
    """Median, relative: plans that are nearer are a tie."""
    ordered: float
    """Share in the right order of those pairs that are predicted to differ by more than `error`."""


def pair_error(found: Sequence[Prediction]) -> PairError:
    """Over all problems; a problem weighs as much as it has plans, not pairs."""
    measured, predicted, weight = _pairs_of(groups_of(found))
    near = np.abs(measured) < np.log(NEAR)
    if not near.any():
        return PairError(0, 0.0, nan)
    measured, predicted = measured[near], predicted[near]
    middle = quantile(np.abs(predicted - measured), weight[near], 0.5)
    told = np.abs(predicted) > middle
    ordered = float((measured * predicted > 0)[told].mean()) if told.any() else nan
    return PairError(len(measured), float(np.expm1(middle)), ordered)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Different plans of one problem: logarithms of their steps in seconds."""

    measured: Floats
    predicted: Floats

    @property
    def regret(self) -> float:
        first = int(np.argmin(self.predicted))
        return float(np.expm1(self.measured[first] - self.measured.min()))


def groups_of(found: Sequence[Prediction]) -> list[Group]:
    """Of every problem of which at least two plans were measured."""
    return _grouped(found, lambda p: (*_model_key(p), p.row.batch))


def quantile(values: Floats, weights: Floats, share: float) -> float:
    """Of weighted values: the smallest that has at least this share of the weight at or below it."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])


def _model_key(p: Prediction) -> tuple[Hashable, ...]:
    r = p.row
    return (r.source, _unpadded(r.model), r.machine, r.devices, r.precision, r.scaling, r.software, r.attention)


def _unpadded(model: Any) -> Any:
    """The model without its vocabulary, which is padded for the tensor degree."""
    parts = {f.name: getattr(model, f.name) for f in fields(model)}
    changes = {name: _unpadded(part) for name, part in parts.items() if is_dataclass(part)}
    return replace(model, **changes, **({"vocab": 0} if "vocab" in parts else {}))


def _grouped(found: Sequence[Prediction], key: Callable[[Prediction], Hashable]) -> list[Group]:
    by_problem: dict[Hashable, dict[Row, list[Prediction]]] = {}
    for p in found:
        plan = replace(p.row, id="", where="", seconds=0.0, memory=0.0, allocated=0.0, memory_kind="", memory_at="")
        by_problem.setdefault(key(p), {}).setdefault(plan, []).append(p)
    return [_group(list(plans.values())) for plans in by_problem.values() if len(plans) > 1]


def _group(plans: Sequence[Sequence[Prediction]]) -> Group:
    measured = [np.mean(np.log([p.row.seconds for p in rows])) for rows in plans]
    return Group(np.array(measured), np.log([rows[0].seconds for rows in plans]))


def _pairs_of(groups: Sequence[Group]) -> tuple[Floats, Floats, Floats]:
    """Per pair of plans of a group: log ratio of the measured and of the predicted steps, and its weight in all."""
    measured, predicted, weight = [np.empty(0)], [np.empty(0)], [np.empty(0)]
    for group in groups:
        a, b = np.triu_indices(len(group.measured), 1)
        measured.append(group.measured[a] - group.measured[b])
        predicted.append(group.predicted[a] - group.predicted[b])
        weight.append(np.full(len(a), len(group.measured) / len(a)))
    return np.concatenate(measured), np.concatenate(predicted), np.concatenate(weight)


def _tau(groups: Sequence[Group]) -> float:
    measured, predicted, _ = _pairs_of(groups)
    told = measured != 0
    return float((np.sign(measured) * np.sign(predicted))[told].mean()) if told.any() else nan
