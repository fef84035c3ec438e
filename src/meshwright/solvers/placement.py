"""Graphs whose nodes are put on accelerators that hang on one host memory, and on CPUs: what a split costs.

A value that changes device goes out to host memory once and into each reading accelerator once: one hyperedge per
producer, pins = the producer and its readers, paid by each accelerator that holds some of the pins but not all.
Source: "Efficient Algorithms for Device Placement of DNN Graph Operators" (NeurIPS 2020, arXiv 2006.16423).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import floor, inf, log10

import numpy as np
from numpy.typing import NDArray

from .downsets import Loads, last_in_first_out

NEGLIGIBLE = 1e-6
"""Time below which a node counts as free when it may be merged into its only neighbour."""


@dataclass(frozen=True)
class Placement:
    """n nodes in topological order; devices 0 … accelerators − 1 are accelerators, the CPUs follow."""

    accelerator: NDArray[np.float64]
    """Time per node; inf = cannot run there."""
    cpu: NDArray[np.float64]
    size: NDArray[np.float64]
    cost: NDArray[np.float64]
    """Per producer: time of its result from an accelerator to host memory, and back."""
    color: tuple[int, ...]
    """Nodes of one colour share a device."""
    backward: tuple[bool, ...]
    edges: tuple[tuple[int, int], ...]
    accelerators: int
    cpus: int
    memory: float

    def __len__(self) -> int:
        return len(self.color)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.color]
        for a, b in self.edges:
            found[a].append(b)
        return tuple(tuple(own) for own in found)

    @cached_property
    def unit(self) -> float:
        """Time that a linear programme counts in, whose solver's tolerances are absolute: 1 unless times are tiny or huge."""
        times = np.concatenate([self.accelerator, self.cpu, self.cost])
        longest = float(times[np.isfinite(times)].max(initial=0.0))
        return 1.0 if longest == 0 or 1e-1 <= longest <= 1e6 else 10.0 ** floor(log10(longest) - 1)

    def counted_in(self, unit: float) -> Placement:
        """The same with all times in another unit."""
        return replace(self, accelerator=self.accelerator / unit, cpu=self.cpu / unit, cost=self.cost / unit)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Nodes by colour, by first node."""
        found: dict[int, list[int]] = {}
        for v, color in enumerate(self.color):
            found.setdefault(color, []).append(v)
        return tuple(tuple(own) for own in found.values())

    def loads(self, split: Sequence[int]) -> NDArray[np.float64]:
        """Per device, of nodes v on device split[v]: time with transfers; CPUs pay for none. inf where a node cannot run."""
        count = self.accelerators + self.cpus
        found = np.zeros(count)
        for v, device in enumerate(split):
            found[device] += self.accelerator[v] if device < self.accelerators else self.cpu[v]
        for u, readers in enumerate(self.readers):
            homes = {split[u], *(split[v] for v in readers)}
            if len(homes) > 1:
                for device in homes:
                    if device < self.accelerators:
                        found[device] += self.cost[u]
        return found

    def max_load(self, split: Sequence[int]) -> float:
        return float(self.loads(split).max())

    def phase_load(self, split: Sequence[int]) -> float:
        """Largest forward load plus largest backward load: what a schedule that separates the passes takes (GPipe)."""
        phases = []
        for wanted in (False, True):
            own = np.array([b == wanted for b in self.backward])
            part = Placement(
                np.where(own, self.accelerator, 0.0), np.where(own, self.cpu, 0.0), self.size, self.cost * own,
                self.color, self.backward, self.edges, self.accelerators, self.cpus, self.memory,
            )  # fmt: skip
            phases.append(part.max_load(split))
        return sum(phases)

    def overfull(self, split: Sequence[int]) -> float:
        """Bytes by which the fullest accelerator exceeds its memory; 0 = all fit."""
        held = np.zeros(self.accelerators + self.cpus)
        for v, device in enumerate(split):
            held[device] += self.size[v]
        return max(0.0, float((held[: self.accelerators] - self.memory).max(initial=-inf)))


@dataclass(frozen=True)
class Items:
    """What a chain is cut from: groups of nodes that stay together, and their order."""

    groups: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, int], ...]
    loads: Loads


def items_of(graph: Placement) -> Items:
    """Colours contracted, backward nodes carried along, cycles merged, free leaves merged into their neighbour.

    A colour of backward nodes only is ordered by the mirror image of its backward edges.
    """
    home = {v: g for g, own in enumerate(graph.groups) for v in own}
    orphan = [all(graph.backward[v] for v in own) for own in graph.groups]
    order: set[tuple[int, int]] = set()
    for a, b in graph.edges:
        x, y = home[a], home[b]
        if x == y:
            continue
        if not graph.backward[a] and not graph.backward[b]:
            order.add((x, y))
        elif graph.backward[a] and graph.backward[b] and (orphan[x] or orphan[y]):
            order.add((y, x))
    groups = merge(graph.groups, strong_components(len(graph.groups), sorted(order)))
    groups, edges = _ordered(graph, groups, {(graph.groups[a][0], graph.groups[b][0]) for a, b in order})
    groups = _without_leaves(graph, groups)
    groups, edges = _ordered(graph, groups, {(graph.groups[a][0], graph.groups[b][0]) for a, b in order})
    return Items(groups, edges, loads_of(graph, groups))


def loads_of(graph: Placement, groups: Sequence[Sequence[int]]) -> Loads:
    """Prices of groups as one item each."""
    home = {v: g for g, own in enumerate(groups) for v in own}
    pins, weight = [], []
    for u, readers in enumerate(graph.readers):
        members = tuple(sorted({home[u], *(home[v] for v in readers)}))
        if len(members) > 1 and graph.cost[u] > 0:
            pins.append(members)
            weight.append(float(graph.cost[u]))

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([sum(values[v] for v in own) for own in groups])

    return Loads(
        summed(graph.accelerator), summed(graph.cpu), summed(graph.size), tuple(pins), np.array(weight, np.float64)
    )


def merge(groups: Sequence[Sequence[int]], parts: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Groups of groups."""
    return tuple(tuple(sorted(v for g in part for v in groups[g])) for part in parts)


def strong_components(n: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Strongly connected components in topological order (Tarjan, without recursion)."""
    after: list[list[int]] = [[] for _ in range(n)]
    for a, b in edges:
        after[a].append(b)
    index, low, on_stack = [-1] * n, [0] * n, [False] * n
    stack: list[int] = []
    found: list[list[int]] = []
    clock = 0
    for root in range(n):
        if index[root] >= 0:
            continue
        walk = [(root, 0)]
        while walk:
            v, at = walk.pop()
            if at == 0:
                index[v] = low[v] = clock
                clock += 1
                stack.append(v)
                on_stack[v] = True
            elif at > 0:
                low[v] = min(low[v], low[after[v][at - 1]])
            while at < len(after[v]):
                w = after[v][at]
                at += 1
                if index[w] < 0:
                    walk += [(v, at), (w, 0)]
                    break
                if on_stack[w]:
                    low[v] = min(low[v], index[w])
            else:
                if low[v] == index[v]:
                    part = []
                    while True:
                        w = stack.pop()
                        on_stack[w] = False
                        part.append(w)
                        if w == v:
                            break
                    found.append(sorted(part))
    return found[::-1]


def _ordered(
    graph: Placement, groups: Sequence[Sequence[int]], order: set[tuple[int, int]]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, int], ...]]:
    """Groups in a topological order, and the edges among them; `order` holds nodes."""
    home = {v: g for g, own in enumerate(groups) for v in own}
    edges = sorted({(home[a], home[b]) for a, b in order if home[a] != home[b]})
    place = last_in_first_out(len(groups), edges)
    rank = {g: i for i, g in enumerate(place)}
    return tuple(tuple(groups[g]) for g in place), tuple(sorted((rank[a], rank[b]) for a, b in edges))


def _without_leaves(graph: Placement, groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Groups after merging each that is free and touches one other group only, by forward edges, into that group."""
    owner = {v: g for g, own in enumerate(groups) for v in own}
    members = {g: list(own) for g, own in enumerate(groups)}
    touches: dict[int, set[int]] = {g: set() for g in members}
    backward = {g: any(graph.backward[v] for v in own) for g, own in members.items()}
    beside = dict.fromkeys(members, False)
    for a, b in graph.edges:
        x, y = owner[a], owner[b]
        if x != y:
            touches[x].add(y)
            touches[y].add(x)
        if graph.backward[a] != graph.backward[b]:
            beside[x] |= not graph.backward[a]
            beside[y] |= not graph.backward[b]
    free = {
        g: sum(max(graph.accelerator[v], graph.cpu[v]) for v in own) < NEGLIGIBLE and not beside[g]
        and sum(1 for v in own if not graph.backward[v]) > 0
        for g, own in members.items()
    }  # fmt: skip
    changed = True
    while changed:
        changed = False
        for g in sorted(members):
            if free[g] and len(touches[g]) == 1:
                other = next(iter(touches[g]))
                members[other] += members.pop(g)
                backward[other] |= backward[g]
                touches[other].discard(g)
                free[other] = False if not free[other] else free[other]
                del touches[g]
                changed = True
    return tuple(tuple(sorted(own)) for own in members.values())
