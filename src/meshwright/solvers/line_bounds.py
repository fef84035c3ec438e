"""What a choice costs at least along a line, by messages instead of elimination: for graphs whose tables would be too large.

Tree-reweighted messages (`message_passing`) end with a bound of all choices, a bound of those that take an option, for each,
and a choice. On cost graphs of models the choice mostly meets the bound, in milliseconds where an elimination would need
gigabytes. The same bounds say how far a frontier may be from the true one, where it is not proved: no choice lies below
any of the lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np
from numpy.typing import NDArray

from .cost_graph import CostGraph, Floats, restricted
from .gaps import Weight, weighted
from .message_passing import MET, pass_messages

SWEEPS = 400
LINES = 24
"""Along which a frontier is held against the bounds."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """Of all choices of one graph."""

    least: float
    """No choice costs less; inf: every choice is forbidden."""
    choice: tuple[int, ...]
    """() if none was met."""
    value: float
    """What it costs."""
    marginals: tuple[Floats, ...]
    """Per variable and option: no choice that takes it costs less."""

    @property
    def met(self) -> bool:
        """Whether the choice is proved to be the best."""
        return self.least == inf or (self.value < inf and self.value - self.least <= MET * abs(self.value))


def bounded(graph: CostGraph, sweeps: int = SWEEPS) -> Bounded:
    """Bounds of a graph without parallel edges or edges from a variable to itself."""
    kept = _consistent(graph)
    sizes = [len(own) for own in graph.unary]
    if min(map(len, kept), default=1) == 0:
        return Bounded(inf, (), inf, tuple(np.full(n, inf) for n in sizes))
    passed = pass_messages(restricted(graph, kept), sweeps=sweeps)
    marginals = [np.full(n, inf) for n in sizes]
    for own, options, above in zip(marginals, kept, passed.above, strict=True):
        own[options] = np.maximum(passed.before + above, passed.bound)
    choice = tuple(int(own[c]) for own, c in zip(kept, passed.choice, strict=True)) if passed.value < inf else ()
    return Bounded(passed.bound, choice, passed.value, tuple(marginals))


def _consistent(graph: CostGraph) -> list[NDArray[np.intp]]:
    """Options that are allowed, with an allowed partner among those of every neighbour."""
    fine = [own < inf for own in graph.unary]
    allowed = [table < inf for table in graph.tables]
    changed = True
    while changed:
        changed = False
        for (u, v), pairs in zip(graph.edges, allowed, strict=True):
            for here, other, table in ((u, v, pairs), (v, u, pairs.T)):
                left = fine[here] & table[:, fine[other]].any(axis=1)
                changed = changed or bool((left != fine[here]).any())
                fine[here] = left
    return [np.flatnonzero(own) for own in fine]


@dataclass(frozen=True, slots=True)
class Off:
    """How far known points may be from the frontier, as shares; 0: they cannot be."""

    faster: float
    """By which a choice is cheaper at most than the cheapest known one that needs no more memory."""
    smaller: float
    """By which a choice needs less memory at most than any known one."""


NONE = Off(0.0, 0.0)


def off(graph: CostGraph, memory: Floats, price: Floats, cap: float = inf) -> Off:
    """No choice lies below the lines: the points are off by no more than the most room that they leave above them, each until
    the next one begins.

    Args:
        graph: as `bounded` takes it.
        memory, price: of the points, by memory; none beats another, and there is one.
        cap: memory that counts at most.
    """
    least = np.full(len(price), -inf)
    ends = np.append(memory[1:], cap)
    for slope in (0.0, *_slopes(memory, price)):
        bound = bounded(weighted(graph, Weight(1.0, slope))).least
        least = np.maximum(least, bound - (slope * ends if slope else 0.0))
    lean = bounded(weighted(graph, Weight(0.0, 1.0))).least
    faster = max(_share(p - b, p) for p, b in zip(price.tolist(), least.tolist(), strict=True))
    return Off(faster, _share(float(memory[0]) - lean, float(memory[0])))


def _share(part: float, of: float) -> float:
    """0 where only the order of sums lies between."""
    return 0.0 if part <= MET * abs(of) else part / abs(of) if of else inf


def _slopes(memory: Floats, price: Floats) -> list[float]:
    """Of the lower convex hull of the points, the longest pieces."""
    hull: list[int] = []
    for k in range(len(price)):
        while len(hull) > 1 and _turns(memory, price, hull[-2], hull[-1], k):
            hull.pop()
        hull.append(k)
    pieces = sorted(pairwise(hull), key=lambda p: (memory[p[0]] - memory[p[1]], p))[:LINES]
    return [float((price[a] - price[b]) / (memory[b] - memory[a])) for a, b in pieces]


def _turns(memory: Floats, price: Floats, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    over = (price[b] - price[a]) * (memory[c] - memory[a])
    return bool(over >= (price[c] - price[a]) * (memory[b] - memory[a]))
