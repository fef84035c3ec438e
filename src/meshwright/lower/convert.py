"""The rule that makes every collective: from one layout of a value to another, and back for its gradient.

Invariant: the gradient of a value has the value's layout and is complete, except over its deferred axes. `summed` (G) are
the axes over which the gradient of the CONVERTED value is a partial sum.

    forward                             backward
    replicated -> replicated            all-reduce if the axis is in G, else nothing
    partial    -> replicated            nothing
    partial    -> cut  (reduce-scatter) all-gather
    cut        -> replicated            reduce-scatter if in G, else slice
    replicated -> cut  (slice)          all-gather; zero-pad if the gradient may stay a partial sum
    cut        -> cut on another dim    all-to-all both ways
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from .parts import MARK, axis_of, largest_part

Axes: TypeAlias = tuple[tuple[str, ...], ...]
"""Layout at atom grain: per atom the mesh axes that cut it, major first, as `parts` writes them."""
Do = Literal["identity", "slice", "pad", "all_reduce", "all_gather", "reduce_scatter", "all_to_all"]


@dataclass(frozen=True, slots=True)
class Step:
    """One forward action along one axis and its dual. The layout after it is `after`."""

    forward: Do
    backward: Do
    axis: str
    atom: int
    """The atom gathered, scattered or sliced; -1 for sums."""
    atom2: int
    """all_to_all: the atom that becomes cut."""
    before: Axes
    before_partial: tuple[str, ...]
    after: Axes
    partial: tuple[str, ...]
    """Axes still unsummed after this step."""


def axes_of(layout: Axes) -> frozenset[str]:
    found = [a for atom in layout for a in atom]
    return frozenset(found if MARK not in "".join(found) else map(axis_of, found))


def local_size(size: int, axes: tuple[str, ...], mesh: Mapping[str, int]) -> int:
    """The largest part of an atom of `size` cut over `axes`, major first, by blocks of ceil(size / n), or by weights."""
    for a in axes:
        size = -(-size // mesh[a]) if MARK not in a else largest_part(size, a, mesh)
    return size


@lru_cache(maxsize=4096)
def steps(
    src: Axes, partial: tuple[str, ...], dst: Axes, summed: frozenset[str], may_pad: frozenset[str]
) -> tuple[Step, ...]:
    """Steps from `src` (unsummed over `partial`) to `dst`. `may_pad`: axes on which the gradient may stay a partial sum."""
    found: list[Step] = []
    now = [list(a) for a in src]
    left = list(partial)

    def frozen() -> Axes:
        return tuple(tuple(a) for a in now)

    def step(
        forward: Do, backward: Do, axis: str, atom: int, atom2: int, before: Axes, before_partial: list[str]
    ) -> None:
        found.append(Step(forward, backward, axis, atom, atom2, before, tuple(before_partial), frozen(), tuple(left)))

    for i, want in enumerate(dst):  # partial -> cut
        for j, cut in enumerate(want):
            axis = axis_of(cut)
            if axis in left and now[i] == list(want[:j]):
                before, was = frozen(), list(left)
                now[i].append(cut)
                left.remove(axis)
                step("reduce_scatter", "all_gather", axis, i, -1, before, was)
    for axis in list(left):  # partial -> replicated
        before, was = frozen(), list(left)
        left.remove(axis)
        step("all_reduce", "all_reduce" if axis in summed else "identity", axis, -1, -1, before, was)
    for i, want in enumerate(dst):  # remove what is not wanted, minor axis first
        keep = 0
        while keep < min(len(now[i]), len(want)) and now[i][keep] == want[keep]:
            keep += 1
        while len(now[i]) > keep:
            cut, before = now[i][-1], frozen()
            axis = axis_of(cut)
            goal = [
                (j, x) for j, w in enumerate(dst) if j != i
                for k, x in enumerate(w) if axis_of(x) == axis and now[j] == list(w[:k])
            ]  # fmt: skip
            now[i].pop()
            if goal:
                j, into = goal[0]
                now[j].append(into)
                step("all_to_all", "all_to_all", axis, i, j, before, left)
            else:
                back: Do = "reduce_scatter" if axis in summed and axis not in axes_of(dst) else "slice"
                step("all_gather", back, axis, i, -1, before, left)
    for i, want in enumerate(dst):  # replicated -> cut
        for cut in want[len(now[i]) :]:
            axis, before = axis_of(cut), frozen()
            now[i].append(cut)
            step("slice", "pad" if axis in may_pad else "all_gather", axis, i, -1, before, left)
    held = axes_of(src) | set(partial)
    for axis in sorted(summed - held - axes_of(dst)):  # copies whose gradients are parts of a sum
        step("identity", "all_reduce", axis, -1, -1, frozen(), left)
    return tuple(found)
