"""The automatic zero-bubble scheduler (Qi et al. 2023, arXiv 2401.10241, section 3.1): rows for given times and memory.

Eight variants of one greedy are tried and that of the smallest longest span of a rank is kept:

    F of the first micro-batch everywhere; then, from the last rank, as many more as fit before its first I arrives
    rounds i = 1 … m − 1: one F a rank, then one I from the last rank to the first; a W goes where memory lacks, where the
    wait for the input is as long as it, or where a shorter wait would make the rank's bubble the largest
    what is left of W at the end

A micro-batch is held from its F to its W.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from ..model import Action


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one action on any rank, and of a transfer."""

    forward: float = 1.0
    input_grad: float = 1.0
    weight_grad: float = 1.0
    send: float = 0.0


def zb_auto(p: int, m: int, limit: int, times: Times = Times()) -> tuple[tuple[Action, ...], ...]:
    """Actions of all ranks, none of which holds more than `limit` >= 1 micro-batches."""
    best: _Greedy | None = None
    for early, hold, fill in product((False, True), repeat=3):
        greedy = _Greedy(p, m, min(limit, m), times)
        greedy.run(early=early, hold=hold, fill=fill)
        if best is None or greedy.longest_span() < best.longest_span() - 1e-9:
            best = greedy
    return tuple(tuple(row) for row in best.rows) if best is not None else ()


class _Greedy:
    """One variant on its clock."""

    def __init__(self, p: int, m: int, limit: int, times: Times) -> None:
        self.p, self.m, self.limit, self.times = p, m, limit, times
        self.length = {"F": times.forward, "I": times.input_grad, "W": times.weight_grad}
        self.rows: list[list[Action]] = [[] for _ in range(p)]
        self.count = [{"F": 0, "I": 0, "W": 0} for _ in range(p)]
        self.free = [0.0] * p
        self.start = [0.0] * p
        self.bubble = [0.0] * p
        self.end: dict[tuple[str, int, int], float] = {}

    def longest_span(self) -> float:
        return max(a - b for a, b in zip(self.free, self.start))

    def run(self, *, early: bool, hold: bool, fill: bool) -> None:
        self._first_round(early)
        for i in range(1, self.m):
            for r in range(self.p):
                if self.count[r]["F"] < self.m and not (hold and self._delays(r, i)):
                    self._forward(r, fill)
            for r in reversed(range(self.p)):
                while self.count[r]["F"] <= i:
                    self._forward(r, fill)
                self._fill_wait(r, self._arrival("I", r), fill)
                if r == 0 and self.count[0]["F"] == self.m:
                    while self.count[0]["W"] < self.count[0]["I"]:
                        self._put("W", 0)
                self._put("I", r)
        for r in range(self.p):
            while self.count[r]["W"] < self.m:
                self._put("W", r)

    def _first_round(self, early: bool) -> None:
        for r in range(self.p):
            self._put("F", r)
        more = [0] * self.p
        arrives = self.free[-1] + self.times.input_grad
        for r in reversed(range(self.p - 1)):
            at = self.free[r]
            while 1 + more[r] < min(self.m, self.limit):
                after = at + self.times.forward
                if (at >= arrives + self.times.send) if early else (after > arrives + self.times.send):
                    break
                at = after
                more[r] += 1
            arrives = max(at, arrives + self.times.send) + self.times.input_grad
        for r in range(self.p):
            # No rank runs ahead of the one that feeds it.
            while r and more[r] and more[r] > max(0, more[r - 1] - 1) and 1 + more[r] < self.m:
                more[r] -= 1
            for _ in range(more[r]):
                self._put("F", r)
        for r in reversed(range(self.p)):
            self._put("I", r)

    def _delays(self, r: int, i: int) -> bool:
        """Would one more forward keep this rank from its i-th I when that arrives? Never where the I needs that forward."""
        if self.count[r]["F"] <= i or r == self.p - 1:
            return False
        arrives = self.end.get(("I", r + 1, i))
        begin = max(self.free[r], self._arrival("F", r))
        soon = self.free[r + 1] + self.times.input_grad + self.times.send if arrives is None else arrives
        return begin + self.times.forward > soon

    def _forward(self, r: int, fill: bool) -> None:
        if r and ("F", r - 1, self.count[r]["F"]) not in self.end:
            self._forward(r - 1, fill)
        while self.count[r]["F"] - self.count[r]["W"] >= self.limit and self.count[r]["W"] < self.count[r]["I"]:
            self._put("W", r)
        if self.count[r]["F"] - self.count[r]["W"] >= self.limit:
            return
        self._fill_wait(r, self._arrival("F", r), fill)
        self._put("F", r)

    def _fill_wait(self, r: int, arrives: float, fill: bool) -> None:
        """W while the wait is as long as one; one more in a shorter wait if the bubble would grow above all others'."""
        w = self.times.weight_grad
        while self.count[r]["W"] < self.count[r]["I"] and self.free[r] + w <= arrives + 1e-12:
            self._put("W", r)
        wait = arrives - self.free[r]
        left = self.count[r]["W"] < self.count[r]["I"]
        if fill and left and wait > 1e-12 and self.bubble[r] + wait > max(self.bubble):
            self._put("W", r)

    def _arrival(self, kind: str, r: int) -> float:
        j = self.count[r][kind]
        if kind == "F":
            return self.end[kind, r - 1, j] + self.times.send if r else 0.0
        return self.end[kind, r + 1, j] + self.times.send if r < self.p - 1 else self.end["F", r, j]

    def _put(self, kind: str, r: int) -> None:
        j = self.count[r][kind]
        begin = self.free[r]
        if kind != "W":
            begin = max(begin, self._arrival(kind, r))
        if j or kind != "F":
            self.bubble[r] += begin - self.free[r]
        else:
            self.start[r] = begin
        self.free[r] = begin + self.length[kind]
        self.end[kind, r, j] = self.free[r]
        self.count[r][kind] += 1
        self.rows[r].append(Action(kind, r, j))  # type: ignore[arg-type]
