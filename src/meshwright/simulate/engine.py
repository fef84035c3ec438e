"""Two engines over tasks: `relax` where every resource has a fixed order, `dispatch` where the order depends on time.

They are different models wherever links are shared or priorities compete; where every order is fixed both, and `replay`,
give the same times to the last bit. 5e5 tasks take about 10 ms relaxed, 70 ms dispatched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..graph.ir import Floats
from .result import TaskGraph

Index32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class FixedOrder:
    """Tasks of which every resource knows the order. listed[list_ptr[r]:list_ptr[r + 1]] = tasks of resource r.

    Number tasks by (resource, order): then memory is read in order, which is half of the speed.
    """

    duration: Floats
    resource: Index32
    list_ptr: Index32
    listed: Index32
    successor_ptr: Index32
    successor: Index32
    needs: Index32
    """Predecessors by edges (the order of a resource is no edge)."""

    @property
    def tasks(self) -> int:
        return len(self.duration)


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A topological order of edges and resource orders together: run again when only durations change."""

    task: Index32
    predecessor_ptr: Index32
    predecessor: Index32
    """Positions in `task`, not tasks."""


@dataclass(frozen=True, slots=True, eq=False)
class Dispatched:
    start: Floats
    """Seconds per task."""
    makespan: float
    peak: Floats
    """Bytes per pool."""


def fixed_order(
    duration: Floats,
    resource: Index32,
    source: Index32,
    target: Index32,
    *,
    resources: int,
    listed: Index32 | None = None,
) -> FixedOrder:
    """Tasks numbered by (resource, order), or in the order of `listed`, with edges source -> target."""
    from ._kernels import rows_of

    tasks = len(duration)
    pointer, successor, needs = rows_of(source, target, tasks)
    list_ptr = np.zeros(resources + 1, np.int32)
    np.cumsum(np.bincount(resource, minlength=resources), out=list_ptr[1:])
    own = np.arange(tasks, dtype=np.int32) if listed is None else np.asarray(listed, np.int32)
    return FixedOrder(duration, resource, list_ptr, own, pointer, successor, needs)


def relax(tasks: FixedOrder) -> Floats:
    """Start of every task, seconds.

    Raises:
        InputError: the orders and the edges wait for each other.
    """
    from . import _kernels

    start, done = _kernels.relax(
        tasks.duration,
        tasks.resource,
        tasks.list_ptr,
        tasks.listed,
        tasks.successor_ptr,
        tasks.successor,
        tasks.needs,
    )
    _complete(done, tasks.tasks)
    result: Floats = start
    return result


def topological(tasks: FixedOrder) -> Replay:
    """The order to replay. Raises InputError like `relax`."""
    from . import _kernels

    order, pointer, predecessor, done = _kernels.topological(
        tasks.list_ptr, tasks.listed, tasks.successor_ptr, tasks.successor, tasks.needs
    )
    _complete(done, tasks.tasks)
    return Replay(order, pointer, predecessor)


def replay(order: Replay, duration: Floats) -> Floats:
    """Start of every task with these durations: `relax` for another price of the same tasks."""
    from . import _kernels

    start = np.empty(len(duration))
    start[order.task] = _kernels.replay(duration[order.task], order.predecessor_ptr, order.predecessor)
    return start


def dispatch(tasks: TaskGraph) -> Dispatched:
    """Ready tasks start by (priority, ready time, id) as soon as all their resources are free.

    Raises:
        InputError: some tasks wait for each other in a circle.
    """
    from . import _kernels

    resources = int(tasks.resource.max()) + 1 if len(tasks.resource) else 0
    pools = int(tasks.pool.max()) + 1 if len(tasks.pool) else 0
    start, done, makespan, peak = _kernels.dispatch(
        tasks.duration,
        tasks.occupancy,
        tasks.priority,
        tasks.resource_ptr,
        tasks.resource,
        tasks.successor_ptr,
        tasks.successor,
        tasks.memory_ptr,
        tasks.pool,
        tasks.at_start,
        tasks.at_end,
        resources,
        pools,
    )
    _complete(done, len(tasks.duration))
    return Dispatched(start, float(makespan), peak)


def task_graph(
    duration: Floats,
    resources: Sequence[Sequence[int]],
    edges: Sequence[tuple[int, int]],
    *,
    occupancy: Floats | None = None,
    priority: Floats | None = None,
    memory: Sequence[tuple[int, int, float, float]] = (),
    copies: NDArray[np.int64] | None = None,
    origin: NDArray[np.int64] | None = None,
) -> TaskGraph:
    """From lists: `resources` per task, `edges` (before, after), `memory` (task, pool, bytes at start, bytes at end)."""
    n = len(duration)

    def rows(of: Sequence[int]) -> NDArray[np.int64]:
        pointer = np.zeros(n + 1, np.int64)
        np.cumsum(np.bincount(np.asarray(of, np.int64), minlength=n), out=pointer[1:])
        return pointer

    by_source = sorted(edges)
    held = sorted(memory, key=lambda x: x[0])
    lengths = np.zeros(n + 1, np.int64)
    np.cumsum([len(r) for r in resources], out=lengths[1:])
    return TaskGraph(
        duration=np.asarray(duration, np.float64),
        occupancy=np.asarray(duration if occupancy is None else occupancy, np.float64),
        priority=np.zeros(n) if priority is None else np.asarray(priority, np.float64),
        resource_ptr=lengths,
        resource=np.array([r for rs in resources for r in rs], np.int64),
        successor_ptr=rows([a for a, _ in by_source]),
        successor=np.array([b for _, b in by_source], np.int64),
        memory_ptr=rows([x[0] for x in held]),
        pool=np.array([x[1] for x in held], np.int64),
        at_start=np.array([x[2] for x in held], np.float64),
        at_end=np.array([x[3] for x in held], np.float64),
        copies=np.ones(n, np.int64) if copies is None else copies,
        origin=np.arange(n, dtype=np.int64) if origin is None else origin,
    )


def as_task_graph(tasks: FixedOrder) -> TaskGraph:
    """The same tasks for `dispatch`, the order of each resource written out as edges."""
    from ._kernels import rows_of

    n = tasks.tasks
    same = tasks.resource[tasks.listed[:-1]] == tasks.resource[tasks.listed[1:]]
    source = np.repeat(np.arange(n, dtype=np.int32), np.diff(tasks.successor_ptr))
    pointer, successor, _ = rows_of(
        np.concatenate([source, tasks.listed[:-1][same]]), np.concatenate([tasks.successor, tasks.listed[1:][same]]), n
    )
    priority = np.empty(n)
    priority[tasks.listed] = np.arange(n)
    return TaskGraph(
        duration=tasks.duration,
        occupancy=tasks.duration,
        priority=priority,
        resource_ptr=np.arange(n + 1, dtype=np.int64),
        resource=tasks.resource.astype(np.int64),
        successor_ptr=pointer.astype(np.int64),
        successor=successor.astype(np.int64),
        memory_ptr=np.zeros(n + 1, np.int64),
        pool=np.zeros(0, np.int64),
        at_start=np.zeros(0),
        at_end=np.zeros(0),
        copies=np.ones(n, np.int64),
        origin=np.arange(n, dtype=np.int64),
    )


def _complete(done: int, tasks: int) -> None:
    if done < tasks:
        raise InputError(
            f"{tasks - done:,} of {tasks:,} tasks never start, because they wait for each other in a circle: "
            "reorder the rows so that every action comes after what it needs"
        )
