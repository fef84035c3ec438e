"""Runs a captured graph op by op on real tensors: what its ops mean, and the reference for every lowering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import InputError, Unsupported
from ._values import real
from .ir import Graph, Op


def callable_of(call: str) -> Any:
    """The torch operator of `Op.call`, e.g. "aten.linear.default"."""
    from . import dispatch  # noqa: F401  (its operators are torch's once it is loaded)

    namespace, name, overload = call.split(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except AttributeError as error:
        raise Unsupported(f"this torch has no operator {call}: capture the model again with this version") from error


def execute_op(op: Op, operands: list[torch.Tensor]) -> list[torch.Tensor]:
    """The results of one op, in the order of `Op.outputs`."""
    if not op.call:
        raise Unsupported(f"op {op.name} comes from an imported profile: it has no torch call to run")
    result = callable_of(op.call)(*(real(a, operands) for a in op.args), **{k: real(v, operands) for k, v in op.kwargs})
    return list(result) if isinstance(result, (list, tuple)) else [result]


def execute_graph(graph: Graph, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All tensors of the graph, given its inputs, parameters and buffers by name; constants come from `Graph.values`."""
    known: dict[str, torch.Tensor] = dict(values)
    for name, array in graph.values.items():
        if name not in known:
            known[name] = torch.as_tensor(array).to(getattr(torch, graph.tensor[name].dtype))
    for op in graph.ops:
        known.update(zip(op.outputs, execute_op(op, [known[name] for name in op.inputs]), strict=True))
    return known


def module_values(graph: Graph, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers and tensor attributes of a real module under the names that the graph has."""
    found: dict[str, torch.Tensor] = {}
    for tensor in graph.tensors:
        if tensor.role in ("param", "buffer") and tensor.name not in graph.values:
            found[tensor.name] = _attribute(module, tensor.name)
    return found


def _attribute(module: torch.nn.Module, path: str) -> torch.Tensor:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name, None)
    if not isinstance(value, torch.Tensor):
        raise InputError(f"the module has no tensor {path}: it is another one than the graph was captured from")
    return value
