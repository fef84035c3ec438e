"""Mixed-integer linear programmes, solved by HiGHS (highspy) on one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np

Row = tuple[float, dict[int, float], float]
"""(least, column -> coefficient, most)"""


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
    finished: bool
    """Within the gap, or proven that there is no solution."""


def solve(
    programme: Programme,
    *,
    gap: float = 0.01,
    seconds: float = 1200.0,
    start: Sequence[float] | None = None,
    seed: int = 0,
) -> Solved:
    """The best solution within `gap` (relative) or `seconds`.

    Args:
        start: values of all columns to begin with.
    """
    import highspy

    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(programme.cost), len(programme.rows)
    model.col_cost_ = np.array(programme.cost, np.float64)
    model.col_lower_ = np.array(programme.lower, np.float64)
    model.col_upper_ = np.array(programme.upper, np.float64)
    model.row_lower_ = np.array([row[0] for row in programme.rows], np.float64)
    model.row_upper_ = np.array([row[2] for row in programme.rows], np.float64)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.cumsum([0, *(len(row[1]) for row in programme.rows)]).astype(np.int32)
    model.a_matrix_.index_ = np.array([c for row in programme.rows for c in row[1]], np.int32)
    model.a_matrix_.value_ = np.array([x for row in programme.rows for x in row[1].values()], np.float64)
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    model.integrality_ = [kinds[whole] for whole in programme.whole]

    class Quiet(highspy.Highs):  # type: ignore[misc]
        """The constructor prints a banner when it enables callbacks."""

        def enableCallbacks(self) -> None:
            self.silent()
            super().enableCallbacks()

    solver: Any = Quiet()
    # In a thread of its own, so that Ctrl-C arrives here.
    solver.HandleKeyboardInterrupt = True
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
    solver.run()
    info, status = solver.getInfo(), solver.getModelStatus()
    infeasible = status == highspy.HighsModelStatus.kInfeasible
    if infeasible:
        return Solved((), inf, inf, True)
    found = info.primal_solution_status == 2
    values = tuple(solver.getSolution().col_value) if found else ()
    bound = max(float(info.mip_dual_bound), 0.0)
    value = float(info.objective_function_value) if found else inf
    return Solved(values, value, min(bound, value), status == highspy.HighsModelStatus.kOptimal)
