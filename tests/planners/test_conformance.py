"""The suite passes planners of ours, of a package and of a file, and finds each fault that it is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshwright.planners import Planner, load
from meshwright.testing import Check, PlannerConformance, Report, conformance, tiny_problems
from meshwright.testing.brute import all_plans
from meshwright.testing.conformance import CHECKS, run_check

from .faulty import Boaster, Endless, Greedy, Hashed, Overproven, Silent, Sound, Swallows

HERE = Path(__file__).parent
EXAMPLE = HERE.parent.parent / "examples" / "even_cells.py"


class TestAccPar(PlannerConformance):
    planner = "accpar"


class TestDistIR(PlannerConformance):
    planner = "distir"


class TestDoubleRecursive(PlannerConformance):
    planner = "double_recursive"


class TestGPipe(PlannerConformance):
    planner = "gpipe"


class TestPaSE(PlannerConformance):
    planner = "pase"


class TestTensorOpt(PlannerConformance):
    planner = "tensoropt"


class TestGSPMD(PlannerConformance):
    planner = "gspmd"


class TestSingleFile(PlannerConformance):
    planner = str(EXAMPLE)


def test_a_planner_in_a_package_of_its_own_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE / "packages" / "good"))
    report = conformance("replicas")
    assert report.passed, report.text()


@pytest.mark.parametrize(
    ("planner", "check", "fault"),
    [
        (Hashed(), "same seed, same plan, new process", "a new process gave another plan"),
        (Endless(), "budget {seconds} s honoured", "call run.tick after each evaluation"),
        (Swallows(), "Ctrl-C returns best so far", "Ctrl-C lost the plan that was found"),
        (Greedy(), "memory limit respected", "it returned a plan that does not fit"),
        (Boaster(), "never better than brute force", "but its objective of that plan is"),
        (Overproven(), "never better than brute force", "it proves a bound of"),
        (Greedy(), "infeasible says why", "raise Infeasible(reason) instead"),
        (Silent(), "infeasible says why", "on tiny-oom-2 it gave up without a reason; raise Infeasible(reason)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Planner) else None,
)
def test_a_faulty_planner_is_found(planner: Planner, check: str, fault: str) -> None:
    found = run_check(planner, check, seconds=0.3)
    assert not found.passed
    assert fault in found.fault


@pytest.mark.parametrize("name", [name for name in CHECKS if name != "same seed, same plan, new process"])
def test_the_planner_that_the_faulty_ones_are_made_from_is_sound(name: str) -> None:
    check = run_check(Sound(), name, seconds=1.0)
    assert check.passed, check.fault


def test_a_planner_that_raises_is_at_fault_and_the_suite_goes_on() -> None:
    class Raises(Sound):
        def search(self, problem: object, run: object) -> None:
            raise ZeroDivisionError("division by zero")

    found = run_check(Raises(), "memory limit respected")
    assert found.fault == "memory limit respected: it raised ZeroDivisionError: division by zero"


def test_the_table_looks_as_specified() -> None:
    names = [name.format(seconds="2") for name in CHECKS]
    notes = ["", "(1.9 s)", "", "", "(212)", ""]
    checks = [
        Check(name, name != "infeasible says why", note, "on tiny-oom-3 it …") for name, note in zip(names, notes)
    ]
    assert Report("greedy_tp", tuple(checks)).text() == (
        "greedy_tp    same seed, same plan, new process   ✓      memory limit respected            ✓\n"
        "             budget 2 s honoured (1.9 s)         ✓      never better than brute force     ✓ (212)\n"
        "             Ctrl-C returns best so far          ✓      infeasible says why               ✗\n"
        "✗ 5 of 6: on tiny-oom-3 it …"
    )


def test_brute_force_plans_are_legal_and_distinct() -> None:
    from meshwright.plan.serial import dumps
    from meshwright.plan.validate import validate

    for tiny in tiny_problems():
        if tiny.problem.cluster.count == 2:
            plans = list(all_plans(tiny.problem))
            for plan in plans:
                validate(tiny.problem, plan)
            assert len({dumps(plan) for plan in plans}) == len(plans) > 10


def test_a_planner_loaded_by_name_and_by_class_is_the_same() -> None:
    assert type(load("gpipe")) is type(load("gpipe"))
