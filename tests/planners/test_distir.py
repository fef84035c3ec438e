"""DistIR: the public simulator's figures from the lowered program, its programs run against one process, its grid."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import meshwright
from meshwright.errors import InputError, Unsupported
from meshwright.graph.ir import Run
from meshwright.graph.serial import digest_of
from meshwright.layouts.expert import expert_of
from meshwright.plan.model import Action, Plan, Schedule
from meshwright.plan.problem import Problem
from meshwright.plan.schedules import generate
from meshwright.planners._blocks import block_ends, equal_parts
from meshwright.planners._profile import profile_of
from meshwright.planners.distir import DistIRGrid, Point
from meshwright.simulate import simulate
from meshwright.simulate.distir import distir_step
from meshwright.testing.tiny import mlp as tiny
from meshwright.testing.tiny import problem_of
from reference_cases import reference_cases

from .distir_mlp import Interpreter, flat, mlp, sequential

SIMULATOR = "the public simulator at 14 TFLOP/s, 900 GB/s and 25 Gbit/s"
STEP = ("D", "H", "P", "K", "seconds", "bytes of the fullest device", "calls")
XS = reference_cases(
    "distir", "Perceptron of 8 layers, width 512, batch 64, float32", source=SIMULATOR, columns=STEP, rows=[
    (1, 1, 1, 1, 0.0005170011205, 17432580, 35), (1, 2, 1, 1, 0.0008112411164, 9043972, 78),
    (2, 1, 1, 1, 0.0031683502425, 18087940, 78), (1, 1, 2, 2, 0.0009325702928, 11206660, 94),
    (1, 1, 2, 4, 0.0015017884262, 11304960, 186), (1, 1, 4, 4, 0.0011994906108, 6717440, 204),
    (2, 1, 2, 2, 0.0022080134603, 10846212, 196), (1, 2, 2, 2, 0.0011365705976, 5832708, 204),
    (2, 2, 1, 1, 0.0019680453994, 9175044, 172), (4, 1, 1, 1, 0.0044940248036, 17956868, 148),
    ],
)  # fmt: skip
SMALL = reference_cases(
    "distir", "Perceptron of 16 layers, width 8,192, batch 256, float16", source=SIMULATOR, columns=STEP, rows=[
    (1, 1, 1, 1, 0.1242464298, 4315938820, 67), (1, 2, 1, 1, 0.0841495494, 2168455172, 150),
    (2, 1, 1, 1, 0.7522706028, 4437573636, 150), (1, 1, 2, 4, 0.1010324885, 2467299328, 346),
    (1, 1, 4, 8, 0.0741397919, 1372061696, 724), (1, 4, 1, 1, 0.0641011091, 1094713348, 284),
    (1, 2, 2, 4, 0.0665923093, 1246756864, 756), (4, 1, 1, 1, 1.0662826892, 4433379332, 284),
    ],
)  # fmt: skip
KEYS = ("dp_degree", "hp_degree", "pp_degree", "num_microbatches")
ROWS = [(8, 512, 64, "float32", *row) for row in XS] + [(16, 8192, 256, "float16", *row) for row in SMALL]


def planned(problem: Problem, *degrees: int) -> Plan:
    planner = DistIRGrid()
    profile = profile_of(problem, problem.graph.samples)
    return planner.plan_of(problem, expert_of(problem.graph), profile, Point(*degrees))


@pytest.mark.parametrize(("layers", "width", "batch", "dtype", "d", "h", "p", "k", "seconds", "nbytes", "calls"), ROWS)
def test_reference_row(
    layers: int,
    width: int,
    batch: int,
    dtype: str,
    d: int,
    h: int,
    p: int,
    k: int,
    seconds: float,
    nbytes: int,
    calls: int,
) -> None:
    problem = flat(mlp(layers, width, batch, dtype), d * h * p, dtype)
    step = distir_step(problem, planned(problem, d, h, p, k), charge="last")
    assert float(step.clock.max()) == pytest.approx(seconds, rel=1e-9)
    assert int(step.peak.max()) == nbytes
    assert step.ops == calls


def test_grid_of_four_devices_finds_the_published_best_and_second() -> None:
    problem = flat(mlp(16, 8192, 256, "float16"), 4, "float16")
    result = DistIRGrid(charge="last").plan(problem)
    assert result.status == "feasible" and result.bound is None
    first, second = (choice.plan for choice in result.frontier[:2])
    assert [s.mesh.shape for s in first.stages] == [(1, 4)] and first.schedule.micro_batches == 1
    assert [s.mesh.shape for s in second.stages] == [(1, 2), (1, 2)] and second.schedule.micro_batches == 4
    assert [c.objective for c in result.frontier] == sorted(c.objective for c in result.frontier)
    assert result.objective == pytest.approx(0.0641011091, rel=1e-9)
    assert all(result.objective <= row[4] * (1 + 1e-9) for row in SMALL if row[0] * row[1] * row[2] == 4)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_grid_has_every_power_of_two_and_every_micro_batch_number(devices: int) -> None:
    problem = flat(mlp(8, 64, 64), devices)
    points = set(DistIRGrid().points(problem, expert_of(problem.graph), profile_of(problem, 64)))
    powers = [1 << k for k in range(devices.bit_length())]
    want = {
        Point(d, h, p, k)
        for d in powers for h in powers for p in powers if d * h * p == devices
        for k in ((2, 4, 8, 16, 32, 64, 128) if p > 1 else (1,)) if 64 % (d * k) == 0
    }  # fmt: skip
    assert points == want


def test_best_of_the_grid_is_the_best_of_its_points_one_by_one() -> None:
    problem = flat(mlp(8, 512, 64), 8)
    planner = DistIRGrid()
    expert, profile = expert_of(problem.graph), profile_of(problem, 64)
    each = {
        point: planner.objective(problem, planner.plan_of(problem, expert, profile, point))
        for point in planner.points(problem, expert, profile)
    }
    result = planner.plan(problem)
    assert result.objective == min(each.values())
    assert result.plan is not None and planner.objective(problem, result.plan) == result.objective


def arrays(layers: int, width: int, batch: int, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(width, width)) / width**0.5 for _ in range(layers)]
    return weights, rng.normal(size=(batch, width)), rng.normal(size=(batch, width))


@pytest.mark.parametrize(
    "degrees",
    [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 2), (2, 2, 1, 1), (2, 1, 2, 4), (1, 2, 4, 2), (2, 2, 2, 4), (1, 4, 2, 8), (4, 2, 4, 2)],
)  # fmt: skip
def test_the_explicit_program_computes_what_one_process_computes(degrees: tuple[int, int, int, int]) -> None:
    """Loss of every element, gradient of the data, gradients of all weights."""
    weights, x, z = arrays(4, 8, 16, sum(degrees))
    problem = flat(mlp(4, 8, 16), degrees[0] * degrees[1] * degrees[2])
    got = Interpreter(problem, planned(problem, *degrees), weights, x, z).run()
    want = sequential(weights, x, z)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-11, atol=1e-14)
    for a, b in zip(got[2], want[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("lost", ["collective", "send", "gather"])
def test_a_program_that_lacks_a_call_computes_something_else(lost: str) -> None:
    weights, x, z = arrays(4, 8, 16, 1)
    problem = flat(mlp(4, 8, 16), 4)
    broken = Interpreter(problem, planned(problem, 1, 2, 2, 2), weights, x, z)
    if lost == "collective":
        calls = broken.stages[0].forward
        k = next(k for k, c in enumerate(calls) if c.kind == "collective")
        calls[k] = replace(calls[k], axes=())
    elif lost == "send":
        stage = broken.stages[0]  # what was there before the last relu
        stage.sends[0] = replace(stage.sends[0], inputs=stage.forward[-2].outputs)
    else:
        calls = broken.stages[0].backward
        calls.append(next(c for c in calls if c.kind == "gather" and not c.joins))
    got, want = broken.run(), sequential(weights, x, z)
    assert not all(np.allclose(a, b) for a, b in zip((got[1], *got[2]), (want[1], *want[2]), strict=True))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 4), (2, 2, 2, 2)]),
    st.sampled_from(["rate", "memory", "gigabits"]),
    st.floats(1.0, 50.0),
)
def test_faster_machines_are_never_slower(degrees: tuple[int, int, int, int], what: str, factor: float) -> None:
    graph = mlp(8, 128, 32)
    base = {"rate": 1.4e13, "memory": 9e11, "gigabits": 25.0}
    slow, fast = (flat(graph, 8, **kwargs) for kwargs in (base, {**base, what: base[what] * factor}))
    plan = planned(slow, *degrees)
    assert distir_step(fast, plan).clock.max() <= distir_step(slow, plan).clock.max() * (1 + 1e-12)


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (4, 2), (3, 9)])
def test_the_list_schedule_is_early_backward_with_policy_b(p: int, m: int) -> None:
    """The authors' scheduler, played: forward and backward in turn when both are ready, smallest micro-batch first."""
    ready: list[set[tuple[str, int]]] = [{("F", j) for j in range(m)} if r == 0 else set() for r in range(p)]
    before = ["B"] * p
    found: list[list[tuple[str, int]]] = [[] for _ in range(p)]
    while any(ready):
        enabled: list[tuple[int, tuple[str, int]]] = []
        for r in range(p):
            if not ready[r]:
                continue
            other = "B" if before[r] == "F" else "F"
            kind = other if any(k == other for k, _ in ready[r]) else before[r]
            j = min(j for k, j in ready[r] if k == kind)
            ready[r].remove((kind, j))
            found[r].append((kind, j))
            before[r] = kind
            if kind == "F":
                enabled.append((r + 1, ("F", j)) if r < p - 1 else (r, ("B", j)))
            elif r:
                enabled.append((r - 1, ("B", j)))
        for r, work in enabled:
            ready[r].add(work)
    table = generate("dapple", p, m, policy="B")
    assert found == [[(a.kind, a.micro_batch) for a in row.actions if isinstance(a, Action)] for row in table]


def test_every_weight_is_charged_unless_the_original_is_asked_for() -> None:
    problem = flat(mlp(8, 512, 64), 1)
    plan = planned(problem, 1, 1, 1, 1)
    every, last = (float(distir_step(problem, plan, charge=c).clock[0]) for c in ("all", "last"))
    assert every - last == pytest.approx(7 * 1.234889e-5, rel=1e-6)


def test_a_device_that_is_too_small_is_not_chosen_and_none_at_all_is_infeasible() -> None:
    problem = flat(mlp(8, 512, 64), 4)
    small = replace(problem, limits=replace(problem.limits, memory=9.5e6))
    result = DistIRGrid().plan(small)
    assert result.plan is not None
    assert distir_step(small, result.plan).peak.max() <= 9.5e6
    assert isinstance(result.carry, dict) and int(result.carry["refused"]) >= 2  # type: ignore[arg-type]
    none = DistIRGrid().plan(replace(problem, limits=replace(problem.limits, memory=1e6)))
    assert none.status == "infeasible"
    assert "GiB a device, over the usable" in none.reason


def test_prices_of_the_paper_may_replace_those_of_the_problem() -> None:
    problem = problem_of(tiny(7, width=512, samples=64), "a100x4", samples=64)
    given_, paper = (DistIRGrid(costs=c).plan(problem) for c in ("given", "paper"))  # type: ignore[arg-type]
    assert given_.plan is not None and paper.plan is not None
    assert paper.objective != given_.objective
    assert DistIRGrid(costs="paper", launch=0.0).plan(problem).objective < paper.objective


def test_simulate_has_the_preset() -> None:
    problem = flat(mlp(8, 512, 64), 4)
    plan = planned(problem, 1, 2, 2, 4)
    sim = meshwright.simulate(problem, plan, preset="distir")
    step = distir_step(problem, plan)
    assert sim.step_seconds == float(step.clock.max())
    assert sum(sim.seconds_by.values()) == pytest.approx(sim.step_seconds)
    assert list(sim.peak) == list(step.peak)
    assert [sum(by.values()) for by in sim.peak_by] == pytest.approx(list(step.peak))
    ends = [max(e.start + e.duration for e in sim.events if e.lane == r) for r in range(2)]
    assert ends == pytest.approx(list(step.clock))
    for r in range(2):  # one clock: nothing overlaps
        own = sorted((e.start, e.start + e.duration) for e in sim.events if e.lane == r)
        assert all(a[1] <= b[0] + 1e-12 for a, b in pairwise(own))
    with pytest.raises(InputError, match='no preset "x" of the simulator: there are default and distir'):
        simulate(problem, plan, preset="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            Schedule("zb-h1", 4),
            "preset distir plays whole forwards and backwards, one at a time: schedule zb-h1 has others",
        ),
        (Schedule("dataflow", 4), "preset distir runs stages in the order of a schedule"),
    ],
)
def test_what_the_preset_cannot_play_is_refused(schedule: Schedule, message: str) -> None:
    problem = flat(mlp(8, 64, 64), 2)
    plan = replace(planned(problem, 1, 1, 2, 4), schedule=schedule)
    with pytest.raises(Unsupported, match=message):
        distir_step(problem, plan)


def test_a_first_layer_that_reads_data_is_a_block_like_the_others() -> None:
    """Of eight layers seven are a run, since data has no gradient."""
    graph = mlp(8, 64, 64)
    run = Run("layers", 2, 2, 7)
    folded = replace(graph, runs=(run,))
    profile = profile_of(flat(replace(folded, digest=digest_of(folded)), 4), 64)
    assert block_ends(profile) == tuple(range(1, 9))
    parts = equal_parts(profile, 4)
    assert parts is not None and [len(part.nodes) for part in parts] == [2, 2, 2, 2]


def test_devices_that_are_no_power_of_two_and_ops_without_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="powers of two: 6 devices are none, 4 would be"):
        DistIRGrid().plan(flat(mlp(8, 64, 64), 6))
    problem = flat(mlp(8, 64, 64), 2)
    bare = replace(problem.graph, ops=tuple(replace(op, call="") for op in problem.graph.ops))
    with pytest.raises(Unsupported, match="which an imported profile does not have: give it a captured model"):
        DistIRGrid().plan(replace(problem, graph=bare))
    for wrong in ({"costs": "x"}, {"charge": "x"}, {"micro_batches": ()}):
        with pytest.raises(InputError, match="distir"):
            DistIRGrid(**wrong)  # type: ignore[arg-type]


def test_points_of_the_published_table_are_points_of_this_grid(data_folder: Path) -> None:
    """111 rows of up to 16 devices; the model is not stated, so only the space can be compared."""
    with (data_folder / "dist-ir" / "euromlsys21_grid_search_results.csv").open() as file:
        rows = [tuple(int(row[k]) for k in KEYS) for row in csv.DictReader(file)]
    assert len(rows) == 111
    graph = mlp(16, 64, 8192)
    for devices in (1, 2, 4, 8, 16):
        problem = flat(graph, devices)
        points = set(DistIRGrid().points(problem, expert_of(graph), profile_of(problem, 8192)))
        assert {Point(*row) for row in rows if row[0] * row[1] * row[2] == devices} <= points
