"""The baseline of the Piper study: equal stages, one data- and one tensor-parallel degree, recomputation all or nothing.

It is the planner of PipeDream-2BW with tensor parallelism added. Transformer layers are split evenly, of a remainder the
last stages get one more each; what feeds them goes before, the rest after, or each into a stage of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..solvers.downsets import last_in_first_out
from ..solvers.staged_partition import Machine, Staged, evaluate
from ._piper_layers import Seen

TRANSFORMER = "ParallelTransformerLayer"
"""The name by which profiles mark transformer layers."""


def equi_partition(
    seen: Seen, machine: Machine, *, tensor_parallel: bool = True, apart: bool = True
) -> tuple[float, tuple[Staged, ...]] | None:
    """The best equal partition, or None if none fits; `apart` also tries the other layers in stages of their own."""
    best: tuple[float, tuple[Staged, ...]] | None = None
    most = min(machine.devices, machine.batch)
    for runs in _cuts(seen, machine.devices, apart):
        for d in (d for d in range(1, most // len(runs) + 1) if machine.batch % d == 0):
            room = machine.devices // (len(runs) * d)
            for t in (t for t in seen.layers.ways[0] if t <= room and (tensor_parallel or t == 1)):
                if any(t not in by_degree for by_degree in seen.layers.ways):
                    continue
                for again in (False, True):
                    stages = tuple(
                        Staged(items, d, t, tuple(_index(seen, v, t, again) for v in items)) for items in runs
                    )
                    seconds = evaluate(seen.layers, machine, stages)
                    if seconds < (best[0] if best else float("inf")):
                        best = seconds, stages
    return best


def _cuts(seen: Seen, devices: int, apart: bool) -> Iterator[list[tuple[int, ...]]]:
    """All equal partitions into stages, as lists of items."""
    n = len(seen.kinds)
    marked = [v for v in range(n) if seen.kinds[v] == TRANSFORMER]
    if not marked:
        for count in range(1, min(devices, n) + 1):
            yield _even(last_in_first_out(n, list(seen.layers.edges)), count)
        return
    feeds = set(marked)
    for v in range(n - 1, -1, -1):
        if any((v, b) in seen.layers.edges and b in feeds for b in range(v + 1, n)):
            feeds.add(v)
    before = [v for v in range(n) if v in feeds and v not in set(marked)]
    after = [v for v in range(n) if v not in feeds]
    for count in range(1, min(devices, len(marked)) + 1):
        runs = _even(marked, count)
        joined = [tuple(run) for run in runs]
        joined[0] = (*before, *joined[0])
        joined[-1] = (*joined[-1], *after)
        yield [tuple(sorted(run)) for run in joined]
        if apart and before and after and count + 2 <= devices:
            yield [tuple(before), *runs, tuple(after)]


def _even(items: list[int], count: int) -> list[tuple[int, ...]]:
    size, more = divmod(len(items), count)
    runs, at = [], 0
    for k in range(count):
        end = at + size + (k >= count - more)
        runs.append(tuple(sorted(items[at:end])))
        at = end
    return runs


def _index(seen: Seen, v: int, t: int, again: bool) -> int:
    """The configuration of item v: that which computes again, or the first that does not."""
    names = seen.names[v][t]
    return next((j for j, name in enumerate(names) if ("recomp" in name) == again), 0)
