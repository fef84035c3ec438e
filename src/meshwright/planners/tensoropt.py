"""TensorOpt (Cai et al., arXiv 2004.10856, TPDS 2022): all plans that no other beats in both memory and time.

Every op has configurations with memory and time, every tensor a time for each pair of configurations of its ends. Both are
sums, so the frontier of the whole is found by frontier tracking (section 4), which takes ops out of the graph:

    edge elimination       two tables between the same ops become one: all sums of their points
    node elimination       an op between two others leaves a table between them, with a front for each pair
    branch elimination     an op with three or more neighbours leaves a table over all of them, which is what merging it into
                           one of them comes to
    heuristic elimination  where that table would be too large, the op with the most neighbours keeps the configuration of
                           least time; then the frontier is not proved, `carry` counts such ops, and says how far from it
                           the plans may be
    linear programme       when the rest is chains and trees, ops leave from their ends: pairs instead of triples

One option per question: the fastest plan under a memory limit (goal "time"), the plan of least memory ("memory"), the fewest
devices on which something fits ("devices"), or the frontiers of several numbers of devices (`profile`).

Memory is that of weights, gradients, optimizer state and kept activations, as the problem's cost model counts it; copies made
between layouts are not counted. On captured models equal blocks are treated alike, and the plan that is chosen also fits by
the simulator, which knows these copies. There the frontier is that of several meshes together: one axis of all devices, and
every two axes that make them, as Alpa's logical shapes; the bound is that of these.

To be fast, points are also dropped of which nothing new can come: the convex hull of the frontier is found first, and what
completes a point costs, along each line of the hull, at least what an elimination there and back says, or messages where its
tables would be too large. Nothing of the frontier is lost, and ops lose so many options that their tables become small. `epsilon` thins it with a guarantee: what is left out is within that share of a plan that is kept, in memory and in
time, and both ends are exact.
Algorithm after the paper's abstract and the search of MindSpore, its nearest public relative; the hull and the bounds are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from .._words import percent
from ..errors import Infeasible, InputError
from ..plan.model import Plan
from ..plan.problem import Goal, Problem
from ..solvers.cost_graph import CostGraph
from ..solvers.gaps import unbeaten
from ..solvers.pareto import LIMIT
from ..solvers.tracking import Tracked, tracked
from ._captured import (
    SAME,
    CapturedOptions,
    excess_of,
    meshes_of,
    micro_batches_to_try,
    peak_of,
    price_of,
)
from ._checked import above, whole, wholes, word
from ._options import Options, is_recorded, memory_cap, no_choice, options_of, resized
from .base import Planner
from .registry import register
from .types import Choice, Info, Json, Run


@register
class TensorOpt(Planner):
    """The frontier of memory and time.

    Args:
        objective: "time", "memory" or "devices"; "goal" = the problem's.
        profile: numbers of devices whose frontiers are all kept; the last is the one that a plan is chosen from.
        counts: numbers of devices that "devices" tries; () = 1, 2, 4, … and all.
        epsilon: every plan of the frontier is within this share of one that is kept, in memory and in time; 0 = all are kept.
        limit: entries of a table, above which ops are eliminated heuristically.
        axes: sizes of the mesh axes on a captured model; () = one axis of all devices, and every two of them.
        micro_batches: of a step of a captured model; None = 1, or the fewest of 2, 4, 8, … that fit.
    """

    info = Info(
        name="tensoropt",
        title="TensorOpt: Exploring the Tradeoffs in Distributed DNN Training with Auto-Parallelism",
        year=2020,
        reference="arXiv 2004.10856",
        decides=frozenset({"shards", "replicas"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time", "memory", "devices"}),
        family="tensor",
    )

    def __init__(
        self,
        *,
        objective: Literal["goal", "time", "memory", "devices"] = "goal",
        profile: tuple[int, ...] = (),
        counts: tuple[int, ...] = (),
        epsilon: float = 0.0,
        limit: int = LIMIT,
        axes: tuple[int, ...] = (),
        micro_batches: int | None = None,
    ) -> None:
        word("tensoropt", "objective", objective, ("goal", "time", "memory", "devices"))
        above("tensoropt", "epsilon", epsilon, zero=True)
        if epsilon >= 1.0:
            raise InputError(f"tensoropt: epsilon is {epsilon:g}, it must be a share below 1")
        whole("tensoropt", "limit", limit)
        whole("tensoropt", "micro_batches", micro_batches)
        for name, values in (("profile", profile), ("counts", counts), ("axes", axes)):
            if values:
                wholes("tensoropt", name, values, "numbers")
        self.form = objective
        self.profile = profile
        self.counts = counts
        self.epsilon = epsilon
        self.limit = limit
        self.axes = axes
        self.micro_batches = micro_batches

    def search(self, problem: Problem, run: Run) -> Json:
        """Every point within the memory limit is kept; the plan is the one that the goal asks for.

        Raises:
            Infeasible: not even the least memory fits.
            Unsupported: other numbers of devices where prices are of one.
        """
        why = ""
        for micro_batches in micro_batches_to_try(problem, self.micro_batches):
            found, why = self._frontiers(problem, micro_batches, run)
            if not why:
                return found
        raise Infeasible(why)

    def _frontiers(self, problem: Problem, micro_batches: int, run: Run) -> tuple[Json, str]:
        """(what is told, why nothing fits), one of them empty."""
        goal, cap = self._goal(problem), memory_cap(problem)
        told: list[Json] = []
        why = ""
        for n in self._counts(problem, goal):
            union = self._union(problem, n, micro_batches, cap, run)
            told.append(union.told())
            asked = bool(self.profile) and n != self.profile[-1]
            if not asked:
                why = self._offer(problem, run, union, goal) if union.points else ""
            if asked or not why:
                for point in union.points:
                    run.keep(Choice(point.plan, point.price, point.memory))
            if union.points and not asked and not why:
                break
        else:
            graphs = [options.graph for options, _ in union.searches]
            return None, why or no_choice(problem, min(graphs, key=least_bytes), cap)
        found: dict[str, Json] = {"exact": union.exact, "epsilon": self.epsilon, "goal": goal, "frontiers": told}
        notes: list[Json] = []
        if self.epsilon:
            share = percent(self.epsilon)
            notes.append(f"every plan of the frontier is within {share}, in memory and in time, of one that is kept")
        if not union.proved and union.points:
            faster, smaller = union.off
            found["off"] = {"faster": faster, "smaller": smaller}
            notes.append(
                f"the frontier is not proved: no plan is more than {percent(faster)} faster than one of it that needs no more "
                f"memory, and none needs more than {percent(smaller)} less memory than its leanest"
            )
        if notes:
            found["notes"] = notes
        return found, ""

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Time in the unit of the cost model, memory, or devices, by the goal.

        Raises:
            Unsupported: recorded prices, and an op that is computed in a way that is no configuration.
        """
        goal = self._goal(problem)
        if goal == "devices":
            return float(len({d for stage in plan.stages for d in stage.mesh.devices}))
        if not is_recorded(problem):
            return price_of(problem, plan) if goal == "time" else peak_of(problem, plan)
        options = options_of(problem)
        choice = options.choice(plan)
        return options.graph.cost(choice) if goal == "time" else options.graph.bytes(choice)

    def contains(self, problem: Problem, plan: Plan) -> bool:
        """On captured models there is a bound for what has the frontier's own mesh, and it is not of all plans."""
        return is_recorded(problem)

    def unit_of(self, problem: Problem) -> str:
        """Memory is in what the cost model counts: bytes, or elements."""
        return {"devices": "devices", "memory": "memory"}.get(self._goal(problem), problem.cost.unit)

    def _goal(self, problem: Problem) -> Goal:
        return problem.goal if self.form == "goal" else self.form

    def _counts(self, problem: Problem, goal: Goal) -> Sequence[int]:
        count = problem.cluster.count
        for n in (*self.profile, *self.counts):
            if n > count:
                raise InputError(f"tensoropt: {n} devices are asked about, the cluster has {count}")
        if goal == "devices":
            return sorted(set(self.counts or (*(2**k for k in range(count.bit_length())), count)))
        return self.profile or (count,)

    def _union(self, problem: Problem, devices: int, micro_batches: int, cap: float, run: Run) -> _Union:
        """The frontiers of all meshes of so many devices; what a point of another mesh beats is left out."""
        union = _Union(devices, self.epsilon, cap)
        for options in self._options(problem, devices, micro_batches):
            union.add(options, self.limit, run)
        return union

    def _options(self, problem: Problem, devices: int, micro_batches: int) -> Iterator[Options]:
        if is_recorded(problem):
            yield options_of(problem if devices == problem.cluster.count else resized(problem, devices))
            return
        for mesh in meshes_of(problem, devices, self.axes):
            yield CapturedOptions(problem, mesh, micro_batches)

    def _offer(self, problem: Problem, run: Run, union: _Union, goal: Goal) -> str:
        """Offer what the goal asks for; "", or why no point of the frontier fits."""
        recorded = is_recorded(problem)
        why = ""
        for point in union.points if goal == "memory" else reversed(union.points):
            over, why = (0.0, "") if recorded else excess_of(problem, point.plan)
            if over:
                continue
            value = self.objective(problem, point.plan)
            run.offer(value, lambda point=point: point.plan, point.memory)  # type: ignore[misc]
            if goal == "time" and union.proved:
                least = union.least_time
                run.bound(value if abs(value - least) < SAME * abs(value) else least)
            elif goal == "memory" and union.proved and recorded:
                run.bound(value)
            break
        return why


def least_bytes(graph: CostGraph) -> float:
    """No choice needs less."""
    return sum(float(own.min()) for own in graph.memory)


@dataclass(eq=False)
class _Point:
    memory: float
    price: float
    options: Options
    choice: tuple[int, ...]

    @cached_property
    def plan(self) -> Plan:
        return self.options.plan(self.choice)


@dataclass(eq=False)
class _Union:
    """The frontiers of several meshes as one."""

    devices: int
    epsilon: float
    cap: float
    searches: list[tuple[Options, Tracked]] = field(default_factory=list)
    points: list[_Point] = field(default_factory=list)
    """By memory; none beats another."""

    def add(self, options: Options, limit: int, run: Run) -> None:
        """Search one more mesh for points that none of those before beats."""
        before = np.array([p.memory for p in self.points]), np.array([p.price for p in self.points])
        found = tracked(
            options.graph, cap=self.cap, epsilon=self.epsilon, limit=limit, elsewhere=before if self.points else None,
            progress=lambda phase, done, total: run.tick(1, phase, done, total),
        )  # fmt: skip
        self.searches.append((options, found))
        new = zip(found.memory.tolist(), found.price.tolist(), map(tuple, found.choices.tolist()), strict=True)
        every = [*self.points, *(_Point(memory, price, options, choice) for memory, price, choice in new)]
        best = unbeaten(np.array([p.memory for p in every]), np.array([p.price for p in every]))
        self.points = [every[k] for k in best]

    @property
    def proved(self) -> bool:
        """Whether least memory and least time are."""
        return not any(found.how.fixed for _, found in self.searches)

    @property
    def off(self) -> tuple[float, float]:
        """Shares (of time, of memory) by which a plan may be better at most where that is not proved."""
        every = [found.off for _, found in self.searches]
        return max(x.faster for x in every), max(x.smaller for x in every)

    @property
    def exact(self) -> bool:
        return self.proved and self.epsilon == 0.0

    @property
    def least_time(self) -> float:
        """No choice within the cap is faster, where that is proved."""
        fastest, least = self.points[-1].price, min(found.fastest for _, found in self.searches)
        return (
            fastest
            if self.epsilon == 0.0 or fastest <= least + SAME * abs(least)
            else fastest - self.epsilon * abs(fastest)
        )

    def told(self) -> Json:
        first, last = (self.points[0], self.points[-1]) if self.points else (None, None)
        return {
            "devices": self.devices,
            "points": len(self.points),
            "least_memory": first.memory if first else None,
            "its_time": first.price if first else None,
            "least_time": last.price if last else None,
            "its_memory": last.memory if last else None,
            "searches": [self._told(options, found) for options, found in self.searches],
        }

    def _told(self, options: Options, found: Tracked) -> Json:
        how = found.how
        shape = options.intra.mesh.shape if isinstance(options, CapturedOptions) else ()
        return {
            **({"mesh": "×".join(map(str, shape)) or "1"} if isinstance(options, CapturedOptions) else {}),
            "points": sum(p.options is options for p in self.points),
            "lines": found.lines,
            "points_in_all_tables": found.points,
            "most_points_in_a_front": found.most,
            "eliminations": {
                "node": how.node, "branch": how.branch, "edge": how.edge, "linear": how.linear, "heuristic": len(how.fixed),
            },
        }  # fmt: skip
