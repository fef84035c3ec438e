"""Readable engines: what `relax` and `dispatch` must equal, written for the eye."""

from __future__ import annotations

import heapq
from itertools import pairwise

import numpy as np

from meshwright.simulate.result import TaskGraph


def longest_paths(duration, edges, lists):
    """Start of each task: the longest path to it over edges and list orders."""
    before = {t: [] for t in range(len(duration))}
    for a, b in edges:
        before[b].append(a)
    for row in lists:
        for a, b in pairwise(row):
            before[b].append(a)
    start: dict[int, float] = {}

    def begin(t):
        if t not in start:
            start[t] = max((begin(a) + duration[a] for a in before[t]), default=0.0)
        return start[t]

    return np.array([begin(t) for t in range(len(duration))])


def play(g: TaskGraph):
    """(start[N], makespan, peak[pools]) of `dispatch`, by looking at every ready task at every time."""
    n = len(g.duration)
    held = [g.resource[g.resource_ptr[i] : g.resource_ptr[i + 1]].tolist() for i in range(n)]
    after = [g.successor[g.successor_ptr[i] : g.successor_ptr[i + 1]].tolist() for i in range(n)]
    memory = [range(g.memory_ptr[i], g.memory_ptr[i + 1]) for i in range(n)]
    need = np.bincount(g.successor, minlength=n)
    ready = [(g.priority[i], 0.0, i) for i in range(n) if need[i] == 0]
    busy: set[int] = set()
    events: list[tuple[float, int, int]] = []
    start = np.full(n, np.nan)
    level: dict[int, float] = {}
    peak: dict[int, float] = {}
    now = makespan = 0.0
    while True:
        for entry in sorted(ready):
            i = entry[2]
            if any(r in busy for r in held[i]):
                continue
            ready.remove(entry)
            start[i] = now
            busy.update(held[i])
            heapq.heappush(events, (now + g.duration[i], 0, i))
            heapq.heappush(events, (now + g.occupancy[i], 1, i))
            for k in memory[i]:
                level[g.pool[k]] = level.get(g.pool[k], 0.0) + g.at_start[k]
                peak[g.pool[k]] = max(peak.get(g.pool[k], 0.0), level[g.pool[k]])
        if not events:
            break
        now = events[0][0]
        while events and events[0][0] == now:
            _, what, i = heapq.heappop(events)
            if what == 1:
                busy.difference_update(held[i])
                continue
            makespan = max(makespan, now)
            for k in memory[i]:
                level[g.pool[k]] += g.at_end[k]
            for s in after[i]:
                need[s] -= 1
                if need[s] == 0:
                    ready.append((g.priority[s], now, s))
    pools = int(g.pool.max()) + 1 if len(g.pool) else 0
    return start, makespan, np.array([peak.get(p, 0.0) for p in range(pools)])


def tick(g: TaskGraph, horizon: int):
    """Start of each task by a clock that advances by one: durations of 1, 2, … only, no heap, no event list."""
    n = len(g.duration)
    held = [set(g.resource[g.resource_ptr[i] : g.resource_ptr[i + 1]].tolist()) for i in range(n)]
    before = [[] for _ in range(n)]
    for a in range(n):
        for b in g.successor[g.successor_ptr[a] : g.successor_ptr[a + 1]]:
            before[int(b)].append(a)
    start: dict[int, int] = {}
    for now in range(horizon):
        busy = {r for i, s in start.items() for r in held[i] if s <= now < s + g.occupancy[i]}
        ends = {i: s + g.duration[i] for i, s in start.items()}
        ready = [i for i in range(n) if i not in start and all(ends.get(a, np.inf) <= now for a in before[i])]
        for _, _, i in sorted((g.priority[i], max((ends[a] for a in before[i]), default=0.0), i) for i in ready):
            if not held[i] & busy:
                start[i] = now
                busy |= held[i]
    return np.array([start[i] for i in range(n)], float)
