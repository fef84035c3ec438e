"""From one plan to another: which device must get which piece of which parameter, and from whom.

Elastic re-planning, live migration and loading a checkpoint under another plan are this one list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Literal

from ..cluster.model import Cluster
from ..errors import InputError
from ..graph.ir import Dims, Graph, Rule
from .layout import Box, boxes, replicated
from .lookup import sharding_of, stage_ops, storage_of
from .model import Cut, Layout, Move, Plan, Stage

Part = Literal["param", "state"]


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
    parts: tuple[Part, ...] = ("param", "state") if state_bytes > 0 else ("param",)
    found: list[Move] = []
    order: dict[tuple[frozenset[int], int], list[int]] = {}
    for part in parts:
        before, after = _held(graph, old, part), _held(graph, new, part)
        for name, wanted in after.items():
            tensor = graph.tensor[name]
            sources = before.get(name)
            if sources is None:
                raise InputError(f'parameter "{name}" is in no stage of the old plan: it cannot be moved from there')
            each = tensor.nbytes / prod(tensor.shape) if part == "param" else state_bytes
            holders = frozenset(sources)
            for dst, need in wanted.items():
                if (holders, dst) not in order:
                    order[holders, dst] = sorted(holders, key=lambda src, dst=dst: _distance(cluster, src, dst))  # type: ignore[misc]
                left = need
                for src in order[holders, dst]:
                    if not left:
                        break
                    for lo, hi in sources[src]:
                        got = [box for box in (_common((lo, hi), piece) for piece in left) if box is not None]
                        left = [rest for piece in left for rest in _without(piece, (lo, hi))]
                        if src != dst:
                            found += [Move(name, a, b, src, dst, _volume((a, b)) * each, part) for a, b in got]
                if left:
                    raise InputError(
                        f'elements {left[0][0]} to {left[0][1]} of "{name}" are on no device of the old plan'
                    )
    return tuple(found)


def _held(graph: Graph, plan: Plan, part: Part) -> dict[str, dict[int, list[Box]]]:
    """Parameter -> device -> disjoint boxes that it holds."""
    found: dict[str, dict[int, list[Box]]] = {}
    for stage in plan.stages:
        for name, op in _params(graph, stage):
            layout, shape = param_layout(graph, stage, name, op, part), graph.tensor[name].shape
            own = found.setdefault(name, {})
            for position, device in enumerate(stage.mesh.devices):
                held = own.setdefault(device, [])
                # A device may stand in several stages or positions: count what it holds once.
                fresh = boxes(layout, shape, stage.mesh, stage.mesh.coordinates(position))
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
