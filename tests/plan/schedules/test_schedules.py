"""Generated tables against published figures, closed forms and the invariants of every pipeline."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction as Q

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
from meshwright.plan.model import Plan, Row, Schedule, Stage
from meshwright.plan.schedules import GENERATORS, generate, rows

from .evaluate import evaluate


def down(p: int) -> list[int]:
    return list(range(p, 0, -1))


# (name, p, m, v, makespan, fraction, memory by rank): F = 1, B = 2, I = W = 1; methods' papers and public schedulers.
REFERENCE = [
    ("gpipe", 4, 8, 1, 33, Q(3, 11), [8] * 4),
    ("1f1b", 4, 8, 1, 33, Q(3, 11), down(4)),
    ("1f1b", 8, 16, 1, 69, Q(7, 23), down(8)),
    ("interleaved", 4, 8, 2, Q("28.5"), Q(3, 19), [Q("5.5"), Q("4.5"), Q("3.5"), Q("2.5")]),
    ("interleaved", 4, 8, 4, Q("26.25"), Q(3, 35), [Q("4.75"), Q("4.25"), Q("3.75"), Q("3.25")]),
    ("interleaved", 4, 4, 2, Q("16.5"), Q(3, 11), [4] * 4),
    ("bfs", 4, 8, 2, Q("28.5"), Q(3, 19), [8] * 4),
    ("zb-h1", 4, 8, 1, 27, Q(1, 9), [4] * 4),
    ("gpipe", 4, 4, 1, 21, Q(3, 7), [4] * 4),
]


@pytest.mark.parametrize(("name", "p", "m", "v", "makespan", "fraction", "memory"), REFERENCE)
def test_reference_row(name: str, p: int, m: int, v: int, makespan: Q, fraction: Q, memory: list[Q]) -> None:
    got = evaluate(generate(name, p, m, v), v)
    assert (got.makespan, got.fraction, list(got.memory)) == (makespan, fraction, memory)


@pytest.mark.parametrize(("f", "i", "w", "makespan"), [(1, 1, 1, 27), (2, 2, 1, 49), (10, 12, 7, 277)])
def test_zb_h1_makespan_of_unequal_times(f: int, i: int, w: int, makespan: int) -> None:
    assert evaluate(generate("zb-h1", 4, 8), times={"F": f, "I": i, "W": w}).makespan == makespan


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, int, int, int]:
    name = draw(st.sampled_from(["gpipe", "1f1b", "interleaved", "bfs", "zb-h1"]))
    p = draw(st.integers(1, 6))
    v = draw(st.integers(1, 4)) if name in ("interleaved", "bfs") else 1
    m = draw(st.integers(1, 5)) * p if name == "interleaved" else draw(st.integers(1, 14))
    return name, p, m, v


@settings(max_examples=300, deadline=None)
@given(tables())
def test_every_stage_runs_every_micro_batch_once_on_the_rank_that_holds_it(case: tuple[str, int, int, int]) -> None:
    name, p, m, v = case
    table = generate(name, p, m, v)
    assert [row.devices for row in table] == [(r,) for r in range(p)]
    kinds = "FIW" if name == "zb-h1" else "FB"
    for r, row in enumerate(table):
        ran = Counter((a.kind, a.on, a.micro_batch) for a in row.actions)
        assert ran == Counter((k, c * p + r, j) for k in kinds for c in range(v) for j in range(m))


@settings(max_examples=200, deadline=None)
@given(tables(), st.integers(1, 9), st.integers(1, 9))
def test_makespan_is_never_below_the_work_of_one_rank(case: tuple[str, int, int, int], f: int, b: int) -> None:
    name, p, m, v = case
    got = evaluate(generate(name, p, m, v), v, {"F": f, "B": 2 * b, "I": b, "W": b})
    assert got.makespan >= m * (f + 2 * b)
    assert 0 <= got.fraction < 1


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7), st.integers(1, 15), st.integers(1, 9), st.integers(1, 9))
def test_closed_forms_of_unchunked_schedules(p: int, m: int, f: int, b: int) -> None:
    times = {"F": f, "B": b}
    for name, memory in (("gpipe", [m] * p), ("1f1b", [min(m, p - r) for r in range(p)])):
        got = evaluate(generate(name, p, m), times=times)
        assert got.makespan == (m + p - 1) * (f + b)
        assert got.fraction == Q(p - 1, m + p - 1)
        assert list(got.memory) == memory


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
def test_closed_forms_of_chunked_schedules(p: int, rounds: int, v: int) -> None:
    m = rounds * p
    got = evaluate(generate("interleaved", p, m, v), v)
    assert got.makespan == 3 * m + Q(3 * (p - 1), v)
    assert got.fraction == Q(p - 1, v * m + p - 1)
    if rounds > 1 and v > 1:
        warm_up = [2 * (p - r - 1) + (v - 1) * p for r in range(p)]
        assert list(got.memory) == [Q(min(m * v, w + 1), v) for w in warm_up]
    assert evaluate(generate("bfs", p, m, v), v).makespan == got.makespan
    assert evaluate(generate("bfs", p, m, v), v).memory == (m,) * p


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 6), st.integers(0, 8), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_closed_form_of_zb_h1(p: int, more: int, f: int, i: int, w: int) -> None:
    m = 2 * p + more
    w = min(w, f, i)
    got = evaluate(generate("zb-h1", p, m), times={"F": f, "I": i, "W": w})
    assert got.makespan == m * (f + i + w) + (p - 1) * (f + i - w)
    assert got.memory == (p,) * p


@given(st.integers(1, 6), st.integers(1, 5))
def test_interleaved_with_one_chunk_is_1f1b(p: int, rounds: int) -> None:
    assert generate("interleaved", p, rounds * p, 1) == generate("1f1b", p, rounds * p)


@given(st.integers(1, 6), st.integers(1, 12))
def test_gpipe_runs_backward_in_reverse_order(p: int, m: int) -> None:
    for row in generate("gpipe", p, m):
        assert [a.micro_batch for a in row.actions if a.kind == "B"] == list(reversed(range(m)))


@pytest.mark.parametrize(
    ("name", "p", "m", "v", "message"),
    [
        ("1f1c", 4, 8, 1, f'no schedule "1f1c": there are {", ".join(GENERATORS)}, custom and dataflow'),
        (
            "interleaved",
            4,
            6,
            2,
            "schedule interleaved needs micro-batches in a multiple of its 4 ranks: 6 are not, 8 would be",
        ),
        ("1f1b", 4, 8, 2, "schedule 1f1b has one stage a rank: v = 2 needs bfs, hanayo or interleaved"),
        ("gpipe", 0, 8, 1, "schedule gpipe needs at least 1 rank, micro-batch and chunk: got p = 0, m = 8, v = 1"),
    ],
)
def test_a_table_that_does_not_exist_says_why(name: str, p: int, m: int, v: int, message: str) -> None:
    with pytest.raises(InputError) as error:
        generate(name, p, m, v)
    assert str(error.value) == message


def plan(stages: int, schedule: Schedule) -> Plan:
    return Plan("", 1, tuple(Stage((), Mesh((0,))) for _ in range(stages)), schedule)


def test_rows_of_a_plan_come_from_its_schedule() -> None:
    assert rows(plan(8, Schedule("interleaved", 8, {"v": 2}))) == generate("interleaved", 4, 8, 2)
    assert rows(plan(4, Schedule("1f1b", 8))) == generate("1f1b", 4, 8)
    assert rows(plan(4, Schedule("dataflow", 8))) == ()
    own = (Row((0,), ()),)
    assert rows(plan(1, Schedule("custom", 1, rows=own))) == own
    with pytest.raises(InputError, match="schedule bfs: 7 stages do not divide into v = 2 a rank"):
        rows(plan(7, Schedule("bfs", 8, {"v": 2})))


def test_a_short_warm_up_of_p_micro_batches_takes_as_long_and_holds_less() -> None:
    usual, short = (evaluate(generate("interleaved", 4, 4, 2, short=n), 2) for n in (0, 1))
    assert short.makespan == usual.makespan
    assert list(short.memory) == [4, 4, Q("3.5"), Q("2.5")]
    assert generate("interleaved", 4, 8, 2, short=1) == generate("interleaved", 4, 8, 2)
