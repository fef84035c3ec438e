"""Mesh axes as lowering writes them in layouts: an axis that cuts into unequal parts says how.

    "dp"            equal blocks            Cut("dp")
    "dp|3:7"        parts of 3 and 7        Cut("dp", (3, 7))

Layouts are equal if their words are. Sums, groups and collectives are over axes, whatever the parts (`axis_of`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from math import ceil, prod

from ..cluster.model import Mesh
from ..plan.layout import part
from ..plan.model import Cut

MARK = "|"


def word(cut: Cut) -> str:
    """What stands for a cut; weights without a common factor."""
    if not cut.weights:
        return cut.axis
    return f"{cut.axis}{MARK}{':'.join(map(str, cut.weights))}"


def axis_of(word: str) -> str:
    return word.partition(MARK)[0] if MARK in word else word


@lru_cache(maxsize=4096)
def cut_of(word: str) -> Cut:
    axis, _, weights = word.partition(MARK)
    return Cut(axis, tuple(map(int, weights.split(":"))) if weights else ())


def largest_part(size: int, word: str, mesh: Mapping[str, int]) -> int:
    """Of an atom of `size` that one axis cuts."""
    if MARK not in word:
        return -(-size // mesh[word])
    cut = cut_of(word)
    return max(part(size, i, mesh[cut.axis], cut.weights)[1] for i in range(mesh[cut.axis]))


def shrinks(words: Sequence[str], mesh: Mapping[str, int] | Mesh) -> float:
    """How many times as large the whole is as its largest part under some axes."""
    length = mesh.size if isinstance(mesh, Mesh) else mesh.__getitem__
    return prod(length(w) if MARK not in w else 1 / _share(w, None) for w in words)


def local_count(count: int, words: Sequence[str], mesh: Mesh, at: Mapping[str, Collection[int]] | None = None) -> int:
    """Of `count` samples those of the largest part. `at`: axis -> coordinates to look at; None: all."""
    found = float(count) / prod(mesh.size(w) for w in words if MARK not in w)
    for w in words:
        if MARK in w:
            found *= _share(w, None if at is None else tuple(at[axis_of(w)]))
    return ceil(found - 1e-9)


@lru_cache(maxsize=4096)
def _share(word: str, at: tuple[int, ...] | None) -> float:
    weights = cut_of(word).weights
    return max(w for i, w in enumerate(weights) if at is None or i in at) / sum(weights)


def over_largest(cut: Cut, at: Collection[int]) -> float:
    """Largest part at some coordinates over the largest of all."""
    return max(cut.weights[i] for i in at) / max(cut.weights) if cut.weights else 1.0
