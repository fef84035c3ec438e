"""Piper (Tarnawski, Narayanan, Phanishayee, NeurIPS 2021): stages, replicas, parts and recomputation of each layer, jointly.

Objective: seconds per micro-batch of the slowest stage, in steady state. Decides on any DAG: stages such that every suffix
is closed under successors, per stage data-parallel d (dividing the micro-batches) and tensor-parallel t, per layer one of
its configurations. A stage stashes ⌈s/d⌉ micro-batches, s being the replicas of it and all later stages.

Faithful: the objective with both ends paying twice for a cut edge and 4(d − 1)/d of the weights per batch; the knapsack
that swaps by seconds per byte once (`knapsack="greedy"`); the equal partitions and the ablations of its study. The
optimum over downsets is found by bisection on the bottleneck, not by the table of the original: same value.
A captured model is planned in one part a layer; there replicas are equal unless `uneven` is set. Its stages cut the samples of
as many micro-batches at once as all replicas divide, where the batch has them; else, and on a profile, whole micro-batches
are dealt out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, lcm
from typing import Literal

from .._words import size
from ..cluster.model import Mesh
from ..cost.choices import Profile
from ..errors import Infeasible, InputError, Unsupported
from ..plan.model import Cut, OpSharding, Plan, Schedule, Stage
from ..plan.problem import Problem
from ..simulate.fits import fits
from ..solvers.staged_partition import (
    Layers,
    Machine,
    Options,
    Staged,
    evaluate,
    price,
    staged_partition,
)
from ._checked import whole
from ._piper_equi import equi_partition
from ._piper_layers import Seen, machine, seen, staged
from .base import Planner
from .registry import register
from .types import Info, Json, Run

SHRINK = 6
"""Times that the memory of a captured model's plan is lowered when the simulator finds that it does not fit."""


@register
class Piper(Planner):
    """Slowest stage, over downsets of layers.

    Args:
        method: "piper", or a baseline: "equi" (tries the outer layers with and without stages of their own),
            "equi_joined" (without); each with "_no_tp".
        knapsack: "greedy" as published, "repeated" (any number of configurations), "exact".
        data_parallel, tensor_parallel: off for the ablations.
        recompute: "choose" per layer, "never", "always", or "all_or_nothing" per stage.
        micro_batches: a step; None = what the profile says, or the fewest that divide the batch and are 4 a device.
        uneven: replicas differ from stage to stage; None = for profiles only.
    """

    info = Info(
        name="piper",
        title="Piper: Multidimensional Planner for DNN Parallelization",
        year=2021,
        reference="NeurIPS 2021",
        decides=frozenset({"stages", "replicas", "shards", "recompute"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time"}),
        family="pipeline",
    )
    unit = "s/micro-batch"

    def __init__(
        self,
        *,
        method: Literal["piper", "equi", "equi_no_tp", "equi_joined", "equi_joined_no_tp"] = "piper",
        knapsack: Literal["greedy", "repeated", "exact"] = "greedy",
        data_parallel: bool = True,
        tensor_parallel: bool = True,
        recompute: Literal["choose", "never", "always", "all_or_nothing"] = "choose",
        micro_batches: int | None = None,
        uneven: bool | None = None,
    ) -> None:
        for name, value, known in (
            ("method", method, ("piper", "equi", "equi_no_tp", "equi_joined", "equi_joined_no_tp")),
            ("knapsack", knapsack, ("greedy", "repeated", "exact")),
            ("recompute", recompute, ("choose", "never", "always", "all_or_nothing")),
        ):
            if value not in known:
                raise InputError(f'piper has no {name} "{value}": there are {", ".join(known)}')
        whole("piper", "micro_batches", micro_batches)
        self.method = method
        self.knapsack = knapsack
        self.data_parallel = data_parallel
        self.tensor_parallel = tensor_parallel
        self.recompute = recompute
        self.micro_batches = micro_batches
        self.uneven = uneven

    def search(self, problem: Problem, run: Run) -> Json:
        """Offers every plan on the way; the bound is over cuts, replicas and parts, configurations being chosen by the rule."""
        found = seen(problem, self._batch(problem))
        where = machine(problem, self._batch(problem))
        for attempt in range(SHRINK):
            answer = self._solve(problem, run, found, where, attempt == 0)
            if answer is None:
                raise Infeasible(_why(found, where))
            stages = answer
            if found.profiled or self._is_uneven(found):
                break
            plan = self._plan(problem, found, stages)
            if fits(problem, plan) is None:
                run.offer(self.objective(problem, plan), lambda plan=plan: plan)  # type: ignore[misc]
                break
            # The model counts stashed micro-batches and state; the simulator also workspace and buffers.
            where = replace(where, memory=0.8 * min(where.memory, self._held(found, where, stages)))
        else:
            raise Infeasible(fits(problem, self._plan(problem, found, stages)) or _why(found, where))
        return [{"layers": len(s.items), "d": s.d, "t": s.t} for s in stages]

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Seconds per micro-batch of the slowest stage.

        Raises:
            Unsupported: other axes than dp and tp, other micro-batches than planned for, or stages that cut layers.
        """
        batch = self._batch(problem)
        found = seen(problem, batch)
        if plan.schedule.name != "1f1b":
            raise Unsupported(f"piper prices the schedule 1f1b, not {plan.schedule.name}")
        stages = staged(problem, plan, found)
        cut = {s.mesh.size("dp") for s in plan.stages if not s.deal}
        count = plan.schedule.micro_batches * lcm(*cut)
        if count != batch:
            raise Unsupported(f"piper prices {batch} micro-batches here, the plan has {count}")
        where = replace(machine(problem, batch), memory=inf)
        return evaluate(found.layers, where, stages)

    def loads(self, problem: Problem, plan: Plan) -> tuple[float, ...]:
        """Seconds of each stage for one micro-batch."""
        batch = self._batch(problem)
        found = seen(problem, batch)
        where = replace(machine(problem, batch), memory=inf)
        return tuple(evaluate(found.layers, where, (stage,)) for stage in staged(problem, plan, found))

    def contains(self, problem: Problem, plan: Plan) -> bool:
        """The bound is over cuts, replicas and parts, with configurations by the rule of `knapsack`, and even replicas here."""
        found = seen(problem, self._batch(problem))
        if len({s.mesh.size("dp") for s in plan.stages}) > 1 and not self._is_uneven(found):
            return False
        try:
            stages = staged(problem, plan, found)
        except Unsupported:
            return False
        return stages == tuple(
            replace(s, seconds=inf)
            for s in price(found.layers, machine(problem, self._batch(problem)), stages, self.knapsack)
        )

    def _solve(self, problem: Problem, run: Run, found: Seen, where: Machine, prove: bool) -> tuple[Staged, ...] | None:
        if self.method != "piper":
            answer = equi_partition(
                found, where, tensor_parallel="no_tp" not in self.method, apart="joined" not in self.method
            )
            if answer is not None and found.profiled:
                stages = answer[1]
                run.offer(answer[0], lambda: self._plan(problem, found, stages))
            run.tick(1, "equal partitions", 1, 1)
            return answer[1] if answer else None
        layers, kept = self._allowed(found)
        if prove:
            run.bound(float(layers.work.sum()) / where.devices)
        rule = "all_or_nothing" if self.recompute == "all_or_nothing" else self.knapsack
        best: tuple[Staged, ...] | None = None
        value, uneven = inf, self._is_uneven(found)
        most = min(where.devices, where.batch)
        splits: Sequence[int] = [0] if uneven else [d for d in range(1, most + 1) if where.batch % d == 0]
        if not self.data_parallel:
            splits = [1]
        checks = 0

        def watch(tried: float, stages: tuple[Staged, ...] | None, seconds: float) -> None:
            nonlocal checks
            checks += 1
            if stages is None and prove and splits == [0] and tried < inf:
                run.bound(tried)  # no plan has all of its stages below it
            if stages is not None and (found.profiled or uneven):
                full = _renamed(stages, kept)
                run.offer(seconds, lambda: self._plan(problem, found, full))
            run.tick(1, "bounds", checks, checks + 1)

        for d in splits:
            options = Options(rule, only=d, tick=lambda: run.tick(0, "bounds", checks, checks + 1))
            answer = staged_partition(layers, where, options, watch, below=value)
            if answer is not None and answer[0] < value:
                value, best = answer[0], _renamed(answer[1], kept)
        if best is not None and prove:
            run.bound(value)
        return best

    def _allowed(self, found: Seen) -> tuple[Layers, list[dict[int, list[int]]]]:
        """The layers with the configurations that the switches leave, and their places among all of them."""
        kept: list[dict[int, list[int]]] = []
        for by_degree in found.names:
            own = {}
            for t, names in by_degree.items():
                if t > 1 and not self.tensor_parallel:
                    continue
                wanted = [
                    j for j, name in enumerate(names) if self.recompute in ("choose", "all_or_nothing")
                    or ("recomp" in name) == (self.recompute == "always")
                ]  # fmt: skip
                own[t] = wanted or list(range(len(names)))
            kept.append(own)
        ways = tuple(
            {t: tuple(by[t][j] for j in own) for t, own in chosen.items()}
            for by, chosen in zip(found.layers.ways, kept)
        )
        if all(w == v for w, v in zip(ways, found.layers.ways)):
            return found.layers, kept
        if not all(ways):
            raise Infeasible("a layer has no configuration in one part, so nothing is left without tensor parallelism")
        return Layers(ways, found.layers.edges), kept

    def _plan(self, problem: Problem, found: Seen, stages: Sequence[Staged]) -> Plan:
        graph, first, made = problem.graph, 0, []
        batch = self._batch(problem)
        every = lcm(*(s.d for s in stages))  # micro-batches of Piper's in one of the plan's, which each stage cuts in d
        together = batch % every == 0 and not found.profiled
        for s in stages:
            mesh = Mesh(range(first, first + s.d * s.t), ("dp", "tp"), (s.d, s.t))
            first += s.d * s.t
            shardings, again = {}, set()
            for v, j in zip(s.items, s.choices):
                name = found.names[v][s.t][j]
                for i in found.ops[v]:
                    op = graph.ops[i] if found.profiled else graph.ops[graph.representative[i]]
                    if found.profiled:
                        cuts = {op.rule.factors[1].name: (Cut("tp"),)} if s.t > 1 else {}
                        shardings[op.name] = OpSharding(cuts, variant=name)
                    elif together and s.d > 1:
                        factor = next((f.name for f in op.rule.factors if f.samples), None)
                        if factor is not None:
                            shardings[op.name] = OpSharding({factor: (Cut("dp"),)})
                    if "recomp" in name:
                        again.add(graph.ops[i].name)
            deal = "dp" if s.d > 1 and not together else ""
            entries = found.entries(problem, s.items)
            made.append(Stage(entries, mesh, shardings, recompute=frozenset(again), deal=deal))
        count = batch // every if together else batch
        return Plan(graph.digest, problem.recipe.samples, tuple(made), Schedule("1f1b", count))

    def _held(self, found: Seen, where: Machine, stages: Sequence[Staged]) -> float:
        """Bytes on the fullest device, by the method's own count."""
        later, most = sum(s.d for s in stages), 0.0
        for s in stages:
            y = -(-later // s.d)
            later -= s.d
            own = (found.layers.ways[v][s.t][j] for v, j in zip(s.items, s.choices))
            most = max(most, sum(w.stashed * y + w.fixed for w in own))
        return most

    def _is_uneven(self, found: Seen) -> bool:
        return found.profiled if self.uneven is None else self.uneven

    def _batch(self, problem: Problem) -> int:
        samples = problem.recipe.samples
        if isinstance(problem.cost, Profile):
            return self.micro_batches or samples
        if self.micro_batches is None:
            count = problem.limits.devices or problem.cluster.count
            return next((m for m in range(min(4 * count, samples), samples) if samples % m == 0), samples)
        if samples % self.micro_batches:
            raise InputError(f"piper needs micro-batches of one size: {self.micro_batches} do not divide {samples}")
        return self.micro_batches


def _renamed(stages: Sequence[Staged], kept: list[dict[int, list[int]]]) -> tuple[Staged, ...]:
    """Choices among all configurations instead of among the allowed ones."""
    return tuple(replace(s, choices=tuple(kept[v][s.t][j] for v, j in zip(s.items, s.choices))) for s in stages)


def _why(found: Seen, where: Machine) -> str:
    """The tightest constraint, as far as one layer or all together show it."""
    least = [min((w.stashed + w.fixed) for ws in by.values() for w in ws) for by in found.layers.ways]
    worst = max(range(len(least)), key=least.__getitem__)
    total = sum(min(t * w.fixed for t, ws in by.items() for w in ws) for by in found.layers.ways)
    if least[worst] > where.memory:
        return (
            f"layer {worst} needs {size(least[worst])} in its smallest configuration, over the "
            f"{size(where.memory)} of a device"
        )
    return (
        f"no cut into stages fits {where.devices} devices of {size(where.memory)}: weights and workspace alone take "
        f"{size(total)} in all, and earlier stages stash a micro-batch for each later replica"
    )
