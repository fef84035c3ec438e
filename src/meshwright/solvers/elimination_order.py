"""In which order variables leave a cost graph, and how large the tables then get: decided on the graph alone, before any table.

When a variable leaves, its neighbours become neighbours of each other, because they share the table that it leaves behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import prod
from typing import Literal, get_args

from ..errors import InputError

OrderName = Literal["min_weight", "min_degree", "breadth_first"]
ORDERS: tuple[OrderName, ...] = get_args(OrderName)


@dataclass(frozen=True, slots=True)
class Order:
    """A sequence of all variables and what it costs."""

    sequence: tuple[int, ...]
    scopes: tuple[tuple[int, ...], ...]
    """Per place in the sequence: the neighbours of the variable as it leaves, ascending (PaSE's dependent sets)."""
    width: int
    """Most variables in a scope."""
    largest: int
    """Entries of the largest table: over a scope and the variable that leaves."""
    operations: float
    """Entries of all such tables."""


def order_of(
    sizes: Sequence[int], edges: Iterable[tuple[int, int]], name: OrderName = "min_weight", fixed: Collection[int] = ()
) -> Order:
    """The order of one rule.

    min_weight     least product of the neighbours' numbers of options next
    min_degree     fewest neighbours next: PaSE's GENERATESEQ
    breadth_first  as a breadth-first search from the lowest variable of each component meets them

    Equals: the lowest variable first.

    Args:
        sizes: options per variable.
        fixed: variables that have left already, whose edges do not count.

    Raises:
        InputError: no such rule.
    """
    if name not in ORDERS:
        raise InputError(f'no elimination order "{name}": there are {", ".join(ORDERS)}')
    near: list[set[int]] = [set() for _ in sizes]
    for u, v in edges:
        if u != v and u not in fixed and v not in fixed:
            near[u].add(v)
            near[v].add(u)
    if name == "breadth_first":
        return _along(_breadth_first(near), sizes, near, fixed)
    heap = [(_key(name, near[v], sizes), v) for v in range(len(sizes)) if v not in fixed]
    heapify(heap)
    current = [key for key, _ in sorted(heap, key=lambda e: e[1])]
    place = {v: i for i, v in enumerate(v for v in range(len(sizes)) if v not in fixed)}
    gone = [False] * len(sizes)
    sequence: list[int] = []
    scopes: list[tuple[int, ...]] = []
    while heap:
        key, v = heappop(heap)
        if gone[v] or key != current[place[v]]:
            continue
        gone[v] = True
        sequence.append(v)
        scopes.append(_leave(v, near))
        for u in scopes[-1]:
            key = _key(name, near[u], sizes)
            if key != current[place[u]]:
                current[place[u]] = key
                heappush(heap, (key, u))
    return counted(sequence, scopes, sizes)


def _key(name: OrderName, own: set[int], sizes: Sequence[int]) -> float:
    return float(len(own)) if name == "min_degree" else float(prod(sizes[u] for u in own))


def _leave(v: int, near: list[set[int]]) -> tuple[int, ...]:
    scope = tuple(sorted(near[v]))
    for u in scope:
        near[u] |= near[v]
        near[u] -= {u, v}
    near[v] = set()
    return scope


def _breadth_first(near: Sequence[set[int]]) -> list[int]:
    found: list[int] = []
    seen = [False] * len(near)
    for start in range(len(near)):
        if seen[start]:
            continue
        seen[start] = True
        queue = [start]
        for v in queue:
            fresh = [u for u in sorted(near[v]) if not seen[u]]
            for u in fresh:
                seen[u] = True
            queue += fresh
        found += queue
    return found


def _along(sequence: Iterable[int], sizes: Sequence[int], near: list[set[int]], fixed: Collection[int]) -> Order:
    sequence = [v for v in sequence if v not in fixed]
    return counted(sequence, [_leave(v, near) for v in sequence], sizes)


def counted(sequence: Sequence[int], scopes: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> Order:
    """The order in which `sequence` leaves, each with the neighbours that it then has."""
    entries = [prod(sizes[u] for u in (*scope, v)) for scope, v in zip(scopes, sequence, strict=True)]
    width = max(map(len, scopes), default=0)
    return Order(tuple(sequence), tuple(scopes), width, max(entries, default=0), float(sum(entries)))
