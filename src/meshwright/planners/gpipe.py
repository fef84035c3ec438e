"""GPipe (Huang et al., NeurIPS 2019, arXiv 1811.06965): a sequential model in K cells, one per device.

Decides the cut points only. The paper (section 2.2) asks for cells of least variance in estimated cost, which is forward
FLOPs; of an imported profile, which has none, it is the recorded time, forward and backward, in µs. The paper does not write
the algorithm down. Two rules:

    lingvo     the rule of the public code (tensorflow/lingvo, lingvo/core/gpipe.py): a layer goes to the cell that its
               share of all FLOPs so far falls into. May leave a cell empty; then the exact rule is used, and `carry` says so.
    variance   the paper's words, exactly, by dynamic programming.

Faithful: micro-batches must divide the mini-batch; backward in reverse order of the micro-batches; one update a step;
every cell keeps its input only and computes its forward again, the last cell and the last micro-batch too, as the paper's
memory formula has it. Cells hold whole layers, found as places where one value goes on (see `_layers`). The paper has no
memory term: that a plan does not fit is found afterwards, and said. Data parallelism is outside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ..cluster.model import Mesh
from ..errors import Infeasible, InputError, Unsupported
from ..plan.lookup import stage_ops
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Problem
from ..solvers.chain_partition import least_squares, proportional, variance
from ._checked import whole
from ._layers import layers_of
from ._profile import kept_nodes, profile_of, with_the_rest
from .base import Planner
from .registry import register
from .types import Info, Json, Run


@register
class GPipe(Planner):
    """Consecutive cells of least variance in FLOPs.

    Args:
        rule: "variance" or "lingvo".
        micro_batches: M; None = the least divisor of the batch that is at least 4 K, the paper's advice (section 2.3).
        recompute: keep only each cell's input between forward and backward (the paper's default).
    """

    info = Info(
        name="gpipe",
        title="GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
        year=2019,
        reference="arXiv 1811.06965",
        decides=frozenset({"stages"}),
        handles=frozenset({"dag"}),
        goals=frozenset({"time"}),
        family="pipeline",
    )
    unit = "flop²"

    def __init__(
        self,
        *,
        rule: Literal["variance", "lingvo"] = "variance",
        micro_batches: int | None = None,
        recompute: bool = True,
    ) -> None:
        if rule not in ("variance", "lingvo"):
            raise InputError(f'gpipe has no rule "{rule}": there are variance and lingvo')
        whole("gpipe", "micro_batches", micro_batches)
        self.rule = rule
        self.micro_batches = micro_batches
        self.recompute = recompute

    def search(self, problem: Problem, run: Run) -> Json:
        """One partition; the exact rule proves its own bound."""
        cells = problem.limits.devices or problem.cluster.count
        layers = _Chain(problem)
        if len(layers.costs) < cells:
            raise Infeasible(
                f"{len(layers.costs)} layers cannot fill {cells} cells: gpipe puts one cell of whole layers on each device, so it "
                f"takes at most {len(layers.costs)} devices here"
            )
        used: str = self.rule
        ends = proportional(layers.costs, cells) if self.rule == "lingvo" else least_squares(layers.costs, cells)
        empty = sum(a == b for a, b in zip((0, *ends), ends))
        if empty:
            used = f"variance, since lingvo leaves {empty} of {cells} cells empty"
            ends = least_squares(layers.costs, cells)
        plan = self._plan(problem, layers, ends)
        objective = self.objective(problem, plan)
        if used.startswith("variance"):
            run.bound(objective)
        run.offer(objective, lambda: plan)
        run.tick(1, "partition", 1, 1)
        return {"rule": used, "cells": [b - a for a, b in zip((0, *ends), ends)]}

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Variance of the cells' forward FLOPs at the graph's samples, or of their recorded µs.

        Raises:
            Unsupported: not one stage on one device for each cell.
        """
        cells = problem.limits.devices or problem.cluster.count
        if len(plan.stages) != cells or any(len(stage.mesh.devices) != 1 for stage in plan.stages):
            raise Unsupported(f"gpipe prices plans of {cells} stages with one device each")
        return variance(_Chain(problem).cells(plan))

    def unit_of(self, problem: Problem) -> str:
        return "µs²" if _imported(problem) else self.unit

    def _plan(self, problem: Problem, layers: _Chain, ends: tuple[int, ...]) -> Plan:
        graph = problem.graph
        stages = []
        for cell, entries in enumerate(layers.entries(ends)):
            stage = Stage(entries, Mesh((cell,)))
            if self.recompute:
                again = frozenset(graph.ops[i].name for i in stage_ops(graph, stage))
                stage = replace(stage, recompute=again, recompute_at="stage")
            stages.append(stage)
        samples = problem.recipe.samples
        return Plan(graph.digest, samples, tuple(stages), Schedule("gpipe", self._micro_batches(samples, len(ends))))

    def _micro_batches(self, samples: int, cells: int) -> int:
        if self.micro_batches is None:
            return next((m for m in range(min(4 * cells, samples), samples) if samples % m == 0), samples)
        if samples % self.micro_batches:
            near = [m for m in range(1, samples + 1) if samples % m == 0]
            below = max((m for m in near if m < self.micro_batches), default=1)
            raise InputError(
                f"gpipe needs micro-batches of one size: {self.micro_batches} do not divide the batch of {samples}; "
                f"{below} do"
            )
        return self.micro_batches


class _Chain:
    """The layers of a graph in order: those of a captured model, or the ops of an imported profile."""

    def __init__(self, problem: Problem) -> None:
        self._graph = problem.graph
        self._layers, self._profile, self._kept = None, None, list[int]()
        if _imported(problem):
            self._profile = profile_of(problem, problem.graph.samples)
            self._kept = kept_nodes(self._profile)
            self.costs = tuple(1e6 * float(self._profile.seconds[v]) for v in self._kept)
        else:
            self._layers = layers_of(problem.graph)
            self.costs = self._layers.flops

    def entries(self, ends: Sequence[int]) -> list[tuple[str, ...]]:
        """`Stage.ops` of each cell."""
        pairs = list(zip((0, *ends), ends))
        if self._layers is not None:
            return [self._layers.entries(a, b) for a, b in pairs]
        assert self._profile is not None
        return [self._profile.entries(v) for v in with_the_rest(self._profile, [self._kept[a:b] for a, b in pairs])]

    def cells(self, plan: Plan) -> list[float]:
        """Cost of each cell of any plan."""
        if self._profile is None:
            ops = self._graph.ops
            return [sum(ops[i].flops for i in stage_ops(self._graph, stage)) for stage in plan.stages]
        cost = dict(zip(self._kept, self.costs))
        return [sum(cost.get(v, 0.0) for v in nodes) for nodes in self._profile.parts(plan)]


def _imported(problem: Problem) -> bool:
    return all(not op.call for op in problem.graph.ops)
