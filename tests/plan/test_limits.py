"""What a plan may fill of a device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwright.plan.problem import CONTEXT, Limits


@pytest.mark.parametrize("installed", [80.0 * 2**30, 141e9, 192e9, 2.0 * 2**30])
def test_a_tenth_of_a_large_device_is_held_back_and_of_an_imaginary_one(installed: float) -> None:
    assert Limits().usable(installed) == pytest.approx(0.9 * installed)


def test_contexts_take_more_of_a_small_device() -> None:
    assert Limits().usable(16e9) == pytest.approx(0.915 * (16e9 - CONTEXT))
    assert Limits().usable(16e9) < 0.86 * 16e9


@given(st.floats(1e8, 3e11), st.floats(1e8, 3e11))
def test_more_memory_never_holds_less_and_a_limit_is_a_smaller_device(one: float, other: float) -> None:
    low, high = sorted((one, other))
    if not low <= 8e9 < high:  # where contexts begin there is a step
        assert Limits().usable(low) <= Limits().usable(high)
    assert Limits(memory=low).usable(high) == Limits().usable(low)
    assert Limits(keep_free=0.0).usable(low) == low
