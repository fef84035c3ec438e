"""TensorOpt (Cai et al., arXiv 2004.10856, TPDS 2022): all plans that no other beats in both memory and time.

Every op has configurations with memory and time, every tensor a time for each pair of configurations of its ends. Both are
sums, so the frontier of the whole is found by frontier tracking (section 4), which takes ops out of the graph:

    edge elimination       two tables between the same ops become one: all sums of their points
    node elimination       an op between two others leaves a table between them, with a front for each pair
    branch elimination     an op with three or more neighbours leaves a table over all of them, which is what merging it into
                           one of them comes to
    heuristic elimination  where that table would be too large, the op with the most neighbours keeps the configuration of
                           least time; then the frontier is not proved, and `carry` counts such ops
    linear programme       when the rest is chains and trees, ops leave from their ends: pairs instead of triples

One option per question: the fastest plan under a memory limit (goal "time"), the plan of least memory ("memory"), the fewest
devices on which something fits ("devices"), or the frontiers of several numbers of devices (`profile`).

Memory is that of weights, gradients, optimizer state and kept activations, as the problem's cost model counts it; copies made
between layouts are not counted. On captured models equal blocks are treated alike, and the plan that is chosen also fits by
the simulator, which knows these copies; the bound is that of the frontier's own mesh. Algorithm after the paper's abstract and the search of MindSpore, its nearest public relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import prod
from typing import Literal

import numpy as np

from ..errors import Infeasible, InputError
from ..plan.model import Plan
from ..plan.problem import Goal, Problem
from ..solvers.domination import thinned
from ..solvers.elimination_order import Order, counted
from ..solvers.pareto import LIMIT, Frontier, frontier
from ._captured import SAME, CapturedOptions, excess_of, meshes_of, peak_of, price_of
from ._checked import above, whole, wholes, word
from ._options import Options, is_recorded, memory_cap, no_choice, options_of, resized
from .base import Planner
from .registry import register
from .types import Choice, Info, Json, Run

NO_POINTS = Frontier(np.zeros(0), np.zeros(0), np.zeros((0, 0), np.int32), 0, 0)


@register
class TensorOpt(Planner):
    """The frontier of memory and time.

    Args:
        objective: "time", "memory" or "devices"; "goal" = the problem's.
        profile: numbers of devices whose frontiers are all kept; the last is the one that a plan is chosen from.
        counts: numbers of devices that "devices" tries; () = 1, 2, 4, … and all.
        epsilon: of memories within this share of the limit only the fastest stays in any table; 0 = exact.
        limit: entries of a table, above which ops are eliminated heuristically.
        axes: sizes of the mesh axes on a captured model; () = one axis of all devices.
        micro_batches: of a step of a captured model.
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
        missing=("frontiers over two or more mesh axes at once, which take minutes, unless axes are given",),
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
        micro_batches: int = 1,
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
        goal, cap = self._goal(problem), memory_cap(problem)
        told: list[Json] = []
        why = ""
        for n in self._counts(problem, goal):
            tracked = self._track(problem, n, cap, run)
            told.append(tracked.told(n))
            plans = [tracked.options.plan(choice) for choice in tracked.found.choices]
            for plan, price, memory in zip(plans, tracked.found.price, tracked.found.memory, strict=True):
                run.keep(Choice(plan, float(price), float(memory)))
            if self.profile and n != self.profile[-1]:
                continue
            why = self._offer(problem, run, tracked, plans, goal) if plans else ""
            if plans and not why:
                break
        else:
            raise Infeasible(why or no_choice(problem, tracked.options.graph, cap))
        return {"exact": tracked.exact, "goal": goal, "frontiers": told}

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

    def _track(self, problem: Problem, devices: int, cap: float, run: Run) -> _Tracked:
        options: Options
        if is_recorded(problem):
            options = options_of(problem if devices == problem.cluster.count else resized(problem, devices))
        else:
            options = CapturedOptions(problem, meshes_of(problem, devices, self.axes)[0], self.micro_batches)
        small = thinned(options.graph)
        graph = small.graph
        order, how = tracking_order([len(u) for u in graph.unary], graph.edges, self.limit)
        fixed = {v: int(graph.unary[v].argmin()) for v in how.fixed}
        if min(map(len, graph.unary)) == 0:
            return _Tracked(options, NO_POINTS, how, True)
        found = frontier(
            graph, order, cap=cap, epsilon=self.epsilon, fixed=fixed, limit=self.limit,
            progress=lambda done, total: run.tick(1, "ops", done, total),
        )  # fmt: skip
        found = replace(found, choices=small.restored(found.choices))
        return _Tracked(options, found, how, not fixed and self.epsilon == 0.0)

    def _offer(self, problem: Problem, run: Run, tracked: _Tracked, plans: Sequence[Plan], goal: Goal) -> str:
        """Offer what the goal asks for; "", or why no point of the frontier fits."""
        found, recorded = tracked.found, is_recorded(problem)
        ks = list(range(len(plans))) if goal == "memory" else list(reversed(range(len(plans))))
        why = ""
        for k in ks:
            over, why = (0.0, "") if recorded else excess_of(problem, plans[k])
            if over:
                continue
            value = self.objective(problem, plans[k])
            run.offer(value, lambda k=k: plans[k], float(found.memory[k]))  # type: ignore[misc]
            if tracked.exact and recorded and goal != "devices":
                run.bound(value)
            elif tracked.exact and goal == "time":
                price = float(found.price[-1])
                run.bound(value if abs(value - price) < SAME * value else price)
            break
        return why


@dataclass(frozen=True, slots=True)
class How:
    """Eliminations of each kind."""

    node: int
    branch: int
    edge: int
    linear: int
    fixed: tuple[int, ...]
    """Ops that were eliminated heuristically."""


@dataclass(frozen=True, slots=True)
class _Tracked:
    options: Options
    found: Frontier
    how: How
    exact: bool

    def told(self, devices: int) -> Json:
        found, how = self.found, self.how
        count = len(found.memory)
        return {
            "devices": devices,
            "points": count,
            "least_memory": float(found.memory[0]) if count else None,
            "its_time": float(found.price[0]) if count else None,
            "least_time": float(found.price[-1]) if count else None,
            "its_memory": float(found.memory[-1]) if count else None,
            "points_in_all_tables": found.points,
            "most_points_in_a_front": found.most,
            "eliminations": {
                "node": how.node, "branch": how.branch, "edge": how.edge, "linear": how.linear, "heuristic": len(how.fixed),
            },
        }  # fmt: skip


def tracking_order(sizes: Sequence[int], edges: Sequence[tuple[int, int]], limit: int) -> tuple[Order, How]:
    """The order in which frontier tracking takes ops out, and by which kind of elimination.

    Ops at ends of what hangs on the rest leave first; then those between two others inside a cycle, whose ends meet in
    parallel tables at last; then the op of a cycle that leaves the smallest table. Of equals, the lowest.
    """
    import networkx as nx

    near: list[set[int]] = [set() for _ in sizes]
    for u, v in edges:
        if u != v:
            near[u].add(v)
            near[v].add(u)
    counts = {"node": 0, "branch": 0, "linear": 0, "edge": len(edges) - sum(map(len, near)) // 2}
    sequence: list[int] = []
    scopes: list[tuple[int, ...]] = []
    fixed: list[int] = []
    left = set(range(len(sizes)))

    def leave(v: int, kind: str) -> None:
        scope = tuple(sorted(near[v]))
        counts[kind] += 1
        if kind == "node" and scope[1] in near[scope[0]]:
            counts["edge"] += 1
        for u in scope:
            near[u] |= near[v]
            near[u] -= {u, v}
        near[v] = set()
        sequence.append(v)
        scopes.append(scope)
        left.discard(v)

    while left:
        ends = sorted(v for v in left if len(near[v]) <= 1)
        while ends:
            v = heappop(ends)
            if v in left:
                around = list(near[v])
                leave(v, "linear")
                for u in around:
                    if len(near[u]) <= 1:
                        heappush(ends, u)
        if not left:
            break
        graph = nx.Graph((u, v) for u in left for v in near[u])
        bridges = {frozenset(e) for e in nx.bridges(graph)}
        inside = [
            v for v in sorted(left) if len(near[v]) == 2 and not any(frozenset((u, v)) in bridges for u in near[v])
        ]
        if inside:
            for v in inside:
                if len(near[v]) == 2:
                    leave(v, "node")
            continue
        cyclic = [v for v in left if any(frozenset((u, v)) not in bridges for u in near[v])]
        weight, v = min((prod(sizes[u] for u in (*near[v], v)), v) for v in cyclic)
        if weight <= limit:
            leave(v, "branch")
            continue
        hub = max(left, key=lambda v: (len(near[v]), sizes[v], -v))
        fixed.append(hub)
        for u in near[hub]:
            near[u].discard(hub)
        near[hub] = set()
        left.discard(hub)
    order = counted(sequence, scopes, sizes)
    return order, How(counts["node"], counts["branch"], counts["edge"], counts["linear"], tuple(sorted(fixed)))
