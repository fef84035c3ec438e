"""Low-rank adapters: what stands still is cut and computed, but has no gradient, no optimizer and no weight gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.cluster import presets
from meshwright.cost import Analytic
from meshwright.graph.serial import from_json, to_json
from meshwright.graph.validate import validate_graph
from meshwright.layouts.expert import Expert
from meshwright.layouts.point import Point
from meshwright.lower import lower
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._grid_space import Space
from meshwright.simulate import simulate
from meshwright.validation.models import Adapted, Dense, Graphs
from meshwright.validation.shapes import ATTENTION

BASE = Dense("llama", 4, 2048, 16, 16, 5504, 8192, 1024)
MICRO = 16
"""Samples: enough that products and not the host set the pace."""
MODEL = Adapted(BASE, 16, ATTENTION)
GRAPH = Graphs().of(MODEL)


def _lowered(tp: int, zero: int = 0):  # type: ignore[no-untyped-def]
    recipe = Recipe(samples=8 * MICRO)
    problem = Problem(GRAPH, presets()["h100"].cluster(8), Analytic(), recipe)
    space = Space(problem, Expert(GRAPH), {}, {})
    plan = space.plan(Point(8 // tp, tp, 1, tp > 1, 1, MICRO, zero, "none", "1f1b"), (len(space.units),))
    program = lower(GRAPH, plan, recipe)
    return problem, plan, program


def test_all_but_the_adapters_is_frozen_and_a_file_keeps_that() -> None:
    learning = {t.name for t in GRAPH.params() if not t.frozen}
    assert len(learning) == 4 * 4 * 2  # two factors beside four products of four blocks
    assert all(name.endswith((".inner.weight", ".outer.weight")) for name in learning)
    validate_graph(GRAPH)
    assert from_json(to_json(GRAPH)).tensor == GRAPH.tensor


@pytest.mark.parametrize(("tp", "zero"), [(1, 0), (1, 1), (2, 0), (4, 1)])
def test_only_adapters_have_gradients_and_optimizer_state(tp: int, zero: int) -> None:
    _, _, program = _lowered(tp, zero)
    (stage,) = program.stages
    learning = {t.name for t in GRAPH.params() if not t.frozen}
    for p in stage.params:
        assert (p.elements[1] > 0, p.elements[2] > 0) == ((p.name in learning),) * 2
    assert {i.on for i in (*stage.grads, *stage.update)} <= learning
    assert sum(p.count * p.elements[0] for p in stage.params) > 5 * sum(p.count * p.elements[1] for p in stage.params)


def test_a_frozen_product_has_one_product_in_its_backward() -> None:
    _, _, program = _lowered(2)
    wanted = {"input_grad": 0, "weights": 0}
    for segment in program.stages[0].segments:
        for i in segment.backward:
            op = GRAPH.ops[GRAPH.position[i.on]] if i.on in GRAPH.position else None
            if i.kind == "compute" and op is not None and op.kind == "linear":
                weight = GRAPH.tensor[op.inputs[1]]
                grads = any(v.partition("@")[0].endswith(weight.name) for v in i.outputs)
                assert grads == (not weight.frozen), op.name
                wanted["weights" if grads else "input_grad"] += 1
    assert all(wanted.values())


def test_narrow_factors_are_gathered_rather_than_wide_results_summed() -> None:
    """tp cuts both factors of an adapter on what they make; no sum over tp of what the second makes in q, k, v."""
    _, plan, _ = _lowered(4)
    shardings = plan.stages[0].shardings
    for name, s in shardings.items():
        if ".q_proj.outer" in name:
            op = GRAPH.ops[GRAPH.position[name]]
            cut = [f for f, cuts in s.cuts.items() if any(c.axis == "tp" for c in cuts)]
            assert cut
            assert not op.rule.summed() & set(cut)


def test_a_step_takes_little_over_two_thirds_and_holds_hardly_an_optimizer() -> None:
    problem, plan, program = _lowered(1)
    adapted = simulate(problem, plan, program=program)
    whole = Graphs().of(BASE)
    other = replace(problem, graph=whole)
    space = Space(other, Expert(whole), {}, {})
    full = simulate(other, space.plan(Point(8, 1, 1, False, 1, MICRO, 0, "none", "1f1b"), (len(space.units),)))
    assert adapted.peak_by[0]["optimizer"] < 0.1 * full.peak_by[0]["optimizer"]
    assert adapted.peak_by[0]["weights"] == pytest.approx(full.peak_by[0]["weights"], rel=0.1)
    fixed = problem.cost.step_overhead(8)[1]
    assert 0.6 < (adapted.step_seconds - fixed) / (full.step_seconds - fixed) < 0.85
    assert MODEL.flops / BASE.flops == pytest.approx(2 / 3, abs=0.05)
