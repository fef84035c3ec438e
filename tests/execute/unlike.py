"""Plans whose stages differ in their replicas: cut (dapple), dealt in turn (piper), of unequal meshes (alpa), with weights (accpar)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from execute.unequal import Shape, cut_ops, meshes_of, unequal_plan
from meshwright.graph.ir import Graph
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage


@dataclass(frozen=True)
class Unlike:
    """One plan of any captured graph."""

    shapes: tuple[Shape, ...]
    """Of each stage: its axes, "dp" and "tp"."""
    by: Literal["cut", "deal", "weights"] = "cut"
    """weights: rank k of dp takes k + 1 parts of the samples."""
    schedule: str = "1f1b"

    @property
    def ranks(self) -> int:
        return sum(prod(n for _, n in shape) for shape in self.shapes)

    def __str__(self) -> str:
        each = ("·".join(f"{a}{n}" for a, n in shape if n > 1) or "one" for shape in self.shapes)
        return f"{self.by} {', '.join(each)} {self.schedule}"

    def plan(self, graph: Graph, micro_batches: int) -> Plan:
        if self.by == "cut":
            return unequal_plan(graph, self.shapes, micro_batches, self.schedule)
        if self.by == "weights":
            base = unequal_plan(graph, self.shapes, micro_batches, self.schedule)
            return replace(base, stages=tuple(map(_weighted, base.stages)))
        stages = [
            Stage(ops, mesh, deal="dp" if mesh.size("dp") > 1 else "")
            for ops, mesh in zip(cut_ops(graph, len(self.shapes)), meshes_of(self.shapes), strict=True)
        ]
        samples = graph.samples * micro_batches
        return Plan(graph.digest, samples, tuple(stages), Schedule(self.schedule, micro_batches))


def _weighted(stage: Stage) -> Stage:
    n = stage.mesh.size("dp")
    cut = Cut("dp", tuple(range(1, n + 1)))
    shardings = {
        op: OpSharding({f: tuple(cut if c.axis == "dp" and n > 1 else c for c in cuts) for f, cuts in own.cuts.items()})
        for op, own in stage.shardings.items()
    }
    return replace(stage, shardings=shardings, layouts={})


def _dp(*counts: int) -> tuple[Shape, ...]:
    return tuple((("dp", n), ("tp", 1)) for n in counts)


DP2_DP1 = Unlike(_dp(2, 1))
DP1_DP2 = Unlike(_dp(1, 2), schedule="gpipe")
TP2_DP2 = Unlike(((("tp", 2), ("dp", 1)), (("dp", 2), ("tp", 1))))
DEALT = Unlike(_dp(2, 1), "deal")
DEALT_LATE = Unlike(_dp(1, 2), "deal")
WEIGHTED = Unlike(_dp(2), "weights")
WEIGHTED_PIPE = Unlike(_dp(2, 1), "weights")
ALL = (DP2_DP1, DP1_DP2, TP2_DP2, DEALT, DEALT_LATE, WEIGHTED, WEIGHTED_PIPE)
