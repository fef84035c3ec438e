"""One plan by several cost models at once is what each of them says alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from meshwright.cluster import resolve
from meshwright.cost import Analytic
from meshwright.cost.base import CostModel
from meshwright.cost.constants import families, generation
from meshwright.graph.source import resolve as model
from meshwright.plan.model import Plan, Weights
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners.grid import Grid
from meshwright.simulate import several, simulate
from meshwright.simulate.several import seconds_by

from .small import Rates, chain, pipeline, problem

MODELS = [Rates(), Rates(flops=3e5), Rates(bandwidth=2e5), Rates(link=1e5), Rates(floor=2.0), Rates(share=0.0)]
SHAPES = [
    {"p": 1, "m": 8},
    {"p": 1, "m": 4, "dp": 4, "recompute": True},
    {"p": 4, "m": 8, "name": "gpipe", "dp": 2},
    {"p": 4, "m": 8},
    {"p": 2, "m": 8, "v": 2, "name": "interleaved"},
    {"p": 4, "m": 8, "name": "zb-h1"},
]


def alone(of: Problem, plan: Plan, costs: Sequence[CostModel]) -> list[float]:
    return [simulate(replace(of, cost=c), plan, detail=False).step_seconds for c in costs]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0, 2])
def test_pipelines(shape: dict[str, object], keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = chain(blocks=8)
    plan = pipeline(graph, **shape)  # type: ignore[arg-type]
    plan = replace(plan, stages=tuple(replace(s, keep_last=keep if s.recompute else 0) for s in plan.stages))
    of = problem(graph, 16)
    expected = alone(of, plan, MODELS)
    assert len(set(expected)) > 3
    monkeypatch.setattr("meshwright.simulate.simulator.simulate", None)  # nothing is played one by one
    assert seconds_by(of, plan, MODELS) == pytest.approx(expected, rel=1e-12)


FIXES = [
    {"dp": 8, "micro_batch": 4, "zero": 2},
    {"dp": 2, "tp": 4, "micro_batch": 8, "recompute": "full"},
    {"dp": 2, "pp": 2, "tp": 2, "micro_batch": 4, "schedule": "1f1b"},
    {"dp": 4, "pp": 2, "micro_batch": 2, "schedule": "zb-h1", "zero": 0},
]


@pytest.mark.parametrize("fix", FIXES)
def test_analytic_models_with_one_constant_changed(fix: dict[str, object]) -> None:
    of = Problem(model("gpt2").graph(2, 256), resolve("h100x8"), Analytic(), Recipe(64))
    plan = Grid(fix=fix, top=1).plan(of).plan
    assert plan is not None
    plain, table = generation("modern"), families()["h100"]
    costs: list[CostModel] = [Analytic()]
    costs += [
        Analytic(software=replace(plain, **{name: 1.3 * getattr(plain, name)}))
        for name in ("rate", "fused", "transfer", "floor_forward", "floor_backward", "fixed", "straggle")
    ]
    costs += [
        Analytic(families={"h100": replace(table, **{name: 0.7 * getattr(table, name)})})
        for name in ("memory", "norm", "inner", "attention_flash", "depth", "launch")
    ]
    found = seconds_by(of, plan, costs)
    assert found == pytest.approx(alone(of, plan, costs), rel=1e-12)
    assert len(np.unique(found)) > len(costs) / 2


def test_what_is_not_played_in_steps_is_simulated_model_by_model() -> None:
    graph = chain(blocks=8)
    plan = pipeline(graph, 4, 8, name="pipedream")
    plan = replace(plan, schedule=replace(plan.schedule, weights=Weights(flush=False)))
    of = problem(graph, 16)
    assert not several._shared(of, plan, MODELS)
    assert seconds_by(of, plan, MODELS[:3]) == pytest.approx(alone(of, plan, MODELS[:3]))
