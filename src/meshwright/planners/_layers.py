"""The layers of a sequential model, found in any captured graph.

A layer ends where the module path changes and ONE value goes on: what a pipeline sends when it is cut there. Inside a
residual block two values go on, so a block with its skip connection stays whole. Data (labels, positions) is loaded by
whoever reads it, constants are computed by whoever reads them; neither counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph.ir import Graph, Op
from ..graph.kinds import kind_of
from ..plan.lookup import span_entry


def is_heavy(op: Op) -> bool:
    """Products and convolutions."""
    row = kind_of(op.kind)
    return row is not None and not row.light and op.flops > 0


@dataclass(frozen=True, slots=True)
class Layers:
    """Layer i = ops ends[i − 1] … ends[i] − 1 of the graph, with its forward FLOPs at `Graph.samples`."""

    graph: Graph
    ends: tuple[int, ...]
    flops: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.ends)

    def entries(self, first: int, stop: int) -> tuple[str, ...]:
        """Layers first … stop − 1 as entries of `Stage.ops`: whole blocks of a run by number, the rest by name."""
        at, end = (self.ends[first - 1] if first else 0), self.ends[stop - 1]
        found: list[str] = []
        for run in sorted(self.graph.runs, key=lambda run: run.first):
            a = max(0, -(-(at - run.first) // run.length))
            b = min(run.count, (end - run.first) // run.length)
            if a < b:
                begin = run.first + a * run.length
                found += [op.name for op in self.graph.ops[at:begin]]
                found.append(span_entry(run, a, b))
                at = run.first + b * run.length
        return (*found, *(op.name for op in self.graph.ops[at:end]))


def layers_of(graph: Graph) -> Layers:
    """The layers of a graph, in program order; ops before the first border belong to the first layer."""
    alive = _alive(graph)
    n = len(graph.ops)
    ends = [i for i in range(1, n) if graph.ops[i].module != graph.ops[i - 1].module and alive[i] == 1]
    ends.append(n)
    flops = [sum(op.flops for op in graph.ops[a:b]) for a, b in zip((0, *ends), ends)]
    return Layers(graph, tuple(ends), tuple(flops))


def _alive(graph: Graph) -> Sequence[int]:
    """Before each op: how many values that depend on data or parameters are made earlier and read here or later."""
    change = [0] * (len(graph.ops) + 1)
    real: set[str] = set()
    for i, op in enumerate(graph.ops):
        if any(name in real or graph.tensor[name].role in ("input", "param") for name in op.inputs):
            real.update(op.outputs)
            for name in op.outputs:
                last = max((use for use, _ in graph.consumers.get(name, ())), default=i)
                # A result of the whole graph stays where it is made; the others live until their last reader.
                change[i + 1] += last > i
                if last > i:
                    change[last + 1] -= 1
    alive, now = [], 0
    for step in change[:-1]:
        now += step
        alive.append(now)
    return alive
