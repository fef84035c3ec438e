"""The period of a pipeline without a flush against a long table, played by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.plan.model import Schedule, Weights
from meshwright.plan.schedules.asynchronous import Worker, double_buffered_workers, pipedream_workers, staleness
from meshwright.simulate.endless import steady
from meshwright.simulate.fits import fits
from meshwright.simulate.simulator import simulate
from meshwright.simulate.tasks import Sends

from .small import chain, pipeline, problem

PIPEDREAM = Weights(flush=False, update_every=1)


def slope(crew: Sequence[Worker], forward: Sequence[float], backward: Sequence[float], send: float, m: int = 600) -> float:  # fmt: skip
    """Seconds a micro-batch, from one action after another: a worker's own order, values, gradients, one send at a time."""
    todo = [list(w.table(m)) for w in crew]
    holder = {(w.stage, k): e for e, w in enumerate(crew) for k in range(w.replica, m, w.replicas)}
    last = max(w.stage for w in crew)
    free, out, home = ([0.0] * len(crew) for _ in range(3))
    there: dict[tuple[str, int, int], float] = {}  # (kind, stage, micro-batch) -> when its result is at the next one
    ended: dict[tuple[str, int, int], float] = {}
    begun: dict[int, float] = {}
    rounds: dict[tuple[int, int], dict[int, float]] = {}
    while any(todo):
        moved = False
        for e, w in enumerate(crew):
            while todo[e]:
                a = todo[e][0]
                s, k = w.stage, a.micro_batch
                if a.kind == "UPDATE":
                    own = rounds.setdefault((s, k // w.replicas), {})
                    own[e] = free[e]
                    peers = {f for f, other in enumerate(crew) if other.stage == s and holder.get((s, k // w.replicas * w.replicas + other.replica)) == f}  # fmt: skip
                    if set(own) < peers:
                        break
                    free[e] = max(own.values())
                    todo[e].pop(0)
                    moved = True
                    continue
                wait = 0.0
                if a.kind == "F" and s:
                    wait = there.get(("F", s - 1, k), -1.0)
                if a.kind == "B":
                    wait = there.get(("B", s + 1, k), -1.0) if s < last else ended[("F", s, k)]
                if wait < 0:
                    break
                start = max(free[e], wait)
                if a.kind == "F" and s == 0:
                    begun[k] = start
                free[e] = ended[(a.kind, s, k)] = start + (forward if a.kind == "F" else backward)[e]
                if (a.kind == "F" and s < last) or (a.kind == "B" and s):
                    line = out if a.kind == "F" else home
                    line[e] = there[(a.kind, s, k)] = max(line[e], free[e]) + send
                todo[e].pop(0)
                moved = True
        assert moved, "the table is stuck"
    return (begun[540] - begun[180]) / 360


@example(replicas=[1, 1, 1], times=[(1, 1)] * 4, send=0.5)
@settings(max_examples=40, deadline=None)
@given(
    replicas=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    times=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=4, max_size=4),
    send=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_the_period_is_the_slope_of_a_long_table(
    replicas: list[int], times: list[tuple[int, int]], send: float
) -> None:
    crew = pipedream_workers(replicas)
    forward = [float(times[w.stage][0]) for w in crew]
    backward = [float(times[w.stage][1]) for w in crew]
    pairs = [(e, f) for e, a in enumerate(crew) for f, b in enumerate(crew) if b.stage == a.stage + 1]
    src, dst = (np.array([p[k] for p in pairs], np.int32) for k in (0, 1))
    lag, none = np.full(len(pairs), send), np.zeros(len(pairs))
    sends = Sends(src, dst, lag, lag, np.ones(len(pairs), bool), none, none)
    seconds = np.array([forward, backward, backward, [0.0] * len(crew)])
    found = steady(crew, seconds, sends)
    assert found.period == pytest.approx(slope(crew, forward, backward, send), rel=1e-9)
    for worker, f, b in zip(crew, forward, backward, strict=True):
        assert found.period >= (f + b) / worker.replicas * (1 - 1e-12)


def test_equal_stages_without_sends_never_wait() -> None:
    crew = pipedream_workers((1, 1, 1, 1))
    none = np.zeros(3)
    sends = Sends(np.arange(3, dtype=np.int32), np.arange(1, 4, dtype=np.int32), none, none, np.ones(3, bool), none, none)  # fmt: skip
    assert steady(crew, np.array([[1.0] * 4, [2.0] * 4, [1.0] * 4, [1.0] * 4]), sends).period == 3.0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_staleness_is_that_of_the_first_stage(depth: int) -> None:
    crew = pipedream_workers((1,) * depth)
    assert [staleness("newest", w, crew[0]) for w in crew] == list(range(depth))[::-1]
    assert [staleness("entry", w, crew[0]) for w in crew] == [depth - 1] * depth
    if depth > 1:
        late = double_buffered_workers(depth, depth + 1)
        assert [staleness("previous", w, late[0]) for w in late] == [1] * depth


def _asynchronous(schedule: str, m: int, weights: Weights, p: int = 4):
    base = pipeline(chain(4), p, m)
    return replace(base, schedule=Schedule(schedule, m, {}, (), weights))


def test_memory_counts_every_version() -> None:
    """Against one flush a step: warm-up + 1 versions, and a master that is no version."""
    asked = problem(chain(4), 4)
    flushed = simulate(asked, pipeline(chain(4), 4, 8))
    found = simulate(asked, _asynchronous("pipedream", 8, PIPEDREAM))
    assert found.staleness == 3 and flushed.staleness == 0
    for s, (one, other) in enumerate(zip(found.peak_by, flushed.peak_by, strict=True)):
        assert one["weights"] == (4 - s) * other["weights"]
        assert one["optimizer"] == other["optimizer"] + other["weights"]
        assert one["activations"] == other["activations"]
    doubled = simulate(asked, _asynchronous("2bw", 8, Weights(flush=False, update_every=8, reads="previous")))
    assert doubled.staleness == 1
    for one, other in zip(doubled.peak_by, flushed.peak_by, strict=True):
        assert one["weights"] == 2 * other["weights"]
    loose = simulate(asked, _asynchronous("pipedream", 8, replace(PIPEDREAM, stash=False)))
    assert [x["weights"] for x in loose.peak_by] == [x["weights"] for x in flushed.peak_by]


@pytest.mark.parametrize("name", ["pipedream", "2bw"])
def test_the_parts_add_up_and_the_window_is_one_period(name: str) -> None:
    weights = PIPEDREAM if name == "pipedream" else Weights(flush=False, update_every=8, reads="previous")
    found = simulate(problem(chain(4), 4), _asynchronous(name, 8, weights))
    assert sum(found.seconds_by.values()) == pytest.approx(found.step_seconds, rel=1e-9)
    if name == "2bw":  # as many updates, no bubble
        assert found.step_seconds < simulate(problem(chain(4), 4), pipeline(chain(4), 4, 8)).step_seconds
    forwards = [e for e in found.events if e.kind == "F" and e.stream == "compute" and e.lane == 0]
    assert len(forwards) == 8
    assert all(0 <= e.start < found.step_seconds for e in found.events)
    assert all((np.diff(t) >= 0).all() for t in found.memory_at)


def test_dealt_replicas_share_the_work() -> None:
    """2-1-1 of equal stages: the first stage does half a micro-batch's time each; two versions of its weights at most."""
    graph = chain(3)
    base = pipeline(graph, 3, 6, samples=48)
    first = replace(base.stages[0], mesh=Mesh((0, 1), ("data",), (2,)), deal="data")
    rest = tuple(replace(s, mesh=Mesh((2 + k,), ("data",), (1,))) for k, s in enumerate(base.stages[1:]))
    dealt = replace(
        base, stages=(first, *rest), schedule=Schedule("pipedream", 6, {"replicas": "2,1,1"}, (), PIPEDREAM)
    )
    asked = problem(graph, 4, samples=48)
    found = simulate(asked, dealt)
    assert [lane.devices for lane in found.lanes] == [1, 1, 1, 1]
    assert fits(asked, dealt) is None
    straight = simulate(asked, replace(base, schedule=Schedule("pipedream", 6, {}, (), PIPEDREAM)))
    assert found.step_seconds <= straight.step_seconds * (1 + 1e-9)


def test_every_lane_says_where_its_period_goes() -> None:
    found = simulate(problem(chain(4), 4), _asynchronous("pipedream", 8, PIPEDREAM))
    assert len(found.lane_seconds) == 4
    for parts in found.lane_seconds:
        assert sum(parts.values()) == pytest.approx(found.step_seconds, rel=1e-9)
        assert parts["backward"] > parts["forward"] > 0
