"""The template of every planner: an author writes `search` and `objective`, everything else is here.

tags fit the problem? → Run → search, which offers plans → Stop, Ctrl-C: best so far → validate, fits → Result
"""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import ClassVar, final

from ..errors import Infeasible, InputError, Unsupported
from ..plan.model import Plan
from ..plan.problem import Problem
from ..plan.validate import validate
from ._run import Progress, SearchRun, Stop
from .types import Budget, Event, Info, Json, Result, Run

__all__ = ["NO_REASON", "Learned", "Planner", "Progress", "Stop"]

NO_REASON = "found no plan and did not say why"
"""Of an infeasible result whose search ended without an offer; the conformance suite refuses it."""
PROVEN = 1e-9
"""Relative gap to the bound below which a plan counts as optimal: sums in another order differ by about this."""


class Planner(abc.ABC):
    """Finds a plan for a problem. Stateless: parameters are set in the constructor, keyword-only, with defaults."""

    info: ClassVar[Info]
    unit: ClassVar[str] = ""
    """Of `objective`; "" = that of the problem's cost model."""

    @abc.abstractmethod
    def search(self, problem: Problem, run: Run) -> Json:
        """Offers plans to `run`, best effort first, and returns what `replan` may need later (or None).

        Call `run.tick` after each evaluation: it ends the search at the budget. Randomness comes from `run.rng` only.

        Raises:
            Infeasible: no plan satisfies the limits; the reason is the tightest constraint.
        """

    @abc.abstractmethod
    def objective(self, problem: Problem, plan: Plan) -> float:
        """The planner's own objective of ANY legal plan in its space; `plan(...).objective` equals it."""

    def loads(self, problem: Problem, plan: Plan) -> tuple[float, ...]:
        """Per stage its cost in the unit of the objective, which most planners take the largest of; () where there is none."""
        return ()

    def contains(self, problem: Problem, plan: Plan) -> bool:
        """Is this plan in the space that `run.bound` speaks of? The conformance suite holds the bound against all that are.

        Override it where the search fixes a choice by a rule, say one way of cutting into stages, and its bound is over
        the other choices only.
        """
        return True

    @final
    def plan(
        self, problem: Problem, *, budget: Budget | None = None, seed: int = 0, progress: Progress | None = None
    ) -> Result:
        """The best plan that the search finds within the budget.

        Pure: the same inputs and evaluations give the same plan in any process. Ctrl-C ends the search with the best so
        far.

        Args:
            budget: evaluations (reproducible) or seconds; None = until the search ends.
            seed: of the search's randomness.
            progress: called with (phase, done, total, best objective so far).

        Raises:
            Unsupported: the problem has what this planner's tags do not cover.
            InputError: the problem itself, or a plan that the search offered, is not legal.
        """
        self._check_tags(problem)
        run = SearchRun(budget or Budget(), seed, progress)
        carry: Json = None
        stopped, infeasible = "", ""
        try:
            carry = self.search(problem, run)
        except Stop as stop:
            stopped = str(stop)
        except KeyboardInterrupt:
            stopped = "stopped by Ctrl-C"
        except Infeasible as error:
            infeasible = error.message
        if run.best is not None:
            self._check_plan(problem, run.best.plan)
            infeasible = _misfit(problem, run.best.plan) if "memory" not in self.info.handles else ""
        return self._result(problem, run, carry, stopped, infeasible, seed)

    def replan(
        self, problem: Problem, previous: Result, event: Event, *, budget: Budget | None = None, seed: int = 0
    ) -> Result:
        """A plan after `event`; `problem` reflects it. Unless a planner knows better: searches again, from the last plan."""
        start = (previous.plan, *problem.start) if previous.plan is not None else problem.start
        return self.plan(replace(problem, start=start), budget=budget, seed=seed)

    def unit_of(self, problem: Problem) -> str:
        """Unit of `objective` for this problem."""
        return self.unit or problem.cost.unit

    def _result(
        self, problem: Problem, run: SearchRun, carry: Json, stopped: str, infeasible: str, seed: int
    ) -> Result:
        best = run.best
        unit = self.unit_of(problem)
        seconds = time.monotonic() - run.started
        if infeasible or (best is None and not stopped):
            reason = infeasible or f"{self.info.name} {NO_REASON}"
            return Result(
                "infeasible", None, inf, unit, run.proven, reason, problem.cost.name, seconds, run.evaluations, seed,
                (), carry, run.considered, run.space,
            )  # fmt: skip
        objective = best.objective if best else inf
        proven = run.proven is not None and objective <= run.proven + PROVEN * abs(run.proven)
        reason = stopped if best else f"{stopped} before any plan was found"
        return Result(
            status="optimal" if best and proven else "budget" if stopped else "feasible",
            plan=best.plan if best else None,
            objective=objective,
            unit=unit,
            bound=run.proven,
            reason=reason if stopped else "" if proven else run.why_unproven,
            priced_by=problem.cost.name,
            seconds=seconds,
            evaluations=run.evaluations,
            seed=seed,
            frontier=tuple(run.frontier),
            carry=carry,
            considered=run.considered,
            space=run.space,
        )

    def _check_tags(self, problem: Problem) -> None:
        name, handles = self.info.name, self.info.handles
        if problem.goal not in self.info.goals:
            goals = ", ".join(sorted(self.info.goals))
            raise Unsupported(f"planner {name} cannot search for least {problem.goal}: its goals are {goals}")
        needs = {
            "heterogeneous": ("mixed device types", not problem.cluster.homogeneous),
            "explicit": ("graphs whose backward is written out", problem.graph.training == "explicit"),
            "annotations": ("annotations of tensors", bool(problem.annotations)),
            "rate": ("a floor of samples per second", problem.limits.samples_per_second > 0),
        }
        for tag, (what, needed) in needs.items():
            if needed and tag not in handles:
                raise Unsupported(
                    f'planner {name} does not handle {what}: choose one tagged {tag} ("meshwright planners --tag {tag}")'
                )

    def _check_plan(self, problem: Problem, plan: Plan) -> None:
        try:
            validate(problem, plan)
        except InputError as error:
            raise InputError(f"planner {self.info.name} offered a plan that is not legal: {error.message}") from error


def _misfit(problem: Problem, plan: Plan) -> str:
    """Why a plan of a planner that does not look at memory does not fit; "" if it does, or if nobody can tell: prices that
    were recorded per option cannot be simulated."""
    from ..simulate.fits import fits

    try:
        return fits(problem, plan) or ""
    except Unsupported:
        return ""


class Learned(Planner):
    """A planner whose decisions come from learned weights: a constructor argument; `fit` makes a new planner with them."""

    @abc.abstractmethod
    def fit(self, problems: Sequence[Problem], *, budget: Budget, seed: int = 0) -> Learned:
        """A planner of the same kind that has learned from `problems`; this one stays as it is."""
