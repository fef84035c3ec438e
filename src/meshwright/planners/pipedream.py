"""PipeDream (Narayanan et al., SOSP 2019, DOI 10.1145/3341301.3359646): stages replicated unevenly, trained without a flush.

The optimizer minimises the time of the slowest stage in the steady state, level by level of a hierarchical cluster, over
the downsets of the layer graph (`solvers.antichains`, `solvers.replicated_stages`). Two forms of its cost:

    code     the public optimizer: compute + 4 (m − 1) / m · parameters / bandwidth, over m; transfers over m · ratio
    paper    section 3.1: max of compute and 2 (m − 1) · parameters / bandwidth, over m; transfers whole

A plan is asynchronous 1F1B: whole mini-batches are dealt to the replicas of a stage in turn, weights change after every
backward and are stashed from a mini-batch's forward to its backward; `vertical_sync` reads the version of the first stage.

On an imported profile nodes are its layers; on a captured model they are the layers between places where one value goes
on. In memory mode the in-flight copies are bounded as the public code bounds them.
"""

from __future__ import annotations

from math import inf
from typing import Literal

import numpy as np

from .._words import size
from ..cluster.model import Mesh
from ..errors import Infeasible, InputError, Unsupported
from ..graph.ir import Floats
from ..plan.model import Plan, Schedule, Stage, Weights
from ..plan.problem import Problem
from ..plan.schedules.asynchronous import warm_up
from ..solvers.antichains import Reach, States, bits, chains, condensed, prefixes, states_of
from ..solvers.replicated_stages import Rules, Solution, Tier, replicated_stages
from ._checked import above, whole
from ._profile import Profile, kept_nodes, profile_of, with_the_rest
from ._tiers import components, tiers_of
from .base import Planner
from .registry import register
from .types import Info, Json, Run


@register
class PipeDream(Planner):
    """Stages of least slowest time, with replicas.

    Args:
        cost: "code" or "paper".
        compression_ratio: of activations sent; None = transfers are free (code only), as the public optimizer has it.
        straight: no replicas.
        use_fewer_machines: leave components idle where that is no slower.
        memory_constraint: None = if the problem limits memory.
        least_copies: of a stage's weights and activations that memory holds at least, whatever is in flight; None = 0 for
            profiles with cost "code", where the public optimizer counts none in flight if the stage takes all workers left
            and so lets it pass, else 1.
        merge_chains: join unbranched chains first; None = if there are more than 5,000 states otherwise. Where there still
            are, cuts go along one topological order, and the bound is that of perfect balance.
        vertical_sync: all stages use the version that the first one had.
        micro_batch: samples of a mini-batch; None = the profile's, or a worker's share of the batch.
    """

    info = Info(
        name="pipedream",
        title="PipeDream: Generalized Pipeline Parallelism for DNN Training",
        year=2019,
        reference="DOI 10.1145/3341301.3359646",
        decides=frozenset({"stages", "replicas", "schedule"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time"}),
        family="pipeline",
    )
    unit = "s"

    def __init__(
        self,
        *,
        cost: Literal["code", "paper"] = "code",
        compression_ratio: float | None = None,
        straight: bool = False,
        use_fewer_machines: bool = False,
        memory_constraint: bool | None = None,
        least_copies: int | None = None,
        merge_chains: bool | None = None,
        vertical_sync: bool = False,
        micro_batch: int | None = None,
    ) -> None:
        if cost not in ("code", "paper"):
            raise InputError(f'pipedream has no cost "{cost}": there are code and paper')
        above("pipedream", "compression_ratio", compression_ratio)
        whole("pipedream", "micro_batch", micro_batch, what="sample")
        whole("pipedream", "least_copies", least_copies, 0)
        self.cost = cost
        self.least_copies = least_copies
        self.compression_ratio = compression_ratio
        self.straight = straight
        self.use_fewer_machines = use_fewer_machines
        self.memory_constraint = memory_constraint
        self.merge_chains = merge_chains
        self.vertical_sync = vertical_sync
        self.micro_batch = micro_batch

    def search(self, problem: Problem, run: Run) -> Json:
        """Exact over the states; the bound is proven where these are all downsets."""
        tiers = tiers_of(problem.cluster, "pipedream")
        profile = profile_of(problem, self._mini_batch(problem))
        kept = kept_nodes(profile)
        if not kept:
            raise InputError(
                "pipedream: every node is an input or an unused part of a tuple, so there is nothing to cut"
            )
        at = {v: i for i, v in enumerate(kept)}
        edges = [(at[a], at[b]) for a, b in profile.edges if a in at and b in at]
        rules = self._rules(problem)
        # Perfect balance and nothing to send; and one stage on all workers, which every search may fall back on.
        run.bound(float(profile.seconds[kept].sum()) / problem.cluster.count)
        needs = (profile.activation + profile.params)[kept]
        worst = int(needs.argmax())
        largest = f"{profile.graph.ops[profile.ops[kept[worst]][0]].name} alone takes {size(float(needs[worst]))}"
        if needs[worst] > rules.memory:
            raise Infeasible(f"no stages fit in {size(rules.memory)} a worker: {largest}")
        if not self.straight and rules.copies * float(needs.sum()) <= rules.memory:
            whole = Solution(inf, ((0, 0, tuple(range(problem.cluster.count))),))
            plan = self._plan(problem, profile, [kept], whole)
            run.offer(self.objective(problem, plan), lambda plan=plan: plan)  # type: ignore[misc]
        run.tick(1, "states", 0, 2)
        groups, states = self._states(len(kept), edges)
        columns = (
            np.array([profile.seconds[[kept[i] for i in own]].sum() for own in groups]),
            np.array([profile.activation[kept[own[-1]]] for own in groups]),
            np.array([profile.params[[kept[i] for i in own]].sum() for own in groups]),
        )
        run.tick(0, "stages", 1, 2)
        solution = replicated_stages(states, *columns, tiers, rules, lambda: run.tick(0, "stages", 1, 2))
        if solution is None and rules.memory == inf:
            raise Infeasible(
                f"a straight pipeline has a stage for each of {problem.cluster.count} workers, and the graph can be cut into "
                f"{len(groups)} at most: give fewer workers, or use_fewer_machines=true"
            )
        if solution is None:
            raise Infeasible(
                f"no stages fit in {size(rules.memory)} a worker: every cut has a stage whose weights and activations, "
                f"times the mini-batches in flight, are over it; {largest}"
            )
        inside = [
            np.flatnonzero(states.below[j] & ~(states.below[i - 1] if i else False)) for i, j, _ in solution.parts
        ]
        nodes = [sorted(kept[i] for g in own for i in groups[g]) for own in inside]
        plan = self._plan(problem, profile, nodes, solution)
        objective = self.objective(problem, plan)
        if states.complete and len(groups) == len(kept):
            run.bound(min(objective, solution.value))
        run.offer(objective, lambda: plan)
        run.tick(1, "stages", 2, 2)
        return self._said(columns[0], columns[2], tiers, solution, objective)

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Seconds a mini-batch in the steady state, of any stages whose replicas fill equal components level by level.

        Raises:
            Unsupported: stages that are not consecutive, or replicas spread unevenly over components.
        """
        return max(self.loads(problem, plan))

    def loads(self, problem: Problem, plan: Plan) -> tuple[float, ...]:
        """Seconds a mini-batch of each stage; of several that share components of the last level, what these take.

        Raises what `objective` raises.
        """
        tiers = tiers_of(problem.cluster, "pipedream")
        profile = profile_of(problem, self._mini_batch(problem))
        kept = set(kept_nodes(profile))
        parts = [
            (sorted(nodes & kept), frozenset(stage.mesh.devices))
            for nodes, stage in zip(profile.parts(plan), plan.stages)
        ]
        found = iter(_Price(profile, kept, tiers, self._rules(problem)).of([part for part in parts if part[0]]))
        return tuple(next(found) if part[0] else 0.0 for part in parts)

    def _states(self, n: int, edges: list[tuple[int, int]]) -> tuple[list[list[int]], States]:
        """Groups of nodes and their states: nodes themselves, else unbranched chains, else nodes in one order."""
        alone = [[v] for v in range(n)]
        ways = {None: (alone, chains(n, edges)), True: (chains(n, edges),), False: (alone,)}[self.merge_chains]
        for groups in ways:
            states = states_of(len(groups), condensed(groups, edges))
            if states is not None:
                return groups, states
        return alone, prefixes(n, edges)

    def _rules(self, problem: Problem) -> Rules:
        device = problem.cluster.type_of(0)
        limited = problem.limits.memory < inf
        copies = 0 if self.cost == "code" and _imported(problem) else 1
        constrained = limited if self.memory_constraint is None else self.memory_constraint
        return Rules(
            paper=self.cost == "paper",
            ratio=self.compression_ratio or 0.0,
            straight=self.straight,
            fewer=self.use_fewer_machines,
            memory=problem.limits.usable(device.memory) if constrained else inf,
            copies=copies if self.least_copies is None else self.least_copies,
        )

    def _mini_batch(self, problem: Problem) -> int:
        if self.micro_batch is not None:
            return self.micro_batch
        if _imported(problem):
            return problem.graph.samples
        return max(1, problem.recipe.samples // problem.cluster.count)

    def _plan(self, problem: Problem, profile: Profile, parts: list[list[int]], solution: Solution) -> Plan:
        stages = []
        for nodes, (_, _, devices) in zip(with_the_rest(profile, parts), solution.parts):
            own = profile.entries(nodes)
            mesh = Mesh(devices, ("data",), (len(devices),))
            stages.append(Stage(own, mesh, deal="data" if len(devices) > 1 else ""))
        samples = problem.recipe.samples
        replicas = ",".join(str(len(stage.mesh.devices)) for stage in stages)
        reads: Literal["entry", "newest"] = "entry" if self.vertical_sync else "newest"
        count = max(1, samples // profile.samples)
        weights = Weights(flush=False, update_every=1, reads=reads, stash=True)
        return Plan(
            problem.graph.digest,
            samples,
            tuple(stages),
            Schedule("pipedream", count, {"replicas": replicas}, (), weights),
        )

    def _said(
        self, seconds: Floats, params: Floats, tiers: tuple[Tier, ...], solution: Solution, objective: float
    ) -> Json:
        replicas = [len(devices) for _, _, devices in solution.parts]
        data_parallel, inner = float(seconds.sum()), 1
        for tier in tiers:
            n = tier.count
            data_parallel = (data_parallel + 4.0 * (n - 1) * float(params.sum()) / (tier.bandwidth * n) / inner) / n
            inner = n
        total = float(seconds.sum())
        return {
            "replicas": list(replicas),
            "in_flight": -(-sum(replicas) // replicas[0]),
            "versions": [warm_up(replicas, s) + 1 for s in range(len(replicas))],
            "speedup": total / objective if objective else inf,
            "data_parallel_speedup": total / data_parallel if data_parallel else inf,
        }


def _imported(problem: Problem) -> bool:
    return all(not op.call for op in problem.graph.ops)


class _Price:
    """The recurrence, read along one plan."""

    def __init__(self, profile: Profile, kept: set[int], tiers: tuple[Tier, ...], rules: Rules) -> None:
        self.profile, self.tiers, self.rules = profile, tiers, rules
        edges = [(a, b) for a, b in profile.edges if a in kept and b in kept]
        self.reach = Reach(len(profile), edges)
        self.all = sum(1 << v for v in kept)

    def of(self, parts: list[tuple[list[int], frozenset[int]]]) -> list[float]:
        """Seconds of each part."""
        done = 0
        ends = []
        for nodes, _ in parts:
            done |= sum(1 << v for v in nodes)
            ends.append(done)
            if any(self.reach.before[v] & self.all & ~done for v in nodes):
                raise Unsupported("pipedream prices stages that depend on earlier ones only")
        return self._level(len(self.tiers) - 1, parts, ends)

    def _level(self, level: int, parts: list[tuple[list[int], frozenset[int]]], ends: list[int]) -> list[float]:
        if level < 0:
            if len(parts) > 1:
                raise Unsupported("pipedream prices stages with devices of their own")
            return [float(self.profile.seconds[parts[0][0]].sum())]
        unit = 1
        for tier in self.tiers[:level]:
            unit *= tier.count
        tier = self.tiers[level]
        groups: list[tuple[frozenset[int], list[int]]] = []
        for i, (_, devices) in enumerate(parts):
            own = components(sorted(devices), unit)
            if groups and groups[-1][0] == own:
                groups[-1][1].append(i)
            else:
                groups.append((own, [i]))
        found: list[float] = []
        for number, (own, inside) in enumerate(groups):
            roots = {c // tier.count for c in own}
            copies = len(own) / len(roots)
            same = all(components(sorted(parts[i][1]), unit) == own for i in inside)
            if copies != int(copies) or not same or any(own & other for other, _ in groups[:number]):
                raise Unsupported("pipedream prices stages whose replicas fill equal components of every level")
            m = int(copies)
            work = max(self._level(level - 1, [parts[i] for i in inside], [ends[i] for i in inside]))
            params = float(sum(self.profile.params[v] for i in inside for v in parts[i][0]))
            before = ends[inside[0]] & ~sum(1 << v for v in parts[inside[0]][0])
            seconds = self._stage(level, number == 0, work, params, m, before, ends[inside[-1]])
            found += [seconds] * len(inside)
        return found

    def _stage(self, level: int, first: bool, work: float, params: float, m: int, before: int, end: int) -> float:
        rate, ratio = self.tiers[level].bandwidth, self.rules.ratio
        inner = self.tiers[level - 1].count if level and first else 1
        if self.rules.paper:
            t = max(work, 2.0 * (m - 1) * params / rate) / m
            return t if first else max(t, 2.0 * self._sent(before) / rate)
        t = (work + 4.0 * (m - 1) * params / (rate * m) / inner) / m
        if not first and ratio > 0:
            t = max(t, 2.0 * self._sent(before) / (rate * m * ratio))
            if end != self.all:
                t = max(t, 2.0 * self._sent(end) / (rate * m * ratio))
        return t

    def _sent(self, nodes: int) -> float:
        return float(sum(self.profile.activation[v] for v in bits(self.reach.front(nodes))))
