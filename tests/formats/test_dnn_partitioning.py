"""Profiles of the placement study: nothing is lost, and what is wrong is named by file and field."""

from __future__ import annotations

import copy
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from meshwright.errors import InputError
from meshwright.formats import detect, dnn_partitioning, piper
from meshwright.graph.validate import validate_graph
from meshwright.plan.validate import validate


def document() -> dict[str, Any]:
    def node(v: int, **more: Any) -> dict[str, Any]:
        return {"id": v, "supportedOnFpga": 1, "fpgaLatency": 1.0, "cpuLatency": 10.0, "size": 4.0, **more}

    return {
        "maxSizePerFPGA": 100.0, "maxFPGAs": 2, "maxCPUs": 1,
        "nodes": [node(8, colorClass=1), node(2), node(5, isBackwardNode=True, colorClass=1)],
        "edges": [
            {"sourceId": 8, "destId": 2, "cost": 0.5, "size": 64.0}, {"sourceId": 2, "destId": 5, "cost": 0.25},
        ],
    }  # fmt: skip


def normal(found: dict[str, Any]) -> Any:
    """Without the order of lists, and with flags as numbers and defaults written out."""
    nodes = [
        {"isBackwardNode": 0, "size": 0.0} | {k: float(x) if isinstance(x, bool | int) else x for k, x in node.items()}
        for node in found["nodes"]
    ]
    edges = [{"size": 0.0} | {k: float(x) for k, x in edge.items()} for edge in found["edges"]]
    rest = {k: x for k, x in found.items() if k.startswith("max")}
    key = lambda row: sorted((k, str(x)) for k, x in row.items())  # noqa: E731
    return sorted(nodes, key=key), sorted(edges, key=key), rest


def test_every_public_profile_is_written_as_it_was_read(data_folder: Path) -> None:
    paths = [p for p in sorted((data_folder / "dnn-partitioning").glob("*/*/*")) if p.suffix in (".json", ".xz")]
    assert len(paths) == 24
    for path in paths:
        problem = dnn_partitioning.read(path)
        validate_graph(problem.graph)
        text = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        assert normal(dnn_partitioning.write(problem)) == normal(json.loads(text)), path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["nodes"][1].pop("cpuLatency"), r"nodes\[1\]\.cpuLatency is missing"),
        (lambda d: d["nodes"][0].update(fpgaLatency=-2), r"nodes\[0\]\.fpgaLatency is -2, wanted a finite number"),
        (lambda d: d["nodes"][0].update(size=float("inf")), r"nodes\[0\]\.size is Infinity"),
        (lambda d: d["nodes"][0].update(supportedOnFpga="yes"), r"supportedOnFpga is \"yes\", wanted true or false"),
        (lambda d: d["edges"][0].update(sourceId=77), r"edges\[0\]\.sourceId is 77, wanted the id of a node"),
        (lambda d: d["edges"].append({"sourceId": 8, "destId": 5, "cost": 0.7}), "as on the other edges of source 8"),
        (lambda d: d["edges"].append({"sourceId": 5, "destId": 8, "cost": 0}), "edges form a cycle"),
        (lambda d: d.update(maxFPGAs=1.5), "maxFPGAs is 1.5, wanted a whole number"),
        (lambda d: d.update(nodes=[], edges=[]), "nodes is empty"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_field(change: Any, words: str) -> None:
    found = copy.deepcopy(document())
    change(found)
    with pytest.raises(InputError, match=words) as error:
        dnn_partitioning.parse(found, "profile.json")
    assert "profile.json" in error.value.message


def test_devices_memory_and_bandwidth_override_the_file() -> None:
    problem = dnn_partitioning.parse(document(), "p", devices=5, memory=7.0, bandwidth=64.0, micro_batches=3)
    assert problem.cluster.count == 6
    assert problem.cluster.types[0].memory == 7.0
    written = dnn_partitioning.write(problem)
    assert {e["cost"] for e in written["edges"] if e["sourceId"] == 8} == {1000.0}


def test_an_expert_split_is_read_as_a_legal_plan(data_folder: Path) -> None:
    folder = data_folder / "dnn-partitioning"
    problem = dnn_partitioning.read(folder / "throughput" / "layer" / "bert24_training.json")
    plan = dnn_partitioning.read_split(folder / "human-experts" / "bert24_training_expert.json", problem)
    validate(problem, plan)
    assert len(plan.stages) == 6


def test_a_format_is_told_by_content(tmp_path: Path, data_folder: Path) -> None:
    renamed = tmp_path / "x.txt"
    renamed.write_bytes((data_folder / "piper" / "gnmt.json").read_bytes())
    assert detect.format_of(renamed) == "piper"
    assert detect.read(renamed, devices=3).cluster.count == 3
    assert detect.format_of(data_folder / "dnn-partitioning/throughput/operator/bert_l-3_training.json.xz") == (
        "dnn_partitioning"
    )
    with pytest.raises(InputError, match='no setting "wokers"'):
        detect.read(renamed, wokers=3)
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(InputError, match="in none of the formats"):
        detect.read(other)
    assert piper.recognises(json.loads(renamed.read_text()))
