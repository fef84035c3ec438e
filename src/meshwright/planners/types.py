"""What a planner is told and what it answers. Claims live in `Result`, decisions in `Plan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np

from ..plan.model import Plan
from ..plan.problem import Goal

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"


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
    """Infeasible: the tightest constraint, one sentence. Budget: what stopped it."""
    priced_by: str
    seconds: float
    evaluations: int
    seed: int
    frontier: tuple[Choice, ...] = ()
    carry: Json = None


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


class Run(Protocol):
    """Made per call; the search's only contact with the world."""

    rng: np.random.Generator

    def offer(self, objective: float, plan: Callable[[], Plan], memory: float = ...) -> None:
        """Keep this plan if it is the best so far; built only then."""

    def bound(self, value: float) -> None:
        """A proven lower bound of the objective."""

    def tick(self, evaluations: int = 1, phase: str = "", done: int = 0, total: int = 0) -> None:
        """Count work and report progress; raises Stop at the budget or on Ctrl-C."""
