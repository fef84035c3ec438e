"""Cuts with weights: parts that are unequal on purpose compute what one process computes."""

from __future__ import annotations

from math import prod

import pytest

from execute.cells import FAMILIES
from execute.conftest import Pools, uneven_model, zoo_model
from execute.matrix import small
from execute.random_plans import weighted_plan
from meshwright.execute import refusals, why_not

SHAPES = ((2,), (3,), (2, 2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b"])
def test_random_weights_compute_what_one_process_computes(
    name: str, shape: tuple[int, ...], seed: int, pools: Pools
) -> None:
    model = uneven_model(name) if seed % 2 else zoo_model(name, blocks=1)
    plan = weighted_plan(model.graph, shape, 2, seed)
    cuts = [c for own in plan.stages[0].shardings.values() for on in own.cuts.values() for c in on]
    assert any(c.weights for c in cuts)
    why = {r.reason for r in refusals(plan, model.graph)}
    if why:
        assert why <= {"layout"}  # a rest that no op has a border for, whatever its parts
        plan = weighted_plan(model.graph, shape, 2, seed, rest=False)
        assert not refusals(plan, model.graph)
    lowered = (i for code in model.program(plan).stages for s in code.segments for i in s.forward)
    assert any(c.weights for i in lowered for x in i.operands for dim in x.dims for _, on in dim for c in on)
    assert model.check(plan, pools(prod(shape))).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", [f.name for f in FAMILIES])
def test_random_weights_of_every_family(family: str, shape: tuple[int, ...], seed: int, pools: Pools) -> None:
    model = small(family, 4, 2).model
    plans = (weighted_plan(model.graph, shape, 2, seed, rest=rest) for rest in (True, False))
    plan = next((p for p in plans if why_not(p, model.graph) is None), None)
    if plan is None:
        assert {r.reason for r in refusals(weighted_plan(model.graph, shape, 2, seed, rest=False), model.graph)} <= {
            "statistic"
        }
        return
    assert model.check(plan, pools(prod(shape))).problems == ()
