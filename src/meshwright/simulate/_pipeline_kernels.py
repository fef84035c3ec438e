"""The hot loops of equal pipelines, which need no tasks. Plain arrays in, plain arrays out; `pipeline` is their typed door."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import kernel

f8, i4 = np.float64, np.int32


@kernel(f8, f8, f8, f8, i4, int, int)
def pipeline(forward: Any, backward: Any, lag_forward: Any, lag_backward: Any, warm: Any, m: int, breadth: int) -> Any:
    """gpipe, 1f1b, interleaved and breadth-first without task arrays: (start of each rank's last backward, end[p]).

    forward, backward: seconds [rank, chunk]; lag: seconds of the send that leaves (rank, chunk), one send at a time per
    rank and direction. Each rank: `warm` + 1 forwards, then one backward, one forward in turn, then the rest.
    breadth: 0 = chunks in rounds of p micro-batches, backward in the order of forward; 1 = a whole chunk at a time,
    backward reversed (gpipe, bfs: warm is then all of them).
    """
    p, v = forward.shape
    sent = np.full((p, v, m), -1.0)  # when the result of a forward is there for its reader
    back = np.full((p, v, m), -1.0)  # the same of a backward
    forwards = np.zeros(p, np.int64)
    backwards = np.zeros(p, np.int64)
    free = np.zeros(p)
    wire = np.zeros(p)
    wire_back = np.zeros(p)
    last = np.zeros(p)
    left = 2 * p * m * v
    while left > 0:
        before = left
        for r in range(p):
            while backwards[r] < m * v:
                ahead = forwards[r] < m * v and forwards[r] - backwards[r] <= warm[r]
                k = forwards[r] if ahead else backwards[r]
                if breadth == 1:
                    c = k // m
                    j = k - c * m
                elif v > 1:
                    c = (k % (p * v)) // p
                    j = k // (p * v) * p + k % p
                else:
                    c = 0
                    j = k
                if ahead:
                    ready = 0.0
                    if r > 0:
                        ready = sent[r - 1, c, j]
                    elif c > 0:
                        ready = sent[p - 1, c - 1, j]
                    if ready < 0:
                        break
                    free[r] = max(free[r], ready) + forward[r, c]
                    there = free[r]
                    if p > 1 and (r < p - 1 or c < v - 1):
                        wire[r] = max(wire[r], there) + lag_forward[r, c]
                        there = wire[r]
                    sent[r, c, j] = there
                    forwards[r] += 1
                else:
                    c = v - 1 - c
                    if breadth == 1:
                        j = m - 1 - j
                    if r < p - 1:
                        ready = back[r + 1, c, j]
                    elif c < v - 1:
                        ready = back[0, c + 1, j]
                    else:
                        ready = sent[r, c, j]
                    if ready < 0:
                        break
                    last[r] = max(free[r], ready)
                    free[r] = last[r] + backward[r, c]
                    there = free[r]
                    if p > 1 and (r > 0 or c > 0):
                        wire_back[r] = max(wire_back[r], there) + lag_backward[r, c]
                        there = wire_back[r]
                    back[r, c, j] = there
                    backwards[r] += 1
                left -= 1
        if left == before:
            return last + np.inf, free + np.inf
    return last, free


@kernel(f8, f8, f8, f8, f8, int)
def zero_bubble(forward: Any, input_grad: Any, weight_grad: Any, lag_forward: Any, lag_backward: Any, m: int) -> Any:
    """zb-h1 without task arrays: end[p]. Seconds [rank]; lag: of the send that leaves, one at a time per rank and direction.

    Rank r: p - r - 1 forwards; then a forward if any, I(j), and W(j - r) from j = r on; then the remaining W.
    """
    p = forward.shape[0]
    sent = np.full((p, m), -1.0)
    back = np.full((p, m), -1.0)
    forwards = np.zeros(p, np.int64)
    inputs = np.zeros(p, np.int64)
    weights = np.zeros(p, np.int64)
    free = np.zeros(p)
    wire = np.zeros(p)
    wire_back = np.zeros(p)
    left = 3 * p * m
    while left > 0:
        before = left
        for r in range(p):
            while weights[r] < m:
                j = inputs[r]
                if weights[r] < j - r or j == m:
                    free[r] += weight_grad[r]
                    weights[r] += 1
                elif forwards[r] < min(m, p - r + j):
                    k = forwards[r]
                    ready = sent[r - 1, k] if r > 0 else 0.0
                    if ready < 0:
                        break
                    free[r] = max(free[r], ready) + forward[r]
                    there = free[r]
                    if r < p - 1:
                        wire[r] = max(wire[r], there) + lag_forward[r]
                        there = wire[r]
                    sent[r, k] = there
                    forwards[r] += 1
                else:
                    ready = back[r + 1, j] if r < p - 1 else sent[r, j]
                    if ready < 0:
                        break
                    free[r] = max(free[r], ready) + input_grad[r]
                    there = free[r]
                    if r > 0:
                        wire_back[r] = max(wire_back[r], there) + lag_backward[r]
                        there = wire_back[r]
                    back[r, j] = there
                    inputs[r] += 1
                left -= 1
        if left == before:
            return free + np.inf
    return free
