"""Fit constants to measured steps, and again without each source in turn. No source ever helps to fit its own test.

Maximum a posteriori: squared log error of the step time, each source weighing the square root of its rows, around the
guesses of `parameters.py`. Gauss-Newton with a Jacobian by differences, taken once and kept up to date by the errors seen
on the way (Broyden). For each held-out source the same problem without its rows, where errors are taken as linear around
the common fit; if that moves a constant by more than `FAR`, errors are computed there and the problem solved once more.

    python -m meshwright.validation fit FOLDER      writes fitted.toml beside this file, and the tables of cost/constants
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cost.constants import generation
from ..graph.ir import Floats
from .parameters import PARAMETERS, Parameter, Values, from_logs, logs, shipped, targets
from .plans import Case
from .prediction import played, prepare
from .rows import Row
from .settings import MUTE

STEP = 0.05
"""Step of the differences, in spreads."""
ROUNDS = 4
STEADY = 30
"""Iterations of the weights in a linear problem."""
FAR = 0.5
"""In spreads."""
TRUST = 2.0
"""Largest move of a parameter in one round, in spreads."""
MOST_ROWS = 16
CLIP = 0.5
"""Log errors beyond this pull no harder: outliers of noisy machines (Huber)."""
ALIKE = 0.1
"""Spread of the logarithm of steps between sources around right constants: software differs by a tenth."""
HOSTS = 0.25
"""The same of what a host takes to issue a layer. Where the device waits for it a row says so much less of other sources."""
_log = logging.getLogger(__name__)


def predict(cases: Sequence[Case], values: Values) -> Floats:
    """Seconds of a step of each case with these constants, through the simulator."""
    return np.array([simulation.step_seconds for simulation in played(cases, values)])


def fit(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """ "all" and each source -> values fitted on all rows, and on all rows but that source's."""
    source = np.array([c.row.source for c in cases])
    measured = np.log([c.row.seconds for c in cases])
    z = np.array(logs(shipped()))
    here = np.log(predict(cases, from_logs(z))) - measured
    jacobian = _jacobian(cases, z, here + measured)
    for round_ in range(ROUNDS):
        _log.info("round %d: mean over sources %.2f %%", round_, _score(here, source))
        move = np.clip(_solve(z, here, jacobian, source) - z, -TRUST, TRUST)
        there = np.log(predict(cases, from_logs(z + move))) - measured
        if move.any():
            jacobian = jacobian + np.outer(there - here - jacobian @ move, move) / (move @ move)
        z, here = z + move, there
    _log.info("all: mean over sources %.2f %%", _score(here, source))
    found = {"all": from_logs(z)}
    for name in sorted(set(source)):
        kept = source != name
        fold = _solve(z, here[kept], jacobian[kept], source[kept])
        if np.abs(fold - z).max() > FAR:
            others = [c for c, k in zip(cases, kept, strict=True) if k]
            error = np.log(predict(others, from_logs(fold))) - measured[kept]
            fold = _solve(fold, error, jacobian[kept], source[kept])
        found[name] = from_logs(fold)
        tested = [c for c in cases if c.row.source == name]
        held = np.log(predict(tested, found[name])) - measured[~kept]
        _log.info("without %s: its error %.2f %%", name, _score(held, source[~kept]))
    return found


def chosen(rows: Sequence[Row]) -> list[Row]:
    """At most `MOST_ROWS` of each source, evenly over its rows: a sweep of one machine says little by its last rows.

    Rows bound by a host or on a shared one take no part: they say how that host was. Nor do those of learned routing.
    """
    by_source: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r.source, str(r.model), r.id)):
        if not MUTE & set(row.flags):
            by_source.setdefault(row.source, []).append(row)
    return [row for own in by_source.values() for row in own[:: -(-len(own) // MOST_ROWS)]]


def _weights(source: NDArray[np.str_]) -> Floats:
    names, counts = np.unique(source, return_counts=True)
    per_row = dict(zip(names, counts**-0.5, strict=True))
    return np.array([per_row[s] for s in source])


def _jacobian(cases: Sequence[Case], z: Floats, here: Floats) -> Floats:
    """By differences; a row is only priced again where a constant that moves says something about it."""
    found = np.zeros((len(cases), len(PARAMETERS)))
    for k, parameter in enumerate(PARAMETERS):
        moved = z.copy()
        moved[k] += STEP
        touched = [i for i, case in enumerate(cases) if matters(parameter, case)]
        if touched:
            again = np.log(predict([cases[i] for i in touched], from_logs(moved)))
            found[touched, k] = (again - here[touched]) / STEP
    return found


def matters(parameter: Parameter, case: Case) -> bool:
    """Whether a target of the parameter can change the case's price. Too many is slow, too few would be wrong."""
    family, row = case.problem.cluster.types[0].family, case.row
    return any(
        name == (family if kind == "family" else row.software) and ONLY.get(field, _always)(row)
        for kind, name, field in targets(parameter)
    )


def _always(row: Row) -> bool:
    return True


def _attention(row: Row, *wanted: str) -> bool:
    return (row.attention or generation(row.software).attention) in wanted


ONLY: Mapping[str, Callable[[Row], bool]] = {
    "gemm_8": lambda row: "float8" in row.precision,
    "gemm_4": lambda row: row.precision == "float4",
    "gemm_32": lambda row: "32" in row.precision,
    "quantise": lambda row: row.precision.startswith("float8") or row.precision == "float4",
    "attention_first": lambda row: _attention(row, "first"),
    "attention_flash": lambda row: _attention(row, "flash"),
    "attention_modern": lambda row: _attention(row, "modern", "modern-8"),
    "small_head": lambda row: not _attention(row, "unfused"),
    "score_rate": lambda row: _attention(row, "unfused"),
    "score_bytes": lambda row: _attention(row, "unfused"),
    "misaligned": lambda row: _attention(row, "unfused"),
    "inner": lambda row: row.devices > 1,  # stages sum the gradients of tied embeddings
    "outer": lambda row: row.devices > row.node,
    "overlap_data": lambda row: row.dp * row.cp * row.ep > 1,
    "overlap_sharded": lambda row: row.dp * row.cp * row.ep > 1,
    "overlap_gradient": lambda row: row.devices > row.pp,
    "overlap_tensor": lambda row: row.devices > row.pp,
    "transfer": lambda row: row.pp > 1,
    "straggle": lambda row: row.devices > 8,
}
"""Field -> rows about which it says something, where not about all."""


def _solve(z: Floats, error: Floats, jacobian: Floats, source: NDArray[np.str_]) -> Floats:
    """Minimum of the squared errors (in units of what sources differ by) and the squared distance from the guesses, where
    the error moves from `error` at `z` by the Jacobian; far errors count less, by where they end."""
    waits = sum(np.abs(jacobian[:, k]) / p.spread for k, p in enumerate(PARAMETERS) if p.name.startswith("floor."))
    weight = _weights(source) / (ALIKE**2 + (HOSTS * waits) ** 2)
    found = z
    for _ in range(STEADY):
        there = error + jacobian @ (found - z)
        scale = weight * np.minimum(1.0, CLIP / np.maximum(np.abs(there), 1e-9))
        normal = jacobian.T @ (scale[:, None] * jacobian) + np.eye(len(z))
        found = np.asarray(np.linalg.solve(normal, jacobian.T @ (scale * (jacobian @ z - error))), dtype=np.float64)
    return found


def _score(error: Floats, source: NDArray[np.str_]) -> float:
    """Mean over sources of the mean relative error, %."""
    return float(np.mean([np.mean(np.abs(np.expm1(error[source == s]))) for s in set(source)]) * 100)


def write(found: Mapping[str, Values], file: Path) -> None:
    lines = ["# Constants fitted to measured steps by fit.py: on all sources, and on all but the one named.", ""]
    for name, values in found.items():
        lines += [f'["{name}"]', *(f'"{k}" = {v:.4g}' for k, v in values.items()), ""]
    file.write_text("\n".join(lines), encoding="utf-8")


__all__ = ["fit", "predict", "prepare", "write"]
