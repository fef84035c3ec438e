"""Profiles of the Piper study: nothing is lost, and what is wrong is named by file and field."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from meshwright.errors import InputError
from meshwright.formats import piper
from meshwright.graph.validate import validate_graph


def document() -> dict[str, Any]:
    def ways(fw: dict[str, float], bw: dict[str, float]) -> dict[str, Any]:
        one = {"timePerSample": 1.0, "parameterSize": 4.0, "memoryUsageA": 2.0, "memoryUsageB": 8.0}
        return {"1": [{"id": "vanilla", **one, "syncTimeFw": fw, "syncTimeBw": bw}]}

    return {
        "maxDevices": 2, "maxMemoryPerDevice": 100.0, "bandwidth": 10.0, "mbsInBatch": 4,
        "nodes": [
            {"id": 7, "name": "first", "TMPCs": ways({}, {"3": 5.0})},
            {"id": 3, "name": "second", "TMPCs": ways({"7": 6.0}, {})},
        ],
        "edges": [{"sourceId": 7, "destId": 3, "communicationCost": 12.0}],
    }  # fmt: skip


def sorted_document(found: dict[str, Any]) -> dict[str, Any]:
    edges = sorted(found["edges"], key=lambda edge: (edge["sourceId"], edge["destId"]))
    return {**found, "nodes": sorted(found["nodes"], key=lambda node: node["id"]), "edges": edges}


@pytest.mark.parametrize("name", ["bert32a100", "gnmt", "resnet"])
def test_a_public_profile_is_written_as_it_was_read(data_folder: Path, name: str) -> None:
    path = data_folder / "piper" / f"{name}.json"
    problem = piper.read(path)
    validate_graph(problem.graph)
    assert sorted_document(piper.write(problem)) == sorted_document(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["nodes"][0].pop("id"), r"nodes\[0\]\.id is missing"),
        (lambda d: d["nodes"][1].update(id=7), r"nodes\[1\]\.id is 7, wanted an id of its own"),
        (lambda d: d["edges"][0].update(destId=9), r"edges\[0\]\.destId is 9, wanted the id of a node"),
        (lambda d: d["edges"][0].update(communicationCost=-1), r"communicationCost is -1"),
        (lambda d: d["nodes"][0]["TMPCs"]["1"][0].update(timePerSample=float("nan")), r"TMPCs\.1\[0\]\.timePerSample"),
        (lambda d: d["nodes"][0]["TMPCs"].update({"1": []}), r"TMPCs\.1 is \[\]"),
        (lambda d: d["nodes"][0]["TMPCs"]["1"][0].update(syncTimeBw={"8": 1.0}), r"syncTimeBw\.8"),
        (lambda d: d["edges"].append({"sourceId": 3, "destId": 7, "communicationCost": 1}), "cycle, "),
        (lambda d: d.update(bandwidth=0), "bandwidth is 0"),
        (lambda d: d.update(mbsInBatch=0), "mbsInBatch is 0"),
        (lambda d: d.update(nodes=[]), "nodes is empty"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_field(change: Any, words: str) -> None:
    found = copy.deepcopy(document())
    change(found)
    with pytest.raises(InputError, match=words) as error:
        piper.parse(found, "profile.json")
    assert "profile.json" in error.value.message


def test_arguments_override_the_file() -> None:
    problem = piper.parse(document(), "profile.json", devices=5, memory=7.0, bandwidth=3.0, micro_batches=9)
    assert problem.cluster.count == 5
    assert problem.cluster.types[0].memory == problem.limits.usable(7.0) == 7.0
    assert problem.cluster.levels[0].bandwidth == 3.0
    assert problem.recipe.samples == 9


def test_a_deeper_model_has_copies_between_two_layers_and_no_mask(data_folder: Path) -> None:
    path = data_folder / "piper" / "bert32a100.json"
    base = json.loads(path.read_text())
    made = piper.deeper(base, 48)
    problem = piper.parse(made, "deeper")
    validate_graph(problem.graph)
    layers = [op for op in problem.graph.ops if dict(op.kwargs)["name"] == "ParallelTransformerLayer"]
    assert len(layers) == 48
    old = {str(node["id"]) for node in base["nodes"]}
    assert all(len(op.inputs) == 1 for op in layers if op.name not in old)
    hidden = [op for op in layers if op.name in old]
    assert [len(op.inputs) for op in hidden] == [2] * 32
    assert len(made["edges"]) == len(base["edges"]) + 16
