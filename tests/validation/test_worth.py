"""Measured rows as sums over kinds of work: what simulating them again says."""

from __future__ import annotations

import numpy as np
import pytest

from meshwright.calibration.stack import EVERYTHING, NEAR, TERMS, Worth, learn, priors
from meshwright.plan.problem import Problem
from meshwright.simulate import simulate
from meshwright.validation import shipped
from meshwright.validation.plans import Case, cost_of
from meshwright.validation.prediction import prepare
from meshwright.validation.rows import Row
from meshwright.validation.score import constants_without, fitted
from meshwright.validation.worth import MOST, Stacks, told


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Of one row of every fourth kind of device, software and layout."""
    kinds: dict[tuple[object, ...], Row] = {}
    for row in shipped().rows:
        key = (row.device, row.software, row.precision, row.attention, row.tp > 1, row.pp > 1, row.ep > 1)
        kinds.setdefault(key, row)
    return prepare(list(kinds.values())[::4])


def simulated(stacks: Stacks, case: Case, factors: dict[str, float]) -> float:
    p = case.problem
    own = Problem(p.graph, p.cluster, cost_of(case.row, *stacks.tables(factors)), p.recipe)
    return simulate(own, case.plan, program=case.program, detail=False).step_seconds


def test_worth_is_what_a_slower_simulation_adds(cases: list[Case]) -> None:
    stacks = Stacks(fitted()["all"], cases)
    for case in cases:
        plain, found = simulated(stacks, case, {}), stacks.worth(case)
        again = [(simulated(stacks, case, {t.name: 1.0 + NEAR}) - plain) / NEAR for t in TERMS]
        assert found == pytest.approx(again, rel=1e-6, abs=1e-9 * plain), case.row.id
        assert found.min() >= 0.0
        twice = ("attention", "fusion", "transfers")
        others = [seconds for t, seconds in zip(TERMS, found, strict=True) if t.name not in twice]
        assert sum(others) <= 1.02 * plain, case.row.id


def test_sums_over_kinds_of_work_predict_what_other_factors_would_give(cases: list[Case]) -> None:
    stacks = Stacks(fitted()["all"], cases)
    factors = {EVERYTHING: 1.1, "products": 1.1, "memory": 0.9, "collectives": 1.3, "host": 0.8, "fixed": 1.5}
    seconds = np.array([simulated(stacks, c, {}) for c in cases])
    said = Worth(seconds, np.array([stacks.worth(c) for c in cases])).price(factors)
    found = np.array([simulated(stacks, c, factors) for c in cases])
    assert np.abs(said / found - 1).max() < 0.05
    assert np.median(np.abs(said / found - 1)) < 0.01


def test_learning_from_sums_is_learning_from_simulations() -> None:
    """Three rows of one source: the same factors, whether each round is simulated or summed."""
    rows = [r for r in shipped().rows if r.source == "megatron-2020"][::3]
    cases = prepare(rows)
    stacks, prior = Stacks(constants_without("megatron-2020"), cases), priors()["megatron-2020"]
    measured = [c.row.seconds for c in cases]
    steps = Worth(np.array([simulated(stacks, c, {}) for c in cases]), np.array([stacks.worth(c) for c in cases]))

    def price(factors: dict[str, float]) -> np.ndarray:
        return np.array([simulated(stacks, c, factors) for c in cases])

    summed = learn(steps.price, measured, prior, steps.slopes).values
    assert summed == pytest.approx(learn(price, measured, prior).values, rel=0.02)  # type: ignore[arg-type]


def test_rows_are_told_of_evenly() -> None:
    rows = [r for r in shipped().rows if r.source == "vtrain-single"]
    ids = told(rows)
    assert MOST / 2 < len(ids) <= MOST < len(rows)
    assert told(rows[:10]) == {r.id for r in rows[:10]}
