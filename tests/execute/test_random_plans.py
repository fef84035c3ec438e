"""Plans in which everything is drawn: what `why_not` passes runs, and gives the loss and every gradient of one process."""

from __future__ import annotations

import pytest

from execute.cells import FAMILIES
from execute.conftest import Pools
from execute.matrix import small
from execute.random_plans import wild_plan
from meshwright.execute import why_not

PLANS = 300
EACH = 10
"""Plans of one test."""
QUICK = 6
RANKS = (2, 4, 8)
LEAST = 0.8
"""Share of the plans that must run."""


def _drawn(seed: int) -> tuple[str, int, int]:
    """(family, ranks, micro-batches): every family with every number of ranks, in turn."""
    family = FAMILIES[seed % len(FAMILIES)].name
    return family, RANKS[seed // len(FAMILIES) % len(RANKS)], 4 if seed % 2 else 2


def _run(seeds: range, pools: Pools) -> int:
    """How many ran; each that ran was right, and none that was passed was refused or failed on the ranks."""
    ran = 0
    for seed in seeds:
        family, ranks, micro_batches = _drawn(seed)
        model = small(family, 4, micro_batches).model
        plan = wild_plan(model.graph, ranks, micro_batches, seed)
        if why_not(plan, model.graph) is None:
            result = model.check(plan, pools(ranks))
            assert result.equal, (seed, family, result.problems[:5])
            ran += 1
    return ran


def test_a_few_random_plans_run_right(pools: Pools) -> None:
    assert _run(range(QUICK), pools) >= LEAST * QUICK


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, PLANS, EACH))
def test_random_plans_run_right(first: int, pools: Pools) -> None:
    assert _run(range(first, first + EACH), pools) >= LEAST * EACH
