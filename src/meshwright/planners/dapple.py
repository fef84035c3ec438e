"""DAPPLE (Fan et al., PPoPP 2021, arXiv 2007.01045): a synchronous pipeline of replicated stages, placed on servers.

Cuts after states of the layer graph, chooses how many devices replicate each stage and which, by three policies (fresh,
append, scatter first), for the least latency of an iteration with fill, drain and gradient sums. Two objectives:

    code     the public planner: the slowest block is minimised, then candidates are scored by their latency
    paper    the pivot latency inside the dynamic programme (section 3.2)

The schedule is early backward: policy A or B says how many micro-batches a stage admits, D how many fit in memory, found
by simulation; if one is too many, stages are recomputed. Replicas run slices of every micro-batch: samples are split and
concatenated between stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from typing import Literal

import numpy as np

from ..cluster.model import Mesh
from ..errors import Infeasible, InputError, Unsupported
from ..plan.lookup import stage_ops
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Problem
from ..simulate.fits import fits
from . import _dapple_code, _dapple_paper
from ._checked import above, whole
from ._dapple_states import Candidate, Sums, latency, micro_batches, sums_of
from ._placement import NCCL_GAIN, Servers, servers_of
from ._profile import by_samples, with_the_rest
from .base import Planner
from .registry import register
from .types import Info, Json, Run

Search = Callable[[Sums, Servers, int, int, Callable[[str, int, int], None]], Iterator[Candidate]]


@register
class Dapple(Planner):
    """Stages, replicas and device sets of least latency.

    Args:
        objective: "code" or "paper".
        micro_batch: samples of a micro-batch (of a replica, in the code objective).
        policy: of the schedule, "A" or "B".
        collective_gain: how much faster collectives between servers are than point to point; None = 3 on imported
            profiles, as the public planner has it, else 1.
    """

    info = Info(
        name="dapple",
        title="DAPPLE: A Pipelined Data Parallel Approach for Training Large Models",
        year=2021,
        reference="arXiv 2007.01045",
        decides=frozenset({"stages", "replicas", "placement", "schedule", "recompute"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time"}),
        family="pipeline",
    )
    unit = "s"

    def __init__(
        self,
        *,
        objective: Literal["code", "paper"] = "code",
        micro_batch: int = 1,
        policy: Literal["A", "B"] = "B",
        collective_gain: float | None = None,
    ) -> None:
        if objective not in ("code", "paper"):
            raise InputError(f'dapple has no objective "{objective}": there are code and paper')
        if policy not in ("A", "B"):
            raise InputError(f'dapple has no policy "{policy}": there are A and B')
        whole("dapple", "micro_batch", micro_batch, what="sample")
        above("dapple", "collective_gain", collective_gain)
        self.form = objective
        self.micro_batch = micro_batch
        self.policy = policy
        self.collective_gain = collective_gain

    def search(self, problem: Problem, run: Run) -> Json:
        """Candidates as they get better; the bound is that of perfect balance and nothing to send."""
        servers, sums = self._servers(problem), sums_of(problem)
        run.bound(sums.total / (servers.size * servers.count))
        samples = problem.recipe.samples
        found: list[tuple[float, Candidate]] = []

        def tick(phase: str, done: int, total: int) -> None:
            run.tick(1, phase, done, total)

        reason = ""
        search: Search = _dapple_code.candidates if self.form == "code" else _dapple_paper.candidates
        for candidate in search(sums, servers, samples, self.micro_batch, tick):
            value = self._value(sums, servers, candidate, samples)
            if value == inf or (found and value >= found[-1][0]):
                continue
            plan, misfit = self._fitting(problem, sums, candidate)
            reason = misfit or reason
            if plan is not None:
                found.append((value, candidate))
                run.offer(value, lambda plan=plan: plan)  # type: ignore[misc]
        if not found:
            raise Infeasible(
                reason or f"{samples} samples make no micro-batch of {self.micro_batch} a replica: lower micro_batch"
            )
        value, best = found[-1]
        return {
            "speedup": sums.total / value,
            "data_parallel_speedup": self._data_parallel(sums, servers),
            "replicas": [len(own) for own in best.devices],
            "devices": [list(own) for own in best.devices],
        }

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Seconds of an iteration; of the code's forms that describe the plan the fastest.

        Raises:
            Unsupported: stages that do not end at states of the layer graph.
        """
        servers, sums = self._servers(problem), sums_of(problem)
        ends = sums.ends(plan)
        if ends is None:
            raise Unsupported("dapple prices plans whose stages end where its states end")
        devices = tuple(tuple(sorted(stage.mesh.devices)) for stage in plan.stages)
        return min(
            self._value(sums, servers, candidate, problem.recipe.samples)
            for candidate in self._forms(servers, ends, devices)
        )

    def loads(self, problem: Problem, plan: Plan) -> tuple[float, ...]:
        """Seconds that each stage computes for the whole batch on its devices; the objective adds fill, drain and sums.

        () for stages that do not end at states.
        """
        sums = sums_of(problem)
        ends = sums.ends(plan)
        if ends is None:
            return ()
        return tuple(
            sums.work(k, j) / len(stage.mesh.devices) for k, j, stage in zip((-1, *ends[:-1]), ends, plan.stages)
        )

    def _forms(
        self, servers: Servers, ends: tuple[int, ...], devices: tuple[tuple[int, ...], ...]
    ) -> Iterator[Candidate]:
        yield Candidate(ends, devices, 1, twice=len(ends) != 2)
        if self.form == "code":
            count = servers.size * servers.count
            for rp in sorted({1, count, *(count // slots for slots in range(2, count + 1))}):
                if all(len(own) % rp == 0 for own in devices):
                    yield Candidate(ends, devices, rp)

    def _servers(self, problem: Problem) -> Servers:
        imported = all(not op.call for op in problem.graph.ops)
        gain = self.collective_gain or (NCCL_GAIN if imported else 1.0)
        return servers_of(problem.cluster, gain=gain)

    def _value(self, sums: Sums, servers: Servers, plan: Candidate, samples: int) -> float:
        price = latency if self.form == "code" else _dapple_paper.paper_latency
        return price(sums, servers, plan, samples, self.micro_batch)

    def _data_parallel(self, sums: Sums, servers: Servers) -> float:
        count = servers.size * servers.count
        seconds = sums.total / count + servers.all_reduce(range(count), float(sums.params[-1]))
        return sums.total / seconds

    def _fitting(self, problem: Problem, sums: Sums, candidate: Candidate) -> tuple[Plan | None, str]:
        """The plan with the largest D that fits, recomputed if no D does; or None and why."""
        bare = self._plan(problem, sums, candidate)
        room = problem.limits.usable(problem.cluster.type_of(0).memory)
        reason = ""
        for plan in (bare, _recomputed(problem, bare)):
            reason = "" if room == inf else fits(problem, plan) or ""
            if not reason:
                return plan, ""
            m, depth = plan.schedule.micro_batches, len(plan.stages)
            limits = range(min(m, 2 * depth - 1) - 1, 0, -1)
            reason = fits(problem, _with(plan, limits[-1])) or "" if limits else reason
            if reason:
                continue
            low, high = 0, len(limits) - 1
            while low < high:
                middle = (low + high) // 2
                if fits(problem, _with(plan, limits[middle])) is None:
                    high = middle
                else:
                    low = middle + 1
            return _with(plan, limits[high]), ""
        return None, reason

    def _plan(self, problem: Problem, sums: Sums, candidate: Candidate) -> Plan:
        samples = problem.recipe.samples
        parts = []
        for k, j in zip((-1, *candidate.ends[:-1]), candidate.ends):
            own = sums.below[j] & ~(sums.below[k] if k >= 0 else False)
            parts.append([sums.kept[i] for i in np.flatnonzero(own)])
        shardings = by_samples(problem.graph, "dp")
        stages = tuple(
            Stage(
                sums.profile.entries(nodes),
                Mesh(devices, ("dp",), (len(devices),)),
                shardings,
            )
            for nodes, devices in zip(with_the_rest(sums.profile, parts), candidate.devices)
        )
        rp = candidate.rp if self.form == "code" else 1
        m = max(1, micro_batches(samples, rp, self.micro_batch))
        return Plan(problem.graph.digest, samples, stages, Schedule("dapple", m, {"policy": self.policy, "D": 0}))


def _with(plan: Plan, fitting: int) -> Plan:
    schedule = replace(plan.schedule, args={**plan.schedule.args, "D": fitting})
    return replace(plan, schedule=schedule)


def _recomputed(problem: Problem, plan: Plan) -> Plan:
    graph = problem.graph
    stages = tuple(
        replace(stage, recompute=frozenset(graph.ops[graph.representative[i]].name for i in stage_ops(graph, stage)))
        for stage in plan.stages
    )
    return replace(plan, stages=stages)
