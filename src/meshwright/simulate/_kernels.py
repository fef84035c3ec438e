"""The hot loops of the simulator over tasks. Plain arrays in, plain arrays out; `engine` is their typed door.

Kernels stand with all that they call: numba's cache does not see changes of a callee in another file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import inline, kernel

f8, i4 = np.float64, np.int32


@kernel(f8, i4, i4, i4, i4, i4, i4)
def relax(
    duration: Any, resource: Any, list_ptr: Any, listed: Any, successor_ptr: Any, successor: Any, needs: Any
) -> Any:
    """Every resource runs its list in order: (start[N], number of tasks that ran).

    `needs` = predecessors by edges; the order of a list is no edge. A list runs while its head needs nothing more.
    """
    tasks = duration.shape[0]
    resources = list_ptr.shape[0] - 1
    left = needs.copy()
    ready = np.zeros(tasks)
    start = np.empty(tasks)
    head = list_ptr[:-1].copy()
    free = np.zeros(resources)
    stack = np.empty(resources, np.int32)
    stacked = np.ones(resources, np.uint8)
    for r in range(resources):
        stack[r] = resources - 1 - r
    height = resources
    done = 0
    while height > 0:
        height -= 1
        r = stack[height]
        stacked[r] = 0
        i = head[r]
        end = list_ptr[r + 1]
        now = free[r]
        while i < end:
            task = listed[i]
            if left[task] != 0:
                break
            now = max(now, ready[task])
            start[task] = now
            now += duration[task]
            i += 1
            done += 1
            for k in range(successor_ptr[task], successor_ptr[task + 1]):
                s = successor[k]
                if ready[s] < now:
                    ready[s] = now
                left[s] -= 1
                if left[s] == 0:
                    other = resource[s]
                    if other != r and stacked[other] == 0 and listed[head[other]] == s:
                        stacked[other] = 1
                        stack[height] = other
                        height += 1
        head[r] = i
        free[r] = now
    return start, done


@kernel(i4, i4, i4, i4, i4)
def topological(list_ptr: Any, listed: Any, successor_ptr: Any, successor: Any, needs: Any) -> Any:
    """Edges and list orders as one order: (task[N], predecessor_ptr[N + 1], predecessor as POSITIONS, number of tasks)."""
    tasks = needs.shape[0]
    following = np.full(tasks, -1, np.int32)
    left = needs.copy()
    for r in range(list_ptr.shape[0] - 1):
        for i in range(list_ptr[r], list_ptr[r + 1] - 1):
            following[listed[i]] = listed[i + 1]
            left[listed[i + 1]] += 1
    order = np.empty(tasks, np.int32)
    n = 0
    for task in range(tasks):
        if left[task] == 0:
            order[n] = task
            n += 1
    at = 0
    while at < n:
        task = order[at]
        at += 1
        for k in range(successor_ptr[task], successor_ptr[task + 1]):
            s = successor[k]
            left[s] -= 1
            if left[s] == 0:
                order[n] = s
                n += 1
        s = following[task]
        if s >= 0:
            left[s] -= 1
            if left[s] == 0:
                order[n] = s
                n += 1
    position = np.empty(tasks, np.int32)
    for i in range(n):
        position[order[i]] = i
    pointer = np.zeros(tasks + 1, np.int32)
    if n < tasks:
        return order, pointer, np.zeros(0, np.int32), n
    for task in range(tasks):
        for k in range(successor_ptr[task], successor_ptr[task + 1]):
            pointer[position[successor[k]] + 1] += 1
        if following[task] >= 0:
            pointer[position[following[task]] + 1] += 1
    for i in range(tasks):
        pointer[i + 1] += pointer[i]
    fill = pointer[:-1].copy()
    predecessor = np.empty(pointer[tasks], np.int32)
    for i in range(n):
        task = order[i]
        for k in range(successor_ptr[task], successor_ptr[task + 1]):
            at = position[successor[k]]
            predecessor[fill[at]] = i
            fill[at] += 1
        if following[task] >= 0:
            at = position[following[task]]
            predecessor[fill[at]] = i
            fill[at] += 1
    return order, pointer, predecessor, n


@kernel(f8, i4, i4)
def replay(duration: Any, predecessor_ptr: Any, predecessor: Any) -> Any:
    """start[N] of tasks given in topological order."""
    tasks = duration.shape[0]
    start = np.empty(tasks)
    end = np.empty(tasks)
    for i in range(tasks):
        now = 0.0
        for k in range(predecessor_ptr[i], predecessor_ptr[i + 1]):
            now = max(now, end[predecessor[k]])
        start[i] = now
        end[i] = now + duration[i]
    return start


@kernel(i4, i4, int)
def rows_of(source: Any, target: Any, tasks: int) -> Any:
    """Edges -> compressed rows, stable: (successor_ptr, successor, needs)."""
    pointer = np.zeros(tasks + 1, np.int32)
    needs = np.zeros(tasks, np.int32)
    for i in range(source.shape[0]):
        pointer[source[i] + 1] += 1
        needs[target[i]] += 1
    for t in range(tasks):
        pointer[t + 1] += pointer[t]
    fill = pointer[:-1].copy()
    successor = np.empty(source.shape[0], np.int32)
    for i in range(source.shape[0]):
        s = source[i]
        successor[fill[s]] = target[i]
        fill[s] += 1
    return pointer, successor, needs


@inline
def _before(priority: Any, ready: Any, a: int, b: int) -> bool:
    """Whether ready task a goes before b."""
    if priority[a] != priority[b]:
        return bool(priority[a] < priority[b])
    if ready[a] != ready[b]:
        return bool(ready[a] < ready[b])
    return a < b


@inline
def _push(heap: Any, base: int, size: int, task: int, priority: Any, ready: Any) -> None:
    i = size
    while i > 0:
        up = (i - 1) >> 1
        if not _before(priority, ready, task, heap[base + up]):
            break
        heap[base + i] = heap[base + up]
        i = up
    heap[base + i] = task


@inline
def _pop(heap: Any, base: int, size: int, priority: Any, ready: Any) -> None:
    """Remove the root of a heap of `size`."""
    last = size - 1
    task = heap[base + last]
    i = 0
    while True:
        c = 2 * i + 1
        if c >= last:
            break
        if c + 1 < last and _before(priority, ready, heap[base + c + 1], heap[base + c]):
            c += 1
        if not _before(priority, ready, heap[base + c], task):
            break
        heap[base + i] = heap[base + c]
        i = c
    heap[base + i] = task


@inline
def _push_event(at: Any, what: Any, size: int, time: float, event: int) -> None:
    i = size
    while i > 0:
        up = (i - 1) >> 1
        if at[up] < time or (at[up] == time and what[up] <= event):
            break
        at[i] = at[up]
        what[i] = what[up]
        i = up
    at[i] = time
    what[i] = event


@inline
def _pop_event(at: Any, what: Any, size: int) -> None:
    last = size - 1
    time = at[last]
    event = what[last]
    i = 0
    while True:
        c = 2 * i + 1
        if c >= last:
            break
        if c + 1 < last and (at[c + 1] < at[c] or (at[c + 1] == at[c] and what[c + 1] < what[c])):
            c += 1
        if at[c] > time or (at[c] == time and what[c] >= event):
            break
        at[i] = at[c]
        what[i] = what[c]
        i = c
    at[i] = time
    what[i] = event


@kernel(f8, f8, f8, i4, i4, i4, i4, i4, i4, f8, f8, int, int)
def dispatch(
    duration: Any,
    occupancy: Any,
    priority: Any,
    resource_ptr: Any,
    resource: Any,
    successor_ptr: Any,
    successor: Any,
    memory_ptr: Any,
    pool: Any,
    at_start: Any,
    at_end: Any,
    resources: int,
    pools: int,
) -> Any:
    """Event heap: (start[N], tasks that ran, makespan, peak[pools]).

    At each time ALL ends are handled first; then, in order (priority, ready time, id), each ready task whose resources
    are all free starts. A ready task waits in the heap of one resource: its only one, or one that was busy when it was
    last looked at, so only heaps of resources that have just become free are ever searched.

    An event is 3 · task + what: 0 = both ends, 1 = successors may go on, 2 = resources are free.
    """
    tasks = duration.shape[0]
    left = np.zeros(tasks, np.int32)
    for k in range(successor.shape[0]):
        left[successor[k]] += 1
    base = np.zeros(resources + 1, np.int32)
    gang = False
    split = 0
    for t in range(tasks):
        n = resource_ptr[t + 1] - resource_ptr[t]
        gang |= n > 1
        split += n == 0 or occupancy[t] != duration[t]
        for k in range(resource_ptr[t], resource_ptr[t + 1]):
            base[resource[k] + 1] += 1
    for r in range(resources):
        base[r + 1] += base[r]
    heap = np.empty(base[resources], np.int32)
    waiting = np.zeros(resources, np.int32)
    busy = np.zeros(resources, np.uint8)
    ready = np.zeros(tasks)
    start = np.full(tasks, np.nan)
    # Exclusive tasks have one event per resource at most; the others may all be on their way at once.
    event_at = np.empty(resources + 2 * split + 1)
    event = np.empty(resources + 2 * split + 1, np.int64)
    events = 0
    changed = np.empty(resources, np.int32)
    is_changed = np.zeros(resources, np.uint8)
    changes = 0
    level = np.zeros(pools)
    peak = np.zeros(pools)
    loose = np.empty(tasks, np.int32)
    loose_n = 0
    now = 0.0
    makespan = 0.0
    done = 0
    for t in range(tasks):
        if left[t] == 0:
            if resource_ptr[t + 1] == resource_ptr[t]:
                loose[loose_n] = t
                loose_n += 1
            else:
                r = resource[resource_ptr[t]]
                _push(heap, base[r], waiting[r], t, priority, ready)
                waiting[r] += 1
                if is_changed[r] == 0:
                    is_changed[r] = 1
                    changed[changes] = r
                    changes += 1
    while True:
        # 1. start what can start
        while changes > 0 or loose_n > 0:
            if loose_n > 0:
                loose_n -= 1
                task = loose[loose_n]
            else:
                best = -1
                task = -1
                if gang:
                    k = 0
                    while k < changes:
                        r = changed[k]
                        if busy[r] == 1 or waiting[r] == 0:
                            is_changed[r] = 0
                            changes -= 1
                            changed[k] = changed[changes]
                            continue
                        if best < 0 or _before(priority, ready, heap[base[r]], task):
                            best = r
                            task = heap[base[r]]
                        k += 1
                else:
                    changes -= 1
                    r = changed[changes]
                    is_changed[r] = 0
                    if busy[r] == 0 and waiting[r] > 0:
                        best = r
                        task = heap[base[r]]
                if best < 0:
                    continue
                _pop(heap, base[best], waiting[best], priority, ready)
                waiting[best] -= 1
                blocked = -1
                if gang:
                    for k in range(resource_ptr[task], resource_ptr[task + 1]):
                        if busy[resource[k]] == 1:
                            blocked = resource[k]
                            break
                if blocked >= 0:
                    _push(heap, base[blocked], waiting[blocked], task, priority, ready)
                    waiting[blocked] += 1
                    continue
                for k in range(resource_ptr[task], resource_ptr[task + 1]):
                    busy[resource[k]] = 1
            start[task] = now
            for k in range(memory_ptr[task], memory_ptr[task + 1]):
                level[pool[k]] += at_start[k]
                peak[pool[k]] = max(peak[pool[k]], level[pool[k]])
            if resource_ptr[task + 1] == resource_ptr[task]:
                _push_event(event_at, event, events, now + duration[task], 3 * task + 1)
                events += 1
            elif occupancy[task] == duration[task]:
                _push_event(event_at, event, events, now + duration[task], 3 * task)
                events += 1
            else:
                _push_event(event_at, event, events, now + duration[task], 3 * task + 1)
                _push_event(event_at, event, events + 1, now + occupancy[task], 3 * task + 2)
                events += 2
        if events == 0:
            break
        # 2. go to the next time and handle everything that ends then
        now = event_at[0]
        while events > 0 and event_at[0] == now:
            code = event[0]
            _pop_event(event_at, event, events)
            events -= 1
            task = code // 3
            what = code - 3 * task
            if what != 1:
                for k in range(resource_ptr[task], resource_ptr[task + 1]):
                    r = resource[k]
                    busy[r] = 0
                    if is_changed[r] == 0 and waiting[r] > 0:
                        is_changed[r] = 1
                        changed[changes] = r
                        changes += 1
            if what == 2:
                continue
            done += 1
            makespan = max(makespan, now)
            for k in range(memory_ptr[task], memory_ptr[task + 1]):
                level[pool[k]] += at_end[k]
            for k in range(successor_ptr[task], successor_ptr[task + 1]):
                s = successor[k]
                left[s] -= 1
                if left[s] > 0:
                    continue
                ready[s] = now
                if resource_ptr[s + 1] == resource_ptr[s]:
                    loose[loose_n] = s
                    loose_n += 1
                    continue
                r = resource[resource_ptr[s]]
                _push(heap, base[r], waiting[r], s, priority, ready)
                waiting[r] += 1
                if is_changed[r] == 0:
                    is_changed[r] = 1
                    changed[changes] = r
                    changes += 1
    return start, done, makespan, peak
