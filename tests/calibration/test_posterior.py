"""Constants from measurements: found where they speak, at their guess where nothing does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from meshwright.calibration.posterior import Guess, most_likely

WORK = np.array([1.0, 10.0, 100.0, 1000.0])


def seconds(values: Mapping[str, float]) -> np.ndarray:
    return values["start"] + WORK / values["rate"]


def test_constants_that_made_the_data_are_found_again() -> None:
    true = {"start": 3.0, "rate": 20.0}
    found = most_likely(seconds, seconds(true), [Guess("start", 1.0, 1.0), Guess("rate", 10.0, 1.0)], noise=0.01)
    assert found.values == pytest.approx(true, rel=1e-2)
    assert np.abs(found.errors).max() < 1e-2


def test_a_constant_that_nothing_speaks_of_stays_at_its_guess_with_its_spread() -> None:
    guesses = [Guess("start", 1.0, 1.0), Guess("rate", 10.0, 1.0), Guess("other", 7.0, 0.5)]
    found = most_likely(seconds, seconds({"start": 3.0, "rate": 20.0}), guesses, noise=0.01)
    assert found.values["other"] == 7.0
    assert found.spread["other"] == pytest.approx(0.5)
    assert found.spread["rate"] < 0.02


def test_one_disturbed_measurement_moves_little() -> None:
    measured = seconds({"start": 3.0, "rate": 20.0})
    measured[3] *= 4.0
    found = most_likely(seconds, measured, [Guess("start", 1.0, 1.0), Guess("rate", 10.0, 1.0)], noise=0.01)
    assert found.values["start"] == pytest.approx(3.0, rel=0.1)


def test_no_value_passes_its_limit() -> None:
    found = most_likely(
        seconds,
        seconds({"start": 3.0, "rate": 20.0}),
        [Guess("start", 1.0, 1.0), Guess("rate", 10.0, 1.0, most=15.0)],
        0.01,
    )
    assert found.values["rate"] == pytest.approx(15.0)
