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
between layouts are not counted. Algorithm after the paper's abstract and the search of MindSpore, its nearest public relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import prod
from typing import Literal

from ..errors import Infeasible, InputError
from ..plan.model import Plan
from ..plan.problem import Goal, Problem
from ..solvers.elimination_order import Order, counted
from ..solvers.pareto import LIMIT, Frontier, frontier
from ._options import Options, memory_cap, no_choice, options_of, resized
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
        epsilon: of memories within this share of the limit only the fastest stays in any table; 0 = exact.
        limit: entries of a table, above which ops are eliminated heuristically.
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
        missing=("captured models: only recorded cost graphs and graphs of PaSE's format are planned",),
    )

    def __init__(
        self,
        *,
        objective: Literal["goal", "time", "memory", "devices"] = "goal",
        profile: tuple[int, ...] = (),
        counts: tuple[int, ...] = (),
        epsilon: float = 0.0,
        limit: int = LIMIT,
    ) -> None:
        if objective not in ("goal", "time", "memory", "devices"):
            raise InputError(f'tensoropt has no objective "{objective}": there are time, memory and devices')
        if not 0.0 <= epsilon < 1.0:
            raise InputError(f"tensoropt: epsilon is {epsilon:g}, wanted a share of 0 or more and below 1")
        if limit < 1 or any(n < 1 for n in (*profile, *counts)):
            raise InputError("tensoropt: limit, profile and counts are numbers of 1 or more")
        self.form = objective
        self.profile = profile
        self.counts = counts
        self.epsilon = epsilon
        self.limit = limit

    def search(self, problem: Problem, run: Run) -> Json:
        """Every point within the memory limit is kept; the plan is the one that the goal asks for.

        Raises:
            Infeasible: not even the least memory fits.
            Unsupported: other numbers of devices where prices are of one.
        """
        goal, cap = self._goal(problem), memory_cap(problem)
        told: list[Json] = []
        for n in self._counts(problem, goal):
            here = problem if n == problem.cluster.count else resized(problem, n)
            tracked = self._track(here, cap, run)
            told.append(tracked.told(n))
            found, options = tracked.found, tracked.options
            for k in range(len(found.memory)):
                plan = options.plan(found.choices[k])
                run.keep(Choice(plan, float(found.price[k]), float(found.memory[k])))
            if self.profile and n != self.profile[-1]:
                continue
            if len(found.memory):
                self._offer(problem, run, tracked, goal)
                break
        else:
            raise Infeasible(no_choice(problem, options.graph, cap))
        return {"exact": tracked.exact, "goal": goal, "frontiers": told}

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Time in the unit of the cost model, memory, or devices, by the goal.

        Raises:
            Unsupported: an op that is computed in a way that is no configuration.
        """
        goal = self._goal(problem)
        if goal == "devices":
            return float(len({d for stage in plan.stages for d in stage.mesh.devices}))
        options = options_of(problem)
        choice = options.choice(plan)
        return options.graph.cost(choice) if goal == "time" else options.graph.bytes(choice)

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

    def _track(self, problem: Problem, cap: float, run: Run) -> _Tracked:
        options = options_of(problem)
        graph = options.graph
        order, how = tracking_order([len(u) for u in graph.unary], graph.edges, self.limit)
        fixed = {v: int(graph.unary[v].argmin()) for v in how.fixed}
        found = frontier(
            graph, order, cap=cap, epsilon=self.epsilon, fixed=fixed, limit=self.limit,
            progress=lambda done, total: run.tick(1, "ops", done, total),
        )  # fmt: skip
        return _Tracked(options, found, how, not fixed and self.epsilon == 0.0)

    def _offer(self, problem: Problem, run: Run, tracked: _Tracked, goal: Goal) -> None:
        found = tracked.found
        k = 0 if goal == "memory" else len(found.memory) - 1
        plan = tracked.options.plan(found.choices[k])
        value = self.objective(problem, plan) if goal == "devices" else float((found.memory if goal == "memory" else found.price)[k])  # fmt: skip
        run.offer(value, lambda: plan, float(found.memory[k]))
        if tracked.exact and goal != "devices":
            run.bound(value)


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
