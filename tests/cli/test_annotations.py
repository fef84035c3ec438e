"""`plan --mesh --annotations`: on a model, from a problem file, and what is refused; tensor programs by their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_process import Command

MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(64, 256)
        self.second = torch.nn.Linear(256, 64)
    def forward(self, x, y):
        return {"loss": ((self.second(torch.relu(self.first(x))) - y) ** 2).mean()}

def build():
    return Net(), {"x": torch.zeros(8, 64), "y": torch.zeros(8, 64)}
"""
SHARDINGS = """
schema = 1
mesh = { data = 2, model = 4 }
[[annotate]]
tensor = "x"
dims = ["data", "_"]
[[annotate]]
tensor = "first.weight"
dims = ["model", "_"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "shardings.toml").write_text(SHARDINGS)
    return tmp_path


def plan(meshwright: Command, *more: str, planner: str = "gspmd") -> tuple[int, str, dict[str, Any]]:
    done = meshwright(
        "plan", "model.py:build", "-c", "h100x8", "--batch", "64", "--planner", planner, "--json", "-q", *more
    )
    return done.code, done.err, json.loads(done.out) if done.out else {}


def test_a_file_of_annotations_is_completed_and_can_be_run_again(meshwright: Command, folder: Path) -> None:
    code, err, found = plan(meshwright, "--annotations", "shardings.toml", "-o", "out")
    assert code == 0, err
    assert found["details"]["final"]["second.weight"] == "[_, model]" and found["unit"] == "byte"
    (mesh,) = found["plan"]["meshes"]
    assert mesh["axes"] == ["data", "model"]
    assert 'annotations = "../shardings.toml"' in (folder / "out" / "problem.toml").read_text()
    again = meshwright("plan", "out/problem.toml", "-o", "again", "-q")
    assert again.code == 0, again.err
    assert (folder / "again" / "plan.json").read_bytes() == (folder / "out" / "plan.json").read_bytes()


def test_a_recipe_takes_its_mesh_from_the_command_line(meshwright: Command, folder: Path) -> None:
    code, err, found = plan(meshwright, "--mesh", "a=8", "--set", "recipe=fsdp")
    assert code == 0, err
    assert found["details"]["final"]["first.weight"] == "[_, a]"


@pytest.mark.parametrize(
    ("more", "planner", "message"),
    [
        (("--mesh", "a=8"), "grid", "planner grid takes no --mesh: leave it out, or use --planner gspmd"),
        (("--annotations", "shardings.toml"), "grid", "planner grid takes no --annotations"),
        (("--annotations", "none.toml"), "gspmd", "no file none.toml"),
        (("--mesh", "a=16"), "gspmd", "a mesh of a 16 = 16 devices, but h100x8 has 8"),
        (("--mesh", "a"), "gspmd", '--mesh a: write each axis once with its size, as "x=2,y=4"'),
        (("--mesh", "a=8", "--annotations", "shardings.toml"), "gspmd", "--mesh a=8 and shardings.toml (mesh data=2,model=4) differ"),
        (("--set", "recipe=megatrom"), "gspmd", "--set recipe=megatrom: wanted"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_sentence(
    meshwright: Command, folder: Path, more: tuple[str, ...], planner: str, message: str
) -> None:
    code, err, _ = plan(meshwright, *more, planner=planner)
    assert code == 2 and message in err


def test_a_tensor_program_answers_with_all_shardings(meshwright: Command, data_folder: Path) -> None:
    file = data_folder / "spmd-propagation" / "programs.json"
    wanted = json.loads(file.read_text())
    for name in ("mlp_col", "reshape_subaxis", "layernorm"):
        done = meshwright("plan", str(file), "--planner", "gspmd", "--set", f"program={name}", "--json", "-q")
        assert done.code == 0, done.err
        details = json.loads(done.out)["details"]
        assert (details["final"], details["final_out"]) == (wanted[name]["final"], wanted[name]["final_out"])
    assert meshwright("plan", str(file), "--set", "program=mlp_col").code == 0  # the planner of this format
    unnamed = meshwright("plan", str(file), "--planner", "gspmd")
    assert unnamed.code == 2 and "name one as program: mlp_col, " in unnamed.err
