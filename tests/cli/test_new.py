"""`new planner`: what is written works as it stands, and nothing is written over."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from in_process import Command

import meshwright as package


def test_the_file_passes_the_conformance_suite(meshwright: Command, tmp_path: Path) -> None:
    done = meshwright("new", "planner", "my_first")
    lines = (tmp_path / "my_first.py").read_text().count("\n")
    assert done.code == 0 and lines < 60
    assert done.out == f"Wrote my_first.py: {lines} lines, works as it stands.   Next: meshwright check ./my_first.py\n"
    checked = json.loads(meshwright("check", "./my_first.py", "--json").out)
    assert checked["planner"] == "my_first"
    assert all(c["passed"] for c in checked["checks"]) and len(checked["checks"]) == 6


def test_the_file_plans_a_real_model_and_is_no_worse_than_cutting_samples(meshwright: Command) -> None:
    small = ("gpt2", "-c", "a100x8", "--batch", "16", "--seq", "256")
    meshwright("new", "planner", "my_first")
    answer = json.loads(meshwright("plan", *small, "--planner", "./my_first.py", "--json").out)
    by_samples = json.loads(meshwright("simulate", *small, "--dp", "8", "--micro-batch", "2", "--json").out)
    assert answer["result"]["planner"] == "my_first"
    assert 0 < answer["candidates"][0]["step_s"] <= by_samples["candidates"][0]["step_s"] * (1 + 1e-9)


def test_the_package_names_its_entry_point_and_its_tests_run(
    meshwright: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = meshwright("new", "planner", "my_second", "--package", "--json")
    assert done.code == 0, done.err
    folder = tmp_path / "my_second"
    assert all(Path(p).is_file() for p in json.loads(done.out)["files"].values())
    entries = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["meshwright.planners"]
    monkeypatch.syspath_prepend(str(folder / "src"))
    module, _, kind = entries["my_second"].partition(":")
    assert getattr(importlib.import_module(module), kind).info.name == "my_second"
    source = str(Path(package.__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "infeasible or memory"],
        cwd=folder, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0 and "2 passed, 4 deselected" in ran.stdout, ran.stdout


@pytest.mark.parametrize("more", [(), ("--package",)])
def test_nothing_is_written_over(meshwright: Command, tmp_path: Path, more: tuple[str, ...]) -> None:
    target = "mine" if more else "mine.py"
    (tmp_path / target).write_text("my work")
    done = meshwright("new", "planner", "mine", *more)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"meshwright: {target} exists and was left as it is: give another name or a folder with -o\n"
    assert (tmp_path / target).read_text() == "my work"
    assert meshwright("new", "planner", "mine", *more, "-o", "sub").code == 0
    assert (tmp_path / "sub" / target).exists()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("model", "mine"), 'new makes no "model": write "meshwright new planner NAME"'),
        (
            ("planner", "My-one"),
            '"My-one" cannot name a planner: use small letters, digits and _, first a letter, such as greedy_tp',
        ),
        (
            ("planner", "class"),
            '"class" cannot name a planner: use small letters, digits and _, first a letter, such as greedy_tp',
        ),
        (("planner", "json"), '"json" is a module that others import: choose another name'),
        (("planner", "grid"), '"grid" is a planner already: "meshwright planners grid" shows it'),
    ],
)
def test_a_name_that_cannot_be_is_refused(
    meshwright: Command, tmp_path: Path, args: tuple[str, ...], sentence: str
) -> None:
    done = meshwright("new", *args)
    assert (done.code, done.err) == (2, f"meshwright: {sentence}\n")
    assert not list(tmp_path.iterdir())
