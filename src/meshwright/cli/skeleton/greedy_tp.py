"""greedy_tp: cuts the samples over all devices, then any op otherwise where that is faster, one kind after another."""

import re

from meshwright.cluster import Mesh
from meshwright.errors import Infeasible
from meshwright.graph.ir import Rule
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.plan.problem import Problem
from meshwright.planners import Info, Json, Planner, Run
from meshwright.simulate.fits import excess
from meshwright.simulate.simulator import simulate


class GreedyTp(Planner):
    info = Info(
        name="greedy_tp", title="Greedy cuts of ops", year=2026, reference="none yet", family="tensor",
        decides=frozenset({"shards"}), handles=frozenset({"memory", "dag"}), goals=frozenset({"time"}),
    )  # fmt: skip

    def search(self, problem: Problem, run: Run) -> Json:
        count, samples = problem.cluster.count, problem.recipe.samples
        kinds: dict[tuple[str, Rule], list[str]] = {}
        for op in problem.graph.ops:  # the same op of all blocks is one kind: "layers.*.fc/linear"
            kinds.setdefault((re.sub(r"\d+", "*", op.name), op.rule), []).append(op.name)
        cuts = {op.name: factor.name for op in problem.graph.ops for factor in op.rule.factors if factor.samples}
        sizes = [m for m in range(1, samples + 1) if samples % m == 0 and samples // m >= count] or [1]
        micro_batches = next((m for m in sizes if self._priced(problem, run, cuts, m)[1] is None), sizes[-1])
        best, fault = self._priced(problem, run, cuts, micro_batches)
        for (_, rule), alike in kinds.items():
            for factor in rule.factors:
                if factor.kind == "free" and factor.size % count == 0 and not factor.samples:
                    trial = cuts | dict.fromkeys(alike, factor.name)
                    seconds, over = self._priced(problem, run, trial, micro_batches)
                    if over is None and (fault or seconds < best):
                        cuts, best, fault = trial, seconds, None
        if fault:
            raise Infeasible(fault)
        return None

    def objective(self, problem: Problem, plan: Plan) -> float:
        return simulate(problem, plan, detail=False).step_seconds

    def _priced(self, problem: Problem, run: Run, cuts: dict[str, str], m: int) -> tuple[float, str | None]:
        """Seconds of a step where factor `cuts[op]` of each op is cut over all devices, and why that does not fit."""
        mesh = Mesh(range(problem.cluster.count), ("x",), (problem.cluster.count,))
        shardings = {op: OpSharding({factor: (Cut("x"),)}) for op, factor in cuts.items()}
        stage = Stage(tuple(op.name for op in problem.graph.ops), mesh, shardings)
        plan = Plan(problem.graph.digest, problem.recipe.samples, (stage,), Schedule("1f1b", m))
        simulation = simulate(problem, plan, detail=False)
        over = excess(problem, simulation)
        if over is None:
            run.offer(simulation.step_seconds, lambda: plan, float(max(simulation.peak)))
        run.tick()
        return simulation.step_seconds, over
