"""Schedules as tasks: published makespans, memory by rank, closed forms, and the fast path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError, Unsupported
from meshwright.plan.model import Action, Row, Schedule
from meshwright.plan.schedules.rows import generate
from meshwright.simulate.engine import as_task_graph, dispatch, relax
from meshwright.simulate.memory import peaks
from meshwright.simulate.pipeline import FAST, Orders, orders, pipeline_times, split_times
from meshwright.simulate.tasks import chain, pipeline_tasks


def schedule(name: str, m: int, v: int) -> Schedule:
    return Schedule(name, m, {"v": v} if v > 1 else {})


def makespan(order: Orders, seconds: np.ndarray, p: int, v: int, lag: float = 0.0) -> float:
    delays = np.full((p, v), lag)
    tasks = pipeline_tasks(order, seconds, chain(p, v, delays, delays))
    return float((relax(tasks.fixed) + tasks.fixed.duration)[: tasks.actions].max())


def times(stages: int, v: int, f: float = 1.0, b: float = 2.0, i: float = 1.0, w: float = 1.0) -> np.ndarray:
    """Seconds of a chunk where a whole rank takes f, b, i, w."""
    return np.repeat(np.array([[f], [b], [i], [w]]) / v, stages, axis=1)


REFERENCE = [  # schedules.md: name, p, m, v, makespan, memory by rank in micro-batches
    ("gpipe", 4, 8, 1, 33, [8, 8, 8, 8]),
    ("1f1b", 4, 8, 1, 33, [4, 3, 2, 1]),
    ("1f1b", 8, 16, 1, 69, [8, 7, 6, 5, 4, 3, 2, 1]),
    ("interleaved", 4, 8, 2, 28.5, [5.5, 4.5, 3.5, 2.5]),
    ("interleaved", 4, 8, 4, 26.25, [4.75, 4.25, 3.75, 3.25]),
    ("interleaved", 4, 4, 2, 16.5, [4, 4, 4, 4]),
    ("bfs", 4, 8, 2, 28.5, [8, 8, 8, 8]),
    ("zb-h1", 4, 8, 1, 27, [4, 4, 4, 4]),
]


@pytest.mark.parametrize(("name", "p", "m", "v", "end", "memory"), REFERENCE)
def test_makespan_and_memory_are_the_published_ones(name, p, m, v, end, memory):
    order = orders(schedule(name, m, v), p * v)
    assert makespan(order, times(p * v, v), p, v) == end
    held = peaks(order, np.full(p * v, 1.0 / v), np.zeros((p * v, 2)))
    assert held.tolist() == pytest.approx(memory)


@pytest.mark.parametrize(("f", "i", "w", "end"), [(2, 2, 1, 49), (10, 12, 7, 277)])
def test_zero_bubble_with_unlike_halves_ends_as_published(f, i, w, end):
    assert makespan(orders(Schedule("zb-h1", 8), 4), times(4, 1, f, i + w, i, w), 4, 1) == end


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_equal_stages_end_by_the_closed_forms(p, rounds, v, f, b):
    m = p * rounds
    ideal = m * (f + b)
    for name, chunks in (("gpipe", 1), ("1f1b", 1), ("interleaved", v), ("bfs", v)):
        if name == "interleaved" and v > 1 and m == p:
            continue  # all forwards first: a table of its own
        end = makespan(orders(schedule(name, m, chunks), p * chunks), times(p * chunks, chunks, f, b), p, chunks)
        assert end == pytest.approx(ideal + (p - 1) * (f + b) / chunks)


@st.composite
def uneven(draw):
    p, v = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    name = draw(st.sampled_from(sorted(FAST)))
    if name in ("gpipe", "1f1b"):
        v = 1
    m = draw(st.integers(1, 9))
    if name == "interleaved":
        m = p * draw(st.integers(1, 4))
    number = st.floats(0.0, 4.0)
    seconds = np.array(draw(st.lists(number, min_size=4 * p * v, max_size=4 * p * v))).reshape(4, p * v)
    lag = np.array(draw(st.lists(number, min_size=2 * p * v, max_size=2 * p * v))).reshape(2, p, v)
    return name, p, v, m, seconds, lag


@given(uneven())
@settings(max_examples=150, deadline=None)
def test_the_fast_path_equals_tasks_to_the_last_bit(case):
    name, p, v, m, seconds, lag = case
    order = orders(schedule(name, m, v), p * v)
    tasks = pipeline_tasks(order, seconds, chain(p, v, lag[0], lag[1]))
    end = relax(tasks.fixed) + tasks.fixed.duration
    by_rank = [end[: tasks.actions][order.task_rank == r].max() for r in range(p)]
    per_rank = seconds.reshape(4, v, p).transpose(0, 2, 1)
    last, fast = pipeline_times(schedule(name, m, v), per_rank[0], per_rank[1], lag[0], lag[1])
    assert fast.tolist() == by_rank
    assert (fast >= last).all()


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_the_fast_path_of_zero_bubble_equals_tasks_to_the_last_bit(p, m, seed):
    rng = np.random.default_rng(seed)
    f, b, share = rng.uniform(0, 4, p), rng.uniform(0, 4, p), rng.uniform(0, 1, p)
    w, lag = b * share, rng.uniform(0, 2, (2, p))
    order = orders(Schedule("zb-h1", m), p)
    tasks = pipeline_tasks(order, np.stack([f, b, b - w, w]), chain(p, 1, lag[0][:, None], lag[1][:, None]))
    end = relax(tasks.fixed) + tasks.fixed.duration
    by_rank = [end[: tasks.actions][order.task_rank == r].max() for r in range(p)]
    assert split_times(Schedule("zb-h1", m), f, b, w, lag[0], lag[1]).tolist() == by_rank


@given(uneven())
@settings(max_examples=30, deadline=None)
def test_the_event_engine_agrees_on_pipelines(case):
    name, p, v, m, seconds, lag = case
    tasks = pipeline_tasks(orders(schedule(name, m, v), p * v), seconds, chain(p, v, lag[0], lag[1]))
    assert (dispatch(as_task_graph(tasks.fixed)).start == relax(tasks.fixed)).all()


@given(
    st.sampled_from(["gpipe", "1f1b", "interleaved", "bfs", "zb-h1"]),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_arrays_are_the_rows_of_the_schedule(name, p, rounds, v, short):
    v = v if name in ("interleaved", "bfs") else 1
    m = p * rounds
    args = {"short": short} if name == "interleaved" else {}
    fast = orders(replace(schedule(name, m, v), args={"v": v, **args} if v > 1 else args), p * v)
    slow = orders(Schedule("custom", m), p * v, rows=generate(name, p, m, v, **args))
    for field in ("kind", "stage", "micro_batch", "task", "task_rank", "rank_ptr"):
        assert (getattr(fast, field) == getattr(slow, field)).all(), field


def test_a_pair_runs_as_one_task_of_both_durations():
    # schedules.md: forward and backward of a pair start together and take as long as both.
    rows = (
        Row((0,), (Action("F", 0, 0), Action("F", 0, 1), (Action("F", 0, 2), Action("B", 0, 0)), Action("B", 0, 1), Action("B", 0, 2))),
        Row((1,), (Action("F", 1, 0), Action("B", 1, 0), Action("F", 1, 1), Action("B", 1, 1), Action("F", 1, 2), Action("B", 1, 2))),
    )  # fmt: skip
    order = orders(Schedule("custom", 3), 2, rows=rows)
    assert len(order.task_rank) == 11 and len(order.kind) == 12
    # rank 1: F0 1-2, B0 2-4; rank 0's pair starts when B0 arrives at 4 and ends at 7; F2 of rank 1 can start then.
    assert makespan(order, times(2, 1), 2, 1) == 12


def test_stages_that_skip_and_stages_of_one_rank_wait_for_the_right_ones():
    from meshwright.simulate.tasks import Sends

    # Stage 0 feeds 1 and 2, on one rank each; what goes from 0 to 2 takes 10 and has no gradient.
    sends = Sends(
        np.array([0, 0, 1], np.int32), np.array([1, 2, 2], np.int32), np.array([1.0, 10.0, 1.0]), np.array([1.0, 0.0, 1.0]),
        np.array([True, False, True]), np.ones(3), np.ones(3),
    )  # fmt: skip
    order = orders(Schedule("gpipe", 1), 3)
    tasks = pipeline_tasks(order, times(3, 1), sends)
    start = relax(tasks.fixed)
    by_name = {(int(s), int(k)): start[t] for s, k, t in zip(order.stage, order.kind, order.task, strict=True)}
    # One stream sends 1 first (order of pairs), then the long one: 1 + 1 + 10.
    assert by_name[1, 0] == 2 and by_name[2, 0] == 12
    assert by_name[2, 1] == 13 and by_name[1, 1] == 16 and by_name[0, 1] == 19


def test_more_time_for_a_send_never_ends_a_pipeline_earlier():
    order = orders(Schedule("1f1b", 8), 4)
    ends = [makespan(order, times(4, 1), 4, 1, lag) for lag in (0.0, 0.1, 0.5, 1.0, 3.0)]
    assert ends == sorted(ends) and ends[0] < ends[-1]


def test_wrong_schedules_are_refused_in_a_sentence():
    with pytest.raises(InputError, match="3 stages do not divide into v = 2 a rank"):
        orders(Schedule("interleaved", 4, {"v": 2}), 3)
    with pytest.raises(InputError, match="multiple"):
        orders(Schedule("interleaved", 3, {"v": 2}), 4)
    with pytest.raises(InputError, match="stages 0 to 1"):
        orders(Schedule("custom", 1), 2, rows=(Row((0,), (Action("F", 2, 0),)),))
    with pytest.raises(InputError, match="micro-batches 0 to 0"):
        orders(Schedule("custom", 1), 2, rows=(Row((0,), (Action("F", 1, 1),)),))
    with pytest.raises(Unsupported, match="no fast path"):
        pipeline_times(Schedule("zb-h1", 4), *np.ones((4, 2, 1)))


def test_rows_that_wait_for_each_other_are_an_error():
    rows = (Row((0,), (Action("B", 0, 0), Action("F", 0, 0))), Row((1,), (Action("F", 1, 0), Action("B", 1, 0))))
    with pytest.raises(InputError, match="wait for each other"):
        makespan(orders(Schedule("custom", 1), 2, rows=rows), times(2, 1), 2, 1)
