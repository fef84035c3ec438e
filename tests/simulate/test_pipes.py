"""Several pipes: each stage runs its share of the micro-batches, weights count as often as they are held, sums hide in bubbles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.plan.model import Plan, Row, Schedule
from meshwright.plan.schedules import rows
from meshwright.simulate.simulator import simulate

from .small import Rates, chain, pipeline, problem


def pipes(p: int, m: int) -> Plan:
    base = pipeline(chain(p), p, m)
    up = tuple(replace(s, mesh=other.mesh, pipe=1) for s, other in zip(base.stages, reversed(base.stages), strict=True))
    return replace(base, stages=(*base.stages, *up), schedule=Schedule("chimera", m, {"f": 1, "form": "direct"}))


@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 4), (4, 8)])
def test_work_and_weights_of_two_pipes(p: int, m: int) -> None:
    asked = problem(chain(p), p)
    one, two = simulate(asked, pipeline(chain(p), p, m)), simulate(asked, pipes(p, m))
    assert len(two.lanes) == p and all(len(lane.stages) == 2 for lane in two.lanes)
    assert sum(two.seconds_by.values()) == pytest.approx(two.step_seconds, rel=1e-9)
    weights = [x["weights"] for x in one.peak_by]
    for r, held in enumerate(two.peak_by):
        assert held["weights"] == weights[r] + weights[p - 1 - r]
    spent = [sum(x[k] for x in sim.lane_seconds for k in ("forward", "backward")) for sim in (one, two)]
    assert spent[1] == pytest.approx(spent[0], rel=1e-9)


@pytest.mark.parametrize(("p", "m"), [(4, 4), (4, 8)])
def test_sums_that_begin_early_end_no_later(p: int, m: int) -> None:
    """Without REDUCE in the rows all sums wait for the end of their rank."""
    asked, plan = problem(chain(p), p, Rates(link=2e5)), pipes(p, m)
    late = tuple(
        Row(r.devices, tuple(a for a in r.actions if isinstance(a, tuple) or a.kind != "REDUCE")) for r in rows(plan)
    )
    custom = replace(plan, schedule=Schedule("custom", m, {}, late))
    early, end = simulate(asked, plan).step_seconds, simulate(asked, custom).step_seconds
    assert early < end
