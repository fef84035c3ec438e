"""Rows of steps with a flush whose micro-batches are dealt to replicas in turn."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.plan.model import Action, Row
from meshwright.plan.schedules import generate
from meshwright.plan.schedules.dealt import DEALT, dealt_rows

REPLICAS = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def _flat(row: Row) -> list[Action]:
    return [a for a in row.actions if isinstance(a, Action)]


@settings(deadline=None)
@given(name=st.sampled_from(DEALT), replicas=REPLICAS, m=st.integers(5, 14))
def test_every_micro_batch_runs_on_one_replica_of_each_stage(name: str, replicas: list[int], m: int) -> None:
    rows, e = dealt_rows(name, replicas, m), 0
    assert len(rows) == sum(replicas)
    for n in replicas:
        for q in range(n):
            for kind in "FB":
                own = [a.micro_batch for a in _flat(rows[e]) if a.kind == kind]
                assert sorted(own) == list(range(q, m, n))
            assert all(a.on == e for a in _flat(rows[e]))
            e += 1


@settings(deadline=None)
@given(replicas=REPLICAS, m=st.integers(5, 30))
def test_a_replica_holds_what_piper_counts(replicas: list[int], m: int) -> None:
    """⌈s / d⌉ micro-batches, s replicas from its stage on, or all that it has."""
    rows, e = dealt_rows("1f1b", replicas, m), 0
    for k, n in enumerate(replicas):
        for q in range(n):
            held = most = 0
            for a in _flat(rows[e]):
                held += 1 if a.kind == "F" else -1
                most = max(most, held)
            assert most == min(-(-sum(replicas[k:]) // n), len(range(q, m, n)))
            e += 1


@settings(deadline=None)
@given(name=st.sampled_from(DEALT), replicas=REPLICAS, m=st.integers(5, 14))
def test_no_row_waits_for_ever(name: str, replicas: list[int], m: int) -> None:
    """Played: a forward needs that of the stage before, a backward its own forward and the backward of the stage after."""
    rows = [_flat(row) for row in dealt_rows(name, replicas, m)]
    stage = [k for k, n in enumerate(replicas) for _ in range(n)]
    at, done = [0] * len(rows), set[tuple[str, int, int]]()
    moved = True
    while moved:
        moved = False
        for e, row in enumerate(rows):
            while at[e] < len(row):
                kind, k, j = row[at[e]].kind, stage[e], row[at[e]].micro_batch
                needs = [("F", k - 1, j)] if k else []
                if kind == "B":
                    needs = [("F", k, j), *([("B", k + 1, j)] if k + 1 < len(replicas) else [])]
                if not done.issuperset(needs):
                    break
                done.add((kind, k, j))
                at[e], moved = at[e] + 1, True
    assert at == [len(row) for row in rows]


@pytest.mark.parametrize("name", DEALT)
def test_one_replica_each_is_the_usual_table(name: str) -> None:
    assert dealt_rows(name, [1, 1, 1], 5) == generate(name, 3, 5)


def test_a_replica_without_a_micro_batch_is_refused() -> None:
    with pytest.raises(InputError, match="stage 1 deals 2 micro-batches to 3 replicas, so some would have none"):
        dealt_rows("1f1b", [1, 3], 2)
