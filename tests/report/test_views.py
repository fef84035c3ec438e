from __future__ import annotations

from meshwright.report.outcome import Outcome
from meshwright.report.views import bar


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


def test_plans_and_simulations_show_themselves(outcome: Outcome) -> None:
    assert outcome.plan is not None and outcome.simulation is not None
    for thing in (outcome, outcome.plan, outcome.simulation):
        bundle = thing._repr_mimebundle_()
        assert bundle["text/html"] == thing._repr_html_() and len(bundle["text/html"]) < 60_000
        assert "<script" not in bundle["text/html"] and bundle["text/plain"]
    step = f"{outcome.simulation.step_seconds:.1f}"
    assert step in outcome.simulation._repr_mimebundle_()["text/plain"]
    text = outcome.plan._repr_mimebundle_()["text/plain"]
    assert len(text.splitlines()) == 3 + len(outcome.plan.stages)


def test_the_report_stands_in_a_frame_of_its_own(outcome: Outcome) -> None:
    html = outcome.show()._repr_html_()
    assert html.startswith("<iframe srcdoc=") and "<script" not in html
