"""PaSE's graphs and tables as problems, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meshwright.errors import InputError
from meshwright.formats import detect, pase
from meshwright.planners.pase import PaSE

TWO: Any = {
    "graph": "two", "batch": 8, "cutoff": 1,
    "nodes": [
        {"id": 0, "type": "FC", "dom": [8, 16, 32], "inputs": [[8, 32]], "outputs": [[8, 16]], "pw_op_cnt": 1},
        {"id": 1, "type": "SoftmaxCrossEntropy", "dom": [8, 16], "inputs": [[8, 16]], "outputs": [[8, 16]]},
    ],
    "edges": [{"src": 0, "src_out": 0, "dst": 1, "dst_in": 0, "shape": [8, 16]}],
}  # fmt: skip


def written(path: Path, **changes: Any) -> Path:
    path.write_bytes(gzip.compress(json.dumps({**TWO, **changes}).encode()))
    return path


def test_files_are_recognised_by_their_content(data_folder: Path, tmp_path: Path) -> None:
    assert detect.format_of(data_folder / "pase" / "rnnlm.json.gz") == "pase"
    assert detect.format_of(data_folder / "pase" / "alexnet_4_costs.npz") == "pase"
    assert detect.format_of(data_folder / "intra-op-instances" / "small-factor-graphs.json") == "factor_graph"
    assert detect.planner_of("factor_graph") == "tensoropt" and detect.planner_of("pase") == "pase"
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    assert detect.format_of(tmp_path / "other.npz") == ""
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    (tmp_path / "broken.json.gz").write_bytes(b"nothing")
    assert detect.format_of(tmp_path / "broken.npz") == detect.format_of(tmp_path / "broken.json.gz") == ""


def test_a_graph_has_ops_with_rules_weights_and_all_its_edges(data_folder: Path) -> None:
    graph = pase.read(data_folder / "pase" / "transformer.json.gz").graph
    links = [(graph.producer[t], i) for i, op in enumerate(graph.ops) for t in op.inputs if t in graph.producer]
    assert (len(graph.ops), len(links), len(set(links))) == (204, 280, 256)
    scores = next(op for op in graph.ops if dict(op.kwargs).get("pw") == 0 and len(op.rule.factors) == 5)
    assert scores.rule.summed() == {"k"}
    assert sum(t.role == "param" for t in graph.tensors) > 40
    assert {t.role for t in graph.tensors} == {"input", "param", "activation"}


def test_settings_change_the_question(tmp_path: Path) -> None:
    path = written(tmp_path / "two.json.gz")
    problem = pase.read(path, devices=4, flops=20.0, bw=8.0, memory=1e6)
    assert (problem.cluster.count, problem.limits.memory) == (4, 1e6)
    assert (
        PaSE().plan(pase.read(path, cutoff=16, flops=1e-4)).objective
        > PaSE().plan(pase.read(path, flops=1e-4)).objective
    )


def test_two_tensors_between_the_same_ops_are_both_paid_for(tmp_path: Path) -> None:
    """The prototype keeps the last of them only."""
    one = {
        "id": 1,
        "type": "Elementwise",
        "dom": [8, 16],
        "inputs": [[8, 16], [8, 16]],
        "outputs": [[8, 16]],
        "pw_op_cnt": 0,
    }
    both = [{"src": 0, "src_out": 0, "dst": 1, "dst_in": k, "shape": [8, 16]} for k in (0, 1)]
    from meshwright.planners._options import options_of

    graph = options_of(pase.read(written(tmp_path / "x.json.gz", nodes=[TWO["nodes"][0], one], edges=both))).graph
    assert graph.edges == ((0, 1), (0, 1)) and len(graph.simple().edges) == 1
    assert (graph.simple().tables[0] == 2 * graph.tables[0]).all() and graph.tables[0].max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": [{**TWO["nodes"][0], "type": "Attention"}], "edges": []}, 'nodes\\[0\\].type is "Attention", wanted a kind'),
        ({"nodes": [{**TWO["nodes"][0], "dom": [8, 0, 32]}], "edges": []}, "nodes\\[0\\].dom is"),
        ({"edges": [{**TWO["edges"][0], "dst": 7}]}, "edges\\[0\\].dst is 7, wanted the id of a node"),
        ({"edges": TWO["edges"] * 2}, "edges\\[1\\].dst_in is 0, wanted an input of node 1 that no other edge feeds"),
        ({"edges": [{**TWO["edges"][0], "src_out": 3}]}, "nodes\\[1\\].inputs is \"0:3\""),
        ({"nodes": [TWO["nodes"][0], {**TWO["nodes"][1], "id": 0}]}, "nodes\\[1\\].id is 0, wanted an id of its own"),
        ({"batch": 0}, "batch is 0, wanted a whole number of 1"),
    ],
)  # fmt: skip
def test_faulty_files_are_refused_with_their_field(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pase.read(written(tmp_path / "two.json.gz", **changes))


def test_settings_that_no_problem_can_have(tmp_path: Path, data_folder: Path) -> None:
    path = written(tmp_path / "two.json.gz")
    for settings, message in (
        ({"devices": 0}, "devices is 0"), ({"bw": 0.0}, "bandwidth is 0"), ({"cutoff": 0}, "cutoff is 0"),
        ({"batch": 16}, "its graph is written out for 8 samples"), ({"memory": -1.0}, "memory is -1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            pase.read(path, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="devices cannot be set: its tables were made for one number of devices"):
        pase.read(data_folder / "pase" / "alexnet_4_costs.npz", devices=8)


def test_faulty_tables_are_refused(tmp_path: Path) -> None:
    good = {
        "edges": np.array([[0, 1]]), "configs_0": np.ones((2, 1), int), "configs_1": np.ones((1, 1), int),
        "node_cost_0": np.zeros(2), "node_cost_1": np.zeros(1), "edge_cost_0": np.zeros((2, 1)),
    }  # fmt: skip
    for changes, message in (
        ({"edge_cost_0": np.zeros((1, 2))}, r"edge 0 from 0 to 1 has a table of \(1, 2\), wanted \(2, 1\)"),
        ({"edges": np.array([[0, 2]])}, "edges has 0 … 2, wanted numbers of 0 to 1"),
        ({"node_cost_0": np.array([np.nan, 1.0])}, "node_cost_0 has nan in it"),
    ):  # fmt: skip
        np.savez(tmp_path / "x.npz", **{**good, **changes})  # type: ignore[arg-type]
        with pytest.raises(InputError, match=message):
            pase.read(tmp_path / "x.npz")
    del good["edge_cost_0"]
    np.savez(tmp_path / "x.npz", **good)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the array edge_cost_0 is missing"):
        pase.read(tmp_path / "x.npz")
