"""Mixed-integer linear programmes, solved by HiGHS (highspy) on one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .stoppable import waited

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PROVEN = 1e-6
"""Relative distance between value and bound that HiGHS leaves where it has searched everything: its own tolerances."""

Row = tuple[float, dict[int, float], float]
"""(least, column -> coefficient, most)"""


End = Literal["gap", "seconds", "interrupt"]
"""What ended a search: the gap (or that nothing was left to search), its seconds, or Ctrl-C."""


@dataclass
class Programme:
    """Minimise the costs of columns under rows."""

    cost: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def column(self, lower: float = 0.0, upper: float = inf, cost: float = 0.0, whole: bool = False) -> int:
        """A new column; its number."""
        self.cost.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.cost) - 1

    def binary(self) -> int:
        return self.column(0.0, 1.0, whole=True)

    def row(self, coefficients: Mapping[int, float], least: float = -inf, most: float = inf) -> None:
        """least ≤ Σ coefficient · column ≤ most."""
        self.rows.append((least, dict(coefficients), most))


@dataclass(frozen=True, slots=True)
class Solved:
    """values is empty if no solution was found; bound is proven."""

    values: tuple[float, ...]
    value: float
    bound: float
    end: End

    @property
    def finished(self) -> bool:
        """Within the gap, or proven that there is no solution."""
        return self.end == "gap"


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """A programme whose rows were built as arrays: coefficient k stands in row `row[k]`, sorted, at column `column[k]`."""

    cost: Floats
    lower: Floats
    upper: Floats
    whole: Bools
    row: Ints
    column: Ints
    coefficient: Floats
    least: Floats
    most: Floats


def solve(
    programme: Programme,
    *,
    gap: float = 0.01,
    seconds: float = 1200.0,
    start: Sequence[float] | None = None,
    seed: int = 0,
) -> Solved:
    """The best solution within `gap` (relative) or `seconds`; Ctrl-C ends it like these, with what was found.

    Args:
        start: values of all columns to begin with.
    """
    rows = programme.rows
    arrays = Arrays(
        np.array(programme.cost, np.float64),
        np.array(programme.lower, np.float64),
        np.array(programme.upper, np.float64),
        np.array(programme.whole, np.bool_),
        np.repeat(np.arange(len(rows)), [len(row[1]) for row in rows]),
        np.array([c for row in rows for c in row[1]], np.int64),
        np.array([x for row in rows for x in row[1].values()], np.float64),
        np.array([row[0] for row in rows], np.float64),
        np.array([row[2] for row in rows], np.float64),
    )
    return solve_arrays(arrays, gap=gap, seconds=seconds, start=start, seed=seed)


def solve_arrays(
    programme: Arrays,
    *,
    gap: float = 0.01,
    seconds: float = 1200.0,
    start: Sequence[float] | None = None,
    seed: int = 0,
) -> Solved:
    """`solve`, of arrays. Costs are such that no solution is below 0."""
    import highspy

    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(programme.cost), len(programme.least)
    model.col_cost_, model.col_lower_, model.col_upper_ = programme.cost, programme.lower, programme.upper
    model.row_lower_, model.row_upper_ = programme.least, programme.most
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.searchsorted(programme.row, np.arange(model.num_row_ + 1)).astype(np.int32)
    model.a_matrix_.index_ = programme.column.astype(np.int32)
    model.a_matrix_.value_ = programme.coefficient
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    model.integrality_ = [kinds[whole] for whole in programme.whole.tolist()]

    class Quiet(highspy.Highs):  # type: ignore[misc]
        """The constructor prints a banner when it enables callbacks."""

        def enableCallbacks(self) -> None:
            self.silent()
            super().enableCallbacks()

    solver: Any = Quiet()
    solver.HandleUserInterrupt = True
    for name, value in {
        "output_flag": False, "threads": 1, "random_seed": seed, "mip_rel_gap": gap, "time_limit": seconds,
        "mip_feasibility_tolerance": 1e-6,
    }.items():  # fmt: skip
        solver.setOptionValue(name, value)
    solver.passModel(model)
    if start is not None:
        first = highspy.HighsSolution()
        first.col_value = list(start)
        solver.setSolution(first)
    interrupted = _run(solver)
    info, status = solver.getInfo(), solver.getModelStatus()
    end: End = "interrupt" if interrupted else "seconds"
    if status in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kInfeasible):
        end = "gap"
    if status == highspy.HighsModelStatus.kInfeasible:
        return Solved((), inf, inf, end)
    found = info.primal_solution_status == 2
    values = tuple(solver.getSolution().col_value) if found else ()
    bound = max(float(info.mip_dual_bound), 0.0)
    value = float(info.objective_function_value) if found else inf
    return Solved(values, value, min(bound, value), end)


def _run(solver: Any) -> bool:
    """Solve; did Ctrl-C end it?"""
    try:
        waited(solver.run, lambda: None, solver.cancelSolve)
    except KeyboardInterrupt:
        return True
    return False


def closed(value: float, bound: float) -> float:
    """The bound of a value, which is the value itself where the two are as close as HiGHS can prove."""
    return value if bound >= value - PROVEN * abs(value) else bound
