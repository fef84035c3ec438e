"""Sequential tree-reweighted message passing (TRW-S): a bound that rises and a plan, sweep by sweep.

Source: Kolmogorov, "Convergent tree-reweighted message passing for energy minimization" (IEEE PAMI 28, 2006), section 5,
with its limited-memory messages. The bound never falls and reaches that of the local polytope's relaxation on most graphs;
on trees it is the optimum after one sweep. The plan of a sweep takes, variable by variable, the option that is best given
those chosen before it and the messages of those after it.

Forbidden options are dropped first: then every option has an allowed partner at every neighbour, no message is infinite,
and no finite stand-in for inf costs precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from .cost_graph import FORBIDDEN, CostGraph, Floats, Found
from .reductions import reduced

MET = 1e-9
"""Relative distance of plan and bound at which they count as equal."""
SLOW = 1e-7
"""Relative rise of the bound in `PATIENCE` sweeps below which more sweeps are not worth their time."""
PATIENCE = 20


@dataclass(frozen=True, slots=True)
class Passed:
    """What sweeps found on one graph."""

    choice: tuple[int, ...]
    value: float
    """inf: no sweep met a plan that is allowed."""
    bound: float
    above: tuple[Floats, ...]
    """Per variable and option what forcing it adds to `before`, at least: where that passes the price of a known plan, the
    option is in no better one."""
    before: float
    sweeps: int


def message_passing(
    graph: CostGraph,
    *,
    sweeps: int = 1000,
    seconds: float = inf,
    progress: Callable[[int, float, float], None] | None = None,
) -> Found:
    """A plan and a proven bound; stops when they meet, when the bound has stopped rising, or at a limit.

    Args:
        progress: called after each sweep with (sweeps, best value, bound).
    """
    ready = reduced(graph, eliminate=False)
    if ready.constant == inf:
        return FORBIDDEN
    passed = pass_messages(ready.graph, sweeps=sweeps, seconds=seconds, progress=progress)
    if passed.value == inf:
        return Found((), inf, passed.bound + ready.constant)
    choice = ready.restored(passed.choice)
    value = graph.cost(choice)
    return Found(choice, value, min(value, passed.bound + ready.constant))


def pass_messages(
    graph: CostGraph,
    *,
    sweeps: int = 1000,
    seconds: float = inf,
    progress: Callable[[int, float, float], None] | None = None,
    better: Callable[[tuple[int, ...]], None] = lambda choice: None,
) -> Passed:
    """The sweeps themselves, on a graph that `reduced` has left: no parallel edges, no option without partners.

    Args:
        better: called with every plan that is better than those before.
    """
    from ._message_kernels import sweep  # decorating its helper loads numba

    layout = _Layout(graph)
    n = len(graph.unary)
    choice = np.zeros(n, np.int64)
    best, value, bound, before = choice, inf, -inf, -inf
    history: list[float] = []
    done = 0
    began = time.monotonic()
    while done < max(1, sweeps):
        before = max(before, bound)
        found, lower = sweep(*layout.arguments, choice, layout.above)
        bound = max(bound, lower)
        done += 1
        if found < value:
            best, value = choice.copy(), found
            better(tuple(best.tolist()))
        history.append(bound)
        if progress is not None:
            progress(done, value, bound)
        if (value < inf and value - bound <= MET * abs(value)) or time.monotonic() - began > seconds:
            break
        if done > PATIENCE and history[-1] - history[-1 - PATIENCE] <= SLOW * abs(bound):
            break
    above = tuple(layout.above[a : a + k] for a, k in zip(layout.first, layout.size))
    return Passed(tuple(best.tolist()), float(value), float(min(bound, value)), above, float(before), done)


class _Layout:
    """The arrays of one graph as the kernel reads them; tables that edges share lie in the pool once."""

    def __init__(self, graph: CostGraph) -> None:
        order = sorted(range(len(graph.edges)), key=lambda e: (min(graph.edges[e]), max(graph.edges[e])))
        n, m = len(graph.unary), len(order)
        self.size = np.array([len(prices) for prices in graph.unary], np.int64)
        self.first = _starts(self.size)[:-1]
        tail, head = (np.array([pick(graph.edges[e]) for e in order], np.int64) for pick in (min, max))
        leave = np.searchsorted(tail, np.arange(n + 1))
        entering = np.argsort(head, kind="stable")
        enter = np.searchsorted(head[entering], np.arange(n + 1))
        place: dict[tuple[int, bool], int] = {}
        parts: list[Floats] = []
        rows, columns = np.zeros(m, np.int64), np.zeros(m, np.int64)
        length = 0
        for i, e in enumerate(order):
            table, turned = graph.tables[e], graph.edges[e][0] > graph.edges[e][1]
            for into, turn in ((rows, turned), (columns, not turned)):
                key = id(table), turn
                if key not in place:
                    place[key] = length
                    parts.append(np.ascontiguousarray(table.T if turn else table).ravel())
                    length += table.size
                into[i] = place[key]
        to_head = _starts(self.size[head]) if m else np.zeros(1, np.int64)
        to_tail = to_head[-1] + (_starts(self.size[tail]) if m else np.zeros(1, np.int64))
        unary = np.concatenate(graph.unary) if n else np.zeros(0)
        self.above = np.zeros(len(unary))
        self.arguments = (
            self.size, self.first, unary, tail, head, leave, enter, entering, rows, columns,
            np.concatenate(parts) if parts else np.zeros(0), to_head[:-1], to_tail[:-1], np.zeros(int(to_tail[-1])),
        )  # fmt: skip


def _starts(lengths: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
