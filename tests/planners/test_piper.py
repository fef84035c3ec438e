"""Piper reaches the values of the original on its public inputs, its baselines and its ablations too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from meshwright.cost.analytic import Analytic
from meshwright.cost.choices import Profile
from meshwright.errors import InputError, Unsupported
from meshwright.formats import piper as profiles
from meshwright.plan.lookup import stage_ops
from meshwright.plan.problem import Problem
from meshwright.plan.validate import validate
from meshwright.planners.piper import Piper
from meshwright.simulate.simulator import simulate
from meshwright.testing import PlannerConformance
from meshwright.testing.tiny import mlp, problem_of

GIB = 2.0**30
EXACTLY = 1e-9
"""Relative: sums of the same numbers in another order."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "no_dp": {"data_parallel": False}, "no_tp": {"tensor_parallel": False}, "no_recomp": {"recompute": "never"},
}  # fmt: skip


class TestPiperKeepsThePromises(PlannerConformance):
    planner = "piper"


def rows(data_folder: Path, *graphs: str) -> list[dict[str, Any]]:
    found = json.loads((data_folder / "piper" / "expected.json").read_text())["rows"]
    return [row for row in found if row["graph"] in graphs]


def problem(data_folder: Path, row: dict[str, Any]) -> Problem:
    return profiles.read(
        data_folder / "piper" / f"{row['graph']}.json",
        devices=row["K"], memory=row["M_GiB"] * GIB, bandwidth=25 * GIB, micro_batches=row["N"],
    )  # fmt: skip


def differences(data_folder: Path, wanted: list[dict[str, Any]], of: str, **settings: Any) -> list[str]:
    """Rows whose value is not the expected one."""
    wrong = []
    planner = Piper(**settings)
    for row in wanted:
        if of == "equi":
            expected = row["equi"] and row["equi"]["tps"]
        else:
            expected = row["tps"] if of == "tps" else row["ablations"][of]
        given = problem(data_folder, row)
        result = planner.plan(given)
        value = result.objective if result.plan is not None else None
        if (value is None) != (expected is None) or (value and abs(value / expected - 1) > EXACTLY):
            wrong.append(f"{row['graph']} K={row['K']} M={row['M_GiB']} N={row['N']}: {value}, wanted {expected}")
        if result.plan is not None:
            validate(given, result.plan)
            assert planner.objective(given, result.plan) == pytest.approx(value, rel=EXACTLY)
            assert sum(len(s.mesh.devices) for s in result.plan.stages) <= row["K"]
        else:
            assert (
                "iB in its smallest configuration, over the" in result.reason
                or "no cut into stages fits" in result.reason
            )
    return wrong


def test_bert_has_the_published_optimum_in_every_setting(data_folder: Path) -> None:
    assert differences(data_folder, rows(data_folder, "bert32a100"), "tps") == []


def test_gnmt_and_resnet_have_the_published_optimum_in_every_setting(data_folder: Path) -> None:
    assert differences(data_folder, rows(data_folder, "gnmt", "resnet"), "tps") == []


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations_have_the_published_values(data_folder: Path, ablation: str) -> None:
    wanted = [row for row in rows(data_folder, "bert32a100") if "ablations" in row]
    assert len(wanted) == 14
    assert differences(data_folder, wanted, ablation, **ABLATIONS[ablation]) == []


def test_equal_partitions_have_the_published_values(data_folder: Path) -> None:
    wanted = [row for row in rows(data_folder, "bert32a100", "resnet", "gnmt") if "equi" in row and row["K"] <= 64]
    assert len(wanted) > 10
    assert differences(data_folder, wanted, "equi", method="equi") == []


@pytest.mark.slow
def test_equal_partitions_on_many_devices_have_the_published_values(data_folder: Path) -> None:
    wanted = [row for row in rows(data_folder, "bert32a100", "resnet", "gnmt") if "equi" in row and row["K"] > 64]
    assert differences(data_folder, wanted, "equi", method="equi") == []


def test_piper_is_never_worse_than_its_ablations_and_baselines(data_folder: Path) -> None:
    for row in rows(data_folder, "bert32a100")[7:9]:
        given = problem(data_folder, row)
        best = Piper(knapsack="exact").plan(given).objective
        for settings in (
            *ABLATIONS.values(), {"recompute": "always"}, {"recompute": "all_or_nothing"}, {"method": "equi_no_tp"},
            {"method": "equi_joined"}, {"method": "equi_joined_no_tp"}, {"knapsack": "repeated"}, {"method": "equi"},
        ):  # fmt: skip
            result = Piper(**settings).plan(given)  # type: ignore[arg-type]
            assert result.plan is None or result.objective >= best * (1 - EXACTLY)


def test_the_value_falls_with_devices_memory_and_bandwidth(data_folder: Path) -> None:
    path = data_folder / "piper" / "bert32a100.json"

    def value(devices: int = 32, memory: float = 4, bandwidth: float = 25, batch: int = 480) -> float:
        given = profiles.read(
            path, devices=devices, memory=memory * GIB, bandwidth=bandwidth * GIB, micro_batches=batch
        )
        return Piper(knapsack="exact").plan(given).objective

    base = value()
    assert value(devices=48) <= base
    assert value(memory=8) <= base
    assert value(bandwidth=50) <= base
    assert value(batch=960) <= base


def test_deeper_berts_are_planned(data_folder: Path) -> None:
    document = json.loads((data_folder / "piper" / "bert32a100.json").read_text())
    before = 0.0
    for layers in (32, 48, 96):
        made = profiles.deeper(document, layers)
        given = profiles.parse(made, "deeper", devices=2048, memory=80e9, bandwidth=25e9, micro_batches=2048)
        result = Piper().plan(given)
        assert result.status == "optimal"
        assert result.objective > before
        before = result.objective


def test_stages_that_are_replicated_unevenly_deal_micro_batches(data_folder: Path) -> None:
    row = next(r for r in rows(data_folder, "bert32a100") if r["K"] == 128)
    plan = Piper().plan(problem(data_folder, row)).plan
    assert plan is not None
    replicas = [stage.mesh.size("dp") for stage in plan.stages]
    assert len(set(replicas)) > 1
    assert all(bool(stage.deal) == (d > 1) for stage, d in zip(plan.stages, replicas))
    assert any(stage.recompute for stage in plan.stages)


def test_a_captured_model_gets_equal_replicas_that_the_simulator_can_run() -> None:
    given = problem_of(mlp(6, width=512, samples=64), "a100x4", samples=64)
    planner = Piper()
    result = planner.plan(given)
    assert result.plan is not None
    assert len({stage.mesh.size("dp") for stage in result.plan.stages}) == 1
    assert simulate(given, result.plan).step_seconds > 0
    free = Piper(uneven=True).plan(given)
    assert free.plan is not None
    assert free.objective <= result.objective * (1 + EXACTLY)


def test_wrong_settings_are_refused(data_folder: Path) -> None:
    with pytest.raises(InputError, match='no knapsack "fast"'):
        Piper(knapsack="fast")  # type: ignore[arg-type]
    given = problem_of(mlp(2), "a100x2")
    with pytest.raises(InputError, match="do not divide 8"):
        Piper(micro_batches=3).plan(given)
    assert isinstance(given.cost, Analytic)
    with pytest.raises(Unsupported, match="schedule 1f1b"):
        Piper().objective(given, _gpipe_plan(given))


def _gpipe_plan(given: Problem) -> Any:
    from meshwright.planners.gpipe import GPipe

    return GPipe().plan(given).plan


def test_an_exported_model_is_planned_like_the_captured_one() -> None:
    given = problem_of(mlp(6, width=512, samples=8), "a100x4", samples=64)
    exported = profiles.parse(json.loads(json.dumps(profiles.export(given))), "exported")
    through = Piper(knapsack="exact").plan(exported)
    direct = Piper(knapsack="exact", micro_batches=8, uneven=True).plan(given)
    assert through.plan is not None
    # Its nodes are single ops, of which the captured model's layers are made: it can only cut more finely.
    assert through.objective <= direct.objective * (1 + EXACTLY)
    assert through.objective >= 0.5 * direct.objective


@pytest.mark.parametrize("knapsack", ["greedy", "exact"])
def test_simulation_runs_the_chosen_configurations_and_counts_the_memory_of_the_profile(
    data_folder: Path, knapsack: Literal["greedy", "exact"]
) -> None:
    problem = profiles.read(data_folder / "piper" / "resnet.json", devices=8, memory=16 * GIB, micro_batches=64)
    plan = Piper(data_parallel=False, knapsack=knapsack).plan(problem).plan
    assert plan is not None and any(stage.recompute for stage in plan.stages)
    cost = problem.cost
    assert isinstance(cost, Profile)
    sim = simulate(problem, plan)
    depth, slowest = len(plan.stages), 0.0
    for s, stage in enumerate(plan.stages):
        ways = [
            next(c for c in cost.choices[name][1] if c.name == stage.shardings[name].variant)
            for name in (problem.graph.ops[i].name for i in stage_ops(problem.graph, stage))
        ]
        # Stage s of 1F1B has depth − s micro-batches in flight, as the method counts.
        assert float(sim.peak[s]) == pytest.approx(sum(w.stashed * (depth - s) + w.fixed for w in ways), rel=1e-9)
        assert float(sim.peak[s]) <= 16 * GIB
        slowest = max(slowest, sum(w.seconds for w in ways))
    # Fill and drain besides, and transfers that the method does not let overlap.
    assert sim.step_seconds >= 64 * slowest
    plain = {name: replace(x, variant="vanilla") for stage in plan.stages for name, x in stage.shardings.items()}
    stages = tuple(
        replace(stage, recompute=frozenset(), shardings={n: plain[n] for n in stage.shardings}) for stage in plan.stages
    )
    kept = simulate(problem, replace(plan, stages=stages))
    assert kept.step_seconds < sim.step_seconds
    assert float(kept.peak.max()) > 16 * GIB
