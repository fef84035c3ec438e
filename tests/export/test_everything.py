"""Plans of every family on six kinds of machine for every target: an answer with a sentence, never a traceback; what is written
reads back as what the target runs."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise

import pytest

from export.answered import answers, check
from meshwright.cluster import resolve
from meshwright.cost import Analytic
from meshwright.export.registry import load, names
from meshwright.export.setup import Setup, setup_of
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve as model_of
from meshwright.graph.zoo import Shrink, entries
from meshwright.layouts.expert import expert_of
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._grid_space import Space

FAMILIES = (
    "gpt2", "llama-3.1-8b", "bert-large", "vit-l16", "mixtral-8x7b", "qwen3-235b", "deepseek-v3", "t5-large", "resnet-50",
    "dlrm", "gnmt-8", "unet",
)  # fmt: skip
CLUSTERS = ("v100x16", "a100x16", "h100x16", "b200x16", "mi300xx16", "h200x16")
WISHES = {
    "recompute": ["none", "light", "full", "attention", "first:1"], "replicate": [1, 2], "reshard": [True, False], "context": ["ulysses", "gather"],
}  # fmt: skip
DRAWS = 12


@cache
def graph_of(name: str) -> Graph:
    shrink = Shrink(4, width=64, heads=8, kv_heads=4, ffn=128, vocab=256, seq=32, experts=8, image=32, dropout=0.0)
    return model_of(name).graph(batch=2, seq=32, dtype="bfloat16", shrink=shrink, cache=False)


def drawn(name: str) -> list[Setup]:
    """Setups of plans drawn by seed, each on one of the clusters, cut into stages at random."""
    graph, rng, found = graph_of(name), random.Random(name), []
    expert = expert_of(graph)
    for cluster in CLUSTERS:
        problem = Problem(graph, resolve(cluster), Analytic(precision="bfloat16"), Recipe(samples=64))
        space = Space(problem, expert, {}, WISHES)
        points = [p for p in space.points() if p.pp * p.chunks <= space.units.blocks]
        kinds = {(p.pp > 1, p.tp > 1, p.cp > 1, p.ep > 1): p for p in rng.sample(points, len(points))}
        some = [*kinds.values(), *rng.sample(points, min(len(points), DRAWS))][: DRAWS // 2 + len(kinds)]
        for point in rng.sample(some, min(len(some), DRAWS // 3)):
            stages, units = point.pp * point.chunks, len(space.units)
            at = [0, *sorted(rng.sample(range(1, units), stages - 1)), units]
            found.append(setup_of(problem, space.plan(point, [b - a for a, b in pairwise(at)]), name))
    return found


def test_the_names_are_of_the_zoo() -> None:
    assert set(FAMILIES) <= {e.name for e in entries()}


@pytest.mark.parametrize("target", names())
@pytest.mark.parametrize("family", FAMILIES)
def test_every_plan_has_an_answer_that_reads_back(family: str, target: str) -> None:
    exporter = load(target)
    for setup in drawn(family):
        for found in answers(exporter, setup):
            check(found, price=lambda setup: 0.0)
