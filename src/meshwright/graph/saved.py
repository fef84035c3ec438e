"""What autograd keeps: which activations have gradients, which share storage, how many bytes wait for the backward."""

from __future__ import annotations

from .ir import Graph, Op
from .kinds import kind_of

FLOATS = frozenset({"float64", "float32", "bfloat16", "float16", "complex64"})


def is_alias(op: Op, graph: Graph) -> bool:
    """The results are views of operand 0: they cost no memory. Capture calls a reshape that is one "view"."""
    kind = kind_of(op.kind)
    return bool(kind and kind.alias and op.inputs)


def needs_grad(graph: Graph) -> frozenset[str]:
    """Parameters that an op uses, and the activations through which a gradient flows to one of them."""
    needing = {t.name for t in graph.params() if t.dtype in FLOATS and t.name in graph.consumers}
    for op in graph.ops:
        kind = kind_of(op.kind)
        if (kind is None or kind.differentiable) and any(name in needing for name in op.inputs):
            needing.update(name for name in op.outputs if graph.tensor[name].dtype in FLOATS)
    return frozenset(needing)


def alias_roots(graph: Graph) -> dict[str, str]:
    """Tensor -> the tensor whose storage it uses (itself if it has its own)."""
    root: dict[str, str] = {t.name: t.name for t in graph.tensors}
    for op in graph.ops:
        if is_alias(op, graph):
            for name in op.outputs:
                root[name] = root[op.inputs[0]]
    return root


def kept_bytes(graph: Graph) -> float:
    """Bytes of activations and statistics kept from forward to backward, each storage once; parameters and inputs not."""
    root = alias_roots(graph)
    kept: set[str] = set()
    extra = 0.0
    for op in graph.ops:
        kept.update(root[name] for name in op.saved)
        extra += op.saved_extra
    return extra + sum(graph.tensor[name].nbytes for name in kept if graph.tensor[name].role == "activation")
