"""A readable evaluator of schedules, written from their rules alone; the product's simulator is not used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from meshwright.plan.model import Action, Row


@dataclass(frozen=True)
class Outcome:
    makespan: Fraction
    fraction: Fraction
    """Idle share of all ranks up to the last finish."""
    memory: tuple[Fraction, ...]
    """Per rank, in micro-batches through all of the rank's layers."""


def evaluate(rows: Sequence[Row], v: int = 1, times: dict[str, int] | None = None) -> Outcome:
    """Runs the table: start = max(rank free, inputs there); a chunk takes 1/v of the rank's time."""
    times = times or {"F": 1, "B": 2, "I": 1, "W": 1}
    last = max(int(action.on) for row in rows for action in row.actions)
    end: dict[tuple[str, int, int], Fraction] = {}
    free = [Fraction(0)] * len(rows)
    busy = [Fraction(0)] * len(rows)
    at = [0] * len(rows)
    while any(at[r] < len(row.actions) for r, row in enumerate(rows)):
        before = list(at)
        for r, row in enumerate(rows):
            while at[r] < len(row.actions):
                action = row.actions[at[r]]
                inputs = needed(action, last)
                if not all(key in end for key in inputs):
                    break
                start = max([free[r], *(end[key] for key in inputs)])
                length = Fraction(times[action.kind], v)
                free[r] = start + length
                busy[r] += length
                key = (kind_of(action), int(action.on), action.micro_batch)
                assert key not in end, f"{key} runs twice"
                end[key] = free[r]
                at[r] += 1
        assert at != before, f"the table stops at {at}"
    makespan = max(free)
    return Outcome(makespan, 1 - sum(busy) / (len(rows) * makespan), tuple(peak(row, v) for row in rows))


def kind_of(action: Action) -> str:
    return "B" if action.kind == "I" else action.kind


def needed(action: Action, last: int) -> list[tuple[str, int, int]]:
    stage, j = int(action.on), action.micro_batch
    if action.kind == "F":
        return [("F", stage - 1, j)] if stage else []
    if action.kind == "W":
        return [("B", stage, j)]
    return [("F", stage, j)] + ([("B", stage + 1, j)] if stage < last else [])


def peak(row: Row, v: int) -> Fraction:
    """Kept from F to B, or to W where the backward is split."""
    held = most = 0
    for action in row.actions:
        held += {"F": 1, "B": -1, "W": -1, "I": 0}[action.kind]
        most = max(most, held)
    return Fraction(most, v)
