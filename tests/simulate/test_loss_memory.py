"""Bytes a logit at the worst instant, of a model that is nearly all logits: by what the software's cross entropy holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.cluster import presets
from meshwright.cost import Analytic
from meshwright.cost.constants import family, generation
from meshwright.graph.ir import Graph
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._expert_layout import Expert
from meshwright.planners._grid_space import Point, Space
from meshwright.simulate import Simulation, simulate
from meshwright.validation.models import Dense, Graphs

WORDS, POSITIONS, SAMPLES = 65536, 512, 8


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graphs().of(Dense("llama", 3, 64, 2, 2, 128, WORDS, POSITIONS))


def _step(graph: Graph, loss: str, grad: str = "float32") -> Simulation:
    cost = Analytic(software=replace(generation("overlapped"), loss=loss))  # type: ignore[arg-type]
    problem = Problem(graph, presets()["h100"].cluster(1), cost, Recipe(SAMPLES, grad_dtype=grad))
    space = Space(problem, Expert(graph), {}, {})
    return simulate(problem, space.plan(Point(1, 1, 1, False, 1, SAMPLES, 0, "none", "1f1b"), (len(space.units),)))


@pytest.mark.parametrize(("loss", "each"), [("plain", 12.0), ("in-place", 6.0), ("fused", 2.0)])
def test_bytes_a_logit(graph: Graph, loss: str, each: float) -> None:
    peak = _step(graph, loss).peak_by[0]
    logits = SAMPLES * POSITIONS * WORDS
    fresh = 4.0 * 64 * WORDS  # the gradient of the head's weight
    found = peak["loss"] + peak["buffers"] - fresh - family("h100").workspace
    assert found / logits == pytest.approx(each, abs=0.15)


def test_the_fresh_gradient_of_the_head_has_the_dtype_of_gradients(graph: Graph) -> None:
    wide, narrow = (_step(graph, "fused", grad).peak_by[0]["buffers"] for grad in ("float32", "bfloat16"))
    assert wide - narrow == pytest.approx(2.0 * 64 * WORDS)
