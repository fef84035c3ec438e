"""Which gradients the backward of an op makes: of a product of two operands each is a product of its own."""

from __future__ import annotations

from collections.abc import Collection

from ..graph.ir import Graph, Op, Phase


def is_product(graph: Graph, op: Op) -> bool:
    """A product of two floating operands: its backward is one product for each."""
    return (
        len(op.inputs) == 2
        and bool(op.rule.summed())
        and all("float" in graph.tensor[name].dtype for name in op.inputs)
    )


def backward_phase(graph: Graph, op: Op, wanted: Collection[str]) -> Phase:
    """What runs in the backward of `op` if the gradients of its operands `wanted` flow; any op but a product has one backward."""
    if is_product(graph, op):
        both = tuple(name in wanted for name in op.inputs[:2])
        if both == (True, False):
            return "input_grad"
        if both == (False, True):
            return "weight_grad"
    return "backward"
