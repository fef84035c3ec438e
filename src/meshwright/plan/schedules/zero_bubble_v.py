"""Schedules on a V of 2p stages: rank r holds stages r and 2p − 1 − r, so memory is level over the ranks.

zb-v              zero bubble with the memory of 1F1B (Qi et al. 2023, arXiv 2401.10241, section 6)
v-half, v-min     half and a third of that memory (Qi et al. 2024, arXiv 2405.15362, section 4)
"""

from __future__ import annotations

from ..model import Action


def zb_v(p: int, m: int, r: int) -> tuple[Action, ...]:
    """Actions of rank r."""
    n = max(m, 2 * p - 1)  # the order is defined from 2p − 1 micro-batches on; what does not exist is dropped
    stage = (r, 2 * p - 1 - r)
    done = {(kind, c): 0 for kind in "FIW" for c in (0, 1)}
    actions: list[Action] = []

    def run(kind: str, chunk: int) -> None:
        j = done[kind, chunk]
        if j < n:
            done[kind, chunk] += 1
            if j < m:
                actions.append(Action(kind, stage[chunk], j))  # type: ignore[arg-type]

    def several(count: int, *what: tuple[str, int]) -> None:
        for _ in range(count):
            for kind, chunk in what:
                run(kind, chunk)

    several(2 * (p - r) - 1, ("F", 0))
    several(r, ("F", 1), ("F", 0))
    several(p - r, ("F", 1), ("I", 1), ("W", 1))
    while done["F", 0] < n or done["F", 1] < n:
        several(1, ("F", 0), ("I", 0), ("W", 0), ("F", 1), ("I", 1), ("W", 1))
    several(r, ("I", 0), ("I", 1))
    several(p - r, ("I", 0), ("W", 0))
    several(n, ("W", 1))
    several(n, ("W", 0))
    return tuple(actions)


PERIOD = 6
"""Slots of the building block: F, I and W of two chunks."""


def building_blocks(p: int, m: int, *, half: bool) -> tuple[tuple[Action, ...], ...]:
    """Actions of all ranks of v-half or v-min."""
    return tuple(_building_block(p, m, r, half=half) for r in range(p))


def _building_block(p: int, m: int, r: int, *, half: bool) -> tuple[Action, ...]:
    """Actions of rank r of v-half or v-min: one block a micro-batch, six slots apart, in the order of the slots."""
    if half:
        d = 0 if p % 2 else 3
        starts = (2 * r, 3 * p - r - 2, 3 * p + d + 2 * r - 1, 6 * p + d - r - 2)
    else:
        d = 0 if p % 3 else 2
        starts = (r, 2 * p - r - 1, 2 * p + d + r, 4 * p + d - r - 1)
    near, far = r, 2 * p - 1 - r
    slots = list(zip("FFII", (near, far, far, near), starts))
    taken = {slot % PERIOD for slot in starts}
    for stage, start in ((far, starts[2]), (near, starts[3])):
        slot = next(t for t in range(start + 1, start + PERIOD + 1) if t % PERIOD not in taken)
        taken.add(slot % PERIOD)
        slots.append(("W", stage, slot))
    order = sorted((slot + PERIOD * j, kind, stage, j) for kind, stage, slot in slots for j in range(m))
    return tuple(Action(kind, stage, j) for _, kind, stage, j in order)  # type: ignore[arg-type]
