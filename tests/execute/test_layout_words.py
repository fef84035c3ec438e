"""Words of layouts that the grid does not try unasked run, too: hybrid sharding, kept gathers, some blocks or parts run again."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from execute.conftest import Model, Pools, zoo_model
from meshwright.execute import why_not
from meshwright.layouts.build import plan_of
from meshwright.layouts.expert import expert_of
from meshwright.layouts.point import Point
from meshwright.layouts.units import Units

POINTS = {
    "hybrid sharding, weights": Point(4, 1, 1, False, 1, 1, 3, "none", "1f1b", replicate=2),
    "hybrid sharding, gradients": Point(4, 1, 1, False, 1, 1, 2, "none", "1f1b", replicate=2),
    "hybrid sharding × context": Point(2, 1, 1, False, 1, 1, 3, "none", "1f1b", cp=2, context="gather", replicate=2),
    "weights kept to the backward": Point(4, 1, 1, False, 1, 1, 3, "none", "1f1b", reshard=False),
    "weights kept × tensor": Point(2, 2, 1, True, 1, 1, 3, "full", "1f1b", reshard=False),
    "first block": Point(2, 1, 2, False, 1, 1, 0, "first:1", "1f1b"),
    "attention": Point(2, 2, 1, True, 1, 1, 1, "attention", "1f1b"),
    "norms and attention": Point(2, 2, 1, False, 1, 1, 0, "core_attn+layernorm+", "1f1b"),
}


@cache
def made(family: str) -> Model:
    return zoo_model(family, micro_batches=2)


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("family", ["llama-3.1-8b", "gpt2"])
def test_trains_as_one_process_does(family: str, name: str, pools: Pools) -> None:
    model = made(family)
    point = replace(POINTS[name], micro_batch=model.graph.samples // POINTS[name].replicas)
    expert = expert_of(model.graph)
    units = Units(expert.atoms.folded)
    stages = point.pp * point.chunks
    parts = [len(units) // stages + (s < len(units) % stages) for s in range(stages)]
    plan = plan_of(expert, units, point, parts, 2 * model.graph.samples)
    assert why_not(plan, model.graph) is None
    result = model.check(plan, pools(4))
    assert result.equal, result.problems[:5]
