"""AccPar's descriptions and MindSpore's cases by exactly the command line: values in JSON, refusals in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from in_process import Command

from meshwright.formats.accpar import resnet


def answer(meshwright: Command, *args: str, code: int = 0) -> dict[str, Any]:
    done = meshwright("plan", *args, "--json", "-q")
    assert done.code == code, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_accpar_counts_elements_of_every_level(meshwright: Command, data_folder: Path) -> None:
    file = str(data_folder / "accpar" / "Alexnet.txt")
    found = answer(meshwright, file, "--planner", "accpar", "--set", "devices=128")
    assert (found["status"], found["unit"], found["bound"]) == ("feasible", "element", None)
    levels = found["details"]["levels"]
    assert [level["types"] for level in levels[:2]] == ["00000121", "00000211"]
    assert found["objective"] == sum(level["value"] for level in levels) == 47431392
    assert found["simulation"] is None and found["not_simulated"]
    one = answer(meshwright, file, "--set", "devices=2")  # the planner of this format
    assert (one["status"], one["objective"], one["bound"]) == ("optimal", 10811424, 10811424)


def test_accpar_as_the_original_program_on_a_resnet(meshwright: Command, tmp_path: Path) -> None:
    file = tmp_path / "resnet18.txt"
    file.write_text(resnet(18))
    found = answer(meshwright, str(file), "--planner", "accpar", "--set", "method=accpar-code")
    assert [level["claimed"] for level in found["details"]["levels"]][:2] == [13579456, 13317312]


def test_accpar_divides_unequal_halves_by_their_speed(meshwright: Command, tmp_path: Path) -> None:
    file = tmp_path / "layers.txt"
    rows = [(9216, 4096), (4096, 4096), (4096, 1000)]
    text = "".join(f"fc{i} FC\nin_ch {a}\nout_ch {b}\n" for i, (a, b) in enumerate(rows))
    file.write_text(f"num_layers 3\n{text}")
    given = ("--set", "devices=1,1", "--set", "flops=180e12,420e12", "--set", "bandwidth=1e9")
    found = answer(meshwright, str(file), "--planner", "accpar", *given)
    assert (found["unit"], found["status"]) == ("s", "optimal")
    assert abs(found["objective"] - 9.71263199e-3) < 1e-10
    done = meshwright("plan", str(file), "--planner", "accpar", "--set", "devices=1,1", "-q")
    assert done.code == 2 and "flops is ()" in done.err


def test_a_case_of_mindspores(meshwright: Command, data_folder: Path) -> None:
    file = str(data_folder / "mindspore-planners" / "recursive_programming_mlp.json")
    found = answer(meshwright, file, "--planner", "double_recursive", "--set", "case=4")
    assert found["details"]["strategies"] == {"matmul0": [[4, 1], [1, 2]]}
    assert found["unit"] == "element" and found["details"]["rounds"] == ["I", "J", "I"]
    exact = answer(meshwright, file, "--planner", "double_recursive", "--set", "case=1", "--set", "exact=true")
    assert exact["bound"] == exact["details"]["least"] <= exact["objective"]
    done = meshwright("plan", file, "--planner", "double_recursive", "--set", "case=25", "-q")
    assert done.code == 2 and "case is 25, there are 0 to 24" in done.err


def test_halves_that_decide_otherwise_are_two_stages(meshwright: Command, tmp_path: Path) -> None:
    file = tmp_path / "layers.txt"
    text = "".join(f"fc{i} FC\nin_ch 400\nout_ch 400\n" for i in range(3))
    file.write_text(f"num_layers 3\n{text}")
    settings = ["devices=2,2", "flops=1e12,19e12", "bandwidth=1e13", "batch=2000"]
    found = answer(meshwright, str(file), *(word for s in settings for word in ("--set", s)))
    assert [stage["nodes"] for stage in found["stages"]] == [[f"fc{i}@{half}" for i in range(3)] for half in (0, 1)]
    assert [stage["devices"] for stage in found["stages"]] == [[0, 1], [2, 3]]
    assert found["details"]["levels"][1]["types"][1] == "000" and found["not_simulated"]
