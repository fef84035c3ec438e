"""A program with one faulty instruction never passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from execute.conftest import Pools, zoo_model
from execute.faults import fault
from execute.layouts import Layout, plan_of
from execute.random_plans import random_plan

from meshwright.errors import ExecutionError

FAULTS = 100
PLANS: tuple[tuple[str, Layout | int], ...] = (
    ("llama-3.1-8b", Layout(dp=2, tp=2, sequence=True, zero=3, recompute="light")),
    ("gpt2", Layout(tp=2, pp=2)),
    ("gpt2", Layout(dp=2, tp=2, zero=1)),
    ("llama-3.1-8b", 3),
    ("gpt2", 5),
)
"""Models with a layout, or with a random plan of this seed."""


@pytest.mark.parametrize("number", range(len(PLANS)))
def test_no_fault_survives(number: int, pools: Pools, verdict: Callable[..., object]) -> None:
    name, which = PLANS[number]
    model = zoo_model(name)
    if isinstance(which, Layout):
        plan = plan_of(model.graph, which, len(model.batch))
    else:
        plan = random_plan(model.graph, (2, 2), ("x", "y"), len(model.batch), which)
    program = model.program(plan)
    assert model.check(plan, pools(4)).equal
    survivors = []
    for seed in range(number, FAULTS, len(PLANS)):
        what, faulty = fault(program, seed)
        result = verdict(model, plan, 4, faulty)
        if not isinstance(result, ExecutionError) and result.equal:
            survivors.append((seed, what))
    assert survivors == []
