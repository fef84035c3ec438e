"""Hot loop of `message_passing`: one sweep of TRW-S, forwards with a plan and backwards with a bound.

Variables in order; edge e goes from `tail[e]` to the later `head[e]`; edges are sorted by tail, so those that leave v are
leave[v] … leave[v + 1], and those that enter it are entering[enter[v]] … entering[enter[v + 1]]. Tables lie in `pool`, at
rows[e] with a row per option of the tail, at columns[e] transposed. Prices of variable v begin at first[v] of `unary`; the
message of e to its head lies at to_head[e] of `message`, that to its tail at to_tail[e].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import inline, kernel


@inline
def _send(pool: Any, at: int, potential: Any, share: float, back: Any, into: Any) -> float:
    """into[j] = min over c of share · potential[c] − back[c] + table[c, j], less its least, which is returned."""
    width = into.shape[0]
    into[:] = np.inf
    for c in range(back.shape[0]):
        x = share * potential[c] - back[c]
        row = pool[at + c * width : at + (c + 1) * width]
        for j in range(width):
            y = x + row[j]
            into[j] = y if y < into[j] else into[j]
    least = np.inf
    for j in range(width):
        least = min(least, into[j])
    for j in range(width):
        into[j] -= least
    return least


@kernel(
    np.int64, np.int64, np.float64, np.int64, np.int64, np.int64, np.int64, np.int64,
    np.int64, np.int64, np.float64, np.int64, np.int64, np.float64, np.int64, np.float64,
)  # fmt: skip
def sweep(
    size: Any, first: Any, unary: Any, tail: Any, head: Any, leave: Any, enter: Any, entering: Any,
    rows: Any, columns: Any, pool: Any, to_head: Any, to_tail: Any, message: Any, choice: Any, above: Any,
) -> Any:  # fmt: skip
    """(price of the plan, bound). `choice` gets the plan, `above` per option what it adds to the bound if it is forced."""
    n = size.shape[0]
    widest = 0
    for v in range(n):
        widest = max(widest, size[v])
    potential, given = np.empty(widest), np.empty(widest)
    value = 0.0
    for v in range(n):
        k, own = size[v], unary[first[v] : first[v] + size[v]]
        # Later variables speak by their messages; earlier ones have chosen, so that their tables count.
        for c in range(k):
            potential[c] = own[c]
        for e in range(leave[v], leave[v + 1]):
            heard = message[to_tail[e] : to_tail[e] + k]
            for c in range(k):
                potential[c] += heard[c]
        for c in range(k):
            given[c] = potential[c]
        for i in range(enter[v], enter[v + 1]):
            e = entering[i]
            heard = message[to_head[e] : to_head[e] + k]
            row = pool[rows[e] + choice[tail[e]] * k : rows[e] + (choice[tail[e]] + 1) * k]
            for c in range(k):
                potential[c] += heard[c]
                given[c] += row[c]
        best = 0
        for c in range(1, k):
            if given[c] < given[best]:
                best = c
        choice[v] = best
        value += own[best]
        for i in range(enter[v], enter[v + 1]):
            e = entering[i]
            value += pool[rows[e] + choice[tail[e]] * k + best]
        share = 1.0 / max(leave[v + 1] - leave[v], enter[v + 1] - enter[v], 1)
        for e in range(leave[v], leave[v + 1]):
            into = message[to_head[e] : to_head[e] + size[head[e]]]
            _send(pool, rows[e], potential, share, message[to_tail[e] : to_tail[e] + k], into)
    bound = 0.0
    for v in range(n - 1, -1, -1):
        k = size[v]
        for c in range(k):
            potential[c] = unary[first[v] + c]
        for e in range(leave[v], leave[v + 1]):
            heard = message[to_tail[e] : to_tail[e] + k]
            for c in range(k):
                potential[c] += heard[c]
        for i in range(enter[v], enter[v + 1]):
            heard = message[to_head[entering[i]] : to_head[entering[i]] + k]
            for c in range(k):
                potential[c] += heard[c]
        least = np.inf
        for c in range(k):
            least = min(least, potential[c])
        for c in range(k):
            potential[c] -= least
            above[first[v] + c] = potential[c]
        bound += least
        share = 1.0 / max(leave[v + 1] - leave[v], enter[v + 1] - enter[v], 1)
        for i in range(enter[v], enter[v + 1]):
            e = entering[i]
            into = message[to_tail[e] : to_tail[e] + size[tail[e]]]
            bound += _send(pool, columns[e], potential, share, message[to_head[e] : to_head[e] + k], into)
    return value, bound
