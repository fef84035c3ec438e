"""The states of PipeDream's optimizer: antichains of a graph, found breadth first from its first source.

Source: msr-fiddle/pipedream, branch pipedream, graph/graph.py (MIT), re-implemented on bit sets. On graphs with one source
the states are exactly the non-empty sets that are closed under predecessors; with several sources only part of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


@dataclass(frozen=True, slots=True)
class States:
    """L states, ordered so that a subset comes before what contains it; the last is everything."""

    below: NDArray[np.bool_]
    """[L, n]: the nodes of each state, everything before included."""
    front: NDArray[np.bool_]
    """[L, n]: the augmented antichain: nodes whose output is used after the state, as the original counts them."""
    complete: bool
    """All downsets are there."""

    def __len__(self) -> int:
        return len(self.below)

    def contains(self) -> NDArray[np.bool_]:
        """[L, L]: is state k a proper subset of state j?"""
        inside = self.below.astype(np.float32)
        outside = inside @ (1.0 - inside).T
        found: NDArray[np.bool_] = outside == 0
        np.fill_diagonal(found, False)
        return found


class Reach:
    """Bit sets of everything before and after each node of a graph."""

    def __init__(self, n: int, edges: Sequence[tuple[int, int]]) -> None:
        """Nodes are numbered topologically."""
        self.n = n
        self.after: list[list[int]] = [[] for _ in range(n)]
        self.before = [0] * n
        self.beyond = [0] * n
        for a, b in sorted(edges):
            self.after[a].append(b)
        for a in range(n):
            for b in self.after[a]:
                self.before[b] |= self.before[a] | 1 << a
        for a in reversed(range(n)):
            for b in self.after[a]:
                self.beyond[a] |= self.beyond[b] | 1 << b
        self.out = [sum(1 << b for b in set(row)) for row in self.after]

    def augmented(self, chain: int) -> int:
        """The antichain with every ancestor of a member that has a consumer besides that member and its ancestors."""
        found = chain
        for a in bits(chain):
            inside = self.before[a] | 1 << a
            for p in bits(self.before[a] & ~found):
                if self.out[p] & ~inside:
                    found |= 1 << p
        return found

    def front(self, nodes: int) -> int:
        """The augmented antichain of a set that is closed under predecessors."""
        return self.augmented(self.top(nodes))

    def top(self, nodes: int) -> int:
        """The members that have no other member after them."""
        return sum(1 << a for a in bits(nodes) if not self.beyond[a] & nodes)


def bits(value: int) -> list[int]:
    """Members of a bit set, ascending."""
    found = []
    while value:
        low = value & -value
        found.append(low.bit_length() - 1)
        value ^= low
    return found


def states_of(n: int, edges: Sequence[tuple[int, int]], limit: int = 5_000) -> States | None:
    """The states of a graph whose nodes are numbered topologically; None if there are more than `limit`.

    Raises:
        InputError: nodes that no path joins with the first source.
    """
    reach = Reach(n, edges)
    start = 1
    seen = {start}
    queue = deque([start])
    while queue:
        chain = queue.popleft()
        wide = reach.augmented(chain)
        for old in bits(wide):
            for new in reach.after[old]:
                if chain >> new & 1 or reach.beyond[new] & wide:
                    continue
                step = reach.top(wide & ~(1 << old) | 1 << new)
                if step not in seen:
                    if len(seen) >= limit:
                        return None
                    seen.add(step)
                    queue.append(step)
    closed = sorted(((_closure(reach, chain), chain) for chain in seen), key=lambda x: (x[0].bit_count(), x))
    full = (1 << n) - 1
    if closed[-1][0] != full:
        missing = bits(full & ~closed[-1][0])
        raise InputError(
            f"{len(missing)} of {n} nodes are not joined with the first source: a pipeline needs one connected graph"
        )
    below, front = np.zeros((len(closed), n), bool), np.zeros((len(closed), n), bool)
    for i, (nodes, chain) in enumerate(closed):
        below[i, bits(nodes)] = True
        front[i, bits(reach.augmented(chain))] = True
    return States(below, front, sum(not x for x in reach.before) == 1)


def chains(n: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Nodes joined along unbranched chains, as PipeDream's authors did for Inception and NASNet; in topological order."""
    reach = Reach(n, edges)
    sources: list[set[int]] = [set() for _ in range(n)]
    for a, b in edges:
        sources[b].add(a)
    head = list(range(n))
    for v in range(n):
        if len(sources[v]) == 1:
            (a,) = sources[v]
            if reach.out[a].bit_count() == 1:
                head[v] = head[a]
    groups: dict[int, list[int]] = {}
    for v in range(n):
        groups.setdefault(head[v], []).append(v)
    # The last node decides: what it needs lies before it, so groups ordered by their heads are in topological order.
    return [groups[h] for h in sorted(groups)]


def prefixes(n: int, edges: Sequence[tuple[int, int]]) -> States:
    """Only the states along the given order: what is left where a graph has too many."""
    reach = Reach(n, edges)
    below, front = np.tri(n, dtype=bool), np.zeros((n, n), bool)
    for v in range(n):
        front[v, bits(reach.front((1 << v + 1) - 1))] = True
    return States(below, front, False)


def condensed(groups: Sequence[Sequence[int]], edges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The edges between groups."""
    home = {v: g for g, own in enumerate(groups) for v in own}
    return sorted({(home[a], home[b]) for a, b in edges if home[a] != home[b]})


def _closure(reach: Reach, chain: int) -> int:
    found = chain
    for a in bits(chain):
        found |= reach.before[a]
    return found
