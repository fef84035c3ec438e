"""Context parallelism, with keys and values gathered or by heads, computes what one device computes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from execute.conftest import Pools, zoo_model
from execute.layouts import Layout, plan_of
from meshwright.layouts.style import CONTEXTS
from meshwright.lower import lower
from meshwright.plan.problem import Recipe

LAYOUTS = (
    Layout(cp=2),
    Layout(cp=4),
    Layout(cp=2, tp=2),
    Layout(cp=2, tp=2, sequence=True, zero=1),
    Layout(dp=2, cp=2, zero=3, recompute="full"),
    Layout(dp=2, cp=2, zero=2),
    Layout(cp=2, pp=2, recompute="light"),
    Layout(cp=4, recompute="full"),
)


def _cases() -> list[object]:
    """Gathered keys and values everywhere; heads, which other tests have too, in the long run."""
    found = []
    for m, name in enumerate(("llama-3.1-8b", "gpt2", "bert-large")):
        for k, layout in enumerate(LAYOUTS):
            for context in CONTEXTS:
                if context == "ulysses" and layout.cp * layout.tp > 2:
                    continue  # two key-value heads
                quick = context == "gather" and (k % 4 == m or (m == 0 and k in (1, 3)))
                one = replace(layout, context=context)
                found.append(pytest.param(name, one, id=f"{name} {one}", marks=() if quick else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("name", "layout"), _cases())
def test_cut_positions_give_the_loss_and_every_gradient_of_one_process(name: str, layout: Layout, pools: Pools) -> None:
    model = zoo_model(name)
    result = model.check(plan_of(model.graph, layout, len(model.batch)), pools(layout.ranks))
    assert result.equal, result.problems[:5]
    assert result.gradients == len(list(model.graph.params()))


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt2", "bert-large"])
def test_a_block_gathers_keys_and_values_and_scatters_their_gradients_and_nothing_else(name: str) -> None:
    """Bytes a sample: [key-value heads, all positions, width] in float32; gathered again for the backward, not kept."""
    model = zoo_model(name)
    program = lower(model.graph, plan_of(model.graph, Layout(cp=4, context="gather"), 2), Recipe(8))
    block = next(s for s in program.stages[0].segments if s.count == 2)
    heads = 2 if name.startswith("llama") else 4
    whole = heads * 8 * 8 * 4
    found = [
        (i.collective, i.axes, i.nbytes) for i in (*block.forward, *block.rerun, *block.backward) if i.communicates
    ]
    assert found == [("all_gather", ("cp",), whole)] * 4 + [("reduce_scatter", ("cp",), whole)] * 2
