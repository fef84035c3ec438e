"""MindSpore's small MLPs: each case is a chain of products with its own sizes, refused with file and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.formats.detect import format_of
from meshwright.formats.mindspore import parse, read, recognises
from meshwright.graph.validate import validate_graph

CASES = {
    "public": [{"devices": 8, "batch": 64, "dims": [16, 32, 8], "matmul_strategies": []}],
    "inputs_only": [{"devices": 2, "batch": 6, "dims": [4, 10]}],
}


def test_cases_are_counted_over_both_lists() -> None:
    problem = parse(CASES, "f", case=0)
    validate_graph(problem.graph)
    assert [op.name for op in problem.graph.ops] == ["matmul0", "relu0", "matmul1"]
    assert problem.cluster.count == 8 and problem.recipe.samples == 64
    assert problem.graph.tensor["matmul1.weight"].shape == (32, 8)
    other = parse(CASES, "f", case=1, devices=4, batch=12)
    assert [op.name for op in other.graph.ops] == ["matmul0"]
    assert (other.cluster.count, other.graph.samples) == (4, 12)
    assert parse(CASES["inputs_only"][0], "f").graph == parse(CASES, "f", case=1).graph


def test_the_public_file_is_recognised_and_the_other_is_not(data_folder: Path) -> None:
    folder = data_folder / "mindspore-planners"
    assert format_of(folder / "recursive_programming_mlp.json") == "mindspore"
    assert format_of(folder / "dynamic_programming_mlp.json") != "mindspore"
    assert read(folder / "recursive_programming_mlp.json", case=24).recipe.samples == 32
    assert recognises(CASES) and recognises(CASES["inputs_only"][0])
    assert not recognises([]) and not recognises({"public": []}) and not recognises({"nodes": []})


@pytest.mark.parametrize(
    ("document", "settings", "said"),
    [
        (CASES, {"case": 2}, "f: case is 2, there are 0 to 1"),
        (CASES, {"batch": 0}, "f: batch is 0"),
        (CASES, {"devices": 0}, "f: devices is 0"),
        ({"public": [{"devices": 8, "batch": 4, "dims": [4]}]}, {}, "f: public[0].dims is [4], wanted a list of two"),
        ({"public": [{"devices": 8, "batch": 4, "dims": [4, -1]}]}, {}, "f: public[0].dims is [4, -1]"),
        ({"public": [{"devices": 8, "dims": [4, 1]}]}, {}, "f: public[0].batch is missing"),
        ({"devices": 0, "batch": 4, "dims": [4, 1]}, {}, "f: devices is 0, wanted a whole number of 1 or more"),
    ],
)
def test_what_is_wrong_is_named(document: object, settings: dict[str, int], said: str) -> None:
    with pytest.raises(InputError) as error:
        parse(document, "f", **settings)
    assert said in error.value.message


def test_planners_that_need_seconds_say_that_there_are_none(data_folder: Path) -> None:
    """And those that count elements plan it."""
    from meshwright.errors import Unsupported
    from meshwright.planners import load

    problem = read(data_folder / "mindspore-planners" / "recursive_programming_mlp.json")
    for name in ("alpa", "grid", "dapple", "piper", "pipedream"):
        with pytest.raises(Unsupported, match="this graph has FLOPs and bytes only, and no times"):
            load(name).plan(problem)
    for name in ("double_recursive", "accpar", "tofu"):
        assert load(name).plan(problem).plan is not None
