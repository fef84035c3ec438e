"""V-Half and V-Min (Qi et al. 2024, arXiv 2405.15362, section 4): half and a third of the memory of 1F1B.

Rank r holds stages r and 2p − 1 − r. One building block of six slots, F and I of the two stages at fixed offsets and their W
in the slots that stay free, is repeated every six slots for each micro-batch. Squeezing then lets a rank run ahead: where the
next action of the pattern has to wait, it takes a forward of its first stage, else any backward or forward that is
ready, else a W, never with more held than the pattern holds. The shorter of the two tables is the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..model import Action, ActionKind

PERIOD = 6
"""Slots of the building block: F, I and W of two stages."""
Table = tuple[tuple[Action, ...], ...]


def building_blocks(p: int, m: int, *, half: bool) -> Table:
    """Actions of all ranks of v-half or v-min."""
    pattern = tuple(_pattern(p, m, r, half=half) for r in range(p))
    squeezed = _Squeeze(p, m, pattern).run()
    if squeezed is None or _slots(p, squeezed) >= _slots(p, pattern):
        return pattern
    return squeezed


def _pattern(p: int, m: int, r: int, *, half: bool) -> tuple[Action, ...]:
    if half:
        d = 0 if p % 2 else 3
        starts = (2 * r, 3 * p - r - 2, 3 * p + d + 2 * r - 1, 6 * p + d - r - 2)
    else:
        d = 0 if p % 3 else 2
        starts = (r, 2 * p - r - 1, 2 * p + d + r, 4 * p + d - r - 1)
    near, far = r, 2 * p - 1 - r
    kinds: tuple[ActionKind, ...] = ("F", "F", "I", "I")
    slots = list(zip(kinds, (near, far, far, near), starts))
    taken = {slot % PERIOD for slot in starts}
    for stage, start in ((far, starts[2]), (near, starts[3])):
        slot = next(t for t in range(start + 1, start + PERIOD + 1) if t % PERIOD not in taken)
        taken.add(slot % PERIOD)
        slots.append(("W", stage, slot))
    order = sorted((slot + PERIOD * j, i, j) for i, (_, _, slot) in enumerate(slots) for j in range(m))
    return tuple(Action(slots[i][0], slots[i][1], j) for _, i, j in order)


def _needs(p: int, action: Action) -> list[tuple[str, int, int]]:
    stage, j = int(action.on), action.micro_batch
    if action.kind == "F":
        return [("F", stage - 1, j)] if stage else []
    if action.kind == "W":
        return [("I", stage, j)]
    return [("F", stage, j)] + ([("I", stage + 1, j)] if stage < 2 * p - 1 else [])


def _slots(p: int, table: Sequence[Sequence[Action]]) -> int:
    """Slots until the last rank is done, each action taking one."""
    end: dict[tuple[str, int, int], int] = {}
    at, free = [0] * p, [0] * p
    moved = True
    while moved:
        moved = False
        for r, row in enumerate(table):
            while at[r] < len(row) and all(key in end for key in _needs(p, row[at[r]])):
                action = row[at[r]]
                free[r] = max([free[r], *(end[key] for key in _needs(p, action))]) + 1
                end[action.kind, int(action.on), action.micro_batch] = free[r]
                at[r] += 1
                moved = True
    return max(free)


class _Squeeze:
    """Slot by slot, every rank takes what it may."""

    def __init__(self, p: int, m: int, pattern: Table) -> None:
        self.p, self.total = p, PERIOD * m
        self.left = [[a for a in row if a.kind != "W"] for row in pattern]
        self.rows: list[list[Action]] = [[] for _ in range(p)]
        self.waiting: list[list[Action]] = [[] for _ in range(p)]
        self.done: set[tuple[str, int, int]] = set()
        self.held, self.lead = [0] * p, [0] * p
        self.most = [_most(row) for row in pattern]
        self.ahead = [_lead(row, r) + 1 for r, row in enumerate(pattern)]

    def run(self) -> Table | None:
        """The table, or None where ranks wait for each other."""
        while any(len(row) < self.total for row in self.rows):
            chosen = [self._choose(r) for r in range(self.p)]
            if not any(chosen):
                return None
            for r, action in enumerate(chosen):
                if action is not None:
                    self._take(r, action)
        return tuple(tuple(row) for row in self.rows)

    def _choose(self, r: int) -> Action | None:
        first: dict[tuple[str, bool], Action] = {}
        for action in self.left[r]:
            first.setdefault((action.kind, action.on == r), action)
        ready = {key: a for key, a in first.items() if self._may(r, a)}
        following = self.left[r][0] if self.left[r] else None
        if following is not None and following in ready.values():
            return following
        for key in (("F", True), ("I", True), ("I", False), ("F", False)):
            if key in ready:
                return ready[key]
        return self.waiting[r][0] if self.waiting[r] else None

    def _may(self, r: int, action: Action) -> bool:
        if action.kind == "F" and self.held[r] >= self.most[r]:
            return False
        if action.kind == "F" and action.on == r and self.lead[r] >= self.ahead[r]:
            return False
        return all(key in self.done for key in _needs(self.p, action))

    def _take(self, r: int, action: Action) -> None:
        self.rows[r].append(action)
        self.done.add((action.kind, int(action.on), action.micro_batch))
        if action.kind == "W":
            self.waiting[r].pop(0)
            self.held[r] -= 1
            return
        self.left[r].remove(action)
        if action.kind == "I":
            self.waiting[r].append(Action("W", action.on, action.micro_batch))
        else:
            self.held[r] += 1
            self.lead[r] += 1 if action.on == r else -1


def _most(row: Sequence[Action]) -> int:
    """Micro-batches held at the peak, from F to W, in all stages of a rank."""
    held = most = 0
    for action in row:
        held += {"F": 1, "W": -1}.get(action.kind, 0)
        most = max(most, held)
    return most


def _lead(row: Sequence[Action], near: int) -> int:
    """How many forwards the first stage of a rank is ahead of the second at most."""
    lead = most = 0
    for action in row:
        if action.kind == "F":
            lead += 1 if action.on == near else -1
            most = max(most, lead)
    return most
