"""Stages that feed each other are cut such that they can run; others stay as they are."""

from __future__ import annotations

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.graph.ir import Graph
from meshwright.plan.lookup import stage_ops
from meshwright.plan.model import Plan, Schedule, Stage
from meshwright.plan.pieces import in_pieces, rows_in_turn
from meshwright.testing.tiny import mlp

GRAPH = mlp(4)


def placed(graph: Graph, devices: list[int]) -> Plan:
    """One stage a device: op i on devices[i]."""
    stages = [
        Stage(tuple(op.name for op, d in zip(graph.ops, devices, strict=True) if d == k), Mesh((k,)))
        for k in sorted(set(devices))
    ]
    return Plan(graph.digest, 8, tuple(stages), Schedule("dataflow", 2))


def _stage_graph(graph: Graph, plan: Plan) -> nx.DiGraph:
    home = {i: s for s, stage in enumerate(plan.stages) for i in stage_ops(graph, stage)}
    found = nx.DiGraph()
    found.add_nodes_from(range(len(plan.stages)))
    for i, op in enumerate(graph.ops):
        makers = (graph.producer[t] for t in op.inputs if t in graph.producer)
        found.add_edges_from((home[m], home[i]) for m in makers if home[m] != home[i])
    return found


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 2), min_size=len(GRAPH.ops), max_size=len(GRAPH.ops)))
def test_pieces_run_in_their_order_and_hold_every_op_once(devices: list[int]) -> None:
    plan = placed(GRAPH, devices)
    found = in_pieces(GRAPH, plan)
    after = _stage_graph(GRAPH, found)
    assert all(a < b for a, b in after.edges)
    held = sorted((i, stage.mesh.devices[0]) for stage in found.stages for i in stage_ops(GRAPH, stage))
    assert held == list(enumerate(devices))
    before = _stage_graph(GRAPH, plan)
    if nx.is_directed_acyclic_graph(before):
        assert {s.ops for s in found.stages} == {s.ops for s in plan.stages}, "nothing is cut without need"
    if all(a < b for a, b in before.edges):
        assert found is plan


def test_by_hand() -> None:
    """Ops of one device before and after those of another: two pieces."""
    n = len(GRAPH.ops)
    plan = in_pieces(GRAPH, placed(GRAPH, [0] * 2 + [1] * 2 + [0] * (n - 4)))
    assert [s.mesh.devices[0] for s in plan.stages] == [0, 1, 0]


def test_rows_of_stages_without_a_schedule() -> None:
    meshes = [Mesh((0,)), Mesh((1, 2), ("dp",), (2,)), Mesh((2,)), Mesh((0,))]
    rows = rows_in_turn(meshes, 2)
    words = [[f"{a.on}{a.kind}{a.micro_batch}" for a in row.actions if not isinstance(a, tuple)] for row in rows]
    assert [row.devices for row in rows] == [(0,), (1, 2)]
    assert words[0] == ["0F0", "3F0", "3B0", "0B0", "0F1", "3F1", "3B1", "0B1"]
    assert words[1] == ["1F0", "2F0", "2B0", "1B0", "1F1", "2F1", "2B1", "1B1"]
