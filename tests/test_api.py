"""The public functions, as a script uses them."""

from __future__ import annotations

from pathlib import Path

import pytest

import meshwright as mw

SMALL = {"cluster": "a100x4", "batch": 16, "seq": 64}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWRIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "graphs"))


def test_plan_answers_to_a_call_and_stays_a_package() -> None:
    answer = mw.plan("gpt2", **SMALL, fix={"tp": 2})
    assert answer.status == "ok" and answer.plan is not None
    assert "tp2" in answer.candidates[0].layout
    from meshwright.plan.model import Plan

    assert isinstance(answer.plan, Plan)


def test_simulate_takes_a_layout_or_a_problem() -> None:
    answer = mw.simulate("gpt2", **SMALL, dp=2, tp=2)
    assert answer.candidates[0].layout == "dp2 tp2"
    from meshwright.request import Request
    from meshwright.stated import state

    problem = state(Request("gpt2", **SMALL)).problem
    again = mw.simulate(problem, answer.plan)
    assert again.step_seconds == pytest.approx(answer.candidates[0].step_s, rel=1e-12)


def test_what_is_written_is_loaded_equal(tmp_path: Path) -> None:
    answer = mw.plan("gpt2", **SMALL, folder=tmp_path / "out")
    assert mw.load(tmp_path / "out") == mw.load(tmp_path / "out" / "plan.json") == answer.plan


def test_compare_ranks_by_the_simulator() -> None:
    found = mw.compare("gpt2", ["gpipe", "grid"], **SMALL)
    steps = [row.step_s for _, row in found.ranked]
    assert steps == sorted(steps) and len(found.entries) == 2


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'meshwright' has no attribute 'nope'"):
        _ = mw.nope
