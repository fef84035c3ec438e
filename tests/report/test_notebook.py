from __future__ import annotations

from meshwright.report.notebook import bar
from meshwright.report.outcome import Outcome


def test_a_notebook_shows_every_figure_without_script(outcome: Outcome) -> None:
    html = outcome._repr_html_()
    assert "<script" not in html and len(html) < 60_000
    without_svg = html.split("<svg")[0] + "".join(part.partition("</svg>")[2] for part in html.split("<svg")[1:])
    for figure in ("15.6", "8,402", "dp64 z2", "exposed all-gather 0.6", "activations 41.9"):
        assert figure in without_svg


def test_printing_an_answer_is_its_table(outcome: Outcome) -> None:
    assert str(outcome).splitlines()[3].startswith("▶ 1 dp64 z2")


def test_a_frame_has_one_record_a_candidate(outcome: Outcome) -> None:
    frame = outcome.to_frame()
    assert len(frame) == len(outcome.candidates) + len(outcome.misses)
    assert [r["fits"] for r in frame] == [True] * 5 + [False]
    assert frame[1]["tie_with"] == 1


def test_parts_of_a_bar_fill_it() -> None:
    svg = bar("x", {"a": 3.0, "b": 1.0, "none": 0.0})
    assert 'width="479.0"' in svg and 'width="159.0"' in svg and "none" not in svg
