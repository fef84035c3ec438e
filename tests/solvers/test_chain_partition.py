"""Chain partitions against all partitions there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.solvers.chain_partition import least_maximum, least_squares, parts_of, proportional, variance

costs = st.lists(st.integers(0, 30), min_size=1, max_size=9)


def all_partitions(n: int, parts: int) -> Iterator[tuple[int, ...]]:
    for cut in combinations(range(1, n), parts - 1):
        yield (*cut, n)


def squares(parts: Sequence[float]) -> float:
    return sum(x * x for x in parts)


@settings(max_examples=300, deadline=None)
@given(costs, st.integers(1, 5))
@example([24, 1, 23, 1], 3)
def test_both_rules_find_the_best_of_all_partitions(values: list[int], parts: int) -> None:
    if len(values) < parts:
        with pytest.raises(InputError, match=f"{len(values)} items cannot fill {parts} parts"):
            least_squares(values, parts)
        return
    every = [parts_of(values, ends) for ends in all_partitions(len(values), parts)]
    got = least_squares(values, parts)
    assert len(got) == parts and got[-1] == len(values) and list(got) == sorted(set(got))
    # the mean is the same for all, so the least variance is the least sum of squares: exact for whole numbers
    assert squares(parts_of(values, got)) == min(map(squares, every))
    assert variance(parts_of(values, got)) == pytest.approx(min(map(variance, every)))
    assert max(parts_of(values, least_maximum(values, parts))) == min(map(max, every))


@settings(max_examples=200, deadline=None)
@given(costs, st.integers(1, 5))
def test_the_proportional_rule_puts_each_item_where_its_share_falls(values: list[int], parts: int) -> None:
    ends = proportional(values, parts)
    assert len(ends) == parts and ends[-1] == len(values) and list(ends) == sorted(ends)
    total = sum(values)
    for k, (a, b) in enumerate(zip((0, *ends), ends)):
        for i in range(a, b):
            if total:
                assert min(parts * sum(values[: i + 1]) // total, parts - 1) == k


def test_items_that_cost_nothing_stay_with_what_they_follow() -> None:
    assert least_squares([4, 0, 4, 0, 4, 0], 3) == (2, 4, 6)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [1.0, -1.0], [float("inf")]])
def test_costs_that_are_no_costs_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError):
        proportional(values, 1)
