"""Bytes that Tofu's plans move, by the direct definition, at any depth of the recursion.

A worker is its digits (one for each step, below that step's factor). Along an index of an op a worker's part is the nested
part chosen by the digits of the steps in which the op is cut along it, in the order of the steps; along a dim of a tensor
its block is chosen alike by the steps in which the tensor is split there.

    moved = Σ over workers  |region read| − |region read ∩ own block|                     for each operand
                            |own block| · Π factors of reduction steps − |own block ∩ own result|   for each result
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from ..graph.ir import Floats, Ints
from ._tofu_groups import Node, Touch, Unit

WHOLE = -1
"""In a sequence: not cut in that step, since nothing divides."""
Way: TypeAlias = tuple[int, ...]
"""Per step the index variable of an op, or the dim of a tensor, that is cut."""


def sequences(sizes: Sequence[int], options: Sequence[int], begun: Way, factors: Sequence[int]) -> list[Way]:
    """All ways to go on from `begun` to one entry for each factor: each step cuts something that its factor divides.

    Where nothing divides, the step cuts nothing.
    """
    left = list(sizes)
    for k, v in zip(factors, begun):
        if v != WHOLE:
            left[v] //= k
    found: list[tuple[Way, list[int]]] = [(begun, left)]
    for k in factors[len(begun) :]:
        longer = []
        for own, rest in found:
            legal = [v for v in options if rest[v] % k == 0 and rest[v] >= k]
            for v in legal or [WHOLE]:
                less = list(rest)
                if v != WHOLE:
                    less[v] //= k
                longer.append(((*own, v), less))
        found = longer
    return [own for own, _ in found]


def digits(factors: Sequence[int]) -> Ints:
    """[workers, steps], the first step major."""
    count = prod(factors)
    if not factors:
        return np.zeros((1, 0), np.int64)
    return np.array(np.unravel_index(np.arange(count), tuple(factors)), np.int64).T.reshape(count, len(factors))


def nested(sizes: Sequence[int], ways: Sequence[Way], factors: Sequence[int]) -> tuple[Ints, Ints]:
    """(first element, number of elements) [ways, sizes, workers] of each worker's part."""
    worker = digits(factors)
    first = np.zeros((len(ways), len(sizes), len(worker)), np.int64)
    length = np.repeat(np.array(sizes, np.int64).reshape(1, len(sizes)), len(ways), axis=0)
    chosen = np.array(ways, np.int64).reshape(len(ways), len(factors))
    for i, k in enumerate(factors):
        cut = np.flatnonzero(chosen[:, i] != WHOLE)
        v = chosen[cut, i]
        length[cut, v] //= k
        first[cut, v] += worker[:, i] * length[cut, v][:, None]
    return first, np.repeat(length[:, :, None], len(worker), axis=2)


def moved(
    node: Node, touch: Touch, unit: Unit, ops: Sequence[Way], splits: Sequence[Way], factors: Sequence[int]
) -> Floats:
    """[ways to cut the op, ways to split the unit]: bytes of one operand or result."""
    at, count = nested(node.sizes, ops, factors)
    low, extent = nested(unit.shape, splits, factors)
    workers = at.shape[2]
    size = np.ones((len(ops), workers))
    block = np.ones((len(splits), workers))
    common = np.ones((len(ops), len(splits), workers))
    for d, terms in enumerate(touch.terms):
        start = np.full((len(ops), workers), touch.first[d], np.int64)
        stop = start + touch.beyond[d] + 1
        for v, k in terms:
            start = start + k * at[:, v]
            stop = stop + k * (at[:, v] + count[:, v] - 1)
        start, stop = np.maximum(start, 0), np.minimum(stop, unit.shape[d])
        size *= stop - start
        block *= extent[:, d]
        own, end = low[:, d], low[:, d] + extent[:, d]
        both = np.minimum(stop[:, None], end[None]) - np.maximum(start[:, None], own[None])
        common *= np.maximum(both, 0)
    if not touch.write:
        return np.asarray((size[:, None] - common).sum(axis=2) * touch.item, np.float64)
    parts = np.array([prod(k for k, v in zip(factors, way) if v in touch.partial) for way in ops], np.float64)
    return np.asarray((block[None] * parts[:, None, None] - common).sum(axis=2) * touch.item, np.float64)
