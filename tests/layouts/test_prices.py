"""What the words of a layout cost: more that runs again is slower and holds less; who gathers once sends less than who gathers twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from spaces import space_of

from meshwright.graph.ir import Graph
from meshwright.layouts.point import Point
from meshwright.planners._grid_space import Space
from meshwright.simulate.result import Simulation
from meshwright.simulate.simulator import simulate


def price(space: Space, point: Point) -> Simulation:
    return simulate(space.problem, space.plan(point, (len(space.units),)), detail=False)


def test_first_blocks_lie_between_none_and_all(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "llama-3.1-8b")
    base = Point(16, 1, 1, False, 1, 4, 0, "none", "1f1b")
    words = ["none", "first:1", "first:2", "first:3", "full"]  # of 4 blocks
    found = [price(space, replace(base, recompute=how)) for how in words]
    assert all(a.step_seconds < b.step_seconds for a, b in pairwise(found))
    held = [s.peak_by[0]["activations"] for s in found]
    assert all(a > b for a, b in pairwise(held))
    steps = [b.step_seconds - a.step_seconds for a, b in pairwise(found)]
    assert max(steps) <= 1.01 * min(steps), "a block more costs what every block costs"
    assert price(space, replace(base, recompute="first:4")).step_seconds == found[-1].step_seconds


def test_hybrid_sharding_lies_between_all_and_none(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "llama-3.1-8b")
    base = Point(16, 1, 1, False, 1, 4, 3, "none", "1f1b")
    peaks = [price(space, replace(base, replicate=n)).peak_by[0]["optimizer"] for n in (1, 2, 4, 8)]
    assert all(b >= 1.9 * a for a, b in pairwise(peaks)), "half as many cut it, so each holds twice as much"
    whole = price(space, replace(base, zero=0)).peak_by[0]["optimizer"]
    assert 1.9 * peaks[-1] <= whole


def test_weights_that_are_kept_are_gathered_once(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "llama-3.1-8b")
    base = Point(16, 1, 1, False, 1, 2, 3, "none", "1f1b")
    twice, once = price(space, base), price(space, replace(base, reshard=False))
    assert once.step_seconds < twice.step_seconds
    assert once.peak.max() > twice.peak.max()
