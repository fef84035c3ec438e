from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshwright._words import decimals_for, gib, joined, number, parameters, percent, rounded_parts


def test_numbers_have_three_digits_and_commas() -> None:
    assert [number(x) for x in (15.6049, 0.31249, 123.4, 1234.5, 9.999, 0, 0.00012345)] == [
        "15.6", "0.312", "123", "1,234", "10.0", "0", "0.000123",
    ]  # fmt: skip


def test_what_is_not_known_is_a_dash() -> None:
    assert number(float("nan")) == gib(float("inf")) == percent(float("nan")) == "–"


def test_parameter_counts_are_said_in_their_unit() -> None:
    assert [parameters(n) for n in (8_030_261_248, 124_439_808, 1.008e12)] == ["8.03 B", "124 M", "1.01 T"]


def test_lists_read_as_words() -> None:
    assert (joined(["a"]), joined(["a", "b", "c"])) == ("a", "a, b and c")


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1e4), min_size=1, max_size=8), st.integers(0, 3))
def test_rounded_parts_add_up_to_the_rounded_total(parts: dict[str, float], decimals: int) -> None:
    shown = rounded_parts(parts, decimals)
    total = sum(round(float(v.replace(",", "")) * 10**decimals) for _, v in shown)
    assert total == round(sum(parts.values()) * 10**decimals)


@given(st.floats(1e-6, 1e6))
def test_decimals_show_three_significant_digits(value: float) -> None:
    assert abs(float(f"{value:.{decimals_for(value)}f}") / value - 1) <= 0.0051
