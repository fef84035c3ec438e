"""What a legal graph is. Run wherever a graph is made or read."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ..errors import InputError
from .ir import ITEM_BYTES, Dims, Graph, Op, Rule, Slot, Tensor


def validate_graph(graph: Graph) -> None:
    """Raises InputError with the first thing that is wrong: op, field, found, wanted."""
    tensors = graph.tensor
    if len(tensors) != len(graph.tensors):
        raise InputError(
            f"the tensor {_twice([t.name for t in graph.tensors])} occurs twice: names of tensors are unique"
        )
    if len(graph.position) != len(graph.ops):
        raise InputError(f"the op {_twice([op.name for op in graph.ops])} occurs twice: names of ops are unique")
    if graph.samples < 1:
        raise InputError(f"samples is {graph.samples}: a graph is taken at one sample or more")
    for tensor in graph.tensors:
        _check_tensor(tensor)
    made = {t.name for t in graph.tensors if t.role not in ("activation", "grad")}
    checked: set[tuple[int, tuple[tuple[int, ...], ...]]] = set()
    for op in graph.ops:
        for name in (*op.inputs, *op.outputs, *op.saved):
            if name not in tensors:
                raise InputError(f"op {op.name} names the tensor {name}, which the graph does not have", where=op.name)
        for name in op.inputs:
            if name not in made and name in graph.producer:
                raise InputError(
                    f"op {op.name} reads {name} before it is made: ops are in program order", where=op.name
                )
        for name in op.outputs:
            if name in made:
                raise InputError(f"op {op.name} makes {name}, which exists already", where=op.name)
        made.update(op.outputs)
        shapes = tuple(tensors[name].shape for name in (*op.inputs, *op.outputs))
        key = (id(op.rule), shapes)
        if key not in checked:
            for problem in rule_problems(op, graph):
                raise InputError(f"the rule of op {op.name} {problem}", where=op.name)
            checked.add(key)
        for slot in _slots(op.args, tuple(value for _, value in op.kwargs)):
            if slot >= len(op.inputs):
                raise InputError(f"op {op.name} has an argument for operand {slot}, but {len(op.inputs)} operands")
    for name in (*graph.inputs, *graph.outputs, *((graph.loss,) if graph.loss else ()), *graph.aliases.values()):
        if name not in tensors:
            raise InputError(f"the graph names {name} among its inputs, outputs or aliases, but has no such tensor")
    for run in graph.runs:
        if run.length < 1 or run.count < 1 or run.first < 0 or run.first + run.length * run.count > len(graph.ops):
            raise InputError(
                f"run {run.name} covers ops {run.first} to {run.first + run.length * run.count - 1}, not all exist"
            )


def rule_problems(op: Op, graph: Graph) -> Iterator[str]:
    """What the rule of one op gets wrong about its tensors; nothing for tensors whose shape is unknown."""
    rule = op.rule
    if len(rule.operands) != len(op.inputs) or len(rule.results) != len(op.outputs):
        yield (
            f"has {len(rule.operands)} operands and {len(rule.results)} results, but the op has "
            f"{len(op.inputs)} and {len(op.outputs)}"
        )
        return
    for name, dims in (*zip(op.inputs, rule.operands), *zip(op.outputs, rule.results)):
        yield from _dims_problems(rule, dims, graph.tensor[name])
    used = {name for dims in (*rule.operands, *rule.results) for dim in dims for name in dim}
    for factor in rule.factors:
        if factor.name not in used:
            yield f"has the factor {factor.name}, which no operand and no result has"
        if factor.size < 1:
            yield f"has the factor {factor.name} of size {factor.size}, wanted 1 or more"


def _dims_problems(rule: Rule, dims: Dims, tensor: Tensor) -> Iterator[str]:
    size = {f.name: f.size for f in rule.factors}
    if not tensor.shape and not dims:
        return
    if len(dims) != len(tensor.shape):
        if tensor.shape:
            yield f"gives {tensor.name} {len(dims)} dims, but its shape is {tensor.shape}"
        return
    for i, names in enumerate(dims):
        missing = [name for name in names if name not in size]
        if missing:
            yield f"names the factor {missing[0]}, which it does not have"
            return
        product = prod(size[name] for name in names)
        if product != tensor.shape[i] and not (tensor.shape[i] == 0 and product <= 1):
            yield f"makes dim {i} of {tensor.name} {product} long, but it is {tensor.shape[i]}"


def _check_tensor(tensor: Tensor) -> None:
    if tensor.nbytes < 0:
        raise InputError(f"tensor {tensor.name} has {tensor.nbytes} bytes, wanted 0 or more")
    if tensor.shape and tensor.dtype in ITEM_BYTES:
        expected = float(prod(tensor.shape) * ITEM_BYTES[tensor.dtype])
        if tensor.nbytes != expected:
            raise InputError(
                f"tensor {tensor.name} has {tensor.nbytes:g} bytes, but {tensor.shape} of {tensor.dtype} is {expected:g}"
            )


def _slots(*values: object) -> Iterator[int]:
    for value in values:
        if isinstance(value, Slot):
            yield value.index
        elif isinstance(value, tuple):
            yield from _slots(*value)


def _twice(names: list[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
