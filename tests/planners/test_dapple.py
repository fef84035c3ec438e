"""DAPPLE against its public planner on its public profiles, the pivot by hand, and each point of being faithful."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations, product
from math import inf
from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.formats.dapple import parse, read
from meshwright.plan.lookup import stage_ops
from meshwright.plan.schedules import rows
from meshwright.planners._dapple_paper import paper_latency
from meshwright.planners._dapple_states import Candidate, latency, sums_of
from meshwright.planners._pivot import pivot_latency
from meshwright.planners._placement import (
    Servers,
    append_first,
    between,
    counts_of,
    fresh_first,
    placements,
    scatter_first,
    servers_of,
)
from meshwright.planners.dapple import Dapple
from meshwright.testing.conformance import CHECKS, run_check
from meshwright.testing.tiny import mlp, problem_of
from reference_cases import reference_cases

REFERENCE = reference_cases(
    "dapple", "Its recorded profiles", source="the public planner",
    columns=(
        "profile", "batch", "micro-batch", "GPUs × servers", "speed-up of data parallelism", "speed-up of the plan",
        "states that stages end before", "replicas",
    ),
    rows=[
    ("xlnet-36", 128, 1, "8x2", 10.523664032, 14.816194281, [22, 41], [8, 8]),
    ("vgg-19", 2048, 32, "8x2", 10.038881121, 12.062334069, [18, 25], [15, 1]),
    ("amoeba-36", 128, 1, "8x2", 5.851005017, 11.875863950, [30, 43], [8, 8]),
    ("amoeba-36", 128, 1, "1x16", 5.851005017, 8.108117854, [32, 43], [11, 5]),
    ("bert-48", 64, 2, "1x16", 4.822243959, 9.734807991, [9, *range(12, 52, 3), 55], [1] * 16),
    ("xlnet-36", 128, 1, "1x16", 10.523664032, 11.934934544, [22, 41], [8, 8]),
    ("bert-48", 64, 2, "8x2", 4.822243959, 12.337061635, [30, 55], [8, 8]),
    ],
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "batch", "micro", "workers", "data_parallel", "speedup", "ends", "replicas"), REFERENCE
)
def test_public_planner_speed_up(
    name: str, batch: int, micro: int, workers: str, data_parallel: float, speedup: float, ends: list[int],
    replicas: list[int], data_folder: Path,
) -> None:  # fmt: skip
    problem = read(data_folder / "dapple" / "states.json", profile=name, batch=batch, workers=workers)
    planner = Dapple(micro_batch=micro)
    result = planner.plan(problem)
    assert result.plan is not None and isinstance(result.carry, dict)
    sums = sums_of(problem)
    assert sums.total / result.objective == pytest.approx(speedup, rel=1e-6)
    assert result.carry["speedup"] == pytest.approx(speedup, rel=1e-6)
    assert result.carry["data_parallel_speedup"] == pytest.approx(data_parallel, rel=1e-6)
    assert result.carry["replicas"] == replicas
    found = sums.ends(result.plan)
    assert found is not None and [j + 1 for j in found] == ends
    assert planner.objective(problem, result.plan) == pytest.approx(result.objective, rel=1e-12)
    loads = planner.loads(problem, result.plan)
    assert max(loads) <= result.objective
    assert sum(x * n for x, n in zip(loads, replicas, strict=True)) == pytest.approx(sums.total)


@pytest.mark.parametrize("workers", ["8x8", "1x64", "4x64"])
def test_many_devices_are_planned_to_the_end(workers: str, data_folder: Path) -> None:
    problem = read(data_folder / "dapple" / "states.json", profile="xlnet-36", batch=512, workers=workers)
    began = time.process_time()
    result = Dapple().plan(problem)
    assert time.process_time() - began < 20
    sums, servers = sums_of(problem), servers_of(problem.cluster, gain=3.0)
    halves = [
        Candidate((j, 40), (tuple(range(n // 2)), tuple(range(n // 2, n))), n // 2)
        for n in (problem.cluster.count,)
        for j in range(40)
    ]
    assert result.objective <= min(latency(sums, servers, c, 512, 1) for c in halves) * (1 + 1e-12)
    assert Dapple().objective(problem, result.plan) == pytest.approx(result.objective, rel=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("forward", "backward", "sums", "m", "latency_", "pivot"),
    [
        ((1, 0, 1), (2, 0, 2), (0, 0, 0), 4, 15, 2),
        ((2, 0.5, 1), (4, 0.5, 2), (1, 0, 3), 4, 25, 0),
        ((2, 0.5, 1), (4, 0.5, 2), (1, 0, 3), 8, 49, 0),
        ((1, 0.5, 2, 0.5, 1), (2, 0.5, 4, 0.5, 2), (0,) * 5, 4, 28, 2),
        ((1, 0.5, 2, 0.5, 1), (2, 0.5, 4, 0.5, 2), (0,) * 5, 8, 52, 2),
        ((1, 0.5, 2, 0.5, 1), (2, 0.5, 4, 0.5, 2), (0,) * 5, 1, 14, 4),
    ],
)
def test_pivot_by_hand(
    forward: tuple[float, ...],
    backward: tuple[float, ...],
    sums: tuple[float, ...],
    m: int,
    latency_: float,
    pivot: int,
) -> None:
    assert pivot_latency(forward, backward, sums, m) == (latency_, pivot)


TWO = Servers(4, 2, 25e9, 1e9, 3e9)


def test_three_policies() -> None:
    used = (1, 0)

    def chosen(policy: Callable[[Servers, tuple[int, ...], int], tuple[int, ...]], n: int) -> tuple[int, ...]:
        return between(TWO, used, policy(TWO, used, n))

    assert chosen(fresh_first, 2) == (4, 5)
    assert chosen(append_first, 2) == (1, 2)
    assert chosen(scatter_first, 2) == (1, 4)
    assert chosen(fresh_first, 5) == (1, 4, 5, 6, 7)
    assert chosen(append_first, 4) == (1, 2, 3, 4)
    assert fresh_first(TWO, used, 8) == append_first(TWO, used, 8) == scatter_first(TWO, used, 8) == ()
    # Two rounds of one, by number of devices on each server: after a fresh server there is no other fresh one.
    assert set(placements(TWO, used, 1, 2)) == {(3, 0), (2, 1)}


def test_transfers_and_sums_by_hand() -> None:
    assert TWO.transfer((0, 1), (2, 3), 50e9) == 2.0
    assert TWO.transfer((0, 4), (1, 2), 50e9) == 25.0  # half of the senders are outside
    assert TWO.transfer((0, 1), (2, 4), 3e9) == 1.0
    assert TWO.all_reduce((0,), 1e9) == 0.0
    assert TWO.all_reduce((0, 1, 2, 3), 50e9) == pytest.approx(2 * 50 * 3 / 4 / 25 / 2)
    assert TWO.all_reduce((0, 4), 3e9) == pytest.approx(1.0)


def chain(ms: list[float], cuts: list[float], weights: list[float], batch: int = 8) -> dict[str, object]:
    def sums(values: list[float]) -> list[float]:
        return [sum(values[: i + 1]) for i in range(len(values))]

    return {
        "profile_batch": batch, "states": len(ms), "is_chain": True, "cumulative_ms": sums(ms),
        "cumulative_activation_bytes": sums(cuts), "cumulative_parameter_bytes": sums(weights), "cut_bytes": cuts,
    }  # fmt: skip


@pytest.mark.parametrize("workers", ["2x2", "1x3", "3x1"])
def test_no_two_stage_plan_and_no_straight_plan_scores_better(workers: str) -> None:
    document = {"p": chain([40, 10, 30, 90, 20], [3e7, 1e6, 5e7, 2e6, 0], [1e6, 2e8, 1e6, 4e8, 1e6])}
    problem = parse(document, "f", "p", workers=workers)
    sums, servers = sums_of(problem), servers_of(problem.cluster, gain=3.0)
    got = Dapple().plan(problem).objective
    count = problem.cluster.count
    every = [latency(sums, servers, Candidate((4,), (tuple(range(count)),), rp), 8, 1) for rp in (1, count)]
    for j, g in product(range(4), range(1, count)):
        for first in combinations(range(count), g):
            none, full = (0,) * servers.count, (servers.size,) * servers.count
            used = counts_of(servers, first)
            if used in placements(servers, none, g) and between(servers, none, used) == first:
                for second in (between(servers, used, full),):
                    every.append(latency(sums, servers, Candidate((j, 4), (first, second), 1, False), 8, 1))
    assert got <= min(every) * (1 + 1e-12)


def test_paper_objective_is_never_beaten_by_any_stages_on_fresh_devices() -> None:
    document = {"p": chain([40, 10, 30, 90, 20], [3e6, 1e6, 5e6, 2e6, 0], [1e6, 2e7, 1e6, 4e7, 1e6])}
    problem = parse(document, "f", "p", workers="1x4")
    sums, servers = sums_of(problem), servers_of(problem.cluster, gain=3.0)
    planner = Dapple(objective="paper")
    result = planner.plan(problem)
    assert result.plan is not None
    best = inf
    for s in (1, 2):  # deeper prefixes are found by the greedy rule of the programme, not by enumeration
        for cut in combinations(range(4), s - 1):
            for widths in product(range(1, 5), repeat=s):
                if sum(widths) == 4:
                    starts = [sum(widths[:i]) for i in range(s)]
                    sets = tuple(tuple(range(a, a + w)) for a, w in zip(starts, widths))
                    best = min(best, paper_latency(sums, servers, Candidate((*cut, 4), sets, 1), 8, 1))
    assert result.objective <= best * (1 + 1e-12)
    assert planner.objective(problem, result.plan) == pytest.approx(result.objective)
    assert result.objective >= sums.total / 4


def test_latency_falls_with_bandwidth_and_is_no_less_than_the_work(data_folder: Path) -> None:
    values = []
    for scale in (0.1, 1, 10):
        problem = read(
            data_folder / "dapple" / "states.json", profile="vgg-19", batch=2048, bandwidth=(25e9 * scale, 1e9 * scale)
        )
        values.append(Dapple(micro_batch=32).plan(problem).objective)
        assert values[-1] >= sums_of(problem).total / 16
    assert values == sorted(values, reverse=True)


def test_plan_names_devices_splits_samples_and_admits_what_fits() -> None:
    document = {"p": chain([10, 10, 10, 10], [1e6] * 4, [1e6] * 4)}
    problem = parse(document, "f", "p", workers="2x2")
    plan = Dapple(policy="B").plan(problem).plan
    assert plan is not None
    assert sorted(d for stage in plan.stages for d in stage.mesh.devices) == [0, 1, 2, 3]
    for stage in plan.stages:
        if len(stage.mesh.devices) > 1:
            assert {s.cuts["b"][0].axis for s in stage.shardings.values()} == {"dp"}
    assert plan.schedule.name == "dapple" and plan.schedule.args == {"policy": "B", "D": 0}
    ops = [i for stage in plan.stages for i in stage_ops(problem.graph, stage)]
    assert ops == list(range(4))
    assert len(rows(plan)) == len(plan.stages)


def test_less_memory_lowers_the_micro_batches_admitted_until_nothing_fits() -> None:
    graph = mlp(8, width=512, samples=512)
    roomy = problem_of(graph, "a100x2", samples=512)
    plan = Dapple(micro_batch=64).plan(roomy).plan
    assert plan is not None
    none = Dapple(micro_batch=64).plan(problem_of(graph, "a100x2", samples=512, memory=1e6, keep_free=0.0))
    assert none.status == "infeasible" and "GiB" in none.reason


def test_wrong_options_and_files_are_refused() -> None:
    with pytest.raises(InputError, match='dapple has no objective "x": there are code and paper'):
        Dapple(objective="x")  # type: ignore[arg-type]
    good = chain([1, 1], [1, 1], [0, 0])
    with pytest.raises(InputError, match='f: no profile "q": there are p'):
        parse({"p": good}, "f", "q")
    with pytest.raises(InputError, match=r"f: p.cumulative_ms\[1\] is -1, wanted a finite number of 0 or more"):
        parse({"p": {**good, "cumulative_ms": [1, -1]}}, "f", "p")
    with pytest.raises(InputError, match=r"f: p.cut_bytes is .*, wanted a list of 2 numbers, one a state"):
        parse({"p": {**good, "cut_bytes": [1]}}, "f", "p")
    with pytest.raises(InputError, match="bandwidth is '1e9,1e9,1', wanted finite bytes/s inside a server and between"):
        parse({"p": good}, "f", "p", bandwidth="1e9,1e9,1")
    assert [level.bandwidth for level in parse({"p": good}, "f", "p", bandwidth="1e9").cluster.levels] == [1e9, 1e9]
    with pytest.raises(InputError, match="it holds several profiles, name one as profile: p, q"):
        parse({"p": good, "q": good}, "f", None)
    with pytest.raises(InputError, match="workers is '3', wanted GPUs of a server and servers, such as 8x2"):
        parse({"p": good}, "f", "p", workers="3")


@pytest.mark.parametrize("name", [n for n in CHECKS if "new process" not in n])
def test_it_keeps_the_promises_of_every_planner(name: str) -> None:
    check = run_check(Dapple(), name)
    assert check.passed, check.fault
