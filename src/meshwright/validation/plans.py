"""From a measured row to a problem and its plan: the expert layout of its degrees, layers dealt evenly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..cost import Analytic
from ..cost.base import CostModel
from ..cost.collectives import CollectivePrices
from ..cost.constants import Family, Software, generation
from ..layouts.expert import Expert
from ..layouts.point import Point
from ..layouts.units import Units
from ..lower import Program, lower
from ..plan.model import Plan
from ..plan.problem import Problem, Recipe
from ..planners._grid_space import Space
from .machines import cluster_of
from .models import Graphs, Shape
from .rows import Row
from .settings import LEARNED, LEARNED_SKEW


@dataclass(frozen=True, slots=True)
class Case:
    """A row that is ready to be priced again under other constants: nothing of it depends on them."""

    row: Row
    problem: Problem
    plan: Plan
    program: Program


def cost_of(
    row: Row,
    families: Mapping[str, Family] | None = None,
    software: Mapping[str, Software] | None = None,
    prices: CollectivePrices | None = None,
) -> Analytic:
    """The analytic model as the row's software behaves, with constants replaced by name; `prices`: see `Analytic`."""
    found = (software or {}).get(row.software) or generation(row.software)
    if row.attention:
        found = replace(found, attention=row.attention)
    if row.loss:
        found = replace(found, loss=row.loss)
    found = replace(
        found,
        engine=row.engine or found.engine,
        deterministic=row.deterministic,
        dropout=row.dropout,
        grouped=row.grouped,
    )
    return Analytic(
        precision=row.precision,
        software=found,
        scaling=row.scaling or "delayed",
        families=dict(families or {}),
        prices=prices,
    )


class Cases:
    """Makes cases; rows of one model share its graph, its layouts and their lowering."""

    def __init__(self) -> None:
        self._graphs = Graphs()
        self._experts: dict[Shape, Expert] = {}

    def of(self, row: Row, cost: CostModel | None = None) -> Case:
        """The problem, plan and program of a row.

        Raises:
            Unsupported: a layout that lowering does not know.
        """
        graph = self._graphs.of(row.model)
        expert = self._experts.get(row.model)
        if expert is None:
            expert = self._experts[row.model] = Expert(graph)
        recipe = Recipe(
            samples=row.batch,
            state_bytes=4.0 if row.pure else 8.0,
            param_dtype="bfloat16" if row.pure else "float32",
            compute_dtype="bfloat16",
            grad_dtype=row.grad,
            bucket=row.bucket,
            kept_dtype=row.kept,
            routing_skew=LEARNED_SKEW if LEARNED in row.flags else 1.0,
        )
        problem = Problem(graph, cluster_of(row), cost or cost_of(row), recipe)
        space = Space(problem, expert, {}, {})
        schedule = "interleaved" if row.chunks > 1 else "1f1b"
        point = Point(
            row.dp, row.tp, row.pp, row.sequence, row.chunks, row.micro_batch, row.zero, row.recompute, schedule,
            row.cp, row.ep, "ulysses", row.whole_experts,
        )  # fmt: skip
        plan = space.plan(point, _parts(space.units, row))
        if row.short_warm_up:
            plan = replace(plan, schedule=replace(plan.schedule, args={**plan.schedule.args, "short": 1}))
        return Case(row, problem, plan, lower(graph, plan, recipe))


def _parts(units: Units, row: Row) -> tuple[int, ...]:
    """Units per stage: layers as the row deals them, or as evenly as they go; what is before and after them on the first and the last stage."""
    stages = row.pp * row.chunks
    layers, extra = divmod(row.model.layers, stages)
    parts = list(row.layers) or [layers + (s < extra) for s in range(stages)]
    parts[0] += 1 - (row.model.layers - units.blocks)  # a single leading layer is one unit with what is before it
    parts[-1] += len(units) - units.blocks - 1
    return tuple(parts)
