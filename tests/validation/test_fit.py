"""Fitting constants to measured steps, and what the fits that ship promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meshwright.validation import shipped as shipped_rows
from meshwright.validation.fit import fit, predict, prepare
from meshwright.validation.parameters import PARAMETERS, from_logs, guesses, logs, shipped, tables
from meshwright.validation.score import fitted


def test_parameters_reach_their_tables_and_come_back() -> None:
    values = shipped()
    assert from_logs(logs(values)) == pytest.approx(values)
    families, software = tables({**values, "depth": values["depth"] * 2, "floor.eager": values["floor.eager"] * 3})
    plain_families, plain_software = tables(values)
    assert all(families[n].depth == pytest.approx(2 * plain_families[n].depth) for n in families)
    assert software["unfused"].floor_backward == pytest.approx(3 * plain_software["unfused"].floor_backward)
    assert software["modern"] == plain_software["modern"]
    assert len({p.name for p in PARAMETERS}) == len(PARAMETERS)


def test_the_common_fit_is_what_ships_and_the_others_are_of_sources() -> None:
    # A source that the fit has not met is predicted by the common constants, which it had no part in.
    assert set(fitted()) <= {"all"} | {r.source for r in shipped_rows().rows}
    assert shipped() == pytest.approx(fitted()["all"], rel=0.01)


def test_a_fit_recovers_constants_that_made_the_times() -> None:
    """Times made by known constants: few rows move the fit most of the way from the guesses to them."""
    truth = {**guesses(), "a100.gemm_16": 0.60, "floor.eager": 1.4e-3}
    chosen = [r for r in shipped_rows().rows if r.source in ("megatron-sc21", "vtrain-multi")][::6]
    cases = prepare(chosen)
    made = predict(cases, truth)
    cases = [replace(c, row=replace(c.row, seconds=float(s))) for c, s in zip(cases, made)]
    guessed, again = predict(cases, guesses()), predict(cases, fit(cases)["all"])
    assert np.abs(again / made - 1).mean() < 0.3 * np.abs(guessed / made - 1).mean()
