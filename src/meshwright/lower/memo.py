"""What lowering has worked out of a graph, kept with the graph itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graph.ir import Graph

MOST_KEPT = 512
"""Lowerings remembered per graph; a search uses about thirty."""


def memo(graph: Graph, key: object, make: Callable[[], Any]) -> Any:
    """`make()`, once per graph and key. A key may hold the id of an object only if the value holds the object."""
    store = graph.__dict__.setdefault("_lowering", {})
    if key not in store:
        if len(store) >= MOST_KEPT:
            store.clear()
        store[key] = make()
    return store[key]
