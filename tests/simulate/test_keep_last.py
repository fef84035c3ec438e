"""Recompute of all micro-batches but the last ones (`Stage.keep_last`)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from meshwright.errors import Unsupported
from meshwright.graph.ir import Graph
from meshwright.lower import lower
from meshwright.lower.program import unrolled
from meshwright.plan.lookup import stage_ops
from meshwright.plan.model import Plan, RecomputeAt, Weights
from meshwright.simulate import Pricer, collect, estimate, sends_of, simulate
from meshwright.simulate.result import Simulation

from .small import Rates, chain, pipeline, problem

SHAPES = [
    {"p": 1, "m": 8},
    {"p": 4, "m": 8, "name": "gpipe", "dp": 2},
    {"p": 4, "m": 8},
    {"p": 2, "m": 8, "v": 2, "name": "interleaved"},
    {"p": 4, "m": 8, "name": "zb-h1"},
]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return chain(blocks=8)


def keeping(plan: Plan, k: int, graph: Graph | None = None) -> Plan:
    """`graph`: all ops of a stage run again as one group, by their own names."""
    stages = tuple(replace(s, keep_last=k) for s in plan.stages)
    if graph:
        again = [frozenset(graph.ops[i].name for i in stage_ops(graph, s)) for s in stages]
        stages = tuple(
            replace(s, recompute=names if s.recompute else s.recompute, recompute_at="stage")
            for s, names in zip(stages, again)
        )
    return replace(plan, stages=stages)


def never(plan: Plan) -> Plan:
    return replace(plan, stages=tuple(replace(s, recompute=frozenset()) for s in plan.stages))


def figures(found: Simulation) -> dict[str, object]:
    return {
        "seconds": found.step_seconds, "by": found.seconds_by, "peak": list(found.peak), "bubble": found.bubble,
        "calls": found.calls_by, "bytes": found.bytes_by, "lanes": found.lane_seconds, "events": found.events,
    }  # fmt: skip


@pytest.mark.parametrize("at", ["block", "stage"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_none_kept_is_always_all_kept_is_never(graph: Graph, shape: dict[str, int], at: RecomputeAt) -> None:
    whole = graph if at == "stage" else None
    question, plan = problem(graph, 16, Rates(link=1e5)), pipeline(graph, **shape, recompute=True)
    always, without = (figures(simulate(question, keeping(p, 0, whole))) for p in (plan, never(plan)))
    assert always["seconds"] > without["seconds"]
    for k in (8, 9):
        assert figures(simulate(question, keeping(plan, k, whole))) == without
    assert figures(simulate(question, keeping(never(plan), 3, whole))) == without


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_time_falls_and_memory_rises_with_each_that_is_kept(graph: Graph, shape: dict[str, int]) -> None:
    question, plan = problem(graph, 16, Rates(link=1e5)), pipeline(graph, **shape, recompute=True)
    found = [simulate(question, keeping(plan, k)) for k in range(9)]
    seconds, peaks = [x.step_seconds for x in found], np.array([x.peak for x in found])
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(seconds))
    assert seconds[8] < seconds[1] < seconds[0]
    assert (np.diff(peaks, axis=0) >= -1e-9).all()
    # Alone, with one micro-batch in flight, a block ends with what the next one begins with: nothing is saved.
    assert (peaks[8] > peaks[0]).any() if shape["p"] > 1 else (peaks[8] == peaks[0]).all()
    for x in found:
        assert sum(x.seconds_by.values()) == pytest.approx(x.step_seconds, rel=1e-9)
        for lane, parts in enumerate(x.peak_by):
            assert sum(parts.values()) == pytest.approx(x.peak[lane], rel=1e-9)
            assert x.memory[lane].sum(axis=1).max() == pytest.approx(x.peak[lane], rel=1e-9)
        for parts in x.lane_seconds:
            assert sum(parts.values()) == pytest.approx(x.step_seconds, rel=1e-9)


@pytest.mark.parametrize("k", range(6))
def test_a_step_of_gpipe_counted_by_hand(graph: Graph, k: int) -> None:
    """Stages with unequal `keep_last`; each action after the one before it on its stage and the one that feeds it."""
    p, m = 4, 5
    question = problem(graph, p, Rates(link=1e30), samples=40)
    plan = pipeline(graph, p, m, name="gpipe", samples=40, recompute=True)
    kept = [k, 0, 2, 1]
    plan = replace(plan, stages=tuple(replace(s, keep_last=n) for s, n in zip(plan.stages, kept)))
    pricer = Pricer(graph, question.cluster, question.cost, question.recipe)
    always, without = (
        [pricer.stage(code, [8]) for code in lower(graph, x, question.recipe).stages]
        for x in (keeping(plan, 0), never(plan))
    )
    done: dict[tuple[str, int, int], float] = {}
    free = [0.0] * p
    for j in range(m):
        for s in range(p):
            free[s] = done["F", s, j] = max(free[s], done.get(("F", s - 1, j), 0.0)) + always[s].forward[0].sum()
    for j in reversed(range(m)):
        for s in reversed(range(p)):
            price = without[s] if j >= m - kept[s] else always[s]
            free[s] = done["B", s, j] = max(free[s], done.get(("B", s + 1, j), 0.0)) + price.backward[0].sum()
    want = max(end + x.optimizer for end, x in zip(free, always))
    assert simulate(question, plan).step_seconds == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("at", ["block", "stage"])
def test_the_last_micro_batch_of_gpipe_adds_what_it_keeps(graph: Graph, at: RecomputeAt) -> None:
    """All forwards come first, then the backward of the last: the peak is there, or in the next backward, which makes
    again what the last one kept. So the peak may even fall, where that and its work space outweigh what is kept."""
    whole = graph if at == "stage" else None
    question = problem(graph, 4)
    plan = keeping(pipeline(graph, 4, 8, name="gpipe", recompute=True), 0, whole)
    always, last = (simulate(question, keeping(plan, k, whole)) for k in (0, 1))
    pricer = Pricer(graph, question.cluster, question.cost, question.recipe)
    one, other = (
        [pricer.stage(code, [8]) for code in lower(graph, x, question.recipe).stages] for x in (plan, never(plan))
    )
    for r in range(4):
        mine, all_kept = (float(x[r].kept[0] + x[r].loss[0]) for x in (one, other))
        (_, again), work = one[r].buffers[0], float(max(other[r].buffers[0]))
        assert not one[r].gone.any() and not other[r].gone.any() and again == max(one[r].buffers[0])
        rest = always.peak[r] - 8 * mine - again
        static = one[r].weights + one[r].gradients + one[r].state
        assert rest >= static > 0
        assert last.peak[r] == pytest.approx(rest + 7 * mine + max(all_kept + work, again), rel=1e-12)
        assert all_kept > mine


def test_the_unrolled_program_costs_the_same(graph: Graph) -> None:
    question, plan = problem(graph, 16), keeping(pipeline(graph, 2, 8, dp=2, recompute=True), 2)
    program = lower(graph, plan, question.recipe)
    folded, flat = (simulate(question, plan, program=x) for x in (program, unrolled(program, graph)))
    assert flat.step_seconds == pytest.approx(folded.step_seconds, rel=1e-12)
    assert flat.calls_by == folded.calls_by and flat.peak == pytest.approx(folded.peak)


def test_what_cannot_tell_micro_batches_apart_refuses(graph: Graph) -> None:
    question, plan = problem(graph, 4), keeping(pipeline(graph, 4, 8, recompute=True), 1)
    with pytest.raises(Unsupported, match="set keep_last = 0"):
        simulate(question, plan, preset="distir")
    endless = replace(plan, schedule=replace(plan.schedule, name="pipedream", weights=Weights(flush=False)))
    with pytest.raises(Unsupported, match=r"stage 0 keeps .* under schedule pipedream no step ends: set keep_last = 0"):
        simulate(question, endless)
    program = lower(graph, plan, question.recipe)
    pricer = Pricer(graph, question.cluster, question.cost, question.recipe)
    prices, last = ([pricer.stage(c, [8]) for c in cs] for cs in (program.stages, [c.last for c in program.stages]))
    sends = sends_of(program, pricer)
    work = collect(prices, 0, [s.mesh for s in program.stages], sends, pricer, last)
    with pytest.raises(Unsupported, match="keep_last"):
        estimate(work, plan.schedule, sends, 1, 0.5, (1.0, 0.0))
