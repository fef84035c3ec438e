"""What several segments of a stage keep of one storage is kept once: by the one that makes it, else by the first that reads
it.

    a block ends in y = relu(x), whose backward reads y          counts y
    the next begins with a product of y, whose backward reads y  finds y kept, unless y came from another stage
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeAlias

from .fold import Folded
from .keep import Keeper
from .program import Kept
from .stages import Span

Elsewhere: TypeAlias = tuple[frozenset[str], frozenset[str]]
"""Of one span: values that its first block, that each of the others keeps, and another segment of the stage counts."""
_Storage: TypeAlias = tuple[int, int, str]
"""(piece, block, value) that makes it, or (-1, 0, tensor) of what enters the stage."""
_NONE: frozenset[str] = frozenset()


class Shared:
    """Of all pieces of a graph under one set of choices."""

    def __init__(
        self, folded: Folded, keepers: Sequence[Keeper | None], kept: Callable[[int, frozenset[str]], Kept]
    ) -> None:
        """`kept`: (piece, values that another segment counts) -> what one block keeps."""
        self.folded, self.keepers, self._count = folded, keepers, kept
        self._kept: dict[tuple[int, frozenset[str]], Kept] = {}
        self._starts = [p.first for p in folded.pieces]

    def kept(self, piece: int, elsewhere: frozenset[str]) -> Kept:
        key = (piece, elsewhere)
        if key not in self._kept:
            self._kept[key] = self._count(*key)
        return self._kept[key]

    def elsewhere(self, spans: Sequence[Span]) -> list[Elsewhere]:
        """Per span of one stage."""
        arrived: dict[_Storage, float] = {}
        found: list[Elsewhere] = []
        for p, first, n in spans:
            blocks = [self._elsewhere(spans, arrived, p, k) for k in range(first, first + min(n, 2))]
            found.append((blocks[0], blocks[-1]))
        return found

    def _elsewhere(self, spans: Sequence[Span], arrived: dict[_Storage, float], p: int, block: int) -> frozenset[str]:
        keeper = self.keepers[p]
        if keeper is None or not self._entering[p]:
            return _NONE
        found = set()
        for value in self._entering[p]:
            share = keeper.shares[value]
            storage = self._storage(spans, p, block, value)
            maker = self.keepers[storage[0]] if storage[0] >= 0 else None
            # A copy that is kept in another width is another storage.
            counted = maker.shares.get(storage[2]) if maker else None
            if counted is None:
                counted = arrived.get(storage)
                arrived.setdefault(storage, share)
            if counted == share:
                found.add(value)
        return frozenset(found)

    def _storage(self, spans: Sequence[Span], p: int, block: int, value: str) -> _Storage:
        """Where the storage of what block `block` of piece `p` reads as `value` is made."""
        graph, pieces = self.folded.graph, self.folded.pieces
        k, j = self._reads[p][value]
        t = graph.ops[pieces[p].first + block * pieces[p].length + k].inputs[j]
        made = graph.producer.get(t)
        if made is None:
            return -1, 0, t
        q = bisect_right(self._starts, made) - 1
        b = (made - self._starts[q]) // pieces[q].length
        keeper = self.keepers[q]
        if keeper is None or not any(s == q and first <= b < first + n for s, first, n in spans):
            return -1, 0, t
        root = keeper.v.root(self.folded.name(t))
        return (q, b, root) if keeper.v.maker(root) is not None else self._storage(spans, q, b, root)

    @cached_property
    def _entering(self) -> list[list[str]]:
        """Per piece: what it keeps of what it reads from elsewhere, as it is."""
        return [[x for x in k.shares if k.v.maker(x) is None] if k else [] for k in self.keepers]

    @cached_property
    def _reads(self) -> list[dict[str, tuple[int, int]]]:
        """Per piece: what it reads from elsewhere -> (op in the block, operand)."""
        found: list[dict[str, tuple[int, int]]] = []
        for piece in self.folded.pieces:
            own: dict[str, tuple[int, int]] = {}
            for k in range(piece.length):
                for j, t in enumerate(self.folded.graph.ops[piece.first + k].inputs):
                    own.setdefault(self.folded.name(t), (k, j))
            found.append(own)
        return found
