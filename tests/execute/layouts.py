"""Plans of the usual layouts for any captured graph, from the grid planner's own pieces."""

from __future__ import annotations

from dataclasses import dataclass

from meshwright.cluster.model import Mesh
from meshwright.graph.ir import Graph
from meshwright.plan.model import Plan, Schedule, Stage
from meshwright.planners._expert_layout import DP, TP, Expert, Style
from meshwright.planners._grid_space import Units


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

    @property
    def ranks(self) -> int:
        return self.dp * self.tp * self.pp

    def __str__(self) -> str:
        words = [f"{k}{v}" for k, v in (("dp", self.dp), ("tp", self.tp), ("pp", self.pp)) if v > 1]
        words += ["sequence"] if self.sequence else []
        words += [f"zero{self.zero}"] if self.zero else []
        words += [self.recompute] if self.recompute != "none" else []
        words += [f"{self.schedule}{self.chunks}" if self.chunks > 1 else self.schedule] if self.pp > 1 else []
        return " ".join(words) or "one rank"


def plan_of(graph: Graph, layout: Layout, micro_batches: int) -> Plan:
    expert = Expert(graph)
    units = Units(expert.atoms.folded)
    choices = expert.choices(Style(layout.tp, layout.sequence, layout.zero, layout.recompute))
    count, size = layout.pp * layout.chunks, layout.dp * layout.tp
    parts = [len(units) // count + (s < len(units) % count) for s in range(count)]
    stages, at = [], 0
    for s, n in enumerate(parts):
        first = s % layout.pp * size
        mesh = Mesh(range(first, first + size), (DP, TP), (layout.dp, layout.tp))
        stages.append(
            Stage(
                units.ops(at, at + n), mesh, choices.shardings, choices.layouts, choices.storage, choices.recompute
            )
        )  # fmt: skip
        at += n
    args = {"v": layout.chunks} if layout.chunks > 1 else {}
    return Plan(
        graph.digest, graph.samples * micro_batches, tuple(stages), Schedule(layout.schedule, micro_batches, args)
    )
