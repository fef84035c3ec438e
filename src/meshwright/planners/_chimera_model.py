"""Chimera's performance model (Li and Hoefler 2021, arXiv 2107.06925, section 3.4), read off the schedule's own table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log2

from ..plan.model import Action
from ..plan.schedules import generate


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one table played with given lengths. [worker, stage] -> seconds for the idle time after the last backward."""

    seconds: float
    forwards: int
    """C_f: forwards on the critical path; of equally long paths the one with most backwards."""
    backwards: int
    idle: tuple[tuple[int, int, float], ...]
    peaks: tuple[tuple[int, int], ...]
    """Per worker: micro-batches held at the peak in (all its stages, one of them at most)."""


@lru_cache(maxsize=256)
def play(depth: int, m: int, f: int, form: str, forward: float, backward: float) -> Timing:
    """The table of `generate("chimera", …)` with every forward and backward of these lengths; sums take no time."""
    rows = [[a for a in row.actions if isinstance(a, Action)] for row in generate("chimera", depth, m, f=f, form=form)]
    end: dict[tuple[str, int, int], tuple[float, int, int]] = {}
    free = [(0.0, 0, 0)] * depth
    spans: list[list[tuple[float, float, Action]]] = [[] for _ in rows]
    at = [0] * depth
    moved = True
    while moved:
        moved = False
        for w, row in enumerate(rows):
            while at[w] < len(row):
                action = row[at[w]]
                if action.kind in "FB":
                    needs = [key for j in _ids(action) for key in _needs(action, j, depth)]
                    if any(key not in end for key in needs):
                        break
                    start = max([free[w], *(end[key] for key in needs)], key=lambda x: (x[0], x[2]))
                    is_forward = action.kind == "F"
                    length = (forward if is_forward else backward) * action.span
                    free[w] = (start[0] + length, start[1] + is_forward * action.span, start[2] + (not is_forward))
                    spans[w].append((start[0], free[w][0], action))
                    for j in _ids(action):
                        end[action.kind, int(action.on), j] = free[w]
                at[w] += 1
                moved = True
    last = max(free, key=lambda x: (x[0], x[2]))
    return Timing(last[0], last[1], last[2], tuple(_idle(spans, last[0])), tuple(_peak(own) for own in spans))


def all_reduce(copies: int, latency: float, bandwidth: float, nbytes: float) -> float:
    """Rabenseifner's algorithm over `copies` copies of a stage."""
    if copies == 1:
        return 0.0
    return 2.0 * log2(copies) * latency + 2.0 * (copies - 1) / copies * nbytes / bandwidth


def step_seconds(timing: Timing, counts: Timing, forward: float, backward: float, sums: Sequence[float]) -> float:
    """T of the paper: counts on the critical path, and the part of a stage's sum that no idle time hides.

    Args:
        forward, backward: seconds of one micro-batch, the transfer included.
        sums: per stage of a pipe, seconds of its all-reduce.
    """
    depth = len(sums)
    exposed = max((max(0.0, sums[stage % depth] - idle) for _, stage, idle in timing.idle), default=0.0)
    return forward * counts.forwards + backward * counts.backwards + exposed


def _ids(action: Action) -> range:
    return range(action.micro_batch, action.micro_batch + action.span)


def _needs(action: Action, j: int, depth: int) -> list[tuple[str, int, int]]:
    stage = int(action.on)
    if action.kind == "F":
        return [("F", stage - 1, j)] if stage % depth else []
    later = [("B", stage + 1, j)] if (stage + 1) % depth else []
    return [("F", stage, j), *later]


def _idle(spans: Sequence[Sequence[tuple[float, float, Action]]], end: float) -> list[tuple[int, int, float]]:
    found = []
    for w, own in enumerate(spans):
        for stage in sorted({int(a.on) for _, _, a in own}):
            done = max(stop for _, stop, a in own if a.on == stage)
            busy = sum(stop - start for start, stop, _ in own if start >= done)
            found.append((w, stage, end - done - busy))
    return found


def _peak(own: Sequence[tuple[float, float, Action]]) -> tuple[int, int]:
    held: dict[int, int] = {}
    most = single = 0
    for _, _, action in own:
        stage = int(action.on)
        held[stage] = held.get(stage, 0) + (action.span if action.kind == "F" else -action.span)
        most, single = max(most, sum(held.values())), max(single, held[stage])
    return most, single
