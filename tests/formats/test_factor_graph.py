"""Cost graphs written out: which graph, forbidden prices, and what is refused."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest

from meshwright.cost.tables import Tables
from meshwright.errors import InputError
from meshwright.formats.factor_graph import read, recognises
from meshwright.planners._options import options_of
from meshwright.planners.pase import PaSE

GRAPH: Any = {
    "name": "g", "node_time": [[1, 2], [3, 4, 5]], "node_mem": [[1, 1], [2, 2, 2]],
    "edges": [{"src": 1, "dst": 0, "time": [[0, 1], [None, 0], [0, 0]]}],
}  # fmt: skip


def written(path: Path, *graphs: Any) -> Path:
    path.write_text(json.dumps(list(graphs)))
    return path


def test_a_graph_is_named_and_null_is_forbidden(tmp_path: Path) -> None:
    assert recognises([GRAPH]) and recognises(GRAPH) and not recognises([]) and not recognises({"nodes": []})
    path = written(tmp_path / "g.json", GRAPH, {**GRAPH, "name": "h"})
    problem = read(path, graph="h", unit="ms", memory=5.0)
    assert isinstance(problem.cost, Tables) and problem.cost.unit == "ms" and problem.limits.memory == 5
    graph = options_of(problem).graph
    assert graph.edges == ((1, 0),) and graph.tables[0][1, 0] == inf
    assert [op.inputs for op in problem.graph.ops] == [(), ("0:out",)]
    for graph_name, message in ((None, "name one as graph: there are g, h"), ("x", 'no graph "x": there are g, h')):
        with pytest.raises(InputError, match=message):
            read(path, graph=graph_name)


def test_rings_of_edges_are_no_cycle_because_pairs_have_no_direction(tmp_path: Path) -> None:
    ring = [{"src": v, "dst": (v + 1) % 3, "time": [[0, 1], [1, 0]]} for v in range(3)]
    problem = read(written(tmp_path / "r.json", {"node_time": [[0, 2]] * 3, "edges": ring}))
    assert PaSE().plan(problem).objective == 0
    assert options_of(problem).graph.memory[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_time": [[1, 2], [3, 4]]}, r"\[0\].node_mem is \[2, 3\], wanted as many"),
        ({"node_time": [[1, "x"], [3, 4, 5]]}, r"node_time\[0\] is \[1, \"x\"\], wanted a list of numbers"),
        ({"edges": [{"src": 0, "dst": 5, "time": [[0]]}]}, "edge 0 joins 0 and 5, which are not both nodes"),
        ({"edges": [{"src": 0, "dst": 1, "time": [[0, 1], [0]]}]}, "rows of equal length"),
        ({"node_time": [], "node_mem": [], "edges": []}, "no nodes"),
        ({"node_time": [[], [1, 2, 3]], "node_mem": [[], [1, 2, 3]], "edges": []}, "node 0 needs one price"),
    ],
)
def test_faulty_graphs_are_refused_with_their_field(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(written(tmp_path / "g.json", {**GRAPH, **changes}))
