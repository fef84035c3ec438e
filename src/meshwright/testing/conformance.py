"""The suite and its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..planners import Planner, load
from ._checks import CHECKS

SECONDS = 2.0
"""The budget that the suite gives."""
WIDTH = 36
"""Columns of one promise in the table, its mark included after it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise."""

    name: str
    passed: bool
    note: str = ""
    """Figure beside it: seconds taken, plans compared."""
    fault: str = ""
    """What went wrong and what would be right; "" if it passed."""


@dataclass(frozen=True, slots=True)
class Report:
    name: str
    """Of the planner or cost model."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def text(self) -> str:
        """The table, then one line a fault."""
        half = -(-len(self.checks) // 2)
        indent = max(13, len(self.name) + 2)
        lines = []
        for row in range(half):
            left, *right = self.checks[row::half]
            cells = [f"{_cell(left)} {_mark(left)}      "]
            cells += [f"{check.name:<34}{_mark(check)}{' ' + check.note if check.note else ''}" for check in right]
            lines.append(f"{self.name if row == 0 else '':<{indent}}" + "".join(cells).rstrip())
        faults = [check.fault for check in self.checks if not check.passed]
        good = sum(check.passed for check in self.checks)
        if not faults:
            return "\n".join([*lines, f"✓ {good} of {len(self.checks)}"])
        return "\n".join(
            [*lines, f"✗ {good} of {len(self.checks)}: {faults[0]}", *(f"  {fault}" for fault in faults[1:])]
        )


def _cell(check: Check) -> str:
    return f"{check.name} {check.note}".strip().ljust(WIDTH - 1)


def _mark(check: Check) -> str:
    return "✓" if check.passed else "✗"


def conformance(planner: Planner | str, *, seconds: float = SECONDS) -> Report:
    """Runs every check.

    Args:
        planner: a planner with its defaults, or what `meshwright.planners.load` takes: a name, "./file.py".
        seconds: the budget under test.

    Raises:
        InputError: there is no such planner.
    """
    found = load(planner) if isinstance(planner, str) else planner
    return Report(found.info.name, tuple(run_check(found, name, seconds) for name in CHECKS))


def run_check(planner: Planner, name: str, seconds: float = SECONDS) -> Check:
    """One check; an exception is a fault of the planner, not of the suite."""
    title = name.format(seconds=f"{seconds:g}")
    try:
        passed, note, fault = CHECKS[name](planner, seconds)
    except Exception as error:
        return Check(title, False, "", f"{title}: it raised {type(error).__name__}: {error}")
    return Check(title, passed, note, fault)


class PlannerConformance:
    """Base of a pytest class: set `planner`, and each promise is a test."""

    planner: ClassVar[Planner | str]
    seconds: ClassVar[float] = SECONDS

    def _holds(self, name: str) -> None:
        found = load(self.planner) if isinstance(self.planner, str) else self.planner
        check = run_check(found, name, self.seconds)
        if not check.passed:
            raise AssertionError(check.fault)

    def test_same_seed_gives_the_same_plan_in_a_new_process(self) -> None:
        self._holds("same seed, same plan, new process")

    def test_a_budget_of_seconds_is_honoured(self) -> None:
        self._holds("budget {seconds} s honoured")

    def test_ctrl_c_returns_the_best_so_far(self) -> None:
        self._holds("Ctrl-C returns best so far")

    def test_the_memory_limit_is_respected(self) -> None:
        self._holds("memory limit respected")

    def test_it_is_never_better_than_brute_force(self) -> None:
        self._holds("never better than brute force")

    def test_infeasible_says_why(self) -> None:
        self._holds("infeasible says why")


__all__ = ["CHECKS", "Check", "PlannerConformance", "Report", "conformance", "run_check"]
