"""Plans of Chimera, PipeDream and PipeDream-2BW for a captured model run on four ranks, and compute what they must."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from execute.conftest import Pools
from execute.tiny import CONFIG
from meshwright.cluster import resolve as cluster_of
from meshwright.cost.analytic import Analytic
from meshwright.execute.proof.scale import fitted
from meshwright.execute.proof.verification import verify
from meshwright.graph.source import resolve
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners.registry import load
from meshwright.simulate import simulate

LAYERS, BATCH, SEQ = 4, 16, 16


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama of four blocks whose head is not tied."""
    file = tmp_path_factory.mktemp("model") / "config.json"
    file.write_text(json.dumps(CONFIG | {"num_hidden_layers": LAYERS, "tie_word_embeddings": False}))
    return str(file)


@pytest.mark.parametrize(
    ("planner", "bandwidth", "stages", "stale"),
    [
        ("chimera", 0.0, 4, 0),
        ("pipedream", 0.0, 1, 0),
        ("pipedream", 1e6, 4, 3),
        ("pipedream_2bw", 0.0, 1, 1),
        ("pipedream_2bw", 1e6, 4, 1),
    ],
)
def test_its_plan_runs_and_is_right(
    planner: str, bandwidth: float, stages: int, stale: int, config: str, pools: Pools
) -> None:
    """Over slow links (bytes/s; 0 = the cluster's own) gradients cost more than values, so that stages are many."""
    source, cluster = resolve(config), cluster_of("h100x4")
    if bandwidth:
        levels = tuple(replace(level, bandwidth=bandwidth, pair=0.0) for level in cluster.levels)
        cluster = replace(cluster, levels=levels, links=())
    own = source.graph(1, SEQ, "float32", cache=False)
    asked = Problem(own, cluster, Analytic(), Recipe(BATCH, compute_dtype="float32"))
    plan = load(planner).plan(asked).plan
    assert plan is not None and len(plan.stages) == stages
    found = simulate(asked, plan)
    assert found.staleness == stale
    assert sum(found.seconds_by.values()) == pytest.approx(found.step_seconds, rel=1e-6)
    graph = source.graph(plan.samples // plan.schedule.micro_batches, SEQ, "float32", cache=False)
    result = verify(fitted(plan, graph), graph, source, seq=SEQ, whole=True, pool=pools(4))
    assert result.problems == ()
    assert (result.updates > 0) == (planner != "chimera")
    assert result.gradients == len(list(graph.params()))
