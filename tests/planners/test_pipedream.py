"""PipeDream against its public optimizer on its public profiles, brute force, and each point of being faithful."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError, Unsupported
from meshwright.formats.pipedream import parse, read
from meshwright.plan.lookup import stage_ops
from meshwright.plan.problem import Limits, Problem
from meshwright.plan.schedules import rows
from meshwright.planners.pipedream import PipeDream
from meshwright.solvers.antichains import Reach, bits, states_of
from meshwright.testing.tiny import mlp, problem_of
from reference_cases import reference_cases

SETTINGS = {
    "n4": ("4", "1e9", PipeDream(compression_ratio=1)),
    "n4none": ("4", "1e9", PipeDream()),
    "str": ("4", "1e9", PipeDream(compression_ratio=1, straight=True)),
    "n16": ("16", "1.25e9", PipeDream(compression_ratio=1)),
    "4x4": ("4x4", "1e10,1.25e9", PipeDream(compression_ratio=1)),
}
REFERENCE = reference_cases(
    "pipedream", "Seconds of the slowest stage on its profiles", source="the public optimizer",
    columns=(
        "profile", "all seconds", "4 workers at 1 GB/s", "the same, transfers free", "the same, straight", "16 workers at 1.25 GB/s",
        "4 × 4 workers at 10 and 1.25 GB/s", "speed-up of data parallelism on 4",
    ),
    rows=[
        ("alexnet", 0.085321, 0.034217141, 0.023165752, 0.066453504, 0.015099494, 0.015099494, 0.416947),
        ("vgg16", 0.672535, 0.205520896, 0.175732624, 0.411041792, 0.054794891, 0.067133997, 1.153168),
        ("squeezenet1_0", 0.285366, 0.074414, 0.072328843, 0.095551488, 0.018771693, 0.018618375, 3.800483),
        ("resnet18", 0.259742, 0.100004036, 0.065918, 0.201601, 0.024425497, 0.023493207, 2.597315),
        ("resnet50", 0.443419, 0.162880924, 0.111497, 0.258149, 0.043847790, 0.043208469, 2.364575),
        ("gnmt", 0.089416, 0.025868, 0.025868, 0.025868, 0.017125, 0.011081, 0.148125),
    ],
)  # fmt: skip


@pytest.mark.parametrize("row", REFERENCE, ids=lambda row: row[0])
def test_public_optimizer_objective_on_its_profile(row: tuple[Any, ...], data_folder: Path) -> None:
    name, total, *objectives, data_parallel = row
    for setting, want in zip(SETTINGS, objectives, strict=True):
        workers, bandwidth, planner = SETTINGS[setting]
        problem = read(data_folder / "pipedream" / f"{name}.graph.txt", workers=workers, bandwidth=bandwidth)
        result = planner.plan(problem)
        assert result.plan is not None
        # The published figures are printed to the nanosecond.
        assert result.objective == pytest.approx(want, rel=1e-6, abs=6e-10)
        assert planner.objective(problem, result.plan) == result.objective
        assert isinstance(result.carry, dict)
        assert result.carry["speedup"] == pytest.approx(total / want, rel=1e-4)
        if setting == "n4":
            assert result.carry["data_parallel_speedup"] == pytest.approx(data_parallel, rel=1e-5)
        assert result.status == ("feasible" if name == "gnmt" else "optimal")  # gnmt has two sources


def test_published_configuration_of_vgg16_on_16_workers(data_folder: Path) -> None:
    problem = read(data_folder / "pipedream" / "vgg16.graph.txt", workers="16", bandwidth="3.125e9")
    result = PipeDream(compression_ratio=1).plan(problem)
    assert result.plan is not None and isinstance(result.carry, dict)
    assert result.carry["replicas"] == [15, 1]
    assert result.objective == pytest.approx(0.045525, abs=1e-6)
    assert result.carry["speedup"] == pytest.approx(14.773, abs=1e-3)
    assert result.carry["in_flight"] == 2
    assert result.carry["versions"] == [2, 1]


def chain(times: list[float], params: list[float], sizes: list[float] | None = None, **levels: str) -> Problem:
    sizes = sizes or [0.0] * len(times)
    lines = [
        f"n{i} -- layer -- forward_compute_time={t * 1e3}, backward_compute_time=0, activation_size={a}, parameter_size={w}"
        for i, (t, w, a) in enumerate(zip(times, params, sizes))
    ]
    edges = [f"\tn{i} -- n{i + 1}" for i in range(len(times) - 1)]
    return parse("\n".join(lines + edges), "chain", **levels)  # type: ignore[arg-type]


def test_hand_case() -> None:
    free = chain([2, 1, 1], [0, 0, 0], workers="2", bandwidth="1e9")
    result = PipeDream().plan(free)
    assert (
        result.objective == 2.0 and result.plan is not None and len(result.plan.stages) == 1
    )  # a tie: data parallel stays
    heavy = chain([2, 1, 1], [0, 0, 1e9], workers="2", bandwidth="1e9")
    assert PipeDream().plan(heavy).objective == 2.0
    whole = PipeDream().plan(free).plan
    assert whole is not None
    moved = replace(whole, graph=heavy.graph.digest)
    assert PipeDream().objective(heavy, moved) == 3.0


def test_paper_form_takes_the_larger_of_compute_and_twice_the_weights() -> None:
    problem = chain([1, 1, 1, 1], [0, 0, 0, 4e9], [1e8] * 4, workers="4", bandwidth="1e9")
    # All on 4: max(4, 2 · 3 · 4) / 4 = 6; the last alone and three on three: max(3 / 3, 1, 2 · 0.1) = 1.
    result = PipeDream(cost="paper").plan(problem)
    assert result.objective == pytest.approx(1.0)
    # A transfer is not divided by replicas and takes no ratio: 2 · 0.6 s.
    slow = chain([1, 1, 1, 1], [0, 0, 0, 4e9], [6e8] * 4, workers="4", bandwidth="1e9")
    assert PipeDream(cost="paper").plan(slow).objective == pytest.approx(1.2)


@st.composite
def small(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[int], list[int], list[int]]:
    """A graph of one source and at most 6 nodes, with costs."""
    n = draw(st.integers(2, 6))
    edges = set()
    for v in range(1, n):
        for a in draw(st.sets(st.integers(0, v - 1), min_size=1, max_size=2)):
            edges.add((a, v))
    costs = [draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)) for _ in range(3)]
    return n, sorted(edges), costs[0], costs[1], costs[2]


@settings(max_examples=40, deadline=None)
@given(small())
def test_states_of_one_source_are_all_downsets(
    case: tuple[int, list[tuple[int, int]], list[int], list[int], list[int]],
) -> None:
    n, edges, *_ = case
    states = states_of(n, edges)
    assert states is not None
    every = {s for s in range(1, 1 << n) if all(s >> a & 1 for a, b in edges if s >> b & 1)}
    found = {sum(1 << int(v) for v in range(n) if row[v]) for row in states.below}
    assert found == every and len(states) == len(every) and states.complete


@settings(max_examples=25, deadline=None)
@given(small(), st.sampled_from([1, 2, 3]), st.sampled_from(["code", "paper"]))
def test_no_chain_of_downsets_with_any_replicas_is_better(
    case: tuple[int, list[tuple[int, int]], list[int], list[int], list[int]], workers: int, cost: str
) -> None:
    n, edges, times, params, sizes = case
    text = [
        f"n{v} -- x -- forward_compute_time={times[v] * 1e3}, backward_compute_time=0, activation_size={sizes[v]}, "
        f"parameter_size={params[v]}"
        for v in range(n)
    ] + [f"\tn{a} -- n{b}" for a, b in edges]
    problem = parse("\n".join(text), "random", workers=str(workers), bandwidth="2")
    planner = PipeDream(cost=cost, compression_ratio=1)  # type: ignore[arg-type]
    result = planner.plan(problem)
    assert result.objective == pytest.approx(brute(n, edges, times, params, sizes, workers, cost))


def brute(
    n: int, edges: list[tuple[int, int]], times: list[int], params: list[int], sizes: list[int], workers: int, cost: str
) -> float:
    reach = Reach(n, edges)
    downsets = [s for s in range(1 << n) if all(s >> a & 1 for a, b in edges if s >> b & 1)]

    def total(values: list[int], nodes: int) -> int:
        return sum(values[v] for v in bits(nodes))

    def out(nodes: int) -> int:
        return total(sizes, reach.front(nodes))

    def best(done: int, left: int) -> float:
        """The rest of the chain after `done` on exactly `left` workers."""
        if done == (1 << n) - 1:
            return 0.0 if left == 0 else inf
        found = inf
        for end in downsets:
            if end & done == done and end != done:
                for m in range(1, left + 1):
                    work, par = total(times, end & ~done), total(params, end & ~done)
                    if cost == "paper":
                        t = max(work, 2 * (m - 1) * par / 2) / m
                        t = max(t, 2 * out(done) / 2) if done else t
                    else:
                        t = (work + 4 * (m - 1) * par / (2 * m)) / m
                        if done:
                            t = max(t, 2 * out(done) / (2 * m))
                            if end != (1 << n) - 1:
                                t = max(t, 2 * out(end) / (2 * m))
                    found = min(found, max(t, best(end, left - m)))
        return found

    return best(0, workers)


def test_invariants_of_the_objective(data_folder: Path) -> None:
    file = data_folder / "pipedream" / "vgg16.graph.txt"

    def value(bandwidth: float, **options: float | bool) -> float:
        return PipeDream(**options).plan(read(file, workers="4", bandwidth=[bandwidth])).objective  # type: ignore[arg-type]

    assert value(1e9) <= value(1e9, compression_ratio=1) <= value(1e9, compression_ratio=1, straight=True)
    rates = [value(b, compression_ratio=1) for b in (1e8, 1e9, 1e10, 1e12)]
    assert rates == sorted(rates, reverse=True) and rates[-1] >= 0.672535 / 4
    ratios = [value(1e9, compression_ratio=r) for r in (0.5, 1, 2, 8)]
    assert ratios == sorted(ratios, reverse=True)


def test_fewer_workers_are_used_where_that_is_no_slower() -> None:
    problem = chain([1, 1], [1e12, 1e12], workers="4", bandwidth="1e9")
    assert PipeDream().plan(problem).objective > 100
    result = PipeDream(use_fewer_machines=True).plan(problem)
    assert result.objective == 1.0 and result.plan is not None
    assert sum(len(stage.mesh.devices) for stage in result.plan.stages) == 2


def test_memory_mode_bounds_in_flight_copies_and_says_what_does_not_fit() -> None:
    def problem(memory: float) -> Problem:
        return chain([1, 1, 1, 1], [1e9] * 4, [1e9] * 4, workers="2", bandwidth="1e30", memory=memory)  # type: ignore[arg-type]

    # Two stages of 4 GB; ceil((2 − 1) / 1) = 1 copy of the first counts, ceil((2 − 2) / 1) = 0 of the second.
    wide = PipeDream(straight=True).plan(problem(4e9))
    assert wide.plan is not None and wide.objective == 2.0
    assert [len(stage.ops) for stage in wide.plan.stages] == [2, 2]
    # So the public code puts as much there as it takes, and one copy must fit only where that is asked for.
    public = PipeDream(straight=True).plan(problem(3.9e9))
    assert public.plan is not None and public.objective == 3.0
    assert [len(stage.ops) for stage in public.plan.stages] == [1, 3]
    tight = PipeDream(straight=True, least_copies=1).plan(problem(3.9e9))
    assert tight.status == "infeasible"
    assert tight.reason == (
        "no stages fit in 3.63 GiB a worker: every cut has a stage whose weights and activations, times the mini-batches in "
        "flight, are over it; n0 alone takes 1.86 GiB"
    )
    none = PipeDream(straight=True).plan(problem(1e9))
    assert none.reason == "no stages fit in 954 MiB a worker: n0 alone takes 1.86 GiB"
    # On data-parallel copies of everything the public code counts nothing.
    assert PipeDream().plan(problem(2e9)).objective == PipeDream(least_copies=1).plan(problem(8e9)).objective == 2.0
    free = PipeDream(memory_constraint=False, straight=True).plan(problem(3.9e9))
    assert free.objective == 2.0


def test_plan_deals_whole_mini_batches_and_stashes_weights(data_folder: Path) -> None:
    problem = read(data_folder / "pipedream" / "vgg16.graph.txt", workers="4x4", bandwidth="1e10,1.25e9")
    plan = PipeDream(compression_ratio=1, vertical_sync=True).plan(problem).plan
    assert plan is not None
    weights = plan.schedule.weights
    assert (weights.flush, weights.update_every, weights.reads, weights.stash) == (False, 1, "entry", True)
    counts = [len(stage.mesh.devices) for stage in plan.stages]
    assert counts == [12, 2, 1, 1]
    assert [stage.deal for stage in plan.stages] == ["data", "data", "", ""]
    assert sorted(d for stage in plan.stages for d in stage.mesh.devices) == list(range(16))
    assert len(rows(plan)) == 16
    ops = [i for stage in plan.stages for i in stage_ops(problem.graph, stage)]
    assert sorted(ops) == list(range(len(problem.graph.ops)))


def test_captured_model_is_planned_too() -> None:
    problem = problem_of(mlp(6, width=1024, samples=64), "a100x4", samples=64)
    result = PipeDream(compression_ratio=1).plan(problem)
    assert result.plan is not None and result.status == "optimal"
    straight = PipeDream(compression_ratio=1, straight=True).plan(problem)
    assert straight.plan is not None and len(straight.plan.stages) == 4
    assert result.objective <= straight.objective


@pytest.mark.parametrize(("name", "most"), [("inception_v3", 0.35), ("nasnetamobile", 0.5), ("nasnetalarge", 0.5)])
def test_graphs_of_many_branches_are_joined_and_bounded(name: str, most: float, data_folder: Path) -> None:
    problem = read(data_folder / "pipedream" / f"{name}.graph.txt", workers="4", bandwidth="1e9")
    planner = PipeDream(compression_ratio=1)
    result = planner.plan(problem)
    assert result.plan is not None and result.bound is not None and result.status == "feasible"
    assert result.bound <= result.objective <= (1 + most) * result.bound
    assert planner.objective(problem, result.plan) == result.objective
    ops = [i for stage in result.plan.stages for i in stage_ops(problem.graph, stage)]
    assert sorted(ops) == list(range(len(problem.graph.ops)))


def test_joining_chains_loses_nothing_where_activations_do_not_shrink_inside_them() -> None:
    problem = chain([1, 2, 3, 2], [1e8] * 4, [1e6] * 4, workers="2", bandwidth="1e9")
    assert (
        PipeDream(merge_chains=True).plan(problem).objective
        == PipeDream().plan(chain([8], [4e8], [1e6], workers="2", bandwidth="1e9")).objective
    )  # an unbranched graph is one node then


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match='pipedream has no cost "x": there are code and paper'):
        PipeDream(cost="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="compression_ratio is 0, it must be above 0"):
        PipeDream(compression_ratio=0)


def test_a_graph_in_two_pieces_and_an_unequal_cluster_are_refused() -> None:
    text = "\n".join(
        f"n{v} -- {what} -- forward_compute_time=1, backward_compute_time=0, activation_size=1, parameter_size=1"
        for v, what in (("a", "x"), ("b", "x"), ("i", "Input0"))
    )
    with pytest.raises(InputError, match="3 pieces, node nb is joined with none of the largest"):
        parse(text, "f", workers="2")
    # In one piece by way of an input only, which planners leave out.
    joined = parse(f"{text}\n\tni -- na\n\tni -- nb", "f", workers="2")
    with pytest.raises(InputError, match="1 of 2 nodes are not joined with the first source"):
        PipeDream().plan(joined)
    problem = problem_of(mlp(2), "a100x2")
    odd = replace(problem, limits=Limits(), cluster=replace(problem.cluster, levels=()))
    with pytest.raises(Unsupported, match="pipedream needs a level that joins all 2 devices"):
        PipeDream().plan(odd)


def test_what_cannot_be_cut_so_is_said() -> None:
    straight = PipeDream(straight=True).plan(chain([1, 1, 1], [0, 0, 0], [0, 0, 0], workers="8", bandwidth="1e9"))
    assert straight.status == "infeasible"
    assert "each of 8 workers" in straight.reason
    assert "into 3 at most" in straight.reason
    fewer = PipeDream(straight=True, use_fewer_machines=True).plan(
        chain([1, 1, 1], [0, 0, 0], [0, 0, 0], workers="8", bandwidth="1e9")
    )
    assert fewer.objective == pytest.approx(1.0)
