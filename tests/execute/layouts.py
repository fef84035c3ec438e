"""Plans of the usual layouts for any captured graph, from the grid planner's own pieces."""

from __future__ import annotations

from dataclasses import dataclass

from meshwright.graph.ir import Graph
from meshwright.layouts.expert import Expert
from meshwright.layouts.point import Point
from meshwright.layouts.units import Units
from meshwright.plan.model import Plan, Schedule, Stage


@dataclass(frozen=True)
class Layout:
    """One point of the matrix."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    sequence: bool = False
    zero: int = 0
    recompute: str = "none"
    schedule: str = "1f1b"
    chunks: int = 1
    cp: int = 1
    ep: int = 1
    context: str = "ulysses"
    whole_experts: bool = False

    @property
    def point(self) -> Point:
        return Point(
            self.dp, self.tp, self.pp, self.sequence, self.chunks, 1, self.zero, self.recompute, self.schedule, self.cp, self.ep,
            self.context, self.whole_experts,
        )  # fmt: skip

    @property
    def ranks(self) -> int:
        return self.point.size * self.pp

    def __str__(self) -> str:
        degrees = (("dp", self.dp), ("ep", self.ep), ("cp", self.cp), ("tp", self.tp), ("pp", self.pp))
        words = [f"{k}{v}" for k, v in degrees if v > 1]
        words += [self.context] if self.cp > 1 else []
        words += ["whole experts"] if self.whole_experts else []
        words += ["sequence"] if self.sequence else []
        words += [f"zero{self.zero}"] if self.zero else []
        words += [self.recompute] if self.recompute != "none" else []
        words += [f"{self.schedule}{self.chunks}" if self.chunks > 1 else self.schedule] if self.pp > 1 else []
        return " ".join(words) or "one rank"


def plan_of(graph: Graph, layout: Layout, micro_batches: int) -> Plan:
    """Stages of whole blocks; of single ops where there are fewer blocks than stages."""
    expert = Expert(graph)
    units = Units(expert.atoms.folded)
    choices = expert.choices(layout.point.style)
    count = layout.pp * layout.chunks
    whole = len(units) >= count
    length = len(units) if whole else len(graph.ops)
    parts = [length // count + (s < length % count) for s in range(count)]
    stages, at = [], 0
    for s, n in enumerate(parts):
        mesh = layout.point.mesh(s % layout.pp)
        ops = units.ops(at, at + n) if whole else tuple(op.name for op in graph.ops[at : at + n])
        stages.append(Stage(ops, mesh, choices.shardings, choices.layouts, choices.storage, choices.recompute))
        at += n
    args = {"v": layout.chunks} if layout.chunks > 1 else {}
    return Plan(
        graph.digest, graph.samples * micro_batches, tuple(stages), Schedule(layout.schedule, micro_batches, args)
    )
