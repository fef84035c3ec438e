"""How far stacks differ, from the errors of several: spreads that made the errors are found again."""

from __future__ import annotations

import numpy as np
import pytest

from meshwright.calibration.stack import EVERYTHING, TERMS
from meshwright.validation.priors import GUESSES, likeliest


def made(rng: np.random.Generator, sources: int, noise: float, **spreads: float) -> list[tuple[np.ndarray, np.ndarray]]:
    names = [EVERYTHING, *(t.name for t in TERMS)]
    found = []
    for _ in range(sources):
        shares = rng.dirichlet(np.ones(len(TERMS)), 16).T
        change = np.concatenate([np.ones((1, 16)), shares])
        factors = np.array([rng.normal() * spreads.get(n, 0.0) for n in names])
        found.append((change, factors @ change + noise * rng.normal(size=16)))
    return found


def test_spreads_that_made_errors_are_found_again() -> None:
    true = {EVERYTHING: 0.15, "host": 1.0, "collectives": 0.6}
    found = likeliest(made(np.random.default_rng(0), 200, 0.04, **true))
    assert found.noise == pytest.approx(0.04, rel=0.1)
    assert {n: found.spreads[n] for n in true} == pytest.approx(true, rel=0.25)
    assert found.spreads["products"] < GUESSES["products"]


def test_without_errors_nothing_is_expected_to_differ_and_one_source_says_little() -> None:
    none = likeliest([(c, np.zeros(16)) for c, _ in made(np.random.default_rng(1), 50, 0.05)])
    assert none.noise < 0.03 and none.spreads[EVERYTHING] < 0.04
    one = likeliest(made(np.random.default_rng(2), 1, 0.07))
    assert one.spreads["stragglers"] == pytest.approx(GUESSES["stragglers"], rel=0.5)
