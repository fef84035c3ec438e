"""Every family of the zoo with the layout that its structure makes hardest, and with random plans (`test_matrix` has all
pairs of layouts, schedules and families); the full-size plan of each scales down to a plan of the same structure."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import pytest

from execute.conftest import Model, Pools, scaled_model
from execute.layouts import Layout, plan_of
from execute.random_plans import random_plan
from meshwright.execute.proof.scale import scaled
from meshwright.execute.proof.verification import VerifyResult
from meshwright.execute.ranks.pool import Pool
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.lower import lower, unrolled
from meshwright.plan.model import Plan
from meshwright.plan.problem import Recipe

slow = pytest.mark.slow
FAMILIES = {
    "gpt2": Layout(tp=2, sequence=True, recompute="light"),
    "llama-3.1-8b": Layout(tp=2, pp=2),
    "bert-large": Layout(dp=2, zero=3),
    "vit-l16": Layout(pp=2, schedule="interleaved", chunks=2),
    "mixtral-8x7b": Layout(ep=2, zero=1),
    "resnet-50": Layout(dp=2),
    "t5-large": Layout(pp=2, tp=2),
    "qwen3-235b": Layout(ep=2, recompute="full"),
    "deepseek-v3": Layout(pp=2, ep=2),
    "dlrm": Layout(tp=2),
    "gnmt-8": Layout(pp=2, dp=2, zero=2),
    "unet": Layout(pp=2, schedule="gpipe"),
    "wrn-50-2": Layout(dp=2, zero=1),
    "wrn-101-8": Layout(pp=2, recompute="light"),
}
"""Each with the layout that its structure makes hardest: encoders read by later stages, skips, statistics over samples."""
BIG = ("t5-large", "qwen3-235b", "deepseek-v3")
"""Many ops even when scaled down."""
SMALL = ("dlrm", "unet", "wrn-50-2")
"""Captured at full size within a second."""
SCALED = (
    Layout(dp=2, tp=2, sequence=True, zero=1),
    Layout(dp=2, pp=4, zero=2, recompute="full"),
    Layout(pp=2, schedule="interleaved", chunks=2),
)


@cache
def family(name: str, seed: int = 0) -> Model:
    """Pixels enough for the statistics of the last maps; four experts; positions and features that cut in two."""
    shrink = Shrink(
        blocks=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=32, seq=8, experts=4, image=64, dropout=0.0
    )  # fmt: skip
    return scaled_model(name, shrink, 4, 2, seed)


@cache
def uneven(name: str, seed: int = 0) -> Model:
    """Three samples and heads, five experts, 47 inner features, 33 words, 13 positions: nothing divides by two."""
    shrink = Shrink(
        blocks=1, width=24, heads=3, kv_heads=3, ffn=47, vocab=33, seq=13, experts=5, image=48, dropout=0.0
    )  # fmt: skip
    return scaled_model(name, shrink, 3, 2, seed)


def agrees(model: Callable[[int], Model], plan: Callable[[Graph], Plan], pool: Pool) -> VerifyResult:
    """With some values: the larger of two equal pixels, or a rectifier at zero, may fall either way when sums are rounded
    in another order, and then every gradient before it differs. A fault differs with any values."""
    result = model(0).check(plan(model(0).graph), pool)
    return result if result.equal else model(1).check(plan(model(1).graph), pool)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, id=f"{name} {layout}", marks=(slow,) if name in BIG else ())
        for name, layout in FAMILIES.items()
    ],
)
def test_every_family_runs_and_gives_the_loss_and_every_gradient(name: str, layout: Layout, pools: Pools) -> None:
    result = agrees(partial(family, name), lambda graph: plan_of(graph, layout, 2), pools(layout.ranks))
    assert result.equal, result.problems[:5]
    assert result.gradients == len(list(family(name).graph.params()))


@slow
@pytest.mark.parametrize("name", FAMILIES)
def test_random_plans_of_every_family_give_the_loss_and_every_gradient(name: str, pools: Pools) -> None:
    for seed in range(10):

        def any_plan(graph: Graph, seed: int = seed) -> Plan:
            return random_plan(graph, (2, 2), ("x", "y"), 2, seed)

        result = agrees(partial(family, name), any_plan, pools(4))
        assert result.equal, (seed, result.problems[:5])


@slow
@pytest.mark.parametrize("name", FAMILIES)
def test_parts_that_do_not_divide_evenly_run_in_every_family(name: str, pools: Pools) -> None:
    for seed in range(5):

        def odd(graph: Graph, seed: int = seed) -> Plan:
            return random_plan(graph, (2, 2), ("x", "y"), 2, seed, uneven=True)

        result = agrees(partial(uneven, name), odd, pools(4))
        assert result.equal, (seed, result.problems[:5])


def test_a_rank_whose_part_is_empty_carries_out_every_dual_too(pools: Pools) -> None:
    """One rank has no sample of the decoder's attention; the gradient of its mask moves between ranks all the same."""
    model = uneven("t5-large")
    result = model.check(random_plan(model.graph, (2, 2), ("x", "y"), 2, 0, uneven=True), pools(4))
    assert result.equal, result.problems[:5]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SMALL else (slow,)) for n in FAMILIES])
def test_plans_of_full_size_scale_down_with_nothing_dropped(name: str) -> None:
    source = resolve(name)
    graph = source.graph(8, 0, "bfloat16")
    for layout in SCALED:
        small = scaled(plan_of(graph, layout, 4), graph, source, source.default_seq)
        assert not [w for w in small.not_verified if not w.startswith(("arithmetic", "dropout"))]
        assert small.ranks <= 8
        assert len(small.graph.ops) < 1200
        unrolled(lower(small.graph, small.plan, Recipe(small.plan.samples, compute_dtype="float32")), small.graph)
