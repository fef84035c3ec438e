"""Hanayo's waves (Liu et al. 2023, arXiv 2308.15762): v = 2 W chunks a rank, stages laid over the ranks like a snake.

    stage 0 1 2 3 | 7 6 5 4 | 8 9 …       rank 0 holds 0, 7, 8, …

The paper's own action lists are not public; this is the greedy order on a clock (F = 1, B = 2): an idle rank takes a
backward if one is ready, of the earliest micro-batch, else the forward of its deepest ready stage.
"""

from __future__ import annotations

from heapq import heappop, heappush

from ..model import Action


def snake(p: int, stage: int) -> int:
    """Rank of a stage."""
    block, at = divmod(stage, p)
    return at if block % 2 == 0 else p - 1 - at


def hanayo(p: int, m: int, v: int) -> tuple[tuple[Action, ...], ...]:
    """Actions of all ranks."""
    last = p * v - 1
    found: list[list[Action]] = [[] for _ in range(p)]
    # Ready work of each rank: backwards (0, micro-batch, stage), then forwards (1, stage, micro-batch), deep stages first.
    ready: list[list[tuple[int, int, int]]] = [[] for _ in range(p)]
    ready[snake(p, 0)] = [(1, 0, j) for j in range(m)]
    free = [0] * p
    events: list[tuple[int, int, int, int]] = []
    now = 0
    while True:
        for r in range(p):
            if free[r] <= now and ready[r]:
                kind, first, second = heappop(ready[r])
                stage, j = (-first, second) if kind else (-second, first)
                found[r].append(Action("F" if kind else "B", stage, j))
                free[r] = now + (1 if kind else 2)
                heappush(events, (free[r], kind, stage, j))
        if not events:
            return tuple(tuple(actions) for actions in found)
        now = events[0][0]
        while events and events[0][0] == now:
            _, kind, stage, j = heappop(events)
            if kind and stage < last:
                heappush(ready[snake(p, stage + 1)], (1, -stage - 1, j))
            elif kind:
                heappush(ready[snake(p, stage)], (0, j, -stage))
            elif stage:
                heappush(ready[snake(p, stage - 1)], (0, j, -stage + 1))
