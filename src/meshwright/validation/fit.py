"""Fit constants to measured steps, and again without each source in turn. No source ever helps to fit its own test.

Maximum a posteriori: squared log error of the step time, each source weighing the square root of its rows, around the
guesses of `parameters.py`. Gauss-Newton with a Jacobian by differences; for each held-out source the same problem without
its rows, starting at the common fit, until it stands still (the start then no longer matters).

    python -m meshwright.validation fit FOLDER      writes fitted.toml beside this file
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..graph.ir import Floats
from .parameters import PARAMETERS, Values, from_logs, guesses, logs, tables
from .plans import Case
from .prediction import played, prepare

STEP = 0.05
"""Step of the differences, in spreads."""
ROUNDS = 3
FOLD_ROUNDS = 2
TRUST = 2.0
"""Largest move of a parameter in one round, in spreads."""
MOST_ROWS = 120
CLIP = 0.5
"""Log errors beyond this pull no harder: outliers of noisy machines (Huber)."""
_log = logging.getLogger(__name__)


def predict(cases: Sequence[Case], values: Values) -> Floats:
    """Seconds of a step of each case with these constants, through the simulator."""
    return np.array([simulation.step_seconds for simulation in played(cases, values)])


def fit(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """ "all" and each source -> values fitted on all rows, and on all rows but that source's."""
    cases = _thinned(cases)
    source = np.array([c.row.source for c in cases])
    measured = np.log([c.row.seconds for c in cases])
    weight = _weights(source)
    z = np.array(logs(guesses()))
    jacobian = np.zeros((len(cases), len(PARAMETERS)))
    for round_ in range(ROUNDS):
        here = np.log(predict(cases, from_logs(z))) - measured
        _log.info("round %d: mean over sources %.2f %%", round_, _score(here, source))
        if round_ < ROUNDS - 1:
            jacobian = _jacobian(cases, z, here + measured)
        z = z + _move(z, here, jacobian, weight)
    found = {"all": from_logs(z)}
    for name in sorted(set(source)):
        others = source != name
        fold = z.copy()
        kept = [c for c, k in zip(cases, others, strict=True) if k]
        for _ in range(FOLD_ROUNDS):
            error = np.log(predict(kept, from_logs(fold))) - measured[others]
            fold = fold + _move(fold, error, jacobian[others], _weights(source[others]))
        found[name] = from_logs(fold)
        tested = [c for c in cases if c.row.source == name]
        held = np.log(predict(tested, found[name])) - measured[~others]
        _log.info("without %s: its error %.2f %%", name, _score(held, source[~others]))
    return found


def _thinned(cases: Sequence[Case]) -> list[Case]:
    """At most about `MOST_ROWS` of each source, evenly over its rows: a sweep of one machine says little by its last rows."""
    found: list[Case] = []
    for name in sorted({c.row.source for c in cases}):
        own = [c for c in cases if c.row.source == name]
        found += own[:: max(1, len(own) // MOST_ROWS)]
    return found


def _weights(source: NDArray[np.str_]) -> Floats:
    names, counts = np.unique(source, return_counts=True)
    per_row = dict(zip(names, counts**-0.5, strict=True))
    return np.array([per_row[s] for s in source])


def _jacobian(cases: Sequence[Case], z: Floats, here: Floats) -> Floats:
    """By differences; a row is only priced again where the constants of its device and software move."""
    found = np.zeros((len(cases), len(PARAMETERS)))
    plain_families, plain_software = tables(from_logs(z))
    for k in range(len(PARAMETERS)):
        moved = z.copy()
        moved[k] += STEP
        values = from_logs(moved)
        new_families, new_software = tables(values)
        touched = [
            i
            for i, c in enumerate(cases)
            if new_families[_family(c)] != plain_families[_family(c)]
            or new_software[c.row.software] != plain_software[c.row.software]
        ]
        if touched:
            again = np.log(predict([cases[i] for i in touched], values))
            found[touched, k] = (again - here[touched]) / STEP
    return found


def _family(case: Case) -> str:
    return case.problem.cluster.types[0].family


def _move(z: Floats, error: Floats, jacobian: Floats, weight: Floats) -> Floats:
    """One Gauss-Newton move of the errors (in tenths: a tenth is what sources differ by) plus the distance from the guesses."""
    scale = weight * np.minimum(1.0, CLIP / np.maximum(np.abs(error), 1e-9)) / 0.1**2
    normal = jacobian.T @ (scale[:, None] * jacobian) + np.eye(len(z))
    move = np.linalg.solve(normal, -(jacobian.T @ (scale * error) + z))
    return np.asarray(np.clip(move, -TRUST, TRUST), dtype=np.float64)


def _score(error: Floats, source: NDArray[np.str_]) -> float:
    """Mean over sources of the mean relative error, %."""
    return float(np.mean([np.mean(np.abs(np.expm1(error[source == s]))) for s in set(source)]) * 100)


def write(found: Mapping[str, Values], file: Path) -> None:
    lines = ["# Constants fitted to measured steps by fit.py: on all sources, and on all but the one named.", ""]
    for name, values in found.items():
        lines += [f'["{name}"]', *(f'"{k}" = {v:.4g}' for k, v in values.items()), ""]
    file.write_text("\n".join(lines), encoding="utf-8")


__all__ = ["fit", "predict", "prepare", "write"]
