"""Every cell of the matrix computes what one device computes, with the collectives that its program promises."""

from __future__ import annotations

import random

import pytest

from execute.cells import Cell, covering
from execute.conftest import Pools, uneven_model, zoo_model
from execute.layouts import Layout, plan_of
from execute.matrix import problems
from execute.random_plans import random_plan

QUICK = 8
QUICK_FAMILIES = ("gpt2", "llama-3.1-8b", "bert-large", "mixtral-8x7b", "gnmt-8")
SEED = 2


def _cases() -> list[object]:
    """All cells in the long run, a few drawn ones in the short run; cells of equally many ranks follow each other."""
    cells = covering()
    quick = [c for c in cells if c.ranks in (2, 4) and c.family in QUICK_FAMILIES]
    drawn = set(random.Random(SEED).sample(quick, QUICK))
    return [
        pytest.param(c, id=str(c), marks=() if c in drawn else pytest.mark.slow)
        for c in sorted(cells, key=lambda c: c.ranks)
    ]


@pytest.mark.parametrize("cell", _cases())
def test_a_cell_computes_what_one_process_computes(cell: Cell, pools: Pools) -> None:
    """Loss, every gradient, updated weights, collectives; after three steps weights (momentum) or losses (AdamW)."""
    assert problems(cell, pools)[:5] == []


@pytest.mark.parametrize("name", ("llama-3.1-8b", "gpt2"))
def test_parts_that_do_not_divide_evenly_give_the_loss_and_every_gradient(name: str, pools: Pools) -> None:
    """3 samples, 7 tokens, 3 heads, 47 and 33 features over 2 × 2, no padding in any op."""
    model = uneven_model(name)
    for seed in range(3):
        plan = random_plan(model.graph, (2, 2), ("x", "y"), len(model.batch), seed, uneven=True)
        result = model.check(plan, pools(4))
        assert result.equal, (seed, result.problems[:5])


def test_tensor_parallelism_needs_the_collectives_of_megatron(pools: Pools) -> None:
    """Per micro-batch and block two all-reduces forward and two backward; one for the embedding, three for the loss' classes."""
    model = zoo_model("llama-3.1-8b")
    result = model.check(plan_of(model.graph, Layout(tp=2), 2), pools(2))
    blocks, micro_batches = 2, 2
    head_backward = 1
    assert result.collectives["all_reduce"] == (micro_batches * (blocks * 4 + 1 + 3 + head_backward),) * 2
