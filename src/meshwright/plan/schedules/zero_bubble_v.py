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
