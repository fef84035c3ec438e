"""Engines against readable references, brute force and each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.simulate.engine import (
    as_task_graph,
    dispatch,
    fixed_order,
    relax,
    replay,
    task_graph,
    topological,
)

from .reference import longest_paths, play, tick


@st.composite
def ordered_tasks(draw, most=24):
    """Tasks with whole durations, edges that agree with the list orders, and those lists."""
    n = draw(st.integers(1, most))
    resources = draw(st.integers(1, 4))
    resource = draw(st.lists(st.integers(0, resources - 1), min_size=n, max_size=n))
    duration = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=2 * n, unique=True)) if pairs else []
    rank = draw(st.permutations(range(n)))  # task names have nothing to do with the order
    named = [(rank[a], rank[b]) for a, b in edges]
    lists = [[rank[t] for t in range(n) if resource[t] == r] for r in range(resources)]
    of, time = np.empty(n, np.int32), np.empty(n)
    for t in range(n):
        of[rank[t]], time[rank[t]] = resource[t], duration[t]
    return time, of, named, lists


def build(tasks):
    duration, resource, edges, lists = tasks
    listed = np.array([t for row in lists for t in row], np.int32)
    source, target = (np.array([e[k] for e in edges], np.int32) for k in (0, 1))
    return fixed_order(duration, resource, source, target, resources=len(lists), listed=listed)


@given(ordered_tasks())
@settings(max_examples=150, deadline=None)
def test_relaxation_heap_and_replay_agree_with_longest_paths_where_orders_are_fixed(tasks):
    fixed = build(tasks)
    truth = longest_paths(tasks[0], tasks[2], tasks[3])
    assert (relax(fixed) == truth).all()
    assert (replay(topological(fixed), fixed.duration) == truth).all()
    run = dispatch(as_task_graph(fixed))
    assert (run.start == truth).all()
    assert run.makespan == (truth + tasks[0]).max()


@given(ordered_tasks(), st.integers(0, 10))
@settings(max_examples=50, deadline=None)
def test_replay_with_other_durations_is_relaxation_with_them(tasks, seed):
    fixed = build(tasks)
    order = topological(fixed)
    other = np.random.default_rng(seed).random(fixed.tasks)
    again = build((other, *tasks[1:]))
    assert (replay(order, other) == relax(again)).all()


@given(ordered_tasks(), st.integers(0, 23))
@settings(max_examples=50, deadline=None)
def test_a_longer_task_never_lets_a_fixed_order_end_earlier(tasks, which):
    which %= len(tasks[0])
    longer = tasks[0].copy()
    longer[which] += 3
    before, after = relax(build(tasks)), relax(build((longer, *tasks[1:])))
    assert (after >= before).all()


@st.composite
def free_tasks(draw, most=14, least=0):
    """Tasks for the event engine: priorities, gangs, tasks without resource, occupancy unlike duration, memory."""
    n = draw(st.integers(1, most))
    number = st.integers(least, 4)
    duration = np.array(draw(st.lists(number, min_size=n, max_size=n)), float)
    same = draw(st.booleans())
    occupancy = duration if same else np.array(draw(st.lists(number, min_size=n, max_size=n)), float)
    priority = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), float)
    gangs = draw(st.integers(1, 3))
    held = [sorted(draw(st.sets(st.integers(0, 3), max_size=gangs))) for _ in range(n)]
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=2 * n, unique=True)) if pairs else []
    memory = [(t, draw(st.integers(0, 1)), draw(st.integers(0, 9)), -draw(st.integers(0, 9))) for t in range(n)]
    return task_graph(duration, held, edges, occupancy=occupancy, priority=priority, memory=memory)


@given(free_tasks())
@settings(max_examples=300, deadline=None)
def test_the_event_engine_equals_the_readable_one(graph):
    run = dispatch(graph)
    start, makespan, peak = play(graph)
    assert (run.start == start).all()
    assert run.makespan == makespan
    assert (run.peak == peak).all()


@given(free_tasks(most=8, least=1))
@settings(max_examples=150, deadline=None)
def test_the_event_engine_equals_a_clock_that_ticks(graph):
    horizon = int(graph.duration.sum() + graph.occupancy.sum()) + 2
    assert (dispatch(graph).start == tick(graph, horizon)).all()


@pytest.mark.parametrize("seed", range(12))
def test_no_priorities_beat_the_best_of_all_orders(seed):
    rng = np.random.default_rng(seed)
    n, resources = 7, 2
    duration = rng.integers(1, 6, n).astype(float)
    resource = rng.integers(0, resources, n)
    edges = [(a, b) for a in range(n) for b in range(a + 1, n) if rng.random() < 0.25]
    rows = [[t for t in range(n) if resource[t] == r] for r in range(resources)]
    best = np.inf
    for lists in itertools.product(*(itertools.permutations(row) for row in rows)):
        try:
            best = min(best, (relax(build((duration, resource.astype(np.int32), edges, lists))) + duration).max())
        except InputError:
            continue
    reached = min(
        dispatch(
            task_graph(duration, [[r] for r in resource], edges, priority=rng.permutation(n).astype(float))
        ).makespan
        for _ in range(60)
    )
    assert best <= reached <= 1.5 * best


def test_the_earlier_priority_goes_first_and_a_gang_waits_for_all_its_resources():
    # 0 holds a until 2, 1 holds b until 3; the gang 2 wants both, 3 wants a and has the later priority.
    graph = task_graph(np.array([2.0, 3.0, 1.0, 5.0]), [[0], [1], [0, 1], [0]], [], priority=np.array([0.0, 0, 1, 2]))
    # Nothing is reserved: 3 takes a at 2 although the gang, which could start at 3, comes first.
    assert dispatch(graph).start.tolist() == [0, 0, 7, 2]
    late = task_graph(np.array([3.0, 3.0, 1.0, 5.0]), [[0], [1], [0, 1], [0]], [], priority=np.array([0.0, 0, 1, 2]))
    assert dispatch(late).start.tolist() == [0, 0, 3, 4]


def test_a_circle_is_said_in_one_sentence():
    row = np.array([0, 0], np.int32)
    stuck = fixed_order(np.ones(2), row, np.array([1], np.int32), np.array([0], np.int32), resources=1)
    for run in (relax, topological):
        with pytest.raises(InputError, match="2 of 2 tasks never start, because they wait for each other in a circle"):
            run(stuck)
    with pytest.raises(InputError, match="never start"):
        dispatch(task_graph(np.ones(2), [[0], [1]], [(0, 1), (1, 0)]))


def test_read_only_and_other_integer_arrays_are_taken():
    tasks = build((np.ones(3), np.array([0, 0, 1], np.int32), [(0, 2)], [[0, 1], [2]]))
    for array in (tasks.duration, tasks.listed, tasks.successor):
        array.flags.writeable = False
    assert relax(tasks).tolist() == [0, 1, 1]
