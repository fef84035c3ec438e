"""What a row says of a plan whose mesh axes say nothing."""

from __future__ import annotations

from dataclasses import replace

from meshwright.cluster import Mesh
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.report.layout_words import layout_words, op_words
from meshwright.testing import mlp


def test_products_are_counted_by_what_they_are_cut_by() -> None:
    graph = mlp(3)  # stem, three equal blocks, head: five products
    cut = {"stem/linear": "b", "layers.0.fc/linear": "n", "head/linear": "k"}
    shardings = {op: OpSharding({factor: (Cut("x"),)}) for op, factor in cut.items()}
    stage = Stage(tuple(op.name for op in graph.ops), Mesh(range(2), ("x",), (2,)), shardings)
    plan = Plan(graph.digest, 8, (stage,), Schedule("1f1b", 1))
    assert layout_words(plan) == "x2"
    assert op_words(plan, graph) == "s1 c3 r1", "an entry of block 0 speaks for its copies"
    bare = replace(stage, shardings={})
    assert op_words(replace(plan, stages=(bare,)), graph) == "w5"
    named = replace(stage, mesh=Mesh(range(2), ("tp",), (2,)))
    assert op_words(replace(plan, stages=(named,)), graph) == ""
    assert op_words(replace(plan, stages=(stage, stage)), graph) == ""
