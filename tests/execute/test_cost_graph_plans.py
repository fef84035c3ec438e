"""Choices of cost graphs run: the best one, and random ones, on four ranks as one process does."""

from __future__ import annotations

from functools import cache
from math import inf

import numpy as np
import pytest

from execute.conftest import Model, Pools, zoo_model
from meshwright.cluster.model import Mesh
from meshwright.execute import why_not
from meshwright.planners._cost_graph import Intra, build
from meshwright.solvers.certified import certified
from meshwright.solvers.cost_graph import CostGraph
from meshwright.testing.tiny import problem_of

FAMILIES = ("gpt2", "llama-3.1-8b", "bert-large", "mixtral-8x7b")
DRAWS = 3


@cache
def made(family: str) -> Model:
    return zoo_model(family, micro_batches=1)


@cache
def intra(family: str) -> Intra:
    graph = made(family).graph
    mesh = Mesh(range(4), ("x", "y"), (2, 2))
    return build(
        problem_of(graph, "a100x4", samples=graph.samples), mesh, styles=("used", "state", "param"), tradeoff=True
    )


def drawn(graph: CostGraph, seed: int) -> tuple[int, ...]:
    """The best choice where options have random prices besides their own; seed 0: the best choice."""
    if not seed:
        return certified(graph).choice
    rng = np.random.default_rng(seed)
    usual = float(np.median([np.median(t[(t > 0) & (t < inf)]) for t in graph.tables if ((t > 0) & (t < inf)).any()]))
    noise = tuple(u + usual * 10 ** rng.uniform(-1, 0.5) * rng.random(len(u)) for u in graph.unary)
    return certified(CostGraph(noise, graph.edges, graph.tables), seconds=20).choice


@pytest.mark.parametrize("seed", range(DRAWS + 1))
@pytest.mark.parametrize("family", FAMILIES)
def test_choices_train_as_one_process_does(family: str, seed: int, pools: Pools) -> None:
    graph = intra(family)
    choice = drawn(graph.uniform, seed)
    assert choice
    plan = graph.plan(graph.spread(choice))
    assert why_not(plan, made(family).graph) is None
    result = made(family).check(plan, pools(4))
    assert result.equal, result.problems[:5]
