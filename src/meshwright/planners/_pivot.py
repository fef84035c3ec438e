"""The latency of one synchronous iteration by DAPPLE's pivot (arXiv 2007.01045, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence


def pivot_latency(
    forward: Sequence[float], backward: Sequence[float], sums: Sequence[float], micro_batches: int
) -> tuple[float, int]:
    """(seconds, pivot) of stages and their transfers in turn: even places are stages, odd ones transfers.

    The paper subtracts the backwards from the pivot on for later stages; without the pivot's own, as here, the latency is
    never above that of a simulation of the early-backward schedule.
    """
    both = [f + b for f, b in zip(forward, backward)]
    steady = [(micro_batches - 1) * x for x in both]
    pivot = len(both) - 1
    for s in range(len(both) - 2, -1, -1):
        if steady[s] > steady[pivot] + sum(both[s + 1 : pivot]):
            pivot = s
    end = max(
        sums[s] + (sum(backward[s : pivot + 1]) if s <= pivot else -sum(backward[pivot + 1 : s + 1]))
        for s in range(len(both))
    )
    return sum(forward[: pivot + 1]) + steady[pivot] + end, pivot
