"""Stages of a graph replicated unevenly over a hierarchy of components: the slowest stage least (PipeDream, section 3.1).

Level by level, innermost first: A[i, j, m] = least largest time of the part after state i − 1 up to state j on m
components of this level; a component runs a part as the level below does best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .antichains import States
from .stoppable import Flag, Tick, stoppable

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tier:
    """One level: `count` components of the level below, joined at `bandwidth` bytes/s."""

    count: int
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Rules:
    """paper: max and factor 2 instead of sum and factor 4; ratio: of compressed activations, 0 = transfers are free.

    memory holds at least `copies` of a stage's weights and activations, and those that the public code says are in flight.
    """

    paper: bool = False
    ratio: float = 0.0
    straight: bool = False
    fewer: bool = False
    memory: float = inf
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Solution:
    """value = seconds a mini-batch; parts = (after state, up to state, units of the cluster), in order."""

    value: float
    parts: tuple[tuple[int, int, tuple[int, ...]], ...]


def replicated_stages(
    states: States, seconds: Floats, activation: Floats, params: Floats, tiers: Sequence[Tier], rules: Rules,
    tick: Tick | None = None,
) -> Solution | None:  # fmt: skip
    """The best stages; None if none fits in memory. O(Σ L³ · count²) and L² for the last level. What `tick` raises ends it.

    Args:
        seconds, activation, params: of each node.
        tiers: innermost first.
    """
    from ._replicated_kernels import replicate

    inside = states.below.astype(np.float64)
    value, act, par = (inside @ x for x in (seconds, activation, params))
    out = states.front.astype(np.float64) @ activation
    size = len(states)
    work = np.empty((size + 1, size))
    work[0] = value
    work[1:] = value[None, :] - value[:, None]
    subset = states.contains()
    found = []
    inner = 1
    for number, tier in enumerate(tiers):
        last = number == len(tiers) - 1
        # Without transfers and sums an infinite bandwidth is free; 0 · inf must not arise.
        rates = np.array([tier.bandwidth, rules.ratio, float(rules.fewer)])

        def search(stop: Flag, work: Floats = work, rates: Floats = rates, tier: Tier = tier, inner: int = inner,
                   rows: int = 1 if last else size) -> Any:  # fmt: skip
            return replicate(
                work, par, act, out, subset, rates, np.array([rules.memory]),
                tier.count, inner, rows, int(rules.straight), int(rules.paper), float(rules.copies), stop,
            )  # fmt: skip

        best, cut, many = stoppable(search, tick)
        found.append((cut, many))
        if not last:
            work = np.full((size + 1, size), np.inf)
            work[:size] = best[:, :, tier.count]
        inner = tier.count
    total = float(best[0, size - 1, tiers[-1].count])
    if total == inf:
        return None
    parts = tuple(_place(found, tiers, len(tiers) - 1, 0, size - 1, (0,)))
    return Solution(total, parts)


def _place(
    found: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]],
    tiers: Sequence[Tier],
    level: int,
    i: int,
    j: int,
    roots: tuple[int, ...],
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Stages of the part i … j on the components of `level` below every root."""
    if level < 0:
        yield i, j, roots
        return
    cut, many = found[level]
    stages: list[tuple[int, int, int]] = []
    m = tiers[level].count
    while True:
        while cut[i, j, m] == -2:
            m -= 1
        k, w = int(cut[i, j, m]), int(many[i, j, m])
        stages.append((k + 1 if k >= 0 else i, j, w))
        if k < 0:
            break
        j, m = k, m - w
    at = 0
    for first, stop, w in reversed(stages):
        units = tuple(root * tiers[level].count + at + u for root in roots for u in range(w))
        yield from _place(found, tiers, level - 1, first, stop, units)
        at += w
