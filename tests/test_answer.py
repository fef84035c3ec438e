"""Answers: rows of a table are judged by one simulator, whatever their planner minimises."""

from __future__ import annotations

from dataclasses import replace

from meshwright.answer import outcome_of
from meshwright.planners.grid import Grid
from meshwright.request import Request
from meshwright.simulate import simulate
from meshwright.stated import state


def test_rows_of_another_objective_are_simulated() -> None:
    stated = state(Request("gpt2", "a100x4", batch=8, seq=64))
    planner = Grid(top=4, allow={"recompute": ["none"], "zero": [0]})
    result = planner.plan(stated.problem)
    own = outcome_of(stated, planner, result).candidates
    claimed = tuple(replace(row, objective=1e-6 * (k + 1)) for k, row in enumerate(result.considered))
    judged = outcome_of(stated, planner, replace(result, considered=claimed)).candidates
    assert judged[0].layout == own[0].layout
    for row in judged:
        plan = row.plan() if row.plan is not None else None
        assert plan is not None
        assert row.step_s == simulate(stated.problem, plan, detail=False).step_seconds
    assert [c.step_s for c in judged[1:]] == sorted(c.step_s for c in judged[1:])
