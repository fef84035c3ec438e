"""Sets of conversions of one value with which all of its readers are served: equal conversions are made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from ..lower.many_steps import Mask
from ._cost_nodes import Read, distinct

MOST_SETS = 400
"""Sets of conversions of one value that are offered; of more, those of one or two conversions, the likest first."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadSets:
    sets: list[tuple[Read, ...]]
    number: dict[Read, int]
    """Of all conversions that readers ask for."""
    served: Mask
    """[sets, conversions] whether a set makes what such a reader asks for."""

    def serve(self, reads: Sequence[Read]) -> Mask:
        """[sets, reads]"""
        found: Mask = self.served[:, [self.number[r] for r in reads]]
        return found


def read_sets(readers: Sequence[Sequence[Read]]) -> ReadSets:
    """Sets with which all readers of a value may be served, no conversion in them in vain."""
    every = list(dict.fromkeys(r for reads in readers for r in reads))
    number = {r: k for k, r in enumerate(every)}
    serves = serving(every)
    theirs = [np.array([number[r] for r in reads]) for reads in readers]
    found: dict[tuple[int, ...], None] = {}

    def add(chosen: Iterable[int]) -> None:
        own = sorted(set(chosen))
        found[tuple(k for k in own if not any(o != k and serves[o, k] for o in own))] = None

    if prod(map(len, theirs)) <= 16 * MOST_SETS:
        for choice in product(*(x.tolist() for x in theirs)):
            add(choice)
    if not found or len(found) > MOST_SETS:
        found.clear()
        covers = np.stack([serves[:, x].any(axis=1) for x in theirs], axis=1)
        for k in np.flatnonzero(covers.all(axis=1)).tolist():
            add((k,))
        near = np.argwhere(np.triu((covers[:, None] | covers[None]).all(axis=-1), 1))
        likest = np.argsort(_apart(every)[tuple(near.T)], kind="stable")[:MOST_SETS]
        for pair in near[likest].tolist():
            add(pair)
    ordered = sorted(found, key=lambda own: (len(own), own))
    has = np.zeros((len(ordered), len(every)), bool)
    for row, own in zip(has, ordered, strict=True):
        row[list(own)] = True
    return ReadSets([tuple(every[k] for k in own) for own in ordered], number, (has.astype(int) @ serves) > 0)


def serving(every: Sequence[Read]) -> Mask:
    """[made, asked for] whether what one conversion makes is what another asks for."""
    need, unsummed = (distinct(x)[1] for x in ((r.use.need for r in every), (r.use.unsummed for r in every)))
    grad, again, view = (np.array([getattr(r, name) for r in every], bool) for name in ("grad", "again", "view"))
    alike = need[:, None] == need
    enough = (again[:, None] | ~again) & (view[:, None] | ~view)
    found: Mask = alike & enough & (~grad | (grad[:, None] & (unsummed[:, None] == unsummed)))
    return found


def _apart(every: Sequence[Read]) -> np.typing.NDArray[np.int64]:
    """[conversions, conversions] atoms that two of them cut otherwise: a value is seldom wanted in ways that have nothing in
    common."""
    total = np.zeros((len(every), len(every)), np.int64)
    for cuts in zip(*(r.use.need for r in every), strict=True):
        _, kind = distinct(cuts)
        total += kind[:, None] != kind
    return total
