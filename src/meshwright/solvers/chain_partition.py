"""Cutting a chain of costs into consecutive parts. Knows numbers only.

Parts are given by their ends: ends[k] is one past the last item of part k, so ends[-1] == len(costs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Floats: TypeAlias = NDArray[np.float64]


def proportional(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """Item i goes to part min(⌊parts · share⌋, parts − 1), share being that of all cost up to and including i.

    Source: the rule of the public GPipe code (tensorflow/lingvo, lingvo/core/gpipe.py). Parts may be EMPTY where one item
    costs more than 1/parts of all. O(n).

    Raises:
        InputError: no items, no parts, or a cost that is negative or not finite.
    """
    sums = _prefix(costs, parts)[1:]
    if sums[-1] > 0:
        # Integer costs stay exact: the product is divided once.
        home = np.minimum(np.floor_divide(parts * sums, sums[-1]), parts - 1).astype(np.int64)
    else:
        home = np.minimum(np.arange(len(costs)) * parts // len(costs), parts - 1)
    return tuple(int(np.searchsorted(home, k, side="right")) for k in range(parts))


def least_squares(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """No part empty, the variance of the parts' costs least (the mean is fixed, so: the sum of squares). O(parts · n²).

    Raises:
        InputError: fewer items than parts, or what `proportional` refuses.
    """
    return _least(costs, parts, lambda before, part: before + part * part)


def least_maximum(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """No part empty, the largest part's cost least. O(parts · n²).

    Raises:
        InputError: as `least_squares`.
    """
    return _least(costs, parts, np.maximum)


def parts_of(costs: Sequence[float], ends: Sequence[int]) -> tuple[float, ...]:
    """Cost of each part."""
    return tuple(float(sum(costs[a:b])) for a, b in zip((0, *ends), ends))


def variance(values: Sequence[float]) -> float:
    """Mean squared distance from the mean."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def _least(costs: Sequence[float], parts: int, join: Callable[[Floats, Floats], Floats]) -> tuple[int, ...]:
    sums = _prefix(costs, parts)
    n = len(costs)
    if n < parts:
        raise InputError(f"{n} items cannot fill {parts} parts: there must be as many items as parts")
    # value[j]: best of the first j items in k + 1 parts; start[k, j]: where its last part begins,
    # the latest of equals, so that items that cost nothing stay with what they follow.
    value = join(np.zeros(n + 1), sums)
    value[0] = np.inf
    start = np.zeros((parts, n + 1), dtype=np.int64)
    for k in range(1, parts):
        following = np.full(n + 1, np.inf)
        for j in range(k + 1, n + 1):
            choices = join(value[k:j], sums[j] - sums[k:j])
            best = len(choices) - 1 - int(np.argmin(choices[::-1]))
            following[j], start[k, j] = choices[best], k + best
        value = following
    ends = [n]
    for k in range(parts - 1, 0, -1):
        ends.append(int(start[k, ends[-1]]))
    return tuple(reversed(ends))


def _prefix(costs: Sequence[float], parts: int) -> Floats:
    values = np.asarray(costs, dtype=np.float64)
    if values.size == 0 or parts < 1:
        raise InputError(f"{values.size} items in {parts} parts: there must be at least one of each")
    if not np.isfinite(values).all() or (values < 0).any():
        raise InputError("costs must be finite and not below 0")
    return np.concatenate(([0.0], np.cumsum(values)))
