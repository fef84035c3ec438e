"""Devices that share cores: ranks of one machine that has fewer cores than ranks.

Whoever works at a moment gets an equal part of the cores, and never more than one core: n at work on c cores go at
min(1, c / n) of their speed. So a pipeline whose ranks wait for each other loses less than one of devices of its own.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np

from ..graph.ir import Floats
from .engine import FixedOrder
from .estimate import Work


def share_cores(tasks: FixedOrder, weight: Floats, cores: float) -> FixedOrder:
    """The same tasks with the durations that they have when they share `cores`.

    Args:
        tasks: with durations of one device alone on its core; their orders and edges must not wait for each other.
        weight: devices at work while a resource runs a task, per resource.

    All that works at a moment goes at one rate, so a clock that runs at that rate tells every end beforehand.
    """
    needs = tasks.needs.copy()
    head, ends = tasks.list_ptr[:-1].copy(), tasks.list_ptr[1:]
    busy = np.zeros(len(head), bool)
    start, stop = np.zeros(tasks.tasks), np.zeros(tasks.tasks)
    running: list[tuple[float, int]] = []
    at_work, now, clock = 0.0, 0.0, 0.0

    def begin(resource: int) -> float:
        """Starts the resource's next task if it can; returns what is then at work more."""
        if busy[resource] or head[resource] == ends[resource]:
            return 0.0
        task = int(tasks.listed[head[resource]])
        if needs[task]:
            return 0.0
        busy[resource], start[task] = True, now
        heapq.heappush(running, (clock + float(tasks.duration[task]), task))
        return float(weight[resource])

    for resource in range(len(head)):
        at_work += begin(resource)
    while running:
        end, task = heapq.heappop(running)
        now += (end - clock) * max(1.0, at_work / cores)
        clock, stop[task] = end, now
        resource = int(tasks.resource[task])
        busy[resource] = False
        head[resource] += 1
        at_work -= float(weight[resource])
        waiting = {resource}
        for k in range(tasks.successor_ptr[task], tasks.successor_ptr[task + 1]):
            after = int(tasks.successor[k])
            needs[after] -= 1
            if not needs[after]:
                waiting.add(int(tasks.resource[after]))
        for other in sorted(waiting):
            at_work += begin(other)
    return replace(tasks, duration=stop - start)


def slowed(work: Work, ranks: Floats, turns: float) -> Work:
    """`work` where everybody takes turns.

    Args:
        ranks: factor [row] on what is done for each micro-batch.
        turns: factor on what all devices do at the same time, once a step.
    """
    return replace(
        work,
        forward=work.forward * ranks[:, None],
        backward=work.backward * ranks[:, None],
        weight=work.weight * ranks,
        sums=work.sums * turns,
        gathers=work.gathers * turns,
        optimizer=work.optimizer * turns,
        tied=tuple((stages, seconds * turns) for stages, seconds in work.tied),
    )
