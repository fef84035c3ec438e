"""Memory over a step against a count action by action."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.plan.model import Schedule
from meshwright.simulate.memory import curve, deltas, peaks
from meshwright.simulate.pipeline import orders
from meshwright.simulate.result import CATEGORIES


@st.composite
def cases(draw):
    name = draw(st.sampled_from(["gpipe", "1f1b", "interleaved", "bfs", "zb-h1"]))
    p, v = draw(st.integers(1, 4)), draw(st.integers(1, 3)) if name in ("interleaved", "bfs") else 1
    m = p * draw(st.integers(1, 3))
    number = st.integers(0, 50)
    kept = np.array(draw(st.lists(number, min_size=2 * p * v, max_size=2 * p * v)), float).reshape(p * v, 2)
    buffers = np.array(draw(st.lists(number, min_size=2 * p * v, max_size=2 * p * v)), float).reshape(p * v, 2)
    return orders(Schedule(name, m, {"v": v} if v > 1 else {}), p * v), kept, buffers


@given(cases())
@settings(max_examples=80, deadline=None)
def test_peaks_are_those_of_a_walk_through_each_rank(case):
    order, kept, buffers = case
    truth = []
    for r in range(order.ranks):
        held, most = 0.0, 0.0
        here = [k for k in range(len(order.kind)) if order.rank_of_action[k] == r]
        split = any(order.kind[k] == 3 for k in here)
        for k in here:
            kind, stage = order.kind[k], order.stage[k]
            held += kept[stage].sum() if kind == 0 else 0.0
            most = max(most, held + (buffers[stage, 0] if kind == 0 else buffers[stage, 1] if kind in (1, 2) else 0.0))
            held -= kept[stage].sum() if kind == 3 or (kind == 1 and not split) else 0.0
        assert held == 0
        truth.append(most)
    assert peaks(order, kept.sum(axis=1), buffers).tolist() == pytest.approx(truth)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_the_curve_peaks_at_the_peak_and_ends_with_what_rests(case):
    order, kept, buffers = case
    start = np.zeros(len(order.task_rank))
    for r in range(order.ranks):
        here = order.task_rank == r
        start[here] = np.arange(here.sum())
    rest = np.array([5.0, 4, 3, 0, 0, 1])
    found = peaks(order, kept.sum(axis=1), buffers)
    for r in range(order.ranks):
        times, table = curve(order, r, start, start + 1, deltas(order, kept, buffers), rest)
        assert table.shape == (len(times), len(CATEGORIES))
        assert (np.diff(times) >= 0).all()
        assert table.sum(axis=1).max() == pytest.approx(13 + found[r])
        assert table[-1].tolist() == pytest.approx(rest.tolist())
        assert (table[:, :3] == rest[:3]).all()
