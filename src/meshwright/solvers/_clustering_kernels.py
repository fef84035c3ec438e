"""Hot loop of `clustering`: from every start forward, all intervals that are legal, into all numbers of layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import kernel


@kernel(np.uint8, np.float64, np.float64, np.int64, np.int64, int, float, int)
def relax(
    heavy: Any, flops: Any, nbytes: Any, first: Any, reads: Any, layers: int, most_flops: float, least_heavy: int
) -> Any:
    """(largest boundary[ops + 1, layers + 1], where the last layer of each begins).

    Op i reads what ops reads[first[i] : first[i + 1]] make; nbytes: of what each op makes.
    """
    n = heavy.shape[0]
    largest = np.full((n + 1, layers + 1), np.inf)
    total = np.full((n + 1, layers + 1), np.inf)
    uneven = np.full((n + 1, layers + 1), np.inf)
    start = np.full((n + 1, layers + 1), -1, np.int64)
    largest[0, 0] = total[0, 0] = uneven[0, 0] = 0.0
    read_by = np.full(n, -1, np.int64)
    for k in range(n):
        arriving, count, work = 0.0, 0, 0.0
        for r in range(k + 1, n + 1):
            op = r - 1
            for e in range(first[op], first[op + 1]):
                j = reads[e]
                if j < k and read_by[j] != k:
                    read_by[j] = k
                    arriving += nbytes[j]
            if heavy[op]:
                count += 1
                work += flops[op]
            if count < least_heavy:
                if work < most_flops:
                    continue
            elif work >= most_flops and heavy[op] and count > least_heavy:
                break
            for q in range(1, layers + 1):
                if largest[k, q - 1] == np.inf:
                    continue
                value = max(largest[k, q - 1], arriving)
                summed = total[k, q - 1] + arriving
                spread = uneven[k, q - 1] + k * k / q - r * r / (q + 1) + (r - k) * (r - k)
                better = value < largest[r, q]
                if not better and value <= largest[r, q] * (1 + 1e-4):
                    better = summed < total[r, q] or (summed <= total[r, q] * (1 + 1e-4) and spread < uneven[r, q])
                if better:
                    largest[r, q], total[r, q], uneven[r, q], start[r, q] = value, summed, spread, k
    return largest, start
