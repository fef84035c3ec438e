"""Bytes a logit at the worst instant, of a model that is nearly all logits: by what the software's cross entropy holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.cluster import presets
from meshwright.cost import Analytic
from meshwright.cost.base import CostModel, OpMemory
from meshwright.cost.constants import generation
from meshwright.graph.ir import Graph, Ints, Op
from meshwright.layouts.expert import Expert
from meshwright.layouts.point import Point
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._grid_space import Space
from meshwright.simulate import Simulation, simulate
from meshwright.validation.models import Dense, Graphs

WORDS, POSITIONS, SAMPLES = 65536, 512, 8


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graphs().of(Dense("llama", 3, 64, 2, 2, 128, WORDS, POSITIONS))


def _cost(loss: str) -> Analytic:
    return Analytic(software=replace(generation("overlapped"), loss=loss))  # type: ignore[arg-type]


def _step(graph: Graph, cost: CostModel, grad: str = "float32", fused: bool = True) -> Simulation:
    problem = Problem(graph, presets()["h100"].cluster(1), cost, Recipe(SAMPLES, grad_dtype=grad, fused=fused))
    space = Space(problem, Expert(graph), {}, {})
    return simulate(problem, space.plan(Point(1, 1, 1, False, 1, SAMPLES, 0, "none", "1f1b"), (len(space.units),)))


LOGITS = SAMPLES * POSITIONS * WORDS
FRESH = 2.0 * 64 * WORDS
"""The gradient of the head's weight, as wide as products are."""


def _of_loss(simulation: Simulation, cost: CostModel) -> float:
    """Bytes a logit."""
    peak = simulation.peak_by[0]
    held = cost.workspace(presets()["h100"].device)
    return (peak["loss"] + peak["buffers"] - FRESH - held) / LOGITS


@pytest.mark.parametrize(("loss", "each"), [("plain", 12.0), ("in-place", 6.0), ("compiled", 4.0), ("fused", 2.0)])
def test_bytes_a_logit(graph: Graph, loss: str, each: float) -> None:
    assert _of_loss(_step(graph, _cost(loss)), _cost(loss)) == pytest.approx(each, abs=0.15)


class _KnowsNoLoss(Analytic):
    def loss(self, op: Op, sizes: Ints) -> OpMemory | None:
        return None


def test_where_the_cost_model_knows_no_loss_it_holds_what_torchs_does(graph: Graph) -> None:
    plain, silent = _cost("plain"), _KnowsNoLoss(software=_cost("fused").software)
    assert _of_loss(_step(graph, silent), silent) == pytest.approx(_of_loss(_step(graph, plain), plain), abs=0.01)


def test_a_loss_that_runs_op_by_op_holds_what_torchs_does(graph: Graph) -> None:
    peaks = {loss: _step(graph, _cost(loss), fused=False).peak[0] for loss in ("plain", "fused")}
    assert peaks["plain"] == peaks["fused"]


def test_the_fresh_gradient_of_a_weight_is_as_wide_as_products_are(graph: Graph) -> None:
    wide, narrow = (_step(graph, _cost("fused"), grad).peak_by[0]["buffers"] for grad in ("float32", "bfloat16"))
    assert wide == narrow
    held = _cost("fused").workspace(presets()["h100"].device)
    assert narrow - held >= FRESH
