"""The clock of tables against an evaluator that shares nothing with it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from meshwright.errors import InputError
from meshwright.plan.model import Action, Row, Schedule
from meshwright.plan.schedules import chunks_of, generate, held, links, timed

from .play import play
from .test_more_schedules import CASES, chunked


@pytest.mark.parametrize(("name", "p", "m", "v", "args"), CASES)
def test_times_and_memory_are_those_of_the_readable_evaluator(
    name: str, p: int, m: int, v: int, args: dict[str, int | str]
) -> None:
    rows = generate(name, p, m, **chunked(name, v), **args)
    pairs = links(name, p, chunks_of(Schedule(name, m, {**args, **chunked(name, v)})), **args)
    want = play(rows, pairs, v)
    bars = timed(rows, pairs, chunks=v)
    assert max(row[-1].end for row in bars) == pytest.approx(float(want.makespan))
    assert max(row[-1].end - row[0].start for row in bars) == pytest.approx(float(want.span))
    assert [held(row, v) for row in rows] == pytest.approx([float(x) for x in want.memory])
    for row in bars:
        assert all(a.end <= b.start for a, b in pairwise(row))


def test_a_table_that_cannot_run_is_refused() -> None:
    crossed = (Row((0,), (Action("B", 0, 0), Action("F", 0, 0))), Row((1,), (Action("F", 1, 0), Action("B", 1, 0))))
    with pytest.raises(InputError, match="no order of actions can run this table"):
        timed(crossed)
