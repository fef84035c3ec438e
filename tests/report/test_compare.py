"""The table of `compare` at any width, on hand-made answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan

import pytest

from meshwright.report.compare import NOT_SIMULATED, Comparison, Entry, compare_lines
from meshwright.report.outcome import Outcome


@dataclass(frozen=True)
class Paper:
    name: str
    family: str
    title: str = "T"
    year: int = 2026
    reference: str = "r"


@pytest.fixture
def comparison(outcome: Outcome) -> Comparison:
    def entry(name: str, family: str, k: int, unit: str, claim: float, bound: float | None, status: str) -> Entry:
        row = outcome.candidates[k]
        own = replace(outcome, candidates=(row,), misses=(), simulations=outcome.simulations[:1])
        return Entry(Paper(name, family), status, "", claim, unit, bound, 12.4, own)

    refused = Entry(Paper("pipedream", "pipeline"), NOT_SIMULATED, "no flush: set flush", 0.5, "s", None, 0.1, None)
    entries = (
        entry("grid", "hybrid", 0, "s", 15.6, 15.0, "feasible"),
        entry("dnn_partitioning", "placement", 1, "s/micro-batch", 0.00146, 0.00146, "optimal"),
        entry("gpipe", "pipeline", 4, "flop²", 1.11e21, None, "feasible"),
        refused,
    )
    slow = replace(outcome.candidates[4], step_s=40.0)
    far = replace(entries[2], outcome=replace(outcome, candidates=(slow,), misses=()))
    return Comparison(outcome.question, (*entries[:2], far, refused), 0, 60.0)


def test_at_100_columns_every_column_is_there(comparison: Comparison) -> None:
    texts = [line.text for line in compare_lines(comparison, 100)]
    head = next(t for t in texts if "planner " in t)
    for name in ("family", "step s", "to best", "memory", "own claim", "gap", "search s", "status"):
        assert name in head
    assert max(map(len, texts)) <= 100


@pytest.mark.parametrize("width", [60, 72, 80, 100, 160])
def test_a_tie_is_told_at_every_width(comparison: Comparison, width: int) -> None:
    assert comparison.tied_with == [-1, 0, -1]
    text = "\n".join(line.text for line in compare_lines(comparison, width))
    assert ("tie with 1" in text) != ("Ties: 2 with 1" in text)
    assert max(map(len, text.splitlines())) <= width


def test_a_gap_is_the_distance_from_the_planners_own_bound(comparison: Comparison) -> None:
    text = "\n".join(line.text for line in compare_lines(comparison, 160))
    assert f"{100 * (15.6 - 15.0) / 15.6:.1f} % *" in text and "* gap and optimality" in text
    assert f"+ {100 * (40 / 15.6 - 1):.0f} %" in text


def test_a_plan_without_a_price_keeps_its_claim_and_says_why(comparison: Comparison) -> None:
    texts = [line.text for line in compare_lines(comparison, 100)]
    row = next(t for t in texts if t.startswith("  – pipedream"))
    assert "0.500 s" in row and row.endswith(NOT_SIMULATED)
    assert "pipedream: no flush: set flush" in texts
    only = replace(comparison, entries=comparison.entries[3:])
    assert only.answered and not only.ranked
    assert not replace(only, entries=(replace(only.entries[0], status="infeasible", claim=nan),)).answered
