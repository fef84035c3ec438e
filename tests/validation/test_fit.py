"""Fitting constants to measured steps, and what the fits that ship promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meshwright.cost.constants import software as generations
from meshwright.validation import shipped as shipped_rows
from meshwright.validation.fit import MOST_ROWS, chosen, fit, matters, predict, prepare
from meshwright.validation.parameters import PARAMETERS, from_logs, guesses, logs, shipped, tables
from meshwright.validation.rows import Row
from meshwright.validation.score import fitted


def test_parameters_reach_their_tables_and_come_back() -> None:
    values = shipped()
    assert from_logs(logs(values)) == pytest.approx(values)
    families, software = tables({**values, "depth": values["depth"] * 2, "floor.eager": values["floor.eager"] * 3})
    plain_families, plain_software = tables(values)
    assert families["v100"].depth == pytest.approx(2 * plain_families["v100"].depth)
    assert families["h100"].depth == plain_families["h100"].depth
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
    own = [r for r in shipped_rows().rows if r.source in ("megatron-sc21", "vtrain-multi")][::6]
    cases = prepare(own)
    made = predict(cases, truth)
    cases = [replace(c, row=replace(c.row, seconds=float(s))) for c, s in zip(cases, made)]
    guessed, again = predict(cases, guesses()), predict(cases, fit(cases)["all"])
    assert np.abs(again / made - 1).mean() < 0.3 * np.abs(guessed / made - 1).mean()


def test_no_source_brings_more_rows_than_its_share_and_no_host_bound_ones() -> None:
    rows = shipped_rows().rows
    found = chosen(rows)
    by_source: dict[str, int] = {}
    for row in found:
        assert not {"small", "noisy", "learned"} & set(row.flags)
        by_source[row.source] = by_source.get(row.source, 0) + 1
    assert by_source["vtrain-single"] == max(by_source.values()) > MOST_ROWS / 2
    assert max(by_source.values()) <= MOST_ROWS
    assert set(by_source) == {r.source for r in rows if not {"small", "noisy", "learned"} & set(r.flags)}
    assert any("learned" in r.flags for r in rows)  # of a source whose other rows do teach


def test_a_constant_that_is_said_not_to_matter_changes_no_price() -> None:
    """Of one row of every fourth kind of device, software and layout; most that matter show in some of them."""
    kinds: dict[tuple[object, ...], Row] = {}
    for row in shipped_rows().rows:
        key = (row.device, row.software, row.precision, row.attention, row.tp > 1, row.pp > 1, row.ep > 1)
        kinds.setdefault(key, row)
    cases = prepare(list(kinds.values())[::4])
    values = shipped()
    plain, seen = predict(cases, values), set()
    for parameter in PARAMETERS:
        moved = predict(cases, {**values, parameter.name: values[parameter.name] * 0.9})
        for case, before, after in zip(cases, plain, moved):
            if not matters(parameter, case):
                assert after == before, (parameter.name, case.row.id)
            elif after != before:
                seen.add(parameter.name)
    assert len(seen) > len(PARAMETERS) / 2


def test_every_generation_of_software_has_two_sources() -> None:
    sources: dict[str, set[str]] = {}
    for row in shipped_rows().rows:
        sources.setdefault(row.software, set()).add(row.source)
    assert set(sources) == set(generations())
    assert all(len(names) >= 2 for names in sources.values()), sources


def test_rows_that_wait_for_a_host_say_less_of_other_hosts() -> None:
    """Two sources, one floor: of equal steps above the guess, those that the host sets move the floor less than before."""
    own = [r for r in shipped_rows().rows if r.source == "vtrain-single" and r.tp == r.pp == r.micro_batch == 1][:2]
    cases = prepare(own)
    made = predict(cases, {**shipped(), "floor.eager": 3e-3})
    cases = [replace(c, row=replace(c.row, seconds=float(s))) for c, s in zip(cases, made)]
    found = fit(cases)["all"]["floor.eager"]
    guess = guesses()["floor.eager"]
    # Spread .5 of the guess, .25 of hosts, two rows of one source: n / .25² against 1 / .5² with n = 2 / sqrt(2).
    weight = 2**0.5 / (0.1**2 + 0.25**2) * 0.5**2
    assert np.log(found / guess) / np.log(3e-3 / guess) == pytest.approx(weight / (1 + weight), abs=0.12)
