from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from meshwright.errors import InputError, Unsupported
from meshwright.planners import Info
from meshwright.report.compare import Comparison, Entry
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


def test_there_is_one_record_a_candidate(outcome: Outcome) -> None:
    frame = outcome.records()
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


def test_a_frame_is_made_of_the_records_where_pandas_is(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome.plan is not None and outcome.simulation is not None
    things = (outcome, outcome.plan, outcome.simulation)
    monkeypatch.setitem(sys.modules, "pandas", None)
    for thing in things:
        with pytest.raises(Unsupported) as caught:
            thing.to_frame()
        assert caught.value.message == (
            "to_frame() needs pandas, which is not installed: install it, or take records(), a list of dicts"
        )
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: ("frame", rows)))
    for thing in things:
        assert thing.to_frame() == ("frame", list(thing.records()))


def test_plans_and_simulations_have_rows(outcome: Outcome) -> None:
    plan, sim = outcome.plan, outcome.simulations[2]
    assert plan is not None
    rows = plan.records()
    assert [r["stage"] for r in rows] == list(range(len(plan.stages)))
    assert rows[0]["devices"] == len(set(plan.stages[0].mesh.devices))
    assert [r["lane"] for r in sim.records()] == [lane.name for lane in sim.lanes]
    assert [r["peak_bytes"] for r in sim.records()] == [float(x) for x in sim.peak]


def test_a_plan_shows_the_report_beside_it(outcome: Outcome, tmp_path: Path) -> None:
    plan = outcome.plan
    assert plan is not None
    with pytest.raises(InputError) as caught:
        plan.show()
    assert caught.value.message == (
        "the plan lies in no folder with a report: show what mw.plan returned, or load the folder that it wrote"
    )
    (tmp_path / "report.html").write_text("<p>report & all</p>")
    assert "report &amp; all" in replace(plan, folder=str(tmp_path)).show()._repr_html_()


def test_a_simulation_shows_its_timeline(outcome: Outcome) -> None:
    assert outcome.simulation is not None
    page = outcome.simulation.show().html
    assert "One step" in page and "http://" not in page.split("<script")[0] and "compute" in page


def test_a_comparison_shows_itself(outcome: Outcome) -> None:
    about = Info("grid", "Grid", 2026, "ours", frozenset(), frozenset(), frozenset(), "hybrid")
    found = Comparison(outcome.question, (Entry(about, "feasible", "", 15.6, "s", None, 1.0, outcome),), 0, None)
    html = found._repr_html_()
    assert "<script" not in html and len(html) < 60_000
    without_svg = html.split("<svg")[0] + "".join(part.partition("</svg>")[2] for part in html.split("<svg")[1:])
    assert "grid" in without_svg and "15.6" in without_svg
    assert found._repr_mimebundle_()["text/plain"] == str(found) and "grid" in str(found)
    assert found.records()[0]["planner"] == "grid"
    assert found.show()._repr_html_().startswith("<iframe srcdoc=")
