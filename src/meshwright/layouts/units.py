"""The pieces of a model that a stage takes whole."""

from __future__ import annotations

from functools import cached_property

from ..lower.fold import Folded
from ..plan.lookup import span_entry


class Units:
    """The model as a chain of pieces that a stage takes whole: each block of a run, each stretch between runs."""

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self.runs = {r.name: r for r in folded.graph.runs}
        self.piece: list[int] = []
        self.block: list[int] = []
        for p, piece in enumerate(folded.pieces):
            for b in range(piece.count if piece.run else 1):
                self.piece.append(p)
                self.block.append(b)

    def __len__(self) -> int:
        return len(self.piece)

    @cached_property
    def blocks(self) -> int:
        """Units that are blocks of a run: the most stages that are worth having, if there are any."""
        return self.blocks_in(0, len(self)) or len(self)

    def blocks_in(self, first: int, stop: int) -> int:
        """Blocks of runs among units first … stop − 1."""
        return sum(1 for k in range(first, stop) if self.folded.pieces[self.piece[k]].run)

    def ops(self, first: int, stop: int) -> tuple[str, ...]:
        """Entries of `Stage.ops` for units first … stop − 1."""
        graph, out, k = self.folded.graph, [], first
        while k < stop:
            p = self.piece[k]
            piece = self.folded.pieces[p]
            if piece.run:
                last = k
                while last < stop and self.piece[last] == p:
                    last += 1
                out.append(span_entry(self.runs[piece.run], self.block[k], self.block[k] + last - k))
                k = last
            else:
                out += [graph.ops[i].name for i in range(piece.first, piece.first + piece.length)]
                k += 1
        return tuple(out)
