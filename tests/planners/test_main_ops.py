"""Main ops and what follows them: roles, contraction, and cuts that are carried through views, norms and attentions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.cluster.model import Mesh
from meshwright.errors import Unsupported
from meshwright.formats.accpar import parse as described
from meshwright.formats.accpar import resnet
from meshwright.formats.pipedream import parse
from meshwright.graph.ir import Graph
from meshwright.graph.serial import digest_of
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.plan.lookup import sharding_of, stage_ops
from meshwright.plan.model import Cut, OpSharding, Stage
from meshwright.planners._main_ops import NONE, entries, main_ops
from meshwright.planners.accpar import AccPar
from meshwright.planners.double_recursive import DoubleRecursive
from meshwright.testing.tiny import mlp


def gpt2() -> Graph:
    shrink = Shrink(blocks=2, width=32, heads=4, ffn=48, vocab=32, seq=8, dropout=0.0)
    return resolve("gpt2").graph(4, 8, "float32", shrink=shrink, cache=False)


def test_roles_of_a_chain() -> None:
    main = main_ops(mlp(2), "p")
    assert [main.name(v) for v in range(len(main.ops))] == ["stem/linear", "layers.0.fc/linear", "layers.1.fc/linear", "head/linear"]  # fmt: skip
    assert main.edges == ((0, 1), (1, 2), (2, 3))
    assert [(op.batch, op.inner, op.outer) for op in main.ops] == [((0,), (2,), (1,))] * 4
    assert main.sizes(0, 16) == [16, 64, 64]
    assert main.elements(0, 16) == (16 * 64, 16 * 64, 64 * 64)


def test_a_residual_stream_is_a_chain_of_joins_with_paths_beside_it() -> None:
    main = main_ops(gpt2(), "p")
    kinds = ["join" if op.join else "product" for op in main.ops]
    block = ["product", "product", "join", "product", "product", "join"]
    assert kinds == ["join", *block, *block, "product"]
    assert len(main.edges) == 2 * 8 + 1
    reads = {v: sorted(u for u, w in main.edges if w == v) for v in range(len(main.ops))}
    assert reads[3] == [0, 2] and reads[6] == [3, 5] and reads[13] == [12]


def test_column_then_row_needs_no_copy_in_between() -> None:
    """The heads of an attention, and the element-wise ops between the two products of a block, follow the columns."""
    graph = gpt2()
    main = main_ops(graph, "p")
    decided = []
    for v, op in enumerate(main.ops):
        before = [u for u, w in main.edges if w == v]
        row = bool(before) and not main.ops[before[0]].join
        decided.append([NONE if op.join else op.inner[0] if row else op.outer[0]])
    shardings = main.follow(decided, ("t",))
    stage = Stage(entries(graph), Mesh(range(2), ("t",), (2,)), shardings)
    assert stage_ops(graph, stage) == tuple(range(len(graph.ops)))
    cut = {}
    for i, op in enumerate(graph.ops):
        found = sharding_of(graph, stage, i)
        cut[op.kind] = cut.get(op.kind, 0) + bool(found and any(found.cuts.values()))
    attention = next(kind for kind in cut if "attention" in kind)
    assert cut[attention] == 2 and cut["linear" if "linear" in cut else "addmm"] > 0


def test_blocks_that_are_cut_alike_are_said_once_and_others_apart() -> None:
    graph = mlp(3)
    main = main_ops(graph, "p")
    alike = main.follow([[op.batch[0]] for op in main.ops], ("d",))
    assert "layers.1.fc/linear" not in alike and alike["layers.0.fc/linear"].cuts["b"] == (Cut("d"),)
    apart = main.follow([[op.batch[0] if v != 2 else NONE] for v, op in enumerate(main.ops)], ("d",))
    assert apart["layers.1.fc/linear"] == OpSharding()
    assert apart["layers.0.fc/linear"].cuts["b"] == (Cut("d"),)


def test_what_stands_before_all_decisions_is_cut_as_its_reader_asks() -> None:
    graph = mlp(1)
    relu = next(op for op in graph.ops if op.kind == "relu")
    x = graph.tensor["x"]
    first = replace(relu, name="first/relu", inputs=("x",), outputs=("first.out",), saved=("first.out",))
    stem = replace(graph.ops[0], inputs=("first.out", *graph.ops[0].inputs[1:]), saved=())
    made = replace(
        graph,
        ops=(first, stem, *graph.ops[1:]),
        tensors=(*graph.tensors, replace(x, name="first.out", role="activation")),
    )
    made = replace(made, digest=digest_of(made))
    main = main_ops(made, "p")
    inner = main.follow([[op.inner[0]] if v == 0 else [NONE] for v, op in enumerate(main.ops)], ("t",))
    assert inner["first/relu"].cuts == {"d": (Cut("t"),)}
    rows = main.follow([[op.batch[0]] if v == 0 else [NONE] for v, op in enumerate(main.ops)], ("t",))
    assert rows["first/relu"].cuts == {"b": (Cut("t"),)}


def test_profiles_and_graphs_without_weights_are_refused() -> None:
    profile = parse(
        "n1 -- Linear() -- forward_compute_time=1, backward_compute_time=2, activation_size=3, parameter_size=4\n", "f"
    )
    with pytest.raises(Unsupported, match="accpar cuts ops by their shapes, which an imported profile does not have"):
        AccPar().plan(profile)
    with pytest.raises(Unsupported, match="double_recursive cuts ops by their shapes"):
        DoubleRecursive().plan(profile)
    with pytest.raises(Unsupported, match="double_recursive cuts ops by their shapes"):
        DoubleRecursive().plan(described(resnet(18), "f"))
    relu = next(op for op in mlp(1).ops if op.kind == "relu")
    alone = replace(mlp(1), ops=(replace(relu, inputs=("x",)),), outputs=relu.outputs, loss=relu.outputs[0])
    with pytest.raises(Unsupported, match="this graph has none"):
        main_ops(alone, "p")
