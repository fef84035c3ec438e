"""Which stage has what, and the graph folded as far as the plan allows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import InputError
from ..graph.ir import Graph
from ..plan.model import Plan
from .assign import Choices
from .choices import written_out
from .fold import Folded, fold
from .memo import memo

Span: TypeAlias = tuple[int, int, int]
"""(piece, first block, blocks)"""


@dataclass(slots=True)
class Owner:
    spans: list[list[Span]]
    """Per stage."""
    stage_of: dict[tuple[int, int], int]
    """(piece, block) -> stage, of pieces outside of folded runs (block 0)."""
    run_spans: dict[int, list[tuple[int, int, int]]]
    """Piece of a run -> (first block, blocks, stage), ascending."""

    def stage(self, piece: int, block: int) -> int:
        if piece not in self.run_spans:
            return self.stage_of[piece, block]
        return next(s for first, n, s in self.run_spans[piece] if first <= block < first + n)


def stages_of(graph: Graph, plan: Plan, choices: Sequence[Choices]) -> tuple[Owner, Folded]:
    """Fold what the plan says once; runs whose blocks differ, or are cut inside, stay written out.

    `choices`: one for each kind of mesh; all are folded alike.
    """
    runs = {r.name: r for r in graph.runs}
    named: list[tuple[int, int]] = []  # (op, stage)
    blocks: dict[str, list[tuple[int, int, int]]] = {}
    plain = written_out(graph, plan).union(*(c.written_out for c in choices))
    for s, stage in enumerate(plan.stages):
        for entry in stage.ops:
            if entry.endswith("]") and (head := entry.rpartition("["))[0] in runs:
                first, _, stop = head[2][:-1].partition(":")
                blocks.setdefault(head[0], []).append((int(first), int(stop) - int(first), s))
            else:
                try:
                    named.append((graph.position[entry], s))
                except KeyError:
                    raise InputError(f'stage {s} names op "{entry}", which the graph has not') from None
    for name in plain & blocks.keys():
        r = runs[name]
        for start, n, holder in blocks.pop(name):
            named += [(i, holder) for i in range(r.first + start * r.length, r.first + (start + n) * r.length)]
    owner_of = dict(named)
    order = sorted(owner_of)
    borders = [b for a, b in itertools.pairwise(order) if owner_of[a] != owner_of[b]]
    whole = any(s.recompute_at == "stage" for s in plan.stages)
    key = (frozenset(plain), tuple(borders), whole)
    folded = memo(graph, ("fold", key), lambda: fold(graph, *key))
    spans: list[list[Span]] = [[] for _ in plan.stages]
    stage_of: dict[tuple[int, int], int] = {}
    run_spans: dict[int, list[tuple[int, int, int]]] = {}
    for p, piece in enumerate(folded.pieces):
        if piece.run:
            run_spans[p] = sorted(blocks[piece.run])
            for start, n, holder in run_spans[p]:
                spans[holder].append((p, start, n))
        else:
            s = owner_of.get(piece.first, -1)
            if s < 0:
                raise InputError(f'op "{graph.ops[piece.first].name}" is in no stage of the plan')
            spans[s].append((p, 0, 1))
            stage_of[p, 0] = s
    return Owner(spans, stage_of, run_spans), folded
