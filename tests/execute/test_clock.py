"""Spans: names add up to the whole, inner ones take their time off outer ones."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwright.execute.ranks.clock import Clock


class Hands:
    """A clock's hands that only move when told."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def test_an_inner_span_takes_its_time_off_the_outer_one() -> None:
    hands = Hands()
    clock = Clock(hands)
    hands.at += 5  # outside of all spans: nobody's
    with clock.span("backward"):
        hands.at += 3
        with clock.span("all_reduce"):
            hands.at += 2
        hands.at += 4
        with clock.span("all_reduce"):
            hands.at += 1
    hands.at += 7
    assert clock.taken() == {"backward": 7.0, "all_reduce": 3.0}
    assert clock.taken() == {}


def test_what_is_open_goes_on() -> None:
    hands = Hands()
    clock = Clock(hands)
    with clock.span("forward"):
        hands.at += 2
        assert clock.taken() == {"forward": 2.0}
        hands.at += 1
    assert clock.taken() == {"forward": 1.0}


def test_an_error_closes_its_spans() -> None:
    hands = Hands()
    clock = Clock(hands)
    with pytest.raises(ValueError, match="odd"), clock.span("forward"), clock.span("send"):
        hands.at += 1
        raise ValueError("odd")
    hands.at += 9
    assert clock.taken().get("send") == 1.0
    assert sum(clock.taken().values()) == 0.0


@given(st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=3), max_leaves=12))
def test_names_add_up_to_the_time_inside_spans(tree: list[object]) -> None:
    hands, names = Hands(), itertools.count()
    clock = Clock(hands)

    def walk(node: list[object]) -> None:
        with clock.span(f"span {next(names) % 4}"):
            hands.at += 1
            for child in node:
                walk(child)  # type: ignore[arg-type]
                hands.at += 0.5

    begin = hands.at
    walk(tree)
    assert sum(clock.taken().values()) == pytest.approx(hands.at - begin)
