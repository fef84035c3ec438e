"""The line of a search, as it stands on the screen."""

from __future__ import annotations

from math import inf, nan

import pytest

from meshwright.cli import progress as module
from meshwright.cli.progress import Progress
from meshwright.cli.screen import Screen


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def search_line(progress: Progress) -> str:
    return " ".join(progress._lines["search"].replace("━", "").replace("╸", "").split())


@pytest.mark.parametrize("best", [inf, nan, 0.0])
def test_before_a_plan_is_found_no_best_is_shown(clock: Clock, best: float) -> None:
    progress = Progress(Screen())
    progress.planner = "grid"
    progress.search("price", 1, 1192, best)
    clock.now += 3e-7
    progress.search("price", 1, 1192, best)
    assert search_line(progress) == "search grid 1 of 1,192 0.0 s"


def test_seconds_have_sensible_digits(clock: Clock) -> None:
    progress = Progress(Screen())
    progress.planner = "grid"
    progress.search("price", 0, 1000, inf)
    clock.now += 2.345678
    progress.search("price", 100, 1000, 15.6)
    assert search_line(progress) == "search grid 100 of 1,000 best 15.6 s 2.3 s, at most 21 s left"
    clock.now += 60
    progress.search("price", 500, 1000, 15.6)
    assert search_line(progress) == "search grid 500 of 1,000 best 15.6 s 62 s, at most 62 s left"
