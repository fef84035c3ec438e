"""PipeDream's profiles: read without loss, refused with file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.formats.pipedream import parse, read, recognises, write

TEXT = """\
node2 -- Linear(in_features=4 -- odd, out=2) -- forward_compute_time=1.5, backward_compute_time=2.000, activation_size=[8.0; 4.0], parameter_size=32.000
node1 -- Input0 -- forward_compute_time=0.25, backward_compute_time=0.000, activation_size=64.000, parameter_size=0.000
node3 -- __getitem__(1) -- forward_compute_time=0.000, backward_compute_time=0.000, activation_size=4.0, parameter_size=0.000 -- stage_id=1
\tnode1 -- node2
\tnode2 -- node3
"""


def test_fields_are_read_by_name_after_a_description_with_any_text() -> None:
    problem = parse(TEXT, "f", workers="2x3", bandwidth="4e9,1e9")
    graph = problem.graph
    assert [op.name for op in graph.ops] == ["node1", "node2", "node3"]
    assert dict(graph.ops[1].kwargs) == {"description": "Linear(in_features=4 -- odd, out=2)", "activation": (8.0, 4.0)}
    assert graph.tensor["node2:out"].nbytes == 12.0 and graph.tensor["node2:weight"].nbytes == 32.0
    assert graph.tensor["node2:weight"].role == "param"
    assert dict(graph.ops[2].kwargs)["stage_id"] == "1"
    assert graph.ops[0].kind == "input"
    assert problem.cluster.count == 6
    assert [(level.size, level.bandwidth) for level in problem.cluster.levels] == [(2, 4e9), (6, 1e9)]
    seconds = problem.cost.ops["node2"].seconds  # type: ignore[attr-defined]
    assert (seconds["forward"], seconds["backward"]) == (1.5, 2.0)


def test_what_is_written_reads_the_same() -> None:
    problem = parse(TEXT, "f")
    again = parse(write(problem), "g")
    assert again.graph == problem.graph
    assert again.cost.ops == problem.cost.ops  # type: ignore[attr-defined]
    assert recognises(TEXT) and recognises(write(problem)) and not recognises('{"nodes": []}')


def test_public_profiles_read_and_write_without_loss(data_folder: Path) -> None:
    files = sorted((data_folder / "pipedream").glob("*.graph.txt"))
    assert len(files) == 14
    for file in files:
        problem = read(file)
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        assert len(problem.graph.ops) == sum(not line.startswith("\t") for line in lines)
        again = parse(write(problem), "again")
        assert again.graph == problem.graph and again.cost.ops == problem.cost.ops  # type: ignore[attr-defined]


def test_sums_of_vgg16(data_folder: Path) -> None:
    graph = read(data_folder / "pipedream" / "vgg16.graph.txt").graph
    assert sum(t.nbytes for t in graph.params()) == 553430176
    inputs = {op.outputs[0] for op in graph.ops if op.kind == "input"}
    total = sum(t.nbytes for t in graph.tensors if t.role == "activation" and t.name not in inputs)
    assert total == pytest.approx(14682148868, abs=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("forward_compute_time=1.5", "forward_compute_time=-1", "f:1: forward_compute_time is -1, wanted a finite number of 0 or more"),
        ("forward_compute_time=1.5", "forward_compute_time=nan", "f:1: forward_compute_time is nan, wanted a finite number of 0 or more"),
        ("backward_compute_time=2.000, ", "", "f:1: backward_compute_time is missing"),
        ("\tnode2 -- node3", "\tnode2 -- node9", "f:5: the edge names node9, which is no node of the file"),
        ("\tnode2 -- node3", "\tnode2 -- node2", "f: edges form a cycle, node2 → node2: a graph of data has none"),
        ("\tnode2 -- node3", "\tnode1 -- node2", "f:5: edge node1 to node2 stands twice"),
        ("\tnode2 -- node3", "\tnode2", "f:5: an edge is two node names with -- between: 'node2'"),
        ("node3 -- __get", "node2 -- __get", "f:3: node node2 stands twice"),
        ("node1 -- Input0 -- ", "node1 ", "f:2: a node is NAME -- DESCRIPTION -- forward_compute_time=…, "
         "backward_compute_time=…, activation_size=…, parameter_size=…"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_its_place(old: str, new: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(TEXT.replace(old, new, 1), "f")
    assert str(error.value) == message


def test_one_level_may_be_given_as_devices_and_one_bandwidth(tmp_path: Path) -> None:
    file = tmp_path / "graph.txt"
    file.write_text(TEXT)
    cluster = read(file, devices=4, bandwidth=1e9).cluster
    assert (cluster.count, [level.bandwidth for level in cluster.levels]) == (4, [1e9])
    assert read(file, workers=3).cluster.count == 3


def test_levels_without_their_bandwidth_are_refused() -> None:
    with pytest.raises(InputError, match="2 levels of workers but 1 bandwidths: give one a level"):
        parse(TEXT, "f", workers="2x2", bandwidth="1e9")
    with pytest.raises(
        InputError, match="workers is '2y', wanted whole numbers such as \"8x2\", innermost level first"
    ):
        parse(TEXT, "f", workers="2y")
    with pytest.raises(InputError, match="has no nodes"):
        parse("\n", "f")
