"""DistIR (Santhanam et al., arXiv 2111.05426, 2021): data, horizontal and pipeline degrees and micro-batches by simulation.

Every point (D, H, P, K) becomes ONE explicit distributed program, which a simulator of one clock a device plays call by
call (`simulate.distir`); the fastest that fits in memory is the plan (section 5).

    grid         D · H · P = all devices, each a power of two; K = 1 without a pipeline, else 2, 4, … 128; K · D | samples
    D            samples are cut, gradients summed once a step, each parameter alone
    H            products alternate between columns and rows, summed after every second (`layouts.expert`)
    P            equally many blocks a stage, whole blocks only; micro-batches by the authors' list schedule: a device
                 alternates between forward and backward when both are ready, which is DAPPLE's policy B
    devices      D groups of H groups of P neighbours
    memory       what is alive in the program; and what the product's own simulator says of the plan

Faithful: the program is the product's lowered one, with the authors' explicit sums and concatenations of micro-batches;
on their multi-layer perceptrons seconds, bytes and numbers of calls equal those of the public code. Prices are the problem's
(`costs="given"`) or the authors' own (`costs="paper"`). Not as there: the update is paid for every weight, not for the last
one a device only (`charge="last"` does as the public code), and data that nothing differentiates has no gradient.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from ..cluster.model import Mesh
from ..cost.distir import LAUNCH, DistIR
from ..errors import Infeasible, InputError, Unsupported
from ..layouts.expert import Expert, expert_of
from ..layouts.style import DP, TP, Style
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Problem
from ..simulate.distir import Charge, Step, distir_step
from ..simulate.fits import fits
from ._blocks import equal_parts
from ._checked import above, wholes
from ._profile import Profile, profile_of
from .base import Planner
from .registry import register
from .types import Choice, Info, Json, Run

GIB = 2.0**30
MICRO_BATCHES = (2, 4, 8, 16, 32, 64, 128)
TOP = 5
"""Plans kept beside the best, for the table."""


@dataclass(frozen=True, slots=True)
class Point:
    data: int
    horizontal: int
    stages: int
    micro_batches: int

    def words(self) -> str:
        degrees = (("dp", self.data), ("tp", self.horizontal), ("pp", self.stages))
        return " ".join(f"{name}{n}" for name, n in degrees if n > 1) or "dp1"


@register
class DistIRGrid(Planner):
    """Exhaustive grid over data, horizontal and pipeline degrees.

    Args:
        costs: "given" prices as the problem says; "paper" by the authors' cost functions on the cluster's figures.
        launch: seconds of a launch in the authors' cost functions.
        charge: "all" weights' updates are paid for, or the "last" of a device, as in the public code.
        micro_batches: K to try where there is a pipeline.
    """

    info = Info(
        name="distir",
        title="DistIR: An Intermediate Representation and Simulator for Efficient Neural Network Distribution",
        year=2021,
        reference="arXiv 2111.05426",
        decides=frozenset({"stages", "replicas", "shards", "schedule"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time"}),
        family="hybrid",
    )
    unit = "s"

    def __init__(
        self,
        *,
        costs: Literal["given", "paper"] = "given",
        launch: float = LAUNCH,
        charge: Charge = "all",
        micro_batches: tuple[int, ...] = MICRO_BATCHES,
    ) -> None:
        if costs not in ("given", "paper"):
            raise InputError(f'distir has no costs "{costs}": there are given and paper')
        if charge not in ("all", "last"):
            raise InputError(f'distir charges the update of all weights or of the last, not of "{charge}"')
        wholes("distir", "micro_batches", micro_batches, "counts")
        above("distir", "launch", launch, zero=True)
        self.costs = costs
        self.launch = launch
        self.charge = charge
        self.micro_batches = micro_batches

    def search(self, problem: Problem, run: Run) -> Json:
        """The whole grid. No bound: the simulator prices plans outside of it too, and some are faster."""
        self._check(problem)
        expert, profile = expert_of(problem.graph), profile_of(problem, problem.graph.samples)
        points = list(self.points(problem, expert, profile))
        if not points:
            raise Infeasible(self._no_point(problem))
        found: list[tuple[float, int, Choice]] = []
        nearest, refused = (inf, ""), 0
        for k, point in enumerate(points):
            plan = self.plan_of(problem, expert, profile, point)
            step = self._step(problem, plan)
            seconds, memory = float(step.clock.max()), float(step.peak.max())
            over, why = self._over(problem, plan, step)
            if over <= 0 and (len(found) < TOP or seconds < found[TOP - 1][0]):
                # The product's simulator also knows gradients in full precision, buffers and libraries.
                if misfit := fits(problem, plan):
                    over, why = inf, misfit
                else:
                    run.offer(seconds, lambda plan=plan: plan, memory)  # type: ignore[misc]
                    insort(found, (seconds, k, Choice(plan, seconds, memory)))
            if over > 0:
                refused += 1
                nearest = min(nearest, (over, why)) if nearest[1] else (over, why)
            run.show((), (len(points), refused))
            run.tick(1, "grid", k + 1, len(points))
        if not found:
            raise Infeasible(nearest[1])
        for _, _, choice in found[:TOP]:
            run.keep(choice)
        return {"points": len(points), "refused": refused}

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Simulated seconds of a step: throughput is the samples over it.

        Raises:
            Unsupported: ops without shapes, several pipes, or a plan without rows.
        """
        self._check(problem)
        return float(self._step(problem, plan).clock.max())

    def points(self, problem: Problem, expert: Expert, profile: Profile) -> Iterator[Point]:
        """In the order data, horizontal, pipeline, fewest micro-batches first."""
        count, samples = self._devices(problem), problem.recipe.samples
        degrees = {1, *expert.tensor_degrees(count)}
        for data in _powers(count):
            for horizontal in _powers(count // data):
                stages = count // (data * horizontal)
                if samples % data or horizontal not in degrees or equal_parts(profile, stages) is None:
                    continue
                for k in self.micro_batches if stages > 1 else (1,):
                    if samples % (data * k) == 0:
                        yield Point(data, horizontal, stages, k)

    def plan_of(self, problem: Problem, expert: Expert, profile: Profile, point: Point) -> Plan:
        """The plan of one point."""
        parts = equal_parts(profile, point.stages)
        assert parts is not None
        layout = expert.choices(Style(point.horizontal, False, 0, "none"))
        count = point.data * point.horizontal * point.stages
        stages = []
        for s, part in enumerate(parts):
            devices = range(s, count, point.stages)
            mesh = Mesh(devices, (DP, TP), (point.data, point.horizontal))
            stages.append(Stage(profile.entries(part.nodes), mesh, layout.shardings, layout.layouts, layout.storage))
        args: dict[str, int | float | str] = {"policy": "B"} if point.stages > 1 else {}
        schedule = Schedule("dapple" if args else "1f1b", point.micro_batches, args)
        return Plan(problem.graph.digest, problem.recipe.samples, tuple(stages), schedule)

    def _step(self, problem: Problem, plan: Plan) -> Step:
        if self.costs == "paper":
            problem = replace(problem, cost=DistIR(precision=problem.recipe.compute_dtype, launch=self.launch))
        return distir_step(problem, plan, charge=self.charge)

    def _over(self, problem: Problem, plan: Plan, step: Step) -> tuple[float, str]:
        """(bytes above what a device may hold, in words), of the fullest rank."""
        worst, why = -inf, ""
        for r, peak in enumerate(step.peak):
            device = problem.cluster.type_of(int(plan.stages[r].mesh.devices[0]))
            usable = problem.limits.usable(device.memory)
            if peak - usable > worst:
                worst = float(peak - usable)
                why = f"stage {r} needs {peak / GIB:.3g} GiB a device, over the usable {usable / GIB:.3g}"
        return worst, why

    def _check(self, problem: Problem) -> None:
        if any(not op.call for op in problem.graph.ops):
            raise Unsupported(
                "distir prices ops by their shapes, which an imported profile does not have: give it a captured model"
            )

    def _devices(self, problem: Problem) -> int:
        count = problem.limits.devices or problem.cluster.count
        if count & (count - 1):
            raise InputError(
                f"distir's grid is of powers of two: {count} devices are none, {1 << (count.bit_length() - 1)} would be"
            )
        return count

    def _no_point(self, problem: Problem) -> str:
        return (
            f"no grid of {self._devices(problem)} devices suits distir: data degree times micro-batches must divide the "
            f"{problem.recipe.samples} samples, and stages the blocks of the model"
        )


def _powers(n: int) -> list[int]:
    return [1 << k for k in range(n.bit_length()) if n % (1 << k) == 0]
