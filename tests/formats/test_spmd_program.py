"""The reader of tensor programs: every fault is named with its field; the command line prints the shardings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from meshwright.errors import InputError
from meshwright.formats import spmd_program
from meshwright.formats.detect import format_of, read
from meshwright.plan.model import Cut
from meshwright.planners import load

GOOD: dict[str, Any] = {
    "mesh": [["x", 2], ["y", 4]],
    "shapes": {"a": [8, 4], "0": [8, 4]},
    "ops": [
        {
            "op": "tanh", "operands": ["a"], "result": "0",
            "rule": {
                "operands": [[["i"], ["j"]]], "results": [[["i"], ["j"]]], "sizes": {"i": 8, "j": 4}, "special": {},
            },
        }
    ],
    "returns": ["0"],
    "given": {"a": [{"axes": [["y", 1, 2], ["x"]], "open": True}, {"axes": [], "open": False}]},
    "given_out": [],
}  # fmt: skip


def test_a_program_is_a_graph_with_annotations(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"one": GOOD}))
    assert format_of(path) == "spmd_program"
    problem = read(path)
    assert problem.mesh is not None and problem.mesh.shape == (2, 4) and problem.cluster.count == 8
    assert [op.name for op in problem.graph.ops] == ["0:tanh", "return:0"]
    (a,) = problem.annotations
    assert a.target == "a" and a.open_dims == (0,) and a.where.endswith("one.given.a")
    assert a.layout is not None and a.layout.dims[0] == ((0, (Cut("y:(1)2"), Cut("x"))),)


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    at: Any = document
    *keys, last = path.split("/")
    for key in keys:
        at = at[int(key) if isinstance(at, list) else key]
    at[int(last) if isinstance(at, list) else last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("mesh", [], "one.mesh is [], wanted a list of axes"),
        ("mesh/1", ["y", 0], "one.mesh[1] is"),
        ("mesh/1", ["x", 4], "wanted axes with names of their own"),
        ("shapes/a", [8, 0], "one.shapes.a is [8, 0], wanted a list of sizes of 1 or more"),
        ("ops/0/operands", ["b"], "one.ops[0].operands is"),
        ("ops/0/operands", ["0"], "wanted values that an op before it makes, or none"),
        ("ops/0/result", "b", "one.ops[0].result is"),
        ("ops/0/rule/operands", [[["i"]]], "one.ops[0].rule.operands[0] is"),
        ("ops/0/rule/results", [[["i"], ["k"]]], "one.ops[0].rule.results[0][1] is"),
        ("ops/0/rule/sizes/i", 0, "one.ops[0].rule.sizes.i is 0"),
        ("ops/0/rule/special", {"odd": ["i"]}, "one.ops[0].rule.special.odd is"),
        ("returns", ["b"], "one.returns is"),
        ("given", {"b": []}, "one.given.b is [], wanted a sharding of a value that has a shape"),
        ("given/a", [], "one.given.a is [], wanted one sharding for each of the 2 dims"),
        ("given/a/0", {"axes": [["z"]], "open": True}, "one.given.a[0].axes is"),
        ("given/a/0", {"axes": [["y", 3, 2]], "open": True}, "one.given.a[0].axes is"),
        ("given_out", [[], []], "one.given_out is"),
    ],
)
def test_a_fault_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        spmd_program.parse({"one": changed(path, value)}, "p.json", None)
    assert message in error.value.message and error.value.message.startswith("p.json")


def test_one_of_several_programs_is_named() -> None:
    both = {"one": GOOD, "two": GOOD}
    with pytest.raises(InputError, match="name one as program: one, two"):
        spmd_program.parse(both, "p.json", None)
    with pytest.raises(InputError, match='no program "three": there are one, two'):
        spmd_program.parse(both, "p.json", "three")
    with pytest.raises(InputError, match="as many devices as h100x4 has, 4"):
        spmd_program.parse(both, "p.json", "one", cluster="h100x4")


def test_a_convolution_exchanges_the_rows_that_its_windows_reach(data_folder: Path) -> None:
    """3 x 3 over [4, 32, 32, 8], rows over 4 devices: one row from either neighbour, 4 · 32 / 2 · 8 numbers each."""
    problem = read(data_folder / "spmd-propagation" / "programs.json", program="conv_spatial")
    result = load("gspmd").plan(problem)
    assert {f.name: f.halo for f in problem.graph.ops[0].rule.factors if f.kind == "halo"} == {"j": (1, 1), "k": (1, 1)}
    assert result.objective == 8 * 2 * (2 * 32 * 8) * 4.0
