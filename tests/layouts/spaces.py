"""The layouts of a small captured graph on one kind of cluster, those that are tried only when asked for among them."""

from __future__ import annotations

from collections.abc import Callable

from meshwright.cluster import resolve
from meshwright.cost import Analytic
from meshwright.graph.ir import Graph
from meshwright.layouts.expert import expert_of
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._grid_space import Space

WISHES = {"recompute": ["none", "light", "full", "attention", "first:1"], "replicate": [1, 2], "reshard": [True, False]}


def space_of(small: Callable[[str], Graph], family: str, devices: int = 16) -> Space:
    graph = small(family)
    problem = Problem(graph, resolve(f"a100x{devices}"), Analytic(precision="bfloat16"), Recipe(samples=64))
    return Space(problem, expert_of(graph), {}, WISHES)
