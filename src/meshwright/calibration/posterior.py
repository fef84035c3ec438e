"""Constants from a few measurements: the most likely ones, given how far each guess is trusted.

Squared errors of the logarithm of what was measured, over `noise`, plus squared distances of the constants from their
guesses, over their spreads: where nothing speaks about a constant it stays where it was. Gauss-Newton with differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log

import numpy as np

from ..graph.ir import Floats

STEP = 0.02
"""Of the differences, in spreads."""
ROUNDS = 12
TRUST = 1.0
"""Largest move of a constant in one round, in spreads."""
STILL = 1e-4
CLIP = 3.0
"""Errors beyond so many times the noise pull no harder (Huber): one disturbed measurement moves nothing."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A positive constant before anything was measured; `spread`: standard deviation of its logarithm."""

    name: str
    value: float
    spread: float
    most: float = inf


@dataclass(frozen=True, slots=True)
class Found:
    values: Mapping[str, float]
    spread: Mapping[str, float]
    """Standard deviation of the logarithm that is left."""
    errors: Floats
    """Relative: predicted / measured − 1, by these constants."""


def most_likely(
    predict: Callable[[Mapping[str, float]], Floats],
    measured: Floats,
    guesses: Sequence[Guess],
    noise: float,
    slopes: Callable[[Mapping[str, float]], Floats] | None = None,
) -> Found:
    """The constants that explain `measured` best.

    Args:
        predict: constants by name -> what would be measured, in its order; all above 0.
        noise: standard deviation of the logarithm of one measurement around a right prediction.
        slopes: constants -> change [guess, measurement] of the logarithm of the prediction with that of each constant;
            None: by differences.
    """
    target = np.log(measured)
    z = np.zeros(len(guesses))
    limit = np.array([log(g.most / g.value) / g.spread for g in guesses])
    spreads = np.array([g.spread for g in guesses])
    here = np.log(predict(_values(z, guesses))) - target
    normal = np.eye(len(guesses))
    for _ in range(ROUNDS):
        if slopes is not None:
            jacobian = spreads[:, None] * slopes(_values(z, guesses))
        else:
            jacobian = np.stack(
                [(np.log(predict(_values(x, guesses))) - target - here) / STEP for x in z + STEP * np.eye(len(z))]
            )
        weight = np.minimum(1.0, CLIP * noise / np.maximum(np.abs(here), 1e-12)) / noise**2
        normal = (jacobian * weight) @ jacobian.T + np.eye(len(z))
        move = np.clip(np.linalg.solve(normal, -((jacobian * weight) @ here + z)), -TRUST, TRUST)
        move = np.minimum(z + move, limit) - z
        z = z + move
        here = np.log(predict(_values(z, guesses))) - target
        if np.abs(move).max() < STILL:
            break
    left = np.sqrt(np.diag(np.linalg.inv(normal)))
    spread = {g.name: float(s * g.spread) for g, s in zip(guesses, left, strict=True)}
    return Found(_values(z, guesses), spread, np.expm1(here))


def _values(z: Floats, guesses: Sequence[Guess]) -> dict[str, float]:
    return {g.name: g.value * exp(g.spread * float(x)) for g, x in zip(guesses, z, strict=True)}
