"""Settings of every planner and reader, found by reflection: values that cannot be are refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import inf, nan
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest

from meshwright.errors import InputError
from meshwright.formats import detect
from meshwright.planners import registry
from meshwright.settings import about_parameters, parameters

ZERO = {"gap", "launch", "param_scale", "least_copies", "tolerance", "imbalance", "coefficient", "epsilon"}
"""Settings that may be 0."""
ENDLESS = {"seconds"}
"""Settings that may be inf."""

NONE = {"profile", "counts", "axes"}
"""Settings that may list no numbers."""


def kinds_of(kind: Any) -> Iterator[Any]:
    """The alternatives of a type."""
    if get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from kinds_of(one)
    elif kind is not NoneType:
        yield kind


def wrong_values(name: str, kind: Any) -> Iterator[Any]:
    """Values of the type that no such setting can have."""
    for one in kinds_of(kind):
        if get_origin(one) is Literal:
            yield "no-such-word"
        elif one is int:
            yield from (-1, *(() if name in ZERO else (0,)))
        elif one is float:
            yield from (-1.0, nan, *(() if name in ZERO else (0.0,)), *(() if name in ENDLESS else (inf,)))
        elif get_origin(one) is tuple and get_args(one)[0] is int:
            yield from ((0,), (-1, 2), *(() if name in NONE else ((),)))


def sentence(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    words = str(caught.value.message)
    assert "\n" not in words and len(words) > 20
    return words


@pytest.mark.parametrize("name", sorted(registry.planners()))
def test_planners_refuse_values_that_no_setting_can_have(name: str) -> None:
    kind = registry.planners()[name]
    for setting, of in parameters(kind).items():
        for value in wrong_values(setting, of):
            words = sentence(lambda setting=setting, value=value: kind(**{setting: value}))  # type: ignore[misc]
            assert name in words, (setting, value, words)


@pytest.mark.parametrize("name", ["dapple", "dnn_partitioning", "pipedream", "piper", "torchgpipe"])
def test_every_setting_says_what_it_is(name: str) -> None:
    kind = registry.planners()[name]
    assert set(about_parameters(kind)) == set(parameters(kind))


FILES = {
    "dnn_partitioning": "dnn-partitioning/throughput/layer/bert24_inference.json",
    "piper": "piper/bert32a100.json",
    "pipedream": "pipedream/alexnet.graph.txt",
    "dapple": "dapple/states.json",
    "accpar": "accpar/Vgg11.txt",
    "mindspore": "mindspore-planners/recursive_programming_mlp.json",
}


@pytest.mark.parametrize("form", sorted(FILES))
def test_readers_refuse_values_that_no_problem_can_have(form: str, data_folder: Path) -> None:
    read = detect.reader(form)
    path = data_folder / FILES[form]
    fixed = {"dapple": {"profile": "vgg-19"}, "accpar": {"flops": 1e12, "bandwidth": 1e9}}.get(form, {})
    seen = set()
    for setting in parameters(read):
        values: dict[str, list[Any]] = {
            "devices": [0, -1, 10**9],
            "micro_batches": [0, -1, 10**9],
            "batch": [0, -1],
            "memory": [0.0, -1.0, nan],
            "bandwidth": [0.0, -1.0, nan, inf] if form in ("dnn_partitioning", "piper") else [0.0, -1.0, nan, inf, (1e9, 2e9)] if form == "accpar" else ["0", "-1", "nan", "inf", "x", "1,2,3"],
            "workers": ["0", "-1x2", "2.5x2", "x", "nan", "inf", "1000000x1000000"],
            "profile": ["none-such"],
            "flops": [0.0, -1.0, nan, inf, (1e12, 2e12)],
            "element_bytes": [0.0, -1.0, nan, inf],
            "skip": [-1, 1],
            "case": [-1, 25],
        }  # fmt: skip
        for value in values[setting]:
            words = sentence(lambda setting=setting, value=value: read(path, **{**fixed, setting: value}))  # type: ignore[misc]
            assert str(path) in words and setting in words, (setting, value, words)
            seen.add(setting)
    assert seen == set(parameters(read))


# ---- bad profiles


def written(folder: Path, name: str, document: object) -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def piper(changes: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    way = {"id": "vanilla", "timePerSample": 1.0, "parameterSize": 1, "memoryUsageA": 1, "memoryUsageB": 1, "syncTimeFw": {}, "syncTimeBw": {}}  # fmt: skip
    document = {
        "maxDevices": 2, "maxMemoryPerDevice": 8, "bandwidth": 1.0, "mbsInBatch": 2,
        "nodes": [{"id": v, "name": "n", "TMPCs": {"1": [dict(way)]}} for v in range(3)],
        "edges": [{"sourceId": v, "destId": v + 1, "communicationCost": 1.0} for v in range(2)],
    }  # fmt: skip
    changes(document)
    return document


PIPER: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d["edges"].append({"sourceId": 2, "destId": 0, "communicationCost": 1}), "edges form a cycle, 0 → 1 → 2 → 0"),
    (lambda d: d["edges"].pop(), "edges leave the graph in 2 pieces, node 2 is"),
    (lambda d: d["nodes"][1].pop("id"), "nodes[1].id is missing"),
    (lambda d: d["nodes"][1]["TMPCs"]["1"][0].pop("id"), "nodes[1].TMPCs.1[0].id is missing"),
    (lambda d: d["nodes"][1]["TMPCs"]["1"][0].pop("timePerSample"), "nodes[1].TMPCs.1[0].timePerSample is missing"),
    (lambda d: d["nodes"][1]["TMPCs"]["1"][0].update(timePerSample=-1), "timePerSample is -1, wanted a finite number"),
    (lambda d: d["nodes"][1]["TMPCs"]["1"][0].update(memoryUsageA=nan), "memoryUsageA is NaN, wanted a finite number"),
    (lambda d: d["edges"][0].update(communicationCost=inf), "edges[0].communicationCost is Infinity, wanted"),
    (lambda d: d["nodes"][1].update(TMPCs={}), "nodes[1].TMPCs is {}, wanted at least one degree"),
    (lambda d: d.update(nodes=[], edges=[]), "nodes is empty"),
    (lambda d: d.update(maxDevices=0), "maxDevices is 0, wanted a whole number of 1 or more"),
    (lambda d: d.update(bandwidth=0), "bandwidth is 0"),
    (lambda d: d.pop("mbsInBatch"), "mbsInBatch is missing"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(PIPER)))
def test_bad_piper_profiles(case: int, tmp_path: Path) -> None:
    changes, wanted = PIPER[case]
    path = written(tmp_path, "bad.json", piper(changes))
    words = sentence(lambda: detect.read(path))
    assert words.startswith(f"{path}: ") and wanted in words


LINE = "n{} -- Linear() -- forward_compute_time={}, backward_compute_time=2, activation_size=3, parameter_size=4\n"
PIPEDREAM = [
    (LINE.format(0, 1) + LINE.format(1, 1) + "\tn0 -- n1\n\tn1 -- n0\n", "edges form a cycle"),
    (LINE.format(0, 1) + LINE.format(1, 1), "edges leave the graph in 2 pieces"),
    (LINE.format(0, -1), ":1: forward_compute_time is -1, wanted a finite number of 0 or more"),
    (LINE.format(0, "nan"), ":1: forward_compute_time is nan, wanted a finite number of 0 or more"),
    (LINE.format(0, 1).replace(", parameter_size=4", ""), ":1: parameter_size is missing"),
    (LINE.format(0, 1) + "\tn0 -- n7\n", ":2: the edge names n7, which is no node of the file"),
    (LINE.format(0, 1) * 2, ":2: node n0 stands twice"),
]


@pytest.mark.parametrize("case", range(len(PIPEDREAM)))
def test_bad_pipedream_profiles(case: int, tmp_path: Path) -> None:
    text, wanted = PIPEDREAM[case]
    path = written(tmp_path, "bad.txt", text)
    words = sentence(lambda: detect.read(path))
    assert str(path) in words and wanted in words


def states(**changes: object) -> dict[str, Any]:
    document: dict[str, Any] = {
        "profile_batch": 4, "states": 2, "is_chain": True, "cumulative_ms": [1, 2], "cumulative_activation_bytes": [1, 2],
        "cumulative_parameter_bytes": [1, 2], "cut_bytes": [1, 0],
    }  # fmt: skip
    return {"p": {k: v for k, v in {**document, **changes}.items() if v is not None}}


DAPPLE = [
    (states(cumulative_ms=[2, 1]), "p.cumulative_ms is -1"),
    (states(cumulative_ms=[1, nan]), "p.cumulative_ms[1] is NaN, wanted a finite number of 0 or more"),
    (states(cut_bytes=[1]), "p.cut_bytes is [1], wanted a list of 2 numbers"),
    (states(cut_bytes=None), "p.cut_bytes is"),
    (states(states=0), "p.states is 0, wanted a whole number of 1 or more"),
    (states(is_chain=False), "p.predecessors is null, wanted a list of 2 lists"),
    (states(is_chain=False, predecessors=[[1], []]), "p.predecessors[0] is [1], wanted states below 0"),
]


@pytest.mark.parametrize("case", range(len(DAPPLE)))
def test_bad_states(case: int, tmp_path: Path) -> None:
    document, wanted = DAPPLE[case]
    path = written(tmp_path, "bad.json", document)
    words = sentence(lambda: detect.read(path))
    assert str(path) in words and wanted in words


def test_more_devices_than_useful_stay_idle_and_more_stages_than_layers_are_refused(tmp_path: Path) -> None:
    from meshwright.planners.pipedream import PipeDream
    from meshwright.planners.piper import Piper

    path = written(tmp_path, "good.json", piper(lambda d: None))
    many = Piper().plan(detect.read(path, devices=1_000_000, memory=1e9))
    assert many.plan is not None and many.status == "optimal"
    assert len({d for stage in many.plan.stages for d in stage.mesh.devices}) <= 2
    line = written(tmp_path, "good.txt", LINE.format(0, 1) + LINE.format(1, 1) + "\tn0 -- n1\n")
    straight = PipeDream(straight=True).plan(detect.read(line, devices=5, bandwidth="1e9"))
    assert straight.status == "infeasible"
    assert "the graph can be cut into 2 at most: give fewer workers, or use_fewer_machines=true" in straight.reason
    full = Piper().plan(detect.read(path, memory=1.5))
    assert full.status == "infeasible"
    assert full.reason == "layer 0 needs 2 B in its smallest configuration, over the 1.5 B of a device"
