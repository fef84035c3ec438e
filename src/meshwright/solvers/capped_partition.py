"""Cut a chain of units into consecutive stages: the largest stage time least, under a memory cap for every stage.

Units come in runs of equal ones, so a pass costs O(stages + runs). Stages are filled from the back, each as full as the
trial time allows; a failed pass says the next time worth trying. Exact: a maximal filling from one end succeeds if any
cut does, because what a stage leaves can only burden the stages after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class Run:
    """`count` equal units in a row. Bytes of one unit in stage s: rest + held · flights[s]."""

    count: int
    seconds: float
    rest: float = 0.0
    held: float = 0.0


def capped_partition(
    runs: Sequence[Run], stages: int, room: Sequence[float], flights: Sequence[float]
) -> tuple[int, ...] | None:
    """Units per stage with the least largest time, every stage at least one unit; None if the caps do not allow it.

    Args:
        room: bytes [stage].
        flights: how often a stage holds what a unit leaves behind, [stage].
    """
    total = sum(r.count for r in runs)
    if total < stages:
        return None
    trial = max(max(r.seconds for r in runs), sum(r.count * r.seconds for r in runs) / stages)
    while trial < inf:
        parts, trial = _fill(runs, stages, room, flights, trial * (1 + 1e-12), total)
        if parts is not None:
            return parts
    return None


def _fill(
    runs: Sequence[Run], stages: int, room: Sequence[float], flights: Sequence[float], trial: float, total: int
) -> tuple[tuple[int, ...] | None, float]:
    """(parts or None, the next trial time)."""
    parts = [0] * stages
    following = inf
    k, left_in_run, units_left = len(runs) - 1, runs[-1].count, total
    for s in range(stages - 1, -1, -1):
        spent, filled, cap, flight = 0.0, 0.0, room[s], flights[s]
        most = units_left - s  # each stage before gets at least one
        while k >= 0:
            r = runs[k]
            size = r.rest + r.held * flight
            by_room = int((cap - filled) / size + 1e-9) if size > 0 else left_in_run
            by_time = int((trial - spent) / r.seconds + 1e-9) if r.seconds > 0 else left_in_run
            n = max(0, min(left_in_run, most - parts[s], by_room, by_time))
            parts[s] += n
            spent += n * r.seconds
            filled += n * size
            left_in_run -= n
            if left_in_run:
                if by_time <= n < by_room and parts[s] < most:
                    following = min(following, spent + r.seconds)
                break
            k -= 1
            left_in_run = runs[k].count if k >= 0 else 0
        units_left -= parts[s]
        if parts[s] == 0:
            return None, following
    if units_left:
        return None, following
    return tuple(parts), trial
