"""Graphs survive JSON; the digest sees structure and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from small_models import MODELS

from meshwright.errors import InputError
from meshwright.graph.ir import Factor, Graph, Op, Rule, Run, Slot, Tensor
from meshwright.graph.serial import digest_of, dumps, equal_graphs, from_json, loads, to_json


@pytest.mark.parametrize("name", sorted(MODELS))
def test_json_round_trip_is_the_same_graph(name: str, captured: Callable[[str], Graph]) -> None:
    graph = captured(name)
    again = loads(dumps(graph))
    assert (again.ops, again.tensors, again.aliases, again.notes) == (
        graph.ops,
        graph.tensors,
        graph.aliases,
        graph.notes,
    )
    assert digest_of(again) == graph.digest


def test_every_field_survives() -> None:
    rule = Rule(
        (Factor("a", 4, "halo", True, (1, 2)), Factor("b", 2, "stat", sums=(2, 1))), ((("a", "b"),),), ((("a",),),)
    )
    op = Op(
        "p/op", "op", ("x",), ("y",), rule, 3.0, ("x",), 5.0, "backward", "q", "p", "c", ("cpu",), ("z",), "aten.op.default",
        (Slot(0), None, True, 1, -1.5, float("inf"), "torch.float32", (1, (Slot(0),))), (("k", float("-inf")),), "f.py:3",
    )  # fmt: skip
    tensors = (Tensor("x", 32.0, (8,), role="param"), Tensor("y", 16.0, (4,), "float32", "activation"))
    graph = Graph(
        (op,), tensors, 2, "explicit", ("x",), ("y",), "y", (Run("p", 0, 1, 1),), {"w": "x"}, {"x": np.arange(8)}, ("n",), "d"
    )  # fmt: skip
    again = loads(dumps(graph))
    assert again.ops == graph.ops and again.tensors == graph.tensors and again.runs == graph.runs
    assert np.array_equal(again.values["x"], graph.values["x"])
    assert equal_graphs(again, graph)


def test_digest_changes_with_the_structure_only(captured: Callable[[str], Graph]) -> None:
    graph = captured("gpt2")
    moved = tuple(replace(op, source="elsewhere.py:1") for op in graph.ops)
    assert digest_of(replace(graph, ops=moved, notes=("x",), runs=(Run("r", 0, 1, 1),))) == graph.digest
    wider = (replace(graph.ops[0], flops=1.0), *graph.ops[1:])
    assert digest_of(replace(graph, ops=wider)) != graph.digest


def test_other_schemas_and_damage_are_refused(captured: Callable[[str], Graph]) -> None:
    data = json.loads(dumps(captured("gpt2")))
    with pytest.raises(InputError, match="schema 99"):
        from_json({**data, "schema": 99})
    with pytest.raises(InputError, match="damaged"):
        from_json({key: value for key, value in to_json(captured("gpt2")).items() if key != "rules"})
