"""The written-out backward: legal, three times the FLOPs, each gradient once, windows turned round."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from meshwright.errors import InputError
from meshwright.graph.expand import GRAD, expand_training
from meshwright.graph.ir import Graph, Op
from meshwright.graph.saved import needs_grad
from meshwright.graph.validate import validate_graph
from meshwright.testing.tiny import mlp
from planners.conv_nets import Net, small_net


def tied() -> Graph:
    """One weight read twice, one value read by three."""
    net = Net(8)
    x = net.linear("first", net.tensor("x", (8, 16), "input"), 16)
    weight = net.tensor("shared", (16, 16), "param")
    dims = ((8, 16),)
    from meshwright.graph.ir import Slot

    a = net.call("a", "linear", (x, weight), (Slot(0), Slot(1)), *dims)
    b = net.call("b", "linear", (x, weight), (Slot(0), Slot(1)), *dims)
    return net.graph(net.mean("loss", net.add("sum", net.add("both", a, b), x)))


GRAPHS = {"mlp": lambda: mlp(3), "convolutions": small_net, "tied": tied}


@pytest.mark.parametrize("name", GRAPHS)
def test_it_is_a_legal_graph_with_three_times_the_work(name: str) -> None:
    """Less the gradient of the data, which nobody wants."""
    graph = GRAPHS[name]()
    made = expand_training(graph)
    validate_graph(made)
    assert made.training == "explicit" and made.digest != graph.digest
    first = [op for op in graph.ops if graph.tensor[op.inputs[0]].role == "input"]
    assert sum(op.flops for op in made.ops) == 3 * sum(op.flops for op in graph.ops) - sum(op.flops for op in first)
    assert [op.name for op in made.ops[: len(graph.ops)]] == [op.name for op in graph.ops]
    assert {op.of for op in made.ops if op.of} <= {op.name for op in graph.ops}


@pytest.mark.parametrize("name", GRAPHS)
def test_every_tensor_that_learns_has_its_gradient_once(name: str) -> None:
    graph = GRAPHS[name]()
    made = expand_training(graph)
    whole = Counter(t for op in made.ops for t in op.outputs if t.startswith(GRAD) and "#" not in t)
    assert set(whole) == {GRAD + t for t in needs_grad(graph) - {graph.loss}} and set(whole.values()) == {1}
    for t in made.tensors:
        if t.role == "grad":
            assert t.shape == graph.tensor[t.name.removeprefix(GRAD).partition("#")[0]].shape
    updated = [op.inputs for op in made.ops if op.phase == "update"]
    assert sorted(updated) == sorted((p.name, GRAD + p.name) for p in graph.params())


def named(graph: Graph, name: str) -> Op:
    return graph.ops[graph.position[name]]


def test_products_have_an_op_for_each_operand() -> None:
    """Rules by duality: what the operand lacks is summed over."""
    made = expand_training(mlp(1))
    x, w = named(made, "head/linear:input_grad"), named(made, "head/linear:weight_grad")
    assert (x.phase, w.phase) == ("input_grad", "weight_grad")
    assert x.rule.summed() == {"n"} and w.rule.summed() == {"b"}
    assert x.inputs[1] == "head.weight" and w.inputs[0] == named(made, "head/linear").inputs[0]
    assert "stem/linear:input_grad" not in made.position


def test_a_value_with_several_readers_gets_one_sum() -> None:
    made = expand_training(tied())
    total = named(made, f"{GRAD}first.out/add")
    assert len(total.inputs) == 3 and all("#" in t for t in total.inputs)
    assert len(named(made, f"{GRAD}shared/add").inputs) == 2


def test_windows_are_read_the_other_way_round() -> None:
    """Rows of a stride-2 kernel of 3 with one row of padding: the data reads a row below; its gradient one above."""
    net = Net(2)
    x = net.conv("one", net.images(4, 16), 8)
    graph = net.graph(net.mean("loss", net.conv("two", x, 8, 3, 2)))
    forward = next(f for f in graph.ops[1].rule.factors if f.kind == "halo")
    assert forward.halo == (1, 0)
    made = expand_training(graph)
    back = next(f for f in named(made, "two/conv2d:input_grad").rule.factors if f.name == forward.name)
    again = next(f for f in named(made, "two/conv2d:weight_grad").rule.factors if f.name == forward.name)
    assert back.halo == (0, 1) and again.halo == (1, 0)


def test_frozen_parameters_have_no_gradient() -> None:
    graph = mlp(1)
    frozen = replace(graph, tensors=tuple(replace(t, frozen=t.name == "stem.weight") for t in graph.tensors))
    made = expand_training(frozen)
    assert f"{GRAD}stem.weight" not in made.tensor and f"{GRAD}stem.out" not in made.tensor
    assert f"{GRAD}head.weight" in made.tensor


def test_what_cannot_be_written_out_is_refused() -> None:
    with pytest.raises(InputError, match="can be written out once"):
        expand_training(expand_training(mlp(1)))
    with pytest.raises(InputError, match="has none"):
        expand_training(replace(mlp(1), loss=""))
