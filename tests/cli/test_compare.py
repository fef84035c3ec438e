"""`compare`: whatever one planner does, the others still answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import Command

from meshwright.planners import registry
from meshwright.report.compare import NOT_SIMULATED

PROBLEM = ("gpt2", "-c", "a100x4", "--batch", "8", "--seq", "64", "-q")
BROKEN = (
    "from meshwright.planners import Planner\nfrom meshwright.planners.types import Info\n\n\n"
    "class Broken(Planner):\n"
    "    info = Info('broken', 'x', 2026, 'x', frozenset(), frozenset({'dag'}), frozenset({'time'}))\n\n"
    "    def search(self, problem, run):\n        return 1 / 0\n\n"
    "    def objective(self, problem, plan):\n        return 0.0\n"
)


def test_a_planner_that_breaks_is_a_row(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    done = meshwright("compare", *PROBLEM, "--planners", "./broken.py,grid", "--json")
    rows = {r["planner"]: r for r in json.loads(done.out)["planners"]}
    assert done.code == 0
    assert rows["grid"]["fits"]
    assert (rows["broken"]["status"], rows["broken"]["step_s"]) == ("failed", None)
    assert rows["broken"]["reason"] == "ZeroDivisionError in its search: division by zero"


def test_a_plan_that_cannot_be_simulated_is_a_row_with_its_claim(
    meshwright: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meshwright import answer
    from meshwright.errors import Unsupported

    priced = answer.outcome_of

    def refuses(stated: object, planner: object, result: object, **more: object) -> object:
        if planner.info.name == "gpipe":  # type: ignore[attr-defined]
            raise Unsupported("this schedule is not simulated")
        return priced(stated, planner, result, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(answer, "outcome_of", refuses)
    done = meshwright("compare", *PROBLEM, "--planners", "gpipe,grid", "--json")
    row = next(r for r in json.loads(done.out)["planners"] if r["planner"] == "gpipe")
    assert done.code == 0
    assert (row["status"], row["reason"]) == (NOT_SIMULATED, "this schedule is not simulated")
    assert row["claim"] > 0 and row["step_s"] is None


@pytest.mark.parametrize("columns", ["60", "80", "100"])
def test_no_line_is_wider_than_asked(meshwright: Command, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = meshwright("compare", *PROBLEM, "--planners", "gpipe,grid")
    assert done.code == 0 and "Wrote" in done.out
    assert max(map(len, done.out.splitlines())) <= int(columns)


def test_all_means_the_finished_planners_and_the_others_are_named(
    meshwright: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {name: registry.planners()[name] for name in ("gpipe", "grid")}

    class Half(known["gpipe"]):  # type: ignore[misc, valid-type]
        info = known["gpipe"].info.__class__(
            "half", "x", 2026, "x", frozenset(), frozenset({"dag"}), frozenset({"time"}), missing=("no search yet",)
        )

    monkeypatch.setattr(registry, "planners", lambda: known | {"half": Half})
    done = meshwright("compare", *PROBLEM, "--planners", "all")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "Left out as unfinished: half"
    assert sum("half" in line for line in done.out.splitlines()) == 1
    assert all(name in done.out for name in known)
