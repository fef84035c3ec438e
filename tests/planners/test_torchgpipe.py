"""torchgpipe: its balances of public profiles, both profilers, the checkpoint modes and chunks."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.formats.pipedream import parse, read
from meshwright.lower import lower
from meshwright.plan.lookup import stage_ops
from meshwright.planners._profile import kept_nodes, profile_of
from meshwright.planners.torchgpipe import TorchGPipe
from meshwright.testing.conformance import CHECKS, run_check
from meshwright.testing.tiny import chain, mlp, problem_of
from reference_cases import reference_cases

BALANCES = reference_cases(
    "torchgpipe",
    "Balance of PipeDream's profiles by time",
    source="the public block partition",
    columns=("profile", "partitions", "layers of each", "µs of the slowest"),
    rows=[("vgg16", 2, [12, 28], 412969), ("vgg16", 4, [5, 7, 7, 21], 235590), ("alexnet", 2, [8, 14], 54252)],
)


@pytest.mark.parametrize(("name", "parts", "balance", "largest"), BALANCES)
def test_balance_of_a_public_profile(
    name: str, parts: int, balance: list[int], largest: int, data_folder: Path
) -> None:
    problem = read(data_folder / "pipedream" / f"{name}.graph.txt", workers=[parts], bandwidth=[1e9], micro_batches=1)
    planner = TorchGPipe(checkpoint="never")
    profile = profile_of(problem, 1)
    layers = kept_nodes(profile)
    result = planner.plan(problem)
    assert result.plan is not None and isinstance(result.carry, dict)
    assert len(layers) == sum(balance) and result.carry["balance"] == balance
    costs = planner.costs(problem, profile)
    assert max(sum(costs[v] for v in nodes if v in layers) for nodes in profile.parts(result.plan)) == largest


def test_time_profile_is_whole_microseconds_of_forward_and_backward() -> None:
    problem = problem_of(mlp(4, width=512, samples=64), "a100x2", samples=64)
    profile = profile_of(problem, 64)
    costs = TorchGPipe().costs(problem, profile)
    assert costs == [round(1e6 * (f + b)) for f, b in zip(profile.forward, profile.backward)]
    assert all(isinstance(c, int) for c in costs) and sum(costs) > 0


def test_size_profile_is_latent_bytes_of_a_micro_batch_and_scaled_parameters() -> None:
    problem = problem_of(chain([1e9, 1e9, 1e9], width=8, samples=8), "a100x2")
    for scale, chunks in ((2.0, 4), (5.0, 8)):
        planner = TorchGPipe(balance="size", param_scale=scale, chunks=chunks)
        costs = planner.costs(problem, profile_of(problem, 8))
        # A layer of width 8: 8 · 4 bytes a sample, 8 · 8 · 4 of weights; the last makes a mean of 4 bytes per 8 samples.
        assert costs[:2] == [int(32 * 8 / chunks + 256 * scale)] * 2
        assert costs[2] == int(32.5 * 8 / chunks + 256 * scale)
    adam = TorchGPipe(balance="size", chunks=8)
    assert adam.costs(problem, profile_of(problem, 8))[0] == 32 + 256 * 4
    assert adam.plan(problem).unit == "B" and TorchGPipe().plan(problem).unit == "µs"


def test_checkpoint_modes() -> None:
    problem = problem_of(mlp(5), "a100x2")
    for mode, keep in (("always", 0), ("except_last", 1)):
        plan = TorchGPipe(checkpoint=mode).plan(problem).plan  # type: ignore[arg-type]
        assert plan is not None
        for stage in plan.stages:
            assert stage.recompute == {problem.graph.ops[i].name for i in stage_ops(problem.graph, stage)}
            assert (stage.keep_last, stage.recompute_at) == (keep, "stage")
    never = TorchGPipe(checkpoint="never").plan(problem).plan
    assert never is not None and all(not stage.recompute for stage in never.stages)


@pytest.mark.parametrize(("samples", "chunks", "want"), [(8, 4, 4), (8, 100, 8), (8, 3, 3), (9, 6, 5), (7, None, 7)])
def test_chunks_are_those_of_tensor_chunk(samples: int, chunks: int | None, want: int) -> None:
    plan = TorchGPipe(chunks=chunks).plan(problem_of(mlp(3, samples=samples), "a100x2", samples=samples)).plan
    assert plan is not None and plan.schedule.micro_batches == want and plan.schedule.name == "gpipe"


def test_portals_allow_cuts_where_several_values_go_on() -> None:
    problem = problem_of(mlp(3), "a100x4")
    assert len(profile_of(problem, 8, borders=False)) >= len(profile_of(problem, 8))
    assert TorchGPipe(portals=True).plan(problem).plan is not None


def test_a_skipped_value_goes_straight_to_the_partition_that_reads_it() -> None:
    nodes = [
        f"n{v} -- layer -- forward_compute_time=1, backward_compute_time=2, activation_size=1e6, parameter_size=1e6"
        for v in range(6)
    ]
    edges = ["\tn0 -- n5", *(f"\tn{v} -- n{v + 1}" for v in range(5))]
    problem = parse("\n".join([*nodes, *edges]), "skip", workers="3", bandwidth="1e9")
    plan = TorchGPipe(portals=True).plan(problem).plan
    assert plan is not None and [len(stage.ops) for stage in plan.stages] == [2, 2, 2]
    moves = {(t.value, t.src, t.dst) for t in lower(problem.graph, plan, problem.recipe).transfers}
    assert moves == {("n1:out", 0, 1), ("n3:out", 1, 2), ("n0:out", 0, 2)}


def test_objective_is_the_spread_of_the_blocks() -> None:
    problem = problem_of(mlp(3, width=512, samples=64), "a100x2", samples=64)
    planner = TorchGPipe()
    result = planner.plan(problem)
    assert result.plan is not None and result.status == "feasible" and result.bound is None
    assert planner.objective(problem, result.plan) == result.objective
    costs = planner.costs(problem, profile_of(problem, 64))
    assert isinstance(result.carry, dict)
    cut = result.carry["balance"][0]  # type: ignore[index]
    assert result.objective == abs(sum(costs[:cut]) - sum(costs[cut:]))


def test_wrong_options_and_too_few_layers_are_refused() -> None:
    with pytest.raises(InputError, match='torchgpipe cannot balance by "x": there are time and size'):
        TorchGPipe(balance="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match='no checkpoint "x": there are always, except_last and never'):
        TorchGPipe(checkpoint="x")  # type: ignore[arg-type]
    result = TorchGPipe().plan(problem_of(chain([1e9, 1e9]), "a100x4"))
    assert result.reason == (
        "2 layers cannot fill 4 stages: torchgpipe gives each stage at least one layer, so it takes at most 2 here"
    )


@pytest.mark.parametrize("name", [n for n in CHECKS if "new process" not in n])
def test_it_keeps_the_promises_of_every_planner(name: str) -> None:
    check = run_check(TorchGPipe(), name)
    assert check.passed, check.fault
