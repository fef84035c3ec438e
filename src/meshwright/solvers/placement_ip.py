"""Integer programmes for splits of least maximal load, in the three search spaces of the method.

chain          an order of devices such that values flow forwards only (order form, ours; exact for the chain space)
contiguous     no path leaves a device and comes back, forward nodes only; two devices may feed each other
noncontiguous  any split
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .max_load import Answer, lower_bound
from .mixed_integer import End, Programme, Solved, closed, solve
from .placement import Items, Placement, items_of, loads_of

Space = Literal["contiguous", "noncontiguous"]


def split_programme(
    graph: Placement, space: Space, *, gap: float = 0.01, seconds: float = 1200.0, start: Answer | None = None,
    separate: bool = False,
) -> tuple[Answer | None, End]:  # fmt: skip
    """The best split found with its proven bound, and what ended the search.

    Args:
        start: a split of this space to begin with.
        separate: minimise the largest forward load plus the largest backward load.
    """
    if (unit := graph.unit) != 1.0:
        found, end = split_programme(
            graph.counted_in(unit), space, gap=gap, seconds=seconds, start=_in_unit(start, 1 / unit), separate=separate
        )
        return _in_unit(found, unit), end
    model, x = Programme(), []
    groups = graph.groups
    home = {v: g for g, own in enumerate(groups) for v in own}
    devices = range(graph.accelerators + graph.cpus)
    loads = loads_of(graph, groups)
    for g in range(len(groups)):
        x.append([model.binary() for _ in devices])
        model.row(dict.fromkeys(x[g], 1.0), 1.0, 1.0)
        for i in devices:
            if not np.isfinite(loads.accelerator[g] if i < graph.accelerators else loads.cpu[g]):
                model.upper[x[g][i]] = 0.0
    least = max(0.0, lower_bound(graph) * (1 - 1e-9)) if not separate else 0.0
    tops = [model.column(0.0, cost=1.0) for _ in range(1 + separate)]
    model.lower[tops[0]] = least
    phases = (False, True) if separate else (None,)
    for phase, top in zip(phases, tops):
        for i in devices:
            row = {top: -1.0}
            on_cpu = i >= graph.accelerators
            for g, own in enumerate(groups):
                nodes = [v for v in own if phase is None or graph.backward[v] == phase]
                time = sum(graph.cpu[v] if on_cpu else graph.accelerator[v] for v in nodes)
                if np.isfinite(time) and time:
                    row[x[g][i]] = float(time)
            if not on_cpu:
                _add_transfers(model, graph, home, x, i, row, phase)
            model.row(row, most=0.0)
    room = graph.memory or 1.0
    for i in range(graph.accelerators):
        if np.isfinite(graph.memory):
            model.row({x[g][i]: float(loads.size[g]) / room for g in range(len(groups))}, most=1.0)
    if space == "contiguous":
        for i in devices:
            _add_convexity(model, graph, [x[home[v]][i] for v in range(len(graph))])
    heaviest = _break_symmetry(model, graph, x, loads.accelerator)
    first = _start(model, graph, home, x, start.split, groups[heaviest][0]) if start is not None else None
    return _answer(graph, home, x, solve(model, gap=gap, seconds=seconds, start=first), start, separate)


def chain_programme(
    graph: Placement, *, gap: float = 1e-6, seconds: float = 1200.0, start: Answer | None = None
) -> tuple[Answer | None, End]:
    """The order form: binary "position of item v is at most d"; any of the positions may be the CPUs'."""
    if (unit := graph.unit) != 1.0:
        found, end = chain_programme(graph.counted_in(unit), gap=gap, seconds=seconds, start=_in_unit(start, 1 / unit))
        return _in_unit(found, unit), end
    items = items_of(graph)
    n, positions = len(items.groups), graph.accelerators + graph.cpus
    model = Programme()
    p = [[model.binary() if d < positions - 1 else model.column(1.0, 1.0) for d in range(positions)] for _ in range(n)]
    cpu = [model.binary() for _ in range(positions)] if graph.cpus else []
    for v in range(n):
        for d in range(positions - 1):
            model.row({p[v][d + 1]: 1.0, p[v][d]: -1.0}, least=0.0)
    for a, b in items.edges:
        for d in range(positions - 1):
            model.row({p[a][d]: 1.0, p[b][d]: -1.0}, least=0.0)
    if cpu:
        model.row(dict.fromkeys(cpu, 1.0), graph.cpus, graph.cpus)
    best = start.value if start is not None else inf
    loads = items.loads
    top = model.column(lower_bound(graph) * (1 - 1e-9), best if best < inf else inf, cost=1.0)
    big = float(np.where(np.isfinite(loads.accelerator), loads.accelerator, 0.0).sum() + loads.weight.sum())
    slow = float(np.where(np.isfinite(loads.cpu), loads.cpu, 0.0).sum())
    heavy, room = float(loads.size.sum()), graph.memory or 1.0
    for d in range(positions):
        row, slowly, held = {top: -1.0}, {top: -1.0}, {}
        for v in range(n):
            for column, sign in ((p[v][d], 1.0), *(((p[v][d - 1], -1.0),) if d else ())):
                if np.isfinite(loads.accelerator[v]):
                    row[column] = sign * float(loads.accelerator[v])
                elif cpu:
                    model.row(_member(p, v, d) | {cpu[d]: -1.0}, most=0.0)
                if np.isfinite(loads.cpu[v]):
                    slowly[column] = sign * float(loads.cpu[v])
                held[column] = sign * float(loads.size[v]) / room
        for h, pins in enumerate(loads.pins):
            cut = model.column(0.0, 1.0)
            row[cut] = float(loads.weight[h])
            for a, b in zip(pins, (*pins[1:], pins[0])):
                # x[a] − x[b] ≤ cut, along a cycle through the pins.
                model.row(_member(p, a, d) | _member(p, b, d, -1.0) | {cut: -1.0}, most=0.0)
        if cpu:
            row[cpu[d]] = -big
            slowly[cpu[d]] = slow
            model.row(slowly, most=slow)
            if np.isfinite(graph.memory):
                model.row(held | {cpu[d]: -heavy / room}, most=1.0)
        elif np.isfinite(graph.memory):
            model.row(held, most=1.0)
        model.row(row, most=0.0)
    solved = solve(model, gap=gap, seconds=seconds)
    if not solved.values:
        if start is None:
            return None, solved.end
        return Answer(best, start.split, closed(best, min(solved.bound, best))), solved.end
    split = _positions(graph, items, solved.values, p, cpu)
    value = graph.max_load(split)
    if value > best:
        assert start is not None
        return Answer(best, start.split, closed(best, min(solved.bound, best))), solved.end
    return Answer(value, split, closed(value, min(solved.bound, value))), solved.end


def _in_unit(answer: Answer | None, factor: float) -> Answer | None:
    """The same split, its times in another unit."""
    return Answer(answer.value * factor, answer.split, answer.bound * factor) if answer is not None else None


def _positions(
    graph: Placement, items: Items, values: Sequence[float], p: list[list[int]], cpu: list[int]
) -> tuple[int, ...]:
    split, used, device = [0] * len(graph), [0, graph.accelerators], []
    for d in range(graph.accelerators + graph.cpus):
        on_cpu = bool(cpu) and values[cpu[d]] > 0.5
        device.append(used[on_cpu])
        used[on_cpu] += 1
    for v, own in enumerate(items.groups):
        d = next(d for d, column in enumerate(p[v]) if values[column] > 0.5)
        for node in own:
            split[node] = device[d]
    return tuple(split)


def _member(p: list[list[int]], v: int, d: int, sign: float = 1.0) -> dict[int, float]:
    """±(item v is at position d)."""
    return {p[v][d]: sign} | ({p[v][d - 1]: -sign} if d else {})


def _add_transfers(
    model: Programme, graph: Placement, home: dict[int, int], x: list[list[int]], i: int, row: dict[int, float],
    phase: bool | None,
) -> None:  # fmt: skip
    """in[u] ≥ x[v] − x[u] and out[u] ≥ x[u] − x[v] for each reader v, one variable each per producer and device."""
    for u, readers in enumerate(graph.readers):
        others = sorted({home[v] for v in readers} - {home[u]})
        if not others or graph.cost[u] <= 0 or (phase is not None and graph.backward[u] != phase):
            continue
        # A device holds the producer or not, so only one of the two is ever 1.
        moved = model.column(0.0, 1.0)
        row[moved] = float(graph.cost[u])
        own = x[home[u]][i]
        for g in others:
            model.row({moved: 1.0, x[g][i]: -1.0, own: 1.0}, least=0.0)
            model.row({moved: 1.0, own: -1.0, x[g][i]: 1.0}, least=0.0)


def _add_convexity(model: Programme, graph: Placement, member: Sequence[int]) -> None:
    """reach[v] = 1 marks nodes that can reach the set; a node of the set has no predecessor that was left again."""
    reach = {v: model.column(0.0, 1.0) for v in range(len(graph)) if not graph.backward[v]}
    for v, z in reach.items():
        model.row({z: 1.0, member[v]: -1.0}, least=0.0)
    for u, v in graph.edges:
        if u in reach and v in reach:
            # z[v] ≤ z[u] and z[v] ≤ x[v] − x[u] + 1: along a path from the set, having left it means not to come back.
            model.row({reach[u]: 1.0, reach[v]: -1.0}, least=0.0)
            if member[u] != member[v]:
                model.row({reach[v]: 1.0, member[v]: -1.0, member[u]: 1.0}, most=1.0)


def _break_symmetry(model: Programme, graph: Placement, x: list[list[int]], work: NDArray[np.float64]) -> int:
    """Equal accelerators are told apart by the group with most work: it is on the first or on a CPU. Returns that group."""
    heaviest = max(range(len(x)), key=lambda g: work[g] if np.isfinite(work[g]) else -1.0)
    for i in range(1, graph.accelerators):
        model.upper[x[heaviest][i]] = 0.0
    return heaviest


def _start(
    model: Programme, graph: Placement, home: dict[int, int], x: list[list[int]], split: Sequence[int], first: int
) -> list[float]:
    """Values of the binaries, accelerators renumbered so that node `first` is on number 0; the solver completes the rest."""
    values = [inf] * len(model.cost)
    chosen = split[first]
    swap = {chosen: 0, 0: chosen} if chosen < graph.accelerators else {}
    for v, g in home.items():
        for i, column in enumerate(x[g]):
            values[column] = float(swap.get(split[v], split[v]) == i)
    return values


def _answer(
    graph: Placement, home: dict[int, int], x: list[list[int]], solved: Solved, start: Answer | None, separate: bool
) -> tuple[Answer | None, End]:
    score = graph.phase_load if separate else graph.max_load
    best = Answer(score(start.split), start.split, solved.bound) if start is not None else None
    if solved.values:
        split = tuple(int(np.argmax([solved.values[column] for column in x[home[v]]])) for v in range(len(graph)))
        value = score(split)
        if best is None or value < best.value:
            best = Answer(value, split, solved.bound)
    if best is None:
        return None, solved.end
    return Answer(best.value, best.split, closed(best.value, min(solved.bound, best.value))), solved.end
