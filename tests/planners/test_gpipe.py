"""GPipe: the reference partitions, and each point of what being faithful to the paper means."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from meshwright.errors import InputError, Unsupported
from meshwright.formats import pipedream
from meshwright.graph.serial import digest_of
from meshwright.plan.lookup import stage_ops
from meshwright.plan.model import Plan, Schedule
from meshwright.plan.problem import Problem
from meshwright.plan.schedules import rows
from meshwright.planners._layers import layers_of
from meshwright.planners._profile import kept_nodes, profile_of
from meshwright.planners.gpipe import GPipe
from meshwright.simulate.simulator import simulate
from meshwright.solvers.antichains import states_of
from meshwright.solvers.chain_partition import least_maximum, least_squares, parts_of, proportional, variance
from meshwright.testing.tiny import chain, mlp, problem_of
from reference_cases import reference_cases

PI = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
REFERENCE = reference_cases(
    "gpipe", "Partitions of costs", source="an implementation independent of this one",
    columns=("costs", "K", "lingvo's cells", "cells of least variance", "that variance", "largest lingvo cell", "largest variance cell"),
    rows=[
    ([1, 2, 3, 4, 5, 6], 2, [4, 2], [4, 2], 0.25, 11, 11),
    ([1, 2, 3, 4, 5, 6], 3, [3, 1, 2], [3, 2, 1], 2.0, 11, 9),
    (PI, 3, [7, 5, 4], [7, 5, 4], 1.55556, 28, 28),
    (PI, 4, [5, 5, 2, 4], [6, 5, 2, 3], 5.0, 28, 23),
    ([1, 1, 1, 1, 100, 1, 1, 1], 4, [4, 0, 0, 4], [2, 2, 1, 3], 1788.69, 103, 100),
    ],
)  # fmt: skip


def cells(plan: Plan, costs: list[int]) -> list[int]:
    """Layers a cell; the mean of the last layer is an op more."""
    graph = chain([1e9 * c for c in costs])
    counts = [len(stage_ops(graph, stage)) for stage in plan.stages]
    return [*counts[:-1], counts[-1] - 1]


@pytest.mark.parametrize(("costs", "k", "lingvo", "least", "spread", "lingvo_max", "least_max"), REFERENCE)
def test_reference_partition(
    costs: list[int], k: int, lingvo: list[int], least: list[int], spread: float, lingvo_max: int, least_max: int
) -> None:
    problem = (
        problem_of(chain([1e9 * c for c in costs]), f"a100x{k}", keep_free=0.0)
        if k in (2, 4, 8)
        else replace(problem_of(chain([1e9 * c for c in costs]), "a100x4"), limits=problem_of(chain([1e9])).limits)
    )
    problem = replace(problem, limits=replace(problem.limits, devices=k))
    exact = GPipe(rule="variance").plan(problem)
    assert exact.plan is not None and exact.status == "optimal"
    assert cells(exact.plan, costs) == least
    assert exact.objective == pytest.approx(spread * 1e18, rel=1e-5)
    ends = [sum(least[: i + 1]) for i in range(k)]
    assert max(parts_of(costs, ends)) == least_max
    public = GPipe(rule="lingvo").plan(problem)
    assert public.plan is not None
    if 0 in lingvo:
        # An empty cell is no plan: the exact rule takes over, and it is said.
        assert cells(public.plan, costs) == least
        assert public.carry == {
            "rule": f"variance, since lingvo leaves {lingvo.count(0)} of {k} cells empty",
            "cells": least,
        }
    else:
        assert cells(public.plan, costs) == lingvo
        assert max(parts_of(costs, [sum(lingvo[: i + 1]) for i in range(k)])) == lingvo_max
        assert exact.objective <= public.objective


PROFILES = reference_cases(
    "gpipe", "Recorded profiles of PipeDream's format", source="an implementation independent of this one",
    columns=(
        "profile", "K", "states that lingvo's cells end at", "its largest cell in µs", "states of least variance", "their largest cell in µs",
        "variance in µs²",
    ),
    rows=[
    ("vgg16", 2, [7, 33], 377045, [8, 32], 370931, 1.20156e9),
    ("resnet50", 4, [44, 53, 67, 76], 113664, [45, 53, 67, 75], 111497, 339524),
    ],
)  # fmt: skip


@pytest.mark.parametrize(("name", "k", "lingvo", "lingvo_max", "least", "least_max", "spread"), PROFILES)
def test_reference_partition_of_a_profile(
    data_folder: Path,
    name: str,
    k: int,
    lingvo: list[int],
    lingvo_max: int,
    least: list[int],
    least_max: int,
    spread: float,
) -> None:
    problem = pipedream.read(data_folder / "pipedream" / f"{name}.graph.txt", workers=(k,))
    for rule, largest in (("lingvo", lingvo_max), ("variance", least_max)):
        planner = GPipe(rule=rule)  # type: ignore[arg-type]
        result = planner.plan(problem)
        assert result.plan is not None and result.unit == "µs²"
        sizes = recorded(problem, result.plan)
        assert max(sizes) == pytest.approx(largest, rel=1e-9)
        assert result.objective == pytest.approx(variance(sizes), rel=1e-9)
        assert planner.objective(problem, result.plan) == result.objective
        assert (result.status == "optimal") == (rule == "variance")
    assert result.objective == pytest.approx(spread, rel=1e-5)
    # The published cells count states of the optimizer of PipeDream, where a layer is paid for by the first that has it.
    costs = of_states(problem)
    assert [b - a for a, b in pairwise((0, *proportional(costs, k)))] == lingvo
    # Where a cut falls among states that add nothing, several lists of cells are the same cells.
    ends = [sum(least[: i + 1]) for i in range(k)]
    assert parts_of(costs, ends) == pytest.approx(parts_of(costs, least_squares(costs, k)))
    assert max(parts_of(costs, least_maximum(costs, k))) == pytest.approx(least_max)


def recorded(problem: Problem, plan: Plan) -> list[float]:
    """µs of each cell, straight from the cost model."""
    found = []
    for stage in plan.stages:
        own = [problem.graph.ops[i] for i in stage_ops(problem.graph, stage)]
        read = {name for op in problem.graph.ops for name in op.inputs}
        used = [op for op in own if (op.kind != "input" and any(name in read for name in op.outputs)) or op is own[-1]]
        device = problem.cluster.type_of(0)
        sizes = [np.array([[f.size for f in op.rule.factors]], np.int64) for op in used]
        found.append(
            sum(
                1e6 * float(problem.cost.compute(op, n, device, phase)[0])
                for op, n in zip(used, sizes, strict=True) for phase in ("forward", "backward")  # type: ignore[arg-type]
            )
        )  # fmt: skip
    return found


def of_states(problem: Problem) -> list[float]:
    profile = profile_of(problem, problem.graph.samples)
    kept = kept_nodes(profile)
    at = {v: i for i, v in enumerate(kept)}
    states = states_of(len(kept), [(at[a], at[b]) for a, b in profile.edges if a in at and b in at])
    assert states is not None
    before = np.zeros(len(kept), bool)
    costs = []
    for below in states.below:
        costs.append(1e6 * float(profile.seconds[kept][below & ~before].sum()))
        before |= below
    return costs


def test_no_partition_of_layers_has_less_variance() -> None:
    costs = [7, 1, 3, 3, 9, 2, 2, 8]
    problem = problem_of(chain([1e9 * c for c in costs]), "a100x4")
    result = GPipe().plan(problem)
    every = [variance([1e9 * x for x in parts_of(costs, (*cut, 8))]) for cut in combinations(range(1, 8), 3)]
    assert result.objective == min(every)


def test_objective_of_the_plan_is_the_objective_of_the_result() -> None:
    problem = problem_of(mlp(5), "a100x4")
    for rule in ("variance", "lingvo"):
        planner = GPipe(rule=rule)  # type: ignore[arg-type]
        result = planner.plan(problem)
        assert result.plan is not None and planner.objective(problem, result.plan) == result.objective


def test_one_cell_of_whole_consecutive_layers_on_each_device() -> None:
    problem = problem_of(mlp(5), "a100x4")
    plan = GPipe().plan(problem).plan
    assert plan is not None
    assert [tuple(stage.mesh.devices) for stage in plan.stages] == [(0,), (1,), (2,), (3,)]
    assert [i for stage in plan.stages for i in stage_ops(problem.graph, stage)] == list(range(len(problem.graph.ops)))
    ends = layers_of(problem.graph).ends
    assert all(stage_ops(problem.graph, stage)[-1] + 1 in ends for stage in plan.stages)


def test_backward_runs_in_reverse_order_of_the_micro_batches() -> None:
    plan = GPipe(micro_batches=4).plan(problem_of(mlp(3), "a100x2")).plan
    assert plan is not None
    for row in rows(plan):
        assert [a.micro_batch for a in row.actions] == [0, 1, 2, 3, 3, 2, 1, 0]
        assert [a.kind for a in row.actions] == ["F"] * 4 + ["B"] * 4


def test_every_op_of_every_cell_runs_again_before_its_backward() -> None:
    problem = problem_of(mlp(5), "a100x2")
    graph = problem.graph
    plan = GPipe().plan(problem).plan
    assert plan is not None
    for stage in plan.stages:
        assert stage.recompute == {graph.ops[i].name for i in stage_ops(graph, stage)}
        assert stage.recompute_at == "stage"
        assert stage.keep_last == 0
    kept = GPipe(recompute=False).plan(problem).plan
    assert kept is not None and all(not stage.recompute for stage in kept.stages)


def test_recompute_adds_one_forward_to_the_backward() -> None:
    problem = problem_of(mlp(8, width=4096, samples=64), "a100x2", samples=64)
    again, kept = (GPipe(recompute=r, micro_batches=1).plan(problem).plan for r in (True, False))
    assert again is not None and kept is not None
    compute = [simulate(problem, plan).seconds_by["compute"] for plan in (again, kept)]
    assert compute[0] > 1.15 * compute[1]


def test_cells_keep_their_inputs_of_all_micro_batches_and_the_inside_of_one() -> None:
    """Peak activations = N · input + (N / M) · inside; without recompute N · (input + inside)."""
    samples, width, blocks = 64, 512, 8
    graph = replace(mlp(blocks, width, samples), runs=())
    problem = problem_of(replace(graph, digest=digest_of(graph)), "a100x2", samples=samples)

    def peak(m: int, recompute: bool) -> float:
        plan = GPipe(recompute=recompute, micro_batches=m).plan(problem).plan
        assert plan is not None
        return max(by["activations"] for by in simulate(problem, plan).peak_by)

    sizes = {m: peak(m, True) for m in (1, 2, 4, 8, 16)}
    assert all(sizes[a] >= sizes[b] for a, b in zip(sizes, [2, 4, 8, 16]))
    # Two unknowns, five measurements: the inside falls as 1 / M, the inputs stay.
    inside = (sizes[1] - sizes[2]) * 2
    inputs = sizes[1] - inside
    for m, size in sizes.items():
        assert size == pytest.approx(inputs + inside / m, rel=0.02)
    assert inputs == pytest.approx(samples * width * 4, rel=0.02)
    assert peak(16, False) == pytest.approx(peak(1, False), rel=0.02)
    assert peak(16, False) > 3 * sizes[16]


def test_a_cell_of_equal_blocks_keeps_one_input() -> None:
    """Section 2.3: O(N + L / K · N / M); runs of equal blocks make no difference."""
    samples, width = 64, 512
    with_runs = mlp(8, width, samples)
    without = replace(with_runs, runs=())
    peaks = []
    for graph in (with_runs, replace(without, digest=digest_of(without))):
        problem = problem_of(graph, "a100x2", samples=samples)
        plan = GPipe(micro_batches=16).plan(problem).plan
        assert plan is not None
        peaks.append([by["activations"] for by in simulate(problem, plan).peak_by])
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-9)
    assert max(peaks[0]) / (samples * width * 4) < 2


def test_micro_batches_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(InputError) as error:
        GPipe(micro_batches=3).plan(problem_of(mlp(3), "a100x2"))
    assert str(error.value) == "gpipe needs micro-batches of one size: 3 do not divide the batch of 8; 2 do"


def test_by_default_there_are_at_least_four_micro_batches_a_cell() -> None:
    for samples, wanted in ((64, 8), (60, 10), (8, 8), (4, 4), (7, 7), (101, 101)):
        plan = GPipe().plan(problem_of(mlp(3, samples=samples), "a100x2", samples=samples)).plan
        assert plan is not None and plan.schedule == Schedule("gpipe", wanted)


def test_too_few_layers_is_infeasible_and_says_so() -> None:
    result = GPipe().plan(problem_of(chain([1e9, 1e9]), "a100x4"))
    assert (result.status, result.plan) == ("infeasible", None)
    assert result.reason == (
        "2 layers cannot fill 4 cells: gpipe puts one cell of whole layers on each device, so it takes at most 2 devices here"
    )


def test_a_plan_of_other_cells_has_no_objective() -> None:
    problem = problem_of(mlp(3), "a100x2")
    plan = GPipe().plan(problem).plan
    assert plan is not None
    with pytest.raises(Unsupported, match="gpipe prices plans of 2 stages with one device each"):
        GPipe().objective(problem, replace(plan, stages=plan.stages[:1]))


def test_a_rule_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match='gpipe has no rule "best": there are variance and lingvo'):
        GPipe(rule="best")  # type: ignore[arg-type]
