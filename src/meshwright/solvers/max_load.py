"""Splits of least maximal load: exact over chains of downsets, and the baselines that the method is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from .downsets import Chain, Lattice, chain_partition, last_in_first_out, lattice_of, path_lattice
from .placement import Items, Placement, items_of, loads_of, merge, strong_components
from .stoppable import Tick

GAIN = 1e-5
"""Local search stops when the best move gains less (in the unit of the times)."""
RESTARTS = 10
CROWD = 256
"""Groups, those with most work, whose crowding is looked at."""
ORDERS = 4
"""Topological orders that the linear programme tries to get a first bound."""

Split = tuple[int, ...]
Watch = Callable[[float, Split], None]


@dataclass(frozen=True, slots=True)
class Answer:
    value: float
    split: Split
    """Device per node."""
    bound: float
    """Proven for all chains; equal to the value if it is the optimum."""


def chain_optimum(
    graph: Placement, watch: Watch | None = None, limit: int = 4_000_000, tick: Tick | None = None
) -> Answer | None:
    """Least maximal load over chains of convex stages whose graph has no cycle; None if no chain fits.

    Where there are more than `limit` downsets: the best over some linear orders, with the bound of `lower_bound`. What
    `tick` raises ends the search over all downsets; `watch` has seen the best of the linear orders by then.
    """
    items = items_of(graph)
    best: Answer | None = None
    bound = lower_bound(graph)
    for seed in range(ORDERS):
        chain = _linear(graph, items, _order(items, seed), best.value if best else inf)
        if chain is not None:
            best = Answer(chain.value, _split(graph, items, chain), bound)
            if watch is not None:
                watch(best.value, best.split)
    lattice = lattice_of(len(items.groups), items.edges, limit, tick)
    if lattice is None:
        return best
    # Only what is better by more than rounding is sought: the value in hand is then proven.
    chain = _partition(graph, items, lattice, best.value * (1 - 1e-12) if best else inf, tick)
    if chain is not None:
        best = Answer(chain.value, _split(graph, items, chain), chain.value)
        if watch is not None:
            watch(best.value, best.split)
    return Answer(best.value, best.split, best.value) if best is not None else None


def linear_optimum(graph: Placement, items: Items | None = None) -> Answer | None:
    """The same over the prefixes of one topological order, last in, first out (the study's DPL)."""
    items = items or items_of(graph)
    chain = _linear(graph, items, last_in_first_out(len(items.groups), items.edges), inf)
    return Answer(chain.value, _split(graph, items, chain), lower_bound(graph)) if chain is not None else None


def branches_merged(graph: Placement, skipped: Sequence[int] = ()) -> Answer | None:
    """PipeDream's way to a line: in each biconnected component all tails of edges are merged, then `linear_optimum`.

    Forward and backward node of an item are two vertices there.

    Args:
        skipped: nodes whose outgoing edges do not count (the study picked some by hand).
    """
    items = items_of(graph)
    home = {v: 2 * g + graph.backward[v] for g, own in enumerate(items.groups) for v in own}
    ignored = {home[v] for v in skipped}
    edges = sorted({(home[a], home[b]) for a, b in graph.edges if home[a] != home[b] and home[a] not in ignored})
    leader = list(range(len(items.groups)))

    def find(v: int) -> int:
        while leader[v] != v:
            leader[v] = leader[leader[v]]
            v = leader[v]
        return v

    for part in biconnected(2 * len(items.groups), edges):
        tails = [edges[e][0] // 2 for e in part]
        for v in tails[1:]:
            leader[find(v)] = find(tails[0])
    roots = sorted({find(v) for v in range(len(leader))})
    number = {r: i for i, r in enumerate(roots)}
    parts = [[v for v in range(len(leader)) if find(v) == r] for r in roots]
    order = sorted({(number[find(a)], number[find(b)]) for a, b in items.edges if find(a) != find(b)})
    strong = strong_components(len(parts), order)
    groups = merge(merge(items.groups, parts), strong)
    place = {g: i for i, own in enumerate(strong) for g in own}
    joined = tuple(sorted({(place[a], place[b]) for a, b in order if place[a] != place[b]}))
    return linear_optimum(graph, Items(groups, joined, loads_of(graph, groups)))


def local_search(graph: Placement, rng: np.random.Generator, watch: Watch | None = None) -> Answer:
    """Random accelerators, then the best move of one colour again and again; no CPUs, no memory, any split."""
    best: Answer | None = None
    groups = graph.groups
    for _ in range(RESTARTS):
        split, value = _descend(graph, groups, rng.integers(graph.accelerators, size=len(groups)))
        if best is None or value < best.value:
            best = Answer(value, split, 0.0)
            if watch is not None:
                watch(value, split)
    assert best is not None
    return best


def lower_bound(graph: Placement) -> float:
    """No split of any kind has a smaller maximal load: work over devices, and the crowding of large groups."""
    return max(_balance(graph), _crowding(graph))


def _balance(graph: Placement) -> float:
    """Work over devices, a CPU counting for what it can take off."""
    capable = np.isfinite(graph.accelerator)
    work = np.where(capable, graph.accelerator, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.where(work > 0, work / graph.cpu, 0.0).max(initial=0.0))
    devices = graph.accelerators + (graph.cpus * ratio if graph.cpus else 0.0)
    return float(work.sum() / devices) if devices else 0.0


def _crowding(graph: Placement) -> float:
    """Of the K groups with most work, some accelerator has ⌈(K − c) / k⌉ or more, at least the smallest of them; c is how
    many of these the CPUs can take within the bound itself, so it is the least value that agrees with itself.
    """
    if not graph.accelerators:
        return 0.0
    loads = loads_of(graph, graph.groups)
    order = np.argsort(-loads.accelerator, kind="stable")
    order = order[np.isfinite(loads.accelerator[order])][:CROWD]
    total = np.concatenate([[0.0], np.cumsum(loads.accelerator[order])])
    slow = [np.cumsum(np.sort(loads.cpu[order[:count]])) for count in range(1, len(order) + 1)] if graph.cpus else []
    count = np.arange(1, len(order) + 1)

    def crowd(value: float) -> float:
        aside = np.array(
            [graph.cpus * int(np.searchsorted(own, value * (1 + 1e-12), side="right")) for own in slow] or [0]
        )
        together = np.clip(-((aside - count) // graph.accelerators), 0, count)
        return float((total[count] - total[count - together]).max(initial=0.0))

    low, high = 0.0, crowd(0.0)
    for _ in range(60 if crowd(high) < high else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if middle >= crowd(middle) else (middle, high)
    return high if crowd(high) >= high else low


def _partition(
    graph: Placement, items: Items, lattice: Lattice, upper: float, tick: Tick | None = None
) -> Chain | None:
    return chain_partition(lattice, items.loads, graph.accelerators, graph.cpus, graph.memory, upper, tick)


def _linear(graph: Placement, items: Items, order: Sequence[int], upper: float) -> Chain | None:
    return _partition(graph, items, path_lattice(order), upper)


def _order(items: Items, seed: int) -> list[int]:
    """Topological orders of different kinds: as listed, last in first out, and that of the reversed graph."""
    n = len(items.groups)
    if seed == 0:
        return last_in_first_out(n, items.edges)
    if seed == 1:
        return list(range(n))
    turned = [(b, a) for a, b in items.edges]
    back = last_in_first_out(n, turned if seed == 2 else turned[::-1])
    return back[::-1]


def _split(graph: Placement, items: Items, chain: Chain) -> Split:
    """Devices by node: accelerators and CPUs numbered in order of the chain."""
    split = [0] * len(graph)
    used = [0, graph.accelerators]
    for members, on_cpu in chain.stages:
        for g in members:
            for v in items.groups[g]:
                split[v] = used[on_cpu]
        used[on_cpu] += 1
    return tuple(split)


def _descend(graph: Placement, groups: Sequence[Sequence[int]], start: np.ndarray) -> tuple[Split, float]:
    from ._placement_kernels import descend

    loads = loads_of(graph, groups)
    own: list[list[int]] = [[] for _ in groups]
    for h, members in enumerate(loads.pins):
        for g in members:
            own[g].append(h)
    home, value = descend(
        loads.accelerator, np.cumsum([0, *(len(row) for row in own)]),
        np.array([h for row in own for h in row], np.int32), np.array([len(m) for m in loads.pins], np.int32),
        loads.weight, start, graph.accelerators, GAIN,
    )  # fmt: skip
    split = [0] * len(graph)
    for g, own_nodes in enumerate(groups):
        for v in own_nodes:
            split[v] = int(home[g])
    return tuple(split), float(value)


def biconnected(n: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Biconnected components of the undirected graph, as lists of edge numbers (Hopcroft and Tarjan)."""
    beside: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for e, (a, b) in enumerate(edges):
        beside[a].append((b, e))
        beside[b].append((a, e))
    depth, low = [-1] * n, [0] * n
    used = [False] * len(edges)
    found: list[list[int]] = []
    for root in range(n):
        if depth[root] >= 0:
            continue
        depth[root] = 0
        stack: list[int] = []
        walk = [(root, 0, -1)]
        while walk:
            v, at, came = walk.pop()
            if at < len(beside[v]):
                w, e = beside[v][at]
                walk.append((v, at + 1, came))
                if used[e]:
                    continue
                used[e] = True
                stack.append(e)
                if depth[w] < 0:
                    depth[w] = low[w] = depth[v] + 1
                    walk.append((w, 0, e))
                else:
                    low[v] = min(low[v], depth[w])
            elif came >= 0:
                u = walk[-1][0]
                low[u] = min(low[u], low[v])
                if low[v] >= depth[u]:
                    part = []
                    while True:
                        e = stack.pop()
                        part.append(e)
                        if e == came:
                            break
                    found.append(sorted(part))
    return found
