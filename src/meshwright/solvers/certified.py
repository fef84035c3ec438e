"""The best choice of a cost graph, with a proof: what every planner of operator shardings asks.

    reduce → pass messages until plan and bound meet → drop options that a better plan cannot have, and again
           → eliminate what is left if its tables are small → else an integer programme

Most cost graphs of real models are solved by the first two steps (LLaMA-3 8B on 8 × 8 devices, 8,798 ops, in a fraction of
a second). Where time runs out, the value is that of the best plan so far and the bound what is proven.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import numpy as np

from .choice_programme import Room, choose
from .cost_graph import FORBIDDEN, CostGraph, Found
from .elimination import eliminate
from .elimination_order import order_of
from .message_passing import MET, Passed, pass_messages
from .reductions import reduced

Progress = Callable[[str, int, float, float], None]
"""(phase, steps, value, bound)"""
Better = Callable[[tuple[int, ...]], None]
WORTH = 0.05
"""Share of the options that must have been dropped for another round of reductions and messages."""

ENTRIES = 50_000_000
"""Of the largest table of an elimination that is tried before an integer programme."""
OPERATIONS = 2e10
"""Of all of such an elimination: about a second."""


def certified(
    graph: CostGraph,
    rooms: Sequence[Room] = (),
    *,
    seconds: float = inf,
    progress: Progress | None = None,
    better: Better = lambda choice: None,
) -> Found:
    """The best choice; proved if `Found.gap` is 0, else the best known one and a bound.

    Args:
        rooms: limits of bytes. They make it an integer programme, unless the best choice without them keeps them.
        seconds: until when a better plan or bound is looked for.
        progress: called with (phase, steps, best value, bound); may raise, which ends the search.
        better: called with every better choice that keeps the limits, so that nothing is lost where the search is ended.
    """
    until = time.monotonic() + seconds

    def kept(choice: tuple[int, ...]) -> None:
        if not any(room.most < 0 or room.over(choice) for room in rooms):
            better(choice)

    free = _best(graph, until, progress, kept)
    if free.value == inf and free.bound == inf:
        return FORBIDDEN
    found = free
    if any(room.most < 0 or room.over(free.choice) > 0 for room in rooms if free.choice):
        found = choose(graph, rooms, seconds=_left(until), better=better)
        found = replace(found, bound=max(found.bound, free.bound))
    if not found.choice and graph.unary:
        return found
    value = graph.cost(found.choice)
    return replace(found, value=value, bound=_met(value, found.bound))


def _met(value: float, bound: float) -> float:
    """The bound; the value itself where sums in another order are all that lies between."""
    return value if value < inf and value - bound <= MET * abs(value) else bound


def _left(until: float) -> float:
    """Seconds for an integer programme, which needs some to begin at all."""
    return max(1.0, min(until - time.monotonic(), 1e6))


def _best(graph: CostGraph, until: float, progress: Progress | None, better: Better) -> Found:
    small = reduced(graph)
    if small.constant == inf:
        return FORBIDDEN
    rest, base = small.graph, small.constant

    def told(phase: str, steps: int, value: float, bound: float) -> None:
        if progress is not None:
            progress(phase, steps, value + base, bound + base)

    def improved(choice: tuple[int, ...]) -> None:
        better(small.restored(choice))

    passed = pass_messages(
        rest, seconds=until - time.monotonic(), progress=lambda n, v, b: told("message passing", n, v, b), better=improved
    )  # fmt: skip
    choice, value, bound = passed.choice, passed.value, passed.bound
    if _met(value, bound) != value and time.monotonic() < until:
        inner = _within(rest, passed, until, told, improved)
        # Dropped options are in no plan better than the known one.
        bound = max(bound, min(value, inner.bound))
        if inner.value < value:
            choice, value = inner.choice, inner.value
    if value == inf and rest.unary:
        return Found((), inf, bound + base) if bound < inf else FORBIDDEN
    return Found(small.restored(choice), value + base, min(value, bound) + base)


def _within(graph: CostGraph, passed: Passed, until: float, progress: Progress, better: Better) -> Found:
    """The best choice below the known one, of a graph whose messages do not prove it."""
    cut = passed.value + MET * abs(passed.value)
    unary = tuple(
        np.where(passed.before + above > cut, inf, prices)
        for prices, above in zip(graph.unary, passed.above, strict=True)
    )
    pruned = replace(graph, unary=unary)
    dropped = sum(int((now > before).sum()) for now, before in zip(unary, graph.unary, strict=True))

    def told(phase: str, steps: int, value: float, bound: float) -> None:
        progress(phase, steps, min(value, passed.value), min(bound, passed.value))

    if dropped > WORTH * sum(map(len, unary)):
        return _best(pruned, until, told, better)
    order = order_of([len(prices) for prices in pruned.unary], pruned.edges, "min_weight")
    if order.largest <= ENTRIES and order.operations <= OPERATIONS:
        return eliminate(
            pruned, "min_weight", ENTRIES, lambda done, n: progress("elimination", done, passed.value, passed.bound)
        )
    progress("integer programme", 0, passed.value, passed.bound)
    start = passed.choice if passed.value < inf else None
    return choose(pruned, seconds=_left(until), start=start, below=cut, better=better)
