"""From a user's settings to a better plan, one change at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from export.plain import Plain
from export.test_outcome import plan_of, point, problem_of
from meshwright.export.gains import TOGETHER, gaining, path
from meshwright.export.setup import Setup, setup_of
from meshwright.graph.ir import Graph
from meshwright.simulate.simulator import simulate


def spelled(setup: Setup) -> dict[str, object]:
    return {key: value for s in Plain().said(setup) for key, value in s.options.items()}


def test_changes_lead_from_one_to_the_other_and_each_says_its_options(small: Callable[[str], Graph]) -> None:
    problem = problem_of(small("gpt2"))
    theirs = setup_of(problem, plan_of(problem, point(recompute="full", zero=3)))
    ours = setup_of(problem, plan_of(problem, point(dp=8, pp=1, micro_batch=4)))
    steps = list(path(theirs, ours))
    assert steps[0].before == theirs
    assert steps[-1].after.plan() == ours.plan()
    assert all(a.after == b.before for a, b in itertools.pairwise(steps))
    assert {s.words for s in steps} == set(TOGETHER[:4])
    for step in steps:
        assert step.seconds == simulate(problem, step.after.plan(), detail=False).step_seconds
    said = {k: v for s in steps for k, v in s.options(spelled).items()}
    assert said["recompute"] == ("full", "none")
    assert (said["pp"], said["micro_batch"]) == ((2, 1), (1, 4))


@pytest.mark.parametrize("first", range(3))
def test_each_step_is_the_best_of_those_that_are_left(small: Callable[[str], Graph], first: int) -> None:
    problem = problem_of(small("gpt2"))
    theirs = setup_of(problem, plan_of(problem, point(recompute="full", zero=first)))
    ours = setup_of(problem, plan_of(problem, point(micro_batch=2, sequence=True)))
    steps = list(path(theirs, ours))
    words = [s.words for s in steps]
    for order in itertools.permutations(words):
        here, seconds = theirs, []
        for group in order:
            here = here.with_words(**{w: getattr(ours.point, w) for w in group if w != "parts"})
            seconds.append(simulate(problem, here.plan(), detail=False).step_seconds)
        assert steps[0].seconds <= seconds[0] + 1e-12
        assert seconds[-1] == pytest.approx(steps[-1].seconds, rel=1e-9)


def test_a_row_is_worth_its_change(small: Callable[[str], Graph]) -> None:
    problem = problem_of(small("gpt2"))
    theirs = setup_of(problem, plan_of(problem, point(dp=8, pp=1, micro_batch=4)))
    ours = setup_of(problem, plan_of(problem, point(recompute="full", zero=3)))
    assert list(gaining(theirs, path(theirs, ours), spelled)) == []  # every change costs
    back = list(gaining(ours, path(ours, theirs), spelled))
    seconds = [simulate(problem, ours.plan(), detail=False).step_seconds, *(s.seconds for s in back)]
    assert back and seconds == sorted(seconds, reverse=True)
    assert all(a.after == b.before for a, b in itertools.pairwise(back))
    assert all(s.options(spelled) for s in back)


def test_a_change_that_costs_goes_with_the_one_it_makes_room_for(small: Callable[[str], Graph]) -> None:
    problem = problem_of(small("gpt2"))
    theirs = setup_of(problem, plan_of(problem, point(recompute="full", zero=3)))
    ours = setup_of(problem, plan_of(problem, point(dp=8, pp=1, micro_batch=4)))
    steps = list(path(theirs, ours))
    first = simulate(problem, theirs.plan(), detail=False).step_seconds
    worse = [replace(s, seconds=first * factor) for s, factor in zip(steps, (1.5, 0.9, 0.8, 0.85), strict=True)]
    found = list(gaining(theirs, worse, spelled))
    assert [s.words for s in found] == [steps[0].words + steps[1].words, steps[2].words]
    assert found[0].before == theirs and found[0].options(spelled).keys() >= steps[1].options(spelled).keys()
    silent = list(gaining(theirs, worse, lambda s: {"recompute": s.point.recompute}))
    assert len(silent) == 1 and silent[0].options(lambda s: {"recompute": s.point.recompute})
