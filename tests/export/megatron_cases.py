"""Layouts for the tests of what is written for Megatron-LM and Megatron-Bridge."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

from lower.conftest import captured
from meshwright.cluster import resolve
from meshwright.cost import Analytic
from meshwright.export.model import parts_of
from meshwright.export.reading import in_order
from meshwright.export.setup import Setup, setup_of
from meshwright.layouts.expert import expert_of
from meshwright.layouts.point import Point
from meshwright.layouts.recognise import Recognised
from meshwright.layouts.units import Units
from meshwright.plan.model import Schedule
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._grid_space import Space

LAYERS = 4
DENSE, EXPERTS = "llama-3.1-8b", "mixtral-8x7b"
WISHES: dict[str, list[Any]] = {
    "cp": [1, 2, 4], "context": ["gather", "ulysses"], "replicate": [1, 2], "reshard": [True, False],
    "recompute": ["none", "full", "attention", "first:1", "mlp+", "core_attn+layernorm+", "light"],
}  # fmt: skip


@cache
def problem(model: str, devices: int = 16, samples: int = 64) -> Problem:
    return Problem(captured(model), resolve(f"a100x{devices}"), Analytic(precision="bfloat16"), Recipe(samples=samples))


def setup(model: str = DENSE, counts: tuple[int, ...] = (), samples: int = 64, **words: Any) -> Setup:
    """A layout in words, whether or not it could be run; `counts` = layers of each stage."""
    base = Point(16, 1, 1, False, 1, 1, 0, "none", "1f1b")
    point = replace(base, **words)
    expert = expert_of(problem(model).graph)
    stages = point.pp * point.chunks
    if stages == 1:
        parts: tuple[int, ...] = (len(Units(expert.atoms.folded)),)
    else:
        parts = parts_of(expert, counts or tuple(LAYERS // stages + (s < LAYERS % stages) for s in range(stages)))
    m = samples // (point.replicas * point.micro_batch)
    schedule = Schedule(point.schedule, m, {"v": point.chunks} if point.chunks > 1 else {})
    own = problem(model)
    own = replace(own, recipe=replace(own.recipe, samples=samples))
    return Setup(own, Recognised(point, parts, schedule, in_order(point), samples), model)


def drawn(model: str, count: int, seed: int) -> Iterator[Setup]:
    """Layouts drawn by seed, cut into stages at random, as their plans are recognised."""
    own = problem(model)
    space = Space(own, expert_of(own.graph), {}, WISHES)
    rng = random.Random(seed)
    points = [p for p in space.points() if p.pp * p.chunks <= space.units.blocks]
    for point in rng.sample(points, min(count, len(points))):
        n, stages = len(space.units), point.pp * point.chunks
        at = [0, *sorted(rng.sample(range(1, n), stages - 1)), n]
        yield setup_of(own, space.plan(point, [b - a for a, b in pairwise(at)]), model)


CONDITIONS: dict[str, tuple[Setup, Setup, str]] = {
    "decoder": (setup(), setup("t5-large"), "this model has 2 stacks of layers"),
    "batch splits": (
        setup(), setup(samples=50), "a batch that splits over dp 16 × micro-batch 1: 50 does not; use 48 or 64",
    ),
    "heads": (setup(tp=8, dp=2), setup(tp=3, dp=4), "tp to divide the 8 heads: 3 does not; use 2"),
    "query groups": (setup(tp=8, dp=2), setup(tp=6, dp=2), "the 4 query groups, or they tp: 6 and 4 do neither; use 4"),
    "heads over context": (
        setup(cp=2, tp=2, dp=4), setup(cp=2, tp=4, dp=2), "the 1 head of a rank: 2 does not; use all_gather",
    ),
    "positions over context": (
        setup(cp=4, dp=4, context="gather"), setup(cp=3, dp=4, context="gather"),
        "positions in a multiple of 2 × cp 3: 32 are not; use 36",
    ),
    "positions over tensor": (
        setup(tp=8, dp=2, sequence=True), setup(tp=6, dp=2, sequence=True),
        "positions of a rank (32) in a multiple of tp 6 with sequence parallelism; use a sequence of 36",
    ),
    "experts": (setup(EXPERTS, dp=4, ep=4), setup(EXPERTS, dp=4, ep=3, samples=48), "ep to divide the 8 experts: 3 does not; use 2"),
    "experts with tensor": (
        setup(EXPERTS, tp=2, dp=8, sequence=True), setup(EXPERTS, tp=2, dp=8), "sequence parallelism for experts with tp 2",
    ),
    "ranks of interleaved": (
        setup(pp=2, dp=8, chunks=2, schedule="interleaved"), setup(chunks=2, schedule="interleaved"),
        "two pipeline ranks or more for 2 stages a rank: the plan has one",
    ),
    "micro-batches of interleaved": (
        setup(pp=2, dp=8, chunks=2, schedule="interleaved"), setup(pp=2, dp=8, chunks=2, schedule="interleaved", samples=24),
        "micro-batches in a multiple of the 2 pipeline ranks for interleaved 1F1B: 3 is none; use 2 or 4",
    ),
}  # fmt: skip
"""Condition -> (it holds, it does not, words of the sentence)."""
