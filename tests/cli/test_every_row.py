"""Rows of the table of errors that a command line sees whole, and what problem.toml, environment and options make together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import Command

from meshwright.request import read

SMALL = ("gpt2", "-c", "a100x8", "--batch", "16", "--seq", "64")
MOE = """import torch
from torch import nn


class Router(nn.Module):
    def forward(self, x):
        if x.max() > 1:
            return x
        return x * 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.router = Router()

    def forward(self, x):
        return {"loss": self.router(self.fc(x)).mean()}


def build():
    return Net(), {"x": torch.zeros(4, 8)}
"""
CLUSTER = """[device.h100]
memory = "80 GiB"
[link.nv]
bandwidth = "450 GB/s"
[link.ib]
bandwidth = "400gbs"
[[node]]
device = "h100"
devices = 8
count = 2
link = "nv"
uplink = "ib"
"""


def last(meshwright: Command, *args: str, code: int = 2) -> str:
    done = meshwright(*args, "-q")
    assert (done.code, done.out) == (code, ""), done.err
    return done.err.splitlines()[-1].removeprefix("meshwright: ")


def test_a_bandwidth_without_a_unit(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    assert last(meshwright, "plan", "gpt2", "-c", "cluster.toml") == (
        'cluster.toml:6: link.ib.bandwidth = "400gbs" has no unit I know: write "400 Gb/s" (bits) or "50 GB/s" (bytes)'
    )


def test_a_field_that_a_cluster_has_not(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(CLUSTER.replace("memory", "mem").replace("400gbs", "400 Gb/s"))
    assert last(meshwright, "plan", "gpt2", "-c", "cluster.toml") == (
        'cluster.toml:2: no field "mem" in [device.h100]: did you mean "memory"?'
    )


def test_a_branch_on_data(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "moe.py").write_text(MOE)
    assert last(meshwright, "plan", "moe.py:build", "-c", "a100x2", "--batch", "4").startswith(
        'cannot capture router (moe.py:7): "if x.max() > 1" branches on data; use torch.where'
    )


def test_a_profile_with_nan(meshwright: Command, tmp_path: Path) -> None:
    line = "node{} -- Linear -- forward_compute_time={}, backward_compute_time=2.0, activation_size=8.0, parameter_size=4.0"
    (tmp_path / "graph.txt").write_text(f"{line.format(1, 1.0)}\n{line.format(2, 'nan')}\n\tnode1 -- node2\n")
    assert last(meshwright, "plan", "graph.txt") == (
        "graph.txt:2: forward_compute_time is nan, wanted a finite number of 0 or more"
    )


def test_a_damaged_plan_says_how_it_is_written_again(meshwright: Command, tmp_path: Path) -> None:
    assert meshwright("plan", *SMALL, "-q").code == 0
    plan = tmp_path / "gpt2-a100x8" / "plan.json"
    plan.write_text(plan.read_text()[:-20])
    for command in (("show",), ("simulate",), ("verify",), ("run",), ("export", "--to", "megatron")):
        said = last(meshwright, command[0], "gpt2-a100x8", *command[1:])
        assert said.endswith('so nothing was read: write it again with "meshwright plan gpt2-a100x8/problem.toml"'), (
            said
        )


@pytest.mark.parametrize(
    ("allow", "sentence"),
    [
        ("recompute=never", "no layout of a100x8, batch 16, has recompute=never: recompute may be full, light, none"),
        ("colour=red", 'grid has nothing called "colour" to fix'),
        ("tp=3", "no layout of a100x8, batch 16, has tp=3: tp may be 1, 2, 4"),
        ("recompute", "--allow recompute: write the choices as recompute=none,full"),
    ],
)
def test_choices_that_cannot_be(meshwright: Command, allow: str, sentence: str) -> None:
    assert sentence in last(meshwright, "plan", *SMALL, "--allow", allow)


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        (("--allow", "recompute=full"), lambda c: c["recompute"] == "full"),
        (("--allow", "recompute=none,light"), lambda c: c["recompute"] in ("none", "light")),
        (("--fix", "pp=2", "--allow", "schedule=1f1b"), lambda c: c["schedule"] == "1f1b" and "pp2" in c["layout"]),
        (("--allow", "tp=2,4", "--allow", "zero=0"), lambda c: "z" not in c["layout"] and "tp" in c["layout"]),
        (("--objective", "memory", "--fix", "tp=2"), lambda c: "tp2" in c["layout"]),
        (("--objective", "cost", "--price", "2", "--allow", "recompute=none"), lambda c: c["recompute"] == "none"),
    ],
)
def test_wishes_hold_for_every_row_and_are_asked_again_by_the_file(
    meshwright: Command, options: tuple[str, ...], holds: object
) -> None:
    assert callable(holds)
    done = meshwright("plan", *SMALL, *options, "--json", "-q")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert answer["candidates"] and all(holds(c) for c in answer["candidates"])
    folder = Path(answer["files"]["problem.toml"]).parent
    again = json.loads(meshwright("plan", str(folder / "problem.toml"), "-o", "again", "--json", "-q").out)
    assert again["plan"] == answer["plan"]
    written, rewritten = read(folder / "problem.toml"), read(Path("again/problem.toml"))
    assert (written.allow, written.fix, written.objective) == (rewritten.allow, rewritten.fix, rewritten.objective)


def test_options_come_before_the_environment_before_the_file(
    meshwright: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.toml").write_text(
        'schema = 1\n[model]\nname = "gpt2"\nbatch = 16\nseq = 64\n[cluster]\nname = "a100x4"\n[search]\nplanner = "gpipe"\n'
    )

    def planned(*options: str) -> tuple[str, str]:
        answer = json.loads(meshwright("simulate", "p.toml", "--dp", "2", *options, "--json", "-q").out)
        return answer["problem"]["cluster"], answer["result"]["planner"]

    assert planned()[0] == "a100x4"
    monkeypatch.setenv("MESHWRIGHT_CLUSTER", "a100x8")
    assert planned()[0] == "a100x8"
    assert planned("-c", "a100x2")[0] == "a100x2"
    answer = json.loads(meshwright("plan", "p.toml", "-o", "one", "--json", "-q").out)
    assert answer["result"]["planner"] == "gpipe"
    monkeypatch.setenv("MESHWRIGHT_PLANNER", "grid")
    answer = json.loads(meshwright("plan", "p.toml", "-o", "two", "--json", "-q").out)
    assert answer["result"]["planner"] == "grid"
    answer = json.loads(meshwright("plan", "p.toml", "-o", "three", "--planner", "torchgpipe", "--json", "-q").out)
    assert answer["result"]["planner"] == "torchgpipe"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('[model]\nname = "gpt2"\ntokens = "15X"\n', 'p.toml:4: model.tokens = "15X": write a number of tokens, such as 15e12, 15T or 300B'),
        ('[model]\nname = "gpt2"\ntokens = 0\n', "p.toml:4: model.tokens = 0: must be a number of at least 1"),
        ('[model]\nname = "gpt2"\nconfig = "x.json"\n', "p.toml:2: model = "),
    ],
)  # fmt: skip
def test_a_problem_file_is_faulted_by_line(meshwright: Command, tmp_path: Path, table: str, sentence: str) -> None:
    (tmp_path / "p.toml").write_text(f'schema = 1\n{table}[cluster]\nname = "a100x4"\n')
    assert sentence in last(meshwright, "plan", "p.toml")
