"""Found, not told: planners that search every cut of every op find the experts' layouts, or what the simulator prices lower."""

from __future__ import annotations

from functools import lru_cache
from math import inf, prod

import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cost.analytic import Analytic
from meshwright.errors import InputError
from meshwright.graph.ir import Graph
from meshwright.plan.problem import Limits, Problem, Recipe
from meshwright.planners import Planner, registry
from meshwright.planners.grid import Grid
from meshwright.simulate import simulate
from meshwright.simulate.fits import fits

SEARCHERS = ("alpa", "pase", "tensoropt")
STATE = 18.0
"""Bytes of a parameter: bf16 weight, float32 gradient, master copy and two moments."""


@lru_cache(maxsize=2)
def graph(name: str, seq: int, blocks: int) -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    return resolve(name).graph(
        batch=2, seq=seq, dtype="bfloat16", shrink=Shrink(blocks=blocks, dropout=0.0), cache=False
    )


def searcher(name: str) -> Planner:
    planner = registry.load(name)
    if planner.info.missing and any("captured" in part for part in planner.info.missing):
        pytest.skip(f"{name} does not plan captured models yet")
    return planner


def seconds(problem: Problem, **fix: int) -> float:
    """The best expert layout of one kind, as simulated; inf if there is none or none fits."""
    try:
        found = Grid(fix={"pp": 1, **fix}, allow={"recompute": ["none"]}, top=1).plan(problem)
    except InputError:
        return inf
    return found.objective if found.plan is not None else inf


@pytest.mark.parametrize("name", SEARCHERS)
def test_one_sequence_on_one_node_is_cut_as_megatron_cuts_it_or_better(name: str) -> None:
    """A batch of one cannot be cut over samples, and the whole state does not fit."""
    gpt = graph("gpt2-medium", 1024, 1)
    cluster = cluster_of("h100x8")
    state = STATE * sum(prod(t.shape) for t in gpt.params())
    memory = (0.7 * state + Analytic().workspace(cluster.types[0])) / 0.9
    problem = Problem(gpt, cluster, Analytic(), Recipe(1), limits=Limits(memory=memory, keep_free=0.1 * memory))
    assert seconds(problem, tp=1) == inf
    plan = searcher(name).plan(problem).plan
    assert plan is not None
    assert fits(problem, plan) is None
    assert simulate(problem, plan, detail=False).step_seconds <= seconds(problem, tp=8) * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHERS)
def test_experts_are_dealt_where_that_is_best_by_far(name: str) -> None:
    moe = graph("mixtral-8x7b", 1024, 2)
    problem = Problem(moe, cluster_of("h100x8"), Analytic(), Recipe(8))
    experts = seconds(problem, ep=8)
    assert 1.05 * experts <= min(seconds(problem, tp=8), seconds(problem, dp=8))
    plan = searcher(name).plan(problem).plan
    assert plan is not None
    assert simulate(problem, plan, detail=False).step_seconds <= experts * (1 + 1e-9)
