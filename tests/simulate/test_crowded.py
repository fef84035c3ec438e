"""Ranks that share cores: who works at a moment gets an equal part of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwright.cluster import resolve
from meshwright.simulate.crowded import share_cores
from meshwright.simulate.engine import FixedOrder, fixed_order, relax


def tasks(duration: list[float], resource: list[int], edges: list[tuple[int, int]], resources: int) -> FixedOrder:
    source, target = (np.array([e[k] for e in edges], np.int32) for k in (0, 1))
    return fixed_order(np.array(duration), np.array(resource, np.int32), source, target, resources=resources)


def test_two_that_work_together_on_one_core_take_twice_as_long() -> None:
    found = share_cores(tasks([1.0, 1.0], [0, 1], [], 2), np.ones(2), 1)
    assert found.duration == pytest.approx([2.0, 2.0])


def test_one_after_the_other_loses_nothing() -> None:
    found = share_cores(tasks([1.0, 3.0], [0, 1], [(0, 1)], 2), np.ones(2), 1)
    assert found.duration == pytest.approx([1.0, 3.0])


def test_the_longer_one_goes_on_alone_at_full_speed() -> None:
    # Together until the short one has done its 1 s, at half speed: 2 s. Then 2 s of work are left.
    found = share_cores(tasks([1.0, 3.0], [0, 1], [], 2), np.ones(2), 1)
    assert found.duration == pytest.approx([2.0, 4.0])


def test_a_lane_of_several_devices_counts_as_many() -> None:
    found = share_cores(tasks([1.0], [0], [], 1), np.array([4.0]), 2)
    assert found.duration == pytest.approx([2.0])


@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 3)), min_size=1, max_size=20),
    st.integers(1, 5),
    st.randoms(),
)
def test_work_is_conserved_and_starts_are_those_of_the_new_durations(
    rows: list[tuple[float, int]], cores: int, draw: object
) -> None:
    rows = sorted(rows, key=lambda r: r[1])
    n = len(rows)
    edges = [(i, j) for i in range(n) for j in range(i + 1, n) if draw.random() < 0.1]  # type: ignore[attr-defined]
    plain = tasks([d for d, _ in rows], [r for _, r in rows], edges, 4)
    shared = share_cores(plain, np.ones(4), cores)
    assert (shared.duration >= plain.duration - 1e-9).all()
    end = float((relax(shared) + shared.duration).max())
    alone = float((relax(plain) + plain.duration).max())
    assert end >= max(alone, float(plain.duration.sum()) / cores) - 1e-6
    assert end <= float(plain.duration.sum()) + 1e-6
    if cores >= 4:
        assert shared.duration == pytest.approx(plain.duration)


def test_ranks_beyond_the_cores_take_turns() -> None:
    crowded = replace(resolve("localx4"), at_once=2)
    assert crowded.turns(4) == 2.0 and crowded.turns(2) == crowded.turns(1) == 1.0
    assert replace(crowded, at_once=0).turns(4) == 1.0
