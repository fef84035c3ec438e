"""When each action of a table runs, if actions have given lengths and messages take no time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import InputError
from ..model import Action, Row
from .check import UNIT, Key, Table, keys_of, members


@dataclass(frozen=True, slots=True)
class Timed:
    """One entry of a row; a pair runs jointly, from `start` to `end`."""

    entry: Action | tuple[Action, Action]
    start: float
    end: float


def timed(
    rows: Sequence[Row],
    links: Sequence[tuple[int, int]] | None = None,
    *,
    lengths: Mapping[str, float] = UNIT,
    chunks: int = 1,
    stretch: Mapping[int, float] | None = None,
) -> tuple[tuple[Timed, ...], ...]:
    """Each row in order; an entry begins when its rank is free and what it needs is there.

    Args:
        links: pairs of stages (from, to) between which forward values go; None = each stage to the next.
        lengths: time of a whole rank's layers by kind of action; what is not named takes none.
        chunks: stages a rank: an action takes that part of the time.
        stretch: stage -> how many times as long its actions are; 1 where it is not named.

    Raises:
        InputError: ranks that wait for each other.
    """
    table = Table(rows, links)
    done: dict[Key, float] = {}
    found: list[list[Timed]] = [[] for _ in rows]
    moved = True
    while moved:
        moved = False
        for row, own in zip(rows, found, strict=True):
            while len(own) < len(row.actions):
                entry = row.actions[len(own)]
                needs = list(table.needs(entry))
                if any(key not in done for key in needs):
                    break
                start = max([own[-1].end if own else 0.0, *(done[key] for key in needs)])
                end = start + sum(_length(a, lengths, stretch or {}) for a in members(entry)) / chunks
                done.update(dict.fromkeys(keys_of(entry), end))
                own.append(Timed(entry, start, end))
                moved = True
    if any(len(own) < len(row.actions) for row, own in zip(rows, found, strict=True)):
        raise InputError("no order of actions can run this table: ranks wait for each other")
    return tuple(map(tuple, found))


def _length(action: Action, lengths: Mapping[str, float], stretch: Mapping[int, float]) -> float:
    return lengths.get(action.kind, 0.0) * action.span * stretch.get(int(action.on), 1.0)


def held(row: Row, chunks: int = 1) -> float:
    """Most micro-batches that a rank holds, in its layers of one copy of the model: from F to B, or to W."""
    now = most = 0
    for action in (a for entry in row.actions for a in members(entry)):
        now += {"F": 1, "B": -1, "W": -1}.get(action.kind, 0) * action.span
        most = max(most, now)
    return most / chunks
