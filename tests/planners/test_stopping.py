"""Budgets and Ctrl-C: the best plan so far with its bound, in whatever solver the time was spent."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from meshwright.formats import detect
from meshwright.plan.problem import Problem
from meshwright.planners import Budget, Planner
from meshwright.planners.dnn_partitioning import DnnPartitioning
from meshwright.solvers.stoppable import stoppable

BERT = "dnn-partitioning/throughput/layer/bert24_inference.json"
LATENCY = "dnn-partitioning/latency/layer/bert24_inference.json"


@pytest.mark.parametrize(
    ("file", "settings"), [(BERT, {"method": "noncontiguous"}), (LATENCY, {"objective": "latency"})]
)
def test_an_integer_programme_out_of_time_says_so_and_keeps_plan_and_bound(
    data_folder: Path, file: str, settings: dict[str, Any]
) -> None:
    problem = detect.read(data_folder / file)
    ends = {
        "stopped after 1 s, the budget": DnnPartitioning(gap=0.0, **settings).plan(problem, budget=Budget(seconds=1)),
        "stopped after 1 s of the integer programme, the setting seconds": DnnPartitioning(
            gap=0.0, seconds=1, **settings
        ).plan(problem),
    }
    for reason, result in ends.items():
        assert (result.status, result.reason) == ("budget", reason)
        assert result.plan is not None
        assert result.bound is not None and 0 < result.bound < result.objective


@pytest.mark.parametrize("method", ["contiguous", "noncontiguous", "order"])
def test_a_programme_searched_to_its_end_is_optimal(tmp_path: Path, method: str) -> None:
    problem = diamond(tmp_path, (2, 3, 4, 3, 2), (4, 6, 8, 6, 4))
    result = DnnPartitioning(method=method, gap=0.0).plan(problem)  # type: ignore[arg-type]
    assert (result.status, result.reason) == ("optimal", "")
    assert result.bound == pytest.approx(result.objective, rel=1e-12)
    assert result.objective == pytest.approx(8.75 if method == "noncontiguous" else 10.5)
    assert DnnPartitioning(objective="latency", gap=0.0).plan(problem).status == "optimal"


def test_a_programme_that_stops_at_its_gap_says_so(tmp_path: Path) -> None:
    result = DnnPartitioning(method="noncontiguous", gap=0.9).plan(diamond(tmp_path, (2, 3, 4, 3, 2), (4, 6, 8, 6, 4)))
    assert result.status == "feasible"
    assert result.reason == "the integer programme searches until its bound is within gap=0.9 of its value"
    assert result.bound is not None and 0.1 * result.objective <= result.bound < result.objective


def diamond(folder: Path, fast: tuple[int, ...], slow: tuple[int, ...]) -> Problem:
    """The hand case of the method: 0 → 1, 2 → 3 → 4 on two accelerators."""
    nodes = [
        {"id": v, "supportedOnFpga": 1, "fpgaLatency": p, "cpuLatency": q, "size": 1}
        for v, (p, q) in enumerate(zip(fast, slow))
    ]
    costs = (1, 0.5, 2, 0.25)
    edges = [
        {"sourceId": a, "destId": b, "cost": costs[a], "size": 1} for a, b in ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4))
    ]
    path = folder / "diamond.json"
    path.write_text(json.dumps({"maxSizePerFPGA": 100, "maxFPGAs": 2, "maxCPUs": 0, "nodes": nodes, "edges": edges}))
    return detect.read(path)


def test_a_kernel_ends_when_its_tick_raises() -> None:
    seen: list[int] = []
    told = threading.Event()

    def endless(stop: Any) -> None:
        told.set()
        while not stop[0]:
            pass
        seen.append(int(stop[0]))

    def tick() -> None:
        if told.is_set():
            raise TimeoutError

    with pytest.raises(TimeoutError):
        stoppable(endless, tick)
    assert seen == [1]
    assert stoppable(lambda stop: int(stop[0]), tick) == 0
    with pytest.raises(ZeroDivisionError):
        stoppable(lambda stop: 1 // stop[0].item(), tick)


SCRIPT = """
import json, os, signal, sys, threading
from meshwright.formats import detect
from meshwright.planners import registry

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
data, found = sys.argv[1], {}
CASES = {
    "contiguous": ("dnn_partitioning", "dnn-partitioning/throughput/layer/bert24_inference.json", {}, {"method": "contiguous", "gap": 0.0}),
    "noncontiguous": ("dnn_partitioning", "dnn-partitioning/throughput/layer/bert24_inference.json", {}, {"method": "noncontiguous", "gap": 0.0}),
    "latency": ("dnn_partitioning", "dnn-partitioning/latency/layer/bert24_inference.json", {}, {"objective": "latency", "gap": 0.0}),
    "chain": ("dnn_partitioning", "dnn-partitioning/throughput/layer/gnmt_inference.json", {}, {}),
    "piper": ("piper", "piper/gnmt.json", {"devices": 4, "memory": 2.5 * 2**30}, {}),
    "pipedream": ("pipedream", "pipedream/resnet50.graph.txt", {"workers": "8x2", "bandwidth": "1e10,1e9"}, {"compression_ratio": 1.0}),
    "dapple": ("dapple", "dapple/states.json", {"profile": "xlnet-36", "batch": 128}, {"objective": "paper"}),
    **{name: (name, "pipedream/alexnet.graph.txt", {"devices": 4, "bandwidth": "1e9"}, {}) for name in ("gpipe", "torchgpipe", "chimera", "pipedream_2bw")},
}
for case, (name, file, settings, parameters) in CASES.items():
    problem = detect.read(os.path.join(data, file), **settings)
    planner = type(registry.load(name))(**parameters)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    quick = name in ("dapple", "gpipe", "torchgpipe", "chimera", "pipedream_2bw")

    def progress(phase, done, total, best):
        if quick:
            os.kill(os.getpid(), signal.SIGINT)
        elif not timer.ident:
            timer.start()

    result = planner.plan(problem, progress=progress)
    timer.cancel()
    found[case] = [result.status, result.reason, result.plan is not None, result.bound, result.objective]
print(json.dumps(found))
"""


def test_ctrl_c_ends_every_planner_with_its_best_plan_and_bound(data_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(data_folder)], capture_output=True, text=True, check=True)
    # Whatever else is printed would spoil the JSON of the command line.
    found = json.loads(done.stdout)
    assert {found[case][0] for case in ("contiguous", "noncontiguous", "latency")} == {"budget"}
    for case, (status, reason, planned, bound, objective) in found.items():
        # What is proven by then, or done, is optimal.
        assert status == "optimal" or (status == "budget" and reason.startswith("stopped by Ctrl-C")), (
            case,
            status,
            reason,
        )
        if not planned:  # these have nothing until their first search is over
            assert case in ("piper", "gpipe", "torchgpipe", "chimera", "pipedream_2bw"), case
            assert reason == "stopped by Ctrl-C before any plan was found", case
        elif case not in ("gpipe", "torchgpipe", "chimera", "pipedream_2bw"):
            assert 0 < bound <= objective, case


def test_every_planner_takes_a_budget_of_nothing(data_folder: Path) -> None:
    problem = detect.read(data_folder / "pipedream" / "alexnet.graph.txt", devices=4, bandwidth="1e9")
    from meshwright.planners import registry

    for name in ("gpipe", "torchgpipe", "chimera", "pipedream_2bw", "pipedream", "dapple"):
        planner: Planner = registry.load(name)
        result = planner.plan(problem, budget=Budget(seconds=0))
        assert result.status in ("budget", "optimal"), name
        assert result.reason.startswith("stopped after 0 s, the budget"), name


def wide(folder: Path, branches: int) -> Problem:
    """One node that feeds branches of three: 4 ** branches downsets, too many to hold."""
    count = 3 * branches + 1
    nodes = [
        {"id": v, "supportedOnFpga": 1, "fpgaLatency": 1 + (v * 7) % 5, "cpuLatency": 50, "size": 1}
        for v in range(count)
    ]
    edges = []
    for v in range(1, count):
        source = 0 if v % 3 == 1 else v - 1
        edges.append({"sourceId": source, "destId": v, "cost": 0.1 + 0.05 * (source % 4), "size": 1})
    path = folder / "wide.json"
    path.write_text(json.dumps({"maxSizePerFPGA": 1000, "maxFPGAs": 4, "maxCPUs": 0, "nodes": nodes, "edges": edges}))
    return detect.read(path)


def test_graphs_whose_downsets_nobody_can_hold_end_within_the_budget_and_programmes_need_none(tmp_path: Path) -> None:
    problem = wide(tmp_path, 24)
    chain = DnnPartitioning().plan(problem, budget=Budget(seconds=2))
    assert chain.status == "budget" and chain.plan is not None
    assert chain.bound is not None and chain.bound >= sum(1 + (v * 7) % 5 for v in range(73)) / 4
    split = DnnPartitioning(method="noncontiguous", seconds=60).plan(problem)
    assert split.status in ("optimal", "feasible") and split.objective <= chain.objective
    assert split.bound is not None and split.objective <= split.bound * 1.0102
