"""Does a model compute in evaluation mode what it computes in training mode, dropout and the running statistics of norms apart?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from .ir import Arg, Graph, Op, Slot

_IGNORED = ("dropout", "contiguous", "clone")
"""Dropout, and copies: how a kernel lays out its result may depend on its dropout."""
_ATTENTION = "scaled_dot_product_attention"
_RATE = 4
"""Position of dropout_p among its arguments."""


def other_in_eval(train: Graph, evaluated: Graph) -> str:
    """The first op in which the two differ, by the name that it has in either; empty if in none.

    Ops are compared with what they read: the same op of another value, or of another constant, is another op.
    """
    for a, b in zip_longest(_ops(train), _ops(evaluated)):
        if a is None or b is None or a[1:] != b[1:]:
            return str((a or b or ("",))[0])
    return ""


def _ops(graph: Graph) -> Iterator[tuple[object, ...]]:
    """(name, what must be equal …) of each op that counts; last the loss."""
    number: dict[str, object] = {name: value.tobytes() for name, value in graph.values.items()}
    count = 0
    for op in graph.ops:
        if op.kind == "batch_norm" and (read := _running(graph, op)) is not None:
            scaled = tuple(number.get(name, name) for name in op.inputs if name not in read)
            yield op.name, op.module, op.args[7], scaled, read
            number[op.outputs[0]] = count = count + 1
            continue
        if op.kind in _IGNORED:
            number[op.outputs[0]] = number.get(op.inputs[0], op.inputs[0])
            continue
        reads = tuple(number.get(name, name) for name in op.inputs)
        yield op.name, op.module, op.call, *_without_rate(op), reads
        for name in op.outputs:
            number[name] = count = count + 1
    yield graph.loss, number.get(graph.loss, graph.loss)


def _running(graph: Graph, op: Op) -> tuple[str, str] | None:
    """The running mean and variance that a batch norm reads in evaluation mode; None: it does the same in both."""
    if op.name in graph.running:
        return graph.running[op.name].mean, graph.running[op.name].var
    slots = op.args[3:5]
    if op.args[5] is False and all(isinstance(a, Slot) for a in slots):
        mean, var = (op.inputs[a.index] for a in slots if isinstance(a, Slot))
        return mean, var
    return None


def _without_rate(op: Op) -> tuple[tuple[Arg, ...], tuple[tuple[str, Arg], ...]]:
    if op.kind != _ATTENTION:
        return op.args, op.kwargs
    args = tuple(0.0 if k == _RATE else a for k, a in enumerate(op.args))
    return args, tuple((k, v) for k, v in op.kwargs if k != "dropout_p")
