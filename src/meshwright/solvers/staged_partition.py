"""Stages of a layer graph on whole devices: where to cut, how many replicas and parts each stage has, how each layer runs.

Objective: the slowest stage. Method: "Piper: Multidimensional Planner for DNN Parallelization" (NeurIPS 2021). The same
optimum is found another way: for a bound T on every stage, the least number of replicas by devices used is enough to know
of each downset, because fewer replicas after a stage never raise the micro-batches it stashes; then search over T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .downsets import Lattice, lattice_of
from .stoppable import Flag, Tick, stoppable

Rule = Literal["greedy", "repeated", "exact", "all_or_nothing"]
"""greedy: swaps by seconds per byte saved until it fits, two choices at most. repeated: the best swap again and again.
exact: least seconds that fit. all_or_nothing: all fastest, else all smallest."""
MODES: dict[str, int] = {"greedy": 0, "repeated": 1, "exact": 2, "all_or_nothing": 3}
PROOF = 1e-9
"""A bound this much below a value, found infeasible, proves the value."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run one item at some degree: seconds, bytes synchronised, bytes per micro-batch in flight, bytes besides."""

    seconds: float
    weights: float
    stashed: float
    fixed: float
    arriving: dict[int, float] = field(default_factory=dict)
    """Other end of an edge -> extra bytes when it is cut."""
    leaving: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Layers:
    """ways[v][t] = how item v runs in t parts; edges (a, b) -> bytes."""

    ways: tuple[dict[int, tuple[Way, ...]], ...]
    edges: dict[tuple[int, int], float]

    @cached_property
    def degrees(self) -> tuple[int, ...]:
        return tuple(sorted({t for by_degree in self.ways for t in by_degree}))

    @cached_property
    def lattice(self) -> Lattice | None:
        """Sets closed under successors; None if there are too many."""
        return lattice_of(len(self.ways), [(b, a) for a, b in self.edges])

    @cached_property
    def uniform(self) -> bool:
        """Do all ways of an item at one degree synchronise and move the same bytes?"""
        return all(
            (w.weights, w.arriving, w.leaving) == (ways[0].weights, ways[0].arriving, ways[0].leaving)
            for by_degree in self.ways
            for ways in by_degree.values()
            for w in ways
        )

    @cached_property
    def ends(self) -> tuple[tuple[tuple[int, float, bool], ...], ...]:
        """Per item: (other end, bytes, whether the edge arrives here) of its edges."""
        found: list[list[tuple[int, float, bool]]] = [[] for _ in self.ways]
        for (a, b), nbytes in self.edges.items():
            found[a].append((b, nbytes, False))
            found[b].append((a, nbytes, True))
        return tuple(tuple(own) for own in found)

    @cached_property
    def work(self) -> NDArray[np.float64]:
        """Device-seconds of each item, at least."""
        return np.array([min(t * w.seconds for t, ws in by.items() for w in ws) for by in self.ways])

    @cached_property
    def arrays(self) -> tuple[Any, ...]:
        """Prices and ends of edges as `_staged_kernels` takes them; the first is the width."""
        n, degrees = len(self.ways), self.degrees
        width = max(len(ws) for by in self.ways for ws in by.values())
        choices = np.zeros((n, len(degrees)), np.int32)
        prices = np.zeros((4, n, len(degrees), width))
        for v, by_degree in enumerate(self.ways):
            for t, ws in by_degree.items():
                x = degrees.index(t)
                choices[v, x] = len(ws)
                for j, w in enumerate(ws):
                    prices[:, v, x, j] = w.seconds, w.weights, w.stashed, w.fixed
        flat = [(v, *end) for v, own in enumerate(self.ends) for end in own]
        extra = np.zeros((len(flat), len(degrees), width))
        for e, (v, other, _, arriving) in enumerate(flat):
            for t, ws in self.ways[v].items():
                for j, w in enumerate(ws):
                    extra[e, degrees.index(t), j] = (w.arriving if arriving else w.leaving).get(other, 0.0)
        return (
            width, choices.reshape(-1), *(p.reshape(-1) for p in prices), np.cumsum([0, *(len(own) for own in self.ends)]),
            np.array([end[1] for end in flat], np.int32), np.array([end[2] for end in flat]), extra.reshape(-1),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machine:
    devices: int
    memory: float
    """Bytes a device."""
    bandwidth: float
    """Bytes/s of a device."""
    batch: int
    """Micro-batches a batch; replicas divide it."""


@dataclass(frozen=True, slots=True)
class Staged:
    """Items of one stage, its replicas d and parts t, and the choice per item."""

    items: tuple[int, ...]
    d: int
    t: int
    choices: tuple[int, ...] = ()
    seconds: float = inf


@dataclass(frozen=True, slots=True)
class Options:
    rule: Rule = "greedy"
    only: int = 0
    """Replicas of every stage; 0 = free."""
    tick: Tick | None = None
    """What it raises ends the search."""


Watch = Callable[[float, "tuple[Staged, ...] | None", float], None]
"""Told (bound tried, stages found or None, value)."""


def staged_partition(
    layers: Layers, machine: Machine, options: Options = Options(), watch: Watch | None = None, below: float = inf
) -> tuple[float, tuple[Staged, ...]] | None:
    """Seconds of the slowest stage and the stages in order of the data, with the fewest devices.

    None if no plan fits, or none is below `below`.

    Optimal up to the rule by which configurations are chosen (with "exact": optimal).

    Raises:
        InputError: more downsets than are held.
    """
    told = watch or (lambda tried, stages, value: None)
    total = float(layers.work.sum())
    tried, factor = total / machine.devices, 1.0
    lower, best = 0.0, None
    any_plan = _find(layers, machine, options, below)
    told(below, any_plan, _slowest(any_plan))
    if any_plan is None:
        return None
    # Above this bound no stage is too slow, so what fails there fails for want of memory or devices.
    ample = _ample(layers, machine)
    while best is None:
        bound = min(max(tried, 1e-300), below) if tried < ample else below
        if bound == below:
            best = any_plan
            break
        best = _find(layers, machine, options, bound)
        told(bound, best, _slowest(best))
        if best is None:
            lower, factor = bound, factor * 2
            tried *= 1 + 0.01 * factor
            if tried <= 0 or factor > 2**12:
                tried = ample
    value, fine = _slowest(best), 0
    while value > 0:
        close = value - lower <= 1e-3 * value and fine < 6
        bound = value * (1 - PROOF) if close or value - lower <= 2 * PROOF * value else (lower + value) / 2
        fine = fine + 1 if close else 0
        found = _find(layers, machine, options, bound)
        told(bound, found, _slowest(found))
        if found is not None:
            best, value = found, _slowest(found)
        else:
            lower = bound
            if bound >= value * (1 - PROOF):
                break
    least = _find(layers, machine, options, value, fewest=True)
    return value, least if least is not None and _slowest(least) <= value * (1 + 1e-12) else best


def provable(layers: Layers, machine: Machine, options: Options, value: float) -> bool:
    """Is there no plan below `value` by more than the rounding of sums?"""
    return _find(layers, machine, options, value * (1 - PROOF)) is None


def price(layers: Layers, machine: Machine, stages: Sequence[Staged], rule: Rule = "greedy") -> tuple[Staged, ...]:
    """The same stages with the choices of `rule` and their seconds (inf where nothing fits)."""
    found, later = [], sum(stage.d for stage in stages)
    for stage in stages:
        y = -(-later // stage.d)
        later -= stage.d
        found.append(_priced(layers, machine, stage.items, stage.d, stage.t, y, rule))
    return tuple(found)


def evaluate(layers: Layers, machine: Machine, stages: Sequence[Staged]) -> float:
    """Seconds of the slowest stage with the choices that stages name; inf if one does not fit its memory."""
    worst, later = 0.0, sum(stage.d for stage in stages)
    for stage in stages:
        y = -(-later // stage.d)
        later -= stage.d
        inside, d = frozenset(stage.items), stage.d
        seconds = held = 0.0
        for v, j in zip(stage.items, stage.choices):
            w = layers.ways[v][stage.t][j]
            moved = 0.0
            for other, nbytes, arriving in layers.ends[v]:
                if other not in inside:
                    moved += 2 * (nbytes + (w.arriving if arriving else w.leaving).get(other, 0.0))
            seconds += w.seconds / d + (moved / d + 4 * (d - 1) / d * w.weights / machine.batch) / machine.bandwidth
            held += w.stashed * y + w.fixed
        if held > machine.memory * (1 + 1e-12):
            return inf
        worst = max(worst, seconds)
    return worst


def _priced(
    layers: Layers, machine: Machine, items: Sequence[int], d: int, t: int, y: int, rule: Rule, bound: float = inf
) -> Staged:
    from ._staged_kernels import price_stage

    width, *arrays = layers.arrays
    if any(t not in layers.ways[v] for v in items):
        return Staged(tuple(items), d, t)
    seconds, picked = price_stage(
        np.array(items, np.int32), layers.degrees.index(t), len(layers.degrees), width, d, y, machine.memory,
        machine.bandwidth, machine.batch, MODES[rule], bound, *arrays,
    )  # fmt: skip
    return Staged(tuple(items), d, t, tuple(int(j) for j in picked), float(seconds))


def _find(
    layers: Layers, machine: Machine, options: Options, bound: float, fewest: bool = False
) -> tuple[Staged, ...] | None:
    """Stages that are all at most `bound`; with `fewest`, on the fewest devices, then with the fewest replicas."""
    from ._staged_kernels import feasible

    lattice = layers.lattice
    if lattice is None:
        raise InputError("the graph has more downsets than can be held: merge layers that belong together")
    if options.rule == "greedy" and layers.arrays[0] > 2:
        raise InputError('the rule "greedy" knows two configurations of a layer: use "repeated" or "exact" for more')
    width, *arrays = layers.arrays
    replicas = min(machine.batch, machine.devices)
    divisors = [d for d in range(1, replicas + 1) if machine.batch % d == 0]
    if options.only:
        divisors = [options.only]

    def search(stop: Flag) -> Any:
        return feasible(
            lattice.ptr, lattice.node, lattice.target, np.array(divisors), np.array(layers.degrees), width,
            machine.devices, replicas, machine.batch, bound, machine.memory, machine.bandwidth, MODES[options.rule],
            int(layers.uniform), int(not fewest), *arrays, layers.work, stop,
        )  # fmt: skip

    least, parent, part, split, _ = stoppable(search, options.tick)
    span, at = machine.devices + 1, len(lattice) - 1
    k = next((k for k in range(span) if least[at * span + k] <= replicas), -1)
    if k < 0:
        return None
    stages = []
    while at:
        row = at * span + k
        before, t, d = int(parent[row]), layers.degrees[int(part[row])], int(split[row])
        items = tuple(sorted(lattice.items(at) - lattice.items(before)))
        later = int(least[row])
        stages.append(_priced(layers, machine, items, d, t, -(-later // d), options.rule, bound * (1 + 1e-12)))
        at, k = before, k - t * d
    return tuple(stages)


def _slowest(stages: Sequence[Staged] | None) -> float:
    return max(stage.seconds for stage in stages) if stages else inf


def _ample(layers: Layers, machine: Machine) -> float:
    """Seconds that no stage can exceed."""
    seconds = sum(max(w.seconds for ws in by.values() for w in ws) for by in layers.ways)
    weights = sum(max(w.weights for ws in by.values() for w in ws) for by in layers.ways)
    moved = sum(layers.edges.values()) + sum(
        max(sum(w.arriving.values()) + sum(w.leaving.values()) for ws in by.values() for w in ws) for by in layers.ways
    )
    return 2 * seconds + (8 * moved + 4 * weights / machine.batch) / machine.bandwidth
