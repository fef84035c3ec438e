"""Steps of many conversions at once are those of each alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.lower.convert import Axes, Step, steps
from meshwright.lower.many_steps import many_steps, where_of

NAMES = ("y", "x", "z")
ATOMS = 3


def layout(where: tuple[int, ...]) -> Axes:
    return tuple(tuple(x for x, a in zip(NAMES, where) if a == atom) for atom in range(ATOMS))


wheres = st.tuples(*[st.integers(-1, ATOMS - 1)] * len(NAMES))
subsets = st.frozensets(st.sampled_from(NAMES))
pairs = st.lists(st.tuples(wheres, wheres, subsets, subsets), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(pairs)
def test_they_are_the_steps_of_each(
    cases: list[tuple[tuple[int, ...], tuple[int, ...], frozenset[str], frozenset[str]]],
) -> None:
    src, dst = (where_of([layout(case[k]) for case in cases], NAMES) for k in range(2))  # type: ignore[arg-type]
    summed, may_pad = (np.array([[x in case[k] for x in NAMES] for case in cases]) for k in (2, 3))  # type: ignore[operator]
    found: list[list[tuple[object, ...]]] = [[] for _ in cases]
    for r in many_steps(src, dst, summed, may_pad, NAMES):
        for row, before, after in zip(r.rows, r.before, r.after, strict=True):
            found[row].append((r.forward, r.backward, NAMES[r.axis], layout(tuple(before)), layout(tuple(after))))
    for case, ours in zip(cases, found, strict=True):
        assert ours == [told(s) for s in steps(layout(case[0]), (), layout(case[1]), case[2], case[3])]


def told(step: Step) -> tuple[object, ...]:
    return step.forward, step.backward, step.axis, step.before, step.after
