"""Predicted against measured: parts add up, each rank is set beside its own lane, the largest difference is named."""

from __future__ import annotations

import pytest

from meshwright.errors import InputError
from meshwright.report.measured import measured
from meshwright.simulate import simulate

from ..simulate.small import Rates, chain, pipeline, problem


@pytest.fixture(scope="module")
def run():
    graph = chain(blocks=8)
    plan = pipeline(graph, p=2, m=4, dp=2)
    return plan, simulate(problem(graph, 16, Rates(link=2e4)), plan)


def test_a_run_that_goes_as_predicted_parts_nowhere(run) -> None:
    plan, simulation = run
    spent = [{k: 3 * v for k, v in simulation.lane_seconds[s].items()} for s in (0, 0, 1, 1)]
    table = measured(plan, simulation, spent, steps=3)
    for row in table.ranks:
        assert row.step == pytest.approx((simulation.step_seconds,) * 2)
        assert row.measured == pytest.approx(row.predicted)
    assert [r.stages for r in table.ranks] == [(0,), (0,), (1,), (1,)]


def test_the_largest_difference_is_named_and_the_slowest_rank_shown(run) -> None:
    plan, simulation = run
    spent = [dict(simulation.lane_seconds[s]) for s in (0, 0, 1, 1)]
    spent[2]["backward"] += 5.0
    spent[2]["forward"] += 1.0
    table = measured(plan, simulation, spent, steps=1)
    assert table.slowest.rank == 2 and table.slowest.parting == "backward"
    text = "\n".join(table.lines())
    assert "step of rank 2" in text and "backward takes 5,000 ms more than predicted" in text
    assert len(table.lines()) >= 4 + len(spent)


def test_what_no_span_covers_is_the_rest(run) -> None:
    plan, simulation = run
    spent = [{"forward": 1.0, "all_reduce": 0.5, "all_gather": 0.25, "step": 2.0}] * 4
    row = measured(plan, simulation, spent, steps=2).ranks[0]
    assert row.measured == pytest.approx({"forward": 0.5, "collectives": 0.375, "rest": 0.125})
    assert row.step[1] == pytest.approx(1.0)


def test_other_ranks_than_the_plan_has_are_refused(run) -> None:
    plan, simulation = run
    with pytest.raises(InputError, match="3 ranks were measured, but the plan has 4 devices"):
        measured(plan, simulation, [{}] * 3, steps=1)
    brief = simulate(problem(chain(blocks=8), 16), plan, detail=False)
    with pytest.raises(InputError, match="detail=True"):
        measured(plan, brief, [{}] * 4, steps=1)
