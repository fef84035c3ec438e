"""The public conformance suite of cost models: what planners rely on, whatever the model knows.

report = cost_conformance(Priced(MyModel))       # or Priced(MyModel, ops, cluster) where it cannot price every op
print(report.text())

class TestMine(CostModelConformance):             # the same, one pytest test a promise
    subject = Priced(MyModel)

Questions are drawn by hypothesis (a package of its own), always the same ones; a failing one is shrunk.
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import InputError
from ._cost_checks import CHECKS, Broken
from ._priced import Draw, Priced
from .conformance import Check, Report

EXAMPLES = 60
"""Questions a promise."""


def cost_conformance(subject: Priced, *, examples: int = EXAMPLES) -> Report:
    """Runs every check.

    Raises:
        InputError: hypothesis is not installed.
    """
    return Report(subject.make().name, tuple(run_cost_check(subject, name, examples) for name in CHECKS))


def run_cost_check(subject: Priced, name: str, examples: int = EXAMPLES) -> Check:
    """One check; an exception is a fault of the model, not of the suite.

    Raises:
        InputError: hypothesis is not installed.
    """
    try:
        from hypothesis import HealthCheck, Phase, Verbosity, given, settings
        from hypothesis import strategies as st
    except ModuleNotFoundError:
        raise InputError("the suite for cost models needs hypothesis: pip install hypothesis") from None

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def holds(data: object) -> None:
        CHECKS[name](subject, Draw(subject, data))

    try:
        holds()
    except Broken as broken:
        return Check(name, False, "", f"{name}: {broken}")
    except Exception as error:
        return Check(name, False, "", f"{name}: it raised {type(error).__name__}: {error}")
    return Check(name, True, f"({examples})")


class CostModelConformance:
    """Base of a pytest class: set `subject`, and each promise is a test."""

    subject: ClassVar[Priced]
    examples: ClassVar[int] = EXAMPLES

    def _holds(self, name: str) -> None:
        check = run_cost_check(self.subject, name, self.examples)
        if not check.passed:
            raise AssertionError(check.fault)

    def test_prices_are_finite_and_never_below_zero(self) -> None:
        self._holds("finite, never below zero")

    def test_arrays_equal_single_prices(self) -> None:
        self._holds("arrays equal single prices")

    def test_a_question_has_one_answer(self) -> None:
        self._holds("same question, same answer")

    def test_more_work_is_never_faster(self) -> None:
        self._holds("more work never faster")

    def test_a_faster_device_is_never_slower(self) -> None:
        self._holds("faster device never slower")

    def test_a_larger_shard_never_takes_less_memory(self) -> None:
        self._holds("larger shard, no less memory")

    def test_prices_are_seconds(self) -> None:
        self._holds("seconds are seconds")

    def test_more_bytes_are_never_faster(self) -> None:
        self._holds("more bytes never faster")

    def test_more_members_are_never_faster(self) -> None:
        self._holds("more members never faster")

    def test_faster_links_are_never_slower(self) -> None:
        self._holds("faster links never slower")

    def test_nothing_to_move_costs_nothing(self) -> None:
        self._holds("nothing to move is free")

    def test_a_symmetric_link_costs_the_same_both_ways(self) -> None:
        self._holds("the same there and back")

    def test_shares_and_overheads_of_a_step_are_such(self) -> None:
        self._holds("shares are shares")


__all__ = ["CHECKS", "EXAMPLES", "CostModelConformance", "cost_conformance", "run_cost_check"]
