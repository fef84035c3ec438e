"""Points of DistIR's grid run on ranks: loss and every gradient as one process has them."""

from __future__ import annotations

import pytest

from execute.conftest import Pools
from meshwright.cluster import resolve as cluster
from meshwright.cost.analytic import Analytic
from meshwright.execute import verify
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve
from meshwright.layouts.expert import expert_of
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._profile import profile_of
from meshwright.planners.distir import DistIRGrid, Point

SOURCE = resolve("gpt2")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return SOURCE.graph(2, 128, "bfloat16")


@pytest.mark.parametrize("point", [Point(2, 1, 2, 4), Point(1, 2, 2, 8), Point(2, 2, 1, 1)], ids=Point.words)
def test_a_point_of_the_grid_trains_as_one_process(graph: Graph, pools: Pools, point: Point) -> None:
    problem = Problem(graph, cluster("a100x4"), Analytic(), Recipe(16))
    planner = DistIRGrid()
    expert, profile = expert_of(graph), profile_of(problem, graph.samples)
    assert point in list(planner.points(problem, expert, profile))
    result = verify(planner.plan_of(problem, expert, profile, point), graph, SOURCE, seq=128, pool=pools(4))
    assert result.equal, result.problems[:3]
    assert all(predicted == ran for predicted, ran in result.collectives.values())
