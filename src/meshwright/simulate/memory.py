"""Memory of a rank over a step: what rests, what each micro-batch leaves behind until its backward, and work space.

A forward adds what its stage keeps, the backward (or the weight gradient, where that is apart) frees it. A rank runs one
action at a time, so the ORDER of its actions decides the peak; times only place the curve.
"""

from __future__ import annotations

import numpy as np

from ..graph.ir import Floats
from .pipeline import BACKWARD, FORWARD, INPUT_GRAD, WEIGHT_GRAD, Orders
from .result import CATEGORIES

STATIC = ("weights", "gradients", "optimizer")


def deltas(orders: Orders, kept: Floats, buffers: Floats, gone: Floats | None = None) -> tuple[Floats, Floats]:
    """Bytes [task, columns + 1] added at the start and at the end of each task; the last column is work space.

    Args:
        kept: bytes [row, columns] that one micro-batch leaves behind, rows as in `Orders`.
        buffers: bytes [row, 2] while a forward, a backward runs.
        gone: bytes [row, columns, 2] of `kept` that are not there at the worst instant of the forward, of the backward,
            where that is known: they count as work space of the same size.
    """
    tasks, columns = len(orders.task_rank), kept.shape[1]
    kind, stage, row = orders.kind, orders.stage, orders.row
    split = np.zeros(orders.stages, bool)
    split[stage[kind == WEIGHT_GRAD]] = True
    frees = (kind == WEIGHT_GRAD) | ((kind == BACKWARD) & ~split[stage])
    at_start, at_end = np.zeros((tasks, columns + 1)), np.zeros((tasks, columns + 1))
    for c in range(columns):
        amount = kept[row, c]
        at_start[:, c] = np.bincount(orders.task, np.where(kind == FORWARD, amount, 0.0), minlength=tasks)
        at_end[:, c] = np.bincount(orders.task, np.where(frees, -amount, 0.0), minlength=tasks)
    work = np.where(kind == FORWARD, buffers[row, 0], 0.0)
    work = np.where((kind == BACKWARD) | (kind == INPUT_GRAD), buffers[row, 1], work)
    if gone is not None:
        phase = np.where(kind == FORWARD, 0, 1)
        for c in range(columns):
            amount = np.where(kind == WEIGHT_GRAD, 0.0, gone[row, c, phase])
            moved = np.bincount(orders.task, amount, minlength=tasks)
            at_start[:, c] -= moved
            at_end[:, c] += moved
            work = work + amount
    at_start[:, -1] = np.bincount(orders.task, work, minlength=tasks)
    at_end[:, -1] = -at_start[:, -1]
    return at_start, at_end


def peaks(orders: Orders, kept: Floats, buffers: Floats) -> Floats:
    """Largest bytes [rank] above what rests; kept [row] is the sum of its columns."""
    at_start, at_end = deltas(orders, kept[:, None], buffers)
    change, free = at_start.sum(axis=1), at_end.sum(axis=1)
    level = np.cumsum(change + free) - free  # just after each task's start, all ranks in a row
    first = np.searchsorted(orders.task_rank, np.arange(orders.ranks))
    # Every rank begins with nothing: take off what the ranks before it left (rounding, or what inference never frees).
    before = np.concatenate([[0.0], np.cumsum(change + free)])[first]
    found: Floats = np.maximum(np.maximum.reduceat(level, first) - before, 0.0)
    return found


def curve(
    orders: Orders,
    rank: int,
    start: Floats,
    end: Floats,
    changes: tuple[Floats, Floats],
    rest: Floats,
) -> tuple[Floats, Floats]:
    """Step function of one rank: (times [n], bytes [n, CATEGORIES]); it holds from each time to the next.

    Args:
        start, end: seconds of all action tasks.
        changes: what `deltas` gave for the columns activations, loss.
        rest: bytes [CATEGORIES] that are there all the time.
    """
    first, stop = np.searchsorted(orders.task_rank, [rank, rank + 1])
    n = stop - first
    times = np.zeros(2 * n + 1)
    times[1::2], times[2::2] = start[first:stop], end[first:stop]
    moved = np.zeros((2 * n + 1, 3))
    moved[1::2], moved[2::2] = changes[0][first:stop], changes[1][first:stop]
    level = np.cumsum(moved, axis=0)
    # What cumulated rounding leaves of an empty account is nothing.
    level[np.abs(level) < 1e-9 * np.abs(moved).max(initial=0.0)] = 0.0
    table = np.tile(rest, (2 * n + 1, 1))
    for column, name in enumerate(("activations", "loss", "buffers")):
        table[:, CATEGORIES.index(name)] += level[:, column]
    return times, table
