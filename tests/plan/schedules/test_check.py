"""Zero-buffer sends: no generated table gets stuck, and the check does find tables and lists that do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.plan.model import Action, Row
from meshwright.plan.schedules import Exchange, deadlock_free, exchanges, generate, stuck

from .test_schedules import REFERENCE, tables


@pytest.mark.parametrize(("name", "p", "m", "v"), [row[:4] for row in REFERENCE])
def test_reference_tables_are_free_of_deadlock(name: str, p: int, m: int, v: int) -> None:
    table = generate(name, p, m, v)
    assert stuck(table, exchanges(table)) == ""
    assert deadlock_free(table)


@settings(max_examples=300, deadline=None)
@given(tables())
def test_every_generated_table_is_free_of_deadlock(case: tuple[str, int, int, int]) -> None:
    table = generate(*case)
    assert stuck(table, exchanges(table)) == ""


@settings(max_examples=100, deadline=None)
@given(tables())
def test_each_boundary_value_goes_once_from_its_maker_to_its_user(case: tuple[str, int, int, int]) -> None:
    name, p, m, v = case
    lists = exchanges(generate(name, p, m, v))
    sent = Counter((x.forward, x.src_stage, x.micro_batch) for own in lists for e in own for x in e.sends)
    received = Counter((x.forward, x.src_stage, x.micro_batch) for own in lists for e in own for x in e.receives)
    borders = range(p * v - 1) if p > 1 else ()
    want = [(True, s, j) for s in borders for j in range(m)] + [(False, s + 1, j) for s in borders for j in range(m)]
    assert sent == received == Counter(want)


def late(table: tuple[Row, ...]) -> tuple[tuple[Exchange, ...], ...]:
    """Every receive right before its use."""
    found = []
    for row, own in zip(table, exchanges(table)):
        due = {(x.forward, x.dst_stage, x.micro_batch): x for e in own for x in e.receives}
        use = [due.get((a.kind == "F", a.on, a.micro_batch)) if a.kind != "W" else None for a in row.actions]
        found.append(tuple(Exchange(e.sends, (x,) if x else ()) for e, x in zip(own, [*use, None])))
    return tuple(found)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1"])
def test_one_stage_a_rank_needs_no_early_receive(name: str) -> None:
    table = generate(name, 4, 8)
    assert stuck(table, late(table)) == ""


@pytest.mark.parametrize("name", ["interleaved", "bfs"])
def test_late_receives_of_chunked_tables_are_found_to_wait_in_a_circle(name: str) -> None:
    table = generate(name, 4, 8, 2)
    assert stuck(table, late(table)).startswith("ranks wait for each other: rank 0 before ")


def test_a_send_without_its_receive_is_found() -> None:
    table = generate("1f1b", 2, 2)
    lists = [list(own) for own in exchanges(table)]
    k = next(k for k, e in enumerate(lists[1]) if e.receives)
    lists[1][k] = replace(lists[1][k], receives=())
    assert stuck(table, tuple(map(tuple, lists))) == "ranks wait for each other: rank 0 before 0F1, rank 1 before 1F0"


def test_an_order_that_nothing_can_run_is_refused_with_its_places() -> None:
    crossed = (
        Row((0,), (Action("F", 0, 0), Action("B", 0, 0), Action("F", 0, 1), Action("B", 0, 1))),
        Row((1,), (Action("F", 1, 1), Action("B", 1, 1), Action("F", 1, 0), Action("B", 1, 0))),
    )
    with pytest.raises(InputError) as error:
        exchanges(crossed)
    assert str(error.value) == "no order of messages can run this table: rank 0 before 0B0, rank 1 before 1F1"
    assert not deadlock_free(crossed)


def test_values_that_skip_stages_are_messages_too() -> None:
    table = generate("1f1b", 3, 4)
    links = [(0, 1), (1, 2), (0, 2)]
    lists = exchanges(table, links)
    assert stuck(table, lists, links) == ""
    assert sum((x.src_stage, x.dst_stage) == (0, 2) for own in lists for e in own for x in e.sends) == 4
    assert sum((x.src_stage, x.dst_stage) == (2, 0) for own in lists for e in own for x in e.sends) == 4


@settings(max_examples=50, deadline=None)
@given(st.permutations([Action("F", 0, 0), Action("F", 0, 1), Action("B", 0, 0), Action("B", 0, 1)]))
def test_stuck_agrees_with_the_order_of_the_dependencies(order: list[Action]) -> None:
    other = Row((1,), (Action("F", 1, 0), Action("B", 1, 0), Action("F", 1, 1), Action("B", 1, 1)))
    at = {(a.kind, a.micro_batch): i for i, a in enumerate(order)}
    # Rank 1 gives B0 back before it takes F1: rank 0 needs F0 < B0, F1 < B1 and F0 < B1 only.
    possible = at["F", 0] < at["B", 0] and at["F", 1] < at["B", 1] and at["F", 0] < at["B", 1]
    assert deadlock_free((Row((0,), tuple(order)), other)) == possible
