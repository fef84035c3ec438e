"""The hot loop of PipeDream's dynamic programme. Arrays in, arrays out; called by `replicated_stages` only."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import kernel


@kernel(
    np.float64, np.float64, np.float64, np.float64, np.bool_, np.float64, np.float64, int, int, int, int, int, float, np.int8
)  # fmt: skip
def replicate(
    work: Any,
    params: Any,
    activation: Any,
    out: Any,
    subset: Any,
    rates: Any,
    memory: Any,
    copies: int,
    inner: int,
    rows: int,
    straight: int,
    paper: int,
    floor: float,
    stop: Any,
) -> Any:
    """Best largest stage time [row i, state j, m] of the part after state i − 1 up to state j on m components.

    work [L + 1, L]: seconds of one component for the part; params, activation [L]: sums of states; out [L]: bytes that
    leave; rates = (bandwidth, compression ratio or 0, fewer machines allowed); memory (1,): bytes or inf, which hold
    the public bound on copies in flight, and at least `floor` of them.
    Also the arguments (first state of the last stage less one, its copies); −1 = one stage. Ends early at stop[0] = 1.
    """
    size = len(out)
    bandwidth, ratio, fewer = rates[0], rates[1], rates[2]
    best = np.full((rows, size, copies + 1), np.inf)
    cut = np.full((rows, size, copies + 1), -1, np.int32)
    many = np.zeros((rows, size, copies + 1), np.int32)
    stage = np.empty(copies + 1)
    for i in range(rows):
        if stop[0]:
            break
        before = i - 1
        base_par = params[before] if before >= 0 else 0.0
        base_act = activation[before] if before >= 0 else 0.0
        for j in range(i, size):
            if before >= 0 and not subset[before, j]:
                continue
            par = params[j] - base_par
            need = par + activation[j] - base_act
            for m in range(1, (1 if straight else copies) + 1):
                if max(floor, np.ceil((copies - m) / m)) * need > memory[0]:
                    continue
                if paper:
                    best[i, j, m] = max(work[i, j], 2.0 * (m - 1) * par / bandwidth) / m
                else:
                    best[i, j, m] = (work[i, j] + 4.0 * (m - 1) * par / (bandwidth * m) / inner) / m
                many[i, j, m] = m
        for j in range(i, size):
            if stop[0]:
                break
            if before >= 0 and not subset[before, j]:
                continue
            last = j == size - 1
            for k in range(i, j):
                if not subset[k, j] or (before >= 0 and not subset[before, k]):
                    continue
                par = params[j] - params[k]
                need = par + activation[j] - activation[k]
                widest = 1 if straight else copies - 1
                for w in range(1, widest + 1):
                    if paper:
                        t = max(work[k + 1, j], 2.0 * (w - 1) * par / bandwidth) / w
                        t = max(t, 2.0 * out[k] / bandwidth)
                    else:
                        t = (work[k + 1, j] + 4.0 * (w - 1) * par / (bandwidth * w)) / w
                        if ratio > 0.0:
                            t = max(t, 2.0 * out[k] / (bandwidth * w * ratio))
                            if not last:
                                t = max(t, 2.0 * out[j] / (bandwidth * w * ratio))
                    stage[w] = t
                for m in range(2, copies + 1):
                    found = best[i, j, m]
                    for w in range(1, min(widest, m - 1) + 1):
                        if stage[w] >= found:
                            continue
                        t = max(best[i, k, m - w], stage[w])
                        if t < found:
                            if max(floor, np.ceil((copies - m) / w)) * need > memory[0]:
                                continue
                            found = t
                            cut[i, j, m] = k
                            many[i, j, m] = w
                    best[i, j, m] = found
            if fewer > 0.0:
                for m in range(2, copies + 1):
                    if best[i, j, m - 1] < best[i, j, m]:
                        best[i, j, m] = best[i, j, m - 1]
                        cut[i, j, m] = -2
    return best, cut, many
