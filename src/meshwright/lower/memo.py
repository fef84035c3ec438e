"""What lowering has worked out of a graph, kept with the graph itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graph.ir import Graph

MOST_KEPT = 2048
"""Entries per graph; a search uses about a hundred, one that cuts experts and contexts too about a thousand."""


def memo(graph: Graph, key: object, make: Callable[[], Any]) -> Any:
    """`make()`, once per graph and key. A key may hold the id of an object only if the value holds the object."""
    store = graph.__dict__.setdefault("_lowering", {})
    if key in store:
        store[key] = found = store.pop(key)  # used last, forgotten last
        return found
    found = make()
    while len(store) >= MOST_KEPT:
        del store[next(iter(store))]
    store[key] = found
    return found
