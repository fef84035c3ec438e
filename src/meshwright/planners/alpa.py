"""Alpa (Zheng et al., OSDI 2022, arXiv 2201.12023): stages of layers on submeshes, each sharded by an integer programme.

    ops ─ clustering ─▶ layers ─┬─ intra-operator programme per (interval of layers, submesh, logical shape) ─▶ seconds, memory
                                └─ inter-operator programme over (stages, layers, devices), every t_max ─▶ stages

    clustering        `solvers.clustering`        largest boundary least, layers of like work
    intra-operator    `_alpa_intervals`           one option per op of the shared cost graph (compute and communication, any
                                                  layout of values and parameters at rest), solved with a proof
    inter-operator    `solvers.stage_programme`   Σ t + (B − 1) · max t, all devices, memory in flight by 1F1B
    placement         `solvers.stage_programme`   larger submeshes first, parts of hosts inside a host

Recorded inputs of any one part are planned by that part (`_alpa_recorded`): option tables by the intra-operator programme,
stage tables by the inter-operator one, graphs without times by clustering. The strategies and alpha-beta prices of the authors'
code, by which they assert objectives of whole steps, are in `_alpa_space`. Where stages meet, tensors are re-laid by the runtime (tiles sent once, gathered
locally), which the objective leaves out as the paper's does, and the simulator counts.
"""

from __future__ import annotations

from typing import get_args

from ..plan.model import Plan
from ..plan.problem import Problem
from ..simulate.additive import additive
from ..solvers.stage_programme import SPACES, Space
from . import _alpa_model
from ._alpa_intervals import Minimised
from ._alpa_model import Choices
from ._alpa_recorded import recorded
from ._checked import above, whole, word
from .base import Planner
from .registry import register
from .types import Info, Json, Run


@register
class Alpa(Planner):
    """Hierarchical: how operators are sharded inside stages, and which stages on which devices.

    Args:
        layers: that ops are clustered into; None = 8, or fewer where the rule of like work allows no eight.
        micro_batches: B; None = the best of 1, about 8 and about 32; where none of these fits, more.
        submeshes: over hosts: "all" numbers of them, "power_of_two" or "small_power_of_two"; None = all of up to 8 hosts,
            powers of two of more.
        tolerance: of clustering: a layer may have (1 + tolerance) times the mean FLOPs.
        imbalance: shares of FLOPs and of devices of a stage differ by at most the factor 1 + imbalance (the authors' pruning).
        inference: stages in lockstep without backward, of recorded prices of stages.
        minimised: by the intra-operator programme: "time", or "communication" alone as in the paper (products use every axis,
            light ops are free). What a stage costs is its time either way.
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
    )

    def __init__(
        self,
        *,
        layers: int | None = None,
        micro_batches: int | None = None,
        submeshes: Space | None = None,
        tolerance: float = 0.5,
        imbalance: float = 1.0,
        inference: bool = False,
        minimised: Minimised = "time",
    ) -> None:
        above("alpa", "tolerance", tolerance, zero=True)
        above("alpa", "imbalance", imbalance, zero=True)
        whole("alpa", "layers", layers)
        whole("alpa", "micro_batches", micro_batches)
        word("alpa", "space of submeshes", submeshes, SPACES)
        word("alpa", "what is minimised", minimised, get_args(Minimised))
        self.layers = layers
        self.micro_batches = micro_batches
        self.submeshes = submeshes
        self.tolerance = tolerance
        self.imbalance = imbalance
        self.inference = inference
        self.minimised: Minimised = minimised

    def search(self, problem: Problem, run: Run) -> Json:
        """The best stages for each number of micro-batches."""
        part = recorded(problem, self.tolerance, self.inference)
        if part is not None:
            return part.search(run)
        choices = Choices(
            self.layers, self.micro_batches, self.submeshes, self.tolerance, self.imbalance, self.minimised
        )
        return _alpa_model.search(problem, choices, run)

    def objective(self, problem: Problem, plan: Plan) -> float:
        part = recorded(problem, self.tolerance, self.inference)
        return part.objective(plan) if part is not None else _alpa_model.objective(problem, plan)

    def loads(self, problem: Problem, plan: Plan) -> tuple[float, ...]:
        part = recorded(problem, self.tolerance, self.inference)
        return part.loads(plan) if part is not None else additive(problem, plan)
