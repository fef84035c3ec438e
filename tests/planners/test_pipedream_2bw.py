"""PipeDream-2BW: its throughput and memory by hand, exhaustive search, and what its plans say."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from meshwright.errors import InputError, Unsupported
from meshwright.plan.schedules import rows
from meshwright.planners._blocks import block_ends, equal_parts, grids
from meshwright.planners._profile import profile_of
from meshwright.planners.pipedream_2bw import PipeDream2BW, memory_bytes, stage_seconds
from meshwright.testing.tiny import chain, mlp, problem_of


def test_throughput_by_hand() -> None:
    """d = 2, w = 2, b = 8: compute 10 ms, transfer 1 ms, sum of gradients 60 ms."""
    assert stage_seconds(0.010, 0.001, 0.060, 4) == pytest.approx(0.015)
    assert 2 * 8 / stage_seconds(0.010, 0.001, 0.060, 4) == pytest.approx(1066.7, abs=0.05)
    assert 2 * 8 / stage_seconds(0.010, 0.001, 0.060, 8) == pytest.approx(1454.5, abs=0.05)


def test_delayed_descent_by_hand() -> None:
    """w(t + 1) = w(t) − ν · f′(w(t − 1)), w(−1) = w(0), with f = w² / 2: the recurrence that reading "previous" means."""
    w = [1.0, 1.0]
    for _ in range(5):
        w.append(w[-1] - 0.1 * w[-2])
    assert w[2:] == pytest.approx([0.9, 0.8, 0.71, 0.63, 0.559])


@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("recompute", [True, False])
def test_memory_formula(depth: int, recompute: bool) -> None:
    w, a, r = 80.0, 40.0, 3.0
    two, flush = (memory_bytes(w, a, r, depth, recompute, versions) for versions in (2, 1))
    assert two - flush == w / depth
    assert two == 2 * w / depth + (a / depth + depth * r if recompute else a)


def test_blocks_divide_equally_and_carry_stem_and_head() -> None:
    problem = problem_of(mlp(4, width=64, samples=64), "a100x2", samples=64)
    profile = profile_of(problem, 8)
    assert len(block_ends(profile)) == 4
    parts = equal_parts(profile, 2)
    assert parts is not None and [v for p in parts for v in p.nodes] == list(range(len(profile)))
    assert sum(p.forward + p.backward for p in parts) == pytest.approx(float(profile.seconds.sum()))
    assert equal_parts(profile, 3) is None and equal_parts(profile, 8) is None
    assert parts[0].sent == 8 * 64 * 4 and parts[1].sent == 0.0
    loose = profile_of(problem_of(chain([1e9] * 7), "a100x2"), 8)
    uneven = equal_parts(loose, 3)
    assert uneven is not None and [len(p.nodes) for p in uneven] == [2, 2, 3]


def test_search_is_exhaustive_over_its_shapes() -> None:
    problem = problem_of(mlp(8, width=256, samples=256), "a100x4", samples=256)
    planner = PipeDream2BW()
    result = planner.plan(problem)
    assert result.plan is not None and result.status == "optimal"
    every = []
    for shape in planner._shapes(problem):
        parts = equal_parts(profile_of(problem, shape.micro), shape.depth)
        if parts is not None:
            every.append(planner._value(problem, shape, parts))
    assert result.objective == min(every)
    assert planner.objective(problem, result.plan) == result.objective
    assert {(s.width, s.depth) for s in planner._shapes(problem)} == {(4, 1), (2, 2), (1, 4)}


def test_plan_reads_the_previous_version_and_updates_every_m() -> None:
    problem = problem_of(mlp(8, width=2048, samples=64), "a100x4", samples=64)
    plan = PipeDream2BW(micro_batches=(2,)).plan(problem).plan
    assert plan is not None
    m = plan.schedule.micro_batches
    weights = plan.schedule.weights
    assert (weights.flush, weights.reads, weights.update_every) == (False, "previous", m)
    assert m >= len(plan.stages) and len({len(stage.mesh.devices) for stage in plan.stages}) == 1
    assert len(rows(plan)) == len(plan.stages)


def test_every_shape_has_as_many_micro_batches_as_stages() -> None:
    problem = problem_of(mlp(8, samples=8), "a100x4", samples=8)
    assert all(s.micro_batches >= s.depth for s in PipeDream2BW()._shapes(problem))
    with pytest.raises(Unsupported, match="at least as many micro-batches as stages"):
        plan = PipeDream2BW().plan(problem).plan
        assert plan is not None
        stages = tuple(replace(plan.stages[0]) for _ in range(8))
        PipeDream2BW().objective(
            problem, replace(plan, stages=stages, schedule=replace(plan.schedule, micro_batches=1))
        )


def test_throughput_never_falls_with_memory_and_recomputes_only_where_it_must() -> None:
    graph = mlp(8, width=128, samples=4096)
    values = []
    for memory in (1.2e6, 2e6, 3e6, 1e7, 1e9):
        result = PipeDream2BW().plan(problem_of(graph, "a100x4", samples=4096, memory=memory, keep_free=0.0))
        values.append(result.objective if result.plan is not None else inf)
        if memory == 1e9:
            assert isinstance(result.carry, dict) and result.carry["recompute"] is False
    assert values == sorted(values, reverse=True) and values[-1] < inf


def test_nothing_that_fits_says_which_shape_came_closest() -> None:
    result = PipeDream2BW().plan(problem_of(mlp(4, width=1024), "a100x2", memory=1e6, keep_free=0.0))
    assert result.status == "infeasible"
    assert result.reason.startswith("the smallest shape, 1 x 2 with micro-batches of 1, needs ")
    assert result.reason.endswith("over the usable 0.000931")


def test_replicas_or_stages_stand_next_to_each_other() -> None:
    assert grids(4, 2, 2) == (((0, 1), (2, 3)), ((0, 2), (1, 3)))
    assert grids(4, 4, 1) == (((0, 1, 2, 3),),)


def test_ring_sums_cost_half_of_the_authors_form() -> None:
    problem = problem_of(mlp(2, width=4096, samples=2), "a100x2", samples=2)
    plans = {s: PipeDream2BW(sums=s, micro_batches=(1,)) for s in ("authors", "ring")}  # type: ignore[arg-type]
    shape = next(s for s in plans["ring"]._shapes(problem) if s.width == 2 and not s.recompute)
    parts = equal_parts(profile_of(problem, 1), 1)
    assert parts is not None
    values = {name: planner._value(problem, shape, parts) for name, planner in plans.items()}
    assert values["authors"] == pytest.approx(2 * values["ring"], rel=1e-9)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match='pipedream_2bw has no sums "x": there are authors and ring'):
        PipeDream2BW(sums="x")  # type: ignore[arg-type]
