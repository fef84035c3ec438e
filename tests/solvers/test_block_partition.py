"""Block partitions against the original balancer's results, and its guarantee."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.solvers.block_partition import block_partition
from meshwright.solvers.chain_partition import least_maximum, parts_of, variance

PI = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
VGG16 = [
    46920, 9999, 159531, 9766, 9374, 54803, 5097, 75441, 5133, 4999, 29149, 2757, 44481, 3103, 48133, 2870, 2682, 23823,
    1722, 37259, 1527, 40445, 1523, 1583, 12989, 1050, 11466, 653, 12690, 630, 787, 0, 0, 7050, 407, 0, 1443, 309, 0, 941,
]  # fmt: skip
# costs, parts, lengths, largest block, variance; the least possible largest block.
REFERENCE = [
    (list(range(1, 7)), 2, [4, 2], 11, 0.25, 11),
    (list(range(1, 7)), 3, [3, 2, 1], 9, 2, 9),
    (list(range(6, 0, -1)), 3, [1, 2, 3], 9, 2, 9),
    (list(range(1, 13)), 4, [6, 2, 2, 2], 23, 8.75, 23),
    (PI, 3, [6, 6, 4], 29, 6.88889, 28),
    (PI, 4, [6, 4, 3, 3], 23, 7.5, 23),
    ([1, 1, 1, 1, 100, 1, 1, 1], 4, [2, 2, 2, 2], 101, 1837.69, 100),
    ([0, 0], 2, [1, 1], 0, 0, 0),
    ([5] * 10, 4, [2, 2, 2, 4], 20, 18.75, 15),
    (VGG16, 2, [12, 28], 412969, 5.88312e9, 370931),
    (VGG16, 4, [5, 7, 7, 21], 235590, 1.89875e9, 216450),
]


@pytest.mark.parametrize(("costs", "parts", "lengths", "largest", "spread", "least"), REFERENCE)
def test_original_result(
    costs: list[int], parts: int, lengths: list[int], largest: int, spread: float, least: int
) -> None:
    ends = block_partition(costs, parts)
    assert [b - a for a, b in zip((0, *ends), ends)] == lengths
    blocks = parts_of(costs, ends)
    assert max(blocks) == largest
    assert variance(blocks) == pytest.approx(spread, rel=1e-5)
    assert max(parts_of(costs, least_maximum(costs, parts))) == least


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=14), st.integers(1, 6))
def test_any_two_blocks_differ_by_one_item_at_most_once_the_least_is_taken_off(costs: list[int], parts: int) -> None:
    if len(costs) < parts:
        with pytest.raises(InputError):
            block_partition(costs, parts)
        return
    ends = block_partition(costs, parts)
    assert len(ends) == parts and ends[-1] == len(costs)
    assert all(a < b for a, b in zip((0, *ends), ends))
    blocks = parts_of([x - min(costs) for x in costs], ends)
    assert max(blocks) - min(blocks) <= max(costs) - min(costs) + 1e-6
    assert max(parts_of(costs, least_maximum(costs, parts))) <= max(parts_of(costs, ends))


def test_wrong_numbers_of_parts_are_refused() -> None:
    with pytest.raises(InputError, match="0 parts: there must be at least one"):
        block_partition([1], 0)
    with pytest.raises(InputError, match="1 items cannot fill 2 parts"):
        block_partition([1], 2)
    with pytest.raises(InputError, match="costs must be finite"):
        block_partition([1, float("nan")], 2)
