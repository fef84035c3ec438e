"""A program with one faulty instruction never passes, and a right one always does."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from execute.cells import Cell, covering
from execute.conftest import Model, Pools
from execute.faults import fault, first_difference, read_by_ops
from execute.matrix import key_of, plan_of_cell, small
from execute.random_plans import wild_plan
from meshwright.errors import ExecutionError
from meshwright.execute import why_not
from meshwright.lower.program import Program
from meshwright.plan.model import Plan

FAULTS = 200
EACH = 10
"""Faults of one test."""
QUICK = 4
Verdict = Callable[..., object]
JOB = f"{read_by_ops.__module__}:{read_by_ops.__name__}"


def _of_matrix(seed: int, quick: bool = False) -> tuple[Model, Plan, int]:
    """A cell of the matrix with more than one rank."""
    cells: list[Cell] = [c for c in covering() if c.ranks in ((2, 4) if quick else (2, 4, 8))]
    cells = [c for c in cells if not quick or c.family in ("gpt2", "llama-3.1-8b")]
    cell = random.Random(f"matrix {seed}").choice(cells)
    return small(*key_of(cell)).model, plan_of_cell(cell), cell.ranks


def _of_random(seed: int, family: str = "llama-3.1-8b") -> tuple[Model, Plan, int]:
    model = small(family, 4, 2).model
    return model, wild_plan(model.graph, 4, 2, seed), 4


def _survives(model: Model, plan: Plan, ranks: int, faulty: Program, pools: Pools, verdict: Verdict) -> bool | None:
    """Whether a faulty program passes; None if it is not faulty: every op reads what it reads in the right one."""
    result = verdict(model, plan, ranks, faulty)
    if isinstance(result, ExecutionError) or not result.equal:  # type: ignore[attr-defined]
        return False
    right, other = (pools(ranks).run(JOB, model.task(plan, p)) for p in (None, faulty))
    return None if first_difference(right, other) == "" else True


def _hunt(seeds: range, case: Callable[[int], tuple[Model, Plan, int]], pools: Pools, verdict: Verdict) -> list[str]:
    """Faults that were not found; those that change nothing do not count."""
    found = []
    for seed in seeds:
        model, plan, ranks = case(seed)
        drawn = fault(model.program(plan), seed)
        if drawn is not None and why_not(plan, model.graph) is None:
            what, faulty = drawn
            if _survives(model, plan, ranks, faulty, pools, verdict):
                found.append(f"{seed}: {what}")
    return found


def test_no_fault_of_a_few_survives(pools: Pools, verdict: Verdict) -> None:
    assert _hunt(range(QUICK), lambda seed: _of_matrix(seed, quick=True), pools, verdict) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, FAULTS, EACH))
def test_no_fault_in_the_matrix_survives(first: int, pools: Pools, verdict: Verdict) -> None:
    """Of 200 none; the least that is asked for is 99 of 100."""
    assert _hunt(range(first, first + EACH), _of_matrix, pools, verdict) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, FAULTS // 2, EACH))
def test_no_fault_in_random_plans_survives(first: int, pools: Pools, verdict: Verdict) -> None:
    assert _hunt(range(first, first + EACH), _of_random, pools, verdict) == []
