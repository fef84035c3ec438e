"""Stages without rows in an order in which they can run, each when all that it reads is there.

    device 0   a ──▶ b         c ◀── b         {a, c} and {b} read from each other: {a}, {b}, {c} run
    device 1

Sets of ops that feed each other, as placements of single ops are, are cut: an op goes to the latest piece of its stage
unless that piece would then wait for itself. Sets that do not feed each other stay whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..cluster.model import Mesh
from ..graph.ir import Graph
from .lookup import stage_ops
from .model import Action, Plan, Row


def in_pieces(graph: Graph, plan: Plan) -> Plan:
    """`plan` with stages that can run one after the other; itself if it has rows, or if they can as they are."""
    if len(plan.stages) == 1 or plan.schedule.name != "dataflow" or plan.schedule.rows:
        return plan
    stage_of: dict[int, int] = {}
    for s, stage in enumerate(plan.stages):
        for i in stage_ops(graph, stage):
            stage_of.setdefault(i, s)
    pieces, before = _pieces(graph, stage_of)
    order = _order(pieces, before)
    whole = [sum(1 for s, _ in pieces if s == k) <= 1 for k in range(len(plan.stages))]
    if all(whole) and [pieces[p][0] for p in order] == list(range(len(plan.stages))):
        return plan
    stages = []
    for p in order:
        s, ops = pieces[p]
        names = plan.stages[s].ops if whole[s] else tuple(graph.ops[i].name for i in ops)
        stages.append(replace(plan.stages[s], ops=names))
    return replace(plan, stages=tuple(stages))


def rows_in_turn(meshes: Sequence[Mesh], micro_batches: int) -> tuple[Row, ...]:
    """What devices do where a plan has no rows: micro-batch by micro-batch forwards in the order of the stages, then
    backwards in reverse.

    `meshes`: of the stages of `in_pieces`. Stages that share a device share a row, named by their devices.
    """
    groups: list[tuple[set[int], list[int]]] = []
    for s, mesh in enumerate(meshes):
        devices, own = set(mesh.devices), [s]
        for group in [g for g in groups if g[0] & devices]:
            groups.remove(group)
            devices, own = devices | group[0], own + group[1]
        groups.append((devices, sorted(own)))
    found = []
    for devices, own in sorted(groups, key=lambda g: g[1]):
        actions: list[Action] = []
        for k in range(micro_batches):
            actions += [Action("F", s, k) for s in own]
            actions += [Action("B", s, k) for s in reversed(own)]
        found.append(Row(tuple(sorted(devices)), tuple(actions)))
    return tuple(found)


def _pieces(graph: Graph, stage_of: dict[int, int]) -> tuple[list[tuple[int, list[int]]], list[int]]:
    """((stage, ops) of every piece, bits of all pieces that it waits for)."""
    pieces: list[tuple[int, list[int]]] = []
    before: list[int] = []
    latest: dict[int, int] = {}
    piece_of: dict[int, int] = {}
    for i in sorted(stage_of):
        s = stage_of[i]
        op = graph.ops[i]
        read = [*(graph.producer.get(t, -1) for t in op.inputs), *(graph.position[name] for name in op.after)]
        makers = {piece_of[m] for m in read if m in piece_of}
        waits = 0
        own = latest.get(s, -1)
        for p in makers - {own}:
            waits |= before[p] | 1 << p
        if own < 0 or waits >> own & 1:
            own = latest[s] = len(pieces)
            pieces.append((s, []))
            before.append(waits)
        elif waits & ~before[own]:
            before[own] |= waits
            for p, bits in enumerate(before):
                if bits >> own & 1:
                    before[p] = bits | waits
        pieces[own][1].append(i)
        piece_of[i] = own
    return pieces, before


def _order(pieces: list[tuple[int, list[int]]], before: list[int]) -> list[int]:
    """Each after all that it waits for; of those that could be next, the one of the lowest stage."""
    left, done, found = set(range(len(pieces))), 0, []
    while left:
        p = min((p for p in left if not before[p] & ~done), key=lambda p: (pieces[p][0], p))
        left.remove(p)
        found.append(p)
        done |= 1 << p
    return found
