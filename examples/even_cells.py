"""A planner in one file: pipelines of every depth with cells of even FLOPs, the fastest that fits.

meshwright check ./examples/even_cells.py
meshwright plan gpt2 --cluster a100x8 --planner ./examples/even_cells.py
"""

from __future__ import annotations

from itertools import product
from math import inf

from meshwright.cluster import Mesh
from meshwright.errors import Infeasible
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.plan.problem import Problem
from meshwright.planners import Info, Json, Planner, Run
from meshwright.simulate.fits import excess
from meshwright.simulate.simulator import simulate


class EvenCells(Planner):
    """Every depth p that divides the devices, the copies of each cell splitting the samples, 1F1B."""

    info = Info(
        name="even-cells",
        title="Cells of even FLOPs",
        year=2026,
        reference="an example",
        decides=frozenset({"stages", "replicas"}),
        handles=frozenset({"memory", "dag"}),
        goals=frozenset({"time"}),
        family="pipeline",
    )

    def search(self, problem: Problem, run: Run) -> Json:
        """Offers each plan that fits; if none does, the nearest miss is the reason."""
        count, samples = problem.cluster.count, problem.recipe.samples
        points = [
            (p, m)
            for p, m in product(range(1, count + 1), range(1, samples + 1))
            if count % p == 0 and samples % (m * (count // p)) == 0 and p <= len(problem.graph.ops)
        ]
        nearest, reason = inf, "no number of cells divides the devices and the batch"
        for done, (p, m) in enumerate(points, 1):
            plan = self._plan(problem, p, m)
            simulation = simulate(problem, plan, detail=False)
            fault = excess(problem, simulation)
            peak = float(max(simulation.peak))
            if fault is None:
                run.offer(simulation.step_seconds, lambda plan=plan: plan, peak)
                nearest = -inf
            elif peak < nearest:
                nearest, reason = peak, fault
            run.tick(1, "depths", done, len(points))
        if nearest > -inf:
            raise Infeasible(reason)
        return None

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Simulated seconds of a step: the same number that `search` offers."""
        return simulate(problem, plan, detail=False).step_seconds

    def _plan(self, problem: Problem, p: int, m: int) -> Plan:
        graph, copies = problem.graph, problem.cluster.count // p
        by_samples = {
            op.name: OpSharding({factor.name: (Cut("dp"),)})
            for op in graph.ops
            for factor in op.rule.factors
            if factor.samples
        }
        total, done, cells = sum(op.flops for op in graph.ops) or 1.0, 0.0, [[] for _ in range(p)]
        for op in graph.ops:
            cells[min(p - 1, int(p * done / total))].append(op.name)
            done += op.flops
        stages = [
            Stage(tuple(ops), Mesh(range(k * copies, (k + 1) * copies), ("dp",), (copies,)), by_samples)
            for k, ops in enumerate(cells)
            if ops
        ]
        return Plan(graph.digest, problem.recipe.samples, tuple(stages), Schedule("1f1b", m))
