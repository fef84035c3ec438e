"""A plan as trainers speak of it: degrees, shares of the stages, facts of the model, the order of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from ..layouts.build import schedule_of
from ..layouts.expert import Expert, expert_of
from ..layouts.point import Point
from ..layouts.recognise import AXES, Recognised, recognise
from ..plan.model import Plan
from ..plan.problem import Problem
from .model import Model, Share, model_of, shares_of


@dataclass(frozen=True)
class Setup:
    """One plan for one problem."""

    problem: Problem
    layout: Recognised
    name: str = ""
    """Of the model, as the user calls it: "llama-3.1-8b"."""
    sums_each: bool = False
    """Gradients of copies are summed at every micro-batch, which no plan says: once a step is enough."""

    @cached_property
    def expert(self) -> Expert:
        return expert_of(self.problem.graph)

    @cached_property
    def model(self) -> Model:
        return model_of(self.problem.graph)

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """What each stage holds, in order of stages."""
        return shares_of(self.expert, self.layout.parts)

    @property
    def point(self) -> Point:
        return self.layout.point

    @property
    def world(self) -> int:
        return self.point.size * self.point.pp

    @property
    def replicas(self) -> int:
        """Data parallelism as most trainers count it: all members that have samples of their own (dp · ep)."""
        return self.point.replicas

    @property
    def stages(self) -> int:
        return len(self.layout.parts)

    def in_order(self, order: Sequence[str]) -> bool:
        """Whether the devices are 0 … world − 1 when ranks are counted over these axes, outer first ("pp" among them).

        Axes that are not named have one member here.
        """
        point, sizes = self.point, self.sizes
        mine = ("pp", *AXES)
        grid = np.asarray(self.layout.devices).reshape([sizes[a] for a in mine])
        named = [a for a in order if a in mine]
        if prod(sizes[a] for a in mine if a not in named) != 1:
            return False
        turned = grid.transpose([mine.index(a) for a in (*named, *(a for a in mine if a not in named))])
        return bool((turned.ravel() == np.arange(point.size * point.pp)).all())

    @property
    def sizes(self) -> Mapping[str, int]:
        return sizes_of(self.point)

    def with_words(self, **words: Any) -> Setup:
        """The same with other fields of `Point` or `Recognised`; devices in order where the degrees change."""
        of_point = {f.name for f in fields(Point)}
        point = replace(self.point, **{k: v for k, v in words.items() if k in of_point})
        rest = {k: v for k, v in words.items() if k not in of_point}
        sums_each = bool(rest.pop("sums_each", self.sums_each))
        schedule = rest.pop("plan_schedule", None)
        if schedule is None:
            m = rest.get("samples", self.layout.samples) // (point.replicas * point.micro_batch)
            old = self.point
            same = (old.schedule, old.pp, old.chunks, self.layout.micro_batches) == (
                point.schedule,
                point.pp,
                point.chunks,
                m,
            )
            kept = self.layout.schedule if same else None
            schedule = kept or schedule_of(point, m)
        in_order = tuple(tuple(point.mesh(r).devices) for r in range(point.pp))
        devices = rest.pop("devices", self.layout.devices if sizes_of(point) == self.sizes else in_order)
        layout = replace(self.layout, point=point, schedule=schedule, devices=devices, **rest)
        return replace(self, layout=layout, sums_each=sums_each)

    def plan(self) -> Plan:
        """The plan again."""
        return self.layout.plan(self.expert)


def sizes_of(point: Point) -> Mapping[str, int]:
    """Members along "pp" and each of `AXES`."""
    return {
        "pp": point.pp, "dpr": point.replicate, "dp": point.dp // point.replicate, "ep": point.ep, "cp": point.cp, "tp": point.tp,
    }  # fmt: skip


def setup_of(problem: Problem, plan: Plan, name: str = "") -> Setup:
    """A plan in trainers' words.

    Raises:
        Unsupported: it says what no layout of degrees says.
    """
    return Setup(problem, recognise(problem.graph, plan), name)
