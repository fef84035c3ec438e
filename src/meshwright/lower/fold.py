"""Cut a graph into pieces that are lowered once each: one block of every run of equal blocks, and the stretches between.

    head | block 0, block 1, … block 125 | tail      ->      piece(head), piece(block 0 × 126), piece(tail)

A tail that reads the last block reads, in the folded graph, the same tensor of block 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ..graph.ir import Graph, Run
from ..graph.saved import needs_grad


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` equal pieces of `length` ops; ops first … first + length − 1 stand for all of them."""

    run: str
    """"" = not part of a folded run."""
    first: int
    length: int
    count: int


@dataclass(frozen=True)
class Folded:
    graph: Graph
    pieces: tuple[Piece, ...]
    ops: tuple[int, ...]
    """Indices in `Graph.ops`, representatives only, in program order."""
    piece: tuple[int, ...]
    """Per entry of `ops`: index into `pieces`."""
    carries: tuple[tuple[str, str], ...]
    """(what block 0 reads, what block 1 reads in its place): both must rest alike, else the blocks were not equal."""

    def name(self, tensor: str) -> str:
        """The tensor that stands for `tensor` in the folded graph."""
        graph = self.graph
        made = graph.producer.get(tensor)
        if made is None:
            return tensor
        rep = made
        for run in self._folded_runs:
            if run.first <= made < run.first + run.length * run.count:
                rep = run.first + (made - run.first) % run.length
        if rep == made:
            return tensor
        return graph.ops[rep].outputs[graph.ops[made].outputs.index(tensor)]

    @property
    def _folded_runs(self) -> list[Run]:
        names = {p.run for p in self.pieces if p.run}
        return [r for r in self.graph.runs if r.name in names]


def foldable(graph: Graph, run: Run) -> bool:
    """Whether one block can stand for all: what a block reads from outside is the same for all, its own, or comes from
    the block before, never one value in block 0 and several in others, and the rest of the graph reads each result from one
    block only."""
    inside = range(run.first, run.first + run.length * run.count)
    trained = needs_grad(graph)
    later: dict[str, str] = {}
    for k in range(run.length):
        ops = [graph.ops[run.first + b * run.length + k] for b in range(run.count)]
        for j, first in enumerate(ops[0].inputs):
            if graph.tensor[first].role in ("param", "buffer"):
                continue
            made = graph.producer.get(first, -1)
            if made in inside:
                continue
            others = {op.inputs[j] for op in ops[1:]}
            if later.setdefault(first, ops[-1].inputs[j]) != ops[-1].inputs[j]:
                return False
            if others == {first}:
                continue
            if any(graph.producer.get(t, -1) not in inside for t in others):
                return False
            if any((t in trained) != (first in trained) for t in others):  # block 0 alone has no gradient to hand on
                return False
    read: dict[tuple[int, int], str] = {}
    for i, op in enumerate(graph.ops):
        if i in inside:
            continue
        for t in op.inputs:
            made = graph.producer.get(t, -1)
            if made in inside:
                key = (made - run.first) % run.length, graph.ops[made].outputs.index(t)
                if read.setdefault(key, t) != t:
                    return False
    return True


def fold(graph: Graph, plain: frozenset[str] = frozenset(), borders: Sequence[int] = (), whole: bool = False) -> Folded:
    """Pieces of `graph`; runs named in `plain` stay written out.

    Args:
        borders: op indices at which a new stretch begins.
        whole: a stretch goes on over the blocks of runs that are written out.
    """
    runs = sorted((r for r in graph.runs if r.name not in plain and r.count > 1), key=lambda r: r.first)
    ends: list[Run | None] = [*runs, None]
    cuts = {0, len(graph.ops), *borders}
    for r in graph.runs:
        # Each block its own stretch, so that nothing is shared across block borders.
        if (r.name in plain or r.count == 1) and not whole:
            cuts.update(r.first + k * r.length for k in range(r.count + 1))
    pieces: list[Piece] = []
    at = 0
    for end in ends:
        stop = end.first if end else len(graph.ops)
        marks = sorted({at, stop, *(c for c in cuts if at < c < stop)})
        pieces += [Piece("", a, b - a, 1) for a, b in itertools.pairwise(marks)]
        if end:
            pieces.append(Piece(end.name, end.first, end.length, end.count))
            at = end.first + end.length * end.count
    ops = tuple(i for p in pieces for i in range(p.first, p.first + p.length))
    owner = tuple(k for k, p in enumerate(pieces) for _ in range(p.length))
    carries: dict[tuple[str, str], None] = {}
    for r in runs:
        inside = range(r.first, r.first + r.length)
        for k in range(r.length):
            for a, b in zip(graph.ops[r.first + k].inputs, graph.ops[r.first + r.length + k].inputs, strict=True):
                if graph.producer.get(b, -1) in inside:
                    carries[a, b] = None
    return Folded(graph, tuple(pieces), ops, owner, tuple(carries))
