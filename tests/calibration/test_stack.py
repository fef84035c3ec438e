"""A stack is learnt from a few of its steps: what made them slower is found, and plans that were not run profit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meshwright.calibration.profile import with_constants
from meshwright.calibration.stack import EVERYTHING, TERMS, Step, guessed, learn, learn_stack, priors, slower
from meshwright.cluster import resolve
from meshwright.cost import Analytic
from meshwright.cost.constants import families, generation
from meshwright.graph.source import resolve as model
from meshwright.plan.model import Plan
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners.grid import Grid
from meshwright.simulate import simulate

TRUE = {"fusion": 1.6, "collectives": 1.5, "host": 1.2}
"""What the stack of these tests does slower than we say."""


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(model("gpt2").graph(2, 1024), resolve("h100x8"), Analytic(), Recipe(128))


def plan(problem: Problem, **fix: object) -> Plan:
    found = Grid(fix={"recompute": "none", **fix}, top=1).plan(problem).plan
    assert found is not None
    return found


def seconds(problem: Problem, plan: Plan, factors: dict[str, float]) -> float:
    table = {name: with_constants(row, slower(row, factors)) for name, row in families().items()}
    software = with_constants(generation("modern"), slower(generation("modern"), factors))
    own = replace(problem, cost=Analytic(software=software, families=table))
    return simulate(own, plan, detail=False).step_seconds


@pytest.fixture(scope="module")
def steps(problem: Problem) -> list[Step]:
    plans = {
        "dp": plan(problem, dp=8, micro_batch=8, zero=0),
        "tp": plan(problem, dp=2, tp=4, micro_batch=8, zero=0),
        "pp": plan(problem, dp=4, pp=2, micro_batch=4, schedule="1f1b", zero=0),
    }
    return [Step(name, problem, p, seconds(problem, p, TRUE)) for name, p in plans.items()]


def test_factors_reach_every_constant_that_they_name() -> None:
    named = [name for term in TERMS for name in (*term.times, *term.rates)]
    assert len(named) == len(set(named))
    rows = (families()["h100"], generation("modern"))
    assert all(sum(hasattr(row, name) for row in rows) == 1 for name in named)
    changed = slower(rows[0], {"collectives": 2.0, "attention": 2.0})
    assert changed["inner"] == rows[0].inner / 2 and changed["score_bytes"] == 2 * rows[0].score_bytes
    assert set(changed) == {
        "inner",
        "outer",
        "score_bytes",
        "attention_first",
        "attention_flash",
        "attention_modern",
        "score_rate",
    }


def test_steps_of_a_slower_stack_teach_plans_that_it_did_not_run(problem: Problem, steps: list[Step]) -> None:
    learnt = learn_stack(steps, name="ours", software="modern")
    measured = np.array([s.seconds for s in steps])
    assert np.abs(learnt.before / measured - 1).min() > 0.05
    assert np.abs(learnt.after / measured - 1).max() < 0.05
    assert learnt.factors["collectives"] > 1.05
    assert learnt.factors["transfers"] == pytest.approx(1.0, abs=0.1)
    for fix in ({"dp": 8, "micro_batch": 4, "zero": 1}, {"dp": 4, "tp": 2, "micro_batch": 4, "zero": 0}):
        other = plan(problem, **fix)
        truth = seconds(problem, other, TRUE)
        plain = simulate(problem, other, detail=False).step_seconds
        calibrated = simulate(replace(problem, cost=learnt.profile.cost("bfloat16")), other, detail=False).step_seconds
        assert abs(calibrated / truth - 1) < 0.4 * abs(plain / truth - 1)


def test_what_the_others_teach_is_said_of_each_step(steps: list[Step]) -> None:
    learnt = learn_stack(steps, name="ours", software="modern")
    measured = np.array([s.seconds for s in steps])
    assert np.isfinite(learnt.without).all()
    assert np.abs(learnt.without / measured - 1).mean() < np.abs(learnt.before / measured - 1).mean()
    alone = learn_stack(steps[:1], name="ours", software="modern")
    assert np.isnan(alone.without).all()


def test_steps_that_are_as_predicted_teach_nothing(problem: Problem, steps: list[Step]) -> None:
    right = [replace(s, seconds=seconds(problem, s.plan, {})) for s in steps]
    assert learn_stack(right, name="ours", software="modern", check=False).factors == pytest.approx(
        {EVERYTHING: 1.0} | {t.name: 1.0 for t in TERMS}, abs=1e-3
    )


def test_less_trust_lets_steps_move_the_constants_further() -> None:
    def price(factors: dict[str, float]) -> np.ndarray:
        return np.array([factors["fusion"]])

    bold, shy = (learn(price, [3.0], guessed(trust)).values["fusion"] for trust in (0.25, 1.0))  # type: ignore[arg-type]
    assert 1.0 < shy < bold == pytest.approx(3.0, rel=0.05)


def test_a_factor_on_everything_is_a_factor_on_the_step(problem: Problem, steps: list[Step]) -> None:
    for step in steps:
        plain, slow = (seconds(problem, step.plan, f) for f in ({}, {EVERYTHING: 1.2}))
        # Latencies stay, of which tensor parallelism has many.
        assert slow / plain == pytest.approx(1.2, abs=0.05 if step.name == "tp" else 0.01)


def test_priors_name_every_term_and_every_source() -> None:
    from meshwright.validation.score import fitted

    assert set(priors()) == set(fitted())
    for prior in priors().values():
        assert set(prior.spreads) == {EVERYTHING, *(t.name for t in TERMS)}
        assert 0.02 < prior.noise < 0.2 and all(0.0 < s < 2.0 for s in prior.spreads.values())
