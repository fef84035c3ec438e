"""The screen of `plan`, line by line, on hand-made figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.report.candidates import ties
from meshwright.report.error_model import error_model
from meshwright.report.lines import bar, encodable, plain
from meshwright.report.outcome import Outcome
from meshwright.report.table import plan_lines


def texts(outcome: Outcome, width: int) -> list[str]:
    return [line.text for line in plan_lines(outcome, width)]


def test_the_table_has_every_column_at_100(outcome: Outcome) -> None:
    lines = texts(outcome, 100)
    assert lines[0] == "Plan for llama-3.1-8b on h100x64        batch 1,024 of 8,192 tokens · bf16 · AdamW"
    assert lines[1].strip() == "grid: 296 plans priced in 6.3 s, 41 do not fit"
    assert lines[2].split() == [
        "layout", "µbatch", "recompute", "step", "s", "tok/s/GPU", "MFU", "memory/GPU", "GiB", "(limit", "71.6)",
    ]  # fmt: skip
    assert lines[3].startswith("▶ 1 dp64 z2")
    assert lines[3].split()[-3:] == ["████████▉░", "88", "%"]
    assert lines[8].startswith("✗   dp64 z1") and lines[8].endswith("over by 20.9")


@pytest.mark.parametrize("width", [60, 72, 80, 90, 100, 160])
def test_no_line_of_the_table_is_wider_than_the_terminal(outcome: Outcome, width: int) -> None:
    assert max(len(t) for t in texts(outcome, width)) <= width


def test_a_narrow_terminal_loses_bar_then_mfu_then_recompute(outcome: Outcome) -> None:
    def has(width: int) -> tuple[bool, bool, bool]:
        table = [t for t in texts(outcome, width)[2:12] if t]
        joined = "\n".join(table)
        return "█" in joined, "MFU" in joined, "recompute" in joined

    seen = [has(width) for width in range(110, 76, -1)]
    order = [(True, True, True), (False, True, True), (False, False, True), (False, False, False)]
    assert [s for i, s in enumerate(seen) if i == 0 or s != seen[i - 1]] == order[: len(set(seen))]
    assert len(set(seen)) >= 3


def test_what_a_row_does_otherwise_stands_below_it_where_the_line_has_no_room(outcome: Outcome) -> None:
    long = "c_fc+mlp.c_proj+c_attn z1, wpe whole"
    rows = (replace(outcome.candidates[0], layout=f"dp8 z1 99%: {long}"), *outcome.candidates[1:])
    named = replace(outcome, candidates=rows)
    wide, usual = texts(named, 140), texts(named, 100)
    assert wide[3].startswith(f"▶ 1 dp8 z1 99%: {long}  1 × 16")
    assert usual[3].startswith("▶ 1 dp8 z1 99%:  1 × 16") and usual[4] == f"      {long}"
    assert usual[5].startswith("  2 dp64 z3") and usual[2].index("µbatch") == usual[3].index("1 × 16")
    assert "█" in usual[3], "no column is lost for it"
    assert "behind the colon: what differs from the row above" in " ".join(" ".join(usual).split())
    for width in (60, 72, 80, 100, 140):
        assert max(len(t) for t in texts(named, width)) <= width
    assert f"▶ 1 dp8 z1 99%: {long}" in texts(named, 59)


def test_under_60_columns_a_plan_is_a_block(outcome: Outcome) -> None:
    lines = texts(outcome, 50)
    start = lines.index("▶ 1 dp64 z2")
    assert lines[start + 1 : start + 4] == [
        "    µbatch 1 × 16, recompute none",
        "    step 15.6 s, 8,402 tok/s/GPU, MFU 46.4 %",
        "    memory 63.1 of 71.6 GiB, 88 %",
    ]


def test_parts_of_step_and_memory_add_up_to_what_is_shown(outcome: Outcome) -> None:
    for label, end in (("Step", "Memory"), ("Memory", "Why")):
        lines = texts(outcome, 100)
        first = next(i for i, t in enumerate(lines) if t.startswith(label))
        last = next(i for i, t in enumerate(lines) if t.startswith(end))
        text = " ".join(lines[first:last]).split(" on every")[0]
        total, _, parts = text.removeprefix(label).partition("=")
        assert float(total.split()[0]) == pytest.approx(sum(float(p.split()[-1]) for p in parts.split(" + ")))


def test_why_is_said_in_differences_of_the_simulations(outcome: Outcome) -> None:
    assert outcome.sentences() == [
        "Memory refuses dp64 z1: it needs 92.5 GiB, 20.9 too much.",
        "Runner-up dp64 z3 saves 13.5 GiB but adds 0.30 s of exposed all-gather.",
        "dp32 pp2 z1 (row 3) adds 1.0 s of bubble; dp32 tp2 z1 (row 4) adds 1.5 s of exposed all-reduce.",
    ]


def test_memory_binds_when_a_faster_layout_was_refused(outcome: Outcome) -> None:
    faster = replace(outcome.misses[0], step_s=14.0)
    assert replace(outcome, misses=(faster,)).sentences()[0] == (
        "Memory binds: dp64 z1 would be 10.3 % faster but needs 92.5 GiB, 20.9 too much."
    )


def test_neighbours_inside_the_error_are_ties_with_the_first_of_them() -> None:
    assert ties([10.0, 10.1, 10.4, 12.0, 12.1], 0.025) == [-1, 0, -1, -1, 3]
    assert ties([10.0, 10.2, 10.4], 0.025) == [-1, 0, 1]


def test_the_rows_that_are_ties_are_named(outcome: Outcome) -> None:
    within = error_model().pairs_within
    tied = [i for i, c in enumerate(outcome.candidates) if c.step_s <= outcome.candidates[0].step_s * (1 + within)]
    text = " ".join(" ".join(texts(outcome, 100)).split())
    assert f"are a tie: time {', '.join(str(i + 1) for i in tied)}." in text


def test_nothing_fits_shows_three_nearest_misses_and_what_would_fit(outcome: Outcome) -> None:
    misses = tuple(replace(outcome.misses[0], over_bytes=outcome.misses[0].over_bytes + k) for k in range(5))
    none = replace(
        outcome, status="infeasible", candidates=(), misses=misses, plan=None, simulations=(), reason="too big.",
        hints=("h100x128 (2 × as many)", "--seq 4096"), files={}, folder="",
    )  # fmt: skip
    lines = texts(none, 100)
    assert sum(t.startswith("✗") for t in lines) == 3
    assert lines[-1] == "Smallest that fits: h100x128 (2 × as many) or --seq 4096"


def test_signs_have_plain_stand_ins() -> None:
    assert plain("▶ 1 × 16 ✗ █░ µ –") == "> 1 x 16 x #. u -"
    assert encodable("▶ dp8", "ascii") == "> dp8"
    assert encodable("▶ dp8", "utf-8") == "▶ dp8"
    assert encodable("naïve", "ascii") == "na?ve"


def test_bars_are_in_eighths() -> None:
    assert [bar(x, 4) for x in (0, 0.5, 1, 1.2)] == ["░░░░", "██░░", "████", "███▶"]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_the_fullest_memory_names_its_rank_and_the_stages_of_it(outcome: Outcome, width: int) -> None:
    sim = outcome.simulations[2]
    lanes = (replace(sim.lanes[0], stages=(0, 2, 4)), replace(sim.lanes[1], stages=(1, 3, 5)))
    last = replace(sim, lanes=lanes, peak=sim.peak[::-1], peak_by=sim.peak_by[::-1])
    for found, words in ((sim, "rank 1 of 2 (stage 0);"), (last, "rank 2 of 2 (stages 1, 3, 5);")):
        lines = texts(replace(outcome, simulations=(found,)), width)
        assert f"on pipeline {words}" in " ".join(" ".join(lines).split())
        assert max(map(len, lines)) <= width
