"""What the planners of expert layouts share: price every candidate, offer those that fit, say why none does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal, get_args

from ..cluster.model import Mesh
from ..errors import Infeasible, InputError
from ..layouts.expert import expert_of
from ..layouts.units import Units
from ..lower import lower
from ..lower.assign import Choices
from ..lower.volumes import received
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Problem
from ..simulate.fits import excess
from ..simulate.price import Pricer
from ..simulate.simulator import simulate
from ._grid_space import RECOMPUTE
from .base import Planner
from .types import Considered, Run

Judge = Literal["step", "volume"]
"""What decides: the simulated seconds of a step, or the elements that a rank receives in it."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layout of the whole cluster."""

    words: str
    mesh: Mesh
    choices: Callable[[], Choices]
    replicas: int
    """Parts into which a micro-batch is cut."""
    micro_batch: int
    """Samples of one of these."""
    recompute: str


class SchemePlanner(Planner):
    """Offers the candidates of a layout scheme; all ops are one stage on the whole cluster."""

    def __init__(self, *, judge: Judge, micro_batch: int | None, recompute: str | None) -> None:
        if judge not in get_args(Judge):
            raise InputError(f'{self.info.name} has no judge "{judge}": there are {" and ".join(get_args(Judge))}')
        if recompute is not None and recompute not in RECOMPUTE:
            raise InputError(f'{self.info.name} has no recompute "{recompute}": there are {", ".join(RECOMPUTE)}')
        self.judge: Judge = judge
        self.micro_batch = micro_batch
        self.recompute = recompute

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Simulated seconds of a step of any plan; judged by volume: elements that a rank receives in a step."""
        if self.judge == "volume":
            return self._volume(problem, plan)
        return simulate(problem, plan, detail=False).step_seconds

    def unit_of(self, problem: Problem) -> str:
        return "element" if self.judge == "volume" else "s"

    def _volume(self, problem: Problem, plan: Plan) -> float:
        program = lower(problem.graph, plan, problem.recipe)
        return received(program, problem.graph, plan.schedule.micro_batches)

    def devices(self, problem: Problem) -> int:
        return min(problem.cluster.count, problem.limits.devices or problem.cluster.count)

    def priced(self, problem: Problem, run: Run, candidates: Sequence[Candidate]) -> None:
        """Raises Infeasible: nothing fits in memory."""
        pricer = Pricer(problem.graph, problem.cluster, problem.cost, problem.recipe)
        units = Units(expert_of(problem.graph).atoms.folded)
        ops = units.ops(0, len(units))
        found: list[Considered] = []
        refused, nearest, why = 0, inf, ""
        for k, c in enumerate(candidates):
            plan = _plan(problem, ops, c)
            simulation = simulate(problem, plan, detail=False, pricer=pricer)
            value = simulation.step_seconds if self.judge == "step" else self._volume(problem, plan)
            memory = float(simulation.peak.max())
            words = excess(problem, simulation)
            over = _over(problem, memory) if words else 0.0
            if words:
                refused += 1
                if over < nearest:
                    nearest, why = over, f"the nearest layout, {c.words} with {c.recompute} recompute: {words}"
            else:
                run.offer(value, partial(_plan, problem, ops, c), memory)
            m = problem.recipe.samples // (c.replicas * c.micro_batch)
            found.append(
                Considered(
                    c.words, c.micro_batch, m, c.recompute, "", value, memory, over, partial(_plan, problem, ops, c)
                )
            )
            best = sorted((x for x in found if x.over == 0), key=lambda x: x.objective)[:SHOWN]
            misses = sorted((x for x in found if x.over > 0), key=lambda x: x.over)[:SHOWN]
            if self.judge == "step":  # the table's figures are seconds
                run.show([*best, *misses], (len(candidates), refused))
            run.tick(1, "search", k + 1, len(candidates))
        if why and refused == len(candidates):
            raise Infeasible(why)

    def sizes(self, samples: int) -> list[int]:
        """Micro-batches of `samples` samples on one part: powers of two that divide them, or the one that was asked for.

        Raises:
            InputError: one that does not divide them.
        """
        if self.micro_batch is None:
            return [b for b in range(1, samples + 1) if samples % b == 0 and b & (b - 1) == 0]
        if self.micro_batch < 1 or samples % self.micro_batch:
            raise InputError(
                f"{self.info.name}: micro_batch = {self.micro_batch} does not divide the {samples} samples of one part of the "
                "mesh"
            )
        return [self.micro_batch]

    def recomputed(self) -> tuple[str, ...]:
        return RECOMPUTE if self.recompute is None else (self.recompute,)


def _over(problem: Problem, memory: float) -> float:
    usable = min(problem.limits.usable(t.memory) for t in problem.cluster.types)
    return max(memory - usable, 1.0)


def _plan(problem: Problem, ops: tuple[str, ...], c: Candidate) -> Plan:
    choices = c.choices()
    stage = Stage(ops, c.mesh, choices.shardings, choices.layouts, choices.storage, choices.recompute)
    samples = problem.recipe.samples
    return Plan(problem.graph.digest, samples, (stage,), Schedule("1f1b", samples // (c.replicas * c.micro_batch)))


def divisors(n: int) -> Iterator[int]:
    return (k for k in range(1, n + 1) if n % k == 0)
