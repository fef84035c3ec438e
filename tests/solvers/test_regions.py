"""Symbolic intervals: the paper's example, and random affine indices against all elements that they touch."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.solvers.regions import Affine, NotAffine, interval, var

HALF = Fraction(1, 2)


def test_shift_two() -> None:
    """B[i] = A[i + 2], i in [0, 9]: the halves need A[2..6] and A[7..11]."""
    index = var("i") + 2
    assert interval(index, {"i": (Fraction(0), HALF)}).elements({"i": 10}) == (2, 7)
    assert interval(index, {"i": (HALF, Fraction(1))}).elements({"i": 10}) == (7, 12)


def test_the_vector_of_a_sum() -> None:
    found = interval(var("x") + var("dx"), {"x": (HALF, Fraction(1))})
    assert (found.lower, found.upper, found.constant) == ({"x": HALF, "dx": 0}, {"x": 1, "dx": 1}, 0)


def test_products_and_comparisons_of_variables_are_refused() -> None:
    with pytest.raises(NotAffine, match="product of two index variables"):
        var("x") * var("y")
    with pytest.raises(NotAffine, match="comparison"):
        bool(var("x") < var("y"))
    with pytest.raises(NotAffine, match="runs backwards"):
        interval(var("x") * -1, {})
    assert (var("x") * 3 - var("x") * 3) == Affine()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    st.integers(-3, 5),
    st.data(),
)
def test_an_interval_is_from_the_least_to_the_greatest_index(
    terms: list[tuple[int, int, int]], constant: int, data: st.DataObject
) -> None:
    """Coefficients, extents (parts times how long each is), and one part of each variable."""
    index, ends, extents, values = Affine() + constant, {}, {}, []
    for k, (coefficient, parts, long) in enumerate(terms):
        q = data.draw(st.integers(0, parts - 1))
        index = index + var(f"v{k}") * coefficient
        ends[f"v{k}"] = (Fraction(q, parts), Fraction(q + 1, parts))
        extents[f"v{k}"] = parts * long
        values.append([coefficient * x for x in range(q * long, (q + 1) * long)])
    touched = [constant + sum(pick) for pick in product(*values)]
    assert interval(index, ends).elements(extents) == (min(touched), max(touched) + 1)
