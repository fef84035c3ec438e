"""Chimera (Li and Hoefler 2021, arXiv 2107.06925, section 3): 2f pipes in both directions fill each other's bubbles.

    f = 1, D = 4      worker 0   d0 .  d1 ↑0 …       down pipe (0): stage s on worker s
                      worker 3   u0 .  u1 ↓0 …       up pipe (1): stage s on worker D − 1 − s

Stage s of pipe i is stage i·D + s of the table; pipes 2k and 2k + 1 are the down and the up pipe number k, which begin on
worker k·D/f and end there. One unit is at most D micro-batches, the j-th of a pipe forward in slot s + 2j and backward in
slot 2D − 1 − s + 2j: no two collide. More micro-batches are put together by a `form`:

    direct      unit after unit, the next one's forwards fill the tail of the last
    doubling    two forwards against one backward of twice their length, in units of 2D
    halving     as doubling, but forwards run two micro-batches at once

REDUCE, the sum of a stage's gradients over its copies, begins as soon as idle time can hide it, else at the end.
"""

from __future__ import annotations

from ..model import Action, Row
from .clock import timed


def worker(depth: int, f: int, pipe: int, s: int) -> int:
    """The worker that holds stage s of a pipe."""
    k, up = divmod(pipe, 2)
    return ((depth - 1 - s if up else s) + k * depth // f) % depth


def held(depth: int, f: int, w: int) -> tuple[tuple[int, int], ...]:
    """(pipe, stage) pairs of a worker, one a pipe."""
    return tuple((i, s) for i in range(2 * f) for s in range(depth) if worker(depth, f, i, s) == w)


def shares(m: int, pipes: int) -> tuple[int, ...]:
    """Micro-batches of each pipe in a unit of m, as even as possible."""
    return tuple(m // pipes + (i < m % pipes) for i in range(pipes))


def chimera(depth: int, m: int, f: int, form: str) -> tuple[tuple[Action, ...], ...]:
    """Actions of all workers: m <= D as one unit, else k·D (doubling and halving: 2k·D) and f = 1."""
    if m <= depth:
        rows = [_unit(depth, m, w, f) for w in range(depth)]
    elif form == "direct":
        rows = [_direct(depth, m, w) for w in range(depth)]
    else:
        rows = [_doubled(depth, m, w, halve=form == "halving") for w in range(depth)]
    # The forms are made for a backward as long as a forward, doubling and halving for one twice as long.
    return _with_sums(rows, depth, f, 1.0 if m <= depth or form == "direct" else 2.0)


def _with_sums(rows: list[list[Action]], depth: int, f: int, backward: float) -> tuple[tuple[Action, ...], ...]:
    """REDUCE of each stage (section 3.2): begun when its last backward is done if the worker waits before its end, else last
    of all, since it would only disturb what is computed beside it."""
    pairs = [(i * depth + s, i * depth + s + 1) for i in range(2 * f) for s in range(depth - 1)]
    bars = timed([Row((w,), tuple(row)) for w, row in enumerate(rows)], pairs, lengths={"F": 1.0, "B": backward})
    found = []
    for w, row in enumerate(rows):
        sums: dict[int, list[Action]] = {}
        for i, s in held(depth, f, w):
            stage = i * depth + s
            last = max((k for k, a in enumerate(row) if a.kind == "B" and a.on == stage), default=-1)
            ends = (0.0, *(bar.end for bar in bars[w]))
            waits = any(bars[w][k].start > ends[k] for k in range(last + 1, len(row)))
            sums.setdefault(last + 1 if waits else len(row), []).append(Action("REDUCE", stage))
        found.append(tuple(a for k in range(len(row) + 1) for a in (*sums.get(k, ()), *row[k : k + 1])))
    return tuple(found)


def _unit(depth: int, m: int, w: int, f: int) -> list[Action]:
    own = shares(m, 2 * f)
    first = [sum(own[:i]) for i in range(2 * f)]
    slots: list[tuple[int, Action]] = []
    for i, s in held(depth, f, w):
        for j in range(own[i]):
            slots.append((s + 2 * j, Action("F", i * depth + s, first[i] + j)))
            slots.append((2 * depth - 1 - s + 2 * j, Action("B", i * depth + s, first[i] + j)))
    return [action for _, action in sorted(slots, key=lambda pair: pair[0])]


class _Two:
    """The list of a worker of the two-pipe forms; x is the pipe whose early half is here, y the other."""

    def __init__(self, depth: int, w: int, unit: int) -> None:
        down = w < depth // 2
        stage = (w, 2 * depth - 1 - w)
        self.x, self.y = stage if down else (stage[1], stage[0])
        self.a = depth // 2 - (w if down else depth - 1 - w)
        self.b = depth // 2 - self.a
        self.actions: list[Action] = []
        self.depth, self.unit = depth, unit
        self.count = {("F", self.x): 0, ("F", self.y): 0, ("B", self.x): 0, ("B", self.y): 0}

    def run(self, kind: str, stage: int, span: int = 1) -> None:
        k = self.count[kind, stage]
        self.count[kind, stage] += span
        # Each unit gives its first half of micro-batches to the down pipe.
        per = self.unit // 2
        j = k // per * self.unit + (stage // self.depth) * per + k % per
        self.actions.append(Action(kind, stage, j, span))  # type: ignore[arg-type]


def _direct(depth: int, m: int, w: int) -> list[Action]:
    two = _Two(depth, w, depth)
    for t in range(m // depth):
        for _ in range(two.a):
            if t:
                two.run("B", two.x)
            two.run("F", two.x)
        for _ in range(two.b):
            two.run("F", two.y)
            two.run("F", two.x)
        for _ in range(two.a):
            two.run("F", two.y)
            two.run("B", two.y)
        for _ in range(two.b):
            two.run("B", two.x)
            two.run("B", two.y)
    for _ in range(two.a):
        two.run("B", two.x)
    return two.actions


def _doubled(depth: int, m: int, w: int, *, halve: bool) -> list[Action]:
    two = _Two(depth, w, 2 * depth)

    def forwards(stage: int) -> None:
        for _ in range(1 if halve else 2):
            two.run("F", stage, 2 if halve else 1)

    for t in range(m // (2 * depth)):
        for _ in range(two.a):
            if t:
                two.run("B", two.x)
            forwards(two.x)
        for _ in range(two.b):
            forwards(two.y)
            forwards(two.x)
        for _ in range(two.a):
            forwards(two.y)
            two.run("B", two.y)
        for _ in range(two.b + depth // 2):
            two.run("B", two.x)
            two.run("B", two.y)
    for _ in range(two.a):
        two.run("B", two.x)
    return two.actions
