"""Downsets of a partial order, and the exact programme for the least maximal load over chains of them.

A downset is closed under predecessors; a chain ∅ ⊂ I₁ ⊂ … ⊂ all is an ordered partition into stages I_j \\ I_{j−1}, so
the graph of stages has no cycle. Method: "Efficient Algorithms for Device Placement of DNN Graph Operators" (NeurIPS
2020, arXiv 2006.16423), section 5; the walk, the completion band and the dominance rule are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .stoppable import Flag, Tick, stoppable

LIMIT = 4_000_000
"""Downsets held at most; some hundred bytes each."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """All downsets of n items; number 0 is empty, the last is everything."""

    n: int
    bits: NDArray[np.uint64]
    """[sets, words]: the items of each."""
    ptr: NDArray[np.int64]
    node: NDArray[np.int32]
    target: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def items(self, index: int) -> frozenset[int]:
        """The items of downset `index`."""
        row = self.bits[index]
        return frozenset(v for v in range(self.n) if int(row[v >> 6]) >> (v & 63) & 1)

    def pairs(self) -> int:
        """Number of pairs I ⊂ J."""
        from ._downset_kernels import count_pairs

        return int(count_pairs(self.ptr, self.node, self.target))


@dataclass(frozen=True, slots=True)
class Loads:
    """What the items of a stage cost. Hyperedge h = one producer and its readers, paid by every stage that cuts it."""

    accelerator: NDArray[np.float64]
    """Time per item there; inf = cannot run there."""
    cpu: NDArray[np.float64]
    size: NDArray[np.float64]
    """Bytes, counted on accelerators only."""
    pins: tuple[tuple[int, ...], ...]
    """Distinct items of each hyperedge."""
    weight: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Chain:
    """stages[j] = (its items, whether on a CPU), in order of the data; value = the largest load; pairs walked."""

    value: float
    stages: tuple[tuple[tuple[int, ...], bool], ...]
    pairs: int = 0


def lattice_of(
    n: int, edges: Sequence[tuple[int, int]], limit: int = LIMIT, tick: Tick | None = None
) -> Lattice | None:
    """The downsets of items 0 … n − 1 where (a, b) means that a comes before b; None if there are more than `limit`.

    What `tick` raises ends it.

    Raises:
        InputError: an edge names no item.
    """
    from ._downset_kernels import enumerate_downsets

    words = max(1, -(-n // 64))
    need = np.zeros((n, words), np.uint64)
    for a, b in edges:
        if not (0 <= a < n and 0 <= b < n):
            raise InputError(f"edge {a} → {b} names an item outside of 0 to {n - 1}")
        need[b, a >> 6] |= np.uint64(1) << np.uint64(a & 63)
    bits, ptr, node, target = stoppable(lambda stop: enumerate_downsets(need.reshape(-1), n, words, limit, stop), tick)
    if not len(ptr):
        return None
    return Lattice(n, bits.reshape(-1, words), ptr, node, target)


def path_lattice(order: Sequence[int]) -> Lattice:
    """The downsets of items in one fixed order: its prefixes."""
    n = len(order)
    words = max(1, -(-n // 64))
    bits = np.zeros((n + 1, words), np.uint64)
    for i, v in enumerate(order):
        bits[i + 1] = bits[i]
        bits[i + 1, v >> 6] |= np.uint64(1) << np.uint64(v & 63)
    ptr = np.minimum(np.arange(n + 2), n)[: n + 2]
    return Lattice(n, bits, ptr, np.array(order, np.int32), np.arange(1, n + 1, dtype=np.int32))


def last_in_first_out(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """A topological order that goes on from the item that became ready last, much as a depth-first walk does."""
    return _ordered(n, edges, list.pop, list.append)


def earliest_first(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """A topological order that takes the item with the smallest number of those that are ready."""
    return _ordered(n, edges, heappop, heappush)


def _ordered(
    n: int,
    edges: Sequence[tuple[int, int]],
    take: Callable[[list[int]], int],
    put: Callable[[list[int], int], None],
) -> list[int]:
    """A topological order; `take` chooses among the items that are ready."""
    after: list[list[int]] = [[] for _ in range(n)]
    waits = [0] * n
    for a, b in edges:
        after[a].append(b)
        waits[b] += 1
    ready = [v for v in range(n) if not waits[v]]
    order = []
    while ready:
        order.append(take(ready))
        for b in after[order[-1]]:
            waits[b] -= 1
            if not waits[b]:
                put(ready, b)
    return order


def chain_partition(
    lattice: Lattice, loads: Loads, accelerators: int, cpus: int, memory: float = inf, upper: float = inf,
    tick: Tick | None = None,
) -> Chain | None:  # fmt: skip
    """The chain of at most so many devices of each kind whose largest load is least, if it is below `upper`.

    Devices may stand anywhere in the chain. Time: the pairs of downsets that a bound of `upper` leaves, times the live
    combinations of device counts; space: downsets · (accelerators + 1)(cpus + 1) · 13 bytes. What `tick` raises ends it.
    """
    from ._downset_kernels import chain_max_load

    capable = np.isfinite(loads.accelerator)
    work = np.where(capable, loads.accelerator, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(work > 0, work / loads.cpu, 0.0)
    eptr, edge, pins = _incidence(lattice.n, loads.pins)

    def search(stop: Flag) -> Any:
        return chain_max_load(
            lattice.ptr, lattice.node, lattice.target, loads.accelerator, loads.cpu, loads.size, work,
            eptr, edge, pins, loads.weight, accelerators, cpus, memory, upper, float(ratio.max(initial=0.0)), stop,
        )  # fmt: skip

    value, parent, by_cpu, best, pairs = stoppable(search, tick)
    if best < 0:
        return None
    width, last, state = (accelerators + 1) * (cpus + 1), len(lattice) - 1, int(best)
    stages = []
    while last:
        at = last * width + state
        before, on_cpu = int(parent[at]), bool(by_cpu[at])
        stages.append((tuple(sorted(lattice.items(last) - lattice.items(before))), on_cpu))
        last, state = before, state - (accelerators + 1 if on_cpu else 1)
    return Chain(float(value), tuple(reversed(stages)), int(pairs))


def _incidence(n: int, pins: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Hyperedges by item, as CSR, and the number of pins of each."""
    own: list[list[int]] = [[] for _ in range(n)]
    for h, members in enumerate(pins):
        for v in members:
            own[v].append(h)
    ptr = np.cumsum([0, *(len(row) for row in own)])
    return ptr, np.array([h for row in own for h in row], np.int32), np.array([len(m) for m in pins], np.int32)
