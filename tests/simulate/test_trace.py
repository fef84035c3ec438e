"""The trace that Perfetto opens: slices nest, time runs forward, every arrow has two ends."""

from __future__ import annotations

import gzip
import itertools
import json

import pytest

from meshwright.errors import InputError
from meshwright.plan.model import Schedule
from meshwright.simulate import simulate
from meshwright.simulate.pipeline import orders
from meshwright.simulate.result import CATEGORIES, Event
from meshwright.simulate.timeline import kept_micro_batches
from meshwright.simulate.trace import MEMORY_POINTS, _rows, _thinned, write_trace

from .small import Rates, chain, pipeline, problem

SHAPES = [
    {"p": 1, "m": 4, "dp": 2},
    {"p": 4, "m": 8, "dp": 2},
    {"p": 2, "m": 8, "v": 2, "name": "interleaved"},
    {"p": 4, "m": 8, "name": "zb-h1"},
]


@pytest.fixture(params=SHAPES, ids=lambda s: f"{s.get('name', '1f1b')}-{s['p']}")
def trace(request, tmp_path):
    question = problem(chain(blocks=8), 16, Rates(link=2e5))
    found = simulate(question, pipeline(question.graph, **request.param))
    path = tmp_path / "trace.json.gz"
    write_trace(found, path, cluster=question.cluster, title="toy")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return found, json.load(file)


def by_thread(entries):
    rows = {}
    for e in entries:
        if e["ph"] == "X":
            rows.setdefault((e["pid"], e["tid"]), []).append(e)
    return rows


def test_slices_of_a_thread_never_overlap_and_time_runs_forward(trace):
    _, file = trace
    for bars in by_thread(file["traceEvents"]).values():
        end = 0.0
        for bar in bars:
            assert bar["ts"] >= end - 1e-6 and bar["dur"] >= 0
            end = bar["ts"] + bar["dur"]


def test_every_transfer_is_one_arrow_from_its_send_to_its_receive(trace):
    found, file = trace
    ends = {"s": {}, "f": {}}
    for e in file["traceEvents"]:
        if e["ph"] in ends:
            assert e["id"] not in ends[e["ph"]]
            ends[e["ph"]][e["id"]] = e
            assert ("bp" in e) == (e["ph"] == "f") and e.get("bp", "e") == "e"
    assert ends["s"].keys() == ends["f"].keys()
    sends = [e for e in found.events if e.stream == "send"]
    assert len(sends) == len(ends["s"])
    assert bool(sends) == (len(found.lanes) > 1)
    for number, start in ends["s"].items():
        assert start["pid"] != ends["f"][number]["pid"]
        assert start["ts"] <= ends["f"][number]["ts"]


def test_every_event_is_a_bar_and_lanes_are_processes_in_order(trace):
    found, file = trace
    bars = [e for e in file["traceEvents"] if e["ph"] == "X"]
    assert len(bars) == len(found.events)
    assert sum(b["dur"] for b in bars) == pytest.approx(1e6 * sum(e.duration for e in found.events))
    names = {e["pid"]: e["args"]["name"] for e in file["traceEvents"] if e["name"] == "process_name"}
    assert len(names) == len(found.lanes)
    for lane in found.lanes:
        assert names[lane.first_device].startswith(f"gpu {lane.first_device} · node 0 · stage")
        assert ("stands for" in names[lane.first_device]) == (lane.devices > 1)
    order = [e["args"]["sort_index"] for e in file["traceEvents"] if e["name"] == "process_sort_index"]
    assert order == sorted(order)


def test_memory_counters_reach_the_peak(trace):
    found, file = trace
    for lane in found.lanes:
        here = [e for e in file["traceEvents"] if e["ph"] == "C" and e["pid"] == lane.first_device]
        assert all(set(e["args"]) == set(CATEGORIES) for e in here)
        assert [e["ts"] for e in here] == sorted(e["ts"] for e in here)


def test_events_of_one_device_follow_the_schedule(trace):
    found, _ = trace
    for lane in range(len(found.lanes)):
        actions = [e for e in found.events if e.lane == lane and e.stream == "compute"]
        for before, after in itertools.pairwise(actions):
            assert after.start >= before.start + before.duration - 1e-12
        assert max(e.start + e.duration for e in found.events) <= found.step_seconds * (1 + 1e-9)


def test_overlapping_bars_get_rows_of_their_own():
    bars = [Event(0, "send", str(k), "F", 0, k, start, 2.0) for k, start in enumerate((0.0, 1.0, 2.0, 3.0))]
    assert [[e.name for e in row] for row in _rows(bars)] == [["0", "2"], ["1", "3"]]


def test_thinning_keeps_the_extremes():
    import numpy as np

    total = np.random.default_rng(0).random(50_000)
    total[31_234], total[777] = 9.0, -9.0
    kept = _thinned(np.arange(50_000.0), total)
    assert len(kept) <= MEMORY_POINTS + 2 and {31_234, 777, 0, 49_999} <= set(kept)


def test_a_long_timeline_keeps_its_beginning_its_end_and_one_period():
    order = orders(Schedule("1f1b", 1000), 4)
    assert kept_micro_batches(order, 6000, 200_000).all()
    kept = kept_micro_batches(order, 6000, 10_000).nonzero()[0]
    assert kept.tolist() == [*range(5), *range(500, 505), *range(995, 1000)]


def test_the_same_simulation_writes_the_same_bytes_and_nothing_else(tmp_path):
    question = problem(chain(), 2)
    found = simulate(question, pipeline(question.graph, 2, 4))
    for name in ("a", "b"):
        write_trace(found, tmp_path / f"{name}.json.gz")
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json.gz", "b.json.gz"]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    question = problem(chain(), 1)
    with pytest.raises(InputError, match=r"cannot write .*No such file or directory"):
        write_trace(simulate(question, pipeline(question.graph, 1, 1)), tmp_path / "no" / "trace.json.gz")
