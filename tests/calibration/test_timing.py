"""Timings: in turns, warmed up, with quartiles."""

from __future__ import annotations

import pytest
import torch

from meshwright.calibration.timing import in_turns, summary

CPU = torch.device("cpu")


def test_pieces_run_in_turns_after_a_warm_up() -> None:
    seen: list[str] = []
    works = [lambda: seen.append("a"), lambda: seen.append("b")]
    rounds: list[int] = []
    found = in_turns(works, 3, CPU, done=rounds.append, runs=[1, 2])
    assert seen == ["a", "b", "b"] * 3
    assert rounds == [1, 2, 3]
    assert [t.repeats for t in found] == [3, 3]


def test_short_pieces_run_often_in_a_sample() -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1

    in_turns([work], 2, CPU)
    assert calls > 2 * 100


def test_the_median_and_the_quartiles_are_told() -> None:
    found = summary([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.low, found.seconds, found.high) == (2.0, 3.0, 4.0)
    assert found.spread == pytest.approx(1 / 3)
