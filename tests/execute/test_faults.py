"""A program with one faulty instruction never passes, and a right one always does."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from torch import Tensor

from execute.cells import Cell, covering
from execute.conftest import Model
from execute.faults import fault
from execute.matrix import Small, key_of, plan_of_cell, small
from execute.random_plans import wild_plan
from meshwright.errors import ExecutionError
from meshwright.execute import why_not
from meshwright.execute.ops.params import Values
from meshwright.execute.proof.verification import reference
from meshwright.lower.program import Program
from meshwright.plan.model import Plan

FAULTS = 200
EACH = 10
"""Faults of one test."""
QUICK = 4
Verdict = Callable[..., object]


def _of_matrix(seed: int, quick: bool = False) -> tuple[Small, Plan, int]:
    """A cell of the matrix with more than one rank."""
    cells: list[Cell] = [c for c in covering() if c.ranks in ((2, 4) if quick else (2, 4, 8))]
    cells = [c for c in cells if not quick or c.family in ("gpt2", "llama-3.1-8b")]
    cell = random.Random(f"matrix {seed}").choice(cells)
    return small(*key_of(cell)), plan_of_cell(cell), cell.ranks


def _of_random(seed: int, family: str = "llama-3.1-8b") -> tuple[Small, Plan, int]:
    own = small(family, 4, 2)
    return own, wild_plan(own.model.graph, 4, 2, seed), 4


def _survives(own: Small, plan: Plan, ranks: int, faulty: Program, verdict: Verdict) -> bool:
    """Whether a faulty program passes that is wrong on some weights and inputs; one that is right on all is no fault."""
    for k, batch in enumerate(own.batches):
        model = own.model if k == 0 else _on(own.model, Values(k, "uneven"), batch)
        result = verdict(model, plan, ranks, faulty)
        if isinstance(result, ExecutionError) or not result.equal:  # type: ignore[attr-defined]
            return k > 0
    return False


def _on(model: Model, values: Values, batch: tuple[Mapping[str, Tensor], ...]) -> Model:
    return replace(model, values=values, batch=batch, truth=reference(model.graph, model.module, batch, values))


def _hunt(seeds: range, case: Callable[[int], tuple[Small, Plan, int]], verdict: Verdict) -> list[str]:
    """Faults that were not found."""
    found = []
    for seed in seeds:
        own, plan, ranks = case(seed)
        drawn = fault(own.model.program(plan), seed) if why_not(plan, own.model.graph) is None else None
        if drawn is not None and _survives(own, plan, ranks, drawn[1], verdict):
            found.append(f"{seed}: {drawn[0]}")
    return found


def test_no_fault_of_a_few_survives(verdict: Verdict) -> None:
    assert _hunt(range(QUICK), lambda seed: _of_matrix(seed, quick=True), verdict) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, FAULTS, EACH))
def test_no_fault_in_the_matrix_survives(first: int, verdict: Verdict) -> None:
    """Of 200 none; the least that is asked for is 99 of 100."""
    assert _hunt(range(first, first + EACH), _of_matrix, verdict) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, FAULTS // 2, EACH))
def test_no_fault_in_random_plans_survives(first: int, verdict: Verdict) -> None:
    assert _hunt(range(first, first + EACH), _of_random, verdict) == []
