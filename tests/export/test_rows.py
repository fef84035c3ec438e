"""The rows with which tables of levels are computed are plans that stand: recognised as what they say, and simulated."""

from __future__ import annotations

import pytest

from meshwright.export.rows import ROWS, Row, setup_of_row
from meshwright.export.setup import setup_of
from meshwright.simulate.simulator import simulate


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.words)
def test_a_row_is_the_plan_that_it_says(row: Row) -> None:
    setup = setup_of_row(row)
    plan = setup.plan()
    again = setup_of(setup.problem, plan, setup.name)
    assert again.layout == setup.layout
    assert simulate(setup.problem, plan, detail=False).step_seconds > 0
