"""From one plan to another: which device must get which piece of which parameter, and from whom.

Elastic re-planning, live migration and loading a checkpoint under another plan are this one list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np

from ..cluster.model import Cluster
from ..errors import InputError
from ..graph.ir import Dims, Graph, Rule
from .layout import Box, boxes, explicit, replicated
from .lookup import sharding_of, stage_ops, storage_of
from .model import Cut, Layout, Move, Plan, Stage

Part = Literal["param", "state"]
READ = -1
"""In the place of a device that gives a piece: none has it, so it is read from a checkpoint."""


def operand_layout(rule: Rule, dims: Dims, cuts: Mapping[str, tuple[Cut, ...]]) -> Layout:
    """How an op whose factors are cut by `cuts` reads an operand (or writes a result) of these dims."""
    size = {factor.name: factor.size for factor in rule.factors}
    return Layout(tuple(tuple((size[name], tuple(cuts.get(name, ()))) for name in dim) or ((1, ()),) for dim in dims))


def param_layout(graph: Graph, stage: Stage, name: str, op: int, part: Part = "param") -> Layout:
    """Where a parameter rests in a stage, `op` being the first of its ops that reads it.

    Each storage field that is missing is as the one before it; a missing first one is as the op computes.
    """
    stored = storage_of(graph, stage, name)
    if stored is not None:
        given = (stored.param,) if part == "param" else (stored.state, stored.grad, stored.param)
        for layout in given:
            if layout is not None:
                return layout
    sharding = sharding_of(graph, stage, op)
    if sharding is None:
        return replicated(graph.tensor[name].shape)
    node = graph.ops[op]
    return operand_layout(node.rule, node.rule.operands[node.inputs.index(name)], sharding.cuts)


def moves(
    graph: Graph, old: Plan, new: Plan, *, cluster: Cluster | None = None, state_bytes: float = 0.0
) -> tuple[Move, ...]:
    """Every piece that a device holds under `new` and not under `old`, each once, from the nearest device that has it.

    Args:
        cluster: distance = lowest level that two devices share, then difference of their numbers; None = the latter only.
        state_bytes: bytes of master copy and optimizer state per element; 0 = parameters only.

    Raises:
        InputError: a parameter, or a part of one, that no device has under `old`.
    """
    found: list[Move] = []
    parts: tuple[Part, ...] = ("param", "state") if state_bytes > 0 else ("param",)
    for part in parts:
        each = state_bytes if part == "state" else 0.0
        for alike in transition((graph, old), (graph, new), part, each, cluster=cluster):
            lost = next((m for m in alike.moves if m.src == READ), None)
            if lost is not None:
                raise InputError(f'elements {lost.lo} to {lost.hi} of "{lost.tensor}" are on no device of the old plan')
            found += [replace(m, tensor=name) for name in alike.names for m in alike.moves if m.src != m.dst]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Alike:
    """Parameters that move alike, as those of equal layers do."""

    names: tuple[str, ...]
    moves: tuple[Move, ...]
    """Of the first: src == dst is kept where it is, src == READ is on no device that is left."""


def transition(
    before: tuple[Graph, Plan],
    after: tuple[Graph, Plan],
    part: Part,
    each: float = 0.0,
    *,
    cluster: Cluster | None = None,
    present: Collection[int] | None = None,
) -> Iterator[Alike]:
    """Every piece that a device holds under the second plan, each element of it once: kept, sent or read.

    Args:
        before, after: (graph, plan); two graphs of one model may differ in sequence length and precision.
        each: bytes an element; 0 = those of the tensor.
        cluster: as `moves`.
        present: devices that can still give what they hold under the first plan; None = all.

    Raises:
        InputError: a parameter that the first plan has not, or has in another shape.
    """
    was, is_ = _rests(*before, part), _rests(*after, part)
    known: dict[tuple[object, ...], list[str]] = {}
    for name, rests in is_.items():
        if name not in was:
            raise InputError(f'parameter "{name}" is in no stage of the old plan: it cannot be moved from there')
        tensor, old = after[0].tensor[name], before[0].tensor[name]
        if tensor.shape != old.shape:
            raise InputError(f'parameter "{name}" has shape {old.shape} in the old plan, not {tensor.shape}')
        known.setdefault((tensor.shape, tensor.nbytes, was[name], rests), []).append(name)
    nearest = _Nearest(cluster)
    for names in known.values():
        tensor = after[0].tensor[names[0]]
        sources = _held(before[1], was[names[0]], tensor.shape)
        if present is not None:
            sources = {device: own for device, own in sources.items() if device in present}
        wanted = _held(after[1], is_[names[0]], tensor.shape)
        size = each or tensor.nbytes / prod(tensor.shape)
        moved = (
            Move(names[0], lo, hi, src, dst, _volume((lo, hi)) * size, part)
            for dst, src, (lo, hi) in _pieces(sources, wanted, nearest)
        )
        yield Alike(tuple(names), tuple(moved))


def _pieces(
    sources: Mapping[int, list[Box]], wanted: Mapping[int, list[Box]], nearest: _Nearest
) -> Iterator[tuple[int, int, Box]]:
    """(device, who gives or READ, box): each element that a device wants, once."""
    holders = frozenset(sources)
    owner = np.array([d for d, own in sources.items() for _ in own], dtype=np.int64)
    boxes_ = [box for own in sources.values() for box in own]
    low, high = (np.array([b[k] for b in boxes_], dtype=np.int64) for k in (0, 1))
    for dst, need in wanted.items():
        left = list(need)
        for lo, hi in sources.get(dst, ()):
            yield from ((dst, dst, b) for b in (_common((lo, hi), piece) for piece in left) if b is not None)
            left = [rest for piece in left for rest in _without(piece, (lo, hi))]
        if left and boxes_:
            touched = np.zeros(len(boxes_), dtype=bool)
            for lo, hi in left:
                touched |= ((low < np.array(hi)) & (high > np.array(lo))).all(axis=1)
            giving = {int(d) for d in owner[touched]}
            for src in nearest.first(giving, holders, dst):
                for lo, hi in sources[src]:
                    yield from ((dst, src, b) for b in (_common((lo, hi), piece) for piece in left) if b is not None)
                    left = [rest for piece in left for rest in _without(piece, (lo, hi))]
                if not left:
                    break
        yield from ((dst, READ, piece) for piece in left)


class _Nearest:
    """Devices by their distance from one, the order of large sets kept."""

    def __init__(self, cluster: Cluster | None) -> None:
        self._cluster = cluster
        self._order: dict[tuple[frozenset[int], int], list[int]] = {}

    def first(self, giving: set[int], holders: frozenset[int], dst: int) -> list[int]:
        if len(giving) < len(holders):
            return sorted(giving, key=lambda src: _distance(self._cluster, src, dst))
        if (holders, dst) not in self._order:
            self._order[holders, dst] = sorted(holders, key=lambda src: _distance(self._cluster, src, dst))
        return self._order[holders, dst]


def _rests(graph: Graph, plan: Plan, part: Part) -> dict[str, tuple[tuple[int, Layout], ...]]:
    """Parameter -> (stage, how it rests there), of each stage that reads it."""
    found: dict[str, tuple[tuple[int, Layout], ...]] = {}
    for k, stage in enumerate(plan.stages):
        for name, op in _params(graph, stage):
            layout = explicit(param_layout(graph, stage, name, op, part), graph.tensor[name].shape)
            found[name] = (*found.get(name, ()), (k, layout))
    return found


def _held(plan: Plan, rests: Sequence[tuple[int, Layout]], shape: Sequence[int]) -> dict[int, list[Box]]:
    """Device -> disjoint boxes that it holds of one parameter."""
    found: dict[int, list[Box]] = {}
    for k, layout in rests:
        mesh = plan.stages[k].mesh
        for position, device in enumerate(mesh.devices):
            held = found.setdefault(device, [])
            # A device may stand in several stages or positions: count what it holds once.
            fresh = boxes(layout, shape, mesh, mesh.coordinates(position))
            for box in list(held):
                fresh = [rest for piece in fresh for rest in _without(piece, box)]
            held += fresh
    return found


def _params(graph: Graph, stage: Stage) -> Iterator[tuple[str, int]]:
    """(parameter, first op of the stage that reads it)."""
    seen: set[str] = set()
    for i in stage_ops(graph, stage):
        for name in graph.ops[i].inputs:
            if name not in seen and graph.tensor[name].role == "param":
                seen.add(name)
                yield name, i


def _distance(cluster: Cluster | None, src: int, dst: int) -> tuple[int, int, int]:
    if src == dst:
        return (-1, 0, src)
    levels = range(len(cluster.levels)) if cluster is not None else range(0)
    shared = next(
        (k for k in levels if cluster is not None and cluster.component(k, src) == cluster.component(k, dst)),
        len(levels),
    )
    return (shared, abs(src - dst), src)


def _common(a: Box, b: Box) -> Box | None:
    lo = tuple(map(max, a[0], b[0]))
    hi = tuple(map(min, a[1], b[1]))
    return (lo, hi) if all(x < y for x, y in zip(lo, hi)) else None


def _without(piece: Box, hole: Box) -> list[Box]:
    """`piece` minus `hole` as disjoint boxes: what is below and above the hole in each dim in turn."""
    inner = _common(piece, hole)
    if inner is None:
        return [piece]
    found: list[Box] = []
    lo, hi = list(piece[0]), list(piece[1])
    for d in range(len(lo)):
        if lo[d] < inner[0][d]:
            found.append((tuple(lo), (*hi[:d], inner[0][d], *hi[d + 1 :])))
        if inner[1][d] < hi[d]:
            found.append(((*lo[:d], inner[1][d], *lo[d + 1 :]), tuple(hi)))
        lo[d], hi[d] = inner[0][d], inner[1][d]
    return found


def _volume(box: Box) -> int:
    return prod(b - a for a, b in zip(*box))
