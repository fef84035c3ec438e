"""Stages of unequal meshes: loss, every gradient and every updated weight are those of one process."""

from __future__ import annotations

import pytest

from execute.cells import FAMILIES
from execute.conftest import Pools, zoo_model
from execute.matrix import small
from execute.unequal import Shape, unequal_plan, wild_meshes_plan
from meshwright.execute import why_not
from meshwright.plan.model import Plan

ONE: Shape = (("dp", 1), ("tp", 1))
CASES: dict[str, tuple[Shape, ...]] = {
    "dp3 to dp1": ((("dp", 3), ("tp", 1)), ONE),
    "dp1 to dp3": (ONE, (("dp", 3), ("tp", 1))),
    "dp2 to dp4": ((("dp", 2), ("tp", 1)), (("dp", 4), ("tp", 1))),
    "tp2 to dp2": ((("tp", 2), ("dp", 1)), (("dp", 2), ("tp", 1))),
    "dp2 tp2 to tp2 dp2": ((("dp", 2), ("tp", 2)), (("tp", 2), ("dp", 2))),
    "1 to dp3 to 1": (ONE, (("dp", 3), ("tp", 1)), ONE),
    "tp2 to dp2 tp2": ((("dp", 1), ("tp", 2)), (("dp", 2), ("tp", 2))),
}


def _ranks(plan: Plan) -> int:
    return len({d for s in plan.stages for d in s.mesh.devices})


@pytest.mark.parametrize("model", ["gpt2", "llama-3.1-8b"])
@pytest.mark.parametrize("case", CASES)
def test_one_process_and_unequal_meshes_agree(case: str, model: str, pools: Pools) -> None:
    """gpt2 ties its embeddings over the first and the last stage; residual connections skip stages."""
    made = zoo_model(model)
    plan = unequal_plan(made.graph, CASES[case], 2)
    assert why_not(plan, made.graph) is None
    result = made.check(plan, pools(_ranks(plan)))
    assert result.equal, result.problems[:5]


PLANS, EACH, QUICK = 300, 10, 10


def _drawn(seeds: range, pools: Pools) -> int:
    """How many ran, each right."""
    ran = 0
    for seed in seeds:
        family = FAMILIES[seed % len(FAMILIES)].name
        ranks = (2, 3, 4, 5)[seed // len(FAMILIES) % 4]
        made = small(family, 4, 2).model
        plan = wild_meshes_plan(made.graph, ranks, 2, seed)
        if why_not(plan, made.graph) is None:
            result = made.check(plan, pools(_ranks(plan)))
            assert result.equal, (seed, family, result.problems[:5])
            ran += 1
    return ran


def test_a_few_random_plans_run_right(pools: Pools) -> None:
    assert _drawn(range(QUICK), pools) >= 0.8 * QUICK


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, PLANS, EACH))
def test_random_plans_run_right(first: int, pools: Pools) -> None:
    assert _drawn(range(first, first + EACH), pools) >= 0.8 * EACH
