"""Alpa (Zheng et al., OSDI 2022, arXiv 2201.12023): stages of layers on submeshes, each sharded by an integer programme.

    ops ─ clustering ─▶ layers ─┬─ intra-operator programme per (interval of layers, submesh, logical shape) ─▶ seconds, memory
                                └─ inter-operator programme over (stages, layers, devices), every t_max ─▶ stages

Recorded inputs of any one part are planned by that part (`_alpa_recorded`): option tables by the intra-operator programme,
stage tables by the inter-operator one, graphs without times by clustering.
"""

from __future__ import annotations

from ..errors import Unsupported
from ..plan.model import Plan
from ..plan.problem import Problem
from ._alpa_recorded import recorded
from ._checked import above
from .base import Planner
from .registry import register
from .types import Info, Json, Run


@register
class Alpa(Planner):
    """Hierarchical: how operators are sharded inside stages, and which stages on which devices.

    Args:
        tolerance: of clustering: a layer may have (1 + tolerance) times the mean FLOPs.
        inference: stages in lockstep without backward, of recorded prices of stages.
    """

    info = Info(
        name="alpa",
        title="Alpa: Automating Inter- and Intra-Operator Parallelism for Distributed Deep Learning",
        year=2022,
        reference="arXiv 2201.12023",
        decides=frozenset({"stages", "replicas", "shards", "schedule"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time"}),
        family="hybrid",
        missing=("captured models: only recorded inputs of its three parts are planned",),
    )

    def __init__(self, *, tolerance: float = 0.5, inference: bool = False) -> None:
        above("alpa", "tolerance", tolerance, zero=True)
        self.tolerance = tolerance
        self.inference = inference

    def search(self, problem: Problem, run: Run) -> Json:
        """Raises:
        Unsupported: a captured model.
        """
        part = recorded(problem, self.tolerance, self.inference)
        if part is None:
            raise Unsupported("planner alpa cannot plan captured models yet: give it recorded tables")
        return part.search(run)

    def objective(self, problem: Problem, plan: Plan) -> float:
        part = recorded(problem, self.tolerance, self.inference)
        if part is None:
            raise Unsupported("planner alpa cannot price plans of captured models yet: give it recorded tables")
        return part.objective(plan)

    def loads(self, problem: Problem, plan: Plan) -> tuple[float, ...]:
        part = recorded(problem, self.tolerance, self.inference)
        return part.loads(plan) if part is not None else ()
