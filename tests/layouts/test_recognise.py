"""From points to plans and back: every layout in words is found again; of every other plan the first difference is named."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from spaces import space_of

from meshwright.cluster import Mesh
from meshwright.errors import Unsupported
from meshwright.graph.ir import Graph
from meshwright.layouts.recognise import recognise
from meshwright.plan.model import OpSharding, Plan, Schedule, Weights
from meshwright.plan.serial import from_json, to_json
from meshwright.planners._grid_space import Space

FAMILIES = ("gpt2", "llama-3.1-8b", "mixtral-8x7b", "t5-large", "resnet-50")


def drawn(space: Space, count: int, seed: int) -> list[Plan]:
    """Plans of points drawn by seed, cut into stages at random."""
    rng = random.Random(seed)
    points = [p for p in space.points() if p.pp * p.chunks <= space.units.blocks]
    plans = []
    for point in rng.sample(points, min(count, len(points))):
        n, stages = len(space.units), point.pp * point.chunks
        at = [0, *sorted(rng.sample(range(1, n), stages - 1)), n]
        plans.append(space.plan(point, [b - a for a, b in pairwise(at)]))
    return plans


@pytest.mark.parametrize("family", FAMILIES)
def test_a_point_is_found_again_from_its_plan_alone(small: Callable[[str], Graph], family: str) -> None:
    space = space_of(small, family)
    for plan in drawn(space, 24, seed=1):
        found = recognise(space.graph, from_json(to_json(plan)))
        again = found.plan(space.expert)
        assert again == plan, found.point.words()
        assert found.devices == tuple(tuple(found.point.mesh(r).devices) for r in range(found.point.pp))


def test_schedules_that_go_there_and_back_and_rows_of_ones_own(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "gpt2")
    point = next(p for p in space.points() if p.pp == 2 and p.chunks == 2 and p.schedule == "interleaved")
    loop = space.plan(point, (1, 2, 1, len(space.units) - 4))
    stages = list(loop.stages)
    stages[2], stages[3] = replace(stages[2], mesh=stages[1].mesh), replace(stages[3], mesh=stages[0].mesh)
    there_and_back = replace(loop, stages=tuple(stages), schedule=Schedule("zb-v", loop.schedule.micro_batches))
    found = recognise(space.graph, there_and_back)
    assert found.plan(space.expert) == there_and_back
    with pytest.raises(Unsupported, match="stage 2 is not on pipeline rank 0, where schedule interleaved has it"):
        recognise(space.graph, replace(there_and_back, schedule=loop.schedule))


def test_other_devices_are_kept(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "gpt2")
    point = next(p for p in space.points() if p.dp == 4 and p.tp == 4 and p.pp == 1)
    plan = space.plan(point, (len(space.units),))
    mesh = plan.stages[0].mesh
    swapped = Mesh(tuple(d for t in range(4) for d in range(t, 16, 4)), ("dp", "tp"), (4, 4))
    found = recognise(space.graph, replace(plan, stages=(replace(plan.stages[0], mesh=swapped),)))
    assert found.point == point
    assert found.devices == (tuple(swapped.devices),)
    assert found.plan(space.expert).stages[0].mesh == swapped
    turned = Mesh(tuple(d for t in range(4) for d in range(t, 16, 4)), ("tp", "dp"), (4, 4))
    assert recognise(space.graph, replace(plan, stages=(replace(plan.stages[0], mesh=turned),))).devices == (
        tuple(mesh.devices),
    )


def test_what_no_point_says_is_named(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "llama-3.1-8b")
    point = next(p for p in space.points() if p.tp == 4 and p.pp == 1 and p.zero == 0)
    plan = space.plan(point, (len(space.units),))
    stage = plan.stages[0]
    name = next(n for n, x in stage.shardings.items() if "mlp" in n and any(c for c in x.cuts.values()))

    def refused(other: Plan, words: str) -> None:
        with pytest.raises(Unsupported, match=words):
            recognise(space.graph, other)

    cut = {**stage.shardings, name: OpSharding()}
    refused(replace(plan, stages=(replace(stage, shardings=cut),)), f"{name} is cut otherwise")
    refused(replace(plan, stages=(replace(stage, recompute=frozenset({name})),)), "recomputes 1 ops")
    refused(replace(plan, stages=(replace(stage, keep_last=1, recompute=frozenset({name})),)), "last 1 micro-batches")
    refused(replace(plan, schedule=replace(plan.schedule, weights=Weights(flush=False))), "several versions")
