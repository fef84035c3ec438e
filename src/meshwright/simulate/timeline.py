"""Bars of the timeline: actions, the communication inside them, sends, and what ends the step.

Above `LIMIT` events only the warm-up, one steady period and the drain are kept: micro-batches in between do the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..graph.ir import Floats
from .estimate import Step, Work
from .pipeline import KINDS as ACTIONS
from .pipeline import Orders
from .price import KINDS, StagePrice
from .result import Event
from .tasks import PipelineTasks, Sends

LIMIT = 200_000


def events(
    order: Orders,
    tasks: PipelineTasks,
    start: Floats,
    work: Work,
    prices: Sequence[StagePrice],
    sends: Sends,
    step: Step,
    rank: NDArray[np.int32],
    scale: float,
    limit: int = LIMIT,
) -> tuple[Event, ...]:
    """`prices` [row]. In order of (lane, stream, start); seconds times `scale` (stragglers stretch everything alike)."""
    kept = kept_micro_batches(order, len(tasks.send_pair), limit)
    duration = tasks.fixed.duration
    found: list[Event] = []
    streams = [p.streams[0] for p in prices]
    row = order.row
    for k in np.flatnonzero(kept[order.micro_batch]):
        stage, j, task = int(order.stage[k]), int(order.micro_batch[k]), int(order.task[k])
        kind = ACTIONS[order.kind[k]]
        lane, begin, length = int(order.task_rank[task]), float(start[task]), float(duration[task])
        found.append(Event(lane, "compute", f"{stage}{kind}{j}", kind, stage, j, begin * scale, length * scale))
        if kind == "W":
            continue
        for stream, seconds in zip(("tp", "dp"), streams[row[k]][int(kind != "F")], strict=True):
            if seconds > 0:
                shown = min(float(seconds), length)
                found.append(
                    Event(
                        lane,
                        stream,
                        f"{stream} {stage}{kind}{j}",
                        "collectives",
                        stage,
                        j,
                        begin * scale,
                        shown * scale,
                    )
                )
    first = tasks.actions
    for i in np.flatnonzero(kept[tasks.send_micro_batch]):
        pair, back, j = int(tasks.send_pair[i]), bool(tasks.send_back[i]), int(tasks.send_micro_batch[i])
        src, dst = int(sends.src[pair]), int(sends.dst[pair])
        if back:
            src, dst = dst, src
        begin, length = float(start[first + i]) * scale, float(duration[first + i]) * scale
        kind = "B" if back else "F"
        nbytes = float((sends.backward_bytes if back else sends.forward_bytes)[pair])
        name = f"{kind}{j} {src}→{dst}"
        found.append(Event(int(rank[src]), "send", name, kind, src, j, begin, length, nbytes))
        found.append(Event(int(rank[dst]), "recv", name, kind, dst, j, begin, length, nbytes))
    found += _ending(order, work, step, rank, scale)
    found.sort(key=lambda e: (e.lane, e.stream, e.start, -e.duration))
    return tuple(found)


def kept_micro_batches(order: Orders, sends: int, limit: int) -> NDArray[np.bool_]:
    """Which micro-batches the timeline shows: all, or p + 1 at the beginning, in the middle and at the end."""
    m, p = order.micro_batches, order.ranks
    kept = np.ones(m, bool)
    if 3 * len(order.kind) + 2 * sends > limit and m > 3 * (p + 1):
        kept[:] = False
        middle = m // 2
        kept[: p + 1] = kept[middle : middle + p + 1] = kept[m - p - 1 :] = True
    return kept


def _ending(order: Orders, work: Work, step: Step, rank: NDArray[np.int32], scale: float) -> list[Event]:
    """Exposed sums and gathers on the dp stream, then the optimizer."""
    found = []
    m = order.micro_batches
    for r in range(order.ranks):
        stage = int(np.flatnonzero(rank == r)[0])
        at = float(step.end[r]) - float(step.optimizer[r]) - float(step.sync[r].sum())
        for kind, seconds in zip(KINDS, step.sync[r], strict=True):
            if seconds > 0:
                found.append(Event(r, "dp", kind, kind, stage, m - 1, at * scale, float(seconds) * scale))
                at += float(seconds)
        if step.optimizer[r] > 0:
            found.append(
                Event(r, "optimizer", "optimizer", "UPDATE", stage, m - 1, at * scale, float(step.optimizer[r]) * scale)
            )
    return found
