"""The template around every search: tags, budget, Ctrl-C, validation, memory, the fields of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import pytest

from meshwright.cluster.model import Mesh
from meshwright.errors import Infeasible, InputError, Unsupported
from meshwright.plan.model import Plan, Schedule, Stage
from meshwright.plan.problem import Annotation, Problem
from meshwright.planners import Budget, Choice, Event, Info, Json, Learned, Planner, Run
from meshwright.testing.tiny import mlp, problem_of

PROBLEM = problem_of(mlp(3), "a100x2")
NAMES = tuple(op.name for op in PROBLEM.graph.ops)


def split(at: int) -> Plan:
    stages = (Stage(NAMES[:at], Mesh((0,))), Stage(NAMES[at:], Mesh((1,))))
    return Plan(PROBLEM.graph.digest, 8, stages, Schedule("gpipe", 4))


class Scripted(Planner):
    """Runs a given search; its objective is the number of ops of the first stage."""

    info = Info("scripted", "", 2026, "", frozenset({"stages"}), frozenset({"memory"}), frozenset({"time"}))
    unit = "op"

    def __init__(self, script: Callable[[Problem, Run], Json]) -> None:
        self.script = script

    def search(self, problem: Problem, run: Run) -> Json:
        return self.script(problem, run)

    def objective(self, problem: Problem, plan: Plan) -> float:
        return float(len(plan.stages[0].ops))


def offer(run: Run, at: int) -> None:
    run.offer(float(at), lambda: split(at))


def test_the_best_offer_is_the_result() -> None:
    def script(problem: Problem, run: Run) -> Json:
        for at in (5, 3, 4):
            offer(run, at)
            run.tick()
        return {"last": 4}

    result = Scripted(script).plan(PROBLEM, seed=7)
    assert (result.status, result.objective, result.unit, result.evaluations) == ("feasible", 3.0, "op", 3)
    assert result.plan == split(3) and result.carry == {"last": 4} and result.seed == 7
    assert (result.bound, result.reason, result.priced_by) == (None, "", PROBLEM.cost.name)


def test_a_plan_is_built_only_when_it_is_the_best_and_the_first_of_equals_stays() -> None:
    built = []

    def script(problem: Problem, run: Run) -> Json:
        for k, (objective, at) in enumerate([(5.0, 2), (6.0, 3), (5.0, 4)]):
            run.offer(objective, lambda k=k, at=at: (built.append(k), split(at))[1])  # type: ignore[misc]
        return None

    assert Scripted(script).plan(PROBLEM).plan == split(2)
    assert built == [0]


def test_a_bound_that_is_reached_makes_the_plan_optimal() -> None:
    def script(problem: Problem, run: Run) -> Json:
        offer(run, 3)
        run.bound(2.0)
        run.bound(bound)
        return None

    for bound, status in ((3.0, "optimal"), (1.0, "feasible")):
        result = Scripted(script).plan(PROBLEM)
        assert (result.status, result.bound) == (status, max(2.0, bound))


def endless(problem: Problem, run: Run) -> Json:
    at = 1
    while True:
        offer(run, 1 + int(run.rng.integers(len(NAMES) - 1)))
        run.tick(1, "search", at, 0)
        at += 1


def test_an_evaluation_budget_ends_the_search_and_repeats_exactly() -> None:
    first, second = (Scripted(endless).plan(PROBLEM, budget=Budget(evaluations=5), seed=3) for _ in range(2))
    assert (first.status, first.evaluations) == ("budget", 5)
    assert first.reason == "stopped after 5 evaluations, the budget"
    assert first.plan == second.plan and first.objective == second.objective


def test_a_budget_of_seconds_ends_the_search_and_says_so() -> None:
    result = Scripted(endless).plan(PROBLEM, budget=Budget(seconds=0.05))
    assert (result.status, result.reason) == ("budget", "stopped after 0.05 s, the budget")
    assert result.plan is not None and 0.05 <= result.seconds < 5


def test_ctrl_c_gives_the_best_so_far() -> None:
    def script(problem: Problem, run: Run) -> Json:
        offer(run, 3)
        raise KeyboardInterrupt

    result = Scripted(script).plan(PROBLEM)
    assert (result.status, result.reason, result.plan) == ("budget", "stopped by Ctrl-C", split(3))


def test_ctrl_c_before_any_plan_says_so() -> None:
    def script(problem: Problem, run: Run) -> Json:
        raise KeyboardInterrupt

    result = Scripted(script).plan(PROBLEM)
    assert (result.status, result.reason) == ("budget", "stopped by Ctrl-C before any plan was found")
    assert result.plan is None and result.objective == inf


def test_infeasible_carries_the_reason() -> None:
    def script(problem: Problem, run: Run) -> Json:
        raise Infeasible("layer 3 needs 9 GiB")

    result = Scripted(script).plan(PROBLEM)
    assert (result.status, result.plan, result.reason) == ("infeasible", None, "layer 3 needs 9 GiB")


def test_a_search_without_an_offer_is_infeasible_without_a_reason() -> None:
    result = Scripted(lambda problem, run: None).plan(PROBLEM)
    assert (result.status, result.reason) == ("infeasible", "scripted found no plan and did not say why")


def test_an_illegal_plan_is_refused_with_its_fault() -> None:
    def script(problem: Problem, run: Run) -> Json:
        plan = split(3)
        run.offer(1.0, lambda: replace(plan, stages=plan.stages[:1]))
        return None

    with pytest.raises(InputError) as error:
        Scripted(script).plan(PROBLEM)
    assert str(error.value) == (
        f'planner scripted offered a plan that is not legal: op "{NAMES[3]}" is in no stage: each op must be in one'
    )


def test_an_objective_that_is_no_number_is_a_fault_of_the_planner() -> None:
    with pytest.raises(ValueError, match="objective nan"):
        Scripted(lambda problem, run: run.offer(float("nan"), lambda: split(3))).plan(PROBLEM)


class Blind(Scripted):
    """The same, but without a look at memory."""

    info = replace(Scripted.info, name="blind", handles=frozenset())


def test_the_template_checks_the_memory_of_planners_that_do_not() -> None:
    tight = replace(PROBLEM, limits=replace(PROBLEM.limits, memory=1000.0, keep_free=0.0))
    planner = Blind(lambda problem, run: offer(run, 3))
    assert planner.plan(PROBLEM).status == "feasible"
    result = planner.plan(tight)
    assert (result.status, result.plan) == ("infeasible", None)
    assert "over the usable" in result.reason
    assert Scripted(lambda problem, run: offer(run, 3)).plan(tight).status == "feasible"  # it promised to look


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (replace(PROBLEM, goal="price"), "planner scripted cannot search for least price: its goals are time"),
        (
            replace(PROBLEM, annotations=(Annotation("x"),)),
            'planner scripted does not handle annotations of tensors: choose one tagged annotations ("meshwright planners --tag annotations")',
        ),
        (
            replace(PROBLEM, graph=replace(PROBLEM.graph, training="explicit")),
            'planner scripted does not handle graphs whose backward is written out: choose one tagged explicit ("meshwright planners --tag explicit")',
        ),
        (
            replace(PROBLEM, cluster=replace(PROBLEM.cluster, types=PROBLEM.cluster.types * 2)),
            'planner scripted does not handle mixed device types: choose one tagged heterogeneous ("meshwright planners --tag heterogeneous")',
        ),
    ],
)
def test_what_a_planner_has_no_tag_for_is_refused_before_the_search(problem: Problem, message: str) -> None:
    with pytest.raises(Unsupported) as error:
        Scripted(endless).plan(problem)
    assert str(error.value) == message


def test_progress_hears_of_each_phase_and_the_best() -> None:
    heard: list[tuple[str, int, int, float]] = []

    def script(problem: Problem, run: Run) -> Json:
        run.tick(0, "bounds", 0, 2)
        offer(run, 3)
        run.tick(1, "search", 1, 2)
        run.tick(1, "search", 2, 2)
        return None

    Scripted(script).plan(PROBLEM, progress=lambda *words: heard.append(words))
    assert heard == [("bounds", 0, 2, inf), ("search", 1, 2, 3.0), ("search", 2, 2, 3.0)]


def test_kept_choices_become_the_frontier() -> None:
    def script(problem: Problem, run: Run) -> Json:
        offer(run, 3)
        run.keep(Choice(split(3), 3.0, 10.0))
        return None

    assert Scripted(script).plan(PROBLEM).frontier == (Choice(split(3), 3.0, 10.0),)


def test_replan_searches_again_from_the_last_plan() -> None:
    starts: list[tuple[Plan, ...]] = []

    def script(problem: Problem, run: Run) -> Json:
        starts.append(problem.start)
        offer(run, 3)
        return None

    planner = Scripted(script)
    first = planner.plan(PROBLEM)
    planner.replan(PROBLEM, first, Event("cluster"))
    assert starts == [(), (split(3),)]


def test_a_learned_planner_learns_into_a_new_one() -> None:
    class Counts(Learned):
        info = replace(Scripted.info, name="counts")

        def __init__(self, *, seen: int = 1) -> None:
            self.seen = seen

        def search(self, problem: Problem, run: Run) -> Json:
            offer(run, self.seen)
            return None

        def objective(self, problem: Problem, plan: Plan) -> float:
            return float(len(plan.stages[0].ops))

        def fit(self, problems: Sequence[Problem], *, budget: Budget, seed: int = 0) -> Counts:
            return Counts(seen=self.seen + len(problems))

    before = Counts()
    after = before.fit([PROBLEM, PROBLEM], budget=Budget())
    assert (before.plan(PROBLEM).objective, after.plan(PROBLEM).objective) == (1.0, 3.0)
