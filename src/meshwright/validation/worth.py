"""What kinds of work measured rows are made of, as they are predicted: what three of them are learnt from (`three_rows`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..calibration.profile import with_constants
from ..calibration.stack import Factors, slower, worth
from ..cost import Analytic
from ..cost.collectives import CollectivePrices
from ..cost.constants import Family, Software
from ..graph.ir import Floats
from .parameters import Values, tables
from .plans import Case, cost_of
from .rows import Row
from .settings import ASIDE

MOST = 48
"""Rows of a source of which it is told, evenly over them, and as many of those that stand apart."""
_Tables = tuple[Mapping[str, Family], Mapping[str, Software]]


class Stacks:
    """The tables of the package with the constants of `values`, slower by factors."""

    def __init__(self, values: Values, cases: Sequence[Case]) -> None:
        self._families, self._software = tables(values)
        self._used = {t.family for case in cases for t in case.problem.cluster.types}
        self._known: dict[tuple[tuple[str, float], ...], _Tables] = {}
        self._prices = CollectivePrices()

    def tables(self, factors: Factors) -> _Tables:
        key = tuple(factors.items())
        if key not in self._known:
            families = {k: v for k, v in self._families.items() if k in self._used}
            self._known[key] = (
                {k: with_constants(v, slower(v, factors)) for k, v in families.items()},
                {k: with_constants(v, slower(v, factors)) for k, v in self._software.items()},
            )
        return self._known[key]

    def worth(self, case: Case) -> Floats:
        """Seconds [TERMS] of a case; see `calibration.stack.worth`."""

        def cost(factors: Factors) -> Analytic:
            return cost_of(case.row, *self.tables(factors), self._prices)

        return worth(case.problem, case.plan, cost, case.program)[1]


def told(rows: Sequence[Row]) -> set[str]:
    """Ids of the rows of one source of which it is told what they are made of."""
    found: set[str] = set()
    for aside in (False, True):
        own = sorted((r for r in rows if bool(ASIDE & set(r.flags)) == aside), key=lambda r: (str(r.model), r.id))
        found |= {r.id for r in own[:: max(1, -(-len(own) // MOST))]}
    return found
