"""What is trained: `Graph`, the op-kind table, capture from torch. Names that need torch load it at first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .ir import Factor, Graph, Op, Rule, Run, Slot, Tensor

if TYPE_CHECKING:
    from .capture import capture
    from .replay import execute_graph
    from .saved import is_alias, kept_bytes, needs_grad
    from .validate import validate_graph

_LAZY = {
    "capture": "capture",
    "execute_graph": "replay",
    "is_alias": "saved",
    "kept_bytes": "saved",
    "needs_grad": "saved",
    "validate_graph": "validate",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Factor",
    "Graph",
    "Op",
    "Rule",
    "Run",
    "Slot",
    "Tensor",
    "capture",
    "execute_graph",
    "is_alias",
    "kept_bytes",
    "needs_grad",
    "validate_graph",
]
