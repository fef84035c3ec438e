"""What export answers, whatever the target: levels, prices of what runs otherwise, conditions, reading back, searches for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from export.plain import Plain
from meshwright.cluster import resolve
from meshwright.cost import Analytic
from meshwright.errors import InputError, Unsupported
from meshwright.export.outcome import Exported, export
from meshwright.export.reading import setup_from
from meshwright.for_trainer import ForTrainer
from meshwright.graph.ir import Graph
from meshwright.layouts.expert import expert_of
from meshwright.layouts.point import Point
from meshwright.plan.model import Plan
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._grid_space import Space
from meshwright.planners.grid import Grid


def problem_of(graph: Graph, samples: int = 64) -> Problem:
    return Problem(graph, resolve("a100x16"), Analytic(precision="bfloat16"), Recipe(samples=samples))


def plan_of(problem: Problem, point: Point) -> Plan:
    space = Space(problem, expert_of(problem.graph), {}, {})
    parts = ForTrainer(Plain()).parts(problem, point)
    assert parts is not None
    return space.plan(point, parts)


def point(**words: object) -> Point:
    basis = Point(4, 2, 2, False, 1, 1, 0, "none", "1f1b")
    return replace(basis, **words)


def exported(graph: Graph, lossy: bool = False, **words: object) -> Exported:
    problem = problem_of(graph)
    return export(Plain(), problem, plan_of(problem, point(**words)), lossy=lossy)


def test_exact_is_written_and_read_back(small: Callable[[str], Graph]) -> None:
    found = exported(small("gpt2"), zero=3, recompute="full")
    assert (found.level, found.sentences) == ("exact", ())
    assert found.files == {"plain.txt": "dp=4\nzero=3\ntp=2\npp=2\nmicro_batch=1\nsamples=64\nrecompute=full\n"}
    own, theirs = found.prices()
    assert own is theirs
    problem = found.setup.problem
    again = setup_from(problem, Plain(), Plain().read(found.files, found.setup.model, 16))
    assert again.plan() == found.setup.plan()


def test_close_is_priced_as_the_target_runs_it(small: Callable[[str], Graph]) -> None:
    found = exported(small("gpt2"), zero=2)
    assert (found.level, found.sentences) == ("close", ("it gathers weights every micro-batch",))
    assert found.runs.point.zero == 3
    assert "zero=3\n" in found.files["plain.txt"]
    own, theirs = found.prices()
    assert theirs.step_seconds > own.step_seconds


def test_refused_writes_nothing_unless_the_nearest_is_wanted(small: Callable[[str], Graph]) -> None:
    found = exported(small("gpt2"), recompute="light")
    assert (found.level, found.sentences) == ("refused", ("Plain cannot recompute light",))
    assert not found.files
    nearest = exported(small("gpt2"), lossy=True, recompute="light")
    assert nearest.level == "refused"
    assert "recompute=none\n" in nearest.files["plain.txt"]


def test_a_broken_condition_is_never_written(small: Callable[[str], Graph]) -> None:
    problem = problem_of(small("gpt2"), samples=66)
    with pytest.raises(InputError) as refused:
        ForTrainer(Plain()).check_conditions(problem, point())
    assert (
        str(refused.value) == "Plain 2.0 needs a batch that splits over dp 4 × micro-batch 1: 66 does not; use 64 or 68"
    )


def test_what_no_layout_says_is_refused_with_the_place(small: Callable[[str], Graph]) -> None:
    problem = problem_of(small("gpt2"))
    plan = plan_of(problem, point())
    stage = replace(plan.stages[0], keep_last=1, recompute=frozenset({"transformer.h.0.attn.c_attn:view"}))
    with pytest.raises(
        Unsupported, match=r"Plain 2\.0 cannot say this plan: stage 0 recomputes nothing of its last 1 micro"
    ):
        export(Plain(), problem, replace(plan, stages=(stage, *plan.stages[1:])))


def test_unknown_versions_name_the_nearest() -> None:
    with pytest.raises(InputError, match=r"plain@1\.7: Plain is known here as 2\.0, 1\.0; use plain@1\.0"):
        Plain("1.7")


def test_a_search_for_a_trainer_offers_only_what_it_runs_exactly(small: Callable[[str], Graph]) -> None:
    problem = problem_of(small("gpt2"))
    free = Grid(top=40).plan(problem)
    held = Grid(top=40, trainer=ForTrainer(Plain())).plan(problem)
    levels = {export(Plain(), problem, c.plan()).level for c in held.considered if c.plan is not None and c.over == 0}
    assert levels == {"exact"}
    wishes = {"recompute": ["none", "full"], "zero": [0, 1, 3], "pp": [1]}
    one_stage = Grid(top=40, allow=wishes).plan(problem)
    assert free.objective <= held.objective <= one_stage.objective


def test_a_search_that_a_trainer_leaves_nothing_says_why(small: Callable[[str], Graph]) -> None:
    problem = problem_of(small("gpt2"))
    with pytest.raises(InputError, match="Plain cannot recompute light"):
        Grid(trainer=ForTrainer(Plain()), fix={"recompute": "light"}).plan(problem)
