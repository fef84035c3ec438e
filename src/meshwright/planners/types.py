"""What a planner is told and what it answers. Claims live in `Result`, decisions in `Plan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np

from ..layouts.point import Point
from ..plan.model import Plan
from ..plan.problem import Goal, Problem

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class Budget:
    """Evaluations are the reproducible limit; a result stopped by seconds says so."""

    evaluations: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What happened; the new problem already reflects it."""

    kind: Literal["epoch", "cluster", "drift"]
    epoch: int = 0
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class Trainer(Protocol):
    """What another trainer runs exactly: a search may be held to that."""

    def why_not(self, problem: Problem, point: Point, parts: tuple[int, ...] | None = None) -> str:
        """Why it does not run a layout, in one sentence; "" if it does. parts: units of each stage; None = dealt evenly."""

    def parts(self, problem: Problem, point: Point) -> tuple[int, ...] | None:
        """Units of stages that are dealt evenly; None where there are none."""


@dataclass(frozen=True, slots=True)
class Choice:
    plan: Plan
    objective: float
    memory: float = float("nan")


@dataclass(frozen=True, slots=True)
class Result:
    status: Literal["optimal", "feasible", "budget", "infeasible"]
    plan: Plan | None
    objective: float
    """By `Planner.objective`."""
    unit: str
    bound: float | None
    """Proven, in the same unit."""
    reason: str
    """Infeasible: the tightest constraint, one sentence. Budget: what stopped it. Feasible: why no more is proven, if said."""
    priced_by: str
    seconds: float
    evaluations: int
    seed: int
    frontier: tuple[Choice, ...] = ()
    carry: Json = None
    considered: tuple[Considered, ...] = ()
    """What a planner wants shown: the best that fit, best first, then the nearest misses."""
    space: tuple[int, int] = (0, 0)
    """(points of the search space, points that did not fit), where the planner counts them."""


@dataclass(frozen=True, slots=True)
class Info:
    """Tags of a planner; checked before it searches."""

    name: str
    title: str
    year: int
    reference: str
    decides: frozenset[str]
    """placement, order, stages, replicas, shards, schedule, recompute, offload, rewrite, sums, freeze"""
    handles: frozenset[str]
    """heterogeneous, dag, explicit, memory, …"""
    goals: frozenset[Goal]
    family: str = "hybrid"
    """pipeline, tensor, placement, data, hybrid: the word in the table of `compare`."""
    missing: tuple[str, ...] = ()
    """Parts of the method that are not there yet, a sentence each; a planner with any is not part of "all"."""


class Run(Protocol):
    """Made per call; the search's only contact with the world."""

    rng: np.random.Generator

    def offer(self, objective: float, plan: Callable[[], Plan], memory: float = ...) -> None:
        """Keep this plan if it is the best so far; built only then."""

    def bound(self, value: float) -> None:
        """A proven lower bound of the objective."""

    def keep(self, choice: Choice) -> None:
        """One more point for `Result.frontier`."""

    def show(self, rows: Sequence[Considered], space: tuple[int, int] = (0, 0)) -> None:
        """Rows for `Result.considered` and counts for `Result.space`; the last call counts."""

    def left(self) -> float:
        """Seconds of the budget that are left, for solvers that keep time themselves; inf without such a budget."""

    def unproven(self, reason: str) -> None:
        """Why a search that went to its end proves no more, one sentence; shown unless the bound proves the plan after all."""

    def tick(self, evaluations: int = 1, phase: str = "", done: int = 0, total: int = 0) -> None:
        """Count work and report progress; raises Stop at the budget or on Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Considered:
    """One point of a search, for tables: priced, or refused because it does not fit."""

    layout: str
    """In words of the trade: "dp32 tp2 z1"."""
    micro_batch: int
    """Samples of one micro-batch on one replica."""
    micro_batches: int
    recompute: str
    schedule: str
    objective: float
    """By `Planner.objective`, also where it does not fit; nan where it was not priced."""
    memory: float
    """Bytes on the fullest device."""
    over: float
    """Bytes above what a device may hold; 0 = fits."""
    plan: Callable[[], Plan]
