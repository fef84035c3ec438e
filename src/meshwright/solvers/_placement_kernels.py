"""Hot loop of the local search over splits."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import kernel


@kernel(np.float64, np.int64, np.int32, np.int32, np.float64, np.int32, int, float)
def descend(p: Any, eptr: Any, edge: Any, pins: Any, weight: Any, start: Any, devices: int, gain: float) -> Any:
    """Best moves of one item until none gains `gain`; returns (device of each item, largest load)."""
    n = p.shape[0]
    home = start.copy()
    load = np.zeros(devices)
    held = np.zeros((pins.shape[0], devices), np.int32)
    for v in range(n):
        load[home[v]] += p[v]
        for x in range(eptr[v], eptr[v + 1]):
            held[edge[x], home[v]] += 1
    for h in range(pins.shape[0]):
        for d in range(devices):
            if 0 < held[h, d] < pins[h]:
                load[d] += weight[h]
    after = np.empty(devices)
    while True:
        now = load.max()
        best = now
        which: Any = -1
        where: Any = -1
        for v in range(n):
            a: Any = home[v]
            for target in range(devices):
                b = np.int64(target)
                if a == b:
                    continue
                for d in range(devices):
                    after[d] = load[d]
                after[a] -= p[v]
                after[b] += p[v]
                for x in range(eptr[v], eptr[v + 1]):
                    h = edge[x]
                    if held[h, a] == pins[h]:
                        # It was whole here and is cut now.
                        if pins[h] > 1:
                            after[a] += weight[h]
                            after[b] += weight[h]
                        continue
                    if held[h, a] == 1:
                        after[a] -= weight[h]
                    if held[h, b] == 0:
                        after[b] += weight[h]
                    elif held[h, b] == pins[h] - 1:
                        after[b] -= weight[h]
                new = after.max()
                if new < best:
                    best, which, where = new, v, b
        if which < 0 or now - best < gain:
            return home, now
        a, b = np.int64(home[which]), np.int64(where)
        load[a] -= p[which]
        load[b] += p[which]
        for x in range(eptr[which], eptr[which + 1]):
            h = edge[x]
            for d in (a, b):  # type: ignore[assignment]
                if 0 < held[h, d] < pins[h]:
                    load[d] -= weight[h]
            held[h, a] -= 1
            held[h, b] += 1
            for d in (a, b):  # type: ignore[assignment]
                if 0 < held[h, d] < pins[h]:
                    load[d] += weight[h]
        home[which] = b
