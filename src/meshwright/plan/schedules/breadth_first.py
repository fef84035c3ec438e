"""Breadth-first pipeline (Lamy-Poirier 2022, arXiv 2211.05953): a chunk runs all micro-batches before the next chunk.

The weights of a chunk are gathered once per direction, and its gradients are complete early: good with sharded weights.
"""

from __future__ import annotations

from ..model import Action


def breadth_first(p: int, m: int, r: int, v: int) -> tuple[Action, ...]:
    """Actions of rank r."""
    return (
        *(Action("F", c * p + r, j) for c in range(v) for j in range(m)),
        *(Action("B", c * p + r, j) for c in reversed(range(v)) for j in reversed(range(m))),
    )
