"""Plans of Alpa run on four ranks and compute what they must: one stage, stages of unequal submeshes, memory traded for time."""

from __future__ import annotations

import json

import pytest

from execute.conftest import Pools
from execute.tiny import CONFIG
from meshwright.cluster import resolve as cluster_of
from meshwright.cost.analytic import Analytic
from meshwright.execute.proof.scale import fitted
from meshwright.execute.proof.verification import verify
from meshwright.graph.source import ModelSource, resolve
from meshwright.plan.model import Plan, Schedule
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners import _alpa_model as model
from meshwright.planners._alpa_intervals import Intervals
from meshwright.planners._run import SearchRun
from meshwright.planners.alpa import Alpa
from meshwright.planners.types import Budget
from meshwright.solvers.stage_programme import StageChoice, submeshes

LAYERS, BATCH, SEQ = 4, 16, 16


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A Llama of four blocks whose head is not tied."""
    file = tmp_path_factory.mktemp("model") / "config.json"
    file.write_text(json.dumps(CONFIG | {"num_hidden_layers": LAYERS, "tie_word_embeddings": False}))
    return resolve(str(file))


def asked(source: ModelSource) -> Problem:
    graph = source.graph(1, SEQ, "float32", cache=False)
    return Problem(graph, cluster_of("h100x4"), Analytic(), Recipe(BATCH, compute_dtype="float32"))


def run(plan: Plan, source: ModelSource, pools: Pools) -> None:
    graph = source.graph(plan.samples // plan.schedule.micro_batches, SEQ, "float32", cache=False)
    assert verify(fitted(plan, graph), graph, source, seq=SEQ, whole=True, pool=pools(4)).problems == ()


@pytest.mark.parametrize("layers", [1, 4])
def test_its_plan_runs_and_is_right(layers: int, source: ModelSource, pools: Pools) -> None:
    """One layer leaves one stage; at this size latency makes a pipeline of four."""
    plan = Alpa(layers=layers, micro_batches=4).plan(asked(source)).plan
    assert plan is not None and len(plan.stages) == layers
    run(plan, source, pools)


def test_unequal_submeshes_with_parameters_that_rest_cut(source: ModelSource, pools: Pools) -> None:
    problem = asked(source)
    layers = model.layers_of(problem.graph, model.Choices(4, 4, None, 0.5, 1.0))
    found = Intervals(problem, layers, submeshes(1, 4), 4, 1e9, SearchRun(Budget(), 0, None))
    seconds, _, _ = found.tables(4)
    chosen = [
        StageChoice(i, k, m, len(found.configs[m]) - 2, float(seconds[i, k - 1, m, 0]))
        for i, k, m in ((0, 2, 1), (2, 3, 0), (3, 4, 0))
    ]
    stages = found.stages(chosen)
    assert [len(s.mesh.devices) for s in stages] == [2, 1, 1] and any(s.storage for s in stages)
    run(Plan(problem.graph.digest, BATCH, stages, Schedule("1f1b", 4)), source, pools)
