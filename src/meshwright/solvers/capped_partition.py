"""Cut a chain of units into consecutive stages: the largest stage time least, under a memory cap for every stage.

Of the cuts with that time it is a level one: where a single unit is the largest stage, the others have room to choose.

Units come in runs of equal ones. Stages are filled from the back, each as full as a trial time allows; a failed pass says
the next time worth trying, and a pass costs O(stages + runs). That is exact where no stage holds less than the one before
it: what a stage leaves can only burden the stages before. Where the caps go up and down (chunks of a rank hold alike), a
filling that fails proves nothing, and a programme over all borders decides, O(stages · units²).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray


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
    found = _least(runs, stages, room, flights)
    return None if found is None else _levelled(runs, found, room, flights)


def _least(runs: Sequence[Run], stages: int, room: Sequence[float], flights: Sequence[float]) -> tuple[int, ...] | None:
    rising = all(a <= b for a, b in itertools.pairwise(room)) and all(a >= b for a, b in itertools.pairwise(flights))
    found = _filled(runs, stages, room, flights)
    if rising or (found is not None and _least_possible(runs, stages, found)):
        return found
    if found is None and _filled(runs, stages, [max(room)] * stages, [min(flights)] * stages) is None:
        return None
    return _over_all_borders(runs, stages, room, flights)


def _levelled(
    runs: Sequence[Run], parts: tuple[int, ...], room: Sequence[float], flights: Sequence[float]
) -> tuple[int, ...]:
    """Another cut with the largest time and the most bytes of `parts`, if its times have a smaller sum of squares.

    From the back, each stage takes the mean of what is left, or as near to it as the limits allow: its own, and how far the
    stages before it reach. O(stages · log units) on prefix sums.
    """
    units = [r for r in runs for _ in range(r.count)]
    seconds, rest, held = np.cumsum([(0.0, 0.0, 0.0), *((u.seconds, u.rest, u.held) for u in units)], axis=0).T
    nbytes = [rest + held * flight for flight in flights]
    ends = np.cumsum([0, *parts])
    most = float(np.diff(seconds[ends]).max()) * (1 + 1e-12)
    fullest = max(float(b[e] - b[a]) for b, (a, e) in zip(nbytes, itertools.pairwise(ends), strict=True))
    caps = [min(cap, fullest) * (1 + 1e-12) for cap in room]
    reach = [0]
    for own, cap in zip(nbytes[:-1], caps, strict=False):
        by_time, by_room = (
            np.searchsorted(x, x[reach[-1]] + limit, "right") for x, limit in ((seconds, most), (own, cap))
        )
        reach.append(int(min(by_time, by_room)) - 1)
    found, end = [], len(units)
    for s in range(len(parts) - 1, 0, -1):
        own = nbytes[s]
        by_time, by_room = (np.searchsorted(x, x[end] - limit) for x, limit in ((seconds, most), (own, caps[s])))
        earliest, latest = max(int(by_time), int(by_room), s), min(reach[s], end - 1)
        if earliest > latest:
            return parts
        start = min(max(_nearest(seconds, seconds[end] * s / (s + 1)), earliest), latest)
        found.append(end - start)
        end = start
    found.append(end)
    level = tuple(reversed(found))
    return level if _squares(seconds, level) < _squares(seconds, parts) * (1 - 1e-12) else parts


def _nearest(rising: NDArray[np.float64], value: float) -> int:
    at = int(np.searchsorted(rising, value))
    return at - 1 if at == len(rising) or (at and value - rising[at - 1] < rising[at] - value) else at


def _squares(seconds: NDArray[np.float64], parts: Sequence[int]) -> float:
    return float((np.diff(seconds[np.cumsum([0, *parts])]) ** 2).sum())


def _filled(
    runs: Sequence[Run], stages: int, room: Sequence[float], flights: Sequence[float]
) -> tuple[int, ...] | None:
    total = sum(r.count for r in runs)
    if total < stages:
        return None
    trial = max(max(r.seconds for r in runs), sum(r.count * r.seconds for r in runs) / stages)
    while trial < inf:
        parts, trial = _fill(runs, stages, room, flights, trial * (1 + 1e-12), total)
        if parts is not None:
            return parts
    return None


def _least_possible(runs: Sequence[Run], stages: int, parts: tuple[int, ...]) -> bool:
    """Whether no cut at all, caps or not, has a smaller largest time."""
    free = _filled(runs, stages, [_all_bytes(runs)] * stages, [0.0] * stages)
    return free is not None and _worst(runs, parts) <= _worst(runs, free) * (1 + 1e-12)


def _all_bytes(runs: Sequence[Run]) -> float:
    """More than all units together rest on."""
    return 1.0 + sum(r.count * r.rest for r in runs)


def _worst(runs: Sequence[Run], parts: Sequence[int]) -> float:
    seconds = np.cumsum([0.0, *(r.seconds for r in runs for _ in range(r.count))])
    return float(np.diff(seconds[np.cumsum([0, *parts])]).max())


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


def _over_all_borders(
    runs: Sequence[Run], stages: int, room: Sequence[float], flights: Sequence[float]
) -> tuple[int, ...] | None:
    """least[s, i] = the least largest time of the first s + 1 stages over the first i units."""
    units = [r for r in runs for _ in range(r.count)]
    n = len(units)
    sums = np.cumsum([(0.0, 0.0, 0.0), *((u.seconds, u.rest, u.held) for u in units)], axis=0)
    seconds, rest, held = (sums[None, :, k] - sums[:, None, k] for k in range(3))  # [from, to]
    ordered = np.triu(np.ones((n + 1, n + 1), bool), 1)
    before = np.full(n + 1, inf)
    before[0] = 0.0
    choice = np.zeros((stages, n + 1), np.int64)
    for s in range(stages):
        legal = ordered & (rest + held * flights[s] <= room[s] * (1 + 1e-12))
        worst = np.where(legal, np.maximum(before[:, None], seconds), inf)
        choice[s] = worst.argmin(axis=0)
        before = worst.min(axis=0)
    if before[n] == inf:
        return None
    parts, at = [], n
    for s in range(stages - 1, -1, -1):
        start = int(choice[s, at])
        parts.append(at - start)
        at = start
    return tuple(reversed(parts))
