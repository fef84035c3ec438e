"""Hot loop of `elimination`: the (min, +) product of tables. Plain arrays in, plain arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import kernel

f8, u8 = np.float64, np.uint64
TILE = 64
"""Columns at a time: that part of a table of some hundred rows stays in the cache."""


@kernel(f8, f8, u8, u8)
def min_plus(left: Any, right: Any, of_left: Any, of_right: Any) -> Any:
    """out[l, j] = min over c of left[of_left[l], c] + right[of_right[l], c, j].

    Args:
        left: [A, options]; right: [B, options, columns].
        of_left, of_right: [rows] which of A and of B each row of the result is made of.
    """
    rows = of_left.shape[0]
    options, columns = right.shape[1], right.shape[2]
    out = np.full((rows, columns), np.inf)
    for first in range(0, columns, TILE):
        last = min(columns, first + TILE)
        width = last - first
        for row in range(rows):
            own = left[of_left[row]]
            table = right[of_right[row]]
            best = out[row, first:last]
            c = 0
            while c + 4 <= options:
                p0, p1, p2, p3 = own[c], own[c + 1], own[c + 2], own[c + 3]
                t0, t1 = table[c, first:last], table[c + 1, first:last]
                t2, t3 = table[c + 2, first:last], table[c + 3, first:last]
                for j in range(width):
                    s0, s1, s2, s3 = p0 + t0[j], p1 + t1[j], p2 + t2[j], p3 + t3[j]
                    s0 = s1 if s1 < s0 else s0
                    s2 = s3 if s3 < s2 else s2
                    s0 = s2 if s2 < s0 else s0
                    best[j] = s0 if s0 < best[j] else best[j]
                c += 4
            while c < options:
                p0 = own[c]
                t0 = table[c, first:last]
                for j in range(width):
                    s0 = p0 + t0[j]
                    best[j] = s0 if s0 < best[j] else best[j]
                c += 1
    return out
