"""The cost graph of a captured model: its price of a choice is the sum over the program of the plan of that choice."""

from __future__ import annotations

from functools import lru_cache
from math import inf

import numpy as np
import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cluster.model import Mesh
from meshwright.cost.analytic import Analytic
from meshwright.graph.ir import Graph
from meshwright.plan.problem import Problem, Recipe
from meshwright.plan.validate import validate
from meshwright.planners._cost_graph import Intra, build
from meshwright.simulate.additive import additive
from meshwright.solvers.certified import certified
from meshwright.solvers.cost_graph import CostGraph

MODELS = ("llama-3.1-8b", "gpt2", "bert-large", "t5-large", "mixtral-8x7b", "resnet-50")
MESHES = {
    "one axis": Mesh(range(4), ("x",), (4,)),
    "two axes": Mesh(range(8), ("x", "y"), (2, 4)),
    "three axes": Mesh(range(8), ("x", "y", "z"), (2, 2, 2)),
}


@lru_cache(maxsize=8)
def captured(name: str, blocks: int = 3) -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    shrink = Shrink(blocks=blocks, width=64, heads=8, kv_heads=4, ffn=128, vocab=256, seq=32, experts=4, dropout=0.0)
    return resolve(name).graph(batch=2, seq=32, dtype="bfloat16", shrink=shrink, cache=False)


@lru_cache(maxsize=4)
def built(name: str, mesh: str, micro_batches: int = 2) -> Intra:
    problem = Problem(captured(name), cluster_of("h100x8"), Analytic(), Recipe(16))
    return build(problem, MESHES[mesh], micro_batches, styles=("used", "state", "param"), tradeoff=True)


def drawn(graph: CostGraph, rng: np.random.Generator) -> tuple[int, ...]:
    """A choice that is not forbidden, at random: the best one where options have random prices besides their own; () if
    none was found."""
    usual = float(np.median([np.median(t[(t > 0) & (t < inf)]) for t in graph.tables if ((t > 0) & (t < inf)).any()]))
    scale = usual * 10 ** rng.uniform(-2, 0.5)
    noise = CostGraph(tuple(u + scale * rng.random(len(u)) for u in graph.unary), graph.edges, graph.tables)
    return certified(noise, seconds=5).choice


def exact(graph: CostGraph, intra: Intra, choice: tuple[int, ...]) -> tuple[int, ...]:
    """The same cuts of ops; the rest as lowering has it: the cheapest conversions, the latest sums."""
    chosen = list(choice)
    allowed: dict[int, list[int]] = {}
    for k, unary in enumerate(graph.unary):
        variable = intra.variables[int(np.flatnonzero(intra.same == k)[0])]
        if not variable.op:
            allowed[k] = list(range(len(unary)))
        elif any(o.deferred for o in intra.nodes[variable.like].options):
            alike = [(o.cuts, o.rest, o.style) for o in intra.nodes[variable.like].options]
            allowed[k] = [i for i, x in enumerate(alike) if x == alike[chosen[k]]]
    unary = []
    for k, own in enumerate(graph.unary):
        free = np.full(len(own), inf)
        options = allowed.get(k, [chosen[k]])
        free[options] = own[options]
        unary.append(free)
    found = certified(CostGraph(tuple(unary), graph.edges, graph.tables), seconds=60)
    assert found.choice and found.gap == 0.0
    return found.choice


CASES = [
    pytest.param(
        name, mesh, marks=[pytest.mark.slow] if mesh == "three axes" and name not in ("gpt2", "bert-large") else []
    )
    for name in MODELS
    for mesh in MESHES
]


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_a_choice_costs_what_its_program_sums_to(name: str, mesh: str) -> None:
    intra = built(name, mesh)
    rng = np.random.default_rng(sum(map(ord, name + mesh)))
    draws = [choice for choice in (drawn(intra.uniform, rng) for _ in range(12)) if choice]
    assert len(draws) >= 4
    for draw in draws:
        choice = exact(intra.uniform, intra, draw)
        price = intra.uniform.cost(choice)
        assert price < inf
        plan = intra.plan(intra.spread(choice))
        validate(intra.problem, plan)
        assert intra.graph.cost(intra.spread(choice)) == pytest.approx(price, rel=1e-9)
        assert sum(additive(intra.problem, plan)) == pytest.approx(price, rel=1e-9)
