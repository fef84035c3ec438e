"""Values of others that a planner must reproduce: the tests assert them, the page of the planner (docs/planners) shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

Row = TypeVar("Row")


def reference_cases(planner: str, what: str, *, source: str, columns: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """The rows, for `pytest.mark.parametrize` or a loop; `docs/build.py planners` reads this call without running the test.

    Args:
        planner: its name.
        what: the cases have in common, in a few words.
        source: who found the values.
        columns: a word for each value of a row.
        rows: of literals, `range`, and constants of the module; `pytest.param` where a row has marks.
    """
    for row in rows:
        values: Any = getattr(row, "values", row)
        if len(values) != len(columns):
            raise ValueError(f"{planner}, {what}: {values} has {len(values)} values for {len(columns)} columns")
    return list(rows)
