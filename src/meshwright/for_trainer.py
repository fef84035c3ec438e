"""What one trainer runs exactly, as a planner asks: point by point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import InputError, Unsupported
from .export.base import Exporter
from .export.model import model_of, parts_of
from .export.outcome import broken_conditions, export, verdict
from .export.reading import in_order
from .export.registry import load
from .export.setup import Setup
from .layouts.build import schedule_of
from .layouts.expert import expert_of
from .layouts.point import Point
from .layouts.recognise import Recognised
from .layouts.units import Units
from .plan.model import Plan
from .plan.problem import Problem
from .planners._grid_space import read_fix
from .request import Request
from .stated import Stated


@dataclass(frozen=True)
class ForTrainer:
    """See `planners.types.Trainer`."""

    exporter: Exporter

    def why_not(self, problem: Problem, point: Point, parts: tuple[int, ...] | None = None) -> str:
        """Why the trainer does not run a layout exactly, in one sentence; "" if it does."""
        parts = parts or self.parts(problem, point)
        if parts is None:
            return f"{self.exporter.called} has no stages of whole layers for {point.pp * point.chunks} stages"
        found = verdict(self.exporter, self._setup(problem, point, parts))
        return "" if found.level == "exact" else found.sentences[0]

    def parts(self, problem: Problem, point: Point) -> tuple[int, ...] | None:
        """Units of stages whose layers are dealt evenly, the first stages more; None where layers are fewer."""
        expert = expert_of(problem.graph)
        stages, layers = point.pp * point.chunks, len(model_of(problem.graph).layers)
        if stages == 1:
            return (len(Units(expert.atoms.folded)),)
        if layers < stages:
            return None
        try:
            return parts_of(expert, tuple(layers // stages + (s < layers % stages) for s in range(stages)))
        except ValueError:
            return None

    def check_conditions(self, problem: Problem, point: Point) -> None:
        """Refuse degrees that a person gave and the trainer does not take.

        Raises:
            InputError: a condition of the trainer's own; the sentence says what would do.
        """
        parts = self.parts(problem, point)
        if parts is not None and (broken := broken_conditions(self.exporter, self._setup(problem, point, parts))):
            raise InputError(broken[0], where="--for")

    def check(self, problem: Problem, plan: Plan) -> None:
        """Refuse the answer of a planner that was not told of the trainer.

        Raises:
            Unsupported: the trainer does not run the plan exactly.
        """
        found = export(self.exporter, problem, plan)
        if found.level != "exact":
            raise Unsupported(
                f"{found.sentences[0]}: use --planner grid, which searches only what it runs", where="--for"
            )

    def _setup(self, problem: Problem, point: Point, parts: tuple[int, ...]) -> Setup:
        samples = problem.recipe.samples
        m = max(1, samples // (point.replicas * point.micro_batch))
        return Setup(problem, Recognised(point, parts, schedule_of(point, m), in_order(point), samples))


def trainer_of(request: Request) -> ForTrainer | None:
    """The trainer that a request is for.

    Raises:
        InputError: no such trainer, or version of it.
    """
    if not request.trainer:
        return None
    return ForTrainer(load(request.trainer))


def given_point(stated: Stated, fix: Mapping[str, object]) -> Point:
    """The layout of degrees that are given, all others 1; data parallelism takes what is left."""
    given: dict[str, Any] = {
        "dp": 0,
        "tp": 1,
        "pp": 1,
        "sequence": False,
        "chunks": 1,
        "micro_batch": 1,
        "zero": 0,
        "recompute": "none",
        "schedule": "1f1b",
    }
    given |= read_fix(fix)
    point = Point(**given)
    left = stated.problem.cluster.count // max(1, point.tp * point.pp * point.cp * point.ep)
    return replace(point, dp=point.dp or max(1, left))
