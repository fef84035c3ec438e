"""A package of its own that brings one planner: a copy of the model on every device."""

from __future__ import annotations

from meshwright.cluster import Mesh
from meshwright.errors import Infeasible
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.plan.problem import Problem
from meshwright.planners import Info, Json, Planner, Run
from meshwright.simulate.fits import fits
from meshwright.simulate.simulator import simulate


class Replicas(Planner):
    """Samples cut over all devices; the number of micro-batches is the only choice."""

    info = Info(
        "replicas", "Plain data parallelism", 2026, "a test", frozenset({"replicas"}), frozenset({"memory"}),
        frozenset({"time"}), "data",
    )  # fmt: skip

    def search(self, problem: Problem, run: Run) -> Json:
        graph, count, samples = problem.graph, problem.cluster.count, problem.recipe.samples
        cuts = {
            op.name: OpSharding({factor.name: (Cut("dp"),)})
            for op in graph.ops
            for factor in op.rule.factors
            if factor.samples
        }
        stage = Stage(tuple(op.name for op in graph.ops), Mesh(range(count), ("dp",), (count,)), cuts)
        reason = f"a batch of {samples} does not split over {count} copies"
        found = False
        for m in range(samples, 0, -1):
            if samples % (m * count):
                continue
            plan = Plan(graph.digest, samples, (stage,), Schedule("1f1b", m))
            fault = fits(problem, plan)
            if fault is None:
                run.offer(self.objective(problem, plan), lambda plan=plan: plan)
                found = True
            elif not found:
                reason = fault
            run.tick(1, "micro-batches")
        if not found:
            raise Infeasible(reason)
        return None

    def objective(self, problem: Problem, plan: Plan) -> float:
        return simulate(problem, plan, detail=False).step_seconds
