"""A readable evaluator of tables with joint pairs, several pipes and spans, written from the rules of schedules alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from meshwright.plan.model import Action, Row

TIMES = {"F": 1, "B": 2, "I": 1, "W": 1}


@dataclass(frozen=True)
class Played:
    makespan: Fraction
    fraction: Fraction
    """Idle share of all ranks up to the last finish."""
    span: Fraction
    """Longest time from a rank's first start to its last end."""
    memory: tuple[Fraction, ...]
    """Per rank, in micro-batches through all of the rank's stages of one pipe; held from F to B or W."""


def members(entry: Action | tuple[Action, Action]) -> tuple[Action, ...]:
    return entry if isinstance(entry, tuple) else (entry,)


def keys(action: Action) -> Iterator[tuple[str, int, int]]:
    if action.kind in TIMES:
        for j in range(action.micro_batch, action.micro_batch + action.span):
            yield "B" if action.kind == "I" else action.kind, int(action.on), j


def play(
    rows: Sequence[Row],
    links: Sequence[tuple[int, int]],
    v: int = 1,
    times: dict[str, int] | None = None,
    send: Fraction = Fraction(0),
) -> Played:
    """start = max(rank free, inputs there); a stage takes 1/v of the rank's time; a pair starts when both inputs are there.

    send: time of a message between two ranks, both of which work on meanwhile.
    """
    times = times or TIMES
    before, after = {b: a for a, b in links}, dict(links)
    end: dict[tuple[str, int, int], Fraction] = {}
    free, busy, at = [Fraction(0)] * len(rows), [Fraction(0)] * len(rows), [0] * len(rows)
    first: dict[int, Fraction] = {}
    maker: dict[tuple[str, int, int], int] = {}

    def needs(kind: str, stage: int, j: int) -> Iterator[tuple[str, int, int]]:
        if kind == "F" and stage in before:
            yield "F", before[stage], j
        if kind == "B":
            yield "F", stage, j
            if stage in after:
                yield "B", after[stage], j
        if kind == "W":
            yield "B", stage, j

    while any(at[r] < len(row.actions) for r, row in enumerate(rows)):
        stood = list(at)
        for r, row in enumerate(rows):
            while at[r] < len(row.actions):
                entry = members(row.actions[at[r]])
                own = [key for action in entry for key in keys(action)]
                inputs = [need for key in own for need in needs(*key) if need not in own]
                if not all(key in end for key in inputs):
                    break
                start = max([free[r], *(end[key] + (send if maker[key] != r else 0) for key in inputs)])
                length = sum((Fraction(times.get(a.kind, 0) * a.span, v) for a in entry), Fraction(0))
                first.setdefault(r, start)
                free[r] = start + length
                busy[r] += length
                for key in own:
                    assert key not in end, f"{key} runs twice"
                    end[key], maker[key] = free[r], r
                at[r] += 1
        assert at != stood, f"the table stops at {at}"
    makespan = max(free)
    return Played(
        makespan,
        1 - sum(busy) / (len(rows) * makespan),
        max(free[r] - first[r] for r in first),
        tuple(peak(row, v) for row in rows),
    )


def peak(row: Row, v: int) -> Fraction:
    held = most = 0
    for entry in row.actions:
        for action in members(entry):
            held += {"F": 1, "B": -1, "W": -1}.get(action.kind, 0) * action.span
            most = max(most, held)
    return Fraction(most, v)
