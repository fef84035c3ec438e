"""DualPipe and DualPipeV (DeepSeek-V3 2024, arXiv 2412.19437, section 3.2.1; order as in deepseek-ai/DualPipe).

Two streams of micro-batches meet on every rank; one's forward runs jointly with the other's backward.

    dualpipe    two pipes: rank r holds stage r of pipe 0 (stage r here) and stage p − 1 − r of pipe 1 (stage 2p − 1 − r)
    dualpipev   one pipe of 2p stages in a V: rank r holds stages r and 2p − 1 − r

Of the two stages of a rank "near" is the one whose early half is here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ..model import Action

Entry = Action | tuple[Action, Action]


@dataclass(slots=True)
class _Rank:
    """The list of one rank: counters of the micro-batches of its two stages, and the queue of postponed W."""

    near: int
    far: int
    near_from: int
    far_from: int
    entries: list[Entry] = field(default_factory=list)
    forwards: list[int] = field(default_factory=lambda: [0, 0])
    backwards: list[int] = field(default_factory=lambda: [0, 0])
    waiting: deque[Action] = field(default_factory=deque)

    def _forward(self, side: int) -> Action:
        j = self.forwards[side]
        self.forwards[side] += 1
        return Action("F", (self.near, self.far)[side], (self.near_from, self.far_from)[side] + j)

    def _backward(self, side: int, split: bool) -> Action:
        j = self.backwards[side]
        self.backwards[side] += 1
        stage, at = (self.near, self.far)[side], (self.near_from, self.far_from)[side] + j
        if split:
            self.waiting.append(Action("W", stage, at))
        return Action("I" if split else "B", stage, at)

    def forward(self, side: int) -> None:
        self.entries.append(self._forward(side))

    def backward(self, side: int, *, split: bool = False) -> None:
        self.entries.append(self._backward(side, split))

    def weight(self) -> None:
        self.entries.append(self.waiting.popleft())

    def jointly(self, side: int, *, paired: bool = True) -> None:
        """Forward of one side with the backward of the other."""
        both = (self._forward(side), self._backward(1 - side, False))
        if paired:
            self.entries.append(both)
        else:
            self.entries += both


def dualpipe(p: int, m: int, r: int) -> tuple[Entry, ...]:
    """Actions of rank r; pipe 0 runs micro-batches 0 … m/2 − 1, pipe 1 the others."""
    half = p // 2
    mine, other = (r, 0), (2 * p - 1 - r, m // 2)
    near, far = (mine, other) if r < half else (other, mine)
    rank = _Rank(near[0], far[0], near[1], far[1])
    return _fill(rank, half, min(r, p - 1 - r), m // 2 - p, middle=r in (half - 1, half))


def dualpipev(p: int, m: int, r: int) -> tuple[Entry, ...]:
    """Actions of rank r."""
    return _fill(_Rank(r, 2 * p - 1 - r, 0, 0), p, r, m - 2 * p, middle=r == p - 1)


def _fill(rank: _Rank, h: int, q: int, rest: int, *, middle: bool) -> tuple[Entry, ...]:
    """The eight steps; `rest` + q + 1 pairs of pairs in step 4."""
    for _ in range(2 * (h - q - 1)):
        rank.forward(0)
    for _ in range(q + 1):
        rank.forward(0)
        rank.forward(1)
    for _ in range(h - q - 1):
        rank.backward(1, split=True)
        rank.weight()
        rank.forward(1)
    for k in range(rest + q + 1):
        rank.jointly(0, paired=not (middle and k == 0))
        rank.jointly(1)
    for _ in range(h - q - 1):
        rank.backward(1)
        rank.jointly(1)
    switch = (q + 1) // 2
    for k in range(q + 1):
        rank.backward(1, split=k > switch or (k == switch and q % 2 == 1))
        rank.backward(0, split=k >= switch)
    for _ in range(h - q - 1):
        rank.weight()
        rank.backward(0, split=True)
    for _ in range(q + 1):
        rank.weight()
    return tuple(rank.entries)
