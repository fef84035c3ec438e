"""A program with one faulty instruction never passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from execute.conftest import Pools, zoo_model
from execute.faults import fault
from execute.layouts import Layout, plan_of
from meshwright.errors import ExecutionError

FAULTS = 100
QUICK = 10
"""Of these, in the short run."""
PLANS: tuple[tuple[str, Layout], ...] = (
    ("llama-3.1-8b", Layout(dp=2, tp=2, sequence=True, zero=3, recompute="light")),
    ("gpt2", Layout(tp=2, pp=2)),
    ("gpt2", Layout(dp=2, tp=2, zero=1)),
    ("llama-3.1-8b", Layout(tp=2, pp=2, sequence=True, recompute="full")),
    ("llama-3.1-8b", Layout(dp=2, pp=2, zero=2)),
)
"""Every collective of these is needed. (Random plans gather what they slice away again: such a gather is no fault.)"""


@pytest.mark.parametrize("number", range(len(PLANS)))
@pytest.mark.parametrize("seeds", (range(QUICK), pytest.param(range(QUICK, FAULTS), marks=pytest.mark.slow)), ids=str)
def test_no_fault_survives(number: int, seeds: range, pools: Pools, verdict: Callable[..., object]) -> None:
    name, layout = PLANS[number]
    model = zoo_model(name)
    plan = plan_of(model.graph, layout, len(model.batch))
    program = model.program(plan)
    assert model.check(plan, pools(4)).equal
    survivors = []
    for seed in seeds[number :: len(PLANS)]:
        what, faulty = fault(program, seed)
        result = verdict(model, plan, 4, faulty)
        if not isinstance(result, ExecutionError) and result.equal:
            survivors.append((seed, what))
    assert survivors == []
