"""Every usual layout computes what one device computes, with the collectives that its program promises."""

from __future__ import annotations

import pytest

from execute.conftest import Pools, uneven_model, zoo_model
from execute.layouts import Layout, plan_of
from execute.random_plans import random_plan

MODELS = ("llama-3.1-8b", "gpt2", "user-net")
slow = pytest.mark.slow
TWO = (
    Layout(),
    Layout(dp=2),
    Layout(tp=2),
    Layout(tp=2, sequence=True),
    Layout(pp=2, schedule="gpipe"),
    Layout(pp=2),
    Layout(dp=2, zero=1),
    Layout(dp=2, zero=2),
    Layout(dp=2, zero=3),
    Layout(dp=2, recompute="light"),
    Layout(tp=2, sequence=True, recompute="full"),
)
DEEP = (Layout(pp=2, schedule="interleaved", chunks=2), Layout(pp=2, schedule="zb-h1"), Layout(pp=4))
FOUR = (
    Layout(dp=2, pp=2),
    Layout(tp=2, pp=2),
    Layout(dp=2, tp=2, sequence=True, zero=3, recompute="light"),
    Layout(tp=2, pp=2, sequence=True, recompute="full"),
    Layout(dp=2, pp=2, zero=2, schedule="gpipe"),
    Layout(dp=4, zero=3, recompute="full"),
)


def _cases(layouts: tuple[Layout, ...]) -> list[object]:
    """All of one model; of the others every third, the rest only in the long run."""
    found = []
    for m, name in enumerate(MODELS):
        for k, layout in enumerate(layouts):
            marks = () if m == 0 or k % 3 == m else (slow,)
            found.append(pytest.param(name, layout, marks=marks, id=f"{name} {layout}"))
    return found


@pytest.mark.parametrize(("name", "layout"), _cases((*TWO, *FOUR)))
def test_a_layout_gives_the_loss_and_every_gradient_of_one_process(name: str, layout: Layout, pools: Pools) -> None:
    model = zoo_model(name)
    result = model.check(plan_of(model.graph, layout, len(model.batch)), pools(layout.ranks))
    assert result.equal, result.problems[:5]
    assert result.gradients == len(list(model.graph.params()))


LONG = (
    Layout(cp=2),
    Layout(cp=2, tp=2, sequence=True, zero=1),
    Layout(dp=2, cp=2, zero=3, recompute="full"),
    Layout(cp=2, pp=2, recompute="light"),
)
EXPERTS = (
    Layout(ep=2),
    Layout(ep=2, tp=2, sequence=True, zero=1, recompute="full"),
    Layout(dp=2, ep=2, zero=2, recompute="light"),
    Layout(cp=2, ep=2, zero=3),
    Layout(ep=2, pp=2, zero=1),
)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, id=f"{name} {layout}", marks=() if k % 2 == 0 else slow)
        for name, layouts in (("llama-3.1-8b", LONG), ("mixtral-8x7b", EXPERTS))
        for k, layout in enumerate(layouts)
    ],
)
def test_contexts_and_experts_give_the_loss_and_every_gradient(name: str, layout: Layout, pools: Pools) -> None:
    model = zoo_model(name)
    result = model.check(plan_of(model.graph, layout, len(model.batch)), pools(layout.ranks))
    assert result.equal, result.problems[:5]


@pytest.mark.parametrize(("name", "layout"), _cases(DEEP))
def test_deep_pipelines_give_the_loss_and_every_gradient_of_one_process(
    name: str, layout: Layout, pools: Pools
) -> None:
    model = zoo_model(name, blocks=4, micro_batches=4)
    result = model.check(plan_of(model.graph, layout, len(model.batch)), pools(layout.ranks))
    assert result.equal, result.problems[:5]


@pytest.mark.parametrize("name", MODELS[:2])
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


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("first", (0, *(pytest.param(n, marks=slow) for n in (4, 8, 12, 16))))
def test_random_plans_on_two_by_two_give_the_loss_and_every_gradient(name: str, first: int, pools: Pools) -> None:
    model = zoo_model(name)
    for seed in range(first, first + 4):
        plan = random_plan(model.graph, (2, 2), ("x", "y"), len(model.batch), seed)
        result = model.check(plan, pools(4))
        assert result.equal, (seed, result.problems[:5])
