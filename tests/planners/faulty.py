"""Planners with one fault each, for the tests of the conformance suite; all of a data-parallel copy on every device."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from math import inf

from meshwright.cluster.model import Mesh
from meshwright.errors import Infeasible
from meshwright.plan.model import Plan, Schedule, Stage
from meshwright.plan.problem import Problem
from meshwright.planners import Info, Json, Planner, Run
from meshwright.simulate.fits import fits
from meshwright.simulate.simulator import simulate


class Sound(Planner):
    """All on one device, in as many micro-batches as fit best."""

    info = Info("sound", "", 2026, "", frozenset({"schedule"}), frozenset({"memory"}), frozenset({"time"}))

    def plans(self, problem: Problem) -> list[Plan]:
        graph, samples = problem.graph, problem.recipe.samples
        stage = Stage(tuple(op.name for op in graph.ops), Mesh((0,)))
        return [Plan(graph.digest, samples, (stage,), Schedule("1f1b", m)) for m in (1, 2, 4, 8)]

    def search(self, problem: Problem, run: Run) -> Json:
        reason = None
        for plan in self.plans(problem):
            reason = fits(problem, plan)
            if reason is None:
                run.offer(self.objective(problem, plan), lambda plan=plan: plan)
            run.tick(1, "plans")
        if reason is not None:
            raise Infeasible(reason)
        return None

    def objective(self, problem: Problem, plan: Plan) -> float:
        return simulate(problem, plan, detail=False).step_seconds


class Hashed(Sound):
    """Takes the plan from an order that differs from process to process."""

    def search(self, problem: Problem, run: Run) -> Json:
        plans = self.plans(problem)
        plan = plans[sum(map(hash, (op.name for op in problem.graph.ops))) % 4 if "PYTHONHASHSEED" in os.environ else 3]
        run.offer(self.objective(problem, plan), lambda: plan)
        return None


class Endless(Sound):
    """Never looks at its budget."""

    def search(self, problem: Problem, run: Run) -> Json:
        if problem.cluster.count == 8:
            time.sleep(2.0)
        return super().search(problem, run)


class Swallows(Sound):
    """Ends without an offer where Ctrl-C was pressed."""

    def search(self, problem: Problem, run: Run) -> Json:
        plan = self.plans(problem)[0]
        run.offer(1.0 + self.objective(problem, plan), lambda: plan)
        try:
            run.tick(1, "plans")
        except KeyboardInterrupt:
            run.best = None  # type: ignore[attr-defined]
            return None
        return super().search(problem, run)


class Greedy(Sound):
    """Promises to look at memory and does not."""

    def search(self, problem: Problem, run: Run) -> Json:
        for plan in self.plans(problem):
            run.offer(self.objective(problem, plan), lambda plan=plan: plan)
        return None


class Boaster(Sound):
    """Claims half of what its plan takes."""

    def search(self, problem: Problem, run: Run) -> Json:
        plan = self.plans(problem)[0]
        if fits(problem, plan):
            raise Infeasible("too small")
        run.offer(0.5 * self.objective(problem, plan), lambda: plan)
        return None


class Overproven(Sound):
    """Calls a plan optimal that computes everything on every device, and in small pieces."""

    def search(self, problem: Problem, run: Run) -> Json:
        mesh = Mesh(range(problem.cluster.count), ("copies",), (problem.cluster.count,))
        stages = tuple(replace(stage, mesh=mesh) for stage in self.plans(problem)[-1].stages)
        plan = replace(self.plans(problem)[-1], stages=stages)
        if fits(problem, plan):
            raise Infeasible("too small")
        value = self.objective(problem, plan)
        run.offer(value, lambda: plan)
        run.bound(value)
        return None


class Silent(Sound):
    """Gives up without a word."""

    def search(self, problem: Problem, run: Run) -> Json:
        best = inf
        for plan in self.plans(problem):
            if fits(problem, plan) is None:
                best = min(best, self.objective(problem, plan))
                run.offer(self.objective(problem, plan), lambda plan=plan: plan)
        return None
